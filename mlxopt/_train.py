"""The mini-batch loop: first-order rules over a stream of batches."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TYPE_CHECKING, Any, NamedTuple

import mlx.core as mx

from mlxopt._backend import device_for
from mlxopt._checks import check_callback, check_count, check_start, describe_type, late_interrupt
from mlxopt._loop import Callback, warn_of_ignored
from mlxopt._objective import Objective
from mlxopt._progress import ProgressBar
from mlxopt._result import Info, Recorder, TrainResult
from mlxopt._resume import check_init, check_make
from mlxopt._status import Status, warn
from mlxopt._tree import (
    Tree,
    check_params,
    is_finite,
    largest_entry,
    leaves,
    read,
    to_data,
    working_dtype,
)
from mlxopt.autodiff import check_is_callable
from mlxopt.data import Batches
from mlxopt.optimizers import FirstOrder
from mlxopt.optimizers._mlx import as_rule

if TYPE_CHECKING:
    from mlx.optimizers import Optimizer as MLXOptimizer

_STRIDE = 50  # batches between two reads
_PATIENCE = 1.0  # seconds after which to read before that


class TrainState(NamedTuple):
    """Where `train` stands, between two batches."""

    params: Tree  # the parameters
    buffers: Tree  # what the rule remembers
    step: int  # batches taken so far; the schedule's argument
    losses: tuple[float, ...]  # the mean loss of each epoch completed
    batch: int  # batches taken of the epoch under way
    total: float  # the sum of their losses, each times its examples
    rows: int  # those examples

    @property
    def epoch(self) -> int:
        """How many epochs have been completed."""
        return len(self.losses)

    @property
    def value(self) -> float:
        """The mean loss of the epoch under way, or else of the last one."""
        if self.rows:
            return self.total / self.rows
        return self.losses[-1] if self.losses else math.nan


def train(
    loss: Callable[..., mx.array],
    params: Tree,
    optimizer: FirstOrder | MLXOptimizer,
    batches: Iterable[Any],
    epochs: int = 1,
    callback: Callback | None = None,
    progress: bool | None = None,
    compile: bool = True,
    init: TrainState | None = None,
) -> TrainResult:
    """Minimize the mean of `loss(params, *batch)` over mini-batches, one step a batch.

    Args:
        loss: a function `loss(params, *batch)` that returns a scalar array, made of MLX operations.
            Random operations in it (dropout) draw fresh numbers in each step.
        params: where to start: a tree of float arrays.
        optimizer: a first-order rule, such as `SGD` or `Adam`. Its learning rate may be a function
            of the step, counted from 0 over all epochs. Any of `mlx.optimizers` will do as it is:
            the run begins from the state that it holds and leaves it alone.
        batches: `mo.batches(...)`, or anything that can be iterated once for each epoch and gives a
            tuple (or a single array) for each batch.
        epochs: how often to go through `batches`.
        callback: called with an `Info` every 50 batches or, if they are slow, every second, and at
            the end of an epoch; its `value` is the mean loss of the epoch so far. Returning True
            stops.
        progress: show a progress bar; None shows one if the run lasts over a second.
        compile: False evaluates op by op, for a loss that branches on values. A compiled loss has
            whatever it refers to beside its arguments frozen into it.
        init: a state to go on from in place of `params`, of which only the make then matters:
            `result.state` or `info.state` of a run with the same rule, or one from `mo.load`. What
            the rule remembers and the step that a schedule has reached are kept. Epochs are counted
            on, so that those of `mo.batches` have the order that they would have had; one that was
            under way is gone through to its end, from the batch after the last one taken, and is
            the first of `epochs` (0 where none is left). Random numbers in the loss are not kept:
            they come from MLX's generator.

    Returns:
        a `TrainResult`: its `value` is the mean loss of the last epoch's batches, measured on the
        way. Status COMPLETED after all epochs. Ctrl-C ends the run and returns the parameters last
        read, INTERRUPTED (before the first loss is known it raises KeyboardInterrupt as ever). If
        the loss or a parameter becomes NaN or infinite, the last parameters known to be finite come
        back, NONFINITE; if the loss grows a thousandfold, the best ones seen, DIVERGED.

    Raises:
        TapeError: the loss reads arrays back to Python.
        TypeError, ValueError: an argument is not as described, the loss of the first batch is not
            finite, `batches` is used up before the last epoch, or its batches are not as large as
            those that `init` has taken.

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
    check_params(params)
    check_callback(callback)
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

    with ProgressBar("train", total, progress) as bar:
        run = _Run(loss, rule, params, batches, epochs, callback, bar, compile, init)
        result = run()
    if result.status.is_failure:
        warn(f"{result.status.name}: {result.status.value}")
    return result


class _Run:
    """One run of the loop."""

    def __init__(
        self, loss: Callable[..., mx.array], optimizer: FirstOrder, params: Tree,
        batches: Iterable[Any], epochs: int, callback: Callback | None, bar: ProgressBar,
        compile: bool, init: TrainState | None,
    ) -> None:  # fmt: skip
        self.objective = Objective(loss, compile=compile, fixed_draw=False)
        self.optimizer, self.callback, self.bar = optimizer, callback, bar
        self.batches, self.epochs = batches, epochs
        with device_for(params):
            fresh = TrainState(params, optimizer.begin(params), 0, (), 0, 0.0, 0)
        if init is not None:
            check_make(optimizer, init, fresh)
        start = fresh if init is None else init
        self.first_step, self.first_epoch = start.step, start.epoch
        self.point = _Point(start, math.nan, math.nan)
        self.best = self.point  # the one with the lowest value
        self.start_value = math.nan
        self.recorder = Recorder()
        self.began = time.perf_counter()

    def __call__(self) -> TrainResult:
        status = None
        try:
            with late_interrupt():
                for epoch in range(self.first_epoch, self.first_epoch + self.epochs):
                    status = self._epoch(epoch)
                    if status is not None:
                        break
        except KeyboardInterrupt:
            status = Status.INTERRUPTED
        if status is Status.INTERRUPTED and math.isnan(self.point.value):
            raise KeyboardInterrupt  # before the first loss was known: there is no result yet
        if status is None and self._has_grown(self.point.value):
            status = Status.DIVERGED
        point = self.best if status is Status.DIVERGED else self.point
        state = point.state
        mx.eval(leaves(state.params))
        return TrainResult(
            params=state.params,
            # Not known where `init` had taken the last batch already.
            value=state.value if math.isnan(point.value) else point.value,
            grad_norm=point.grad_norm,
            status=status or Status.COMPLETED,
            steps=state.step - self.first_step,
            evaluations=self.objective.evaluations,
            seconds=time.perf_counter() - self.began,
            history=self.recorder.history(),
            state=state,
        )

    def _epoch(self, epoch: int) -> Status | None:
        """Take one epoch's steps; return why to stop early, if there is a reason."""
        # None but in the first epoch after `init`; the losses so far, and the examples in them.
        taken, total, rows = self.point.state[-3:]
        for stretch in _stretches(self._groups(epoch, skip=taken)):
            began = time.perf_counter()
            values: list[mx.array] = []
            sizes: list[int] = []
            params, buffers, steps, losses = self.point.state[:4]
            grad_norm = mx.array(0.0)
            for group in stretch:
                with device_for(params, group[0]):
                    if math.isnan(self.start_value):
                        self._start(group[0])
                    dtype = working_dtype(params)
                    rates = self.optimizer.rates(steps, len(group), dtype, losses)
                    key = (id(self.optimizer), len(group))
                    call = self.objective.compiled(key, self._steps)
                    params, buffers, each, grad_norm = call(params, buffers, rates, group)
                    mx.async_eval(params, buffers, each)
                values += each
                sizes += [_rows(batch) for batch in group]
                steps += len(group)
            # The parameters too: a row of an embedding may be NaN and in none of these batches.
            with device_for(params):
                last_norm, largest, *numbers = read(grad_norm, largest_entry(params), *values)
            self.objective.evaluations += len(numbers)
            self.objective.time_steps(len(numbers), time.perf_counter() - began)
            if not is_finite(*numbers, last_norm, largest):
                seen = [self.point.value, *(number for number in numbers if math.isfinite(number))]
                return Status.DIVERGED if self._has_grown(max(seen)) else Status.NONFINITE
            total += sum(number * size for number, size in zip(numbers, sizes, strict=True))
            rows += sum(sizes)
            taken += len(numbers)
            state = TrainState(params, buffers, steps, losses, taken, total, rows)
            self.point = _Point(state, state.value, last_norm)
            if self.point.value < self.best.value:
                self.best = self.point
            if self._look():
                return Status.STOPPED
        if rows == 0:
            raise ValueError(
                f"batches gave nothing in epoch {epoch + 1} of {self.first_epoch + self.epochs}. "
                f"It must start anew whenever it is iterated, and hold at least one batch."
            )
        state = self.point.state
        state = state._replace(losses=(*state.losses, state.value), batch=0, total=0.0, rows=0)
        self.point = self.point._replace(state=state)
        return None

    def _has_grown(self, value: float) -> bool:
        """Whether the loss is a thousand times the first one: no accident of one batch."""
        return value > 1e3 * max(abs(self.start_value), 1e-30)

    def _groups(self, epoch: int, skip: int) -> Iterator[list[tuple[Any, ...]]]:
        """Return an epoch's batches from number `skip` on, as many at a time as one compiled call
        takes.
        """
        dtype = working_dtype(self.point.state.params)
        group: list[tuple[Any, ...]] = []
        first = shapes = None  # of the group's first batch, of its last
        batches = self.batches
        stream = iter(batches.epoch(epoch) if isinstance(batches, Batches) else batches)
        self._pass_over(itertools.islice(stream, skip), skip)
        for batch in stream:
            converted = _converted(batch, dtype)
            if shapes != first:
                # More than the last batch of an epoch are odd: each mixture would be compiled anew.
                yield from ([one] for one in group[:-1])
                group, first = group[-1:], shapes
            shapes = _shapes(converted)
            first = shapes if not group else first
            group.append(converted)
            if len(group) >= self.objective.steps_per_call and shapes == first:
                yield group
                group = []
        if group:
            yield group

    def _pass_over(self, batches: Iterator[Any], count: int) -> None:
        """Take batches that `init` has taken before; raise ValueError if they are others."""
        state = self.point.state
        dtype = working_dtype(state.params)
        rows = [_rows(_converted(batch, dtype)) for batch in batches]
        if len(rows) != count or sum(rows) != state.rows:
            raise ValueError(
                f"init had taken {state.rows:,} rows in {count:,} batches of its epoch; here the "
                f"first {len(rows):,} batches have {sum(rows):,}. Pass the batches of the first "
                f"run; or, to go on from its parameters alone, init.params in place of params."
            )

    def _start(self, batch: tuple[Any, ...]) -> None:
        """Check the loss on the first batch, and record it."""
        params = self.point.state.params
        self.objective.trace(params, batch)
        self.objective.data = batch
        value, grad = self.objective.value_and_grad(params)
        self.start_value, grad_norm = read(value, largest_entry(grad))
        check_start(self.start_value, grad_norm)
        warn_of_ignored(self.objective, params, grad)
        self.recorder.add(0, self.start_value, grad_norm, time.perf_counter() - self.began)
        self.point = self.best = self.point._replace(value=self.start_value, grad_norm=grad_norm)

    def _steps(self) -> Callable[..., Any]:
        """Return a function that takes one step on each of the batches that it is given."""

        def steps(
            params: Tree, buffers: Tree, rates: list[mx.array], group: list[tuple[Any, ...]]
        ) -> tuple[Tree, Tree, list[mx.array], mx.array]:
            derivative = mx.value_and_grad(self.objective.loss)
            values, grad = [], params
            for rate, batch in zip(rates, group, strict=True):
                value, grad = derivative(params, *batch)
                params, buffers = self.optimizer.update(grad, buffers, params, rate)
                values.append(value)
            return params, buffers, values, self.optimizer.optimality(grad)

        return steps

    def _look(self) -> bool:
        """Record where the run is and show it; return whether the callback asks to stop."""
        point, seconds = self.point, time.perf_counter() - self.began
        step = point.state.step - self.first_step
        self.recorder.add(step, point.value, point.grad_norm, seconds)
        self.bar.update(step, point.value)
        if self.callback is None:
            return False
        info = Info(
            step,
            point.value,
            point.grad_norm,
            seconds,
            self.objective.evaluations,
            point.state.params,
            point.state,
        )
        return bool(self.callback(info))


class _Point(NamedTuple):
    """Where a run was when it was last looked at."""

    state: TrainState
    value: float  # mean loss of the epoch so far; before the first look, of the first batch
    grad_norm: float  # largest entry of the last batch's gradient


def _stretches(groups: Iterator[list[Any]]) -> Iterator[Iterator[list[Any]]]:
    """Return the groups in stretches of at least `_STRIDE` batches, one stretch for each look."""

    def stretch(first: list[Any]) -> Iterator[list[Any]]:
        yield first
        taken, due = len(first), time.perf_counter() + _PATIENCE
        while (
            taken < _STRIDE
            and time.perf_counter() < due
            and (group := next(groups, None)) is not None
        ):
            yield group
            taken += len(group)

    while (first := next(groups, None)) is not None:
        yield stretch(first)


def _converted(batch: Any, dtype: mx.Dtype) -> tuple[Any, ...]:
    """Return a batch as the loss takes it after its parameters."""
    items = batch if isinstance(batch, (tuple, list)) else (batch,)
    return tuple(to_data(item, dtype) for item in items)


def _rows(batch: tuple[Any, ...]) -> int:
    """Return how many examples a batch has: the length of its first array's first axis."""
    first = batch[0] if batch else None
    items = [first] if isinstance(first, mx.array) and first.ndim else leaves(batch)
    return next((i.shape[0] for i in items if isinstance(i, mx.array) and i.ndim), 1)


def _shapes(batch: tuple[Any, ...]) -> list[Any]:
    if all(isinstance(item, mx.array) for item in batch):  # quicker than by way of a tree
        return [item.shape for item in batch]
    return [getattr(item, "shape", item) for item in leaves(batch)]
