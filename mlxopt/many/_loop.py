"""Many problems as one optimizer, for the loop that every run shares.

Each problem stops by the rules of a single run. Those that have stopped leave the batch, so that
the algorithms compute with the others alone.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import numpy as np

from mlxopt._objective import Objective
from mlxopt._status import Status
from mlxopt._stop import ROUNDINGS, Progress, StopRule, explain, improves, last_step
from mlxopt._tree import Params, epsilon, from_host
from mlxopt.many._objective import BatchedObjective
from mlxopt.many._state import Method, Points, is_none, take, where
from mlxopt.optimizers import Optimizer


class Ends(NamedTuple):
    """The ends of the runs; B rows."""

    points: Points
    status: np.ndarray  # (B,): a Status each
    steps: np.ndarray  # (B,) int


class Running(NamedTuple):
    """The runs under way; A rows."""

    rows: np.ndarray  # (A,) int: their places among the ends
    state: Any  # the method's
    progress: Progress
    start: Points
    best: Points


class BatchState(NamedTuple):
    """The state of all runs, as the loop reads it."""

    params: Params  # those of the first problem, for their dtype
    value: float  # the mean loss of the runs under way
    grad: Params | None  # zero where the loss ignores a parameter; only at the start
    optimality: float  # the largest of the runs under way
    status: Status | None  # COMPLETED when none is
    moved: bool
    running: Running


class Batch(Optimizer[BatchState]):
    """A method on many problems; a step, as the loop counts, is a problem that has stopped.

    Args:
        objective: the losses of all problems.
        method: takes the steps.
        rules: the stop rules of each problem.
    """

    def __init__(
        self, objective: BatchedObjective, method: Method, rules: tuple[StopRule, ...]
    ) -> None:
        self.objective, self.method, self.rules = objective, method, rules
        self.noise = ROUNDINGS * epsilon(objective.problems.like)
        self.began = time.perf_counter()

    @np.errstate(all="ignore")  # a start may be infinite, and is then NONFINITE
    def init(self, objective: Objective, params: Params) -> BatchState:
        """Return the state at the starts, whose values are not finite if none of them is."""
        size = self.objective.problems.size
        state = self.method.init(self.objective, self.objective.problems.start)
        points: Points = state.points
        steps = np.zeros(size, dtype=np.int64)
        value, optimality = points.value, points.optimality
        progress = Progress(
            steps, self._seconds(), value, optimality, optimality, value, optimality
        )
        ends = Points(*(field.copy() for field in points))
        self.ends = Ends(ends, np.full(size, None), steps.copy())
        finite = np.isfinite(value) & np.isfinite(optimality)
        grad = None
        if (points.grad == 0).all(axis=0).any():  # else each parameter matters to some problem
            grad = from_host(np.abs(points.grad).max(axis=0), params)
        self.running = running = Running(np.arange(size), state, progress, points, points)
        if not finite.any():
            value, optimality = float(value[0]), float(optimality[0])
            return BatchState(params, value, grad, optimality, None, False, running)
        status = self._status(running)
        status[~finite] = Status.NONFINITE
        return self._without(running, status, params)._replace(grad=grad)

    def step(self, objective: Objective, state: BatchState) -> BatchState:
        """Return the state after one record of each run."""
        return self.advance(objective, state, 1)[0]

    @np.errstate(all="ignore")  # a far trial may overflow, and is then rejected
    def advance(
        self, objective: Objective, state: BatchState, count: int
    ) -> tuple[BatchState, int]:
        """Take the method's steps up to its next record; `count` is not used."""
        running = state.running
        left = last_step(self.rules) - int(running.progress.step.max())
        count = int(min(self.method.optimizer.stride, left))
        new, steps = self.method.advance(self.objective, running.state, count)
        points, best, progress = new.points, running.best, running.progress
        progress = progress.after(
            points.value, points.optimality, new.moved, progress.step + steps, self._seconds()
        )
        better = improves(points.value, points.optimality, best.value, best.optimality, self.noise)
        best = where(better, points, best)
        self.running = running = running._replace(state=new, progress=progress, best=best)
        after = self._without(running, self._status(running), state.params)
        return after, len(running.rows) - len(after.running.rows)

    def interrupt(self) -> None:
        """End the runs under way; an interrupted step may have recorded the end of some."""
        running = take(is_none(self.ends.status[self.running.rows]), self.running)
        self._end(running, np.full(len(running.rows), Status.INTERRUPTED))

    def _seconds(self) -> float:
        return time.perf_counter() - self.began

    def _status(self, running: Running) -> np.ndarray:
        """Return the reason to stop of each run, None where there is none."""
        progress, own = running.progress, running.state.status
        status = np.full(len(own), None)
        for rule in reversed(self.rules):  # the first that applies is the last to be written
            status[np.broadcast_to(rule.check(progress), len(own))] = rule.status
        ended = ~is_none(own) & (status != Status.CONVERGED)
        status[ended] = own[ended]
        status[ended & (own == Status.NO_PROGRESS) & (progress.optimality == 0)] = Status.CONVERGED
        return status

    def _without(self, running: Running, status: np.ndarray, params: Params) -> BatchState:
        """Return the state without the runs that have a status, whose ends are recorded."""
        done = ~is_none(status)
        if done.any():
            self._end(take(done, running), status[done])
            running = take(~done, running)
            self.objective.keep(~done)
        points: Points = running.state.points
        if not len(running.rows):
            return BatchState(params, 0.0, None, 0.0, Status.COMPLETED, True, running)
        value, optimality = float(points.value.mean()), float(points.optimality.max())
        return BatchState(params, value, None, optimality, None, True, running)

    def _end(self, running: Running, status: np.ndarray) -> None:
        """Record the ends of runs."""
        points, rows = running.state.points, running.rows
        reasons = np.array(
            [explain(status[i], take(i, running.start), take(i, points)) for i in range(len(rows))]
        )
        failed = (reasons == Status.DIVERGED) | (reasons == Status.NO_PROGRESS)
        chosen = where(failed, running.best, points)
        for field, values in zip(self.ends.points, chosen, strict=True):
            field[rows] = values
        self.ends.status[rows], self.ends.steps[rows] = reasons, running.progress.step
