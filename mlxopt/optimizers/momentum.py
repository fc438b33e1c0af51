"""Gradient descent with momentum."""

from __future__ import annotations

import dataclasses

import mlx.core as mx
from mlx.utils import tree_map

from mlxopt._checks import limited
from mlxopt._tree import Tree
from mlxopt.optimizers._base import FirstOrder, LearningRate, Step, descend


@dataclasses.dataclass(frozen=True)
class Momentum(FirstOrder):
    """Gradient descent with momentum: steps along a decaying sum of gradients.

        velocity ← momentum · velocity + gradient
        params   ← params - learning_rate · velocity                          (heavy ball)
        params   ← params - learning_rate · (gradient + momentum · velocity)  (Nesterov)

    from a velocity of 0. Under a constant gradient the step grows to 1 / (1 - momentum) times that
    of `SGD`. Heavy ball: Polyak (1964), "Some methods of speeding up the convergence of iteration
    methods". Nesterov: Sutskever, Martens, Dahl and Hinton (2013), "On the importance of
    initialization and momentum in deep learning", equations 3 and 4, at the look-ahead point.

    Args:
        learning_rate: a number, or a function of the step (an int, counted from 0).
        momentum: the decay rate of the velocity, from 0 (which is `SGD`) to below 1.
        nesterov: Nesterov's form in place of the heavy ball.

    >>> import mlx.core as mx, mlxopt as mo
    >>> loss = lambda w: mx.sum(mx.array([1.0, 10.0]) * (w - 3.0) ** 2)
    >>> mo.minimize(loss, mx.zeros(2), mo.Momentum(0.02, nesterov=True), tol=1e-7).params
    array([3, 3], dtype=float32)
    """

    learning_rate: LearningRate = 0.01
    momentum: float = limited(0.9, least=0, below=1)
    nesterov: bool = False

    def start(self, params: Tree) -> Tree:
        return tree_map(mx.zeros_like, params)

    def update(self, grad: Tree, buffers: Tree, params: Tree, learning_rate: mx.array) -> Step:
        direction = velocity = tree_map(lambda v, g: self.momentum * v + g, buffers, grad)
        if self.nesterov:
            direction = tree_map(lambda g, v: g + self.momentum * v, grad, velocity)
        return descend(params, direction, learning_rate), velocity
