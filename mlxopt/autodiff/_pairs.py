"""Shapes (n,) and (n, 1) in one operation: all n² pairs in place of n rows, without an error."""

from __future__ import annotations

from collections import Counter
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from mlxopt._operation import Function
from mlxopt._status import warn
from mlxopt._tree import EPSILON, Tree, count, epsilon, read
from mlxopt.autodiff._arguments import named_leaves, rebuilt
from mlxopt.autodiff._guards import name_of, with_fixed_draw

Data = tuple[Any, ...]
_ROWS = 7  # of the data, on which the order of rows is tried
_LEAVES = 4  # arrays whose order is tried
_MOST = 10**6  # parameters, beyond which an evaluation is not cheap
_SAME, _OTHER = 64, 640  # rounding errors between values that are equal, and that are not


def warn_of_pairs(function: Function, params: Tree, data: Data) -> None:
    """Warn if `function(params, *data)` combines each row of an array with all rows of another.

    Args:
        function: returns a loss, or residuals or losses by row.
        params: a tree of arrays.
        data: trees of arrays and other leaves.
    """
    leaves = named_leaves(function, data)
    if not any(_rows(leaf) > 1 for _, leaf in leaves):
        return
    drawn = with_fixed_draw(function)
    try:
        found = drawn(params, *data)
        words = _too_many(drawn, params, data, found) if found.ndim else None
        if not found.ndim and count(params) <= _MOST:
            words = _unordered(drawn, params, data, leaves)
    except Exception:  # a mistake in the loss raises again in the run
        return
    if words:
        warn(f"{name_of(function)} {words}", UserWarning)


def _rows(leaf: Any) -> int:
    return leaf.shape[0] if isinstance(leaf, mx.array) and leaf.ndim else 0


# --- Residuals and losses by row: their number ---------------------------------------------------


def _too_many(function: Function, params: Tree, data: Data, found: mx.array) -> str | None:
    """Return the warning for more entries than rows, None if there is no reason for one.

    n rows of k numbers each have nk entries, a penalty on the parameters has a number of its own:
    half of the rows then have half of the entries, or more. Of pairs there is a quarter.
    """
    arrays = [leaf for _, leaf in named_leaves(function, data) if _rows(leaf) > 1]
    lengths = sorted({leaf.shape[0] for leaf in arrays})
    if found.size < lengths[0] ** 2:
        return None
    largest = max(leaf.size for leaf in arrays)
    n = next((n for n in lengths if n > 2 and found.shape[-2:] == (n, n)), 0)
    # Of a column that is not among the data, which cannot be halved.
    unseen = n > 0 and found.size > largest
    halved = max(n / ((n + 1) // 2) for n in lengths)
    try:
        half = tree_map(lambda leaf: leaf[: (_rows(leaf) + 1) // 2] if _rows(leaf) else leaf, data)
        fewer = function(params, *half).size
    except Exception:
        fewer = None
    if not (unseen or (fewer and found.size / fewer > halved**1.5)):
        return None
    rows = " and ".join(map(str, lengths))
    return (
        f"returned {found.size:,} numbers, shape {found.shape}, for data of {rows} rows: shapes "
        f"(n,) and (n, 1) in one operation make all pairs, (n, n). Reshape one of the two, as in "
        f"y[:, 0] or predictions[:, 0]; unless all pairs are meant."
    )


# --- Losses: the order of rows -------------------------------------------------------------------


def _unordered(
    function: Function, params: Tree, data: Data, named: list[tuple[str, Any]]
) -> str | None:
    """Return the warning for a loss in which no row belongs to another, None without a reason.

    A mean over all pairs of predictions and targets is the same for the targets in another order.
    That alone proves nothing: two samples have no common rows either. But where (n, 1) in place of
    (n,), or the reverse, in one array makes it another loss, which depends on the order, it has
    rows.
    """
    lengths = Counter(_rows(leaf) for _, leaf in named if _rows(leaf) > 2)
    if not lengths or lengths.most_common(1)[0][1] < 2:
        return None
    n = lengths.most_common(1)[0][0]
    places = [index for index, (_, leaf) in enumerate(named) if _rows(leaf) == n]
    thin = [index for index in places if named[index][1].size == n and named[index][1].ndim < 3]
    if not thin:
        return None
    some = mx.array(np.linspace(0, n - 1, min(n, _ROWS)).round().astype(np.int32))
    leaves = [leaf for _, leaf in named]
    for index in places:
        leaves[index] = leaves[index][some]
    # Not the start: at zero all predictions are equal, and any order is as good.
    point, unit = tree_map(_shifted, params), max(epsilon(params), EPSILON[mx.float32])
    order = mx.array(np.roll(np.arange(len(some)), 1))

    def values(arrays: list[Any], turned: list[int]) -> tuple[float, ...]:
        """Return the loss, and that with each of these leaves in another order."""
        others = ([*arrays[:i], arrays[i][order], *arrays[i + 1 :]] for i in turned)
        return read(*(function(point, *rebuilt(data, each)) for each in (arrays, *others)))

    whole, *mixed = values(leaves, places[:_LEAVES])
    unordered = [
        i for i, one in zip(places, mixed, strict=False) if _near(one, whole, _SAME * unit)
    ]
    suspects, refused = [], False
    for changed in thin if unordered else []:
        other_shape = leaves[changed].reshape((-1, 1) if leaves[changed].ndim == 1 else (-1,))
        arrays = [*leaves[:changed], other_shape, *leaves[changed + 1 :]]
        try:
            other, *mixed = values(arrays, unordered)
        except Exception:  # X of shape (n, 1), which the loss multiplies by a matrix
            refused = True
            continue
        if not (
            _near(other, whole, _OTHER * unit)
            or all(_near(one, other, _OTHER * unit) for one in mixed)
        ):
            suspects.append(changed)
    # Arrays of one shape are two samples, compared in pairs; unless one has to be a matrix.
    alike = len({leaves[index].shape for index in places}) == 1
    if not suspects or (alike and not refused):
        return None
    name, leaf = named[suspects[0]]
    return (
        f"combines every row with all others, as shapes (n,) and (n, 1) do in one operation: with "
        f"{name} of shape {(n, 1) if leaf.ndim == 1 else (n,)} in place of {leaf.shape} it is "
        f"another function, to which the order of rows matters. Pass "
        f"{name}{'[:, None]' if leaf.ndim == 1 else '[:, 0]'}, or reshape the predictions; unless "
        f"all pairs are meant."
    )


def _shifted(leaf: mx.array) -> mx.array:
    """Return a leaf with its entries a little larger, each in its own way."""
    random = mx.random.uniform(0.05, 0.15, leaf.shape, key=mx.random.key(leaf.size))
    return (leaf + (1 + mx.abs(leaf)) * random).astype(leaf.dtype)


def _near(one: float, other: float, share: float) -> bool:
    """Whether two values differ by a small share; not if one is NaN or infinite."""
    return bool(abs(one - other) <= share * abs(other)) if np.isfinite([one, other]).all() else True
