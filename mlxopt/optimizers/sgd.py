"""Gradient descent."""

from __future__ import annotations

import dataclasses

import mlx.core as mx

from mlxopt._tree import Tree
from mlxopt.optimizers._base import FirstOrder, LearningRate, Step, descend


@dataclasses.dataclass(frozen=True)
class SGD(FirstOrder):
    """Gradient descent: params ← params - learning_rate · gradient.

    On mini-batches (`train`) this is stochastic gradient descent (Robbins and Monro 1951); on all
    the data (`minimize`) it is Cauchy's method of steepest descent with steps of fixed length.

    Args:
        learning_rate: a number, or a function of the step (an int, counted from 0).

    >>> import mlx.core as mx, mlxopt as mo
    >>> loss = lambda w: mx.sum((w - 3.0) ** 2)
    >>> mo.minimize(loss, mx.zeros(2), mo.SGD(0.1)).params
    array([3, 3], dtype=float32)
    """

    learning_rate: LearningRate = 0.01

    def start(self, params: Tree) -> Tree:
        return ()

    def update(self, grad: Tree, buffers: Tree, params: Tree, learning_rate: mx.array) -> Step:
        return descend(params, grad, learning_rate), buffers
