"""The loop: drives an optimizer from a start to a reason to stop, and looks at where it is."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx

from mlxopt._checks import check_start, late_interrupt
from mlxopt._objective import Objective
from mlxopt._progress import ProgressBar
from mlxopt._result import Info, Phase, Recorder
from mlxopt._resume import resumed
from mlxopt._status import Status, warn
from mlxopt._tree import Tree, dtype_name, epsilon, leaves, working_dtype
from mlxopt.optimizers import FirstOrder, Optimizer, State

# Reads in a row without a lower loss or a smaller gradient, after which a method that chooses its
# own steps has reached the rounding floor.
STALL = 20
# A long float32 sum, added up naively, is off by a thousand roundings.
ROUNDINGS = 1000

Callback = Callable[[Info], bool | None]


class Limits(NamedTuple):
    """When the loop stops and how often it looks."""

    tol: float  # on the largest entry of the gradient; 0 switches that test off
    max_steps: int
    stride: int  # steps between two looks
    patience: int | None = None  # looks without a better one; None lets the method decide


class Loop:
    """One run, in one phase or several: an optimizer each, with one count of steps, one history.

    Args:
        callback: called with an `Info` at each look; returning True stops.
        bar: shows where the run is.
    """

    def __init__(self, callback: Callback | None, bar: ProgressBar) -> None:
        self.callback, self.bar = callback, bar
        self.recorder = Recorder()
        self.began = time.perf_counter()
        self.steps = 0  # of the phases before this one
        self.evaluations = 0  # likewise, less those that this phase's objective has counted
        self.phases: list[Phase] = []

    def __call__(
        self, objective: Objective, optimizer: Optimizer[Any], params: Tree, limits: Limits,
        init: Any = None,
    ) -> tuple[Any, Status]:  # fmt: skip
        """Run one phase from `params`, or from the state `init` there; return the state it ended
        in, and why.
        """
        began, earlier = time.perf_counter(), objective.evaluations
        self.evaluations -= earlier
        start = state = optimizer.init(objective, params)
        check_start(state.value, state.optimality)
        if init is not None:
            start = state = resumed(optimizer, init, state)
        if not self.phases:
            warn_of_ignored(objective, params, state.grad)
        best = state
        rounding = ROUNDINGS * epsilon(params)
        lowest, flattest, stalled, idle, steps = state.value, state.optimality, 0, 0, 0
        try:
            with late_interrupt():
                status = self._look(objective, state, steps, limits)
                while status is None:
                    before = state
                    count = min(limits.stride, limits.max_steps - steps)
                    state, taken = optimizer.advance(objective, state, count)
                    steps += taken
                    idle += taken
                    if state.params is not before.params:  # else a line search is still under way
                        better = state.value < lowest or state.optimality < flattest
                        stalled = 0 if better else stalled + 1
                        idle = 0 if better else idle
                        lowest = min(lowest, state.value)
                        flattest = min(flattest, state.optimality)
                        best = _better(best, state, rounding)
                    status = self._look(objective, state, steps, limits)
                    if status is None and _is_stuck(optimizer, limits, stalled, idle):
                        status = Status.NO_PROGRESS
        except KeyboardInterrupt:
            status = Status.INTERRUPTED
        status = _explain(status, start, state)
        if status in (Status.DIVERGED, Status.NO_PROGRESS):
            state = best
        mx.eval(leaves(state.params))
        self.steps += steps
        phase = Phase(
            type(optimizer).__name__, dtype_name(working_dtype(params)), status, steps,
            objective.evaluations - earlier, time.perf_counter() - began, state.value,
            state.optimality,
        )  # fmt: skip
        self.phases.append(phase)
        self.evaluations += objective.evaluations
        return state, status

    def _look(
        self, objective: Objective, state: State, steps: int, limits: Limits
    ) -> Status | None:
        """Record the state and show it; return why to stop here, if there is a reason."""
        seconds, total = time.perf_counter() - self.began, self.steps + steps
        if steps or not self.phases:  # else the phase before has recorded this point
            self.recorder.add(total, state.value, state.optimality, seconds)
        self.bar.update(total, state.value)
        if self.callback is not None:
            evaluations = self.evaluations + objective.evaluations
            info = Info(
                total, state.value, state.optimality, seconds, evaluations, state.params, state
            )
            if self.callback(info):
                return Status.STOPPED
        if limits.tol > 0 and state.optimality <= limits.tol:
            return Status.CONVERGED
        if state.status is not None:
            return Status.CONVERGED if state.optimality == 0 else state.status
        if steps >= limits.max_steps:
            return Status.COMPLETED if limits.tol == 0 else Status.MAX_STEPS
        return None


def _is_stuck(optimizer: Optimizer[Any], limits: Limits, stalled: int, idle: int) -> bool:
    """Whether so many looks in a row, or so many steps (those of a line search too), were no
    better than what was seen before.
    """
    if limits.patience is not None:
        return stalled >= limits.patience
    if limits.tol == 0:
        return False
    if isinstance(optimizer, FirstOrder):
        # With fixed steps it may oscillate for long before it settles; and a schedule may yet
        # lower its steps.
        patience = math.inf if callable(optimizer.learning_rate) else 5 * STALL
    else:
        patience = STALL
        if idle >= 3 * STALL * limits.stride:  # a line search at the rounding floor takes many
            return True
    return stalled >= patience


def _better(best: State, state: State, rounding: float) -> State:
    """Return the state with the lower value, or, where rounding hides that, the flatter one."""
    if abs(state.value - best.value) <= rounding * abs(best.value):
        return state if state.optimality < best.optimality else best
    return state if state.value < best.value else best


def _explain(status: Status, start: State, state: State) -> Status:
    """Return what a loss that left the numbers, or moved away from its minimum, was doing."""
    if (
        status is Status.NONFINITE
        and state.value < start.value
        and state.optimality > start.optimality
    ):
        return Status.UNBOUNDED if far_below(start.value, state.value) else status
    if status in (Status.NONFINITE, Status.MAX_STEPS, Status.COMPLETED):
        grown = state.value > start.value and state.optimality > 10 * start.optimality
        return Status.DIVERGED if grown else status
    return status


def far_below(first: Any, last: Any) -> Any:
    """Whether a loss, or each of an array of them, fell further than one with a minimum does."""
    return first - last > 1e6 * (1 + abs(first))


def warn_of_ignored(objective: Objective, params: Tree, grad: Tree) -> None:
    """Warn about each leaf of `params` that the loss does not depend on."""
    ignored = objective.ignored_leaves(params, grad)
    if ignored:
        names = ", ".join(ignored)
        warn(
            f"the loss ignores {names}, so the run leaves it where it started: its gradient is "
            f"zero, and NaN there changes nothing. Is it used, and connected by MLX operations?"
        )
