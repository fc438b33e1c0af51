"""Numbers in the arrays of other libraries: NumPy, lists, data frames."""

from __future__ import annotations

from typing import Any

import numpy as np


def to_numbers(item: Any, name: str) -> np.ndarray:
    """Return an argument as a NumPy array of real numbers.

    Raises:
        TypeError: it holds something else, or masked numbers.
    """
    check_unmasked(item, name)
    if hasattr(item, "toarray"):
        raise TypeError(
            f"{name} is a sparse {type(item).__name__}; expected a dense array: {name}.toarray()."
        )
    array = np.asarray(item)
    if array.dtype.kind not in "fiub":
        raise TypeError(
            f"{name}, of type {type(item).__qualname__}, gives a NumPy array of dtype "
            f"{array.dtype}, which MLX cannot hold; expected numbers. {_remedy(array)}"
        )
    return array


def check_unmasked(item: Any, name: str) -> None:
    """Raise TypeError for an array with masked entries, whose mask `np.asarray` drops."""
    for part in item if isinstance(item, (list, tuple)) else [item]:
        if isinstance(part, np.ma.MaskedArray) and (hidden := int(np.ma.count_masked(part))):
            raise TypeError(
                f"{name} is a masked array, {hidden} of its {part.size} entries masked, and MLX "
                f"has no masks: the masked numbers would be used. Drop those rows here and in the "
                f"other data; or pass x.filled(0) and the weights ~np.ma.getmaskarray(x)."
            )


def _remedy(array: np.ndarray) -> str:
    """Return what to do with an array of something else than real numbers."""
    kind, example = array.dtype.kind, ""
    if kind == "O":
        wrong = [entry for entry in array.flat if not isinstance(entry, (int, float))][:1]
        example = f"The first entry that is none: {wrong[0]!r}. " if wrong else ""
        if wrong and hasattr(wrong[0], "isoformat"):
            kind = "M"
        elif wrong and not isinstance(wrong[0], str):
            return example + "Drop or fill missing entries, and convert the rest: x.astype(float)."
    if kind in "Mm":
        # A count of nanoseconds since 1970 as float32 would be off by minutes.
        since = "" if kind == "m" else "Subtract the first date, then divide"
        unit = f"{since or 'Divide'} by a unit: "
        return f"{example}{unit}{'x' if kind == 'm' else '(x - x[0])'} / np.timedelta64(1, 'D')."
    if kind == "c":
        return "Pass the real and the imaginary part: x.real and x.imag."
    if array.dtype.names:
        return f"Pass its fields: x[{array.dtype.names[0]!r}], ..."
    return f"{example}Encode text as numbers first."


_MOVED = 1e-3  # of the spread of a column: the largest change by a cast without a warning


def merged_by_cast(array: np.ndarray, to: Any, name: str, columns: bool = True) -> str | None:
    """Return a warning if numbers lose what tells them apart in another dtype, else None.

    Args:
        array: numbers of any shape.
        to: a floating-point dtype of NumPy.
        name: of the array, for the warning.
        columns: compare within the columns of a matrix that has as many rows at least, else within
            the whole.
    """
    exact = np.dtype(to).itemsize if array.dtype.kind == "f" else np.dtype(to).itemsize // 2
    if array.dtype.kind == "b" or array.dtype.itemsize <= exact or array.size == 0:
        return None
    is_matrix = columns and array.ndim == 2 and array.shape[0] >= array.shape[1]
    table = array if is_matrix else array.reshape(-1, 1)
    low, high = (ends.astype(np.float64) for ends in (table.min(axis=0), table.max(axis=0)))
    limits, largest = np.finfo(to), np.maximum(np.abs(low), np.abs(high))
    with np.errstate(invalid="ignore"):
        spread = high - low
        reach = 0.5 * limits.eps * largest + limits.smallest_subnormal  # of a cast
        # Two passes over the data clear almost every column. NaN and infinity clear none.
        cleared = (spread <= _constant(array) * largest) | (reach <= _MOVED * spread)
        most = 2.0**53 if array.dtype.kind in "iu" else limits.max  # float64 holds their ends
        suspects = np.flatnonzero(~(cleared & (largest <= most)))
    found = [(*_moved(table[:, place], to), place) for place in suspects]
    merged = [one for one in found if one[0] > _MOVED * one[1]]
    if not merged:
        return None
    moved, spread, place = max(merged, key=lambda one: one[0] / one[1])
    values = table[:, place]
    with np.errstate(over="ignore"):
        before, after = np.unique(values).size, np.unique(values.astype(to)).size
    if is_matrix:
        name = f"{name}[:, {place}]"
    more = f" ({len(merged) - 1} columns more do.)" if len(merged) > 1 else ""
    small = np.abs(values[np.isfinite(values)]).max() < 1e-30
    cure = f"Subtract a number near them before the call, as in {name} - {name}[0]"
    if small or moved == np.inf:
        cure = "Divide them by a unit before the call"
    return (
        f"{name} loses digits as {np.dtype(to)}: its values move by up to {moved:.3g}, "
        f"{moved / spread:.2g} of their spread ({spread:.3g}), and {before:,} different numbers "
        f"become {after:,}.{more} {cure}; or compute in float64, with params of dtype mx.float64."
    )


def _constant(values: np.ndarray) -> float:
    """Return the spread, relative to them, of numbers that are equal but for rounding."""
    return 64 * 2.0**-52 if values.dtype.kind == "f" else 0.0


def _moved(values: np.ndarray, to: Any) -> tuple[float, float]:
    """Return how far a cast moves a value at most, and the spread of the values, if finite."""
    constant = _constant(values)
    values = values[np.isfinite(values)].astype(np.longdouble)  # holds 64-bit integers
    if values.size == 0:
        return 0.0, 1.0
    spread = values.max() - values.min()
    if spread <= constant * np.abs(values).max():
        return 0.0, 1.0
    with np.errstate(over="ignore"):
        return float(np.abs(values.astype(to) - values).max()), float(spread)
