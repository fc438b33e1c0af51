"""The part common to all methods with a line search: everything but the direction and the memory.

Notation: d = the direction, g = the gradient at the trial, y = g minus the gradient at `params`.
The inner products of a trial are computed in one compiled call and read at once.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, ClassVar, NamedTuple

import mlx.core as mx
import numpy as np

from mlxopt import _tree
from mlxopt._objective import Objective
from mlxopt._status import Status
from mlxopt._tree import Tree, Vector, is_finite, largest_entry, ravel, working_dtype
from mlxopt.optimizers._base import Optimizer
from mlxopt.optimizers._line_search import C2, NO_SEARCH, LineSearch, begin, proceed


class DescentState(NamedTuple):
    """The state of a method with a line search; p is the number of parameters."""

    params: Tree  # the parameters
    value: float  # the loss there
    grad: Tree  # its gradient there, like params
    optimality: float  # the largest entry of the gradient, or what stands for it
    status: Status | None  # why no further step is possible
    moved: bool  # whether the last trial was accepted
    direction: Any  # (p,): the direction of the line search; None before it is chosen
    search: LineSearch  # the state of the line search
    memory: Any  # the method's own: a NamedTuple, a number, or empty


class Trial(NamedTuple):
    """A trial of the line search, with the products that methods update their memory from."""

    params: Tree
    value: float
    grad: Tree
    optimality: float
    slope: float  # gᵀd
    gg: float = math.nan  # gᵀg
    gy: float = math.nan  # gᵀy
    yy: float = math.nan  # yᵀy
    dd: float = math.nan  # dᵀd
    model: Any = None  # the method's own results at the trial


class Direction(NamedTuple):
    """The line to search."""

    vector: Any  # (p,): an array of MLX in the working dtype, or of NumPy
    slope: float  # its product with the gradient
    step_size: float  # the first trial


class Descent(Optimizer[DescentState]):
    """A method with a line search; subclasses define the memory and the direction.

    Where no step along the direction is accepted, the memory is dropped and the search repeated; if
    there is none to drop, the status is NO_PROGRESS.
    """

    flatness: ClassVar[float] = C2
    """The curvature condition of an accepted step: |φ'(t)| ≤ flatness · |φ'(0)|."""

    def init_memory(self, params: Tree, grad: Vector, squared: float) -> Any:
        """Return the memory at `params`; `grad` is in the working dtype, `squared` is gᵀg."""
        return ()

    @abstractmethod
    def direction(self, objective: Objective, state: DescentState) -> Direction | Status:
        """Return the direction to search from `state.params`, or why there is none."""

    def update(self, state: DescentState, trial: Trial) -> Any:
        """Return the memory after the step from `state.params` to `trial.params`."""
        return ()

    def restart(self, state: DescentState) -> Any:
        """Return the memory of a start at `state.params`; None if it is that already."""
        return None

    @staticmethod
    def measure(value: mx.array, grad: Tree, old_grad: Tree, direction: Vector) -> mx.array:
        """Return the numbers of a `Trial`, from its value to dᵀd, as one array."""
        dtype = direction.dtype
        g, d = ravel(grad, dtype), direction
        y = g - ravel(old_grad, dtype)
        products = [mx.inner(a, b) for a, b in ((g, d), (g, g), (g, y), (y, y), (d, d))]
        return mx.stack([value.astype(dtype), largest_entry(grad), *products])

    def evaluate(self, objective: Objective, state: DescentState) -> Trial | None:
        """Return the trial at `state.search.step_size`; None if it rounds to `state.params`."""
        direction = state.direction
        shift = objective.compiled(_tree.move, lambda: _tree.move)
        step_size = mx.array(state.search.step_size, dtype=direction.dtype)
        params = shift(state.params, direction, step_size)
        value, grad = objective.value_and_grad(params)
        measure = objective.compiled(self.measure, lambda: self.measure)
        # The only read of a step.
        numbers = np.array(measure(value, grad, state.grad, direction)).tolist()
        return Trial(params, numbers[0], grad, *numbers[1:])

    def judge(self, search: LineSearch, trial: Trial) -> LineSearch:
        """Return the line search after the trial."""
        return proceed(search, trial.value, trial.slope)

    def init(self, objective: Objective, params: Tree) -> DescentState:
        """Return the state at `params`; one evaluation."""
        value, grad = objective.value_and_grad(params)
        g = ravel(grad, working_dtype(params))
        number, largest, squared = _tree.read(value, largest_entry(grad), mx.inner(g, g))
        memory = self.init_memory(params, g, squared)
        return DescentState(params, number, grad, largest, None, False, None, NO_SEARCH, memory)

    def step(self, objective: Objective, state: DescentState) -> DescentState:
        """Evaluate one trial along the direction; accept it if the line search does."""
        if state.direction is None:
            state = self._begin(objective, state)
        if state.status is not None:
            return state
        trial = self.evaluate(objective, state)
        if trial is None:
            return state._replace(status=Status.NO_PROGRESS, moved=False)
        search = self.judge(state.search, trial)
        if search.verdict == "":
            return state._replace(search=search, moved=False)
        if search.verdict == "failed":
            return self._restarted(state)
        unbounded = search.verdict == "unbounded"
        status = Status.UNBOUNDED if unbounded else None
        if unbounded and not is_finite(trial.value, trial.slope):
            return state._replace(status=status, moved=False)
        memory = self.update(state, trial)
        return DescentState(*trial[:4], status, True, None, search, memory)

    def _begin(self, objective: Objective, state: DescentState) -> DescentState:
        chosen = self.direction(objective, state)
        if isinstance(chosen, Status):
            return state._replace(status=chosen, moved=False)
        vector, slope, step_size = chosen
        if not (slope < 0 and step_size > 0 and is_finite(slope, step_size)):
            # Rounding has spoilt the memory.
            state = self._restarted(state)
            return state if state.status is not None else self._begin(objective, state)
        search = begin(state.value, slope, step_size, objective.epsilon(state.params))
        # The search accepts |φ'(t)| ≤ C2 · |slope|; with a smaller slope, a flatter end only.
        search = search._replace(slope=slope * (self.flatness / C2))
        return state._replace(direction=vector, search=search)

    def _restarted(self, state: DescentState) -> DescentState:
        """Return the state with the memory of a start; NO_PROGRESS if it has that already."""
        memory = self.restart(state)
        if memory is None:
            # A run that goes on, with more noise allowed for, begins a new search.
            return state._replace(direction=None, status=Status.NO_PROGRESS, moved=False)
        return state._replace(direction=None, memory=memory, moved=False)


def along(vector: np.ndarray, gradient: np.ndarray, params: Tree, step_size: float) -> Direction:
    """Return the direction of a NumPy vector, shape (p,), with its slope in float64."""
    slope = float(vector @ gradient)
    return Direction(_tree.to_device(vector, working_dtype(params)), slope, step_size)


def first_step_size(objective: Objective, state: Any) -> float:
    """Return the first trial along -gradient where the method knows no scale.

    That is gᵀg / |gᵀH g|, the minimum of the quadratic, for one Hessian-vector product; without
    curvature a move by the length of `params`, and from zero, where nothing has units, by at most
    1.
    """
    gradient = _tree.to_host(state.grad)
    squared = float(gradient @ gradient)
    curvature = abs(float(gradient @ objective.times(state.params, gradient)))
    if 0 < curvature < math.inf and is_finite(squared / curvature):
        return squared / curvature
    length, norm = float(np.linalg.norm(_tree.to_host(state.params))), math.sqrt(squared)
    if not 0 < norm < math.inf:
        return 1.0
    return length / norm if length > 0 else min(1.0, 1.0 / norm)
