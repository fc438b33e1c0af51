"""The optimizers of `mlx.optimizers` as first-order rules: their state, made an argument."""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING, Any

import mlx.core as mx
from mlx.utils import tree_map

from mlxopt._tree import Tree, leaves
from mlxopt.optimizers._base import FirstOrder, LearningRate

if TYPE_CHECKING:
    from mlx.optimizers import Optimizer as MLXOptimizer


@dataclasses.dataclass(frozen=True)
class FromMLX(FirstOrder):
    """An optimizer of `mlx.optimizers` as a rule; its state travels as the rule's buffers.

    Its learning rate and schedules are its own, part of its state. A run starts from the state that
    the optimizer holds, a fresh one as a rule, and works on a copy.

    Args:
        optimizer: of `mlx.optimizers`, or a subclass of its base class.
    """

    learning_rate: LearningRate = dataclasses.field(init=False, repr=False, compare=False)
    optimizer: MLXOptimizer

    def __post_init__(self) -> None:
        # Whether it has a schedule is not for us to know; the loop must not call it stuck.
        object.__setattr__(self, "learning_rate", lambda step: 0.0)

    def start(self, params: Tree) -> Tree:
        """Return the optimizer's state before the first step."""
        optimizer = copy.deepcopy(self.optimizer)
        optimizer.init(_as_dict(params, optimizer))
        return _copied(optimizer.state)

    def update(
        self, grad: Tree, buffers: Tree, params: Tree, learning_rate: mx.array
    ) -> tuple[Tree, Tree]:
        """Return the parameters and the optimizer's state after one step."""
        optimizer = copy.deepcopy(self.optimizer)
        optimizer.state = _copied(buffers)  # which apply_gradients writes into
        gradients, before = _as_dict(grad, optimizer), _as_dict(params, optimizer)
        moved = _taken(before, optimizer.apply_gradients(gradients, before))
        state = tree_map(lambda old, new: new.astype(old.dtype), buffers, optimizer.state)
        if before is not params:
            arrays = iter(moved[_WRAPPED])
            moved = tree_map(lambda _: next(arrays), params)
        return moved, state


_WRAPPED = "params"  # the key of the leaves of a tree that these optimizers cannot hold


def _as_dict(params: Tree, optimizer: MLXOptimizer) -> dict[str, Any]:
    """Return parameters as these optimizers want them: a dict with no key of the state's own."""
    parts = getattr(optimizer, "optimizers", [optimizer])  # a MultiOptimizer's
    own = {"step", "learning_rate"}.union(*(part._schedulers for part in parts))
    fits = isinstance(params, dict) and not own & set(params) and not _holds_named_tuple(params)
    return params if fits else {_WRAPPED: leaves(params)}


def _holds_named_tuple(tree: Tree) -> bool:
    children = tree.values() if isinstance(tree, dict) else tree
    if hasattr(tree, "_fields"):
        return True
    return isinstance(tree, (dict, list, tuple)) and any(map(_holds_named_tuple, children))


def _taken(like: Tree, tree: Tree) -> Tree:
    """Return the leaves of `tree` in the make of `like`: MultiOptimizer mixes the order of keys."""
    if isinstance(like, dict):
        return {key: _taken(child, tree[key]) if leaves(child) else child
                for key, child in like.items()}  # fmt: skip
    if isinstance(like, (list, tuple)):
        found = (_taken(child, tree[i]) if leaves(child) else child for i, child in enumerate(like))
        return type(like)(found)
    return tree.astype(like.dtype)


def _copied(state: Tree) -> Tree:
    """Return a tree with containers of its own and the same arrays."""
    return tree_map(lambda leaf: leaf, state)
