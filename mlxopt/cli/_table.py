"""A CSV file as numbers: every cell read exactly, or an error that names its line."""

from __future__ import annotations

import csv
import dataclasses
import difflib
import hashlib
import io
import itertools
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mlxopt._report import counted
from mlxopt.cli._cells import CellError, is_missing, is_number, marked_number, read_numbers

_BLOCK = 20_000  # rows converted at once: text takes ten times the memory of numbers
_MOST_NAMES = 12  # in a list of columns

Records = Iterator[tuple[int, list[str]]]  # each with the line at which it begins


class TableError(ValueError):
    """The file cannot be read as the requested table; the message gives the line and the reason."""


@dataclasses.dataclass
class Table:
    """The contents of a CSV file, and how it was read."""

    path: Path
    features: list[str]  # p names
    target: str  # name
    unused: list[str]  # names of the other columns
    sha256: str  # of the file's bytes, in hexadecimal
    bytes: int
    byte_order_mark: bool
    values: np.ndarray  # (rows, p) float64: the features of the complete rows
    outcomes: list[str] = dataclasses.field(default_factory=list)  # the target, stripped
    lines: list[int] = dataclasses.field(default_factory=list)  # on which the rows begin
    rows_read: int = 0
    duplicates: int = 0  # rows that repeat an earlier row in every cell
    blank: list[int] = dataclasses.field(default_factory=list)  # line numbers
    left_out: list[tuple[int, list[str]]] = dataclasses.field(default_factory=list)
    """Line numbers of incomplete rows, with the columns whose values are missing."""


def read_table(
    path: Path, target: str, features: list[str] | None = None, delimiter: str = ","
) -> Table:
    """Read the target and the features (None: all other columns) from a CSV file in UTF-8.

    A feature is a column of plain decimal numbers; nothing is guessed or converted. Rows with a
    missing value in a used column are left out, blank lines are skipped, and both are recorded.

    Raises:
        TableError: the file cannot be read, is not a well-formed table, lacks a column, or has a
            cell that is neither a number nor missing.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TableError(f"{path} cannot be read: {error.strerror}.") from None
    _check_text(path, data)
    records = _records(path, data, delimiter)
    header_line, header = next(records, (0, []))
    names = [name.strip() for name in header]
    _check_header(path, header_line, names, target, delimiter)
    chosen = _choose(path, names, target, features)
    unused = [name for name in names if name not in (*chosen, target)]
    sha256, marked = hashlib.sha256(data).hexdigest(), data.startswith(b"\xef\xbb\xbf")
    none = np.empty((0, len(chosen)))
    table = Table(path, chosen, target, unused, sha256, len(data), marked, none)
    rows, values = _rows(table, records, names, delimiter), [none]
    while block := list(itertools.islice(rows, _BLOCK)):
        values.append(_take(table, block, names, explicit=features is not None))
    if not table.rows_read:
        raise TableError(f"{path}: there are no rows below the header (line {header_line}).")
    if not table.lines:
        absent = Counter(name for _, names in table.left_out for name in names)
        counts = some([f"{name} in {count:,}" for name, count in absent.most_common()], 5)
        reason = f"none of the {table.rows_read:,} rows is complete; missing are {counts}"
        raise TableError(f"{path}: {reason}. Leave a column out with --features.")
    table.values = np.concatenate(values)
    return table


def _rows(table: Table, records: Records, names: list[str], delimiter: str) -> Records:
    """Yield the records that are not blank, checked for their width; count them in the table."""
    seen = set()
    for line, cells in records:
        if _is_blank(cells):
            table.blank.append(line)
            continue
        if len(cells) != len(names):
            remedy = "Complete the line (an empty cell is a missing value) or delete it."
            if len(cells) > len(names):
                remedy = f"Put a cell that holds a {_shown(delimiter)} between double quotes."
            raise TableError(
                f"{table.path}, line {line}: {counted(len(cells), 'cell')} where the header has "
                f"{len(names)} ({listed(names)}): {_shown(delimiter.join(cells))}. {remedy}"
            )
        row = hash(tuple(cells))
        table.rows_read += 1
        table.duplicates += row in seen
        seen.add(row)
        yield line, cells


def _take(
    table: Table, block: list[tuple[int, list[str]]], names: list[str], explicit: bool
) -> np.ndarray:
    """Return the features of the complete rows of a block, and record the rest in the table."""
    lines, rows = zip(*block, strict=True)
    columns = dict(zip(names, zip(*rows, strict=True), strict=True))
    values = np.empty((len(block), len(table.features)))
    for position, name in enumerate(table.features):
        try:
            values[:, position] = read_numbers(columns[name])
        except CellError as error:
            reason = _bad_cell(table, name, columns, error, explicit)
            where = f"{table.path}, line {lines[error.index]}, column {name}"
            raise TableError(f"{where}: {reason}") from None
    outcomes = [cell.strip() for cell in columns[table.target]]
    used = [*table.features, table.target]
    missing = np.column_stack([np.isnan(values), np.array([is_missing(cell) for cell in outcomes])])
    complete = missing.sum(axis=1) == 0
    for row in np.flatnonzero(~complete):
        table.left_out.append((lines[row], [used[i] for i in np.flatnonzero(missing[row])]))
    table.outcomes += itertools.compress(outcomes, complete)
    table.lines += itertools.compress(lines, complete)
    return values[complete]


def _bad_cell(
    table: Table, name: str, columns: dict[str, tuple[str, ...]], error: CellError, explicit: bool
) -> str:
    """Return the reason why a cell, or its whole column, is refused, and the remedy."""
    shown = _shown(error.cell.strip())
    if not error.is_text or any(map(is_number, columns[name])):
        return f"{shown} {error.reason}{more_marked(columns[name])}"
    others = [other for other in table.features if any(map(is_number, columns[other]))]
    remedy = f"Leave {name} out with {_features(others)}, or code it as numbers."
    if explicit or not others:
        remedy = f"Code {name} as numbers, or leave it out."
    return f"{shown} is not a number, nor is any other cell of the column. {remedy}"


def more_marked(cells: Sequence[str]) -> str:
    """Return a sentence for a message if several cells are numbers with marks, else ""."""
    marked = (cell for cell in cells if not is_number(cell) and marked_number(cell))
    return " The column has more such cells." if len(list(itertools.islice(marked, 2))) > 1 else ""


def _features(names: list[str]) -> str:
    """Return the option that selects these columns, quoted for a shell."""
    if len(names) > _MOST_NAMES:
        return f"--features and the names of the others ({listed(names)})"
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(names)
    return f"--features {shlex.quote(line.getvalue())}"


def _check_text(path: Path, data: bytes) -> None:
    """Raise TableError unless the bytes are UTF-8 text, and not blank."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise TableError(f"{path}, line 1: the file is in UTF-16. Save it as UTF-8.")
    nul = data.find(b"\0")
    if nul >= 0:
        where = f"{path}, line {_line_at(data, nul)}"
        raise TableError(f"{where}: there is a NUL byte. The file is damaged, or not in UTF-8.")
    try:
        blank = not data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        line, byte = _line_at(error.object, error.start), f"0x{error.object[error.start]:02x}"
        remedy = "Save the file as UTF-8 (it may be in Windows-1252)."
        raise TableError(f"{path}, line {line}: the byte {byte} is not UTF-8. {remedy}") from None
    if blank:
        raise TableError(f"{path}: the file is empty. A header line and rows were expected.")


def _line_at(data: bytes, position: int) -> int:
    before = data[:position]
    return 1 + before.count(b"\n") + before.count(b"\r") - before.count(b"\r\n")


def _records(path: Path, data: bytes, delimiter: str) -> Records:
    """Yield the records from the header on; blank lines before it are dropped."""
    spaces = delimiter != " "  # so that 1, "2" is a quoted cell
    lines = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig", newline="")
    reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=spaces)
    line, started = 1, False
    try:
        for cells in reader:
            started = started or not _is_blank(cells)
            if started:
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise TableError(f"{path}, {_explain(str(error), line, reader.line_num)}") from None


def _explain(message: str, begin: int, end: int) -> str:
    """Return the meaning of an error of the csv module in lines `begin` to `end`."""
    if "unexpected end of data" in message:
        return f"line {begin}: a double quote is opened here and never closed. Close or delete it."
    if "field larger" in message:
        size = f"more than {csv.field_size_limit():,} characters"
        return f"line {begin}: a cell has {size}. Is a double quote opened here and not closed?"
    if "expected after" in message:
        since = "" if begin == end else f" (the row begins at line {begin})"
        remedy = "Put the whole cell between quotes, and double a quote that belongs to it."
        return f"line {end}{since}: text follows a closing double quote. {remedy}"
    return f"line {end}: {message}."


def _is_blank(cells: list[str]) -> bool:
    return not cells or (len(cells) == 1 and not cells[0].strip())


def _check_header(path: Path, line: int, names: list[str], target: str, delimiter: str) -> None:
    where = f"{path}, line {line}"
    if all(is_number(name) for name in names):
        remedy = "Add a first line that names the columns."
        raise TableError(f"{where}: the header holds numbers ({listed(names)}). {remedy}")
    if target not in names:
        raise TableError(_no_column(where, target, names, delimiter))
    if "" in names:
        remedy = "Name it, or delete it (such as row numbers)."
        raise TableError(f"{where}: column {names.index('') + 1} has no name. {remedy}")
    name, times = Counter(names).most_common(1)[0]
    if times > 1:
        remedy = "Give each column a name of its own."
        raise TableError(f"{where}: the column name {_shown(name)} occurs {times} times. {remedy}")


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
    if features is None:
        features = [name for name in names if name != target]
    if not features:
        raise TableError(f"{path}: the target {target} is the only column; a model needs others.")
    for index, name in enumerate(features):
        if name not in names:
            raise TableError(_no_column(f"{path}, --features", name, names, ","))
        if name in (target, *features[:index]):
            what = f"holds the target {name}" if name == target else f"names {name} twice"
            raise TableError(f"--features {what}: leave it out.")
    return features


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


def listed(names: list[str], most: int = _MOST_NAMES) -> str:
    """Return the first names, and the number of the others, in words."""
    return some([name if len(name) <= 40 else name[:37] + "..." for name in names], most)


def some(texts: list[str], most: int) -> str:
    """Return the first texts, and the number of the others, in words."""
    more = f" and {len(texts) - most:,} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more
