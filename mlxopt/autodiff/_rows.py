"""One function over the rows of an array: mx.vmap, where MLX batches every operation rightly.

Not every operation has a batching rule, and not every rule is right: in MLX 0.32 assignment to a
slice (`z[0] = 1.0`), batched in `z` alone, is carried out in the first row only, without a word.
A Hessian by vmap would be wrong from its second row on. So a few rows are first computed both ways,
and where the two differ, or vmap raises, the rows are computed one after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map

from mlxopt._tree import FLOATS, Tree, leaves
from mlxopt.autodiff._guards import is_refusal

# Rows computed at once: each holds as many intermediates as one gradient.
_BLOCK = 64

# Rows for the comparison: more than the two that a first-or-last mistake needs, and prime.
_FEW = 3

# Rounding differs between a batched product and a single one; a wrong rule is wrong outright.
_AGREEMENT = {mx.float64: 1e-8, mx.float32: 1e-4, mx.float16: 0.05, mx.bfloat16: 0.3}


def can_batch(function: Callable[..., Tree], rows: Tree, *fixed: Any) -> bool:
    """Return whether `mx.vmap` of `function` gives, for a few rows, what single calls give.

    Args:
        function: a function `function(row, *fixed)` that returns an array or a tree of arrays. Its
            random operations must draw the same numbers in every call.
        rows: an array (k, ...), or a tree of them, such as the function will be mapped over; rows
            that are all alike would hide a mistake.
        *fixed: what else it will be given, the same for each row.
    """
    few = tree_map(lambda leaf: leaf[:_FEW], rows)
    args = (few, *fixed)
    if not _are_known(args):
        # Inside a caller's own compile or vmap: other numbers of the same kind will have to do.
        args = tree_map(_stand_in, args)
    try:
        batched = leaves(over_rows(function, True)(*args))
        single = leaves(over_rows(function, False)(*args))
        return all(
            bool(_are_close(one, other).item()) for one, other in zip(batched, single, strict=True)
        )
    except (ValueError, RuntimeError):  # no batching rule; a mistake of the user's comes up again
        return False


def over_rows(function: Callable[..., Tree], batch: bool) -> Callable[..., Tree]:
    """Return `mapped(rows, *fixed)`, which stacks `function(row, *fixed)` for each row of `rows`:
    by `mx.vmap`, or one after the other.
    """

    def batched(rows: Tree, *fixed: Any) -> Tree:
        return mx.vmap(lambda row: function(row, *fixed))(rows)

    def one_by_one(rows: Tree, *fixed: Any) -> Tree:
        found = [
            function(tree_map(lambda leaf, i=i: leaf[i], rows), *fixed)
            for i in range(leaves(rows)[0].shape[0])
        ]
        return tree_map(lambda *entries: mx.stack(list(entries)), *found)

    return batched if batch else one_by_one


def unit_rows(function: Callable[..., mx.array], size: int, dtype: mx.Dtype) -> mx.array:
    """Return `function` of the rows of the identity matrix (size, size), a block of them at once.

    Memory then holds the intermediates of `_BLOCK` gradients and no more.
    """
    blocks = [
        function(mx.eye(min(_BLOCK, size - start), size, k=start, dtype=dtype))
        for start in range(0, size, _BLOCK)
    ]
    return blocks[0] if len(blocks) == 1 else mx.concatenate(blocks)


def sample_rows(size: int, dtype: mx.Dtype) -> mx.array:
    """Return rows to hand to `can_batch`, shape (3, size): in general position."""
    return mx.random.normal((_FEW, size), key=mx.random.key(0)).astype(dtype)


def split(matrix: mx.array, rows: Tree, columns: Tree) -> Tree:
    """Return a matrix as a tree like `rows` of trees like `columns`.

    Each leaf is a block of the matrix, of the shape of the row leaf followed by that of the column
    leaf, in the wider of their dtypes.
    """
    top = left = 0

    def block(row: mx.array, column: mx.array) -> mx.array:
        nonlocal left
        piece = matrix[top : top + row.size, left : left + column.size]
        left += column.size
        dtype = mx.result_type(row, column)
        return piece.reshape(row.shape + column.shape).astype(dtype)

    def band(row: mx.array) -> Tree:
        nonlocal top, left
        left = 0
        tree = tree_map(lambda column: block(row, column), columns)
        top += row.size
        return tree

    return tree_map(band, rows)


def _are_close(one: mx.array, other: mx.array) -> mx.array:
    finite = mx.isfinite(one) & mx.isfinite(other)
    size = mx.max(mx.where(finite, mx.abs(other), 0))
    close = mx.abs(one - other) <= _AGREEMENT[other.dtype] * size
    return mx.all(mx.where(finite, close, mx.isfinite(one) == mx.isfinite(other)))


def _are_known(args: Any) -> bool:
    try:
        mx.eval([leaf for leaf in leaves(args) if isinstance(leaf, mx.array)])
    except ValueError as error:
        if is_refusal(error):
            return False
        raise
    return True


def _stand_in(leaf: Any) -> Any:
    """Return an array of the same shape and dtype: numbers between ½ and 1, inside the domain of
    most functions; integers may be indices, so 0.
    """
    if not isinstance(leaf, mx.array):
        return leaf
    if leaf.dtype not in FLOATS:
        return mx.zeros(leaf.shape, dtype=leaf.dtype)
    key = mx.random.key(leaf.size)
    return mx.random.uniform(0.5, 1.0, leaf.shape, key=key).astype(leaf.dtype)
