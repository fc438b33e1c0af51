"""Many problems as one optimizer, for the loop that every run shares.

Each problem stops by the rules of a single run. Those that have stopped leave the batch, so that
the algorithms compute with the others alone. Those that claim to have converged wait outside until
none runs, and are then judged together; where a claim is refused, the problem enters the batch
again.
"""

from __future__ import annotations

import contextlib
import time
from typing import NamedTuple

import numpy as np

from mlxopt._objective import Objective
from mlxopt._status import Status
from mlxopt._stop import ROUNDINGS, Progress, StopRule, Tolerance, explain, improves, last_step
from mlxopt._tree import Params, epsilon, from_host
from mlxopt.many._objective import BatchedObjective
from mlxopt.many._state import Method, Points, Running, Verdicts, is_none, join, take, where
from mlxopt.many._verdict import BatchedJudge
from mlxopt.optimizers import Optimizer

_NONE = np.zeros(0, dtype=int)  # the rows of no run


class Ends(NamedTuple):
    """The ends of the runs; B rows."""

    points: Points
    steps: np.ndarray  # (B,) int
    verdicts: Verdicts  # B rows; no status where the run is under way


class BatchState(NamedTuple):
    """The state of all runs, as the loop reads it."""

    params: Params  # those of the first problem, for their dtype
    value: float  # the mean loss of the runs under way
    grad: Params | None  # zero where the loss ignores a parameter; only at the start
    optimality: float  # the largest of the runs under way
    status: Status | None  # COMPLETED when none is
    moved: bool
    running: Running
    waiting: Running  # to be judged


class Batch(Optimizer[BatchState]):
    """A method on many problems; a step, as the loop counts, is a problem that stops or waits.

    Args:
        objective: the losses of all problems.
        method: takes the steps.
        rules: the stop rules of each problem.
        judge: confirms what claims to have converged; None believes it.
    """

    def __init__(
        self,
        objective: BatchedObjective,
        method: Method,
        rules: tuple[StopRule, ...],
        judge: BatchedJudge | None,
    ) -> None:
        self.objective, self.method, self.rules, self.judge = objective, method, rules, judge
        self.noise = ROUNDINGS * epsilon(objective.problems.like)
        self.began = time.perf_counter()
        self.under_way: tuple[Running, ...] = ()

    @np.errstate(all="ignore")  # a start may be infinite, and is then NONFINITE
    def init(self, objective: Objective, params: Params) -> BatchState:
        """Return the state at the starts, whose values are not finite if none of them is."""
        size = self.objective.problems.size
        state = self.method.init(self.objective, self.objective.problems.start)
        points: Points = state.points
        steps = np.zeros(size, dtype=np.int64)
        value, optimality = points.value, points.optimality
        progress = Progress(
            steps,
            self._seconds(),
            value,
            optimality,
            optimality,
            value,
            optimality,
            stalled=steps,
            idle=steps,
        )
        ends = Points(*(field.copy() for field in points))
        self.ends = Ends(ends, steps.copy(), Verdicts.of(np.full(size, None)))
        # Whether a start can be a minimum: a step that leaves it tells for nothing.
        self.unsure = np.full(size, self.judge is not None and self.judge.tol > 0)
        finite = np.isfinite(value) & np.isfinite(optimality)
        grad = None
        if (points.grad == 0).all(axis=0).any():  # else each parameter matters to some problem
            grad = from_host(np.abs(points.grad).max(axis=0), params)
        running = Running(np.arange(size), state, progress, points, points)
        self.under_way = (running,)
        if not finite.any():
            value, optimality = float(value[0]), float(optimality[0])
            return BatchState(params, value, grad, optimality, None, False, running, running)
        self._end(take(~finite, running), np.full(size, Status.NONFINITE)[~finite])
        running = take(finite, running)
        running = self._judged("at_end", running, self.unsure[finite] & (optimality[finite] == 0))
        return self._sorted(params, running, take(_NONE, running))._replace(grad=grad)

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
        running = running._replace(state=new, progress=progress, best=best)
        self.under_way = running, state.waiting
        after = self._sorted(state.params, running, state.waiting)
        self.under_way = after.running, after.waiting
        return after, len(running.rows) - len(after.running.rows)

    @np.errstate(all="ignore")
    def interrupt(self) -> None:
        """End the runs under way, those that wait with their verdict.

        An interrupted step may have recorded the end of some.
        """
        under_way = [take(is_none(self.ends.verdicts.status[r.rows]), r) for r in self.under_way]
        with contextlib.suppress(KeyboardInterrupt):
            for waiting in under_way[1:]:
                self._refused(waiting)
        for runs in under_way:
            runs = take(is_none(self.ends.verdicts.status[runs.rows]), runs)
            self._end(runs, np.full(len(runs.rows), Status.INTERRUPTED))

    def _seconds(self) -> float:
        return time.perf_counter() - self.began

    def _status(self, runs: Running) -> tuple[np.ndarray, np.ndarray]:
        """Return which runs claim to have converged, and why each stops else: None or a Status."""
        progress, own = runs.progress, runs.state.status
        claimed, status = np.zeros(len(own), dtype=bool), np.full(len(own), None)
        for rule in reversed(self.rules):  # the first that applies is the last to be written
            applies = np.broadcast_to(rule.check(progress), len(own))
            if isinstance(rule, Tolerance):
                claimed = claimed | applies
            else:
                status[applies] = rule.status
        ended = ~is_none(own)
        status[ended] = own[ended]
        if self.judge is not None:
            return claimed & (progress.optimality <= self.judge.goal[runs.rows]), status
        claimed |= (own == Status.NO_PROGRESS) & (progress.optimality == 0)
        status[claimed] = Status.CONVERGED
        return np.zeros(len(own), dtype=bool), status

    def _sorted(self, params: Params, running: Running, waiting: Running) -> BatchState:
        """Return the state without the runs that have ended."""
        if self.judge is not None:
            claimed, statuses = self._status(running)
            first = running.state.moved | claimed | ~is_none(statuses)
            first &= self.unsure[running.rows] & (running.progress.step > 0)
            self.unsure[running.rows[first]] = False
            running = self._judged("at_start", running, first & ~self.judge.has_left(running))
            claimed, statuses = self._status(running)
            waits = claimed | (statuses == Status.NO_PROGRESS)
            if waits.any():
                waiting, running = join(waiting, take(waits, running)), take(~waits, running)
        running = self._unfinished(running)
        if len(waiting.rows) and (self.method.in_step or not len(running.rows)):
            running, waiting = join(running, self._refused(waiting)), take(_NONE, waiting)
        if not np.array_equal(running.rows, self.objective.alive):
            self.objective.keep(running.rows)
        points: Points = running.state.points
        if not len(running.rows):
            status = Status.COMPLETED
            return BatchState(params, 0.0, None, 0.0, status, True, running, waiting)
        value, optimality = float(points.value.mean()), float(points.optimality.max())
        return BatchState(params, value, None, optimality, None, True, running, waiting)

    def _refused(self, waiting: Running) -> Running:
        """Return the runs that have to go on, the others ended."""
        waiting = self._judged("on_claim", waiting, self._status(waiting)[0])
        stuck = self._status(waiting)[1] == Status.NO_PROGRESS
        return self._unfinished(self._judged("at_end", waiting, stuck))

    def _judged(self, kind: str, runs: Running, chosen: np.ndarray) -> Running:
        """Return the runs without those of the chosen that a judgement ends."""
        if self.judge is None or not chosen.any():
            return runs
        some = take(chosen, runs)
        points = {"at_start": runs.start, "on_claim": runs.state.points, "at_end": runs.best}[kind]
        found = self.judge(kind, some, take(chosen, points))
        ended = ~is_none(found.status)
        over = chosen.copy()
        over[chosen] = ended
        steps = np.where(kind == "at_start", 0, runs.progress.step)
        self._record(runs.rows[over], take(over, points), steps[over], take(ended, found))
        if kind == "at_end" and not ended.all():
            # The loss is noisier than was known, which the next search allows for.
            state, progress = runs.state, runs.progress
            status, moved = state.status.copy(), state.moved | chosen
            status[chosen] = None
            stalled, idle = (np.where(chosen, 0, n) for n in (progress.stalled, progress.idle))
            runs = runs._replace(
                state=state._replace(status=status, moved=moved),
                progress=progress._replace(stalled=stalled, idle=idle),
            )
        return take(~over, runs) if ended.any() else runs

    def _unfinished(self, runs: Running) -> Running:
        """Return the runs without those that a status ends."""
        status = self._status(runs)[1]
        done = ~is_none(status)
        if not done.any():
            return runs
        self._end(take(done, runs), status[done])
        return take(~done, runs)

    def _end(self, runs: Running, status: np.ndarray) -> None:
        """Record the ends of runs that are not judged."""
        points, size = runs.state.points, len(runs.rows)
        reasons = np.array(
            [explain(status[i], take(i, runs.start), take(i, points)) for i in range(size)],
            dtype=object,
        )
        failed = (reasons == Status.DIVERGED) | (reasons == Status.NO_PROGRESS)
        points = where(failed, runs.best, points)
        self._record(runs.rows, points, runs.progress.step, Verdicts.of(reasons))

    def _record(self, rows: np.ndarray, points: Points, steps: np.ndarray, found: Verdicts) -> None:
        """Record the ends of runs."""
        for field, values in zip(self.ends.points, points, strict=True):
            field[rows] = values
        self.ends.steps[rows] = steps
        for field, values in zip(self.ends.verdicts, found, strict=True):
            field[rows] = values
