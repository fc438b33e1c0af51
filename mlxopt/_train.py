"""Mini-batches: first-order rules over epochs of batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import TYPE_CHECKING, Any

from mlxopt._checks import check_callback, check_count, describe_type
from mlxopt._epochs import Epochs, TrainState
from mlxopt._keywords import with_advice
from mlxopt._loop import Callback, Loop
from mlxopt._objective import Loss, Objective
from mlxopt._progress import ProgressBar
from mlxopt._result import TrainResult
from mlxopt._resume import check_init
from mlxopt._status import Status, warn
from mlxopt._stop import StopRule, check_stop
from mlxopt._tree import (
    Tree,
    check_params,
)
from mlxopt.autodiff._guards import check_is_callable
from mlxopt.optimizers import FirstOrder
from mlxopt.optimizers._base import as_rule

if TYPE_CHECKING:
    from mlx.optimizers import Optimizer as MLXOptimizer


@with_advice
def train(
    loss: Loss,
    params: Tree,
    optimizer: FirstOrder | MLXOptimizer,
    batches: Iterable[Any],
    epochs: int = 1,
    callback: Callback | Sequence[Callback] | None = None,
    progress: bool | None = None,
    compile: bool = True,
    init: TrainState | None = None,
    stop: StopRule | Sequence[StopRule] = (),
) -> TrainResult:
    """Minimize the mean of `loss(params, *batch)` over mini-batches, one step a batch.

    Args:
        loss: a function `loss(params, *batch)` that returns a scalar array, made of MLX operations.
            Random operations in it (dropout) draw new numbers in each step.
        params: the start, a tree of float arrays.
        optimizer: a first-order rule, such as `SGD` or `Adam`. Its learning rate may be a function
            of the step, counted from 0 over all epochs. An optimizer of `mlx.optimizers` works as
            it is: the run starts from a copy of its state.
        batches: `mo.batches(...)`, or any iterable that starts anew for each epoch and yields a
            tuple (or a single array) for each batch.
        epochs: the number of passes over `batches`.
        callback: called with an `Info` every 50 batches or every second, and at the end of an
            epoch; its `value` is the mean loss of the epoch so far. Returning True stops. A
            list of functions calls each.
        progress: show a progress bar; None shows one if the run takes more than a second.
        compile: False evaluates op by op, for a loss that branches on values; its gradient is then
            held against finite differences at the start. A compiled loss has everything it captures
            frozen into it, and its value at the start is held against one op by op.
        init: a state to resume from: `result.state` or `info.state` of a run with the same rule, or
            from `mo.load`; `params` is then used only for its structure, shapes and dtypes. The
            rule's buffers and the step of a schedule are restored. Epochs are counted on, so that
            `mo.batches` shuffles as in an uninterrupted run; an epoch left unfinished continues at
            its next batch, and is the first of `epochs` (0 if no other is left). Random numbers in
            the loss are not restored: they come from MLX's generator.
        stop: stop rules, such as `mo.Seconds(3600)`; see `mo.StopRule`.

    Returns:
        a `TrainResult`: its `value` is the mean loss of the last epoch's batches, each evaluated
        before its step. Status COMPLETED after all epochs. Ctrl-C ends the run and returns the
        last parameters, INTERRUPTED (before the first loss is known, KeyboardInterrupt is raised).
        If the loss or a parameter becomes NaN or infinite, the parameters before that batch are
        returned, NONFINITE, and `reason` names the batch; if the loss grows a thousandfold, the
        best ones, DIVERGED. An exception of `batches`, the loss or the callback has the result up
        to there as its attribute `result`, and a note that names the batch.

    Raises:
        TapeError: the loss reads arrays that depend on the parameters back to Python, or its value
            changes from call to call.
        TypeError, ValueError: an argument is not as described, the loss of the first batch is not
            finite, `batches` is exhausted before the last epoch, or its batches have other sizes
            than those that `init` has taken.

    Warns:
        ConvergenceWarning: the run failed, or the loss ignores a leaf of `params`.
        UserWarning: as in `minimize`.

    >>> import mlx.core as mx, mlxopt as mo
    >>> X = mx.random.normal((64, 2), key=mx.random.key(0))
    >>> y = X @ mx.array([2.0, -3.4]) + 4.2
    >>> def loss(params, X, y):
    ...     return mx.mean((X @ params["w"] + params["b"] - y) ** 2)
    >>> start = {"w": mx.zeros(2), "b": mx.array(0.0)}
    >>> result = mo.train(loss, start, mo.SGD(0.05), mo.batches(X, y, batch_size=8), epochs=40)
    >>> result.status, round(result.params["b"].item(), 3)
    (Status.COMPLETED, 4.2)
    """
    check_is_callable(loss)
    rule = as_rule(optimizer)
    if not isinstance(rule, FirstOrder):
        raise TypeError(
            f"optimizer is {describe_type(optimizer)}; train takes first-order rules, such as "
            f"mo.SGD(0.01). Methods that compare losses (LBFGS, Newton) need all the data at once: "
            f"mo.minimize(loss, params, optimizer, *data). It comes third: "
            f"train(loss, params, optimizer, batches)."
        )
    params = check_params(params)
    callback = check_callback(callback)
    if init is None or epochs != 0:  # a state may have completed all its epochs
        check_count(epochs, "epochs")
    if init is not None:
        check_init(init, params)
        params = init.params
    if not isinstance(batches, Iterable):
        raise TypeError(
            f"batches is {describe_type(batches)}; expected mo.batches(X, y, batch_size=32)."
        )
    if epochs > 1 and isinstance(batches, Iterator):
        raise ValueError(
            f"batches is a one-shot iterator, used up after one epoch of the {epochs} asked for. "
            f"Pass mo.batches(...), a list, or an object whose __iter__ starts anew."
        )
    total = len(batches) * epochs if isinstance(batches, Sized) else None

    stop = check_stop(stop)
    # The first batch is no step: the callback starts after it.
    after_start = callback and (lambda info: callback(info) if info.step else None)
    loop = Loop(after_start, ProgressBar("train", total, progress), stop, explains=False)
    objective = Objective(loss, compile=compile, fixed_draw=False)

    def result(state: TrainState, status: Status) -> TrainResult:
        # One optimizer in one dtype has no phases to tell apart.
        own = {"phases": (), "reason": steps.reason if status is Status.NONFINITE else ""}
        return TrainResult(**{**loop.summary(state, status), **own}, state=state)

    steps = Epochs(rule, batches, epochs, init)
    found = loop.answer(lambda: loop(objective, steps, params), result)
    if found.status.is_failure:
        warn(f"{found.status.name}: {found.reason or found.status.value}")
    return found
