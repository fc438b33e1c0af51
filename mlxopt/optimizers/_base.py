"""The contract that every optimizer keeps.

An optimizer is an immutable value: a frozen dataclass of hyper-parameters. Its state is separate, a
NamedTuple. A solver's author writes `init` and `step` and never a loop, a callback, a progress bar
or a stop rule; those belong to `minimize`.

The invariant, on entry to and exit from `step`: `state.value` and `state.grad` are the loss and its
gradient at `state.params`, both finite, and `state.optimality` is the largest absolute entry of the
gradient. One step is one evaluation at one trial point, which is then kept or not. An optimizer
that cannot go on from where it stands says why in `state.status`.
"""

from __future__ import annotations

import dataclasses
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from numbers import Real
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from mlxopt._objective import Objective
from mlxopt._status import Status
from mlxopt._tree import HALF, Tree, dtype_name, is_finite, largest_entry, read, working_dtype


class State(Protocol):
    """What the loop reads of any optimizer's state."""

    @property
    def params(self) -> Tree:
        """The parameters, a tree of arrays."""
        ...

    @property
    def value(self) -> float:
        """The loss at `params`."""
        ...

    @property
    def grad(self) -> Tree:
        """The gradient at `params`, a tree like it."""
        ...

    @property
    def optimality(self) -> float:
        """The largest absolute entry of `grad`; what the loop compares with `tol`."""
        ...

    @property
    def status(self) -> Status | None:
        """Why the optimizer cannot go on; None while it can."""
        ...


S = TypeVar("S", bound=State)


class Optimizer(ABC, Generic[S]):
    """What `minimize` drives: `init` once, then `step` until a stop rule ends it."""

    stride: ClassVar[int] = 1
    """How many steps the loop asks for between two looks at the state."""

    loss_alone: ClassVar[bool] = True
    """Whether its answer is a minimum of the loss itself, without bounds or a penalty."""

    @abstractmethod
    def init(self, objective: Objective, params: Tree) -> S:
        """Return the state at `params`; one evaluation."""

    @abstractmethod
    def step(self, objective: Objective, state: S) -> S:
        """Return the state after one evaluation at one trial point."""

    def nearest(self, params: Tree) -> Tree:
        """Return the allowed point nearest to `params`, which rounding may have moved off it."""
        return params

    def advance(self, objective: Objective, state: S, count: int) -> tuple[S, int]:
        """Return the state after up to `count` steps, and how many were taken."""
        for taken in range(count):
            if state.status is not None:
                return state, taken
            state = self.step(objective, state)
        return state, count


class FirstOrderState(NamedTuple):
    """The state of a first-order rule."""

    params: Tree  # the parameters
    value: float  # the loss there
    grad: Tree  # its gradient there, like params
    optimality: float  # the gradient's largest absolute entry
    status: Status | None  # NONFINITE when the next step leads to NaN or infinity
    step: int  # steps taken so far; the schedule's argument
    buffers: Tree  # what the rule remembers, a tree of arrays (empty for SGD)
    losses: tuple[float, ...] = ()  # read so far, kept for a schedule that asks for them


LearningRate = float | Callable[..., float | mx.array]
"""A number, or a function of the step, an int counted from 0.

One whose attribute `reads_losses` is true is called with the step and the losses read so far, a
tuple: those that `minimize` read every `record_every` steps, the mean of each epoch in `train`.
"""


@dataclasses.dataclass(frozen=True)
class FirstOrder(Optimizer[FirstOrderState]):
    """A rule that turns a gradient into a step by arithmetic alone; subclasses write that rule.

    Both loops run it in compiled calls of several steps, so `start` and `update` must be made of
    MLX operations. A rule that needs to know how many steps were taken keeps the count as a buffer.
    """

    stride: ClassVar[int] = 10

    learning_rate: LearningRate

    def __post_init__(self) -> None:
        if not callable(self.learning_rate):
            _check_rate(self.learning_rate, "learning_rate")

    @abstractmethod
    def start(self, params: Tree) -> Tree:
        """Return the buffers before the first step: a tree of arrays, or an empty tuple."""

    @abstractmethod
    def update(
        self, grad: Tree, buffers: Tree, params: Tree, learning_rate: mx.array
    ) -> tuple[Tree, Tree]:
        """Return the parameters and the buffers after one step; dtypes must stay as they are.

        Args:
            grad: the gradient at `params`.
            buffers: what `start` or the last `update` returned.
            params: the parameters.
            learning_rate: a scalar array, float32 (float64 where a leaf is); cast it to each leaf's
                dtype, or it would promote float16 and bfloat16 leaves.
        """

    def optimality(self, grad: Tree) -> mx.array:
        """Return what the loop compares with `tol`, a scalar array."""
        return largest_entry(grad)

    def reads_losses(self) -> bool:
        """Whether the learning rate depends on the losses read so far."""
        return getattr(self.learning_rate, "reads_losses", False) is True

    def rates(
        self, step: int, count: int, dtype: mx.Dtype, losses: tuple[float, ...] = ()
    ) -> list[Any]:
        """Return the learning rates of `count` steps from `step` on, as scalar arrays."""
        if not callable(self.learning_rate):
            return [mx.array(float(self.learning_rate), dtype=dtype)] * count
        return [mx.array(self._scheduled(step + i, losses), dtype=dtype) for i in range(count)]

    def _scheduled(self, step: int, losses: tuple[float, ...]) -> float:
        assert callable(self.learning_rate)
        read_so_far = (losses,) if self.reads_losses() else ()
        rate: Any = self.learning_rate(step, *read_so_far)
        if isinstance(rate, (mx.array, np.ndarray)) and rate.size == 1:
            rate = float(np.asarray(rate).item())
        _check_rate(rate, f"learning_rate({step})")
        return float(rate)

    def begin(self, params: Tree) -> Tree:
        """Return `start(params)`, having checked that `update` keeps its part of the contract."""
        buffers = self.start(params)
        rate = mx.array(0.0, dtype=working_dtype(params))
        # Nothing of this is evaluated: shapes and dtypes are known without.
        result = self.update(params, buffers, params, rate)
        name = type(self).__name__
        if not (isinstance(result, tuple) and len(result) == 2):
            raise TypeError(
                f"{name}.update returned {type(result).__qualname__}; expected a tuple of two: the "
                f"parameters and the buffers."
            )
        for what, before, after in (
            ("parameters", params, result[0]),
            ("buffers", buffers, result[1]),
        ):
            if (found := _make(after)) != (expected := _make(before)):
                raise TypeError(
                    f"{name}.update changed the make of the {what}: expected {expected}, got "
                    f"{found}. Cast the learning rate to each leaf's dtype."
                )
        return buffers

    def init(self, objective: Objective, params: Tree) -> FirstOrderState:
        """Return the state at `params`; one evaluation."""
        buffers = self.begin(params)
        value, grad = objective.value_and_grad(params)
        number, largest = read(value, self.optimality(grad))
        losses = (number,) if self.reads_losses() else ()
        return FirstOrderState(params, number, grad, largest, None, 0, buffers, losses)

    def step(self, objective: Objective, state: FirstOrderState) -> FirstOrderState:
        """Return the state after one update and one evaluation."""
        return self.advance(objective, state, 1)[0]

    def advance(
        self, objective: Objective, state: FirstOrderState, count: int
    ) -> tuple[FirstOrderState, int]:
        """Take `count` steps with no read-back in between; then look, once, at where they led.

        If that is not finite, the steps are replayed one at a time and the last finite point is
        kept, with status NONFINITE.
        """
        began = time.perf_counter()
        dtype = working_dtype(state.params)
        params, grad, buffers, step = state.params, state.grad, state.buffers, state.step
        value = optimality = mx.array(0.0)
        end = step + count
        while step < end:
            size = objective.steps_per_call if end - step >= objective.steps_per_call else 1
            call = objective.compiled((id(self), size), lambda: self._steps(objective))
            rates = self.rates(step, size, dtype, state.losses)
            params, buffers, value, grad, optimality = call(
                params, grad, buffers, rates, *objective.data
            )
            step += size
            if step < end:
                mx.async_eval(params, buffers, grad)
        mx.eval(params, buffers, grad, value, optimality)
        objective.evaluations += count
        numbers = read(value, optimality)
        if is_finite(*numbers):
            objective.time_steps(count, time.perf_counter() - began)
            losses = (*state.losses, numbers[0]) if self.reads_losses() else ()
            state = FirstOrderState(
                params, numbers[0], grad, numbers[1], None, step, buffers, losses
            )
            return state, count
        if count == 1:
            return state._replace(status=Status.NONFINITE), 0
        losses = state.losses  # those known when the steps were first taken
        for taken in range(count):
            state, _ = self.advance(objective, state._replace(losses=losses), 1)
            if state.status is not None:
                return state, taken
        return state, count

    def _steps(self, objective: Objective) -> Callable[..., Any]:
        """Return a function that takes as many steps as it is given learning rates."""

        def steps(
            params: Tree, grad: Tree, buffers: Tree, rates: list[mx.array], *data: Any
        ) -> Any:
            derivative = mx.value_and_grad(objective.loss)
            value = mx.array(0.0)
            for rate in rates:
                params, buffers = self.update(grad, buffers, params, rate)
                # The value is computed only where somebody reads it: at the end.
                value, grad = derivative(params, *data)
            return params, buffers, value, grad, self.optimality(grad)

        return steps


def wide(tree: Tree) -> Tree:
    """Return a tree with its 16-bit leaves in float32, in which sums over many steps are kept."""
    return tree_map(lambda x: x.astype(mx.float32) if x.dtype in HALF else x, tree)


def zeros(params: Tree) -> Tree:
    """Return zeros like `wide(params)`."""
    return tree_map(mx.zeros_like, wide(params))


def descend(
    params: Tree, direction: Tree, learning_rate: mx.array, weight_decay: float = 0.0
) -> Tree:
    """Return params - learning_rate · (direction + weight_decay · params), dtypes kept.

    Args:
        params: the parameters.
        direction: a tree like them, in whose dtypes the step is computed.
        learning_rate: a scalar array.
        weight_decay: decoupled from the gradient, as in AdamW.
    """

    def move(p: mx.array, d: mx.array) -> mx.array:
        if weight_decay:
            d = d + weight_decay * p.astype(d.dtype)
        return (p - learning_rate.astype(d.dtype) * d).astype(p.dtype)

    return tree_map(move, params, direction)


def _make(tree: Tree) -> Any:
    """Return structure, shapes and dtypes of a tree, as a message shows them."""
    if isinstance(tree, dict):
        return {key: _make(child) for key, child in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_make(child) for child in tree]
    if isinstance(tree, mx.array):
        return f"{dtype_name(tree.dtype)} {tree.shape}"
    return type(tree).__qualname__


def _check_rate(rate: Any, name: str) -> None:
    if isinstance(rate, bool) or not isinstance(rate, Real):
        raise TypeError(
            f"{name} is {type(rate).__qualname__}; expected a number, or a function of the step."
        )
    if not is_finite(float(rate)) or rate < 0:
        raise ValueError(f"{name} is {rate}; expected a finite number, zero or more.")


def check_number(
    owner: Any, name: str, *, least: float = -math.inf, below: float = math.inf
) -> None:
    """Raise unless the hyper-parameter `name` of `owner` is a number inside its range."""
    value = getattr(owner, name)
    label = f"{type(owner).__name__}({name}={value!r})"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{label}: expected a number, got {type(value).__qualname__}.")
    number = float(value)
    if not is_finite(number):
        raise ValueError(f"{label}: expected a finite number.")
    if number < least:
        raise ValueError(f"{label}: expected {least} or more.")
    if number >= below:
        raise ValueError(f"{label}: expected less than {below}.")
