"""A race: every optimizer on every problem, told in a table and in pictures.

The pictures and their measure are those of Dolan and Moré (2002), "Benchmarking optimization
software with performance profiles".
"""

from __future__ import annotations

import dataclasses
import textwrap
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import mlx.core as mx
import numpy as np

from mlxopt import plots
from mlxopt._checks import check_count, describe_type
from mlxopt._least_squares import least_squares
from mlxopt._minimize import minimize
from mlxopt._report import counted, table
from mlxopt._result import Info
from mlxopt._status import ConvergenceWarning, Status
from mlxopt.optimizers import GaussNewton, LevenbergMarquardt, Optimizer
from mlxopt.problems import Problem

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Entrant = Optimizer[Any] | Callable[[Problem], Optimizer[Any]]

_UNITS = {"evaluations": "evaluations", "seconds": "time"}
_NEEDS_RESIDUAL = (LevenbergMarquardt, GaussNewton)


class Run(NamedTuple):
    """One optimizer on one problem; arrays have an entry for each look at it."""

    problem: str  # its name
    optimizer: str  # its name in the race
    solved: bool  # whether it came to a known minimum
    status: Status  # why it ended; STOPPED where it was solved before its own end
    evaluations: int  # of the loss and its gradient, to the solution or the end
    seconds: float  # likewise, tracing and compiling included
    value: float  # the loss where it ended
    trace_evaluations: np.ndarray  # evaluations so far
    trace_seconds: np.ndarray  # seconds so far
    trace_value: np.ndarray  # the loss
    path: np.ndarray  # (looks, p), float64: the parameters


# Compared as objects: arrays do not answer == with yes or no.
@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Race:
    """What `race` returns; `repr` is a table of evaluations, a dash where it was not solved."""

    problems: tuple[Problem, ...]
    optimizers: tuple[str, ...]
    """Their names."""
    rows: tuple[Run, ...]
    """A run for each problem and each optimizer, in the order of the problems."""

    def run(self, problem: str, optimizer: str) -> Run:
        """Return the run of one optimizer on one problem, both by name."""
        for row in self.rows:
            if (row.problem, row.optimizer) == (problem, optimizer):
                return row
        raise KeyError(
            f"there is no run of {optimizer!r} on {problem!r}; the optimizers are "
            f"{', '.join(map(repr, self.optimizers))}."
        )

    def costs(self, by: str = "evaluations") -> dict[str, np.ndarray]:
        """Return, for each optimizer, what each problem took, float64, infinite if not solved.

        Args:
            by: "evaluations" or "seconds".
        """
        _check_unit(by)
        return {
            name: np.array(
                [
                    float(getattr(row, by)) if row.solved else np.inf
                    for row in self.rows
                    if row.optimizer == name
                ]
            )
            for name in self.optimizers
        }

    def solved(self) -> dict[str, int]:
        """Return how many problems each optimizer solved."""
        return {name: int(np.isfinite(costs).sum()) for name, costs in self.costs().items()}

    def plot(self, by: str = "evaluations", ax: Axes | None = None) -> Axes:
        """Draw the performance profile; return the matplotlib axes.

        Args:
            by: "evaluations" or "seconds".
            ax: where to draw; None makes a new figure.
        """
        return plots.performance_profile(self.costs(by), measure=_UNITS[by], ax=ax)

    def plot_losses(self, problem: str, by: str = "evaluations", ax: Axes | None = None) -> Axes:
        """Draw how far each optimizer's loss was above the lowest known; return the axes.

        Args:
            problem: its name.
            by: "evaluations" or "seconds".
            ax: where to draw; None makes a new figure.
        """
        _check_unit(by)
        known, runs = self._of(problem)
        curves = {row.optimizer: (getattr(row, f"trace_{by}"), row.trace_value) for row in runs}
        unit = "evaluations" if by == "evaluations" else "seconds"
        ax = plots.descent(curves, lowest=known.value, unit=unit, ax=ax)
        ax.set_title(problem)
        return ax

    def plot_paths(self, problem: str, ax: Axes | None = None) -> Axes:
        """Draw where each optimizer went, on contours of a loss of two parameters; return the axes.

        Args:
            problem: its name.
            ax: where to draw; None makes a new figure.
        """
        known, runs = self._of(problem)
        if known.size != 2:
            raise ValueError(
                f"{problem!r} has {known.size} parameters; a map shows two. plot_losses shows any."
            )
        paths = {row.optimizer: row.path for row in runs}
        minima = [minimum.point for minimum in known.minima if minimum.point is not None]
        view = known.view or _around(np.concatenate([*paths.values(), *np.array([minima])]))
        across, up = np.linspace(*view[:2], 121), np.linspace(*view[2:], 101)
        with mx.stream(mx.cpu):
            grid = np.stack(np.meshgrid(across, up), axis=-1).reshape(-1, 2)
            points = mx.array(grid, dtype=mx.float64)
            values = np.array(_on_grid(known, points)).reshape(len(up), len(across))
        ax = plots.trajectories(across, up, values, paths, np.array(minima), ax=ax)
        ax.set_title(problem)
        return ax

    def _of(self, problem: str) -> tuple[Problem, list[Run]]:
        for known in self.problems:
            if known.name == problem:
                return known, [row for row in self.rows if row.problem == problem]
        names = ", ".join(repr(known.name) for known in self.problems)
        raise KeyError(f"{problem!r} is not in this race; these are: {names}.")

    def __repr__(self) -> str:
        costs = np.stack(list(self.costs().values()))  # (optimizers, problems)
        seconds = np.stack(list(self.costs("seconds").values()))
        solved = np.isfinite(costs)
        fewest = solved & (costs == costs.min(axis=0))
        cells = np.where(solved, [[f"{cost:,.0f}" for cost in row] for row in costs], "-")
        rows = [
            (),
            *((known.name, *column) for known, column in zip(self.problems, cells.T, strict=True)),
            (),
            ("solved", *map(str, solved.sum(axis=1))),
            ("with the fewest", *map(str, fewest.sum(axis=1))),
            ("seconds, of the solved", *(f"{sum(t[np.isfinite(t)]):.2f}" for t in seconds)),
        ]
        header = ["", *(f"{name:>6}" for name in self.optimizers)]
        optimizers = counted(len(self.optimizers), "optimizer")
        title = f"Race of {optimizers} on {counted(len(self.problems), 'problem')}: evaluations"
        return "\n".join([title, textwrap.indent(table(header, rows), "  ")])


def race(
    problems: Problem | Iterable[Problem],
    optimizers: Mapping[str, Entrant] | Sequence[Optimizer[Any]],
    *,
    max_steps: int = 1000,
    relative: float = 1e-6,
    dtype: mx.Dtype = mx.float64,
) -> Race:
    """Run every optimizer on every problem, from the problem's start to a known minimum.

    A run counts as solved as soon as its loss is that of a known minimum (`Problem.solved_by`), and
    stops there; what it takes until then is its cost. So the tolerances of the methods play no
    part, but a method that ends elsewhere has not solved the problem. An evaluation is that of the
    loss with its gradient; a Hessian, a Jacobian or a product with one shows in the seconds alone.

    Args:
        problems: records of `mlxopt.problems`.
        optimizers: optimizers by the names to show, or a list of them. In place of an optimizer in
            a dict may stand a function of the problem that returns one, such as
            `lambda problem: mo.LBFGSB(*problem.bounds)`. `LevenbergMarquardt` and `GaussNewton`
            need problems with a residual.
        max_steps: steps at most in each run.
        relative: how near the loss must come: to the minimum's value, or, where that is zero,
            relative to the value at the start (at most 1).
        dtype: of the parameters.

    Returns:
        a `Race`: `repr` is the table, `rows` are the runs, `plot` draws the performance profile.

    Raises:
        TypeError, ValueError: an argument is not as described. What a run raises goes on its way,
            with a note of the problem and the optimizer.

    >>> import mlxopt as mo
    >>> found = race(mo.problems.get("Rosenbrock"), {"LBFGS": mo.LBFGS(), "Newton": mo.Newton()})
    >>> found.solved()
    {'LBFGS': 1, 'Newton': 1}
    """
    entered = (problems,) if isinstance(problems, Problem) else tuple(problems)
    named = _named(optimizers)
    check_count(max_steps, "max_steps")
    if not entered:
        raise ValueError("there are no problems; expected one or more of mlxopt.problems.")
    for known in entered:
        if not isinstance(known, Problem):
            raise TypeError(
                f"one of the problems is {describe_type(known)}; expected records such as "
                f"mlxopt.problems.get('Rosenbrock')."
            )
    twice = {known.name for known in entered if sum(known.name == p.name for p in entered) > 1}
    if twice:
        raise ValueError(f"these problems came twice: {', '.join(sorted(twice))}.")
    pairs = [(known, name, _entrant(one, known)) for known in entered for name, one in named]
    for known, name, optimizer in pairs:
        if isinstance(optimizer, _NEEDS_RESIDUAL) and known.residual is None:
            raise ValueError(
                f"{name} needs a residual, and {known.name!r} has none. Leave one of them out: "
                f"[p for p in problems if p.residual is not None]."
            )
    rows = tuple(_run(*pair, max_steps, relative, dtype) for pair in pairs)
    return Race(entered, tuple(name for name, _ in named), rows)


def _run(
    known: Problem, name: str, optimizer: Optimizer[Any], max_steps: int, relative: float,
    dtype: mx.Dtype,
) -> Run:  # fmt: skip
    """Run one optimizer on one problem."""
    from_residual = isinstance(optimizer, _NEEDS_RESIDUAL)
    scale = 2.0 if from_residual else 1.0  # least_squares minimizes half the sum
    trace: list[tuple[int, float, float]] = []
    path: list[np.ndarray] = []

    def look(info: Info) -> bool:
        value = scale * info.value
        trace.append((info.evaluations, info.seconds, value))
        path.append(np.array(info.params, dtype=np.float64))
        return known.solved_by(value, relative)

    began = time.perf_counter()
    options: dict[str, Any] = {"max_steps": max_steps, "callback": look, "progress": False}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the table says it
            if from_residual:
                assert known.residual is not None
                result = least_squares(
                    known.residual, known.params(dtype), optimizer=optimizer, polish=False,
                    **options,
                )  # fmt: skip
            else:
                result = minimize(
                    known.loss, known.params(dtype), optimizer, record_every=1, **options
                )
    except Exception as error:
        error.add_note(f"This was {name} on {known.name!r}.")
        raise
    value = scale * result.value
    solved = known.solved_by(value, relative)
    evaluations, seconds, values = (np.array(column) for column in zip(*trace, strict=True))
    return Run(
        known.name, name, solved, result.status, result.evaluations,
        time.perf_counter() - began, value, evaluations, seconds, values, np.array(path),
    )  # fmt: skip


def _named(optimizers: Any) -> list[tuple[str, Entrant]]:
    """Return optimizers with their names."""
    if isinstance(optimizers, Optimizer):
        optimizers = [optimizers]
    if isinstance(optimizers, Mapping):
        named = [(str(name), one) for name, one in optimizers.items()]
    else:
        listed = list(optimizers)
        kinds = [type(one).__name__ for one in listed]
        tell = len(set(kinds)) < len(kinds)  # then hyper-parameters are what tells them apart
        named = [(repr(one) if tell else kinds[i], one) for i, one in enumerate(listed)]
    if not named:
        raise ValueError("there are no optimizers; expected one or more.")
    for name, one in named:
        if not isinstance(one, Optimizer) and (isinstance(one, type) or not callable(one)):
            raise TypeError(
                f"{name} is {describe_type(one)}; expected an optimizer, such as mo.LBFGS(), or a "
                f"function of the problem that returns one."
            )
    names = [name for name, _ in named]
    if len(set(names)) < len(names):
        raise ValueError("two optimizers have the same name; pass a dict that tells them apart.")
    return named


def _entrant(one: Entrant, known: Problem) -> Optimizer[Any]:
    if isinstance(one, Optimizer):
        return one
    optimizer = one(known)
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"the function for {known.name!r} returned {type(optimizer).__qualname__}; expected an "
            f"optimizer."
        )
    return optimizer


def _check_unit(by: str) -> None:
    if by not in _UNITS:
        raise ValueError(f"by is {by!r}; expected 'evaluations' or 'seconds'.")


def _around(points: np.ndarray) -> tuple[float, float, float, float]:
    """Return a window with room around points, shape (n, 2)."""
    low, high = points.min(axis=0), points.max(axis=0)
    room = 0.15 * np.maximum(high - low, 1e-6)
    (left, bottom), (right, top) = low - room, high + room
    return float(left), float(right), float(bottom), float(top)


def _on_grid(known: Problem, points: mx.array) -> mx.array:
    """Return the loss at points, shape (n, 2)."""
    loss = mx.compile(known.loss)
    return mx.stack([loss(point) for point in points])
