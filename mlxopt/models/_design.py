"""The design matrix [1, X], shifted, scaled and weighted, a block of rows at a time.

Notation: A is the design, (rows, q) with q = 1 + columns (or columns, without intercept), in these
scaled units; R its triangular factor, AᵀWA = RᵀR with weights W of mean 1. `_factor.py` finds R.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from mlxopt.models._input import Table, check_finite_block
from mlxopt.models._scale import Scale, moments, scale_of, too_large
from mlxopt.models._sparse import SparseRows, split

_BLOCK = 2**18  # numbers in a block: 2 MB, small enough for a cache, large enough for BLAS
_NARROW = 32  # a block of so few columns is stored column by column, which makes longer loops
_WHOLE = 2**21  # up to 16 MB a design is kept after the first reading
_LARGE = 2**19  # above 4 MB a sample of the rows says how to scale the columns
STRIDE = 23  # the sample has each 23rd row, or fewer; a prime, unlike the periods of most data
_SPARSE_ROWS = 2**16  # in one piece of a sparse design


class Design:
    """The rows of positive weight of a table, as blocks of the scaled design.

    Of a large table a sample says how to scale; any scaling near the best does. `sample` is then
    the design of those rows alone, with the same scaling.

    Args:
        table: what to read.
        weights: (rows,), or None for equal weights.
        fit_intercept: put a column of ones first, and shift the columns.
        target: (rows,) numbers; shifted and scaled as the columns are, it becomes the last column
            of each block.
    """

    def __init__(
        self,
        table: Table,
        weights: np.ndarray | None,
        fit_intercept: bool,
        target: np.ndarray | None = None,
    ) -> None:
        self.table, self.fit_intercept = table, fit_intercept
        self.first = int(fit_intercept)  # where the columns of X begin
        self.used = None if weights is None or weights.all() else weights > 0
        self.weights = None if weights is None else self.pick(weights)  # (n,)
        self.n = table.rows if self.used is None else int(self.used.sum())
        self.mean_weight = 1.0 if self.weights is None else float(self.weights.mean())
        self.width = table.columns + fit_intercept  # q
        # The square root of a weight, whose square has mean 1.
        self.root = None if self.weights is None else np.sqrt(self.weights / self.mean_weight)
        self._rows_per_block = max(_BLOCK // (self.width + 1), 1)
        self._is_checked = False  # for NaN, in the first reading
        self._kept: dict[bool, list] = {}
        self.stride = max(STRIDE, table.rows * self.width // _LARGE + 1 | 1)
        self.sample = self._thinned(weights)
        self.scale = self._measure() if self.sample is None else self.sample.scale
        # The columns that `pieces` keeps as sparse ones, (any,).
        self.sparse = None if self.sample is None else self.sample._sparse_columns()
        self.target, self.target_scale = None, Scale(np.zeros(1), np.ones(1))
        if target is not None:
            values = self.pick(target)
            with np.errstate(over="ignore", invalid="ignore"):
                sums = moments(values[:, None], self.root, values[:1])
            if not np.isfinite(sums[1]).all():
                raise ValueError(too_large("y"))
            self.target_scale = scale_of(values[:1], *sums, self.n, fit_intercept)
            self.target = (values - self.target_scale.center) / self.target_scale.unit

    def pick(self, values: np.ndarray) -> np.ndarray:
        """Return the entries of a (rows,) array that belong to rows of positive weight."""
        return values if self.used is None else values[self.used]

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

    def pieces(self, weighted: bool = True) -> Iterator[tuple[slice, np.ndarray | SparseRows]]:
        """Yield what `blocks` yields, but with matrices that may be sparse."""
        if self.sparse is None:
            yield from self.blocks(weighted)
            return
        weighted = weighted and self.root is not None
        if weighted not in self._kept:
            self._kept[weighted] = list(self._sparse_pieces(self.sparse, weighted))
        yield from self._kept[weighted]

    def blocks(self, weighted: bool = True, rows: int = 0) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield (which of the n rows, float64 block [1, X, target]), to be read and not written.

        Args:
            weighted: multiply each row by the root of its weight (of mean 1).
            rows: the least number of rows in a block, but for the last.
        """
        weighted = weighted and self.root is not None
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
        """Yield (which of the n rows, block), one after the other in the same memory or to keep."""
        first, last = self.first, self.width
        width = last + (self.target is not None)
        center, scaling = self.scale.center[:, None], 1.0 / self.scale.unit[:, None]
        narrow = width <= _NARROW
        room = np.empty((self.n if keep else min(size, self.n)) * width)
        for where, raw in self._raw_blocks(size):
            start, rows = where.start * keep, len(raw)
            part = room[start * width : (start + rows) * width]
            columns = part.reshape(width, rows) if narrow else part.reshape(rows, width).T
            columns[:first] = 1.0
            columns[first:last] = raw.T
            if center.any():
                columns[first:last] -= center
            if (scaling != 1.0).any():
                columns[first:last] *= scaling
            if self.target is not None:
                columns[last] = self.target[where]
            if weighted and self.root is not None:
                columns *= self.root[where]
            yield where, columns.T

    def _sparse_pieces(
        self, sparse: np.ndarray, weighted: bool
    ) -> Iterator[tuple[slice, SparseRows]]:
        """Yield (which of the n rows, [1, X, target]); X is read once and not needed again."""
        rest = np.setdiff1d(np.arange(self.table.columns), sparse)
        last = [] if self.target is None else [self.width]
        dense_at = np.concatenate([np.arange(self.first), rest + self.first, last]).astype(int)
        done = 0
        for start in range(0, self.table.rows, _SPARSE_ROWS):
            raws = self._raw_blocks(self._rows_per_block, start, start + _SPARSE_ROWS)
            values, others = split((raw for _, raw in raws), self.table.columns, sparse)
            where = slice(done, done + len(others))
            values.data /= self.scale.unit[sparse][values.indices]
            dense = np.ones((len(others), len(dense_at)))
            inner = slice(self.first, self.first + len(rest))
            dense[:, inner] = (others - self.scale.center[rest]) / self.scale.unit[rest]
            if self.target is not None:
                dense[:, -1] = self.target[where]
            piece = SparseRows(dense, dense_at, values, sparse + self.first)
            yield (
                where,
                piece if self.root is None or not weighted else piece.scaled(self.root[where]),
            )
            done = where.stop

    def _raw_blocks(
        self, size: int, first: int = 0, end: int | None = None
    ) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield (which of the n rows since `first`, rows of X); the first time, check them."""
        end, done = min(end or self.table.rows, self.table.rows), 0
        for start in range(first, end, size):
            raw = self.table.block(start, min(start + size, end))
            if not self._is_checked:
                check_finite_block(raw, start, self.table.names)
            if self.used is not None:
                raw = raw[self.used[start : start + len(raw)]]
            yield slice(done, done + len(raw)), raw
            done += len(raw)
        self._is_checked = self._is_checked or end == self.table.rows

    def _measure(self) -> Scale:
        """Return how to scale the columns, having read all rows."""
        columns = self.table.columns
        pilot, total, squares = np.zeros(columns), np.zeros(columns), np.zeros(columns)
        for where, raw in self._raw_blocks(self._rows_per_block):
            if len(raw) == 0:
                continue
            if where.start == 0:
                pilot = raw[0].astype(np.float64)
            root = None if self.root is None else self.root[where]
            with np.errstate(over="ignore", invalid="ignore"):
                sums = moments(raw, root, pilot)
            total, squares = total + sums[0], squares + sums[1]
        if not np.isfinite(squares).all():
            name = self.table.names[int(np.argmax(~np.isfinite(squares)))]
            raise ValueError(too_large(f"column {name!r} of X"))
        return scale_of(pilot, total, squares, self.n, self.fit_intercept)

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

    def standard_errors(self, inverse: np.ndarray) -> tuple[np.ndarray, float]:
        """Return the standard errors of coefficients and intercept in raw units.

        Args:
            inverse: (q, any): V with V Vᵀ the covariance matrix of the scaled solution.
        """
        unit = self.target_scale.unit[0]
        coef = np.linalg.norm(inverse[self.first :], axis=1) / self.scale.unit * unit
        if not self.fit_intercept:
            return coef, math.nan
        row = inverse[0] - (self.scale.center / self.scale.unit) @ inverse[1:]
        return coef, float(np.linalg.norm(row) * unit)

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
