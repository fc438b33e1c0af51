"""The arguments of many problems, divided into what each has of its own and what all share."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Integral
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from mlxopt._tree import Tree, from_host, from_leaves, leaves, leaves_with_paths, spread, to_host

Axes = Any  # an int or None, or a tree of them that is no deeper than the argument


class Problems(NamedTuple):
    """B problems of one structure."""

    size: int  # B
    like: Tree  # the parameters of the first
    start: np.ndarray  # (B, p), float64: the starts
    own: list[mx.array]  # the leaves of the data that differ, the problems along their first axis
    shared: list[mx.array]  # the leaves that are the same for all
    template: tuple[Any, ...]  # the data
    differs: list[bool]  # whether each leaf of the data does

    def data(self, own: list[mx.array], shared: list[mx.array]) -> tuple[Any, ...]:
        """Return the data of one problem, as the loss takes it, from their leaves."""
        mine, common = iter(own), iter(shared)
        found = [
            next(mine if differs else common) if isinstance(leaf, mx.array) else leaf
            for leaf, differs in zip(leaves(self.template), self.differs, strict=True)
        ]
        return from_leaves(found, self.template)

    def single(self, index: int, x: np.ndarray) -> tuple[Tree, tuple[Any, ...]]:
        """Return the parameters, from a vector x (p,), and the data of one problem."""
        own = [leaf[index] for leaf in self.own]
        return from_host(x, self.like), self.data(own, self.shared)


def sort(params: Tree, data: tuple[Any, ...], in_axes: Axes) -> Problems:
    """Return the problems that these arguments describe.

    Args:
        params: a tree of arrays.
        data: trees of arrays and of other leaves, which are shared.
        in_axes: as in `minimize_many`.

    Raises:
        TypeError, ValueError: `in_axes` does not fit, or the numbers of problems differ.
    """
    given = list(in_axes) if isinstance(in_axes, (tuple, list)) else [in_axes] * (1 + len(data))
    if len(given) != 1 + len(data):
        raise ValueError(
            f"in_axes has {len(given)} entries; expected {1 + len(data)}: one for params and one "
            f"for each of the {len(data)} data arguments, or a single one for all."
        )
    names = ["params", *(f"data[{number}]" for number in range(len(data)))]
    entries = [
        entry
        for name, tree, axes in zip(names, (params, *data), given, strict=True)
        for entry in _arrange(tree, axes, name)
    ]
    sizes = {path: leaf.shape[0] for path, leaf, differs in entries if differs}
    if not sizes:
        raise ValueError(
            f"in_axes is {in_axes!r}, so nothing tells the problems apart; expected an axis for at "
            f"least one argument, such as in_axes=({', '.join(['None'] * len(data) + ['0'])})."
        )
    size = next(iter(sizes.values()))
    if any(one != size for one in sizes.values()):
        counts = ", ".join(f"{one} in {name}" for name, one in sizes.items())
        raise ValueError(
            f"the arguments disagree about how many problems there are: {counts}. Give them equal "
            f"lengths along the axes of in_axes, and None for what all problems share."
        )
    if size == 0:
        raise ValueError("there are no problems: the batch axis has length 0.")

    split = len(leaves(params))
    starts = [
        leaf if differs else mx.broadcast_to(leaf, (size, *leaf.shape))
        for _, leaf, differs in entries[:split]
    ]
    rest = entries[split:]
    return Problems(
        size,
        like=from_leaves([leaf[0] for leaf in starts], params),
        start=to_host(starts, lead=1),
        own=[leaf for _, leaf, differs in rest if differs],
        shared=[leaf for _, leaf, differs in rest if isinstance(leaf, mx.array) and not differs],
        template=data,
        differs=[differs for _, _, differs in rest],
    )


def _arrange(tree: Tree, axes: Axes, name: str) -> Iterator[tuple[str, Any, bool]]:
    """Yield the path of each leaf, the leaf with its axis in front, and whether it has one."""

    def is_axis(entry: Any, subtree: Tree) -> bool:
        if entry is None or (isinstance(entry, Integral) and not isinstance(entry, bool)):
            return True
        if isinstance(entry, (dict, list, tuple)):
            return False
        raise TypeError(
            f"in_axes has {entry!r} for {name}; expected an axis (an int), None, or one of them "
            f"for each of its parts."
        )

    entries = spread(axes, tree, is_axis, f"in_axes for {name}", "axis", name)
    for (path, leaf), axis in zip(leaves_with_paths(tree), entries, strict=True):
        if axis is None or not isinstance(leaf, mx.array):
            yield name + path, leaf, False
        elif -leaf.ndim <= axis < leaf.ndim:
            yield name + path, mx.moveaxis(leaf, int(axis), 0), True
        else:
            raise ValueError(
                f"in_axes takes axis {axis} of {name}{path}, whose shape is {leaf.shape}; expected "
                f"an axis that counts the problems, or None if all share it."
            )
