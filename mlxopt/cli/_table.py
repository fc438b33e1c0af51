"""A person's CSV file as numbers: every cell read exactly, or an error that names its line."""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import itertools
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mlxopt.cli._cells import CellError, is_missing, is_number, marked_number, read_numbers

_BLOCK = 20_000  # rows turned into numbers at once: text takes ten times the memory
_SHOWN = 5  # columns named in a message
MOST_NAMES = 12  # in a list of columns


class TableError(ValueError):
    """The file cannot be read as the table that was asked for; the message says where and why."""


class Table(NamedTuple):
    """What was read, and how."""

    path: Path
    features: list[str]  # p names
    target: str  # name
    values: np.ndarray  # (rows, p) float64: the features, without the rows left out
    outcomes: list[str]  # rows texts: the target, stripped
    lines: list[int]  # rows numbers: where in the file each row begins
    sha256: str  # of the file's bytes, in hexadecimal
    bytes: int
    byte_order_mark: bool
    rows_read: int
    duplicates: int  # rows that repeat an earlier one in every cell
    blank: list[int]  # line numbers
    left_out: list[tuple[int, list[str]]]  # line number, columns whose value is missing
    unused: list[str]  # columns


def read_table(
    path: Path, target: str, features: list[str] | None = None, delimiter: str = ","
) -> Table:
    """Read the target and the features from a CSV file with a header line.

    Nothing is guessed or converted: a feature is a column of plain decimal numbers. A row with a
    missing value in a column that is used is left out, and noted; blank lines are skipped, and
    noted.

    Args:
        path: the file, in UTF-8.
        target: the column to predict; numbers or labels.
        features: the columns to predict from; None takes all others.
        delimiter: what stands between two cells, one character.

    Raises:
        TableError: the file cannot be read, is not a well-formed table, lacks a column, or has a
            cell that is neither a number nor missing.
    """
    data = _read_bytes(path)
    _check_text(path, data)
    records = _records(path, data, delimiter)
    header_line, header = next(records, (0, []))
    names = [name.strip() for name in header]
    _check_header(path, header_line, names, target, delimiter)
    chosen = _choose(path, names, target, features)
    reader = _Reader(path, names, chosen, target, delimiter, asked=features is not None)
    for line, cells in records:
        reader.take(line, cells)
    reader.convert()
    if not reader.rows:
        raise TableError(f"{path}: there are no rows below the header (line {header_line}).")
    if not reader.lines:
        absent = Counter(name for _, names in reader.left_out for name in names)
        counts = ", ".join(f"{name} in {count:,}" for name, count in absent.most_common(_SHOWN))
        raise TableError(
            f"{path}: none of the {reader.rows:,} rows is complete; missing are {counts}. Leave "
            f"such a column out with --features, or fill its cells in."
        )
    return Table(
        path, chosen, target,
        np.concatenate(reader.values), reader.outcomes, reader.lines,
        hashlib.sha256(data).hexdigest(), len(data), data.startswith(b"\xef\xbb\xbf"),
        reader.rows, reader.rows - len(reader.seen), reader.blank, reader.left_out,
        [name for name in names if name not in (*chosen, target)],
    )  # fmt: skip


class _Reader:
    """Collects rows as text and turns them into numbers, a block at a time."""

    def __init__(
        self, path: Path, names: list[str], features: list[str], target: str, delimiter: str,
        asked: bool,
    ) -> None:  # fmt: skip
        self._path, self._names, self._delimiter, self._asked = path, names, delimiter, asked
        self._features, self._target = features, target
        self._columns = [names.index(name) for name in features]
        self._target_column = names.index(target)
        self._block: list[list[str]] = []
        self._block_lines: list[int] = []
        self.rows = 0
        self.seen: set[int] = set()  # hashes of rows
        self.values: list[np.ndarray] = []
        self.outcomes: list[str] = []
        self.lines: list[int] = []
        self.blank: list[int] = []
        self.left_out: list[tuple[int, list[str]]] = []

    def take(self, line: int, cells: list[str]) -> None:
        """Take one record of the file."""
        if _is_blank(cells):
            self.blank.append(line)
            return
        if len(cells) != len(self._names):
            raise TableError(self._wrong_width(line, cells))
        self.rows += 1
        self.seen.add(hash(tuple(cells)))
        self._block.append(cells)
        self._block_lines.append(line)
        if len(self._block) == _BLOCK:
            self.convert()

    def convert(self) -> None:
        """Turn the block's text into numbers; keep the rows in which nothing is missing."""
        columns = list(zip(*self._block, strict=True)) or [()] * len(self._names)
        values = np.empty((len(self._block), len(self._columns)))
        for position, column in enumerate(self._columns):
            try:
                values[:, position] = read_numbers(columns[column])
            except CellError as error:
                raise TableError(self._bad_cell(self._features[position], columns, error)) from None
        outcomes = [cell.strip() for cell in columns[self._target_column]]
        missing = np.isnan(values)
        no_outcome = np.array([is_missing(cell) for cell in outcomes], dtype=bool)
        whole = ~(missing.any(axis=1) | no_outcome)
        for row in np.flatnonzero(~whole):
            absent = [self._features[position] for position in np.flatnonzero(missing[row])]
            absent += [self._target] if no_outcome[row] else []
            self.left_out.append((self._block_lines[row], absent))
        self.values.append(values[whole])
        kept = np.flatnonzero(whole).tolist()
        self.outcomes += [outcomes[row] for row in kept]
        self.lines += [self._block_lines[row] for row in kept]
        self._block, self._block_lines = [], []

    def _wrong_width(self, line: int, cells: list[str]) -> str:
        found = f"{len(cells)} cell{'s' if len(cells) > 1 else ''}"
        message = (
            f"{self._path}, line {line}: {found} where the header has {len(self._names)} "
            f"({listed(self._names)}): {_shown(self._delimiter.join(cells))}. "
        )
        if len(cells) > len(self._names):
            return message + (
                f"Put a cell that holds a {_shown(self._delimiter)} between double quotes, or "
                f"delete the surplus."
            )
        return message + "Complete the line (an empty cell is a missing value) or delete it."

    def _bad_cell(self, name: str, columns: list[tuple[str, ...]], error: CellError) -> str:
        line = self._block_lines[error.index]
        where = f"{self._path}, line {line}, column {name}: {_shown(error.cell.strip())}"
        column_of_text = not any(map(is_number, columns[self._names.index(name)]))
        if not (error.is_text and column_of_text):
            return f"{where} {error.reason}{more_marked(columns[self._names.index(name)])}"
        others = [
            other
            for other, column in zip(self._features, self._columns, strict=True)
            if any(map(is_number, columns[column]))
        ]
        if self._asked or not others:
            remedy = f"Code {name} as numbers, or leave it out."
        else:
            remedy = f"Leave {name} out with {_features(others)}, or code it as numbers."
        return f"{where} is not a number, nor is any other cell of the column. {remedy}"


def more_marked(cells: Sequence[str]) -> str:
    """Return a sentence that says so if several cells are numbers with marks, else nothing."""
    marked = (cell for cell in cells if not is_number(cell) and marked_number(cell))
    return " The column has more such cells." if len(list(itertools.islice(marked, 2))) > 1 else ""


def _features(names: list[str]) -> str:
    """Return the option that asks for these columns, as a shell takes it."""
    if len(names) > MOST_NAMES:
        return f"--features and the names of the others ({listed(names)})"
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(names)
    return f"--features {shlex.quote(line.getvalue())}"


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TableError(f"{path} cannot be read: {error.strerror}.") from None


def _check_text(path: Path, data: bytes) -> None:
    """Raise TableError unless the bytes are text in UTF-8, and not blank."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise TableError(
            f"{path}, line 1: the file is in UTF-16 (it begins with that byte order mark). Save it "
            f"as UTF-8: Excel calls that 'CSV UTF-8', and iconv -f UTF-16 -t UTF-8 does it too."
        )
    nul = data.find(b"\0")
    if nul >= 0:
        raise TableError(
            f"{path}, line {_line_at(data, nul)}: there is a NUL byte, which no text file has. The "
            f"file is damaged, or not in UTF-8."
        )
    try:
        blank = not data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise TableError(
            f"{path}, line {_line_at(error.object, error.start)}: the byte "
            f"0x{error.object[error.start]:02x} is "
            f"not UTF-8. Save the file as UTF-8 (it may be in Windows-1252 or Latin-1)."
        ) from None
    if blank:
        raise TableError(f"{path}: the file is empty. A header line and rows were expected.")


def _line_at(data: bytes, position: int) -> int:
    before = data[:position]
    return 1 + before.count(b"\n") + before.count(b"\r") - before.count(b"\r\n")


def _records(path: Path, data: bytes, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the line at which each record begins, and its cells; blank lines before the header
    are not told.
    """
    spaces = delimiter != " "  # a cell may be quoted after a space: 1, "2"
    lines = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig", newline="")
    reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=spaces)
    started = False
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise TableError(f"{path}, {_explain(str(error), line, reader.line_num)}") from None
        if cells is None:
            return
        started = started or not _is_blank(cells)
        if started:
            yield line, cells


def _explain(message: str, begin: int, end: int) -> str:
    """Return what a complaint of the csv module about lines `begin` to `end` means."""
    if "unexpected end of data" in message:
        return f"line {begin}: a double quote is opened here and never closed. Close or delete it."
    if "field larger" in message:
        return (
            f"line {begin}: a cell has more than {csv.field_size_limit():,} characters. Is a "
            f"double quote opened here and not closed?"
        )
    if "expected after" in message:
        since = "" if begin == end else f" (the row begins at line {begin})"
        return (
            f"line {end}{since}: text follows a closing double quote. Put the whole cell between "
            f"quotes, and double a quote that belongs to it."
        )
    return f"line {end}: {message}."


def _is_blank(cells: list[str]) -> bool:
    return not cells or (len(cells) == 1 and not cells[0].strip())


def _check_header(path: Path, line: int, names: list[str], target: str, delimiter: str) -> None:
    where = f"{path}, line {line}"
    if all(is_number(name) for name in names):
        raise TableError(
            f"{where}: the header holds numbers ({listed(names)}) where column names were "
            f"expected. Add a first line that names the columns."
        )
    if target not in names:
        raise TableError(_no_column(where, target, names, delimiter))
    if "" in names:
        raise TableError(
            f"{where}: column {names.index('') + 1} has no name. Name it, or delete the column (a "
            f"table's row numbers may have been saved as a column, or a line end with a delimiter)."
        )
    twice = [name for index, name in enumerate(names) if name in names[:index]]
    if twice:
        raise TableError(
            f"{where}: the column name {_shown(twice[0])} occurs {names.count(twice[0])} times. "
            f"Give each column a name of its own."
        )


def _no_column(where: str, name: str, names: list[str], delimiter: str) -> str:
    message = f"{where}: there is no column {_shown(name)}; the columns are {listed(names)}."
    joined = delimiter.join(names)
    for other, word in ((",", "','"), (";", "';'"), ("\t", "tab"), ("|", "'|'")):
        if other != delimiter and name in (part.strip(' "') for part in joined.split(other)):
            return f"{message} The cells seem to be separated otherwise: try --delimiter {word}."
    close = difflib.get_close_matches(name.lower(), [other.lower() for other in names], 1)
    same = [other for other in names if close and other.lower() == close[0]]
    return f"{message} Did you mean {_shown(same[0])}?" if same else message


def _choose(path: Path, names: list[str], target: str, features: list[str] | None) -> list[str]:
    """Return the features to use, checked."""
    if features is None:
        features = [name for name in names if name != target]
        if not features:
            raise TableError(
                f"{path}: the target {target} is the only column; a model needs a feature."
            )
    for index, name in enumerate(features):
        if name not in names:
            raise TableError(_no_column(f"{path}, --features", name, names, ","))
        if name == target:
            raise TableError(f"--features holds the target {name}: leave it out.")
        if name in features[:index]:
            raise TableError(f"--features names {name} twice.")
    return features


def _shown(text: str) -> str:
    """Return `text` quoted, and cut if it is long."""
    return repr(text if len(text) <= 60 else text[:57] + "...")


def listed(names: list[str], most: int = MOST_NAMES) -> str:
    """Return names in words: the first ones, and how many more there are."""
    shown = [name if len(name) <= 40 else name[:37] + "..." for name in names[:most]]
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(shown) + more
