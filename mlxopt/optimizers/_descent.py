"""What methods that look along one direction at a time have in common: all but the direction.

Notation: d = the direction, g = the gradient at the trial point, y = g less the gradient at
`params`. Every product that a method may need of its trial is computed in one compiled call and
read at once.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, NamedTuple

import mlx.core as mx
import numpy as np

from mlxopt._objective import Objective
from mlxopt._status import Status
from mlxopt._tree import Tree, epsilon, is_finite, largest_entry, move, ravel, read, working_dtype
from mlxopt.optimizers._base import Optimizer
from mlxopt.optimizers._line_search import C2, NO_SEARCH, LineSearch, begin, proceed


class DescentState(NamedTuple):
    """The state of a method with a line search; p is the number of parameters."""

    params: Tree  # the parameters
    value: float  # the loss there
    grad: Tree  # its gradient there, like params
    optimality: float  # the gradient's largest absolute entry
    status: Status | None  # why no further step can be taken
    squared: float  # gᵀg of the gradient there
    direction: mx.array | None  # (p,): where the line search looks; None until it is needed
    search: LineSearch  # where it stands
    memory: Any  # what the method has learnt: a NamedTuple of its own, or a number
    fresh: bool  # whether memory is that of a start, with nothing learnt


class Trial(NamedTuple):
    """A trial point that the line search accepted, and the products that methods learn from."""

    params: Tree
    value: float
    grad: Tree
    optimality: float
    slope: float  # gᵀd
    gg: float  # gᵀg
    gy: float  # gᵀy
    yy: float  # yᵀy
    dd: float  # dᵀd


class Aim(NamedTuple):
    """Where to look next."""

    direction: mx.array  # (p,), in the working dtype
    slope: float  # its product with the gradient
    step_size: float  # the first trial


class Descent(Optimizer[DescentState]):
    """A method with a line search; subclasses say what to learn and where to look.

    A search along what was learnt that fails is tried again with all of it forgotten, which is down
    the gradient; if that fails too, the status is NO_PROGRESS.
    """

    flatness: ClassVar[float] = C2
    """How flat an accepted step must be: |φ'(t)| ≤ flatness · |φ'(0)|."""

    @abstractmethod
    def start(self, state: DescentState) -> Any:
        """Return the memory with nothing learnt yet, at `state.params`."""

    @abstractmethod
    def learn(self, state: DescentState, trial: Trial) -> Any:
        """Return the memory after the step from `state.params` to `trial.params`."""

    @abstractmethod
    def aim(self, objective: Objective, state: DescentState) -> Aim:
        """Return where to look from `state.params`."""

    def init(self, objective: Objective, params: Tree) -> DescentState:
        """Return the state at `params`; one evaluation."""
        value, grad = objective.value_and_grad(params)
        g = ravel(grad, working_dtype(params))
        number, largest, squared = read(value, largest_entry(grad), mx.inner(g, g))
        state = DescentState(
            params, number, grad, largest, None, squared, None, NO_SEARCH, None, True
        )
        return state._replace(memory=self.start(state))

    def step(self, objective: Objective, state: DescentState) -> DescentState:
        """Evaluate one trial along the direction; keep it if the line search accepts it."""
        if state.direction is None:
            state = self._begin(objective, state)
        if state.status is not None or state.direction is None:
            return state
        trial = _evaluate(objective, state, state.direction)
        search = proceed(state.search, trial.value, trial.slope)
        if search.verdict == "":
            return state._replace(search=search)
        if search.verdict == "failed":
            return self._forget(state)
        unbounded = search.verdict == "unbounded"
        status = Status.UNBOUNDED if unbounded else None
        if unbounded and not is_finite(trial.value, trial.slope):
            return state._replace(status=status)
        state = state._replace(search=search)
        memory = self.learn(state, trial)
        return DescentState(
            trial.params, trial.value, trial.grad, trial.optimality, status, trial.gg,
            None, search, memory, state.fresh and memory is state.memory,
        )  # fmt: skip

    def _begin(self, objective: Objective, state: DescentState) -> DescentState:
        """Choose the direction at `params` and begin a line search along it."""
        direction, slope, step_size = self.aim(objective, state)
        if not (slope < 0 and step_size > 0 and is_finite(slope, step_size)):
            return self._forget(state)
        search = begin(state.value, slope, step_size, epsilon(state.params))
        # The search asks for |φ'(t)| ≤ C2 · slope: a smaller slope asks for a flatter end.
        search = search._replace(slope=slope * self.flatness / C2)
        return state._replace(direction=direction, search=search)

    def _forget(self, state: DescentState) -> DescentState:
        """Start anew from `params`; give up if that was just done."""
        if state.fresh:
            return state._replace(status=Status.NO_PROGRESS)
        return state._replace(direction=None, memory=self.start(state), fresh=True)


def first_step_size(squared: float) -> float:
    """Return a first trial down the gradient, where no scale is known: to move by at most 1."""
    return min(1.0, float(1.0 / np.sqrt(squared))) if squared > 0 else 1.0


def _evaluate(objective: Objective, state: DescentState, direction: mx.array) -> Trial:
    """Return the trial at `state.search.step_size` along the direction; one evaluation."""
    shift = objective.compiled(move, lambda: move)
    step_size = mx.array(state.search.step_size, dtype=direction.dtype)
    params = shift(state.params, direction, step_size)
    value, grad = objective.value_and_grad(params)
    look = objective.compiled(_look, lambda: _look)
    numbers = np.array(look(value, grad, state.grad, direction)).tolist()  # the step's only read
    value, optimality, *products = numbers
    return Trial(params, value, grad, optimality, *products)


def _look(value: mx.array, grad: Tree, old_grad: Tree, direction: mx.array) -> mx.array:
    """Return the numbers of a `Trial` as one array."""
    dtype = direction.dtype
    g, d = ravel(grad, dtype), direction
    y = g - ravel(old_grad, dtype)
    products = [mx.inner(a, b) for a, b in ((g, d), (g, g), (g, y), (y, y), (d, d))]
    return mx.stack([value.astype(dtype), largest_entry(grad), *products])
