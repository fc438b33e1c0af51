"""The design matrix [1, X], shifted, scaled and weighted, a block of rows at a time.

Notation: A is the design, (rows, q) with q = 1 + columns (or columns, without intercept), in these
scaled units; R its triangular factor, AᵀWA = RᵀR with weights W of mean 1. `_factor.py` finds R.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from mlxopt.models._input import Table, check_finite_block
from mlxopt.models._rows import DeviceRows, Rows, SparseRows, split
from mlxopt.models._scale import Scale, moments, refusing_overflow, scale_of, too_large

_BLOCK = 2**18  # numbers in a block: 2 MB, small enough for a cache, large enough for BLAS
_ROWS = 2**14  # in a block at most: of few columns it would be a good part of the table
_SPAN = 2**16  # entries of a column read at once
_NARROW = 32  # a block of so few columns is stored column by column, which makes longer loops
_WHOLE = 2**21  # up to 16 MB a design is kept after the first reading
_LARGE = 2**19  # above 4 MB a sample of the rows says how to scale the columns
STRIDE = 23  # the sample has each 23rd row, or fewer; a prime, unlike the periods of most data
_SPARSE_ROWS = 2**16  # in one piece of a sparse design


class Design:
    """The rows of positive weight of a table, as blocks of the scaled design.

    Of a large table a sample says how to scale; any scaling near the best does. `sample` is then
    the design of those rows alone, with the same scaling. Of a large table nothing is kept that is
    as long, but views of what was passed in (and which rows count, if not all do).

    Args:
        table: what to read.
        weights: (rows,) float64, or None for equal weights.
        fit_intercept: put a column of ones first, and shift the columns.
        target: (rows,) numbers of any dtype; shifted and scaled as the columns are, it becomes the
            last column of each block.
    """

    def __init__(
        self,
        table: Table,
        weights: np.ndarray | None,
        fit_intercept: bool,
        target: np.ndarray | None = None,
    ) -> None:
        self.table, self.weights, self.fit_intercept = table, weights, fit_intercept
        self.target = target
        self.first = int(fit_intercept)  # where the columns of X begin
        self.used = None if weights is None or weights.all() else weights > 0
        self.n = table.rows if self.used is None else int(np.count_nonzero(self.used))
        self.mean_weight = 1.0 if weights is None else float(weights.sum() / self.n)
        self.width = table.columns + fit_intercept  # q
        self.dtype: Any = np.float64  # of the blocks, and of the arithmetic on them
        self._rows_per_block = min(_BLOCK // (self.width + 1) + 1, _ROWS)
        self._is_checked = False  # for NaN, in the first reading
        self._kept: dict[bool, list] = {}
        self.stride = max(STRIDE, table.rows * self.width // _LARGE + 1 | 1)
        self.sample = self._thinned(weights)
        self.scale = self._measure() if self.sample is None else self.sample.scale
        # The columns that `pieces` keeps as sparse ones, (any,).
        self.sparse = None if self.sample is None else self.sample._sparse_columns()
        self.target_scale = Scale(np.zeros(1), np.ones(1)) if target is None else self._measure_y()

    def in_float32(self) -> Design:
        """Return the same design, scaled in float64 and then rounded: for arithmetic in float32."""
        narrow = copy.copy(self)
        narrow.dtype, narrow.sparse, narrow._kept = np.float32, None, {}
        return narrow

    @property
    def roundoff(self) -> float:
        """The unit roundoff of the arithmetic on the blocks."""
        return 2.0**-53 if self.dtype == np.float64 else 2.0**-24

    def spans(self) -> Iterator[slice]:
        """Yield which rows of the table to read at once where only columns of it are read."""
        for start in range(0, self.table.rows, _SPAN):
            yield slice(start, min(start + _SPAN, self.table.rows))

    def pick(self, values: np.ndarray, where: slice) -> np.ndarray:
        """Return the entries of a (rows,) array for those rows `where` whose weight is positive."""
        return values[where] if self.used is None else values[where][self.used[where]]

    def roots(self, where: slice) -> np.ndarray | None:
        """Return the square roots of the weights, scaled to mean 1; None for equal weights."""
        if self.weights is None:
            return None
        return np.sqrt(self.pick(self.weights, where) / self.mean_weight)

    def targets(self, where: slice) -> np.ndarray:
        """Return the target, shifted and scaled."""
        assert self.target is not None
        return (self.pick(self.target, where) - self.target_scale.center) / self.target_scale.unit

    def _thinned(self, weights: np.ndarray | None) -> Design | None:
        """Return the design of a sample of the rows, if this one is large."""
        if self.table.rows * self.width <= _LARGE:
            return None
        thinned = None if weights is None else weights[:: self.stride]
        if thinned is not None and not thinned.any():
            return None
        try:
            return Design(self.table.every(self.stride), thinned, self.fit_intercept)
        except ValueError:  # NaN, or too large: the reading of all rows will say where
            return None

    def measure(self) -> bool:
        """Scale by all the rows rather than a sample; return whether that was not so already."""
        if self.sample is None:
            return False
        self.sample = self.sparse = None
        self._kept.clear()
        self.scale = self._measure()
        return True

    def pieces(self, weighted: bool = True) -> Iterator[tuple[slice, Rows]]:
        """Yield what `blocks` yields, but with matrices that may be sparse, or on the device."""
        if self.sparse is None:
            for where, block in self.blocks(weighted):
                yield where, block if self.dtype == np.float64 else DeviceRows(block)
            return
        weighted = weighted and self.weights is not None
        if weighted not in self._kept:
            self._kept[weighted] = list(self._sparse_pieces(self.sparse, weighted))
        yield from self._kept[weighted]

    def blocks(self, weighted: bool = True, rows: int = 0) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield (which rows of the table, block [1, X, target]), to be read and not written; a
        block has only the rows of positive weight.

        Args:
            weighted: multiply each row by the root of its weight (of mean 1).
            rows: the least number of rows in a block, but for the last.
        """
        weighted = weighted and self.weights is not None
        size = max(self._rows_per_block, rows)
        if self.table.rows * (self.width + 1) > _WHOLE or self.sparse is not None:
            yield from self._fresh_blocks(weighted, size)
            return
        if weighted not in self._kept:
            self._kept[weighted] = list(self._fresh_blocks(weighted, size, keep=True))
        yield from self._kept[weighted]

    def _fresh_blocks(
        self, weighted: bool, size: int, keep: bool = False
    ) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield (which rows, block), one after the other in the same memory or to keep."""
        first, last = self.first, self.width
        width = last + (self.target is not None)
        center, scaling = self.scale.center[:, None], 1.0 / self.scale.unit[:, None]
        narrow = width <= _NARROW
        room, done = np.empty((self.n if keep else min(size, self.n)) * width, self.dtype), 0
        for where, raw in self._raw_blocks(size):
            rows = len(raw)
            if rows == 0:
                continue
            part = room[done * width : (done + rows) * width]
            columns = part.reshape(width, rows) if narrow else part.reshape(rows, width).T
            columns[:first] = 1.0
            X = columns[first:last]
            with refusing_overflow(self.dtype):
                if center.any():  # the difference is float64, whatever X is
                    np.subtract(raw.T, center, out=X, casting="same_kind")
                else:
                    X[:] = raw.T
                if (scaling != 1.0).any():
                    X *= scaling
            if self.target is not None:
                columns[last] = self.targets(where)
            if weighted and (root := self.roots(where)) is not None:
                columns *= root
            done += rows * keep
            yield where, columns.T

    def _sparse_pieces(
        self, sparse: np.ndarray, weighted: bool
    ) -> Iterator[tuple[slice, SparseRows]]:
        """Yield (which rows, [1, X, target]); X is read once and not needed again."""
        rest = np.setdiff1d(np.arange(self.table.columns), sparse)
        last = [] if self.target is None else [self.width]
        dense_at = np.concatenate([np.arange(self.first), rest + self.first, last]).astype(int)
        for start in range(0, self.table.rows, _SPARSE_ROWS):
            where = slice(start, min(start + _SPARSE_ROWS, self.table.rows))
            raws = self._raw_blocks(self._rows_per_block, where.start, where.stop)
            values, others = split((raw for _, raw in raws), self.table.columns, sparse)
            if len(others) == 0:
                continue
            values.data /= self.scale.unit[sparse][values.indices]
            dense = np.ones((len(others), len(dense_at)))
            inner = slice(self.first, self.first + len(rest))
            dense[:, inner] = (others - self.scale.center[rest]) / self.scale.unit[rest]
            if self.target is not None:
                dense[:, -1] = self.targets(where)
            piece = SparseRows(dense, dense_at, values, sparse + self.first)
            root = self.roots(where) if weighted else None
            yield where, piece if root is None else piece.scaled(root)

    def _raw_blocks(
        self, size: int, first: int = 0, end: int | None = None
    ) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield (which rows, those of X of positive weight); the first time, check them."""
        end = end or self.table.rows
        for start in range(first, end, size):
            where = slice(start, min(start + size, end))
            raw = self.table.block(where.start, where.stop)
            if not self._is_checked:
                check_finite_block(raw, start, self.table.names)
            yield where, raw if self.used is None else raw[self.used[where]]
        self._is_checked = self._is_checked or end == self.table.rows

    def _measure(self) -> Scale:
        """Return how to scale the columns, having read all rows."""
        blocks = self._raw_blocks(self._rows_per_block)
        pilot, total, squares = self._moments(blocks, self.table.columns)
        if not np.isfinite(squares).all():
            name = self.table.names[int(np.argmax(~np.isfinite(squares)))]
            raise ValueError(too_large(f"column {name!r} of X"))
        return scale_of(pilot, total, squares, self.n, self.fit_intercept)

    def _measure_y(self) -> Scale:
        """Return how to scale the target."""
        assert self.target is not None
        blocks = ((where, self.pick(self.target, where)[:, None]) for where in self.spans())
        pilot, total, squares = self._moments(blocks, 1)
        if not np.isfinite(squares).all():
            raise ValueError(too_large("y"))
        return scale_of(pilot, total, squares, self.n, self.fit_intercept)

    def _moments(
        self, blocks: Iterator[tuple[slice, np.ndarray]], columns: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the first row and the weighted sums of distances from it and of their squares."""
        pilot, total, squares = np.zeros((3, columns))
        begun = False
        for where, raw in blocks:
            if len(raw) == 0:
                continue
            if not begun:
                pilot, begun = raw[0].astype(np.float64), True
            with np.errstate(over="ignore", invalid="ignore"):
                sums = moments(raw, self.roots(where), pilot)
                total, squares = total + sums[0], squares + sums[1]
        return pilot, total, squares

    def _sparse_columns(self) -> np.ndarray | None:
        """Return the columns that are mostly zero, (any,), if nearly all numbers are in those."""
        columns = self.table.columns
        if columns < _NARROW:
            return None
        counts = np.zeros(columns, dtype=int)
        for _, raw in self._raw_blocks(self._rows_per_block):
            counts += np.count_nonzero(raw, axis=0)
        sparse = np.flatnonzero((counts <= self.n / 8) & (self.scale.center == 0))
        few = counts[sparse].sum() <= self.n * columns / 32 and columns - len(sparse) < columns / 16
        return sparse if few else None

    def columns_of_integers(self) -> np.ndarray:
        """Return which columns hold only integers, (columns,): no dtype has rounded those."""
        whole = np.ones(self.table.columns, dtype=bool)
        for _, raw in self._raw_blocks(self._rows_per_block):
            whole &= (raw == np.rint(raw)).all(axis=0)
        return whole

    def unscale(self, solution: np.ndarray) -> tuple[np.ndarray, float]:
        """Return coefficients (columns,) and intercept, in raw units, of a scaled solution (q,)."""
        (shift,), (unit,) = self.target_scale
        coef = solution[self.first :] / self.scale.unit * unit
        if not self.fit_intercept:
            return coef, 0.0
        # fsum: with large centers the terms cancel.
        intercept = math.fsum([solution[0] * unit, shift, *(-self.scale.center * coef)])
        return coef, intercept

    def unscale_rows(self, rows: np.ndarray) -> np.ndarray:
        """Return what `unscale` makes of changes of a solution: (q, any) to (q, any)."""
        unit = self.target_scale.unit[0]
        coef = rows[self.first :] * (unit / self.scale.unit)[:, None]
        if not self.fit_intercept:
            return coef
        return np.vstack([rows[0] * unit - self.scale.center @ coef, coef])

    def split(self, values: np.ndarray) -> tuple[np.ndarray, float]:
        """Return those of the coefficients, (columns,), and that of the intercept or nan; of (q,),
        the intercept first.
        """
        return values[self.first :], float(values[0]) if self.fit_intercept else math.nan

    def penalty(self, l2: float) -> np.ndarray:
        """Return the rows that stand for ½·l2·‖coef‖²: (q,), the diagonal of Λ.

        The objective, times 2n, is ‖A b - y‖² + ‖Λ b‖² with weights of mean 1.
        """
        rows = np.zeros(self.width)
        rows[self.first :] = math.sqrt(l2 * self.n) / self.scale.unit
        return rows

    def name(self, index: int) -> str:
        """Return the name of a column of the design."""
        index -= self.first
        return "intercept" if index < 0 else self.table.names[index]
