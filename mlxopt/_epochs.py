"""Epochs of batches as the steps of an optimizer."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import mlx.core as mx

from mlxopt._checks import check_start
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
    as_floats,
    integers_of_batches,
    to_data,
)
from mlxopt.autodiff._pairs import warn_of_pairs
from mlxopt.data import Batches
from mlxopt.optimizers import FirstOrder, Optimizer
from mlxopt.optimizers._base import initial_buffers

_STRIDE = 50  # batches between two reads
_SECONDS = 1.0  # after which to read before that


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
            if objective.compiles:
                warn_of_pairs(objective.loss, state.params, group[0])
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


def _has_grown(value: float, first: float) -> bool:
    """Whether the loss is a thousand times the first one, which no single batch explains."""
    return value > 1e3 * max(abs(first), 1e-30)


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
