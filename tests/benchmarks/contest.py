"""Time several ways of doing one task in turn, and judge mlxopt's time by its goals.

A machine's speed changes from minute to minute, so only times taken in turn are compared: each
round runs every contestant once, odd rounds in reverse order. Each run follows a rest, in which
the spinning threads of the run before it go to sleep.
"""

from __future__ import annotations

import dataclasses
import gc
import math
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from benchmarks.peers import blas

# Rounds by the seconds of a run: short runs scatter more and cost less.
_ROUNDS = ((0.5, 7), (2.0, 5), (8.0, 3), (math.inf, 1))
_ALL_DIGITS = 2 * float(np.finfo(np.float64).eps)  # smaller errors count as equal


class Goals(NamedTuple):
    """Claims against one contestant; None where there is no claim."""

    time: float | None = None  # largest ratio of mlxopt's time to the contestant's
    times_faster: float | None = None  # smallest ratio of the contestant's time to mlxopt's
    evaluations: float | None = None  # largest ratio of evaluations
    error: float | None = None  # largest ratio of errors


NO_GOALS = Goals()


@dataclasses.dataclass(frozen=True)
class Contestant:
    """One way of doing a task.

    Args:
        name: as shown in the table.
        run: does the task and waits for its end; with `measures`, returns the figure.
        package: the package that does the work.
        params: extracts the parameters from the answer of `run`; None if there are none.
        truth: the exact parameters where they differ from the task's, as after fewer steps.
        evaluations: extracts the number of evaluations from the answer of `run`.
        share: the part of the task that `run` does, by which its time is divided.
        stock: whether MLX uses the BLAS of its own wheel.
        measures: whether `run` returns seconds or bytes itself.
        rounds: number of runs of a contestant that `measures`.
        remark: shown after the name.
        goals: claims about mlxopt against this contestant.
    """

    name: str
    run: Callable[[], Any]
    package: str = "mlx"
    params: Callable[[Any], Any] | None = None
    truth: np.ndarray | None = None
    evaluations: Callable[[Any], int] | None = None
    share: float = 1.0
    stock: bool = False
    measures: bool = False
    rounds: int | None = None
    remark: str = ""
    goals: Goals = NO_GOALS


@dataclasses.dataclass(frozen=True)
class Task:
    """A task and its contestants.

    Args:
        title: as shown above the table.
        contestants: mlxopt first.
        truth: the parameters, (p,), by float64 arithmetic or better.
        most_error: the largest error allowed to mlxopt.
        unit: "seconds" or "bytes".
        note: shown below the table.
    """

    title: str
    contestants: list[Contestant]
    truth: np.ndarray | None = None
    most_error: float | None = None
    unit: str = "seconds"
    note: str = ""


@dataclasses.dataclass
class Outcome:
    """The figures of one contestant."""

    contestant: Contestant
    figures: list[float] = dataclasses.field(default_factory=list)
    error: float | None = None
    evaluations: int | None = None
    failure: str = ""

    @property
    def figure(self) -> float:
        """Return the median: seconds or bytes."""
        return statistics.median(self.figures) if self.figures else math.nan


class Verdict(NamedTuple):
    """Whether mlxopt meets one goal."""

    quantity: str  # "time", "evaluations" or "error"
    ratio: float  # of mlxopt's figure to the contestant's; against itself, its error
    goal: float
    inverse: bool  # whether the goal is a number of times faster
    met: bool


@contextmanager
def stock_blas() -> Iterator[None]:
    """Use the BLAS of MLX's own wheel inside the context."""
    mx.synchronize()
    blas.unbind()
    try:
        yield
    finally:
        mx.synchronize()
        blas.bind()


def compete(
    task: Task, rest: float, most_rounds: int, tell: Callable[[str], None] = lambda _: None
) -> list[Outcome]:
    """Return the outcome of each contestant of a task.

    Args:
        task: the task.
        rest: seconds of rest before each run.
        most_rounds: largest number of runs of a contestant.
        tell: called with a line of text before each run.
    """
    outcomes = [Outcome(contestant) for contestant in task.contestants]
    rounds = {}
    for index, outcome in enumerate(outcomes):
        tell(f"{task.title}: {outcome.contestant.name}, first run")
        rounds[index] = _first_run(outcome, task, rest, most_rounds)
    for number in range(max(rounds.values())):
        order = list(enumerate(outcomes))
        for index, outcome in order if number % 2 == 0 else reversed(order):
            if number >= rounds[index]:
                continue
            tell(f"{task.title}: {outcome.contestant.name}, run {number + 1} of {rounds[index]}")
            try:
                outcome.figures.append(measure(outcome.contestant, rest).figure)
            except Exception as error:
                _fail(outcome, error)
                rounds[index] = 0
    return outcomes


def _first_run(outcome: Outcome, task: Task, rest: float, most_rounds: int) -> int:
    """Run a contestant once to compile it and to check its answer; return its number of rounds."""
    contestant = outcome.contestant
    try:
        figure, _, answer = measure(contestant, rest)
        if contestant.measures:  # in a fresh process each time: the first is like the others
            outcome.figures.append(figure)
            return min(contestant.rounds or 1, most_rounds) - 1
        if contestant.params is not None:
            truth = task.truth if contestant.truth is None else contestant.truth
            assert truth is not None, f"{task.title} has no truth"
            outcome.error = relative_error(contestant.params(answer), truth)
        if contestant.evaluations is not None:
            outcome.evaluations = int(contestant.evaluations(answer))
    except Exception as error:  # a broken peer must not cost the other figures
        _fail(outcome, error)
        return 0
    seconds = figure * contestant.share
    return min(most_rounds, next(count for limit, count in _ROUNDS if seconds < limit))


def _fail(outcome: Outcome, error: Exception) -> None:
    outcome.failure = f"{type(error).__name__}: {error}".splitlines()[0]
    outcome.figures.clear()


class Measurement(NamedTuple):
    """One run of a contestant."""

    figure: float  # seconds of the whole task, or what the contestant measured itself
    cpu: float  # seconds of CPU time, of this process and of child processes that ended
    answer: Any


def measure(contestant: Contestant, rest: float) -> Measurement:
    """Run a contestant once, after a rest in seconds."""
    with stock_blas() if contestant.stock else nullcontext():
        gc.disable()  # the garbage of one library must not cost time of another
        try:
            time.sleep(rest)
            cpu, began = _cpu_seconds(), time.perf_counter()
            answer = contestant.run()
            figure = (time.perf_counter() - began) / contestant.share
            cpu = _cpu_seconds() - cpu
        finally:
            gc.enable()
    return Measurement(float(answer) if contestant.measures else figure, cpu, answer)


def _cpu_seconds() -> float:
    used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def without_data(task: Task, outcomes: list[Outcome]) -> tuple[Task, list[Outcome]]:
    """Return both without references to the data, which fill much memory."""

    def gone() -> Any:
        raise RuntimeError("the data are gone")

    kept = []
    for outcome in outcomes:
        bare = dataclasses.replace(outcome.contestant, run=gone, params=None, evaluations=None)
        kept.append(dataclasses.replace(outcome, contestant=bare))
    contestants = [outcome.contestant for outcome in kept]
    return dataclasses.replace(task, contestants=contestants, truth=None), kept


def relative_error(params: Any, truth: np.ndarray) -> float:
    """Return the largest error of a parameter relative to the largest parameter."""
    found = np.asarray(params, dtype=np.float64).ravel()
    return float(np.max(np.abs(found - truth)) / np.max(np.abs(truth)))


def ratio(ours: Outcome, other: Outcome) -> float:
    """Return the ratio of mlxopt's median to the other's."""
    return ours.figure / other.figure if other.figure else math.inf


def verdicts(task: Task, ours: Outcome, other: Outcome) -> list[Verdict]:
    """Return the verdicts on the goals against one contestant; against mlxopt, on its error.

    If mlxopt failed, it met no goal; a contestant that failed has no verdicts.
    """
    if other.failure and other is not ours:
        return []
    if other is ours:
        if task.most_error is None or ours.error is None:
            return []
        met = ours.error <= task.most_error
        return [Verdict("error", ours.error, task.most_error, False, met)]
    goals, found = other.contestant.goals, []
    quotient = ratio(ours, other)
    if goals.time is not None:
        found.append(Verdict("time", quotient, goals.time, False, quotient <= goals.time))
    if goals.times_faster is not None:
        met = quotient * goals.times_faster <= 1
        found.append(Verdict("time", quotient, goals.times_faster, True, met))
    if goals.evaluations is not None and ours.evaluations and other.evaluations:
        quotient = ours.evaluations / other.evaluations
        met = quotient <= goals.evaluations
        found.append(Verdict("evaluations", quotient, goals.evaluations, False, met))
    if goals.error is not None and ours.error is not None and other.error is not None:
        quotient = max(ours.error, _ALL_DIGITS) / max(other.error, _ALL_DIGITS)
        found.append(Verdict("error", quotient, goals.error, False, quotient <= goals.error))
    return found
