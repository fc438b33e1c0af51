"""The optimizers of `mlx.optimizers` as first-order rules, their state passed as an argument."""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING, Any

import mlx.core as mx
from mlx.utils import tree_map

from mlxopt._tree import Tree, children, from_leaves, leaves, leaves_with_paths
from mlxopt.optimizers._base import FirstOrder, LearningRate, Step
from mlxopt.schedules import constant

if TYPE_CHECKING:
    from mlx.optimizers import Optimizer as MLXOptimizer


@dataclasses.dataclass(frozen=True)
class FromMLX(FirstOrder):
    """An optimizer of `mlx.optimizers` as a rule, whose buffers are the optimizer's state.

    Its learning rate and schedules are part of that state. A run starts from a copy of the state
    that the optimizer holds.
    """

    # Not used. A schedule, since the optimizer can have one: the patience is then infinite.
    learning_rate: LearningRate = dataclasses.field(default=constant(0.0), init=False, repr=False)
    optimizer: MLXOptimizer

    def start(self, params: Tree) -> Tree:
        optimizer = copy.deepcopy(self.optimizer)
        optimizer.init(_as_dict(params, optimizer))
        return _copied(optimizer.state)

    def update(self, grad: Tree, buffers: Tree, params: Tree, learning_rate: mx.array) -> Step:
        optimizer = copy.deepcopy(self.optimizer)
        optimizer.state = _copied(buffers)  # which apply_gradients writes into
        gradients, before = _as_dict(grad, optimizer), _as_dict(params, optimizer)
        # By path: a MultiOptimizer changes the order of keys and drops empty subtrees.
        after = dict(leaves_with_paths(optimizer.apply_gradients(gradients, before)))
        moved = from_leaves((after[path] for path, _ in leaves_with_paths(before)), params)
        old, new = (params, buffers), (moved, optimizer.state)
        return tree_map(lambda old, new: new.astype(old.dtype), old, new)


def _as_dict(params: Tree, optimizer: MLXOptimizer) -> dict[str, Any]:
    """Return a dict that these optimizers can hold: no NamedTuple, no key of their own state."""
    parts = getattr(optimizer, "optimizers", [optimizer])  # a MultiOptimizer's
    own = {"step", "learning_rate"}.union(*(part._schedulers for part in parts))
    fits = isinstance(params, dict) and not own & set(params) and not _holds_named_tuple(params)
    return params if fits else {"params": leaves(params)}


def _holds_named_tuple(tree: Tree) -> bool:
    below = children(tree) or []
    return hasattr(tree, "_fields") or any(_holds_named_tuple(child) for _, child in below)


def _copied(state: Tree) -> Tree:
    """Return the same arrays in new containers."""
    return tree_map(lambda leaf: leaf, state)
