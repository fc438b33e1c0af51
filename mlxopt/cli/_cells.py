"""Cells of a text table as numbers: read exactly, or refused with a reason."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

_MISSING = frozenset({"", "NA", "N/A", "NaN", "nan", "NULL", "null", "None"})
# float() also takes "inf", "1_000" and digits of other scripts, which are no numbers in a table.
_PLAIN = frozenset("0123456789+-.eE \t\n")
_EXACT = 2.0**53  # all whole numbers up to here are float64 numbers


class CellError(ValueError):
    """A cell that is neither a number nor missing; `reason` is a message without its subject."""

    def __init__(self, index: int, cell: str, reason: str) -> None:
        super().__init__(reason)
        self.index, self.cell, self.reason = index, cell, reason
        self.is_text = reason == _TEXT  # the cell resembles no number


def is_missing(cell: str) -> bool:
    return cell.strip() in _MISSING


def read_numbers(cells: Sequence[str]) -> np.ndarray:
    """Return cells as float64, shape (len(cells),), NaN where a value is missing.

    Raises:
        CellError: a cell is neither a number nor missing, or it is a number that float64 changes
            beyond rounding: by overflow, underflow, or a whole number of more than 53 bits.
    """
    try:
        if not _PLAIN.issuperset("\n".join(cells)):
            raise ValueError
        values = np.array([float(cell) for cell in cells])
        unsure = np.flatnonzero((np.abs(values) >= _EXACT) | (values == 0)).tolist()
    except ValueError:
        values, unsure = np.empty(len(cells)), range(len(cells))
    for index in unsure:
        values[index] = _number(index, cells[index])
    return values


def _number(index: int, cell: str) -> float:
    text = cell.strip()
    if text in _MISSING:
        return float("nan")
    if not is_number(text):
        raise CellError(index, cell, _explain(text))
    value = float(text)
    if 0 < abs(value) < _EXACT:
        return value
    if np.isinf(value):
        raise CellError(index, cell, f"is beyond the largest float64, 1.8e308. {_CORRECT}")
    if value == 0 and re.search("[1-9]", re.split("[eE]", text)[0]):
        raise CellError(index, cell, f"is too small for float64, which would make it 0. {_CORRECT}")
    digits = re.fullmatch(r"([+-]?\d+)\.?0*", text)
    if digits and int(digits[1]) != int(value):
        reason = f"is a whole number that float64 cannot hold: it would become {int(value)}."
        raise CellError(index, cell, f"{reason} Leave an identifier out with --features.")
    return value


def is_number(cell: str) -> bool:
    """Whether a cell is a plain number of any size."""
    try:
        float(cell)
    except ValueError:
        return False
    return _PLAIN.issuperset(cell.strip())


def marked_number(cell: str) -> str | None:
    """Return the reason to refuse a number with marks, such as `$1,234`; None for other cells."""
    reason = _explain(cell.strip())
    return reason if reason.startswith(_MARKED) else None


_CORRECT = "Correct the cell, or empty it to leave the row out."
_TEXT = f"is not a number. {_CORRECT}"
_MARKED = "has a "
_REASONS = {
    r"[-–—.?*#/\\]+|#?n\.?/?a\.?|none|null|missing|unknown": "is not a number. If it marks a "
    "missing value, empty the cell or write NA.",
    r"[+-]?0x[0-9a-f]+": "is hexadecimal. Write the number in decimal.",
    r"[+-]?inf(inity)?": f"is not finite, and a model needs finite numbers. {_CORRECT}",
    r"true|false": "is a truth value. Write 1 for true and 0 for false.",
}


def _explain(text: str) -> str:
    """Return the reason why `text` is not read as a number, and the remedy."""
    for pattern, reason in _REASONS.items():
        if re.fullmatch(pattern, text, re.IGNORECASE):
            return reason
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
    return _TEXT


def _without(mark: str, text: str) -> str:
    """Return the reason to refuse a number with a mark, given the text without it."""
    if is_number(text):
        return f"{_MARKED}{mark}. Write {text}."
    reason = marked_number(text)
    return f"{_MARKED}{mark} and a {reason.removeprefix(_MARKED)}" if reason else _TEXT
