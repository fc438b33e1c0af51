"""Mini-batches."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Integral
from typing import Any

import mlx.core as mx
import numpy as np

_AHEAD = 64  # batches fetched at a time at most,
_BYTES_AHEAD = 2**22  # and as many bytes, or else one batch


class Batches:
    """Mini-batches of arrays that share their first axis; made by `batches`.

    `epoch(k)` gives the batches of epoch k, a tuple of arrays at a time; `train` asks for epochs
    0, 1, ... in every run, so that runs can be repeated. Iterating gives the next epoch each time.
    With `shuffle`, each epoch has an order of its own, fixed by the seed and k.
    """

    def __init__(
        self, arrays: tuple[Any, ...], batch_size: int, shuffle: bool, seed: int, drop_last: bool
    ) -> None:
        self.arrays = arrays
        self.batch_size, self.shuffle, self.seed, self.drop_last = (
            batch_size,
            shuffle,
            seed,
            drop_last,
        )
        self._next = 0

    @property
    def rows(self) -> int:
        """Return how many examples there are."""
        return self.arrays[0].shape[0]

    def __len__(self) -> int:
        """Return how many batches an epoch has."""
        whole, rest = divmod(self.rows, self.batch_size)
        return whole + bool(rest and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[mx.array | np.ndarray, ...]]:
        """Return an iterator over the next epoch's batches."""
        self._next += 1
        return self.epoch(self._next - 1)

    def epoch(self, index: int) -> Iterator[tuple[mx.array | np.ndarray, ...]]:
        """Return an iterator over the batches of epoch `index`, counted from 0."""
        order = None
        if self.shuffle:
            order = np.random.default_rng((self.seed, index)).permutation(self.rows)
        end = len(self) * self.batch_size if self.drop_last else self.rows
        ahead = self._rows_ahead()
        for start in range(0, end, ahead):
            stop = min(start + ahead, end)
            rows = slice(start, stop) if order is None else order[start:stop]
            yield from zip(*(self._cut(array, rows) for array in self.arrays), strict=True)

    def _rows_ahead(self) -> int:
        """Return how many rows are fetched at a time: a few batches, where these are small.

        One gather of many rows and one split cost no more than a gather of few, which takes longer
        than a step does on a small batch.
        """
        row = sum(array.nbytes for array in self.arrays) // self.rows
        return self.batch_size * max(1, min(_AHEAD, _BYTES_AHEAD // max(1, row * self.batch_size)))

    def _cut(self, array: Any, rows: Any) -> list[Any]:
        """Return the batches among these rows of an array."""
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
        drop_last: leave out the last batch of an epoch if it is smaller than the others.

    Returns:
        a `Batches`, which can be iterated once for each epoch.

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
    if isinstance(batch_size, bool) or not isinstance(batch_size, Integral):
        raise TypeError(f"batch_size is {batch_size!r}; expected a whole number.")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; expected 1 or more.")
    converted = tuple(a if isinstance(a, mx.array) else np.asarray(a) for a in arrays)
    for index, array in enumerate(converted):
        if array.ndim == 0:
            raise ValueError(
                f"array {index} of batches is a scalar; expected a first axis of rows."
            )
        if array.shape[0] != converted[0].shape[0]:
            rows = ", ".join(str(a.shape[0]) for a in converted if a.ndim)
            raise ValueError(
                f"the arrays of batches have {rows} rows; expected the same number in all."
            )
    if converted[0].shape[0] == 0:
        raise ValueError("the arrays of batches have no rows.")
    if drop_last and converted[0].shape[0] < batch_size:
        raise ValueError(
            f"batch_size is {batch_size} but there are only {converted[0].shape[0]} rows, and "
            f"drop_last=True would leave no batch at all."
        )
    return Batches(converted, int(batch_size), shuffle, int(seed), drop_last)
