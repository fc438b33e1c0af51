"""Mini-batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from numbers import Integral
from typing import Any

import mlx.core as mx
import numpy as np

from mlxopt._checks import check_count
from mlxopt._numbers import check_unmasked

__all__ = ["Batches", "batches"]


def __dir__() -> list[str]:
    return __all__


_AHEAD = 64  # batches fetched at a time at most,
_BYTES_AHEAD = 2**22  # and their bytes at most, if more than one


@dataclasses.dataclass(eq=False, repr=False)
class Batches:
    """Mini-batches of arrays that share their first axis; made by `batches`.

    `epoch(k)` yields the batches of epoch k, tuples of arrays; `train` takes epochs 0, 1, ... in
    every run, so that runs can be repeated. Each iteration yields the next epoch. With `shuffle`,
    the order of an epoch is fixed by the seed and k.
    """

    arrays: tuple[mx.array | np.ndarray, ...]
    batch_size: int
    shuffle: bool
    seed: int
    drop_last: bool
    _next: int = 0  # the epoch of the next iteration

    @property
    def rows(self) -> int:
        """The number of examples."""
        return self.arrays[0].shape[0]

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        whole, rest = divmod(self.rows, self.batch_size)
        return whole + bool(rest and not self.drop_last)

    def __iter__(self) -> Iterator[Any]:
        """Return an iterator over the batches of the next epoch."""
        self._next += 1
        return self.epoch(self._next - 1)

    def epoch(self, index: int) -> Iterator[Any]:
        """Yield the batches of epoch `index`, counted from 0, as tuples of arrays."""
        order = None
        if self.shuffle:
            order = np.random.default_rng((self.seed, index)).permutation(self.rows)
        end = len(self) * self.batch_size if self.drop_last else self.rows
        # One gather of many rows and one split cost no more than a gather of few rows, which takes
        # longer than a step on a small batch.
        size = self.batch_size * sum(array.nbytes for array in self.arrays) // self.rows
        ahead = self.batch_size * max(1, min(_AHEAD, _BYTES_AHEAD // max(1, size)))
        for start in range(0, end, ahead):
            stop = min(start + ahead, end)
            rows = slice(start, stop) if order is None else order[start:stop]
            yield from zip(*(self._cut(array, rows) for array in self.arrays), strict=True)

    def _cut(self, array: Any, rows: Any) -> list[Any]:
        """Return the rows of an array in batches."""
        if isinstance(array, mx.array):
            part = array[mx.array(rows) if isinstance(rows, np.ndarray) else rows]
            cuts = list(range(self.batch_size, part.shape[0], self.batch_size))
            return list(mx.split(part, cuts)) if cuts else [part]
        part = array[rows]
        part.flags.writeable = False  # in order it is a view of the user's own array
        return [part[i : i + self.batch_size] for i in range(0, len(part), self.batch_size)]

    def __repr__(self) -> str:
        shuffled = f"shuffled with seed {self.seed}" if self.shuffle else "in order"
        return f"Batches({len(self)} of {self.batch_size} from {self.rows:,} rows, {shuffled})"


def batches(
    *arrays: Any, batch_size: int, shuffle: bool = True, seed: int = 0, drop_last: bool = False
) -> Batches:
    """Return mini-batches of arrays that share their first axis, for `train`.

    Args:
        *arrays: arrays of MLX or NumPy, or lists; all with the same number of rows.
        batch_size: rows in a batch.
        shuffle: draw a new order for each epoch.
        seed: of the shuffling.
        drop_last: omit the last batch of an epoch if it is smaller than the others.

    Returns:
        a `Batches`, to iterate once for each epoch.

    >>> import mlx.core as mx, mlxopt as mo
    >>> X, y = mx.arange(6).reshape(3, 2), mx.array([0.0, 1.0, 2.0])
    >>> for Xb, yb in mo.batches(X, y, batch_size=2, shuffle=False):
    ...     print(Xb.tolist(), yb.tolist())
    [[0, 1], [2, 3]] [0.0, 1.0]
    [[4, 5]] [2.0]
    """
    if isinstance(seed, bool) or not isinstance(seed, Integral) or seed < 0:
        raise TypeError(f"seed is {seed!r}; expected a whole number, zero or more.")
    if not arrays:
        raise ValueError("batches needs at least one array: batches(X, y, batch_size=32).")
    batch_size = check_count(batch_size, "batch_size")
    for index, array in enumerate(arrays):
        check_unmasked(array, f"array {index} of batches")
    converted = tuple(a if isinstance(a, mx.array) else np.asarray(a) for a in arrays)
    for index, array in enumerate(converted):
        if array.ndim == 0:
            raise ValueError(f"array {index} of batches is a scalar; expected an axis of rows.")
    rows = [array.shape[0] for array in converted]
    if len(set(rows)) > 1:
        listed = ", ".join(map(str, rows))
        raise ValueError(f"the arrays of batches have {listed} rows; expected one number of rows.")
    if rows[0] == 0:
        raise ValueError("the arrays of batches have no rows.")
    if drop_last and rows[0] < batch_size:
        raise ValueError(
            f"batch_size is {batch_size}, and drop_last=True leaves no batch of {rows[0]} rows."
        )
    return Batches(converted, batch_size, shuffle, int(seed), drop_last)
