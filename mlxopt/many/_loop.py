"""The loop over many problems: the stop rules of `mlxopt._loop`, with masks in place of branches.

What has ended leaves the batch, so that the algorithms only ever see problems that are running.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from mlxopt import _loop as one
from mlxopt._checks import check_start, late_interrupt
from mlxopt._loop import warn_of_ignored
from mlxopt._progress import ProgressBar
from mlxopt._status import Status
from mlxopt._tree import epsilon, from_host
from mlxopt.many._objective import BatchedObjective
from mlxopt.many._state import Method, Points, State, is_none, take, where

_STALL = 20


class Ends(NamedTuple):
    """Where the runs ended; B rows."""

    points: Points
    status: np.ndarray  # (B,): a Status each
    steps: np.ndarray  # (B,) int


class _Seen(NamedTuple):
    """What is remembered of the runs that are going on; A rows."""

    start: Points
    best: Points
    lowest: np.ndarray  # (A,): the least loss
    flattest: np.ndarray  # (A,): the least optimality
    stalled: np.ndarray  # (A,) int: moves in a row that bettered neither
    idle: np.ndarray  # (A,) int: the same of steps


def run(
    objective: BatchedObjective, method: Method, tol: float, max_steps: int, bar: ProgressBar
) -> Ends:
    """Run the method on all problems until each has a reason to stop.

    Raises:
        ValueError: none of them has a finite loss and gradient at its start.
    """
    size, like = objective.problems.size, objective.problems.like
    state = method.init(objective, objective.problems.start)
    points: Points = state.points
    at_home = np.isfinite(points.value) & np.isfinite(points.optimality)
    if not at_home.any():
        check_start(float(points.value[0]), float(points.optimality[0]))
    _warn_of_ignored(objective, points.grad)
    ends = Ends(
        Points(*(field.copy() for field in points)),
        np.full(size, None),
        np.zeros(size, dtype=np.int64),
    )
    count = np.zeros(size, dtype=np.int64)
    seen = _Seen(points, points, points.value, points.optimality, count, count)
    # One name for what belongs together: Ctrl-C may come between any two lines.
    current = np.arange(size), state, seen, count
    status = _look(state, count, tol, max_steps)
    status[~at_home] = Status.NONFINITE
    eps = epsilon(like)
    try:
        with late_interrupt():
            while True:
                done = ~is_none(status)
                if done.any():
                    _record(ends, take(done, current), status[done])
                    current = take(~done, current)
                    objective.keep(~done)
                alive, state, seen, steps = current
                if not len(alive):
                    return ends
                bar.update(size - len(alive), float(np.mean(state.points.value)))
                count = min(method.stride, max_steps - int(steps.max()))
                state, taken = method.advance(objective, state, count)
                steps, seen = steps + taken, _watch(seen, state, taken, eps)
                current = alive, state, seen, steps
                status = _look(state, steps, tol, max_steps)
                if tol > 0:
                    # A line search at the rounding floor takes many steps between two moves.
                    most = 3 * method.patience * method.stride
                    stuck = (seen.stalled >= method.patience) | (seen.idle >= most)
                    status[stuck & is_none(status)] = Status.NO_PROGRESS
    except KeyboardInterrupt:
        _record(ends, current, np.full(len(current[0]), Status.INTERRUPTED))
        return ends


def _warn_of_ignored(objective: BatchedObjective, grad: np.ndarray) -> None:
    """Warn about each leaf of the parameters that the loss does not depend on."""
    if (grad == 0).all(axis=0).any():  # else each matters to one problem or another
        problems = objective.problems
        first, _ = problems.single(0, problems.start[0])
        one.warn_of_ignored(objective.single, first, from_host(np.abs(grad).max(axis=0), first))


def _look(state: State, steps: np.ndarray, tol: float, max_steps: int) -> np.ndarray:
    """Return why to stop, shape (A,): a Status each, or None."""
    optimality = state.points.optimality
    status = np.full(len(optimality), None)
    status[steps >= max_steps] = Status.COMPLETED if tol == 0 else Status.MAX_STEPS
    ended = ~is_none(state.status)
    status[ended] = state.status[ended]
    status[ended & (optimality == 0)] = Status.CONVERGED
    if tol > 0:
        status[optimality <= tol] = Status.CONVERGED
    return status


@np.errstate(invalid="ignore", over="ignore")  # of what is not finite, and ended
def _watch(seen: _Seen, state: State, taken: np.ndarray, eps: float) -> _Seen:
    """Return what is remembered after a few more steps."""
    points, moved = state.points, state.moved
    better = moved & ((points.value < seen.lowest) | (points.optimality < seen.flattest))
    best = seen.best
    level = np.abs(points.value - best.value) <= ROUNDINGS * eps * np.abs(best.value)
    closer = np.where(level, points.optimality < best.optimality, points.value < best.value)
    return seen._replace(
        best=where(moved & closer, points, best),
        lowest=np.where(moved, np.minimum(seen.lowest, points.value), seen.lowest),
        flattest=np.where(moved, np.minimum(seen.flattest, points.optimality), seen.flattest),
        stalled=np.where(moved, np.where(better, 0, seen.stalled + 1), seen.stalled),
        idle=np.where(better, 0, seen.idle + taken),
    )


def _record(ends: Ends, ended: tuple[Any, ...], status: np.ndarray) -> None:
    """Write runs that have ended, rows of the loop's own tuple, into the ends."""
    rows, state, seen, steps = ended
    reasons = _explain(status, seen.start, state.points)
    by_best = (reasons == Status.DIVERGED) | (reasons == Status.NO_PROGRESS)
    for field, values in zip(ends.points, where(by_best, seen.best, state.points), strict=True):
        field[rows] = values
    ends.status[rows], ends.steps[rows] = reasons, steps


@np.errstate(invalid="ignore", over="ignore")  # of what is not finite, and ended
def _explain(status: np.ndarray, start: Points, end: Points) -> np.ndarray:
    """Return what losses that left the numbers, or moved away from a minimum, were doing."""
    fell = (end.value < start.value) & (end.optimality > start.optimality)
    grown = (end.value > start.value) & (end.optimality > 10 * start.optimality)
    reasons = status.copy()
    nonfinite = status == Status.NONFINITE
    reasons[nonfinite & fell & (start.value - end.value > 1e6 * (1 + np.abs(start.value)))] = (
        Status.UNBOUNDED
    )
    ended = nonfinite & ~fell
    for reason in (Status.MAX_STEPS, Status.COMPLETED):
        ended |= status == reason
    reasons[ended & grown] = Status.DIVERGED
    return reasons
