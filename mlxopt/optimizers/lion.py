"""Lion: steps of one length, in the direction of the momentum's signs."""

from __future__ import annotations

import dataclasses

import mlx.core as mx
from mlx.utils import tree_map

from mlxopt._checks import check_fields
from mlxopt._tree import Tree
from mlxopt.optimizers._base import FirstOrder, LearningRate, descend, wide, zeros
from mlxopt.optimizers.adam import running_mean


@dataclasses.dataclass(frozen=True)
class Lion(FirstOrder):
    """Evolved sign momentum: every entry moves by exactly the learning rate, up or down.

        direction ← sign(beta1 · m + (1 - beta1) · gradient)
        params    ← params - learning_rate · (direction + weight_decay · params)
        m         ← beta2 · m + (1 - beta2) · gradient

    It keeps one number an entry, Adam two. At one learning rate its steps are longer than Adam's:
    take one 3 to 10 times smaller, on a schedule, since nothing else shortens them. Chen et al.
    (2023), "Symbolic discovery of optimization algorithms", program 1.

    Args:
        learning_rate: a number, or a function of the step (an int, counted from 0).
        beta1: the weight of the momentum in the direction, from 0 to below 1.
        beta2: the share of the momentum kept in a step, likewise.
        weight_decay: the share of itself that an entry loses in a step of learning rate 1.

    >>> import mlx.core as mx, mlxopt as mo
    >>> loss = lambda w: mx.sum(mx.array([1.0, 100.0]) * (w - 3.0) ** 2)
    >>> mo.minimize(loss, mx.zeros(2), mo.Lion(0.25), tol=0, max_steps=12).params
    array([3, 3], dtype=float32)
    """

    learning_rate: LearningRate = 1e-4
    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, "beta1", "beta2", least=0, below=1)
        check_fields(self, "weight_decay", least=0)

    def start(self, params: Tree) -> Tree:
        """Return a momentum of zero, a tree like `params`."""
        return zeros(params)

    def update(
        self, grad: Tree, buffers: Tree, params: Tree, learning_rate: mx.array
    ) -> tuple[Tree, Tree]:
        """Return the parameters and the momentum after one step."""
        grad = wide(grad)
        direction = tree_map(mx.sign, running_mean(buffers, grad, self.beta1))
        moved = descend(params, direction, learning_rate, self.weight_decay)
        return moved, running_mean(buffers, grad, self.beta2)
