"""The contract of every optimizer.

An optimizer is an immutable value: a frozen dataclass of hyper-parameters. Its state is separate, a
NamedTuple. An optimizer defines `init` and `step`; the loop, callbacks, progress bars and stop
rules belong to `minimize`.

The invariant, on entry to `step` and on exit: `state.value` and `state.grad` are the loss and its
gradient at `state.params`, both finite, and `state.optimality` is the largest entry of the
gradient, or what stands for it. One step is one evaluation at one trial point, which is then
accepted or rejected. `state.status` is the reason why no further step is possible.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map

from mlxopt import _tree
from mlxopt._checks import check_limits, check_number
from mlxopt._objective import Objective
from mlxopt._status import Status
from mlxopt._tree import Tree, is_finite, largest_entry, read, to_host, working_dtype


class State(Protocol):
    """The fields that the loop reads in the state of any optimizer."""

    @property
    def params(self) -> Tree: ...  # a tree of floating-point arrays

    @property
    def value(self) -> float: ...  # the loss at `params`

    @property
    def grad(self) -> Tree: ...  # the gradient at `params`, a tree like it

    @property
    def optimality(self) -> float: ...  # the largest absolute entry of the gradient

    @property
    def status(self) -> Status | None: ...  # why no further step is possible

    @property
    def moved(self) -> bool: ...  # whether the last step accepted its trial

    def _replace(self, **fields: Any) -> Any: ...  # as of a NamedTuple


STATE_FIELDS = ("params", "value", "grad", "optimality", "status", "moved")

S = TypeVar("S", bound=State)


class Optimizer(ABC, Generic[S]):
    """A method for `minimize`, which calls `init` once, then `step` until a stop rule applies."""

    stride: ClassVar[int] = 1
    """Steps between two records of the loop."""

    loss_alone: ClassVar[bool] = True
    """Whether its answer is a minimum of the loss itself, without bounds or a penalty."""

    patience: float = 20
    """Accepted steps in a row without a lower loss or optimality that mean no progress."""

    @abstractmethod
    def init(self, objective: Objective, params: Tree) -> S:
        """Return the state at `params`; one evaluation."""

    @abstractmethod
    def step(self, objective: Objective, state: S) -> S:
        """Return the state after one evaluation at one trial point."""

    def reduced(self, state: S) -> tuple[np.ndarray, np.ndarray]:
        """Return the gradient in the free parameters, zero in others, and a mask of them: (p,)."""
        gradient = to_host(state.grad)
        return gradient, np.ones(len(gradient), dtype=bool)

    def penalty_of(self, params: Tree) -> float:
        """Return what the method adds to the loss at `params`: its value is the sum of both."""
        return 0.0

    def nearest(self, params: Tree) -> Tree:
        """Return the feasible point nearest to `params`, which rounding may have moved off it."""
        return params

    def advance(self, objective: Objective, state: S, count: int) -> tuple[S, int]:
        """Return the state after up to `count` steps, `moved` for all of them, and their number."""
        moved, taken = False, 0
        while taken < count and state.status is None:
            state = self.step(objective, state)
            moved, taken = moved or state.moved, taken + 1
        return (state._replace(moved=True) if moved and not state.moved else state), taken


class FirstOrderState(NamedTuple):
    """The state of a first-order rule."""

    params: Tree  # the parameters
    value: float  # the loss there
    grad: Tree  # its gradient there, like params
    optimality: float  # the gradient's largest absolute entry
    status: Status | None  # NONFINITE when the next step leads to NaN or infinity
    moved: bool  # whether the last call took a step
    step: int  # steps taken so far; the schedule's argument
    buffers: Tree  # the rule's arrays, a tree (empty for SGD)
    losses: tuple[float, ...] = ()  # read so far, for a schedule that takes them


LearningRate = float | Callable[..., float | mx.array]
"""A number, or a function of the step, an int counted from 0.

A function whose attribute `reads_losses` is true is also passed the losses read so far, a tuple:
those that `minimize` read every `record_every` steps, the mean of each epoch in `train`.
"""

Step = tuple[Tree, Tree]  # the parameters and the buffers after a step


@dataclasses.dataclass(frozen=True)
class FirstOrder(Optimizer[FirstOrderState]):
    """A rule that computes a step from the gradient by arithmetic alone; subclasses define it.

    Several steps are compiled together: `start` and `update` must consist of MLX operations, with
    the number of steps, if needed, as a buffer.
    """

    stride: ClassVar[int] = 10

    learning_rate: LearningRate

    def __post_init__(self) -> None:
        if not callable(self.learning_rate):
            rate = _check_rate(self.learning_rate, "learning_rate")
            if type(self.learning_rate) not in (int, float):
                object.__setattr__(self, "learning_rate", rate)
        check_limits(self)

    @property
    def patience(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As in `Optimizer`; infinite with a schedule, which may still lower the steps."""
        # Fixed steps oscillate for long before they converge.
        return math.inf if self._any_rate(callable) else 100

    def start(self, params: Tree) -> Tree:
        """Return the initial buffers, any tree: here zeros like `params`, float32 for 16 bits."""
        return zeros(params)

    @abstractmethod
    def update(self, grad: Tree, buffers: Tree, params: Tree, learning_rate: mx.array) -> Step:
        """Return the parameters and the buffers after one step, their dtypes unchanged.

        Args:
            grad: the gradient at `params`.
            buffers: from `start` or the last `update`.
            params: the parameters.
            learning_rate: a scalar array, float32 (float64 if a leaf is); cast it to each leaf's
                dtype, or it promotes float16 and bfloat16 leaves.
        """

    def optimality(self, grad: Tree) -> mx.array:
        """Return the largest absolute entry of the gradient, a scalar array."""
        return largest_entry(grad)

    def learning_rates(self) -> Tree:
        """Return the learning rate, or a tree of those of the rules that make up this rule."""
        return self.learning_rate

    def reads_losses(self) -> bool:
        """Whether a learning rate depends on the losses read so far."""
        return self._any_rate(_reads_losses)

    def _any_rate(self, test: Callable[[Any], bool]) -> bool:
        rates = self.learning_rates()
        if isinstance(rates, (int, float)):  # no tree to walk
            return test(rates)
        return any(test(rate) for _, rate in tree_flatten(rates, is_leaf=callable))

    def rates(
        self, step: int, count: int, dtype: mx.Dtype, losses: tuple[float, ...] = ()
    ) -> list[Any]:
        """Return the learning rates of `count` steps from `step` on, each a tree of arrays."""
        rate = self.learning_rates()
        if isinstance(rate, (int, float)):  # no tree to walk: a tenth of the time
            return [mx.array(float(rate), dtype=dtype)] * count

        def arrays(step: int) -> Tree:
            array = functools.partial(_rate_at, step=step, losses=losses, dtype=dtype)
            return tree_map(array, rate, is_leaf=callable)

        if not self._any_rate(callable):
            return [arrays(step)] * count
        return [arrays(step + i) for i in range(count)]

    def init(self, objective: Objective, params: Tree) -> FirstOrderState:
        """Return the state at `params`; one evaluation."""
        buffers = initial_buffers(self, params)
        value, grad = objective.value_and_grad(params)
        number, largest = read(value, self.optimality(grad))
        losses = (number,) if self.reads_losses() else ()
        return FirstOrderState(params, number, grad, largest, None, False, 0, buffers, losses)

    def step(self, objective: Objective, state: FirstOrderState) -> FirstOrderState:
        return self.advance(objective, state, 1)[0]

    def advance(
        self, objective: Objective, state: FirstOrderState, count: int
    ) -> tuple[FirstOrderState, int]:
        """Take `count` steps, and read the value and the optimality once, at their end.

        If these are not finite, the steps are repeated one at a time; the state is then the last
        finite one, with status NONFINITE.
        """
        began, dtype = time.perf_counter(), working_dtype(state.params)
        params, grad, buffers, step = state.params, state.grad, state.buffers, state.step
        value = optimality = mx.array(0.0)
        steps, end = functools.partial(self._steps, objective.loss), step + count
        rates = self.rates(step, count, dtype, state.losses)
        while step < end:
            size = objective.steps_per_call if end - step >= objective.steps_per_call else 1
            call = objective.compiled((id(self), size), lambda: steps)
            first = step - state.step
            found = call(params, grad, buffers, rates[first : first + size], *objective.data)
            params, buffers, value, grad, optimality = found
            step += size
            if step < end:
                mx.async_eval(params, buffers, grad)
        mx.eval(params, buffers, grad, value, optimality)
        objective.evaluations += count
        loss, largest = read(value, optimality)
        if is_finite(loss, largest):
            objective.time_steps(count, time.perf_counter() - began)
            losses = (*state.losses, loss) if self.reads_losses() else ()
            new = FirstOrderState(params, loss, grad, largest, None, True, step, buffers, losses)
            return new, count
        if count == 1:
            status = Status.UNBOUNDED if loss == -math.inf else Status.NONFINITE
            return state._replace(status=status, moved=False), 0
        losses = state.losses  # those known when the steps were first taken
        for taken in range(count):
            state, _ = self.advance(objective, state._replace(losses=losses), 1)
            if state.status is not None:
                return state._replace(moved=taken > 0), taken
        return state, count

    def _steps(self, loss: Any, params: Tree, grad: Tree, buffers: Tree, rates: Any, *data) -> Any:
        """Take one step for each of these learning rates."""
        derivative, value = mx.value_and_grad(loss), mx.array(0.0)
        for rate in rates:
            params, buffers = self.update(grad, buffers, params, rate)
            # MLX is lazy: of the values only the last is computed.
            value, grad = derivative(params, *data)
        return params, buffers, value, grad, self.optimality(grad)


def as_rule(optimizer: Any) -> Any:
    """Return an optimizer of `mlx.optimizers` as a first-order rule, anything else as it is."""
    library = sys.modules.get("mlx.optimizers")  # such an object has imported it
    if library is None or not isinstance(optimizer, library.Optimizer):
        return optimizer
    from mlxopt.optimizers._mlx import FromMLX

    return FromMLX(optimizer)


def initial_buffers(rule: FirstOrder, params: Tree) -> Tree:
    """Return `rule.start(params)`; TypeError if `rule.update` changes structure, shape or dtype."""
    buffers = rule.start(params)
    # Nothing is evaluated: structure, shapes and dtypes are known from the graph.
    after = rule.update(params, buffers, params, mx.array(0.0, dtype=working_dtype(params)))
    name = type(rule).__name__
    if not (isinstance(after, tuple) and len(after) == 2):
        found = type(after).__qualname__
        raise TypeError(
            f"{name}.update returned {found}; expected a tuple of two: parameters and buffers."
        )
    for what, old, new in zip(("parameters", "buffers"), (params, buffers), after, strict=True):
        expected, found = (tree_map(_tree.describe_structure, tree) for tree in (old, new))
        # By paths: a list is as good as a tuple.
        if dict(tree_flatten(found)) != dict(tree_flatten(expected)):
            raise TypeError(
                f"{name}.update changed the structure, shapes or dtypes of the {what}: expected "
                f"{expected}, got {found}. Cast the learning rate to each leaf's dtype."
            )
    return buffers


def wide(tree: Tree) -> Tree:
    """Return a tree with 16-bit leaves in float32, for sums over many steps."""
    return tree_map(lambda x: x.astype(mx.float32) if x.dtype in _tree.HALF else x, tree)


def zeros(params: Tree) -> Tree:
    """Return zeros like `wide(params)`."""
    return tree_map(mx.zeros_like, wide(params))


def running_mean(mean: Tree, new: Tree, beta: float) -> Tree:
    """Return the running mean beta · mean + (1 - beta) · new, the dtypes of `mean` kept."""
    return tree_map(lambda m, x: (beta * m + (1 - beta) * x).astype(m.dtype), mean, new)


def descend(params: Tree, direction: Tree, learning_rate: mx.array, weight_decay=0.0) -> Tree:
    """Return params - learning_rate · (direction + weight_decay · params), dtypes kept."""

    def move(p: mx.array, d: mx.array) -> mx.array:
        d = d + weight_decay * p.astype(d.dtype) if weight_decay else d
        return (p - learning_rate.astype(d.dtype) * d).astype(p.dtype)

    return tree_map(move, params, direction)


def _check_rate(rate: Any, name: str) -> float:
    return check_number(rate, name, least=0, instead=", or a function of the step")


def _reads_losses(rate: LearningRate) -> bool:
    return getattr(rate, "reads_losses", False) is True


def _rate_at(rate: LearningRate, step: int, losses: tuple[float, ...], dtype: mx.Dtype) -> mx.array:
    """Return the learning rate of a step as an array, having checked it."""
    found: Any = rate
    if callable(rate):
        found = rate(step, losses) if _reads_losses(rate) else rate(step)
        if isinstance(found, (mx.array, np.ndarray)) and found.size == 1:
            found = np.asarray(found).item()
        found = _check_rate(found, f"learning_rate({step})")
    return mx.array(float(found), dtype=dtype)
