"""How the columns of a design are shifted and scaled.

A column is shifted by a center and divided by a power of two near its spread. The center is a
multiple of that power, so it has few significant bits: for all but extreme data both operations are
exact, and a column with a large mean and a small spread (a year, a temperature in kelvin) loses its
bad conditioning without losing a digit. The intercept stays a column of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np


class Scale(NamedTuple):
    """How columns were shifted and scaled: scaled = (raw - center) / unit."""

    center: np.ndarray  # (columns,)
    unit: np.ndarray  # (columns,), powers of two


def too_large(what: str) -> str:
    return f"{what} holds numbers so large that their squares overflow; divide it by a constant."


@contextlib.contextmanager
def refusing_overflow(dtype: Any) -> Iterator[None]:
    """Raise ValueError where a number is too large for float32; in float64 they are seen to."""
    try:
        with np.errstate(over="raise" if dtype == np.float32 else "ignore"):
            yield
    except FloatingPointError as error:
        raise ValueError(
            "X holds numbers too far from the others in their column for float32; fit with "
            'precision="auto", and look at them.'
        ) from error


def moments(
    raw: np.ndarray, root: np.ndarray | None, pilot: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the weighted sums of the distances from a pilot center, and of their squares.

    With the first row for pilot, a constant column has distances of exactly zero.
    """
    away = np.array(raw.T, dtype=np.float64, order="C")  # longer loops than in rows
    away -= pilot[:, None]
    if root is not None:
        away *= root
    total = away.sum(axis=1) if root is None else away @ root
    return total, np.einsum("ij,ij->i", away, away)


def scale_of(
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
