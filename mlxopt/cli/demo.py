"""`mlxopt demo`: the two classic regressions by every method, beside NumPy."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import mlx.core as mx
import numpy as np
import typer

from mlxopt import losses, plots
from mlxopt._minimize import minimize
from mlxopt._result import History, Result
from mlxopt._status import Status
from mlxopt.cli._console import check_picture, noted, print_notes, save, stderr, stdout
from mlxopt.optimizers import LBFGS, SGD, Momentum, Newton, Optimizer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

STEPS = 1200  # of the first-order rules
CLOSED_FORM, REFERENCE = "closed form", "reference model"


@dataclasses.dataclass(frozen=True)
class Problem:
    """One regression: its data, what is minimized, and the answer it is measured against."""

    name: str
    X: np.ndarray  # (n, p) float32
    y: np.ndarray  # (n,) float32
    loss: Callable[..., mx.array]  # (params, X, y) -> mean loss
    mean: Callable[[np.ndarray], np.ndarray]  # of y, given X @ params
    learning_rate: float
    truth: np.ndarray  # (p,) float64: the coefficients that the data were drawn with
    optimum: np.ndarray  # (p,) float64: the loss's minimizer, by NumPy
    lowest: float  # the loss there


@dataclasses.dataclass(frozen=True)
class Row:
    """One method's run."""

    method: str
    seconds: float
    params: np.ndarray  # (p,) float64
    steps: int | None = None
    history: History | None = None


def demo(
    out: Annotated[
        Path, typer.Option(metavar="PICTURE", help="Where to save the picture of the loss curves.")
    ] = Path("mlxopt-demo.png"),
    quick: Annotated[
        bool, typer.Option("--quick", help="Smaller tables: 1,000 × 20 and 500 × 20.")
    ] = False,
    seed: Annotated[int, typer.Option(metavar="NUMBER", min=0, help="Of the generated data.")] = 0,
) -> None:
    """Run two classic regressions by every method, beside NumPy.

    Linear (10,000 × 100, unit noise) and logistic (1,000 × 100). Prints a table for each and saves
    one picture of the loss curves.
    """
    check_picture(out)
    shapes = ((1000, 20), (500, 20)) if quick else ((10_000, 100), (1000, 100))
    notes: list[str] = []
    with _progress() as progress, noted(notes):
        task = progress.add_task("", total=None)

        def show(text: str) -> None:
            progress.update(task, description=text)

        show("drawing data")
        problems = linear_problem(*shapes[0], seed), logistic_problem(*shapes[1], seed)
        began = time.perf_counter()
        _run_all(problems, lambda method: show(f"first run: {method}"))
        first = time.perf_counter() - began
        parts = _run_all(problems, lambda method: show(f"timed run: {method}"))
        show("saving the picture")
        _draw(parts, out)

    console = stdout()
    _print_linear(console, *parts[0])
    _print_logistic(console, *parts[1])
    console.print(
        f"\nA time is that of one whole call from zeros in float32, the second of two: in the "
        f"first ({first:.1f} s for all methods) MLX compiles its kernels. The closed form and the "
        f"reference model are those of mlxopt.models: in float64, with standard errors."
    )
    print_notes(console, notes)
    console.print(f"Loss curves: {out}", markup=False)


def linear_problem(rows: int, columns: int, seed: int) -> Problem:
    """Return a linear regression: standard normal features and coefficients, unit noise."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((rows, columns)).astype(np.float32)
    truth = rng.standard_normal(columns)
    y = (X @ truth + rng.standard_normal(rows)).astype(np.float32)
    wide, target = X.astype(np.float64), y.astype(np.float64)
    optimum = np.linalg.lstsq(wide, target)[0]
    lowest = 0.5 * np.mean((wide @ optimum - target) ** 2)

    def loss(params: mx.array, X: mx.array, y: mx.array) -> mx.array:
        return mx.mean(losses.squared_error(X @ params, y))

    return Problem("linear", X, y, loss, lambda z: z, 0.01, truth, optimum, float(lowest))


def logistic_problem(rows: int, columns: int, seed: int) -> Problem:
    """Return a logistic regression whose classes overlap: the true logits have a spread of 2."""
    rng = np.random.default_rng([seed, 1])
    X = rng.standard_normal((rows, columns)).astype(np.float32)
    truth = rng.standard_normal(columns)
    truth *= 2.0 / np.linalg.norm(truth)
    y = (rng.random(rows) < _sigmoid(X @ truth)).astype(np.float32)
    wide, target = X.astype(np.float64), y.astype(np.float64)
    optimum, _ = numpy_newton(wide, target)
    logits = wide @ optimum
    lowest = np.mean(np.logaddexp(0.0, logits) - target * logits)

    def loss(params: mx.array, X: mx.array, y: mx.array) -> mx.array:
        return mx.mean(losses.logistic(X @ params, y))

    return Problem("logistic", X, y, loss, _sigmoid, 1.0, truth, optimum, float(lowest))


def numpy_descent(problem: Problem, steps: int) -> np.ndarray:
    """Return the parameters after gradient descent as one writes it in NumPy."""
    X, y = problem.X, problem.y
    params = np.zeros(X.shape[1], dtype=X.dtype)
    for _ in range(steps):
        params -= problem.learning_rate * (X.T @ (problem.mean(X @ params) - y) / len(y))
    return params


def numpy_newton(X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the logistic regression's coefficients, by full Newton steps, and their number."""
    params = np.zeros(X.shape[1], dtype=X.dtype)
    tol = 100 * np.finfo(X.dtype).eps
    for step in range(100):
        p = _sigmoid(X @ params)
        gradient = X.T @ (p - y) / len(y)
        if np.abs(gradient).max() <= tol:
            return params, step
        params -= np.linalg.solve((X.T * (p * (1 - p))) @ X / len(y), gradient)
    return params, 100


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * z))


def _optimizers(problem: Problem) -> Iterator[tuple[str, Optimizer[Any]]]:
    yield "SGD", SGD(problem.learning_rate)
    yield "Momentum", Momentum(problem.learning_rate)
    yield "Newton", Newton()
    yield "L-BFGS", LBFGS()


def _minimize(problem: Problem, optimizer: Optimizer[Any], max_steps: int) -> Result:
    first_order = isinstance(optimizer, (SGD, Momentum))
    result = minimize(
        problem.loss, mx.zeros(problem.X.shape[1]), optimizer, problem.X, problem.y,
        tol=0 if first_order else None, max_steps=max_steps, progress=False,
    )  # fmt: skip
    if result.status is Status.INTERRUPTED:  # a run hands its last point over; a command ends
        raise KeyboardInterrupt
    return result


def _minimize_row(problem: Problem, method: str, optimizer: Optimizer[Any]) -> Row:
    began = time.perf_counter()
    result = _minimize(problem, optimizer, STEPS)
    seconds = time.perf_counter() - began
    return Row(method, seconds, np.array(result.params, np.float64), result.steps, result.history)


def _timed_row(method: str, call: Callable[[], Any], steps: int | None = None) -> Row:
    """Return the row of a call that gives the parameters, or the parameters and the steps."""
    began = time.perf_counter()
    answer = call()
    seconds = time.perf_counter() - began
    if isinstance(answer, tuple):
        answer, steps = answer
    return Row(method, seconds, np.asarray(answer, dtype=np.float64), steps)


def _reference(problem: Problem) -> np.ndarray:
    """Return the coefficients by the model that mlxopt ships for the problem."""
    from mlxopt import models

    linear = problem.name == "linear"
    model = (models.LinearRegression if linear else models.LogisticRegression)(fit_intercept=False)
    return model.fit(problem.X, problem.y).coef_


def _runs(problem: Problem) -> dict[str, Callable[[], Row]]:
    """Return every method by name, in the order of the table's rows."""
    X, y = problem.X, problem.y
    calls: dict[str, Callable[[], Any]]
    if problem.name == "linear":
        calls = {
            CLOSED_FORM: lambda: _reference(problem),
            "NumPy lstsq": lambda: np.linalg.lstsq(X, y)[0],
        }
    else:
        calls = {
            REFERENCE: lambda: _reference(problem),
            "NumPy Newton": lambda: numpy_newton(X, y),
        }
    calls["NumPy SGD"] = lambda: (numpy_descent(problem, STEPS), STEPS)
    ours = {
        method: lambda method=method, optimizer=optimizer: _minimize_row(problem, method, optimizer)
        for method, optimizer in _optimizers(problem)
    }
    return ours | {
        method: lambda method=method, call=call: _timed_row(method, call)
        for method, call in calls.items()
    }


def _run_all(
    problems: Iterable[Problem], show: Callable[[str], None]
) -> list[tuple[Problem, list[Row]]]:
    """Return each problem with the rows of its table, and tell which method is running."""
    parts: list[tuple[Problem, list[Row]]] = []
    for problem in problems:
        rows = []
        for method, run in _runs(problem).items():
            show(f"{problem.name} regression, {method}")
            rows.append(run())
        parts.append((problem, rows))
    return parts


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a.ravel() - b.ravel()))


def _print_linear(console: Console, problem: Problem, rows: list[Row]) -> None:
    """Print the linear problem's table: how far each method ends from the true coefficients."""
    closed = next(row for row in rows if row.method == CLOSED_FORM)
    expected = _distance(closed.params, problem.truth)
    console.print(_heading(problem, "noise of variance 1"))
    table = _table(["‖w − w*‖", "vs closed form"])
    errors = []
    for row in rows:
        errors.append(_distance(row.params, problem.truth))
        table.add_row(*_cells(row), f"{errors[-1]:.6f}", f"{errors[-1] / expected - 1:+z.3%}")
    console.print(table)
    worst = max(abs(error / expected - 1) for error in errors)
    verdict = "Every method ends" if worst <= 0.01 else "NOT every method ends"
    console.print(
        f"w* are the coefficients that the data were drawn with. {verdict} within 1 % of the "
        f"closed form's distance from them."
    )


def _print_logistic(console: Console, problem: Problem, rows: list[Row]) -> None:
    """Print the table of the logistic problem: accuracy, and the distance from the optimum."""
    console.print(_heading(problem, "overlapping classes"))
    table = _table(["accuracy", "‖w − ŵ‖"])
    for row in rows:
        right = (problem.X @ row.params.ravel() > 0) == (problem.y > 0.5)
        table.add_row(
            *_cells(row), f"{right.mean():.1%}", f"{_distance(row.params, problem.optimum):.1e}"
        )
    console.print(table)
    console.print(
        f"ŵ minimizes the loss (Newton in NumPy's float64; ‖ŵ‖ = "
        f"{np.linalg.norm(problem.optimum):.2f}). Accuracy: the share of these rows classified "
        f"right."
    )


def _heading(problem: Problem, remark: str) -> str:
    rows, columns = problem.X.shape
    return (
        f"\n{problem.name.capitalize()} regression, {rows:,} × {columns}, {remark}\n"
        f"SGD and Momentum: {STEPS:,} steps at {problem.learning_rate:g}"
    )


def _table(measures: list[str]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("method", no_wrap=True)
    for name in ("time", "steps", "steps/s", *measures):
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _cells(row: Row) -> list[str]:
    time_text = f"{row.seconds:.2f} s" if row.seconds >= 1 else f"{1000 * row.seconds:.1f} ms"
    if row.steps is None:
        return [row.method, time_text, "", ""]
    return [row.method, time_text, f"{row.steps:,}", f"{row.steps / row.seconds:,.0f}"]


def _draw(parts: list[tuple[Problem, list[Row]]], out: Path) -> None:
    """Save one picture: for each problem, the loss above its minimum against the steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained")
    panels = figure.subplots(1, len(parts))
    for ax, (problem, rows) in zip(panels, parts, strict=True):
        curves = {row.method: row.history for row in rows if row.history is not None}
        floor = 4 * float(np.finfo(np.float32).eps) * problem.lowest
        plots.loss_curves(curves, lowest=problem.lowest, floor=floor, ax=ax)
        count, width = problem.X.shape
        ax.set_title(f"{problem.name.capitalize()} regression, {count:,} × {width}")
    # Above both panels, where it covers no curve.
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    save(figure, out)


def _progress() -> Progress:
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = stderr()
    return Progress(
        SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(),
        console=console, transient=True, disable=not console.is_terminal,
    )  # fmt: skip
