"""Mini-batches: first-order rules over epochs of batches."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import TYPE_CHECKING, Any, NamedTuple

import mlx.core as mx

from mlxopt._checks import check_callback, check_count, check_start, describe_type
from mlxopt._loop import Callback, Loop, warn_of_ignored
from mlxopt._objective import Loss, Objective
from mlxopt._platform.device import device_for
from mlxopt._progress import ProgressBar
from mlxopt._result import TrainResult
from mlxopt._resume import check_init, check_state
from mlxopt._status import Status, warn
from mlxopt._stop import StopRule, check_stop
from mlxopt._tree import (
    Params,
    Tree,
    check_params,
    copies,
    is_finite,
    largest_entry,
    leaves,
    read,
    working_dtype,
)
from mlxopt.autodiff._arguments import Integers, argument_names, as_floats, integer_leaves, to_data
from mlxopt.autodiff._guards import check_is_callable
from mlxopt.data import Batches
from mlxopt.optimizers import FirstOrder, Optimizer
from mlxopt.optimizers._base import as_rule, initial_buffers

if TYPE_CHECKING:
    from mlx.optimizers import Optimizer as MLXOptimizer

_STRIDE = 50  # batches between two reads
_SECONDS = 1.0  # after which to read before that


class TrainState(NamedTuple):
    """The state of `train` between two batches."""

    params: Params  # the parameters
    buffers: Tree  # the rule's arrays
    step: int  # batches taken so far; the schedule's argument
    losses: tuple[float, ...]  # the mean loss of each completed epoch
    batch: int  # batches taken of the current epoch
    total: float  # the sum of their losses, each times its number of examples
    rows: int  # the number of these examples
    first: float = math.nan  # the loss of the first batch, at the start
    optimality: float = math.nan  # the largest absolute entry of the last batch's gradient
    status: Status | None = None  # why no further batch is taken
    moved: bool = False  # whether the last call took a batch

    @property
    def epoch(self) -> int:
        """The number of completed epochs."""
        return len(self.losses)

    @property
    def value(self) -> float:
        """The mean loss of the current epoch's batches, else of the last epoch's."""
        if self.rows:
            return self.total / self.rows
        return self.losses[-1] if self.losses else self.first

    @property
    def grad(self) -> None:
        """None: each batch has a gradient of its own, and none is kept."""
        return None

    def closed(self) -> TrainState:
        """Return the state with the current epoch completed."""
        return self._replace(losses=(*self.losses, self.value), batch=0, total=0.0, rows=0)


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
        compile: False evaluates op by op, for a loss that branches on values. A compiled loss has
            everything it captures frozen into it.
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
        parameters last read, INTERRUPTED (before the first loss is known, KeyboardInterrupt is
        raised). If the loss or a parameter becomes NaN or infinite, the last finite parameters are
        returned, NONFINITE; if the loss grows a thousandfold, the best ones, DIVERGED.

    Raises:
        TapeError: the loss reads arrays back to Python.
        TypeError, ValueError: an argument is not as described, the loss of the first batch is not
            finite, `batches` is exhausted before the last epoch, or its batches have other sizes
            than those that `init` has taken.

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
        return TrainResult(**{**loop.summary(state, status), "phases": ()}, state=state)

    steps = _Epochs(rule, batches, epochs, init)
    found = loop.answer(lambda: loop(objective, steps, params), result)
    if found.status.is_failure:
        warn(f"{found.status.name}: {found.status.value}")
    return found


Batch = tuple[Any, ...]


class _Epochs(Optimizer[TrainState]):
    """Epochs of a first-order rule as an optimizer, whose steps are batches.

    Args:
        rule: the first-order rule.
        batches: an iterable for each epoch.
        epochs: how many to take.
        resume: a state to resume from, or None.
    """

    def __init__(
        self, rule: FirstOrder, batches: Iterable[Any], epochs: int, resume: TrainState | None
    ) -> None:
        self.rule, self.batches, self.epochs, self.resume = rule, batches, epochs, resume
        self.end = epochs  # the number of epochs at the end
        self.groups: Iterator[list[Batch]] = iter(())  # the rest of the current epoch
        self.integers: Integers | None = None  # leaves of a batch that are no numbers

    def init(self, objective: Objective, params: Params) -> TrainState:
        """Return the state at the start, having checked the loss on the first batch."""
        with device_for(params):
            params = copies(params)
            state = TrainState(params, initial_buffers(self.rule, params), 0, (), 0, 0.0, 0)
        if self.resume is not None:
            check_state(self.rule, self.resume, state)
            state = self.resume._replace(params=params, status=None, moved=False)
        self.end = state.epoch + self.epochs
        self.groups = self._groups(objective, state)
        state, group = self._next(objective, state)
        if group is None:
            return state
        self.groups = itertools.chain([group], self.groups)
        with device_for(state.params, group[0]):
            objective.trace(state.params, group[0])
            objective.data = group[0]
            value, grad = objective.value_and_grad(state.params)
            first, largest = read(value, largest_entry(grad))
            check_start(first, largest)
            warn_of_ignored(objective, state.params, grad)
        fresh = self.resume is None
        return state._replace(first=first, optimality=largest) if fresh else state

    def step(self, objective: Objective, state: TrainState) -> TrainState:
        return self.advance(objective, state, 1)[0]

    def advance(
        self, objective: Objective, state: TrainState, count: int
    ) -> tuple[TrainState, int]:
        """Take batches for a while, within one epoch; `count` is not used.

        Fifty, or those of one second, share one read.
        """
        state, group = self._next(objective, state)
        if group is None:
            status = Status.DIVERGED if _has_grown(state.value, state.first) else Status.COMPLETED
            return state._replace(status=status, moved=False), 0
        began = time.perf_counter()
        values: list[mx.array] = []
        sizes: list[int] = []
        params, buffers = state.params, state.buffers
        largest = mx.array(0.0)
        while group is not None:
            with device_for(params, group[0]):
                dtype, step = working_dtype(params), state.step + len(sizes)
                rates = self.rule.rates(step, len(group), dtype, state.losses)
                key = (id(self.rule), len(group))
                call = objective.compiled(key, lambda: self._steps(objective))
                params, buffers, each, largest = call(params, buffers, rates, group)
                mx.async_eval(params, buffers, each)
            values += each
            sizes += [_rows(batch) for batch in group]
            enough = len(sizes) >= _STRIDE or time.perf_counter() >= began + _SECONDS
            group = None if enough else next(self.groups, None)
        # The parameters too: a row of an embedding may be NaN and in none of these batches.
        with device_for(params):
            optimality, entry, *losses = read(largest, largest_entry(params), *values)
        taken = len(losses)
        objective.evaluations += taken
        objective.time_steps(taken, time.perf_counter() - began)
        if not is_finite(*losses, optimality, entry):
            seen = max([state.value, *filter(math.isfinite, losses)])
            grown = _has_grown(seen, state.first)
            status = Status.DIVERGED if grown else Status.NONFINITE
            return state._replace(status=status, moved=False), 0
        weighted = sum(loss * size for loss, size in zip(losses, sizes, strict=True))
        state = state._replace(
            params=params,
            buffers=buffers,
            step=state.step + taken,
            batch=state.batch + taken,
            total=state.total + weighted,
            rows=state.rows + sum(sizes),
            optimality=optimality,
            moved=True,
        )
        return state, taken

    def _next(
        self, objective: Objective, state: TrainState
    ) -> tuple[TrainState, list[Batch] | None]:
        """Return the next group of batches, None after the last epoch; close epochs on the way."""
        while state.epoch < self.end:
            group = next(self.groups, None)
            if group is not None:
                return state, group
            if state.rows == 0:
                raise ValueError(
                    f"batches gave nothing in epoch {state.epoch + 1} of {self.end}. It must start "
                    f"anew whenever it is iterated, and hold at least one batch."
                )
            state = state.closed()
            if state.epoch < self.end:
                self.groups = self._groups(objective, state)
        return state, None

    def _groups(self, objective: Objective, state: TrainState) -> Iterator[list[Batch]]:
        """Return the rest of an epoch, in groups of as many batches as one compiled call takes."""
        group: list[Batch] = []
        first = shapes = None  # of the group's first batch, of its last
        batches = self.batches
        stream = iter(batches.epoch(state.epoch) if isinstance(batches, Batches) else batches)
        _check_taken(itertools.islice(stream, state.batch), state)
        for batch in stream:
            converted = self._converted(objective, state.params, batch)
            if shapes != first:
                # More than the last batch of an epoch are odd: each mixture would be compiled anew.
                yield from ([item] for item in group[:-1])
                group, first = group[-1:], shapes
            shapes = _shapes(converted)
            first = shapes if not group else first
            group.append(converted)
            if len(group) >= objective.steps_per_call and shapes == first:
                yield group
                group = []
        if group:
            yield group

    def _converted(self, objective: Objective, params: Params, batch: Any) -> Batch:
        """Return a batch as the loss takes it after its parameters."""
        items, dtype = _items(batch), working_dtype(params)
        if self.integers is None:
            names = argument_names(objective.loss, len(items))
            items = tuple(
                to_data(item, dtype, name) for item, name in zip(items, names, strict=True)
            )
            run = lambda items: objective.loss(params, *items)  # noqa: E731
            self.integers = integer_leaves(run, items, dtype)
        return as_floats(tuple(to_data(item, dtype) for item in items), self.integers, dtype)

    def _steps(self, objective: Objective) -> Callable[..., Any]:
        """Return a function that takes one step on each of its batches."""

        def steps(
            params: Params, buffers: Tree, rates: list[mx.array], group: list[Batch]
        ) -> tuple[Params, Tree, list[mx.array], mx.array]:
            derivative = mx.value_and_grad(objective.loss)
            values, grad = [], params
            for rate, batch in zip(rates, group, strict=True):
                value, grad = derivative(params, *batch)
                params, buffers = self.rule.update(grad, buffers, params, rate)
                values.append(value)
            return params, buffers, values, self.rule.optimality(grad)

        return steps


def _has_grown(value: float, first: float) -> bool:
    """Whether the loss is a thousand times the first one, which no single batch explains."""
    return value > 1e3 * max(abs(first), 1e-30)


def _check_taken(batches: Iterator[Any], state: TrainState) -> None:
    """Raise ValueError unless these are as many rows as the state has taken of its epoch."""
    dtype = working_dtype(state.params)
    rows = [_rows(tuple(to_data(item, dtype) for item in _items(batch))) for batch in batches]
    if len(rows) != state.batch or sum(rows) != state.rows:
        raise ValueError(
            f"init had taken {state.rows:,} rows in {state.batch:,} batches of its epoch; here the "
            f"first {len(rows):,} batches have {sum(rows):,}. Pass the batches of the first run; "
            f"or, to use its parameters alone, init.params in place of params."
        )


def _items(batch: Any) -> tuple[Any, ...]:
    """Return the arguments in a batch, which can be a single array."""
    return tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)


def _rows(batch: tuple[Any, ...]) -> int:
    """Return how many examples a batch has: the length of its first array's first axis."""
    first = batch[0] if batch else None
    items = [first] if isinstance(first, mx.array) and first.ndim else leaves(batch)
    return next((i.shape[0] for i in items if isinstance(i, mx.array) and i.ndim), 1)


def _shapes(batch: tuple[Any, ...]) -> list[Any]:
    if all(isinstance(item, mx.array) for item in batch):  # quicker than by way of a tree
        return [item.shape for item in batch]
    return [getattr(item, "shape", item) for item in leaves(batch)]
