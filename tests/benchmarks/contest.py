"""Several ways of doing one task, timed in turn, and whether mlxopt's time meets its goals.

A machine's speed changes from minute to minute, so nothing here compares times that were not taken
in turn: each round runs every contestant once, every other round in the opposite order, and each
run follows a rest, in which the threads of the one before, which wait by spinning, fall asleep.
"""

from __future__ import annotations

import dataclasses
import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from benchmarks.peers import blas

# Rounds by the seconds that a run takes: quick ones scatter more and cost less.
_ROUNDS = ((0.5, 7), (2.0, 5), (8.0, 3), (math.inf, 1))
_ALL_DIGITS = 2 * float(np.finfo(np.float64).eps)  # errors below are not told apart


class Goals(NamedTuple):
    """What mlxopt is to reach against one contestant; None where nothing is claimed."""

    time: float | None = None  # mlxopt's time in the contestant's, at most
    times_faster: float | None = None  # the same the other way round, at least
    evaluations: float | None = None  # mlxopt's evaluations in the contestant's, at most
    error: float | None = None  # mlxopt's error in the contestant's, at most


NO_GOALS = Goals()


@dataclasses.dataclass(frozen=True)
class Contestant:
    """One way of doing a task."""

    name: str
    run: Callable[[], Any]
    """Does it, and waits until it is done; with `measures`, returns its own figure."""
    package: str = "mlx"
    """The package that does the work."""
    params: Callable[[Any], Any] | None = None
    """Takes the parameters out of what `run` returned; None where there are none."""
    truth: np.ndarray | None = None
    """What these should be, where that is not the task's truth: after fewer steps."""
    evaluations: Callable[[Any], int] | None = None
    """Takes the number of evaluations out of what `run` returned."""
    share: float = 1.0
    """The part of the task that `run` does: its time is divided by it."""
    stock: bool = False
    """Whether MLX works on the BLAS that its wheel brings."""
    measures: bool = False
    """Whether `run` returns the figure, seconds or bytes, itself."""
    rounds: int | None = None
    """How often to run it, if it `measures`; the others are run as their time allows."""
    remark: str = ""
    goals: Goals = NO_GOALS


@dataclasses.dataclass(frozen=True)
class Task:
    """What is to be done, and who does it."""

    title: str
    contestants: list[Contestant]
    """mlxopt comes first."""
    truth: np.ndarray | None = None
    """The parameters, by float64 arithmetic or better."""
    most_error: float | None = None
    """The largest error that mlxopt may have."""
    unit: str = "seconds"
    note: str = ""


@dataclasses.dataclass
class Outcome:
    """What one contestant did."""

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
    """One claim about mlxopt, and what came of it."""

    quantity: str  # "time", "evaluations" or "error"
    ratio: float  # mlxopt's figure in the other's; for its own error, the error
    goal: float
    inverse: bool  # whether people say it as "so many times faster"
    met: bool


@contextmanager
def stock_blas() -> Iterator[None]:
    """Give MLX the BLAS of its own wheel while inside."""
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
    """Return what each contestant of a task did.

    Args:
        task: what to do.
        rest: seconds before each run.
        most_rounds: how often to run a contestant at most.
        tell: is told who runs.
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
                outcome.figures.append(_figure(outcome.contestant, rest)[0])
            except Exception as error:
                _fail(outcome, error)
                rounds[index] = 0
    return outcomes


def _first_run(outcome: Outcome, task: Task, rest: float, most_rounds: int) -> int:
    """Run a contestant once, untimed: it compiles, and shows its answer. Return its rounds."""
    contestant = outcome.contestant
    try:
        seconds, answer = _figure(contestant, rest)
        if contestant.measures:  # a fresh process each time: the first is like the others
            outcome.figures.append(seconds)
            return min(contestant.rounds or 1, most_rounds) - 1
        if contestant.params is not None:
            truth = task.truth if contestant.truth is None else contestant.truth
            assert truth is not None, f"{task.title} has no truth"
            outcome.error = relative_error(contestant.params(answer), truth)
        if contestant.evaluations is not None:
            outcome.evaluations = int(contestant.evaluations(answer))
    except Exception as error:  # a peer's new release must not cost the other figures
        _fail(outcome, error)
        return 0
    seconds *= contestant.share
    return min(most_rounds, next(count for limit, count in _ROUNDS if seconds < limit))


def _fail(outcome: Outcome, error: Exception) -> None:
    outcome.failure = f"{type(error).__name__}: {error}".splitlines()[0]
    outcome.figures.clear()


def _figure(contestant: Contestant, rest: float) -> tuple[float, Any]:
    """Return a contestant's figure and answer."""
    if contestant.stock:
        with stock_blas():
            return _figure(dataclasses.replace(contestant, stock=False), rest)
    gc.disable()  # one library's garbage is not collected on another's time
    try:
        time.sleep(rest)
        began = time.perf_counter()
        answer = contestant.run()
        seconds = time.perf_counter() - began
    finally:
        gc.enable()
    return (float(answer) if contestant.measures else seconds / contestant.share), answer


def without_data(task: Task, outcomes: list[Outcome]) -> tuple[Task, list[Outcome]]:
    """Return both without what the contestants work on, which may fill the memory."""

    def gone() -> Any:
        raise RuntimeError("the data are gone")

    bare = [dataclasses.replace(one.contestant, run=gone, params=None) for one in outcomes]
    kept = [
        dataclasses.replace(outcome, contestant=contestant)
        for outcome, contestant in zip(outcomes, bare, strict=True)
    ]
    return dataclasses.replace(task, contestants=bare, truth=None), kept


def relative_error(params: Any, truth: np.ndarray) -> float:
    """Return the largest error of any parameter, in the largest parameter."""
    found = np.asarray(params, dtype=np.float64).ravel()
    return float(np.max(np.abs(found - truth)) / np.max(np.abs(truth)))


def ratio(ours: Outcome, other: Outcome) -> float:
    """Return mlxopt's median in the other's."""
    return ours.figure / other.figure if other.figure else math.inf


def verdicts(task: Task, ours: Outcome, other: Outcome) -> list[Verdict]:
    """Return what came of the claims against one contestant; against itself, of mlxopt's error.

    Where mlxopt failed it met nothing; a contestant that failed is no yardstick.
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
