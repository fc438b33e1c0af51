"""The arguments of many problems, sorted into what each has of its own and what all share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from numbers import Integral
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from mlxopt._tree import Tree, from_host, leaves, leaves_with_paths, to_host

Axes = Any  # an int or None, or a tree of them that ends no deeper than the argument's own


@dataclasses.dataclass(frozen=True)
class Problems:
    """Many problems of one make."""

    size: int
    """B, how many there are."""
    like: Tree
    """The parameters of the first, a tree of arrays."""
    start: np.ndarray
    """The starts of all, shape (B, p), float64."""
    own: list[mx.array]
    """The leaves of the data that differ, each with the problems along its first axis."""
    shared: list[mx.array]
    """The leaves of the data that are the same for all."""
    _data: tuple[Any, ...]
    _axes: tuple[list[int | None], ...]

    def data(self, own: list[mx.array], shared: list[mx.array]) -> tuple[Any, ...]:
        """Return one problem's data as the loss takes it, from its leaves."""
        mine, common = iter(own), iter(shared)

        def pick(leaf: Any, axis: int | None) -> Any:
            if not isinstance(leaf, mx.array):
                return leaf
            return next(common) if axis is None else next(mine)

        return tuple(
            _map_with(pick, item, iter(axes))
            for item, axes in zip(self._data, self._axes, strict=True)
        )

    def single(self, index: int, x: np.ndarray) -> tuple[Tree, tuple[Any, ...]]:
        """Return parameters and data of one problem, the parameters from a vector x (p,)."""
        return from_host(x, self.like), self.data([leaf[index] for leaf in self.own], self.shared)


def sort(params: Tree, data: tuple[Any, ...], in_axes: Axes) -> Problems:
    """Return the problems that these arguments make up.

    Args:
        params: a tree of arrays.
        data: trees of arrays; what is no array is shared.
        in_axes: which axis of each array counts the problems, None where all share it; one for all
            arguments, or one for each, `(params, *data)`.

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
    axes, fronted, sizes = [], [], {}
    for name, tree, one in zip(names, (params, *data), given, strict=True):
        listed = list(_axis_of_each(tree, one, name))
        axes.append(listed)
        fronted.append(_map_with(_front, tree, iter(listed)))
        for (path, leaf), axis in zip(leaves_with_paths(fronted[-1]), listed, strict=True):
            if axis is not None:
                sizes[name + path] = leaf.shape[0]
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

    starts = _map_with(
        lambda leaf, axis: mx.broadcast_to(leaf, (size, *leaf.shape)) if axis is None else leaf,
        fronted[0],
        iter(axes[0]),
    )
    pairs = [
        (leaf, axis)
        for tree, listed in zip(fronted[1:], axes[1:], strict=True)
        for leaf, axis in zip(leaves(tree), listed, strict=True)
        if isinstance(leaf, mx.array)
    ]
    return Problems(
        size=size,
        like=tree_map(lambda leaf: leaf[0], starts),
        start=to_host(starts, lead=1),
        own=[leaf for leaf, axis in pairs if axis is not None],
        shared=[leaf for leaf, axis in pairs if axis is None],
        _data=tuple(fronted[1:]),
        _axes=tuple(axes[1:]),
    )


def _axis_of_each(tree: Tree, axes: Axes, name: str) -> Iterator[int | None]:
    """Yield the axis of each leaf of a tree."""
    if axes is not None and (isinstance(axes, bool) or not isinstance(axes, Integral)):
        yield from _axes_of_children(tree, axes, name)
        return
    axis = None if axes is None else int(axes)
    for path, leaf in leaves_with_paths(tree):
        if axis is None or not isinstance(leaf, mx.array):
            yield None
        elif not -leaf.ndim <= axis < leaf.ndim:
            raise ValueError(
                f"in_axes takes axis {axis} of {name}{path}, whose shape is {leaf.shape}; expected "
                f"an axis that counts the problems, or None if all share it."
            )
        else:
            yield axis


def _axes_of_children(tree: Tree, axes: Axes, name: str) -> Iterator[int | None]:
    same = isinstance(axes, dict) if isinstance(tree, dict) else isinstance(axes, (list, tuple))
    if not (same and isinstance(tree, (dict, list, tuple)) and len(tree) == len(axes)):
        raise TypeError(
            f"in_axes has {axes!r} for {name}, which is of type {type(tree).__qualname__}; "
            f"expected an axis (an int), None, or one of them for each of its parts."
        )
    if isinstance(tree, dict):
        if tree.keys() != axes.keys():
            raise ValueError(
                f"in_axes names {list(axes)} in {name}, which has {list(tree)}; expected the same."
            )
        for key, child in tree.items():
            yield from _axis_of_each(child, axes[key], f"{name}[{key!r}]")
    else:
        for index, (child, axis) in enumerate(zip(tree, axes, strict=True)):
            yield from _axis_of_each(child, axis, f"{name}[{index}]")


def _map_with(function: Callable[[Any, Any], Any], tree: Tree, second: Iterator[Any]) -> Tree:
    """Return the tree of `function(leaf, the next of second)`."""
    return tree_map(lambda leaf: function(leaf, next(second)), tree)


def _front(leaf: Any, axis: int | None) -> Any:
    return mx.moveaxis(leaf, axis, 0) if axis else leaf
