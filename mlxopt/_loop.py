"""The loop: drives an optimizer from a start until a stop rule ends the run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np

from mlxopt._around import Verdict
from mlxopt._checks import late_interrupt
from mlxopt._objective import Objective
from mlxopt._point import Start
from mlxopt._progress import ProgressBar
from mlxopt._report import entry_names
from mlxopt._result import History, Info, Phase
from mlxopt._resume import resumed
from mlxopt._status import Status, warn
from mlxopt._stop import (
    ROUNDINGS,
    Progress,
    StopRule,
    Tolerance,
    explain,
    improves,
    last_step,
    with_user,
)
from mlxopt._tree import Params, dtype_name, epsilon, leaves, to_host, working_dtype
from mlxopt._verdict import Judge
from mlxopt.optimizers import Optimizer
from mlxopt.optimizers._base import STATE_FIELDS

_RESTING = 5  # records in a row that lowered nothing: rounding may be all that is left
_RUNAWAY = 1e4  # times its start and one, from which on a parameter is said to run away

Callback = Callable[[Info], bool | None]
R = TypeVar("R")


_KEPT = (
    "The run up to here is kept in this exception: error.result has the last parameters, and their "
    "state to resume from."
)


class Loop:
    """One run of one or more phases, with one count of steps and one history.

    Args:
        callback: called with an `Info` at each record; True stops.
        bar: the progress bar.
        stop: the stop rules of the user, which hold in every phase.
        stride: steps between two records; None is the optimizer's.
        explains: whether DIVERGED or UNBOUNDED replaces a status where the states show it.
        judges: whether CONVERGED has to be confirmed by the curvature; see `Judge`.
    """

    def __init__(
        self,
        callback: Callback | None,
        bar: ProgressBar,
        stop: tuple[StopRule, ...],
        stride: int | None = None,
        explains: bool = True,
        judges: bool = False,
    ) -> None:
        self.callback, self.bar, self.explains, self.judges = callback, bar, explains, judges
        self.stop, self.stride = stop, stride
        self.records: list[tuple[int, float, float, float]] = []  # as in History
        self.began = time.perf_counter()
        self.steps = 0  # of the phases before the current one
        self.evaluations = 0  # likewise, less those that the current objective counted before
        self.phases: list[Phase] = []
        self.start: Start | None = None  # of the first phase
        self.drop = 0.0  # of the loss since the start
        self.steepest = 0.0  # the largest optimality of all phases
        self.verdict = Verdict(None)  # the last one of the last phase
        self.judged: Any = None  # the state that it is about
        self.state: Any = None  # the last of the run, once the loss at the start is known

    def answer(
        self, run: Callable[[], tuple[Any, Status]], describe: Callable[[Any, Status], R]
    ) -> R:
        """Return `describe` of the state and the status with which `run`, some phases, ends.

        After Ctrl-C at any place they are the last state and INTERRUPTED. An exception has the
        result at that state as its attribute `result`. Without a state both are raised as they are.
        """
        try:
            try:
                with late_interrupt(), self.bar:
                    self.state, status = run()
            except Exception as error:
                if self.state is not None:
                    error.result = describe(self.state, Status.INTERRUPTED)  # pyright: ignore[reportAttributeAccessIssue]
                    error.add_note(_KEPT)
                raise
            return describe(self.state, status)
        except KeyboardInterrupt:
            if self.state is None:
                raise
            return describe(self.state, Status.INTERRUPTED)

    def __call__(
        self,
        objective: Objective,
        optimizer: Optimizer[Any],
        params: Params,
        *rules: StopRule,
        stride: int | None = None,
        init: Any = None,
    ) -> tuple[Any, Status]:
        """Run one phase; return its last state, or the best one after a failure, and the status.

        Args:
            objective: the loss over its data.
            optimizer: the method.
            params: the start.
            *rules: stop rules; the first that applies, then one of the user's, gives the status.
            stride: steps between two records; None is that of the run.
            init: a state at `params` to resume from.
        """
        rules = with_user(rules, self.stop)
        stride = stride or self.stride or optimizer.stride
        began, earlier = time.perf_counter(), objective.evaluations
        start = state = optimizer.init(objective, params)
        check_fields(optimizer, state)
        objective.check_start(params, state.value, state.optimality, state.grad)
        if init is not None:
            start = state = resumed(optimizer, init, state)
        self.evaluations -= earlier
        best, noise, steps, last = state, ROUNDINGS * epsilon(params), 0, last_step(rules)
        value, optimality = state.value, state.optimality
        self.steepest = max(self.steepest, optimality)
        progress = Progress(0, self._seconds(), value, optimality, self.steepest, value, optimality)
        if self.start is None:
            self.start = Start(to_host(params), value)
        judge = Judge(objective, optimizer, _tol(rules), self.start) if self.judges else None
        self.verdict, status = Verdict(None), None
        try:
            with late_interrupt():
                if not self.phases and state.grad is not None:
                    warn_of_ignored(objective, params, state.grad)
                # The end of one phase is the start of the next, and already recorded; so is the
                # end of a run resumed without anything left to do.
                record = not self.phases and objective.evaluations > earlier
                status = self._record(objective, state, 0, record)
                if status is None and judge is not None and judge.tol > 0:
                    status = self._judged(judge.at_start, state)
                status = status or self._status(rules, progress, state, best, judge)
                while status is None:
                    count = stride if steps + stride <= last else int(last) - steps
                    state, taken = optimizer.advance(objective, state, count)
                    steps += taken
                    value, optimality = state.value, state.optimality
                    if improves(value, optimality, best.value, best.optimality, noise):
                        best = state
                    progress = progress.after(
                        value, optimality, state.moved, steps, self._seconds()
                    )
                    # Without a step there is nothing new to record.
                    status = self._record(objective, state, steps) if taken else None
                    status = status or self._status(rules, progress, state, best, judge)
                    if status is None and state.status is not None:
                        # The loss is noisier than was known, which the next search allows for.
                        state, progress = state._replace(status=None), progress.refreshed()
                if self.explains:
                    status = explain(status, start, state)
                if self.verdict.status is not None:
                    state = self.judged
                elif status in (Status.DIVERGED, Status.NO_PROGRESS):
                    state = best
                mx.eval(leaves(state.params))
        except KeyboardInterrupt:
            status = Status.INTERRUPTED
        finally:  # an exception ends the phase too
            self.state, status = state, status or Status.INTERRUPTED
            self.drop = self.start.value - state.value
            self.steepest = max(self.steepest, progress.steepest)
            self.steps += steps
            self.evaluations += objective.evaluations
            self.phases.append(
                Phase(
                    type(optimizer).__name__,
                    dtype_name(working_dtype(params)),
                    status,
                    steps,
                    objective.evaluations - earlier,
                    time.perf_counter() - began,
                    state.value,
                    state.optimality,
                )
            )
        return state, status

    def summary(self, state: Any, status: Status) -> dict[str, Any]:
        """Return the fields that all results share, by name."""
        return {
            "params": state.params,
            "value": state.value,
            "optimality": state.optimality,
            "status": status,
            "steps": self.steps,
            "evaluations": self.evaluations,
            "seconds": self._seconds(),
            "history": History.of(self.records),
            "phases": tuple(self.phases),
            "gain": float(self.verdict.gain) if self.verdict.status is status else math.nan,
            "reason": self._reason(state, status),
        }

    def _reason(self, state: Any, status: Status) -> str:
        """Return more about the status, where there is more to say."""
        reason = self.verdict.reason if self.verdict.status is status else ""
        if not status.is_failure or self.start is None:
            return reason
        x = to_host(state.params)
        far = np.abs(x) / (1 + np.abs(self.start.x))
        if far.max() <= _RUNAWAY:
            return reason
        name, number = entry_names("params", state.params)[int(far.argmax())], x[far.argmax()]
        runaway = f"{name} runs away, to {number:.3g}: is the minimum at infinity? Add a penalty."
        return f"{reason or status.value} {runaway}"

    def _seconds(self) -> float:
        return time.perf_counter() - self.began

    def _record(
        self, objective: Objective, state: Any, steps: int, record: bool = True
    ) -> Status | None:
        """Record the state and show it; return STOPPED if the callback asks for it."""
        seconds, total = self._seconds(), self.steps + steps
        value, optimality = state.value, state.optimality
        if record:
            self.records.append((total, value, optimality, seconds))
        self.bar.update(total, value)
        if self.callback is None:
            return None
        evaluations = self.evaluations + objective.evaluations
        info = Info(total, value, optimality, seconds, evaluations, state.params, state)
        return Status.STOPPED if self.callback(info) else None

    def _status(
        self,
        rules: tuple[StopRule, ...],
        progress: Progress,
        state: Any,
        best: Any,
        judge: Judge | None,
    ) -> Status | None:
        """Return the reason to stop, if there is one: that of a rule, or the optimizer's own."""
        claimed, status = (_first(rules, progress, claims) for claims in (True, False))
        if judge is None:
            at_zero = state.status is Status.NO_PROGRESS and state.optimality == 0
            return Status.CONVERGED if at_zero else claimed or state.status or status
        if claimed is not None:
            claimed = self._judged(judge.on_claim, state)
        elif progress.idle == _RESTING and state.status is None and judge.tol > 0:
            claimed = self._judged(judge.at_rest, best)
        status = claimed or state.status or status
        if claimed is None and status is Status.NO_PROGRESS:
            return self._judged(judge.at_end, best)
        return status

    def _judged(self, judge: Callable[[Any], Verdict], state: Any) -> Status | None:
        self.verdict, self.judged = judge(state), state
        return self.verdict.status


def _first(rules: tuple[StopRule, ...], progress: Progress, claims: bool) -> Status | None:
    """Return the status of the first rule that applies, of those that claim convergence or not."""
    for rule in rules:
        if isinstance(rule, Tolerance) == claims and rule.check(progress):
            return rule.status
    return None


def _tol(rules: tuple[StopRule, ...]) -> float:
    return next((rule.tol for rule in rules if isinstance(rule, Tolerance)), 0.0)


def check_fields(optimizer: Optimizer[Any], state: Any) -> None:
    """Raise TypeError unless the state of a user's optimizer has all the fields of `State`."""
    missing = [name for name in STATE_FIELDS if not hasattr(state, name)]
    if missing:
        raise TypeError(
            f"{type(optimizer).__name__}.init returned {type(state).__name__} without "
            f"{', '.join(missing)}; expected a NamedTuple with the fields "
            f"{', '.join(STATE_FIELDS)}. See mlxopt.optimizers.State."
        )


def warn_of_ignored(objective: Objective, params: Params, grad: Params) -> None:
    """Warn about each leaf of `params` that the loss does not depend on."""
    ignored = objective.ignored_leaves(params, grad)
    if ignored:
        names = ", ".join(ignored)
        warn(
            f"the loss ignores {names}, so the run leaves it where it started: its gradient is "
            f"zero, and NaN there changes nothing. Is it used, and connected by MLX operations?"
        )
