"""Epochs of batches as the steps of an optimizer."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import mlx.core as mx

from mlxopt._loop import warn_of_ignored
from mlxopt._objective import Objective
from mlxopt._platform.device import device_for
from mlxopt._resume import check_state
from mlxopt._status import Status
from mlxopt._tree import (
    Params,
    Tree,
    copies,
    is_finite,
    largest_entry,
    leaves,
    read,
    working_dtype,
)
from mlxopt.autodiff._arguments import (
    Cast,
    Integers,
    argument_names,
    as_floats,
    integers_of_batches,
    not_finite,
    to_data,
)
from mlxopt.autodiff._pairs import warn_of_pairs
from mlxopt.data import Batches
from mlxopt.optimizers import FirstOrder, Optimizer
from mlxopt.optimizers._base import initial_buffers

_STRIDE = 50  # batches between two reads,
_SECONDS = 1.0  # or seconds,
_HELD = 2**26  # or bytes of batches: they are held until the read, to be taken again one by one
_EARLY = 64  # rows of the first batches that are kept, to know the loss at the start


Batch = tuple[Any, ...]


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


class _Steps(NamedTuple):
    """Steps since the last read, not yet known to be finite."""

    params: Params
    buffers: Tree
    largest: Any  # the largest entry of the last gradient
    losses: tuple[mx.array, ...]  # of each batch
    batches: tuple[Batch, ...]

    def numbers(self) -> tuple[float, ...]:
        """Return the largest entry of the last gradient, that of `params`, and the losses."""
        # The parameters too: a row of an embedding may be NaN and in none of these batches.
        with device_for(self.params):
            return read(self.largest, largest_entry(self.params), *self.losses)


class Epochs(Optimizer[TrainState]):
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
        self.early: list[Batch] = []  # the first batches of the run
        self.early_rows = 0
        self.error: Exception | None = None  # raised once the steps before it are read
        self.reason = ""  # why the run ended, where more is known than the status says

    def init(self, objective: Objective, params: Params) -> TrainState:
        """Return the state at the start, having checked the loss on the first batch."""
        with device_for(params):
            params = copies(params)
            state = TrainState(params, initial_buffers(self.rule, params), 0, (), 0, 0.0, 0)
        if self.resume is not None:
            check_state(self.rule, self.resume, state)
            state = self.resume._replace(params=params, status=None, moved=False)
        self.end, self.start = state.epoch + self.epochs, state.params
        self.groups = self._groups(objective, state)
        state, group = self._next(objective, state)
        if group is None:
            return state
        self.groups = itertools.chain([group], self.groups)
        with device_for(state.params, group[0]):
            objective.trace(state.params, group[0])
            if objective.compiles:
                warn_of_pairs(objective.loss, state.params, group[0])
            objective.data = group[0]
            value, grad = objective.value_and_grad(state.params)
            first, largest = read(value, largest_entry(grad))
            objective.check_start(state.params, first, largest, grad)
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
        if self.error is not None:
            raise self.error
        state, group = self._next(objective, state)
        if group is None:
            grown = self._has_grown(objective, state.value, state.first)
            status = Status.DIVERGED if grown else Status.COMPLETED
            return state._replace(status=status, moved=False), 0
        began, size, interrupted = time.perf_counter(), 0, False
        steps = _Steps(state.params, state.buffers, mx.array(0.0), (), ())
        try:
            while group is not None:
                steps = self._take(objective, state, steps, group)
                size += len(group) * _bytes(group[0])
                enough = len(steps.losses) >= _STRIDE or size >= _HELD
                enough = enough or time.perf_counter() >= began + _SECONDS
                group = None if enough else next(self.groups, None)
            numbers = steps.numbers()
        except (Exception, KeyboardInterrupt) as error:
            if not steps.losses:
                raise
            interrupted = isinstance(error, KeyboardInterrupt)
            self.error = None if isinstance(error, KeyboardInterrupt) else error
            numbers = steps.numbers()
        objective.evaluations += len(steps.losses)
        objective.time_steps(len(steps.losses), time.perf_counter() - began)
        if not is_finite(*numbers):
            return self._finite_part(objective, state, steps.batches)
        state = _after(state, steps, numbers)
        status = Status.INTERRUPTED if interrupted else None
        return state._replace(status=status), len(steps.losses)

    def _take(
        self, objective: Objective, state: TrainState, steps: _Steps, group: list[Batch]
    ) -> _Steps:
        """Return `steps`, those from `state` on, with one more for each batch of the group."""
        with device_for(steps.params, group[0]):
            step = state.step + len(steps.losses)
            rates = self.rule.rates(step, len(group), working_dtype(state.params), state.losses)
            key = (id(self.rule), len(group))
            call = objective.compiled(key, lambda: self._steps(objective))
            try:
                params, buffers, losses, largest = call(steps.params, steps.buffers, rates, group)
            except Exception as error:
                at = _named(state.batch + len(steps.losses), state.epoch)
                error.add_note(f"{at} raised it.")
                raise
            mx.async_eval(params, buffers, losses)
        if self.early_rows < _EARLY:
            self.early += group
            self.early_rows += sum(map(_rows, group))
        taken = (*steps.losses, *losses), (*steps.batches, *group)
        return _Steps(params, buffers, largest, *taken)

    def _finite_part(
        self, objective: Objective, state: TrainState, batches: tuple[Batch, ...]
    ) -> tuple[TrainState, int]:
        """Take the batches again, one by one, up to the one that leaves the numbers."""
        seen = state.value
        for taken, batch in enumerate(batches):
            steps = _Steps(state.params, state.buffers, mx.array(0.0), (), ())
            steps = self._take(objective, state, steps, [batch])
            numbers = steps.numbers()
            if is_finite(*numbers):
                state = _after(state, steps, numbers)
                seen = max(seen, *numbers[2:])
                continue
            at = f"at {_named(state.batch, state.epoch).lower()}"
            cause = self._cause(objective, batch)
            grown = cause is None and self._has_grown(objective, seen, state.first)
            if grown or (cause is None and numbers[2] == -math.inf):
                status = Status.DIVERGED if grown else Status.UNBOUNDED
                return state._replace(status=status, moved=taken > 0), taken
            if cause is None:
                self.reason = (
                    f"the loss, its gradient or a parameter became NaN or infinite {at}, whose "
                    f"data are finite; these are the parameters before it. Lower the learning "
                    f"rate, or keep the loss inside its domain (log, sqrt, division)."
                )
            else:
                self.reason = (
                    f"the loss became NaN or infinite {at}: {cause}. These are the parameters "
                    f"before it. Leave out such rows."
                )
            return state._replace(status=Status.NONFINITE, moved=taken > 0), taken
        return state, len(batches)  # with other random numbers

    def _cause(self, objective: Objective, batch: Batch) -> str | None:
        """Return where the data of a batch are not finite, if anywhere."""
        return not_finite(batch, argument_names(objective.loss, len(batch)))

    def _has_grown(self, objective: Objective, value: float, first: float) -> bool:
        """Whether a loss is a thousand times that at the start."""
        if not value > 1e3 * max(abs(first), 1e-30):
            return False
        # The first batch may fit by luck, as a single row does.
        losses = []
        for batch in self.early:
            with device_for(self.start, batch):
                losses += read(objective.loss(self.start, *batch))
        sizes = [_rows(batch) for batch in self.early]
        total = sum(loss * size for loss, size in zip(losses, sizes, strict=True))
        return value > 1e3 * max(abs(total) / max(1, self.early_rows), 1e-30)

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
        taken = state.batch
        try:
            for batch in stream:
                converted = self._converted(objective, state.params, batch)
                if shapes != first:
                    # More than the last batch of an epoch are odd: each mixture would be compiled
                    # anew.
                    yield from ([item] for item in group[:-1])
                    group, first = group[-1:], shapes
                shapes = _shapes(converted)
                first = shapes if not group else first
                group.append(converted)
                taken += 1
                if len(group) >= objective.steps_per_call and shapes == first:
                    yield group
                    group = []
        except Exception as error:  # of the loader; the batches before it are good
            yield from ([item] for item in group)
            error.add_note(f"{_named(taken, state.epoch)} raised it.")
            raise
        if group:
            yield group

    def _converted(self, objective: Objective, params: Params, batch: Any) -> Batch:
        """Return a batch as the loss takes it after its parameters."""
        items, cast = _items(batch), Cast(working_dtype(params))
        if self.integers is None:
            rows = self.batches.arrays if isinstance(self.batches, Batches) else None
            self.integers = integers_of_batches(objective.loss, params, items, rows)
        return as_floats(tuple(to_data(item, cast) for item in items), self.integers, cast)

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


def _after(state: TrainState, steps: _Steps, numbers: tuple[float, ...]) -> TrainState:
    """Return the state after the steps, whose numbers are finite."""
    optimality, _, *losses = numbers
    sizes = [_rows(batch) for batch in steps.batches]
    return state._replace(
        params=steps.params,
        buffers=steps.buffers,
        step=state.step + len(losses),
        batch=state.batch + len(losses),
        total=state.total + sum(one * size for one, size in zip(losses, sizes, strict=True)),
        rows=state.rows + sum(sizes),
        optimality=optimality,
        moved=True,
    )


def _named(batch: int, epoch: int) -> str:
    """Return the name of a batch, both counted from 0."""
    return f"Batch {batch + 1:,} of epoch {epoch + 1:,}"


def _bytes(batch: Batch) -> int:
    return sum(item.nbytes for item in batch if isinstance(item, mx.array))


def _check_taken(batches: Iterator[Any], state: TrainState) -> None:
    """Raise ValueError unless these are as many rows as the state has taken of its epoch."""
    cast = Cast(working_dtype(state.params))
    rows = [_rows(tuple(to_data(item, cast) for item in _items(batch))) for batch in batches]
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
