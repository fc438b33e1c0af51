"""`mlxopt demo`: the two classic regressions by every method, beside NumPy."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import mlx.core as mx
import numpy as np
from typer import Option

from mlxopt import losses, plots
from mlxopt._minimize import minimize
from mlxopt._result import History
from mlxopt._status import Status
from mlxopt.cli._console import check_picture, noted, print_notes, save, stderr, stdout
from mlxopt.optimizers import LBFGS, SGD, Momentum, Newton, Optimizer

if TYPE_CHECKING:
    from rich.console import Console

STEPS = 1200  # of the first-order rules
CLOSED_FORM = "closed form"


@dataclasses.dataclass(frozen=True)
class Problem:
    """A regression: its data, its loss, and its solution."""

    name: str
    X: np.ndarray  # (n, p) float32
    y: np.ndarray  # (n,) float32
    loss: Callable[..., mx.array]  # (params, X, y) -> mean loss
    mean: Callable[[np.ndarray], np.ndarray]  # of y, given X @ params
    learning_rate: float
    truth: np.ndarray  # (p,) float64: the coefficients that generated the data
    optimum: np.ndarray  # (p,) float64: the loss's minimizer, by NumPy
    lowest: float  # the loss there


class Answer(NamedTuple):
    """The parameters that a method found, and how."""

    params: Any  # (p,)
    steps: int | None = None
    history: History | None = None
    method: str = ""
    seconds: float = 0.0


Part = tuple[Problem, list[Answer]]  # a row for each method


def demo(
    out: Annotated[
        Path, Option(metavar="PICTURE", help="Where to save the picture of the loss curves.")
    ] = Path("mlxopt-demo.png"),
    quick: Annotated[bool, Option("--quick", help="Tables of 1,000 × 20 and 500 × 20.")] = False,
    seed: Annotated[int, Option(metavar="NUMBER", min=0, help="Of the generated data.")] = 0,
) -> None:
    """Run two classic regressions by every method, beside NumPy.

    Linear (10,000 × 100, unit noise) and logistic (1,000 × 100). Prints a table for each and saves
    one picture of the loss curves.
    """
    check_picture(out)
    shapes = ((1000, 20), (500, 20)) if quick else ((10_000, 100), (1000, 100))
    notes: list[str] = []
    with stderr().status("drawing data") as status, noted(notes):
        problems = linear_problem(*shapes[0], seed), logistic_problem(*shapes[1], seed)
        began = time.perf_counter()
        _run_all(problems, lambda method: status.update(f"first run: {method}"))
        first = time.perf_counter() - began
        parts = _run_all(problems, lambda method: status.update(f"timed run: {method}"))
        status.update("saving the picture")
        _draw(parts, out)

    console = stdout()
    _print_linear(console, *parts[0])
    _print_logistic(console, *parts[1])
    console.print(
        f"\nA time is that of the second of two calls from zeros in float32; in the first "
        f"({first:.1f} s for all methods) MLX compiles its kernels. The closed form and the "
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
    """Return a logistic regression with overlapping classes: true logits of deviation 2."""
    rng = np.random.default_rng([seed, 1])
    X = rng.standard_normal((rows, columns)).astype(np.float32)
    truth = rng.standard_normal(columns)
    truth *= 2.0 / np.linalg.norm(truth)
    y = (rng.random(rows) < _sigmoid(X @ truth)).astype(np.float32)
    wide, target = X.astype(np.float64), y.astype(np.float64)
    optimum = numpy_newton(wide, target).params
    logits = wide @ optimum
    lowest = np.mean(np.logaddexp(0.0, logits) - target * logits)

    def loss(params: mx.array, X: mx.array, y: mx.array) -> mx.array:
        return mx.mean(losses.logistic(X @ params, y))

    return Problem("logistic", X, y, loss, _sigmoid, 1.0, truth, optimum, float(lowest))


def numpy_descent(problem: Problem, steps: int) -> np.ndarray:
    """Return the parameters after gradient descent in plain NumPy."""
    X, y = problem.X, problem.y
    params = np.zeros(X.shape[1], dtype=X.dtype)
    for _ in range(steps):
        params -= problem.learning_rate * (X.T @ (problem.mean(X @ params) - y) / len(y))
    return params


def numpy_newton(X: np.ndarray, y: np.ndarray) -> Answer:
    """Return the logistic regression's coefficients by full Newton steps."""
    params = np.zeros(X.shape[1], dtype=X.dtype)
    tol = 100 * np.finfo(X.dtype).eps
    for step in range(100):
        p = _sigmoid(X @ params)
        gradient = X.T @ (p - y) / len(y)
        if np.abs(gradient).max() <= tol:
            return Answer(params, step)
        params -= np.linalg.solve((X.T * (p * (1 - p))) @ X / len(y), gradient)
    return Answer(params, 100)


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * z))


def _methods(problem: Problem) -> dict[str, Callable[[], Answer]]:
    """Return every method by name, in the order of the table."""
    from mlxopt import models

    X, y, rate = problem.X, problem.y, problem.learning_rate

    def ours(optimizer: Optimizer[Any], tol: float | None = None) -> Answer:
        start, options = mx.zeros(X.shape[1]), {"max_steps": STEPS, "progress": False}
        result = minimize(problem.loss, start, optimizer, X, y, tol=tol, **options)
        if result.status is Status.INTERRUPTED:  # a command ends where `minimize` returns
            raise KeyboardInterrupt
        return Answer(result.params, result.steps, result.history)

    if problem.name == "linear":
        model = models.LinearRegression(fit_intercept=False)
        exact = {
            CLOSED_FORM: lambda: Answer(model.fit(X, y).coef_),
            "NumPy lstsq": lambda: Answer(np.linalg.lstsq(X, y)[0]),
        }
    else:
        model = models.LogisticRegression(fit_intercept=False)
        exact = {
            "reference model": lambda: Answer(model.fit(X, y).coef_),
            "NumPy Newton": lambda: numpy_newton(X, y),
        }
    return {
        "SGD": lambda: ours(SGD(rate), tol=0),
        "Momentum": lambda: ours(Momentum(rate), tol=0),
        "Newton": lambda: ours(Newton()),
        "L-BFGS": lambda: ours(LBFGS()),
        **exact,
        "NumPy SGD": lambda: Answer(numpy_descent(problem, STEPS), STEPS),
    }


def _run_all(problems: Iterable[Problem], show: Callable[[str], None]) -> list[Part]:
    """Run every method on every problem; `show` is called with each method's name."""
    parts: list[Part] = []
    for problem in problems:
        rows = []
        for method, run in _methods(problem).items():
            show(f"{problem.name} regression, {method}")
            began = time.perf_counter()
            answer = run()
            seconds = time.perf_counter() - began
            params = np.array(answer.params, dtype=np.float64).ravel()
            rows.append(answer._replace(method=method, seconds=seconds, params=params))
        parts.append((problem, rows))
    return parts


def _print_linear(console: Console, problem: Problem, rows: list[Answer]) -> None:
    errors = {row.method: float(np.linalg.norm(row.params - problem.truth)) for row in rows}
    excess = [error / errors[CLOSED_FORM] - 1 for error in errors.values()]
    columns = {
        "‖w − w*‖": [f"{error:.6f}" for error in errors.values()],
        "vs closed form": [f"{ratio:+z.3%}" for ratio in excess],
    }
    _print_table(console, problem, rows, "noise of variance 1", columns)
    verdict = "Every method ends" if max(map(abs, excess)) <= 0.01 else "NOT every method ends"
    console.print(
        f"w* are the coefficients that the data were drawn with. {verdict} within 1 % of the "
        f"closed form's distance from them."
    )


def _print_logistic(console: Console, problem: Problem, rows: list[Answer]) -> None:
    right = [np.mean((problem.X @ row.params > 0) == (problem.y > 0.5)) for row in rows]
    errors = [np.linalg.norm(row.params - problem.optimum) for row in rows]
    columns = {
        "accuracy": [f"{share:.1%}" for share in right],
        "‖w − ŵ‖": [f"{error:.1e}" for error in errors],
    }
    _print_table(console, problem, rows, "overlapping classes", columns)
    size = f"{np.linalg.norm(problem.optimum):.2f}"
    console.print(
        f"ŵ minimizes the loss (Newton in NumPy's float64; ‖ŵ‖ = {size}). Accuracy: the share of "
        f"these rows classified right."
    )


def _print_table(
    console: Console,
    problem: Problem,
    rows: list[Answer],
    remark: str,
    columns: dict[str, list[str]],
) -> None:
    from rich import box
    from rich.table import Table

    count, width = problem.X.shape
    console.print(
        f"\n{problem.name.capitalize()} regression, {count:,} × {width}, {remark}\n"
        f"SGD and Momentum: {STEPS:,} steps at {problem.learning_rate:g}"
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("method", no_wrap=True)
    for name in ("time", "steps", "steps/s", *columns):
        table.add_column(name, justify="right", no_wrap=True)
    for row, *cells in zip(rows, *columns.values(), strict=True):
        seconds, steps = row.seconds, row.steps
        time_text = f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"
        counts = ["", ""] if steps is None else [f"{steps:,}", f"{steps / seconds:,.0f}"]
        table.add_row(row.method, time_text, *counts, *cells)
    console.print(table)


def _draw(parts: list[Part], out: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained")
    panels = figure.subplots(1, len(parts))
    for ax, (problem, rows) in zip(panels, parts, strict=True):
        curves = {row.method: row.history for row in rows if row.history is not None}
        floor = 4 * float(np.finfo(np.float32).eps) * problem.lowest
        plots.loss_curves(curves, lowest=problem.lowest, floor=floor, ax=ax)
        count, width = problem.X.shape
        ax.set_title(f"{problem.name.capitalize()} regression, {count:,} × {width}")
    # Above both panels, to cover no curve.
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    save(figure, out)
