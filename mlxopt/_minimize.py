"""The full-batch loop: from a loss and a start to an answer that says how far it can be trusted."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from mlxopt._certificate import certify
from mlxopt._checks import check_callback, check_count, check_finish, check_tol, describe_type
from mlxopt._keywords import with_advice
from mlxopt._loop import Callback, Loop
from mlxopt._objective import Loss, Objective
from mlxopt._platform.device import device_for
from mlxopt._progress import ProgressBar
from mlxopt._result import Result
from mlxopt._resume import check_init
from mlxopt._status import SETTLED, Status, warn
from mlxopt._stop import AllSteps, Stall, StopRule, check_stop, stop_rules
from mlxopt._tree import Params, check_params, copies, count, default_tol, first_tol, widened
from mlxopt.autodiff._arguments import as_data
from mlxopt.autodiff._guards import check_is_callable
from mlxopt.autodiff._pairs import warn_of_pairs
from mlxopt.optimizers import Newton, Optimizer, State
from mlxopt.optimizers._base import as_rule
from mlxopt.optimizers._polish import RISE

# After these ends of a stage the next stage runs; after these of the last one, `finish` does.
_CONTINUES = {Status.COMPLETED, Status.MAX_STEPS, Status.NO_PROGRESS}
_POLISHED = 500  # parameters at most for Newton steps at the end of `finish`
_POLISH_STEPS = 5

Stages = list[tuple[Optimizer[Any], int]]


@with_advice
def minimize(
    loss: Loss,
    params: Params,
    optimizer: Optimizer[Any] | list[Optimizer[Any] | tuple[Optimizer[Any], int]],
    *data: Any,
    tol: float | None = None,
    max_steps: int = 1000,
    stop: StopRule | Sequence[StopRule] = (),
    finish: str | None = None,
    init: Any = None,
    record_every: int | None = None,
    callback: Callback | Sequence[Callback] | None = None,
    progress: bool | None = None,
    compile: bool = True,
) -> Result:
    """Minimize `loss(params, *data)` over `params`, on all the data at once.

    Args:
        loss: a function `loss(params, *data)` that returns a scalar array, made of MLX operations.
            Random operations in it use one fixed draw.
        params: the start, a tree (array, list, tuple, dict, NamedTuple) of float arrays. Numbers
            and arrays of NumPy become float32, unless they are float16.
        optimizer: `LBFGS()` is the one to try first; see `mlxopt.optimizers`. A list runs several
            in turn, each from the end of the one before: `[(SGD(0.1), 200), LBFGS()]`, where a pair
            has its own number of steps in place of `max_steps`.
        *data: the other arguments of the loss. NumPy arrays, lists and integers are converted to
            the dtype of `params` (float32 beside 16-bit ones); integers stay integers where the
            loss uses them as indices or bits. If anything is float64, all is computed on the CPU.
        tol: CONVERGED when the largest entry of the gradient has fallen to `tol` times its largest
            value on the way, and a Newton step would lower the loss by at most tol² times its drop
            so far: the distance to the minimum is then at most about `tol` times that from the
            start, in the metric of the curvature. It has no units. A gain below the rounding error
            of the loss ends a run too, and `result.reason` says so. None: 3e-6 for float32, 1e-9
            for float64, 1e-3 for the 16-bit dtypes. 0 takes every step.
        max_steps: the largest number of steps: updates of a first-order rule, else evaluations.
        stop: stop rules beside `tol` and `max_steps`, such as `mo.Seconds(60)`; see `mo.StopRule`.
        finish: "float64" continues in float64 on the CPU, data converted, with the last optimizer;
            then, for up to 500 parameters, with Newton steps on the exact Hessian until these
            improve nothing. The parameters are then float64. `tol` is that of the end: 1e-9 where
            None.
        init: a state to resume from: `result.state` of a run with the same loss, data and optimizer
            (the first of a list), or from `mo.load`; `params` is then used only for its structure,
            shapes and dtypes. The memory of the optimizer and the step of a schedule are restored:
            50 steps and 50 more are 100 steps. `max_steps` and the result count those of this run.
        record_every: steps between two records, by default 10 for first-order rules and 1 for the
            others. Each record is an entry of `result.history` and a call of `callback`, and the
            stop rules are checked then.
        callback: called with an `Info` (step, value, optimality, seconds, evaluations, params,
            state) at each record; returning True stops. A list of functions calls each.
        progress: show a progress bar; None shows one if the run takes more than a second.
        compile: False evaluates op by op, for a loss that branches on values; its gradient is then
            held against finite differences at the start. A compiled loss has everything it captures
            frozen into it, and its value at the start is held against one op by op.

    Returns:
        a `Result`. Ctrl-C ends the run and returns the last finite point, INTERRUPTED (before the
        loss at the start is known, KeyboardInterrupt is raised). An exception of the callback or of
        the loss has that result as its attribute `result`. The loss and the data are held for
        `result.certificate`, until it is computed or `result.release()` is called; a pickle or a
        copy of the result is without them.

    Raises:
        TapeError: the loss reads arrays that depend on the parameters back to Python, or its value
            changes from call to call.
        TypeError, ValueError: `params`, `data`, an option or the value of the loss is not as
            described, the loss is not finite at the start, or `init` belongs to another optimizer,
            another loss or other parameters.

    Warns:
        ConvergenceWarning: the run ended without converging and was not asked to; or the loss
            ignores a leaf of `params`.
        UserWarning: a cast of data to the dtype of `params` merges their numbers, or the loss
            combines each row with all others, as shapes (n,) and (n, 1) do.

    >>> import mlx.core as mx, mlxopt as mo
    >>> def loss(params, x, y):
    ...     return mx.mean((params["w"] * x + params["b"] - y) ** 2)
    >>> start = {"w": mx.array(0.0), "b": mx.array(0.0)}
    >>> result = mo.minimize(loss, start, mo.LBFGS(), [0.0, 1.0, 2.0], [1.0, 3.0, 5.0])
    >>> result.converged, round(result.params["w"].item(), 4), round(result.params["b"].item(), 4)
    (True, 2.0, 1.0)
    """
    check_is_callable(loss)
    stages = _stages(optimizer, check_count(max_steps, "max_steps"))
    params = check_params(params)
    callback = check_callback(callback)
    check_finish(finish)
    tol = None if tol is None else check_tol(tol)
    if record_every is not None:
        check_count(record_every, "record_every")
    stop = check_stop(stop)
    if init is not None:
        check_init(init, params)
        params = init.params

    total = sum(steps for _, steps in stages)
    bar = ProgressBar("minimize", total, progress)
    loop = Loop(callback, bar, stop, record_every, judges=True)
    items = as_data(data, params, loss, warns=finish is None)
    with device_for(params, items):
        params = copies(params)
        init = None if init is None else init._replace(params=params)
        objective = Objective(loss, items, compile=compile)
    drawn = objective.loss  # not the objective, which holds a second copy of the data
    alone = all(optimizer.loss_alone for optimizer, _ in stages)

    def run() -> tuple[State, Status]:
        with device_for(params, items):
            objective.trace(params)
            if compile:
                warn_of_pairs(loss, params, items)
            first = first_tol(params, tol, finishes=finish is not None)
            state, status = _run(loop, objective, params, stages, first, init)
        if finish and status in SETTLED:
            with mx.stream(mx.cpu):
                last = stages[-1][0]
                wide = last.nearest(widened(state.params))
                again = widened(as_data(data, wide, loss))
                continued = Objective(drawn, again, compile=objective.compiles)
                least = default_tol(wide) if tol is None else tol
                state, status = _run(loop, continued, wide, stages[-1:], least)
                if last.loss_alone and status in SETTLED and count(wide) <= _POLISHED:
                    state, status = _polish(loop, continued, state, status)
        return state, status

    def result(state: State, status: Status) -> Result:
        judge = functools.partial(certify, drawn, state.params, *data, tol=tol, drop=loop.drop)
        fields = loop.summary(state, status)
        return Result(**fields, state=state, certify=judge if alone else None)

    found = loop.answer(run, result)
    if found.status.is_failure:
        warn(f"{found.status.name}: {found.reason or found.status.value}")
    return found


def _stages(optimizer: Any, max_steps: int) -> Stages:
    """Return each optimizer that is to run, with its number of steps."""
    listed = optimizer if isinstance(optimizer, list) else [optimizer]
    stages = []
    for item in listed:
        one, steps = item if isinstance(item, tuple) and len(item) == 2 else (item, max_steps)
        one = as_rule(one)
        if not isinstance(one, Optimizer):
            raise TypeError(
                f"optimizer is {describe_type(one)}; expected one of mlxopt's, such as mo.LBFGS(), "
                f"or a list of them, [(mo.SGD(0.1), 200), mo.LBFGS()]. It comes third: "
                f"minimize(loss, params, optimizer, *data)."
            )
        stages.append((one, check_count(steps, "the number of steps in a pair")))
    if not stages:
        raise ValueError("optimizer is an empty list; expected at least one optimizer in it.")
    return stages


def _run(
    loop: Loop, objective: Objective, params: Params, stages: Stages, tol: float, init: Any = None
) -> tuple[State, Status]:
    """Run each stage from the end of the one before."""
    for optimizer, steps in stages[:-1]:
        rules = stop_rules(tol, steps, optimizer.patience)
        state, status = loop(objective, optimizer, params, *rules, init=init)
        if status not in _CONTINUES:
            return state, status
        params, init = state.params, None
    optimizer, steps = stages[-1]
    rules = stop_rules(tol, steps, optimizer.patience)
    return loop(objective, optimizer, params, *rules, init=init)


def _polish(loop: Loop, objective: Objective, state: State, status: Status) -> tuple[State, Status]:
    """Take Newton steps on the exact Hessian until one improves nothing."""
    rules, verdict = (AllSteps(_POLISH_STEPS), Stall(1, math.inf)), loop.verdict
    # The gain of these steps is far below the rounding of the loss, whose terms may be larger: the
    # line search goes by the slopes.
    objective.noise = max(objective.noise, RISE)
    polished, ended = loop(objective, Newton(), state.params, *rules, stride=1)
    if ended in (Status.STOPPED, Status.INTERRUPTED, Status.MAX_SECONDS):
        return polished, ended
    if ended in SETTLED and polished.optimality <= state.optimality:
        state = polished
    if status is Status.CONVERGED:
        loop.verdict = verdict
        return state, status
    return state, ended if ended in SETTLED else status
