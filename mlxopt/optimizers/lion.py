"""Lion: steps of one length, by the signs of the momentum."""

from __future__ import annotations

import dataclasses

import mlx.core as mx
from mlx.utils import tree_map

from mlxopt._checks import limited
from mlxopt._tree import Tree
from mlxopt.optimizers._base import FirstOrder, LearningRate, Step, descend, running_mean, wide


@dataclasses.dataclass(frozen=True)
class Lion(FirstOrder):
    """Evolved sign momentum: every entry changes by exactly the learning rate.

        direction ← sign(beta1 · m + (1 - beta1) · gradient)
        params    ← params - learning_rate · (direction + weight_decay · params)
        m         ← beta2 · m + (1 - beta2) · gradient

    from m = 0, with half the memory of Adam. The steps are longer than Adam's at the same learning
    rate: take one 3 to 10 times smaller, and a decreasing schedule, since nothing else shortens
    them. Chen et al. (2023), "Symbolic discovery of optimization algorithms", program 1.

    Args:
        learning_rate: a number, or a function of the step (an int, counted from 0).
        beta1: the weight of the momentum in the direction, from 0 to below 1.
        beta2: the decay rate of the momentum, from 0 to below 1.
        weight_decay: the share of itself that an entry loses in a step of learning rate 1.

    >>> import mlx.core as mx, mlxopt as mo
    >>> loss = lambda w: mx.sum(mx.array([1.0, 100.0]) * (w - 3.0) ** 2)
    >>> mo.minimize(loss, mx.zeros(2), mo.Lion(0.25), tol=0, max_steps=12).params
    array([3, 3], dtype=float32)
    """

    learning_rate: LearningRate = 1e-4
    beta1: float = limited(0.9, least=0, below=1)
    beta2: float = limited(0.99, least=0, below=1)
    weight_decay: float = limited(0.0, least=0)

    def update(self, grad: Tree, buffers: Tree, params: Tree, learning_rate: mx.array) -> Step:
        grad = wide(grad)
        direction = tree_map(mx.sign, running_mean(buffers, grad, self.beta1))
        momentum = running_mean(buffers, grad, self.beta2)
        return descend(params, direction, learning_rate, self.weight_decay), momentum
