"""One function over the rows of an array: by mx.vmap where that is right.

Not every operation has a batching rule, and not every rule is right: in MLX 0.32 assignment to a
slice (`z[0] = 1.0`), batched in `z` alone, is carried out in the first row only, without an error.
A Hessian by vmap would be wrong from its second row on. So a few rows are first computed both ways,
and where the two differ, or vmap raises, the rows are computed one after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map

from mlxopt._operation import Function, known
from mlxopt._tree import FLOATS, Tree, leaves, pieces, ravel, structure, unravel

# Rows computed at once, each with the intermediates of one gradient.
_BLOCK = 64
# Rows for the comparison: more than a mistake in the first or last row needs, and prime.
_FEW = 3
# The rounding of a batched and a single product; the error of a wrong rule is larger.
_AGREEMENT = {mx.float64: 1e-8, mx.float32: 1e-4, mx.float16: 0.05, mx.bfloat16: 0.3}


def can_batch(function: Function, rows: Tree, *fixed: Any) -> bool:
    """Return whether `mx.vmap` of `function(row, *fixed)` agrees with single calls in a few rows.

    Args:
        function: returns an array or a tree of arrays, with the same random numbers in every call.
        rows: an array (k, ...), or a tree of them; equal rows would hide a mistake.
        *fixed: further arguments.
    """
    args = (tree_map(lambda leaf: leaf[:_FEW], rows), *fixed)
    if not known(*(leaf for leaf in leaves(args) if isinstance(leaf, mx.array))):
        # Inside a caller's own compile or vmap other numbers of the same kind have to do.
        args = tree_map(_stand_in, args)
    try:
        batched = leaves(over_rows(function, True)(*args))
        single = leaves(over_rows(function, False)(*args))
        return all(
            bool(_are_close(one, other).item()) for one, other in zip(batched, single, strict=True)
        )
    except (ValueError, RuntimeError):
        # There is no batching rule. A mistake in the function raises again in a single call.
        return False


def over_rows(function: Function, batch: bool) -> Function:
    """Return `mapped(rows, *fixed)`, which stacks `function(row, *fixed)` for each row."""

    def mapped(rows: Tree, *fixed: Any) -> Tree:
        if batch:
            return mx.vmap(lambda row: function(row, *fixed))(rows)
        count = leaves(rows)[0].shape[0]
        singles = (tree_map(lambda leaf, i=i: leaf[i], rows) for i in range(count))
        found = [function(row, *fixed) for row in singles]
        return tree_map(lambda *entries: mx.stack(list(entries)), *found)

    return mapped


class RowMap:
    """`over_rows` with one `can_batch` for each kind of arguments."""

    def __init__(self) -> None:
        self._batches: dict[Any, bool] = {}

    def __call__(
        self, function: Function, sample: Callable[[], Tree], *fixed: Any, kind: Any = None
    ) -> Function:
        """Return a function of rows that stacks `function(row, *fixed)`; `kind` is another tree on
        whose structure, shapes and dtypes `function` depends.
        """
        kind = signature((fixed, kind))
        if kind not in self._batches:
            self._batches[kind] = can_batch(function, sample(), *fixed)
        mapped = over_rows(function, self._batches[kind])
        return lambda rows: mapped(rows, *fixed)

    def matrix(
        self, row: Function, size: int, dtype: mx.Dtype, *fixed: Any, kind: Any = None
    ) -> mx.array:
        """Return the matrix of rows `row(unit, *fixed)` for the unit vectors, (size,)."""
        rows = self(row, lambda: sample_rows(size, dtype), *fixed, kind=kind)
        return unit_rows(rows, size, dtype)


def unit_rows(function: Function, size: int, dtype: mx.Dtype) -> mx.array:
    """Return `function` of the rows of the identity matrix (size, size).

    It is applied to blocks, so that memory holds the intermediates of `_BLOCK` gradients at most.
    """
    blocks = [
        function(mx.eye(min(_BLOCK, size - start), size, k=start, dtype=dtype))
        for start in range(0, size, _BLOCK)
    ]
    return blocks[0] if len(blocks) == 1 else mx.concatenate(blocks)


def sample_rows(size: int, dtype: mx.Dtype) -> mx.array:
    """Return rows for `can_batch`, shape (3, size), in general position."""
    return mx.random.normal((_FEW, size), key=mx.random.key(0)).astype(dtype)


def split(matrix: mx.array, rows: Tree, columns: Tree) -> Tree:
    """Return a matrix as a tree like `rows` of trees like `columns`.

    A block has the shape of the row leaf followed by that of the column leaf, in the wider dtype.
    """
    top = 0

    def band(row: mx.array) -> Tree:
        nonlocal top
        blocks = pieces(matrix[top : top + row.size], columns)
        top += row.size

        def block(column: mx.array) -> mx.array:
            dtype = mx.result_type(row, column)
            return next(blocks).reshape(row.shape + column.shape).astype(dtype)

        return tree_map(block, columns)

    return tree_map(band, rows)


def signature(tree: Tree) -> Any:
    """Return all that a trace depends on: structure, shapes, dtypes, flags and types of numbers."""
    kinds = [
        leaf
        if leaf is None or isinstance(leaf, (bool, str))
        else (type(leaf), getattr(leaf, "shape", None), getattr(leaf, "dtype", None))
        for leaf in leaves(tree)
    ]
    return repr(structure(tree)), tuple(kinds)


def _are_close(one: mx.array, other: mx.array) -> mx.array:
    finite = mx.isfinite(one) & mx.isfinite(other)
    size = mx.max(mx.where(finite, mx.abs(other), 0))
    close = mx.abs(one - other) <= _AGREEMENT[other.dtype] * size
    return mx.all(mx.where(finite, close, mx.isfinite(one) == mx.isfinite(other)))


def _stand_in(leaf: Any) -> Any:
    """Return an array alike: floats in [½, 1], in the domain of most functions, or indices 0."""
    if not isinstance(leaf, mx.array):
        return leaf
    if leaf.dtype not in FLOATS:
        return mx.zeros(leaf.shape, dtype=leaf.dtype)
    key = mx.random.key(leaf.size)
    return mx.random.uniform(0.5, 1.0, leaf.shape, key=key).astype(leaf.dtype)


def hessian_product(loss: Function) -> Function:
    """Return `product(params, vector, *data)`: `hvp` without the checks."""

    def product(params: Tree, vector: Tree, *data: Any, **kwargs: Any) -> Tree:
        def slope(at: Tree) -> mx.array:
            gradient = mx.grad(loss)(at, *data, **kwargs)
            terms = [mx.sum(g * v) for g, v in zip(leaves(gradient), leaves(vector), strict=True)]
            return sum(terms[1:], terms[0])

        return mx.grad(slope)(params)

    return product


def hessian_row(loss: Function) -> Function:
    """Return `row(unit, params, data, kwargs)`: the Hessian times one vector, both shape (p,)."""
    product = hessian_product(loss)

    def row(unit: mx.array, params: Tree, data: Any, kwargs: Any = None) -> mx.array:
        vector = unravel(unit, params)
        return ravel(product(params, vector, *data, **(kwargs or {})), unit.dtype)

    return row
