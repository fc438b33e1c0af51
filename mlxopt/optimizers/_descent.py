"""The part common to all methods with a line search: everything but the direction and the memory.

Notation: d = the direction, g = the gradient at the trial, y = g minus the gradient at `params`;
H = the Hessian, D = the units of the parameters, a diagonal matrix. The inner products of a trial
are computed in one compiled call and read at once.

Where the parameters have units of very different size, the memory of a method is kept in the
coordinates D⁻¹ params, in which gradients are D g and Hessians D H D.
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

_ALIKE = 100.0  # the largest ratio of units that are left as they are
WHOLE = 32  # parameters up to which units come from the whole Hessian
_SIGNS = 3  # random vectors of signs, whose products stand for it beyond
_ROUNDS = 20  # of the iteration for units; each halves the digits by which they differ
_LOOK = 8  # accepted trials after which units are computed again
_EXTREME = 10  # binary digits of equal units that are left out
_EVEN = 10.0  # ratio of row lengths at which it ends


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
    scale: Any = None  # (p,): D, powers of two in the working dtype; None where units are alike
    accepted: int = 0  # trials accepted


class Trial(NamedTuple):
    """A trial of the line search, with the products that methods update their memory from."""

    params: Tree
    value: float
    grad: Tree
    optimality: float
    slope: float  # gᵀd
    gg: float = math.nan  # gᵀD²g
    gy: float = math.nan  # gᵀD²y
    yy: float = math.nan  # yᵀD²y
    dd: float = math.nan  # dᵀD⁻²d
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

    uses_scale: ClassVar[bool] = True
    """Whether the method depends on the units of the parameters."""

    def init_memory(self, params: Tree, grad: Vector, squared: float) -> Any:
        """Return the memory at `params`; `grad` is D g in the working dtype, `squared` gᵀD²g."""
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
    def measure(
        value: mx.array, grad: Tree, old_grad: Tree, direction: Vector, scale: Vector | None
    ) -> mx.array:
        """Return the numbers of a `Trial`, from its value to dᵀD⁻²d, as one array."""
        dtype = direction.dtype
        g, d = scaled(grad, dtype, scale), direction if scale is None else direction / scale
        y = g - scaled(old_grad, dtype, scale)
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
        numbers = np.array(measure(value, grad, state.grad, direction, state.scale)).tolist()
        return Trial(params, numbers[0], grad, *numbers[1:])

    def judge(self, search: LineSearch, trial: Trial) -> LineSearch:
        """Return the line search after the trial."""
        return proceed(search, trial.value, trial.slope)

    def init(self, objective: Objective, params: Tree) -> DescentState:
        """Return the state at `params`; one evaluation."""
        value, grad = objective.value_and_grad(params)
        number, largest = _tree.read(value, largest_entry(grad))
        return self.start(objective, params, number, largest, grad)

    def start(
        self, objective: Objective, params: Tree, value: float, largest: float, grad: Tree
    ) -> DescentState:
        """Return the state of a start at `params`, where the loss and its gradient are known."""
        scale = units(objective, params, grad) if self.uses_scale else None
        g = scaled(grad, working_dtype(params), scale)
        memory = self.init_memory(params, g, _tree.read(mx.inner(g, g))[0])
        point = params, value, grad, largest, None, False
        return DescentState(*point, None, NO_SEARCH, memory, scale)

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
        memory, accepted = self.update(state, trial), state.accepted + 1
        point = *trial[:4], status, True, None, search
        return self._rescaled(objective, DescentState(*point, memory, state.scale, accepted))

    def _rescaled(self, objective: Objective, state: DescentState) -> DescentState:
        """Return the state, or that of a start in other units where those of the start are wrong.

        Only where the start had units.
        """
        if state.scale is None or state.status or not is_due(state.accepted, state.scale.size):
            return state
        D = _tree.to_host(state.scale)
        if are_alike(D):
            return state
        new = self.start(objective, state.params, state.value, state.optimality, state.grad)
        if are_alike(D if new.scale is None else D / _tree.to_host(new.scale)):
            return state
        return new._replace(moved=True, accepted=state.accepted)

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


def first_step_size(
    objective: Objective, params: Tree, gradient: np.ndarray, scale: Any = None
) -> float:
    """Return the first trial along -D²g where the method knows no scale.

    That is the minimum of the quadratic, gᵀD²g / |gᵀD² H D²g|, for one Hessian-vector product;
    without curvature a move by the length of `params`, and from zero, where nothing has units, by
    at most 1.
    """
    D = 1.0 if scale is None else np.array(scale, dtype=np.float64)
    unit = _unit(gradient)  # the ratio does not change
    ascent = D**2 * (gradient / unit)
    squared = float(gradient / unit @ ascent)
    curvature = abs(float(ascent @ objective.times(params, ascent)))
    if 0 < curvature < math.inf and is_finite(squared / curvature):
        return squared / curvature
    length, norm = float(np.linalg.norm(_tree.to_host(params) / D)), math.sqrt(squared) * unit
    if not 0 < norm < math.inf:
        return 1.0
    return length / norm if length > 0 else min(1.0, 1.0 / norm)


def steepest(grad: Tree, state: DescentState) -> Vector:
    """Return -D²g, the steepest direction in the units of the state, shape (p,)."""
    g = scaled(grad, working_dtype(grad), state.scale)
    return -g if state.scale is None else -state.scale * g


def first_trial(objective: Objective, state: DescentState) -> float:
    """Return the first trial along `steepest`."""
    return first_step_size(objective, state.params, _tree.to_host(state.grad), state.scale)


def scaled(grad: Tree, dtype: mx.Dtype, scale: Vector | None) -> Vector:
    """Return D g, shape (p,)."""
    return ravel(grad, dtype) if scale is None else scale * ravel(grad, dtype)


def units(objective: Objective, params: Tree, grad: Tree) -> Vector | None:
    """Return D, powers of two for which the rows of D H D are about equally long, shape (p,).

    By the iteration of Ruiz (2001, "A scaling algorithm to equilibrate both rows and columns norms
    in matrices"), on the Hessian of up to 32 parameters. With more it is known by its products with
    a few random signs (Bradley 2010, "Algorithms for the equilibration of matrices and their
    application to limited-memory quasi-Newton methods").

    Units within a factor of 100 are alike: None, usually for the price of one product H g; or all
    equal, where float32 could not hold the squares of gradients.
    """
    gradient = _tree.to_host(grad)
    gradient = gradient / _unit(gradient)
    p, dtype = gradient.size, working_dtype(params)
    product = objective.times(params, gradient)
    size, norm = _norm(product), _norm(gradient)
    if not (0 < size < math.inf and 0 < norm < math.inf):
        return None
    exponent = -0.5 * math.log2(size / norm)  # of D that makes H one along g
    alike = np.full(p, 2.0 ** round(exponent)) if abs(exponent) > _EXTREME else None
    D = _unlike(objective, params, product)
    D = alike if D is None else D
    return None if D is None else _tree.to_device(D, dtype)


def _unlike(objective: Objective, params: Tree, product: np.ndarray) -> np.ndarray | None:
    """Return D where H g, the `product`, or its own entries differ by more than units may."""
    p = product.size
    if are_alike(product):
        return None
    lengths = _row_lengths(objective, params, p)
    exponents, known = np.zeros(p), np.ones(p, dtype=bool)
    for _ in range(_ROUNDS):
        length = lengths(np.exp2(np.round(exponents)))
        if not np.isfinite(length).all():
            return None
        known = length > 0
        exponents[known] -= 0.5 * np.log2(length[known])
        if _spread(length) <= _EVEN:
            break
    # Nothing is known of a parameter that the Hessian leaves out.
    exponents[~known] = np.median(exponents[known]) if known.any() else 0.0
    D = np.exp2(np.round(exponents))
    return None if are_alike(D) else D


def _row_lengths(objective: Objective, params: Tree, p: int) -> Any:
    """Return a function of D that gives the lengths of the rows of D H D, (p,)."""
    if p <= WHOLE:
        matrix = _tree.to_numpy(objective.hessian(params))
        return lambda D: np.linalg.norm(D[:, None] * matrix * D, axis=1)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(_SIGNS, p))

    def lengths(D: np.ndarray) -> np.ndarray:
        products = [D * objective.times(params, D * sign) for sign in signs]
        return np.sqrt(np.mean(np.square(products), axis=0))

    return lengths


def are_alike(vector: np.ndarray) -> bool:
    """Whether no unit, or what shows units, is a hundred times as large as another."""
    return _spread(vector) <= _ALIKE


def _unit(vector: np.ndarray) -> float:
    """Return a power of two of the size of a vector whose squares would underflow, else 1."""
    largest = float(np.abs(vector).max(initial=0.0))
    return 2.0 ** math.frexp(largest)[1] if 0 < largest < 1e-140 else 1.0


def _norm(vector: np.ndarray) -> float:
    """Return the length of a vector whose squares may underflow."""
    unit = _unit(vector)
    return float(np.linalg.norm(vector / unit)) * unit


def is_due(accepted: Any, p: int) -> Any:
    """Whether units are computed again after so many accepted trials, an int or an array.

    After 8, 16, 32, ...; beyond 32 parameters never: a few products are too rough to drop the
    memory for.
    """
    return (p <= WHOLE) & (accepted >= _LOOK) & (accepted & (accepted - 1) == 0)


def _spread(vector: np.ndarray) -> float:
    """Return the largest absolute entry over the smallest that is not zero."""
    size = np.abs(vector[vector != 0])
    return float(size.max() / size.min()) if size.size else 1.0
