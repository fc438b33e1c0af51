"""The loop: drives an optimizer from a start until a stop rule ends the run."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from mlxopt._checks import check_start, late_interrupt
from mlxopt._objective import Objective
from mlxopt._progress import ProgressBar
from mlxopt._result import History, Info, Phase
from mlxopt._resume import resumed
from mlxopt._status import Status, warn
from mlxopt._stop import ROUNDINGS, Progress, StopRule, explain, improves, last_step, with_user
from mlxopt._tree import Params, dtype_name, epsilon, leaves, working_dtype
from mlxopt.optimizers import Optimizer
from mlxopt.optimizers._base import STATE_FIELDS

Callback = Callable[[Info], bool | None]


class Loop:
    """One run of one or more phases, with one count of steps and one history.

    Args:
        callback: called with an `Info` at each record; True stops.
        bar: the progress bar.
        stop: the stop rules of the user, which hold in every phase.
        stride: steps between two records; None is the optimizer's.
        explains: whether DIVERGED or UNBOUNDED replaces a status where the states show it.
    """

    def __init__(
        self,
        callback: Callback | None,
        bar: ProgressBar,
        stop: tuple[StopRule, ...],
        stride: int | None = None,
        explains: bool = True,
    ) -> None:
        self.callback, self.bar, self.explains = callback, bar, explains
        self.stop, self.stride = stop, stride
        self.records: list[tuple[int, float, float, float]] = []  # as in History
        self.began = time.perf_counter()
        self.steps = 0  # of the phases before the current one
        self.evaluations = 0  # likewise, less those that the current objective counted before
        self.phases: list[Phase] = []

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
        self.evaluations -= earlier
        with late_interrupt():
            start = state = optimizer.init(objective, params)
        check_fields(optimizer, state)
        check_start(state.value, state.optimality)
        if init is not None:
            start = state = resumed(optimizer, init, state)
        if not self.phases and state.grad is not None:
            warn_of_ignored(objective, params, state.grad)
        best, noise, steps, last = state, ROUNDINGS * epsilon(params), 0, last_step(rules)
        value, optimality = state.value, state.optimality
        progress = Progress(0, self._seconds(), value, optimality, value, optimality)
        try:
            with late_interrupt():
                # The end of one phase is the start of the next, and already recorded; so is the
                # end of a run resumed without anything left to do.
                record = not self.phases and objective.evaluations > earlier
                status = self._record(objective, state, 0, record)
                status = status or _status(rules, progress, state)
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
                    status = status or _status(rules, progress, state)
        except KeyboardInterrupt:
            status = Status.INTERRUPTED
        if self.explains:
            status = explain(status, start, state)
        if status in (Status.DIVERGED, Status.NO_PROGRESS):
            state = best
        mx.eval(leaves(state.params))
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
        }

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


def _status(rules: tuple[StopRule, ...], progress: Progress, state: Any) -> Status | None:
    """Return the reason to stop, if there is one: that of a rule, or the optimizer's own."""
    status = None
    for rule in rules:
        if rule.check(progress):
            status = rule.status
            break
    if state.status is None or status is Status.CONVERGED:
        return status
    # At a gradient of exactly zero there is no direction to search.
    at_zero = state.status is Status.NO_PROGRESS and state.optimality == 0
    return Status.CONVERGED if at_zero else state.status


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
