"""Numbers from the cells of a text table: read exactly, or refused with the reason."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

MISSING = frozenset({"", "NA", "N/A", "NaN", "nan", "NULL", "null", "None"})
"""What marks a missing value; anything else that is no number is an error."""

# float() also takes "inf", "1_000" and digits of other scripts, which no table means as numbers.
_PLAIN = frozenset("0123456789+-.eE \t\n")
_EXACT = 2.0**53  # whole numbers up to here are all float64 numbers


class CellError(ValueError):
    """A cell that is neither a number nor missing; `reason` says why, as a message goes on."""

    def __init__(self, index: int, cell: str, reason: str) -> None:
        super().__init__(reason)
        self.index, self.cell, self.reason = index, cell, reason

    @property
    def is_text(self) -> bool:
        """Whether the cell has nothing of a number, so that the whole column may be text."""
        return self.reason == _TEXT


def is_missing(cell: str) -> bool:
    """Return whether a cell stands for a missing value."""
    return cell.strip() in MISSING


def read_numbers(cells: Sequence[str]) -> np.ndarray:
    """Return cells as float64, shape (len(cells),), NaN where a value is missing.

    Raises:
        CellError: a cell is neither a number nor missing, or is a number that float64 would change
            beyond rounding: one that overflows, vanishes, or is whole and needs more than 53 bits.

    >>> read_numbers(["1", " 2.5e3", "NA"])
    array([1.0e+00, 2.5e+03,     nan])
    """
    try:
        if not _PLAIN.issuperset("\n".join(cells)):
            raise ValueError
        values = np.array([float(cell) for cell in cells])
    except ValueError:
        values = np.array([_number(index, cell) for index, cell in enumerate(cells)])
    suspect = np.isinf(values) | (np.abs(values) >= _EXACT) | (values == 0)
    for index in np.flatnonzero(suspect).tolist():
        _check_kept(index, cells[index], float(values[index]))
    return values


def is_number(cell: str) -> bool:
    """Return whether a cell is a plain number, whatever its size."""
    try:
        float(cell)
    except ValueError:
        return False
    return _PLAIN.issuperset(cell.strip())


def marked_number(cell: str) -> str | None:
    """Return how to write a cell that is a number but for its marks, as `$1,234` is; else None."""
    reason = _explain(cell.strip())
    return reason if reason.startswith(_MARKED) else None


def _number(index: int, cell: str) -> float:
    if is_missing(cell):
        return float("nan")
    if not is_number(cell):
        raise CellError(index, cell, _explain(cell.strip()))
    value = float(cell)
    if np.isinf(value):  # here and not later, so that the first bad cell is the one reported
        _check_kept(index, cell, value)
    return value


def _check_kept(index: int, cell: str, value: float) -> None:
    """Raise CellError if float64 holds something else than what is written."""
    text = cell.strip()
    if np.isinf(value):
        raise CellError(index, cell, f"is beyond the largest float64, 1.8e308. {_CORRECT}")
    if value == 0 and re.search("[1-9]", re.split("[eE]", text)[0]):
        raise CellError(index, cell, f"is too small for float64, which would make it 0. {_CORRECT}")
    digits = re.fullmatch(r"([+-]?\d+)\.?0*", text)
    if digits and int(digits[1]) != int(value):
        raise CellError(
            index,
            cell,
            f"is a whole number that float64 cannot hold: it would become {int(value)}. If it is "
            f"an identifier, leave the column out with --features.",
        )


_CORRECT = "Correct the cell, or empty it to leave the row out."
_TEXT = f"is not a number. {_CORRECT}"
_MARKED = "has a "


def _explain(text: str) -> str:
    """Return why `text` is not taken for a number, and what to do."""
    if re.fullmatch(r"[-–—.?*#/\\]+|#?n\.?/?a\.?|none|null|missing|unknown", text, re.IGNORECASE):
        return "is not a number. If it marks a missing value, empty the cell or write NA."
    if money := re.fullmatch(r"([+-]?)[$€£¥] ?(\d.*)|([+-]?\d.*?) ?[$€£¥]", text):
        return _without("currency sign", (money[1] or "") + (money[2] or money[3]))
    if text.endswith("%"):
        return _without("percent sign", text[:-1].rstrip())
    if re.fullmatch(r"[+-]?\d{1,3}(,\d{3})+(\.\d*)?", text):
        plain = text.replace(",", "")
        also = "" if text.count(",") > 1 or "." in text else f", or {text.replace(',', '.')}"
        hint = " if the comma is a decimal comma" if also else ""
        return f"{_MARKED}thousands separator. Write {plain}{also}{hint}."
    if re.fullmatch(r"[+-]?(\d+|\d{1,3}(\.\d{3})+),\d*([eE][+-]?\d+)?", text):
        return f"{_MARKED}decimal comma. Write {text.replace('.', '').replace(',', '.')}."
    if re.fullmatch(r"[+-]?0[xX][0-9a-fA-F]+", text):
        return "is hexadecimal. Write the number in decimal."
    if re.fullmatch(r"[+-]?inf(inity)?", text, re.IGNORECASE):
        return f"is not finite, and a model needs finite numbers. {_CORRECT}"
    if text.lower() in ("true", "false"):
        return "is a truth value. Write 1 for true and 0 for false."
    return _TEXT


def _without(mark: str, text: str) -> str:
    """Return why a number with a mark is not taken for one, given the text without the mark."""
    if is_number(text):
        return f"{_MARKED}{mark}. Write {text}."
    reason = _explain(text)
    return (
        f"{_MARKED}{mark} and a {reason[len(_MARKED) :]}" if reason.startswith(_MARKED) else _TEXT
    )
