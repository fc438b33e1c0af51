"""The full-batch loop: from a loss and a start to an answer that says how far it can be trusted."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from mlxopt._backend import device_for
from mlxopt._checks import (
    check_callback,
    check_count,
    check_start,
    check_tol,
    describe_type,
    late_interrupt,
)
from mlxopt._objective import Objective
from mlxopt._progress import ProgressBar
from mlxopt._result import Info, Recorder, Result
from mlxopt._status import Status, warn
from mlxopt._tree import HALF, Tree, check_params, epsilon, leaves, to_data, working_dtype
from mlxopt.autodiff import check_is_callable
from mlxopt.optimizers import FirstOrder, Optimizer, State

# Reads in a row without a lower loss or a smaller gradient, after which a method that chooses its
# own steps has reached the rounding floor.
_STALL = 20

Callback = Callable[[Info], bool | None]


def minimize(
    loss: Callable[..., mx.array],
    params: Tree,
    optimizer: Optimizer[Any],
    *data: Any,
    tol: float | None = None,
    max_steps: int = 1000,
    record_every: int | None = None,
    callback: Callback | None = None,
    progress: bool | None = None,
    compile: bool = True,
) -> Result:
    """Minimize `loss(params, *data)` over `params`, on all the data at once.

    Args:
        loss: a function `loss(params, *data)` that returns a scalar array, made of MLX operations.
            Random operations in it see one fixed draw.
        params: where to start: a tree (array, list, tuple, dict, NamedTuple) of float arrays.
        optimizer: `LBFGS()` is the one to try first; see `mlxopt.optimizers`.
        *data: what the loss takes after its parameters. Floating-point NumPy arrays and lists take
            the dtype of `params` (float32 beside 16-bit ones); if anything is float64, all is
            computed on the CPU.
        tol: stop when no entry of the gradient is larger in absolute value. None: 1e-5 for float32,
            1e-8 for float64, 1e-3 for the 16-bit dtypes. 0 takes every step.
        max_steps: steps at most: updates of a first-order rule, else evaluations.
        record_every: steps between two reads of the loss, by default 10 for first-order rules and
            1 for the others; each read is an entry of `result.history` and a call of `callback`,
            and tests whether to stop.
        callback: called with an `Info` (step, value, grad_norm, seconds, evaluations, params) after
            each read; returning True stops.
        progress: show a progress bar; None shows one if the run lasts over a second.
        compile: False evaluates op by op, for a loss that branches on values. A compiled loss has
            whatever it refers to beside its arguments frozen into it.

    Returns:
        a `Result`. Ctrl-C ends the run and returns the last finite point, INTERRUPTED (before the
        loss is known at the start it raises KeyboardInterrupt as ever).

    Raises:
        TapeError: the loss reads arrays back to Python.
        TypeError, ValueError: `params`, `data`, an option or what the loss returns is not as
            described, or the loss is not finite at the start.

    Warns:
        ConvergenceWarning: the run ended without converging and was not asked to; or the loss
            ignores a leaf of `params`.

    >>> import mlx.core as mx, mlxopt as mo
    >>> def loss(params, x, y):
    ...     return mx.mean((params["w"] * x + params["b"] - y) ** 2)
    >>> start = {"w": mx.array(0.0), "b": mx.array(0.0)}
    >>> result = mo.minimize(loss, start, mo.LBFGS(), [0.0, 1.0, 2.0], [1.0, 3.0, 5.0])
    >>> result.converged, round(result.params["w"].item(), 4), round(result.params["b"].item(), 4)
    (True, 2.0, 1.0)
    """
    check_is_callable(loss)
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"optimizer is {describe_type(optimizer)}; expected one of mlxopt's, such as "
            f"mo.LBFGS(). It comes third: minimize(loss, params, optimizer, *data)."
        )
    check_params(params)
    check_callback(callback)
    tol = default_tol(params) if tol is None else check_tol(tol)
    check_count(max_steps, "max_steps")
    stride = optimizer.stride
    if record_every is not None:
        stride = check_count(record_every, "record_every")
    data = tuple(to_data(item, working_dtype(params)) for item in data)

    with device_for(params, data), ProgressBar("minimize", max_steps, progress) as bar:
        objective = Objective(loss, data, compile=compile)
        objective.trace(params)
        run = _Run(objective, optimizer, tol, max_steps, stride, callback, bar)
        result = run(params)
    if result.status.is_failure:
        warn(f"{result.status.name}: {result.status.value}")
    return result


class _Run:
    """One run of the loop."""

    def __init__(
        self, objective: Objective, optimizer: Optimizer[Any], tol: float, max_steps: int,
        stride: int, callback: Callback | None, bar: ProgressBar,
    ) -> None:  # fmt: skip
        self.objective, self.optimizer = objective, optimizer
        self.tol, self.max_steps, self.stride = tol, max_steps, stride
        self.callback, self.bar = callback, bar
        self.recorder = Recorder()
        self.began = time.perf_counter()
        self.steps = 0

    def __call__(self, params: Tree) -> Result:
        start = state = self.optimizer.init(self.objective, params)
        check_start(state.value, state.optimality)
        warn_of_ignored(self.objective, params, state.grad)
        best = state
        lowest, flattest, stalled = state.value, state.optimality, 0
        try:
            with late_interrupt():
                status = self._look(state)
                while status is None:
                    before = state
                    count = min(self.stride, self.max_steps - self.steps)
                    state, taken = self.optimizer.advance(self.objective, state, count)
                    self.steps += taken
                    if state.params is not before.params:  # else a line search is still under way
                        better = state.value < lowest or state.optimality < flattest
                        stalled = 0 if better else stalled + 1
                        lowest = min(lowest, state.value)
                        flattest = min(flattest, state.optimality)
                        best = _better(best, state)
                    status = self._look(state) or self._stuck(stalled)
        except KeyboardInterrupt:
            status = Status.INTERRUPTED
        status = _explain(status, start, state)
        if status in (Status.DIVERGED, Status.NO_PROGRESS):
            state = best
        return self._result(state, status)

    def _look(self, state: State) -> Status | None:
        """Record the state and show it; return why to stop here, if there is a reason."""
        seconds = time.perf_counter() - self.began
        self.recorder.add(self.steps, state.value, state.optimality, seconds)
        self.bar.update(self.steps, state.value)
        if self.callback is not None:
            evaluations = self.objective.evaluations
            info = Info(
                self.steps, state.value, state.optimality, seconds, evaluations, state.params
            )
            if self.callback(info):
                return Status.STOPPED
        if self.tol > 0 and state.optimality <= self.tol:
            return Status.CONVERGED
        if state.status is not None:
            return Status.CONVERGED if state.optimality == 0 else state.status
        if self.steps >= self.max_steps:
            return Status.COMPLETED if self.tol == 0 else Status.MAX_STEPS
        return None

    def _stuck(self, stalled: int) -> Status | None:
        """Return NO_PROGRESS after many reads in a row that were no better than what was seen."""
        if self.tol == 0:
            return None
        if isinstance(self.optimizer, FirstOrder):
            # With fixed steps it may oscillate for long before it settles; and a schedule may yet
            # lower its steps.
            patience = math.inf if callable(self.optimizer.learning_rate) else 5 * _STALL
        else:
            patience = _STALL
        return Status.NO_PROGRESS if stalled >= patience else None

    def _result(self, state: State, status: Status) -> Result:
        mx.eval(leaves(state.params))
        return Result(
            params=state.params,
            value=state.value,
            grad_norm=state.optimality,
            status=status,
            steps=self.steps,
            evaluations=self.objective.evaluations,
            seconds=time.perf_counter() - self.began,
            history=self.recorder.history(),
        )


def _better(best: State, state: State) -> State:
    """Return the state with the lower value, or, where rounding hides that, the flatter one."""
    if abs(state.value - best.value) <= 10 * epsilon(best.params) * abs(best.value):
        return state if state.optimality < best.optimality else best
    return state if state.value < best.value else best


def _explain(status: Status, start: State, state: State) -> Status:
    """Return what a loss that left the numbers, or moved away from its minimum, was doing."""
    if (
        status is Status.NONFINITE
        and state.value < start.value
        and state.optimality > start.optimality
    ):
        return Status.UNBOUNDED if _far_below(start, state) else status
    if status in (Status.NONFINITE, Status.MAX_STEPS, Status.COMPLETED):
        grown = state.value > start.value and state.optimality > 10 * start.optimality
        return Status.DIVERGED if grown else status
    return status


def _far_below(start: State, state: State) -> bool:
    """Whether the loss fell by a factor that no loss with a minimum nearby falls by."""
    return start.value - state.value > 1e6 * (1 + abs(start.value))


def default_tol(params: Tree) -> float:
    """Return the default tolerance for the largest entry of the gradient."""
    dtypes = {leaf.dtype for leaf in leaves(params)}
    if dtypes & set(HALF):
        return 1e-3
    return 1e-5 if mx.float32 in dtypes else 1e-8


def warn_of_ignored(objective: Objective, params: Tree, grad: Tree) -> None:
    """Warn about each leaf of `params` that the loss does not depend on."""
    ignored = objective.ignored_leaves(params, grad)
    if ignored:
        names = ", ".join(ignored)
        warn(
            f"the loss ignores {names}, so the run leaves it where it started: its gradient is "
            f"zero, and NaN there changes nothing. Is it used, and connected by MLX operations?"
        )
