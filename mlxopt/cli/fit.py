"""`mlxopt fit`: fit a reference model to a CSV file."""

from __future__ import annotations

import csv
import dataclasses
import enum
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
import typer
from typer import Argument, Option

from mlxopt import plots
from mlxopt._platform.files import replacing
from mlxopt._report import counted
from mlxopt._status import Status
from mlxopt.cli import _console
from mlxopt.cli._cells import CellError, is_number, marked_number, read_numbers
from mlxopt.cli._console import fail, noted, print_notes, save, stderr, stdout
from mlxopt.cli._table import Table, TableError, listed, more_marked, read_table, some

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

_SHOWN = 5  # examples of each kind in the report
_LABELS = 8  # labels named in a message


class ModelName(enum.StrEnum):
    linear = "linear"
    logistic = "logistic"


class Outcome(NamedTuple):
    """The target as the model takes it."""

    kind: ModelName
    values: np.ndarray  # (rows,) float64; for labels int64 where they are whole, or str
    names: list[str]  # of the two labels, in the order of the model's classes; else empty
    remark: str  # how it was read, for the report


class Frame:
    """A matrix with named columns: the part of a data frame's interface that the models use."""

    def __init__(self, values: np.ndarray, columns: list[str]) -> None:
        self._values, self.columns, self.shape = values, columns, values.shape
        self.dtypes = [values.dtype] * len(columns)

    def __getitem__(self, rows: slice) -> Frame:
        return Frame(self._values[rows], self.columns)

    def cast(self, dtype: type) -> Frame:
        return self  # its values are floats already

    def to_numpy(self) -> np.ndarray:
        return self._values


def fit(
    file: Annotated[Path, Argument(metavar="FILE.csv", help="A table in UTF-8 with a header.")],
    target: Annotated[str, Option(metavar="COLUMN", help="The column to predict.")],
    model: Annotated[
        ModelName | None,
        Option(help="Default: logistic if the target has two values, else linear."),
    ] = None,
    features: Annotated[
        str | None, Option(metavar="A,B,...", help="Columns to predict from. Default: all others.")
    ] = None,
    delimiter: Annotated[
        str, Option(metavar="CHARACTER", help="What separates two cells, or 'tab'.")
    ] = ",",
    l2: Annotated[
        float, Option(min=0.0, help="Penalty: mean loss + ½ · l2 · ‖coefficients‖².")
    ] = 0.0,
    out: Annotated[
        Path | None, Option(metavar="MODEL.npz", help="Save the coefficients; np.load reads them.")
    ] = None,
    plot: Annotated[
        Path | None, Option(metavar="PICTURE", help="Save a picture of the fit.")
    ] = None,
) -> None:
    """Fit a linear or logistic regression to a CSV file.

    A row with a missing value (an empty cell, NA, N/A, NaN, NULL, None) is left out and counted;
    any other cell that is no number is an error that names its line.
    """
    _console.check_writable(out)
    if out is not None and out.suffix != ".npz":
        fail(f"{out}: a model's name must end in .npz.")
    _console.check_picture(plot)
    _console.check_distinct({"FILE.csv": file, "--out": out, "--plot": plot})
    with stderr().status("reading"):
        try:
            table = read_table(file, target, _split(features), _delimiter(delimiter))
            outcome = _understand(table, model)
        except TableError as error:
            fail(str(error))
    console = stdout()
    _print_reading(console, table, outcome)

    notes: list[str] = []
    with stderr().status("fitting"), noted(notes):
        estimator = _fitted(table, outcome, l2)
    summary = estimator.summary()
    typer.echo(f"\n{dataclasses.replace(summary, notes=[])}")
    # Most warnings are in the notes of the summary too; they name a parameter, here an option.
    notes = list(dict.fromkeys([*summary.notes, *notes]))
    print_notes(console, [note.replace("l2 > 0", "--l2") for note in notes])
    if out is not None:
        _save_model(estimator, table, out)
        console.print(f"Model: {out}", markup=False)
    if plot is not None:
        save(_draw(estimator, table, outcome), plot)
        console.print(f"Picture: {plot}", markup=False)


def _split(features: str | None) -> list[str] | None:
    """Return the names in a line of CSV."""
    if features is None:
        return None
    names = [name.strip() for name in next(csv.reader([features], skipinitialspace=True), [])]
    if not all(names) or not names:
        fail(f"--features {features!r} has an empty name; expected names like a,b,c.")
    return names


def _delimiter(text: str) -> str:
    character = {"tab": "\t", "\\t": "\t"}.get(text, text)
    if len(character) != 1 or character.isalnum() or character in "\"'\r\n.+-_":
        fail(f"--delimiter {text!r}; expected one character such as ',', ';' or '|', or tab.")
    return character


def _understand(table: Table, model: ModelName | None) -> Outcome:
    """Return the target as numbers or as two labels, with the model to fit."""
    counts = Counter(table.outcomes)
    if not any(map(is_number, counts)):
        return _labels(table, model, counts)
    try:
        values = read_numbers(table.outcomes)
    except CellError as error:
        raise TableError(f"{_cell(table, error.index)} {error.reason}") from None
    distinct, sizes = np.unique(values, return_counts=True)
    two = len(distinct) == 2
    kind = model or (ModelName.logistic if two else ModelName.linear)
    if kind is ModelName.linear:
        return Outcome(kind, values, [], "numbers: linear regression")
    if not two:
        where = f"{table.path}, column {table.target}"
        reason = f"a logistic model needs a target of two values; this one has {len(distinct)}"
        raise TableError(f"{where}: {reason}. Use --model linear, or code it as 0 and 1.")
    names = [repr(value).removesuffix(".0") for value in distinct.tolist()]
    if (distinct == np.rint(distinct)).all() and np.abs(distinct).max() < 2.0**53:
        values = values.astype(np.int64)  # so that the model prints 1, not 1.0
    return Outcome(kind, values, names, _two(names, sizes.tolist()))


def _labels(table: Table, model: ModelName | None, counts: Counter[str]) -> Outcome:
    """Return a target of text as two labels."""
    names, linear = sorted(counts), model is ModelName.linear
    reason = marked_number(table.outcomes[0])
    if reason and (linear or len(names) != 2):
        raise TableError(f"{_cell(table, 0)} {reason}{more_marked(table.outcomes)}")
    if linear:
        reason = "is not a number, nor is any other cell of the column. A linear model needs them."
        raise TableError(f"{_cell(table, 0)} {reason}")
    if len(names) != 2:
        shown = some([f"{name!r} ({counts[name]:,})" for name in names], _LABELS)
        reason = f"the target is text with {counted(len(names), 'distinct value')}, {shown}"
        where = f"{table.path}, column {table.target}"
        raise TableError(f"{where}: {reason}; a logistic model needs two.")
    remark = _two(names, [counts[name] for name in names])
    return Outcome(ModelName.logistic, np.array(table.outcomes), names, remark)


def _cell(table: Table, row: int) -> str:
    line, text = table.lines[row], table.outcomes[row]
    return f"{table.path}, line {line}, column {table.target}: {text!r}"


def _two(names: list[str], sizes: list[int]) -> str:
    rows = [f"{name} in {counted(size, 'row')}" for name, size in zip(names, sizes, strict=True)]
    return f"{' and '.join(rows)}: logistic regression, of the probability of {names[1]}"


def _print_reading(console: Console, table: Table, outcome: Outcome) -> None:
    from rich.table import Table as Grid
    from rich.text import Text

    grid = Grid.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")

    def line(label: str, text: str) -> None:
        grid.add_row(label, Text(text))

    mark = ", with a byte order mark" if table.byte_order_mark else ""
    line("file", f"{table.path} ({table.bytes:,} bytes{mark})")
    line("SHA-256", table.sha256[:16])
    line("rows", f"{table.rows_read:,} read, {len(table.outcomes):,} used")
    if table.left_out:
        examples = [f"line {n} ({listed(names, _SHOWN)})" for n, names in table.left_out]
        line("left out", f"{len(examples):,} with missing values: {some(examples, _SHOWN)}")
    if table.blank:
        lines = some(list(map(str, table.blank)), _SHOWN)
        line("skipped", f"{counted(len(table.blank), 'blank line')}: {lines}")
    if table.duplicates:
        verb = "rows repeat" if table.duplicates > 1 else "row repeats"
        line(
            "duplicates", f"{table.duplicates:,} {verb} an earlier row in every cell; all are kept"
        )
    line("target", f"{table.target}, {outcome.remark}")
    line("features", listed(table.features))
    if table.unused:
        line("not used", listed(table.unused))
    console.print(grid)


def _fitted(table: Table, outcome: Outcome, l2: float) -> Any:
    from mlxopt import models

    linear = outcome.kind is ModelName.linear
    estimator = (models.LinearRegression if linear else models.LogisticRegression)(l2=l2)
    try:
        estimator.fit(Frame(table.values, table.features), outcome.values)
    except ValueError as error:
        fail(f"{table.path}: {error}")
    if estimator.status_ is Status.INTERRUPTED:
        raise KeyboardInterrupt
    return estimator


def _draw(estimator: Any, table: Table, outcome: Outcome) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    X = Frame(table.values, table.features)
    if outcome.kind is ModelName.linear:
        fitted = estimator.predict(X)
        plots.fitted_values(outcome.values, fitted, ax=left)
        plots.residuals(outcome.values, fitted, ax=right)
        title = f"linear regression of {table.target}"
    else:
        labels = (outcome.values == estimator.classes_[1]).astype(float)
        probabilities = estimator.predict_proba(X)[:, 1]
        plots.calibration(labels, probabilities, ax=left)
        plots.separation(labels, probabilities, outcome.names, ax=right)
        title = f"logistic regression, the probability that {table.target} is {outcome.names[1]}"
    figure.suptitle(f"{table.path.name}: {title}")
    return figure


def _save_model(estimator: Any, table: Table, out: Path) -> None:
    """Write coefficients (features,), the intercept () and their errors for `np.load`."""
    names, target = table.features, table.target
    arrays: dict[str, Any] = {"feature_names": names, "target": target, "sha256": table.sha256}
    for suffix in ("", "_se", "_error"):
        arrays[f"coef{suffix}"] = np.ravel(getattr(estimator, f"coef{suffix}_"))
        arrays[f"intercept{suffix}"] = np.squeeze(getattr(estimator, f"intercept{suffix}_"))
    if hasattr(estimator, "classes_"):
        arrays["classes"] = estimator.classes_
    try:
        with replacing(out) as file:
            np.savez(file, **arrays)
    except OSError as error:
        fail(f"{out} cannot be written: {error.strerror or error}.")
