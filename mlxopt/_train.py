"""The mini-batch loop: first-order rules over a stream of batches."""

from __future__ import annotations

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


def train(
    loss: Callable[..., mx.array],
    params: Tree,
    optimizer: FirstOrder | MLXOptimizer,
    batches: Iterable[Any],
    epochs: int = 1,
    callback: Callback | None = None,
    progress: bool | None = None,
    compile: bool = True,
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

    Returns:
        a `TrainResult`: its `value` is the mean loss of the last epoch's batches, measured on the
        way. Status COMPLETED after all epochs. Ctrl-C ends the run and returns the parameters last
        read, INTERRUPTED (before the first loss is known it raises KeyboardInterrupt as ever). If
        the loss or a parameter becomes NaN or infinite, the last parameters known to be finite come
        back, NONFINITE; if the loss grows a thousandfold, the best ones seen, DIVERGED.

    Raises:
        TapeError: the loss reads arrays back to Python.
        TypeError, ValueError: an argument is not as described, the loss of the first batch is not
            finite, or `batches` is used up before the last epoch.

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
    check_count(epochs, "epochs")
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
        run = _Run(loss, rule, params, batches, epochs, callback, bar, compile)
        result = run()
    if result.status.is_failure:
        warn(f"{result.status.name}: {result.status.value}")
    return result


class _Run:
    """One run of the loop."""

    def __init__(
        self, loss: Callable[..., mx.array], optimizer: FirstOrder, params: Tree,
        batches: Iterable[Any], epochs: int, callback: Callback | None, bar: ProgressBar,
        compile: bool,
    ) -> None:  # fmt: skip
        self.objective = Objective(loss, compile=compile, fixed_draw=False)
        self.optimizer, self.callback, self.bar = optimizer, callback, bar
        self.batches, self.epochs = batches, epochs
        with device_for(params):
            buffers = optimizer.begin(params)
        self.point = _Point(params, buffers, math.nan, math.nan, 0)
        self.best = self.point  # the one with the lowest value
        self.start_value = math.nan
        self.losses: tuple[float, ...] = ()  # the mean of each epoch so far
        self.recorder = Recorder()
        self.began = time.perf_counter()

    def __call__(self) -> TrainResult:
        status = None
        try:
            with late_interrupt():
                for epoch in range(self.epochs):
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
        mx.eval(leaves(point.params))
        return TrainResult(
            params=point.params,
            value=point.value,
            grad_norm=point.grad_norm,
            status=status or Status.COMPLETED,
            steps=point.steps,
            evaluations=self.objective.evaluations,
            seconds=time.perf_counter() - self.began,
            history=self.recorder.history(),
        )

    def _epoch(self, epoch: int) -> Status | None:
        """Take one epoch's steps; return why to stop early, if there is a reason."""
        total, rows = 0.0, 0  # of the losses so far, and of the examples in them
        for stretch in _stretches(self._groups(epoch)):
            began = time.perf_counter()
            values: list[mx.array] = []
            sizes: list[int] = []
            params, buffers, steps = self.point.params, self.point.buffers, self.point.steps
            grad_norm = mx.array(0.0)
            for group in stretch:
                with device_for(params, group[0]):
                    if math.isnan(self.start_value):
                        self._start(group[0])
                    dtype = working_dtype(params)
                    rates = self.optimizer.rates(steps, len(group), dtype, self.losses)
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
            self.point = _Point(params, buffers, total / rows, last_norm, steps)
            if self.point.value < self.best.value:
                self.best = self.point
            if self._look():
                return Status.STOPPED
        if rows == 0:
            raise ValueError(
                f"batches gave nothing in epoch {epoch + 1} of {self.epochs}. It must start anew "
                f"whenever it is iterated, and hold at least one batch."
            )
        self.losses = (*self.losses, self.point.value)
        return None

    def _has_grown(self, value: float) -> bool:
        """Whether the loss is a thousand times the first one: no accident of one batch."""
        return value > 1e3 * max(abs(self.start_value), 1e-30)

    def _groups(self, epoch: int) -> Iterator[list[tuple[Any, ...]]]:
        """Return an epoch's batches, as many at a time as one compiled call takes."""
        dtype = working_dtype(self.point.params)
        group: list[tuple[Any, ...]] = []
        first = shapes = None  # of the group's first batch, of its last
        batches = self.batches
        for batch in batches.epoch(epoch) if isinstance(batches, Batches) else batches:
            items = batch if isinstance(batch, (tuple, list)) else (batch,)
            converted = tuple(to_data(item, dtype) for item in items)
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

    def _start(self, batch: tuple[Any, ...]) -> None:
        """Check the loss on the first batch, and record it."""
        params = self.point.params
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
        self.recorder.add(point.steps, point.value, point.grad_norm, seconds)
        self.bar.update(point.steps, point.value)
        if self.callback is None:
            return False
        info = Info(
            point.steps,
            point.value,
            point.grad_norm,
            seconds,
            self.objective.evaluations,
            point.params,
        )
        return bool(self.callback(info))


class _Point(NamedTuple):
    """Where a run was when it was last looked at."""

    params: Tree
    buffers: Tree
    value: float  # mean loss of the epoch so far
    grad_norm: float  # largest entry of the last batch's gradient
    steps: int


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


def _rows(batch: tuple[Any, ...]) -> int:
    """Return how many examples a batch has: the length of its first array's first axis."""
    first = batch[0] if batch else None
    items = [first] if isinstance(first, mx.array) and first.ndim else leaves(batch)
    return next((i.shape[0] for i in items if isinstance(i, mx.array) and i.ndim), 1)


def _shapes(batch: tuple[Any, ...]) -> list[Any]:
    if all(isinstance(item, mx.array) for item in batch):  # quicker than by way of a tree
        return [item.shape for item in batch]
    return [getattr(item, "shape", item) for item in leaves(batch)]
