"""Adam, and AdamW: steps scaled by running means of the gradient and of its square."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import mlx.core as mx
from mlx.utils import tree_map

from mlxopt._checks import check_fields
from mlxopt._tree import Tree, working_dtype
from mlxopt.optimizers._base import FirstOrder, LearningRate, descend, wide, zeros


class Moments(NamedTuple):
    """The buffers of Adam; float32 where the parameters have 16 bits."""

    mean: Tree  # m, the running mean of the gradient, like params
    square: Tree  # v, that of its square, like params
    steps: mx.array  # taken so far, shape ()


@dataclasses.dataclass(frozen=True)
class Adam(FirstOrder):
    """Adam: each entry moves by its mean gradient over the root of its mean squared gradient.

        m ← beta1 · m + (1 - beta1) · gradient
        v ← beta2 · v + (1 - beta2) · gradient²
        params ← params - learning_rate · m̂ / (√v̂ + epsilon)

    after t steps m̂ = m / (1 - beta1ᵗ) and v̂ = v / (1 - beta2ᵗ), which undo the start from zero. A
    step hardly depends on the gradient's scale and moves no entry much farther than
    `learning_rate`. With a fixed one the iterates hover at about that distance from a minimum: use
    a schedule, or `LBFGS` afterwards. Kingma and Ba (2015), "Adam: a method for stochastic
    optimization", algorithm 1.

    Args:
        learning_rate: a number, or a function of the step (an int, counted from 0).
        beta1: the share of the mean kept in a step, from 0 to below 1.
        beta2: that of the mean square, likewise.
        epsilon: avoids a division by zero.

    >>> import mlx.core as mx, mlxopt as mo
    >>> loss = lambda w: mx.sum(mx.array([1.0, 100.0]) * (w - 3.0) ** 2)
    >>> rate = mo.schedules.exponential(0.3, factor=0.995)
    >>> mo.minimize(loss, mx.zeros(2), mo.Adam(rate), tol=1e-3).params
    array([3, 3], dtype=float32)
    """

    learning_rate: LearningRate = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, "beta1", "beta2", least=0, below=1)
        check_fields(self, "epsilon", least=0)

    def start(self, params: Tree) -> Moments:
        """Return means of zero after no steps."""
        return Moments(zeros(params), zeros(params), mx.zeros((), dtype=working_dtype(params)))

    def update(
        self, grad: Tree, buffers: Moments, params: Tree, learning_rate: mx.array
    ) -> tuple[Tree, Moments]:
        """Return the parameters and the means after one step."""
        direction, moments = self._direction(grad, buffers)
        return descend(params, direction, learning_rate), moments

    def _direction(self, grad: Tree, moments: Moments) -> tuple[Tree, Moments]:
        """Return m̂ / (√v̂ + epsilon), and the new means."""
        grad = wide(grad)
        mean = running_mean(moments.mean, grad, self.beta1)
        square = running_mean(moments.square, tree_map(mx.square, grad), self.beta2)
        steps = moments.steps + 1
        filled1, filled2 = _filled(self.beta1, steps), _filled(self.beta2, steps)
        direction = tree_map(
            lambda m, v: (m / filled1) / (mx.sqrt(v / filled2) + self.epsilon), mean, square
        )
        return direction, Moments(mean, square, steps)


@dataclasses.dataclass(frozen=True)
class AdamW(Adam):
    """Adam with weight decay beside the gradient's step instead of inside it.

        params ← params - learning_rate · (m̂ / (√v̂ + epsilon) + weight_decay · params)

    with m̂ and v̂ as in `Adam`. A penalty in the loss would be divided by √v̂ like all of the
    gradient; here each entry decays at one rate. To exclude some, such as biases, use another rule
    for them: `Grouped(AdamW(1e-3), {"*bias*": Adam(1e-3)})`. Loshchilov and Hutter (2019),
    "Decoupled weight decay regularization", algorithm 2.

    Args:
        learning_rate, beta1, beta2, epsilon: as in `Adam`.
        weight_decay: the share of itself that an entry loses in a step of learning rate 1.

    >>> import mlx.core as mx, mlxopt as mo
    >>> rule = mo.AdamW(0.1, weight_decay=0.5)
    >>> mo.minimize(lambda w: mx.sum(0 * w), mx.ones(2), rule, tol=0, max_steps=1).params
    array([0.95, 0.95], dtype=float32)
    """

    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, "weight_decay", least=0)

    def update(
        self, grad: Tree, buffers: Moments, params: Tree, learning_rate: mx.array
    ) -> tuple[Tree, Moments]:
        """Return the parameters and the means after one step."""
        direction, moments = self._direction(grad, buffers)
        return descend(params, direction, learning_rate, self.weight_decay), moments


def running_mean(mean: Tree, new: Tree, beta: float) -> Tree:
    """Return beta · mean + (1 - beta) · new, in the dtypes of the mean."""
    return tree_map(lambda m, x: (beta * m + (1 - beta) * x).astype(m.dtype), mean, new)


def _filled(beta: float, steps: mx.array) -> mx.array:
    """Return 1 - betaᵗ, to full precision: beta2ᵗ is nearly 1 in the first steps."""
    return -mx.expm1(steps * math.log(beta)) if beta > 0 else mx.ones_like(steps)
