"""A race: every optimizer on every problem, as a table and as pictures."""

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
from mlxopt._checks import check_choice, check_count, describe_type
from mlxopt._least_squares import least_squares
from mlxopt._minimize import minimize
from mlxopt._report import Row, counted, html, table
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
    """One optimizer on one problem; the trace has an entry for each read of the state."""

    problem: str  # its name
    optimizer: str  # its name in the race
    solved: bool  # whether the loss reached that of a known minimum
    status: Status  # why it ended; STOPPED where it was solved before its own end
    evaluations: int  # of the loss and its gradient, to the solution or the end
    seconds: float  # likewise, tracing and compiling included
    value: float  # the last loss
    trace_evaluations: np.ndarray  # evaluations so far
    trace_seconds: np.ndarray  # seconds so far
    trace_value: np.ndarray  # the loss
    path: np.ndarray  # (entries, p), float64: the parameters


# Compared as objects: arrays do not answer == with yes or no.
@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Race:
    """The runs of a race; `repr` is a table of evaluations, with a dash for "not solved"."""

    problems: tuple[Problem, ...]
    optimizers: tuple[str, ...]  # names
    rows: tuple[Run, ...]  # for each problem, a run of each optimizer
    interrupted: bool = False  # whether Ctrl-C ended the race; then without the problems not run

    def run(self, problem: str, optimizer: str) -> Run:
        """Return the run of one optimizer on one problem, both by name."""
        if optimizer not in self.optimizers:
            known = ", ".join(map(repr, self.optimizers))
            raise KeyError(f"there is no run of {optimizer!r}; the optimizers are {known}.")
        return self._of(problem)[1][self.optimizers.index(optimizer)]

    def costs(self, by: str = "evaluations") -> dict[str, np.ndarray]:
        """Return each problem's cost, float64, infinite if not solved, by optimizer; see `plot`."""
        check_choice(by, "by", _UNITS)
        costs = [float(getattr(row, by)) if row.solved else np.inf for row in self.rows]
        columns = np.reshape(costs, (len(self.problems), -1)).T
        return dict(zip(self.optimizers, columns, strict=True))

    def solved(self) -> dict[str, int]:
        """Return how many problems each optimizer solved."""
        return {name: int(np.isfinite(costs).sum()) for name, costs in self.costs().items()}

    def plot(self, by: str = "evaluations", ax: Axes | None = None) -> Axes:
        """Draw the performance profile (Dolan and Moré 2002); return the matplotlib axes.

        Args:
            by: "evaluations" or "seconds".
            ax: axes to draw on; None: a new figure.
        """
        return plots.performance_profile(self.costs(by), measure=_UNITS[by], ax=ax)

    def plot_losses(self, problem: str, by: str = "evaluations", ax: Axes | None = None) -> Axes:
        """Draw how far each optimizer's loss was above the lowest known; return the axes.

        Args:
            problem: its name.
            by: "evaluations" or "seconds".
            ax: axes to draw on; None: a new figure.
        """
        check_choice(by, "by", _UNITS)
        known, runs = self._of(problem)
        curves = {row.optimizer: (getattr(row, f"trace_{by}"), row.trace_value) for row in runs}
        ax = plots.descent(curves, lowest=known.value, unit=by, ax=ax)
        ax.set_title(problem)
        return ax

    def plot_paths(self, problem: str, ax: Axes | None = None) -> Axes:
        """Draw the path of each optimizer on a map of a loss of two parameters; return the axes.

        Args:
            problem: its name.
            ax: axes to draw on; None: a new figure.
        """
        known, runs = self._of(problem)
        if known.size != 2:
            raise ValueError(f"{problem!r} has {known.size} parameters; a map shows two.")
        paths = {row.optimizer: row.path for row in runs}
        minima = [minimum.point for minimum in known.minima if minimum.point is not None]
        seen = np.concatenate([*paths.values(), *np.array([minima])])
        left, right, bottom, top = known.view or _around(seen)
        across, up = np.linspace(left, right, 121), np.linspace(bottom, top, 101)
        loss = mx.compile(known.loss)
        with mx.stream(mx.cpu):
            points = mx.array(np.stack(np.meshgrid(across, up), axis=-1), dtype=mx.float64)
            values = np.array(mx.stack([loss(point) for point in points.reshape(-1, 2)]))
        values = values.reshape(len(up), len(across))
        ax = plots.trajectories(across, up, values, paths, np.array(minima), ax=ax)
        ax.set_title(problem)
        return ax

    def _of(self, problem: str) -> tuple[Problem, list[Run]]:
        for known in self.problems:
            if known.name == problem:
                return known, [row for row in self.rows if row.problem == problem]
        names = ", ".join(repr(known.name) for known in self.problems)
        raise KeyError(f"{problem!r} is not in this race; these are: {names}.")

    def _table(self) -> tuple[str, list[Row], Row]:
        """Return the title, the rows and the header of the table."""
        costs = np.stack(list(self.costs().values()))  # (optimizers, problems)
        seconds = np.stack(list(self.costs("seconds").values()))
        solved = np.isfinite(costs)
        fewest = solved & (costs == costs.min(axis=0))
        spent = np.where(solved, seconds, 0.0).sum(axis=1)
        cells = np.where(solved, [[f"{cost:,.0f}" for cost in row] for row in costs], "-")
        names = [known.name for known in self.problems]
        rows = [
            (),
            *((name, *column) for name, column in zip(names, cells.T, strict=True)),
            (),
            ("solved", *map(str, solved.sum(axis=1))),
            ("with the fewest", *map(str, fewest.sum(axis=1))),
            ("seconds, of the solved", *(f"{total:.2f}" for total in spent)),
        ]
        header = ["", *(f"{name:>6}" for name in self.optimizers)]
        entered = f"{counted(len(header) - 1, 'optimizer')} on {counted(len(cells[0]), 'problem')}"
        ended = " until Ctrl-C" if self.interrupted else ""
        title = f"Race of {entered}{ended}: evaluations"
        return title, rows, header

    def __repr__(self) -> str:
        title, rows, header = self._table()
        return "\n".join([title, textwrap.indent(table(header, rows), "  ")])

    def _repr_html_(self) -> str:
        return html(*self._table())


def race(
    problems: Problem | Iterable[Problem],
    optimizers: Mapping[str, Entrant] | Sequence[Optimizer[Any]],
    *,
    max_steps: int = 1000,
    relative: float = 1e-6,
    dtype: mx.Dtype = mx.float64,
) -> Race:
    """Run every optimizer on every problem, from the problem's start to a known minimum.

    A run is solved, and stops, as soon as its loss is that of a known minimum
    (`Problem.solved_by`); tolerances of the methods play no part. An evaluation is that of the loss
    with its gradient; a Hessian, a Jacobian or a product with one shows in the seconds alone.

    Args:
        problems: records of `mlxopt.problems`.
        optimizers: a list, or a dict by name, in which a function of the problem can return the
            optimizer: `lambda problem: mo.LBFGSB(*problem.bounds)`. `LevenbergMarquardt` and
            `GaussNewton` need problems with a residual.
        max_steps: steps of each run at most.
        relative: error of the loss that counts as solved; see `Problem.solved_by`.
        dtype: of the parameters.

    Returns:
        a `Race`: `repr` is the table, `rows` are the runs, `plot` draws the performance profile.
        Ctrl-C ends the race and returns it with the problems that every optimizer has run; before
        there is one, KeyboardInterrupt is raised.

    Raises:
        TypeError, ValueError: an argument is not as described. An exception of a run is passed on,
            with a note of the problem and the optimizer.

    >>> import mlxopt as mo
    >>> found = race(mo.problems.get("Rosenbrock"), {"LBFGS": mo.LBFGS(), "Newton": mo.Newton()})
    >>> found.solved()
    {'LBFGS': 1, 'Newton': 1}
    """
    entered = (problems,) if isinstance(problems, Problem) else tuple(problems)
    named = _named(optimizers)
    max_steps = check_count(max_steps, "max_steps")
    if not entered:
        raise ValueError("there are no problems; expected one or more of mlxopt.problems.")
    for item in entered:
        if not isinstance(item, Problem):
            raise TypeError(f"a problem is {describe_type(item)}; expected one of mlxopt.problems.")
    names = [known.name for known in entered]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"these problems came twice: {', '.join(sorted(twice))}.")
    pairs = [(known, name) for known in entered for name in named]
    runs = [(*pair, _entrant(*pair, named[pair[1]])) for pair in pairs]  # checked before any runs
    rows: list[Run] = []
    try:
        for run in runs:
            rows.append(_run(*run, max_steps, relative, dtype))  # noqa: PERF401 - kept one by one
    except KeyboardInterrupt:
        whole = len(rows) // len(named)
        if not whole:
            raise
        return Race(entered[:whole], tuple(named), tuple(rows[: whole * len(named)]), True)
    return Race(entered, tuple(named), tuple(rows))


def _run(
    known: Problem, name: str, optimizer: Any, max_steps: int, relative: float, dtype: mx.Dtype
) -> Run:
    trace: list[tuple[int, float, float, np.ndarray]] = []
    scale = 2.0 if isinstance(optimizer, _NEEDS_RESIDUAL) else 1.0  # they minimize half the sum

    def is_solved(info: Info) -> bool:
        value, point = scale * info.value, np.array(info.params, dtype=np.float64)
        trace.append((info.evaluations, info.seconds, value, point))
        return known.solved_by(value, relative)

    start = known.params(dtype)
    options: dict[str, Any] = {"max_steps": max_steps, "callback": is_solved, "progress": False}
    began = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the table says it
            if known.residual is not None and isinstance(optimizer, _NEEDS_RESIDUAL):
                options |= {"optimizer": optimizer, "polish": False}
                result = least_squares(known.residual, start, **options)
            else:
                result = minimize(known.loss, start, optimizer, record_every=1, **options)
    except Exception as error:
        error.add_note(f"This was {name} on {known.name!r}.")
        raise
    if result.status is Status.INTERRUPTED:
        raise KeyboardInterrupt
    seconds, value = time.perf_counter() - began, scale * result.value
    solved, columns = known.solved_by(value, relative), map(np.array, zip(*trace, strict=True))
    ended = result.status, result.evaluations
    return Run(known.name, name, solved, *ended, seconds, value, *columns)


def _named(optimizers: Any) -> dict[str, Entrant]:
    """Return optimizers by name."""
    if isinstance(optimizers, Mapping):
        named = {str(name): one for name, one in optimizers.items()}
    else:
        optimizers = [optimizers] if isinstance(optimizers, Optimizer) else list(optimizers)
        kinds = [type(one).__name__ for one in optimizers]
        # Optimizers of one class differ in their hyper-parameters.
        names = kinds if len(set(kinds)) == len(kinds) else list(map(repr, optimizers))
        named = dict(zip(names, optimizers, strict=True))
    if not named:
        raise ValueError("there are no optimizers; expected one or more.")
    for name, one in named.items():
        if not isinstance(one, Optimizer) and (isinstance(one, type) or not callable(one)):
            kind = describe_type(one)
            raise TypeError(f"{name} is {kind}; expected an optimizer, or a function of a problem.")
    if len(named) < len(optimizers):
        raise ValueError("two optimizers have the same name; pass a dict that tells them apart.")
    return named


def _entrant(known: Problem, name: str, entrant: Entrant) -> Optimizer[Any]:
    optimizer = entrant if isinstance(entrant, Optimizer) else entrant(known)
    if not isinstance(optimizer, Optimizer):
        kind = type(optimizer).__qualname__
        raise TypeError(f"{name} returned {kind} for {known.name!r}; expected an optimizer.")
    if isinstance(optimizer, _NEEDS_RESIDUAL) and known.residual is None:
        raise ValueError(f"{name} needs a residual, and {known.name!r} has none: leave one out.")
    return optimizer


def _around(points: np.ndarray) -> np.ndarray:
    """Return left, right, bottom and top of a window around points, shape (n, 2)."""
    low, high = points.min(axis=0), points.max(axis=0)
    room = 0.15 * np.maximum(high - low, 1e-6)
    return np.stack([low - room, high + room], axis=1).ravel()
