"""The design matrix [1, X], shifted, scaled and weighted, a block of rows at a time.

A column is shifted by a center and divided by a power of two near its spread. The center is a
multiple of that power, so it has few significant bits: for all but extreme data both operations are
exact, and a column with a large mean and a small spread (a year, a temperature in kelvin) loses its
bad conditioning without losing a digit. The intercept stays a column of its own.

Notation: A is the design, (rows, q) with q = 1 + columns (or columns, without intercept), in these
scaled units; R its triangular factor, AᵀWA = RᵀR with weights W of mean 1. `_factor.py` finds R.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from mlxopt.models._input import Table, check_finite_block

_BLOCK = 2**18  # numbers in a block: 2 MB, small enough for a cache, large enough for BLAS
_WHOLE = 2**20  # up to 8 MB a design is kept after the first reading


class Scale(NamedTuple):
    """How columns were shifted and scaled: scaled = (raw - center) / unit."""

    center: np.ndarray  # (columns,)
    unit: np.ndarray  # (columns,), powers of two


class Design:
    """The rows of positive weight of a table, as blocks of the scaled design.

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
        self.scale, self.size = self._measure()
        self.target, self.target_scale = None, Scale(np.zeros(1), np.ones(1))
        if target is not None:
            values = self.pick(target)
            with np.errstate(over="ignore", invalid="ignore"):
                moments = _moments(values[:, None], self.root, values[:1])
            if not np.isfinite(moments[2]).all():
                raise ValueError(_too_large("y"))
            self.target_scale = _scale_of(*moments, fit_intercept)
            self.target = (values - self.target_scale.center) / self.target_scale.unit
        self._cache: dict[bool, np.ndarray] = {}

    def pick(self, values: np.ndarray) -> np.ndarray:
        """Return the entries of a (rows,) array that belong to rows of positive weight."""
        return values if self.used is None else values[self.used]

    def blocks(self, weighted: bool = True, rows: int = 0) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield (which of the n rows, float64 block [1, X, target]), to be read and not written.

        Args:
            weighted: multiply each row by the root of its weight (of mean 1).
            rows: the least number of rows in a block, but for the last.
        """
        if self.table.rows * (self.width + 1) > _WHOLE:
            yield from self._fresh_blocks(weighted, max(self._rows_per_block, rows))
            return
        if weighted not in self._cache:
            [(_, self._cache[weighted])] = self._fresh_blocks(weighted, self.table.rows)
        yield slice(0, self.n), self._cache[weighted]

    def _fresh_blocks(self, weighted: bool, size: int) -> Iterator[tuple[slice, np.ndarray]]:
        first, last = self.first, self.width
        room = np.empty((min(size, self.n), last + (self.target is not None)))
        for where, raw in self._raw_blocks(size):
            block = room[: len(raw)]
            block[:, :first] = 1.0
            np.subtract(raw, self.scale.center, out=block[:, first:last])
            block[:, first:last] *= 1.0 / self.scale.unit
            if self.target is not None:
                block[:, last] = self.target[where]
            if weighted and self.root is not None:
                block *= self.root[where, None]
            yield where, block

    def _raw_blocks(self, size: int) -> Iterator[tuple[slice, np.ndarray]]:
        done = 0
        for start in range(0, self.table.rows, size):
            raw = self.table.block(start, min(start + size, self.table.rows))
            if self.used is not None:
                raw = raw[self.used[start : start + size]]
            yield slice(done, done + len(raw)), raw
            done += len(raw)

    def _measure(self) -> tuple[Scale, np.ndarray]:
        """Return how to scale the columns, and how large they are, unshifted, in the scaled units:
        (columns,), the root of the weighted sum of squares.
        """
        columns = self.table.columns
        pilot, total, squares = np.zeros(columns), np.zeros(columns), np.zeros(columns)
        start = 0
        for index in range(0, self.table.rows, self._rows_per_block):
            raw = self.table.block(index, min(index + self._rows_per_block, self.table.rows))
            with np.errstate(over="ignore", invalid="ignore"):
                check = raw.sum(dtype=np.float64)  # NaN and infinity survive a sum
            if not math.isfinite(check):
                check_finite_block(raw, index, self.table.names)
            if self.used is not None:
                raw = raw[self.used[index : index + self._rows_per_block]]
            if len(raw) == 0:
                continue
            if start == 0:
                pilot = raw[0].astype(np.float64)
            root = None if self.root is None else self.root[start : start + len(raw)]
            with np.errstate(over="ignore", invalid="ignore"):
                sums = _moments(raw, root, pilot)
            total, squares, start = total + sums[1], squares + sums[2], start + len(raw)
        if not np.isfinite(squares).all():
            name = self.table.names[int(np.argmax(~np.isfinite(squares)))]
            raise ValueError(_too_large(f"column {name!r} of X"))
        scale = _scale_of(pilot, total, squares, self.n, self.fit_intercept)
        raw_squares = squares + 2 * pilot * total + self.n * pilot**2
        return scale, np.sqrt(np.maximum(raw_squares, squares / 4)) / scale.unit

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


def _too_large(what: str) -> str:
    return f"{what} holds numbers so large that their squares overflow; divide it by a constant."


def _moments(
    raw: np.ndarray, root: np.ndarray | None, pilot: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Return the pilot center, the weighted sums of distances from it and of their squares, and
    the number of rows.

    With the first row for pilot, a constant column has distances of exactly zero.
    """
    away = np.subtract(raw, pilot, dtype=np.float64)
    if root is None:
        total = np.ones(len(raw)) @ away
    else:
        away *= root[:, None]
        total = root @ away
    return pilot, total, np.einsum("ij,ij->j", away, away), len(raw)


def _scale_of(
    pilot: np.ndarray, total: np.ndarray, squares: np.ndarray, n: int, shifted: bool
) -> Scale:
    """Return the center, rounded to a multiple of the unit, and the unit of each column."""
    mean = pilot + total / n
    if shifted:
        spread = np.sqrt(np.maximum(squares / n - (total / n) ** 2, 0.0))
        # A pilot far out leaves a variance of zero by cancellation: any unit will do then.
        spread = np.where((spread == 0) & (squares > 0), np.sqrt(squares / n) * 1e-8, spread)
    else:
        spread = np.sqrt(np.maximum(squares + 2 * pilot * total + n * pilot**2, 0.0) / n)
    unit = np.exp2(np.rint(np.log2(np.where(spread > 0, spread, 1.0))))
    if not shifted:
        return Scale(np.zeros_like(mean), unit)
    return Scale(np.where(spread > 0, np.rint(mean / unit) * unit, pilot), unit)
