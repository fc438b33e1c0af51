"""RMSProp: gradient descent scaled by a running mean of squared gradients."""

from __future__ import annotations

import dataclasses

import mlx.core as mx
from mlx.utils import tree_map

from mlxopt._checks import limited
from mlxopt._tree import Tree
from mlxopt.optimizers._base import FirstOrder, LearningRate, Step, descend, running_mean, wide


@dataclasses.dataclass(frozen=True)
class RMSProp(FirstOrder):
    """Gradient descent with each entry divided by the root of its mean squared gradient.

        v      ← decay · v + (1 - decay) · gradient²
        params ← params - learning_rate · gradient / (√v + epsilon)

    from v = 0: the first steps are up to 1 / √(1 - decay) times as long as later ones.
    Tieleman and Hinton (2012), "Neural networks for machine learning", lecture 6.5.

    Args:
        learning_rate: a number, or a function of the step (an int, counted from 0).
        decay: the decay rate of the mean square, from 0 to below 1.
        epsilon: added to the root, zero or more.

    >>> import mlx.core as mx, mlxopt as mo
    >>> loss = lambda w: mx.sum(mx.array([1.0, 100.0]) * (w - 3.0) ** 2)
    >>> rate = mo.schedules.exponential(0.1, factor=0.99)
    >>> mo.minimize(loss, mx.zeros(2), mo.RMSProp(rate), tol=1e-6).params
    array([3, 3], dtype=float32)
    """

    learning_rate: LearningRate = 0.01
    decay: float = limited(0.99, least=0, below=1)
    epsilon: float = limited(1e-8, least=0)

    def update(self, grad: Tree, buffers: Tree, params: Tree, learning_rate: mx.array) -> Step:
        grad = wide(grad)
        square = running_mean(buffers, tree_map(mx.square, grad), self.decay)
        direction = tree_map(lambda g, v: g / (mx.sqrt(v) + self.epsilon), grad, square)
        return descend(params, direction, learning_rate), square
