"""Adagrad: gradient descent scaled by the sum of all squared gradients so far."""

from __future__ import annotations

import dataclasses

import mlx.core as mx
from mlx.utils import tree_map

from mlxopt._checks import limited
from mlxopt._tree import Tree
from mlxopt.optimizers._base import FirstOrder, LearningRate, Step, descend, wide


@dataclasses.dataclass(frozen=True)
class Adagrad(FirstOrder):
    """Gradient descent with each entry divided by the root of its summed squared gradients.

        v      ← v + gradient²
        params ← params - learning_rate · gradient / (√v + epsilon)

    from v = 0. The steps decrease, least for entries whose gradient is mostly 0 (sparse features).
    The first step changes each entry by `learning_rate`. Duchi, Hazan and Singer (2011), "Adaptive
    subgradient methods for online learning and stochastic optimization", the diagonal version of
    figure 1.

    Args:
        learning_rate: a number, or a function of the step (an int, counted from 0).
        epsilon: added to the root, zero or more.

    >>> import mlx.core as mx, mlxopt as mo
    >>> loss = lambda w: mx.sum(mx.array([1.0, 100.0]) * (w - 3.0) ** 2)
    >>> mo.minimize(loss, mx.zeros(2), mo.Adagrad(2.0)).params
    array([3, 3], dtype=float32)
    """

    learning_rate: LearningRate = 0.01
    epsilon: float = limited(1e-10, least=0)

    def update(self, grad: Tree, buffers: Tree, params: Tree, learning_rate: mx.array) -> Step:
        grad = wide(grad)
        total = tree_map(lambda v, g: v + mx.square(g), buffers, grad)
        direction = tree_map(lambda g, v: g / (mx.sqrt(v) + self.epsilon), grad, total)
        return descend(params, direction, learning_rate), total
