"""Adam and AdamW: steps scaled by running means of the gradient and of its square."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import mlx.core as mx
from mlx.utils import tree_map

from mlxopt._checks import limited
from mlxopt._tree import Tree, working_dtype
from mlxopt.optimizers._base import FirstOrder, LearningRate, Step, descend, running_mean, wide


class Moments(NamedTuple):
    """The buffers of Adam; float32 where the parameters have 16 bits."""

    mean: Tree  # m, the running mean of the gradient, like params
    square: Tree  # v, the running mean of its square, like params
    steps: mx.array  # t, the number of steps taken, shape ()


@dataclasses.dataclass(frozen=True)
class Adam(FirstOrder):
    """Adam: the step of an entry is its mean gradient over the root of its mean square.

        m ← beta1 · m + (1 - beta1) · gradient
        v ← beta2 · v + (1 - beta2) · gradient²
        params ← params - learning_rate · m̂ / (√v̂ + epsilon)

    with m̂ = m / (1 - beta1ᵗ) and v̂ = v / (1 - beta2ᵗ) after t steps, since m and v start from 0.
    A step hardly depends on the scale of the gradient and changes an entry by about `learning_rate`
    at most. With a fixed learning rate the iterates oscillate at about that distance from a
    minimum: take a decreasing one (`mlxopt.schedules`), or continue by `LBFGS`. Kingma and Ba
    (2015), "Adam: a method for stochastic optimization", algorithm 1.

    Args:
        learning_rate: a number, or a function of the step (an int, counted from 0).
        beta1: the decay rate of the mean, from 0 to below 1.
        beta2: the decay rate of the mean square, from 0 to below 1.
        epsilon: added to the root, zero or more.

    >>> import mlx.core as mx, mlxopt as mo
    >>> loss = lambda w: mx.sum(mx.array([1.0, 100.0]) * (w - 3.0) ** 2)
    >>> rate = mo.schedules.exponential(0.3, factor=0.995)
    >>> mo.minimize(loss, mx.zeros(2), mo.Adam(rate), tol=1e-7).params
    array([3, 3], dtype=float32)
    """

    learning_rate: LearningRate = 1e-3
    beta1: float = limited(0.9, least=0, below=1)
    beta2: float = limited(0.999, least=0, below=1)
    epsilon: float = limited(1e-8, least=0)
    weight_decay = 0.0  # a field of AdamW alone

    def start(self, params: Tree) -> Moments:
        mean, square = super().start(params), super().start(params)
        return Moments(mean, square, mx.zeros((), dtype=working_dtype(params)))

    def update(self, grad: Tree, buffers: Moments, params: Tree, learning_rate: mx.array) -> Step:
        grad, steps = wide(grad), buffers.steps + 1
        mean = running_mean(buffers.mean, grad, self.beta1)
        square = running_mean(buffers.square, tree_map(mx.square, grad), self.beta2)
        filled1, filled2 = _filled(self.beta1, steps), _filled(self.beta2, steps)
        direction = tree_map(
            lambda m, v: (m / filled1) / (mx.sqrt(v / filled2) + self.epsilon), mean, square
        )
        moved = descend(params, direction, learning_rate, self.weight_decay)
        return moved, Moments(mean, square, steps)


@dataclasses.dataclass(frozen=True)
class AdamW(Adam):
    """Adam with weight decay, decoupled from the gradient.

        params ← params - learning_rate · (m̂ / (√v̂ + epsilon) + weight_decay · params)

    with m̂ and v̂ as in `Adam`. All entries decay at one rate; the gradient of a penalty in the loss
    would be divided by √v̂. For no decay of some leaves, such as biases, give them another rule:
    `Grouped(AdamW(1e-3), {"*bias*": Adam(1e-3)})`. Loshchilov and Hutter (2019), "Decoupled weight
    decay regularization", algorithm 2.

    Args:
        learning_rate, beta1, beta2, epsilon: as in `Adam`.
        weight_decay: the share of itself that an entry loses in a step of learning rate 1.

    >>> import mlx.core as mx, mlxopt as mo
    >>> rule = mo.AdamW(0.1, weight_decay=0.5)
    >>> mo.minimize(lambda w: mx.sum(0 * w), mx.ones(2), rule, tol=0, max_steps=1).params
    array([0.95, 0.95], dtype=float32)
    """

    weight_decay: float = limited(0.01, least=0)


def _filled(beta: float, steps: mx.array) -> mx.array:
    """Return 1 - betaᵗ, to full precision: beta2ᵗ is nearly 1 in the first steps."""
    return -mx.expm1(steps * math.log(beta)) if beta > 0 else mx.ones_like(steps)
