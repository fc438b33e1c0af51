"""Numbers in the arrays of other libraries: NumPy, lists, data frames."""

from __future__ import annotations

from typing import Any

import numpy as np


def to_numbers(item: Any, name: str) -> np.ndarray:
    """Return an argument as a NumPy array of real numbers.

    Raises:
        TypeError: it holds something else, or masked numbers.
    """
    parts = item if isinstance(item, (list, tuple)) else [item]
    for part in parts:
        if isinstance(part, np.ma.MaskedArray) and (hidden := int(np.ma.count_masked(part))):
            raise TypeError(
                f"{name} is a masked array, {hidden} of its {part.size} entries masked, and MLX "
                f"has no masks: the masked numbers would be used. Drop those rows here and in the "
                f"other data; or pass x.filled(0) and the weights ~np.ma.getmaskarray(x)."
            )
    array = np.asarray(item)
    if array.dtype.kind not in "fiub":
        raise TypeError(
            f"{name}, of type {type(item).__qualname__}, gives a NumPy array of dtype "
            f"{array.dtype}, which MLX cannot hold; expected numbers. {_remedy(array)}"
        )
    return array


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
