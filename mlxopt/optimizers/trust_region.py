"""A trust-region Newton method, exact for few parameters, by conjugate gradients for many.

Notation, as in Nocedal and Wright (2006), chapter 4: Δ = radius; ρ = the decrease of the loss over
that of its quadratic model; λ₁ ≤ λ₂ ≤ ... = the eigenvalues of the Hessian. All are those in the
units D of the parameters (see `_descent.py`): a step s is at most ‖D⁻¹ s‖ = Δ long.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from mlxopt import _tree
from mlxopt._checks import check_fields
from mlxopt._dense import finite
from mlxopt._objective import Objective
from mlxopt._status import Status
from mlxopt._tree import Params, Vector, epsilon, is_finite, largest_entry, to_host, to_numpy
from mlxopt.optimizers._base import Optimizer
from mlxopt.optimizers._descent import first_step_size, scaled, units
from mlxopt.optimizers.newton_cg import residual_allowed, truncated_cg

_EXACT_UP_TO = 200  # parameters: an eigendecomposition of this size takes some 10 ms
_ACCEPTED = 1e-4  # the least ρ of an accepted step (η of algorithm 4.1)
_NOISE = 10.0  # roundings in the loss, a sum over examples
_FAR = 2.0**60  # times the first radius: no minimum lies there


class TrustRegionState(NamedTuple):
    """The state of the trust-region method; p is the number of parameters."""

    params: Params  # the parameters
    value: float  # the loss there
    grad: Params  # its gradient there, like params
    optimality: float  # the gradient's largest absolute entry, or -λ₁ Δ if that is larger
    status: Status | None  # why no further step is possible
    moved: bool  # whether the last trial was accepted
    squared: float  # gᵀD²g
    radius: float  # Δ
    first: float  # that of the first step
    largest: float  # gᵀD²g, its largest value so far
    scale: Any  # (p,): D, powers of two in the working dtype; None where units are alike
    eigenvalues: np.ndarray  # (p,) float64, ascending; (0,) for the method by conjugate gradients
    eigenvectors: np.ndarray  # (p, p) float64, in columns; (0, 0) likewise


@dataclasses.dataclass(frozen=True)
class TrustRegion(Optimizer[TrustRegionState]):
    """A trust-region Newton method: the minimum of the local quadratic within a trusted radius.

    The radius follows the quality of the quadratic (Nocedal and Wright 2006, algorithm 4.1). Up to
    200 parameters the step is exact, from an eigendecomposition of the Hessian (Moré and Sorensen
    1983, "Computing a trust region step"): it leaves saddles, even from a start on one, and ends
    only where the Hessian has no negative eigenvalue beyond rounding. With more it is Steihaug's
    truncated conjugate gradients. One step of `minimize` is one evaluation of the loss and its
    gradient; Hessians and Hessian-vector products are not counted.

    The trusted region is a ball, or an ellipsoid where the Hessian at the start says that the
    parameters have units of very different size.

    Args:
        radius: the largest length of the first step, in the Euclidean norm; None takes the length
            of the step to the minimum of the quadratic along -gradient.
        exact: whether the step is exact; None decides by the number of parameters.

    >>> import mlx.core as mx, mlxopt as mo
    >>> loss = lambda x: x[0] ** 4 / 4 - x[0] ** 2 / 2 + x[1] ** 2
    >>> result = mo.minimize(loss, mx.zeros(2), mo.TrustRegion())  # from the saddle
    >>> result.converged, round(abs(result.params[0].item()), 4), round(result.value, 4)
    (True, 1.0, -0.25)
    """

    radius: float | None = None
    exact: bool | None = None

    def __post_init__(self) -> None:
        if self.radius is not None:
            check_fields(self, "radius", above=0)
        if self.exact not in (None, True, False):
            raise TypeError(f"TrustRegion(exact={self.exact!r}): expected True, False or None.")

    def init(self, objective: Objective, params: Params) -> TrustRegionState:
        value, grad = objective.value_and_grad(params)
        number, largest = _tree.read(value, largest_entry(grad))
        exact = _tree.count(params) <= _EXACT_UP_TO if self.exact is None else self.exact
        p = _tree.count(params) if exact else 0
        none, finite = (np.zeros(p), np.zeros((p, p))), is_finite(number, largest)
        scale = units(objective, params, grad) if finite else None
        g = scaled(grad, _tree.working_dtype(params), scale)
        (squared,) = _tree.read(mx.inner(g, g))
        point = params, number, grad, largest, None, False, squared
        state = TrustRegionState(*point, 1.0, 1.0, squared, scale, *none)
        if not finite:
            return state
        radius = self._first_radius(objective, state)
        return _with_curvature(objective, state._replace(radius=radius, first=radius))

    def _first_radius(self, objective: Objective, state: TrustRegionState) -> float:
        """Return the radius of the first step, in units of D."""
        D = np.ones(1) if state.scale is None else to_host(state.scale)
        if self.radius is not None:
            return float(self.radius) / float(D.max())
        step_size = first_step_size(objective, state.params, to_host(state.grad), state.scale)
        length = step_size * math.sqrt(state.squared)
        # At a saddle, the length of params; at zero nothing has units.
        return length or float(np.linalg.norm(to_host(state.params) / D)) or 1.0

    def step(self, objective: Objective, state: TrustRegionState) -> TrustRegionState:
        if state.status is not None:
            return state
        direction, predicted, length = _minimizer(objective, state)
        if not (predicted > 0 and is_finite(predicted, length)):
            return state._replace(status=Status.NO_PROGRESS, moved=False)
        direction = direction if state.scale is None else state.scale * direction
        move = objective.compiled(_tree.move, lambda: _tree.move)
        trial = move(state.params, direction, mx.array(1.0, dtype=direction.dtype))
        value, grad = objective.value_and_grad(trial)
        measure = objective.compiled(_measure, lambda: _measure)
        numbers = measure(value, grad, direction, state.scale)
        trial_value, largest, squared = np.array(numbers).tolist()
        if trial_value == -math.inf:
            return state._replace(status=Status.UNBOUNDED, moved=False)

        decrease, eps = state.value - trial_value, epsilon(state.params)
        finite = is_finite(trial_value, largest)
        noise = _NOISE * objective.epsilon(state.params) * abs(state.value)
        if finite and max(predicted, abs(decrease)) <= noise:
            # Rounding hides the decrease: accept unless the gradient's norm more than doubled.
            ratio = 1.0 if squared <= 4 * state.squared else 0.0
        else:
            ratio = decrease / predicted if finite else -math.inf  # equation 4.4
        radius = state.radius
        if ratio < 0.25:
            radius = 0.25 * length
        elif ratio > 0.75 and length >= 0.99 * radius:
            radius = 2 * radius
        if not ratio > _ACCEPTED:
            size = to_host(state.params)
            size = float(np.abs(size if state.scale is None else size / to_host(state.scale)).max())
            least = eps * max(size, float(np.finfo(np.float32).tiny))
            status = Status.NO_PROGRESS if radius <= least else None
            return state._replace(radius=radius, status=status, moved=False)
        status = Status.UNBOUNDED if radius > _FAR * state.first else None
        point = trial, trial_value, grad, largest, status, True, squared, radius, state.first
        largest = max(squared, state.largest)
        rest = state.scale, state.eigenvalues, state.eigenvectors
        return _with_curvature(objective, TrustRegionState(*point, largest, *rest))


def _with_curvature(objective: Objective, state: TrustRegionState) -> TrustRegionState:
    """Add the eigendecomposition of the Hessian, for the exact method."""
    if not len(state.eigenvalues):
        return state
    matrix = finite(to_numpy(objective.hessian(state.params)))
    if state.scale is not None:
        D = to_host(state.scale)
        matrix = D[:, None] * matrix * D
    eigenvalues, vectors = np.linalg.eigh(0.5 * (matrix + matrix.T))
    state = state._replace(eigenvalues=eigenvalues, eigenvectors=vectors)
    if eigenvalues[0] < -math.sqrt(epsilon(state.params)) * np.abs(eigenvalues).max():
        # Where the gradient is small the point is then a saddle: the gradient a radius further.
        D = 1.0 if state.scale is None else to_host(state.scale)
        further = -float(eigenvalues[0]) * state.radius * float(np.abs(vectors[:, 0] / D).max())
        return state._replace(optimality=max(state.optimality, further))
    return state


def _minimizer(objective: Objective, state: TrustRegionState) -> tuple[mx.array, float, float]:
    """Return the step, the decrease of the quadratic along it, and its length."""
    dtype = _tree.working_dtype(state.params)
    if not len(state.eigenvalues):
        g, squared = scaled(state.grad, dtype, state.scale), state.squared
        enough = residual_allowed(squared, state.largest)
        found = truncated_cg(objective, state.params, g, squared, enough, state.radius, state.scale)
        return found.step, found.decrease, found.length
    components = state.eigenvectors.T @ to_host(scaled(state.grad, dtype, state.scale))
    step = exact_step(state.eigenvalues, components, state.radius)
    predicted = -float(components @ step + 0.5 * step @ (state.eigenvalues * step))
    direction = _tree.to_device(state.eigenvectors @ step, dtype)
    return direction, predicted, float(np.linalg.norm(step))


def exact_step(eigenvalues: np.ndarray, components: np.ndarray, radius: float) -> np.ndarray:
    """Return the minimizer of aᵀs + ½ Σ λᵢ sᵢ² over ‖s‖ ≤ radius, in the Hessian's eigenbasis.

    It is s(λ) = -aᵢ / (λᵢ + λ) with λ ≥ 0, λ ≥ -λ₁ and λ (radius - ‖s‖) = 0 (Nocedal and Wright
    2006, theorem 4.1), a root of 1/‖s(λ)‖ - 1/radius, nearly linear in λ (Moré and Sorensen 1983;
    algorithm 4.3). `eigenvalues`, ascending, and `components`, a, have shape (p,).
    """
    # All in μ = λ + λ₁ ≥ 0, the distance to the pole, near which λ itself would lose its digits.
    gaps = eigenvalues - eigenvalues[0]
    # A component that is rounding error would have a pole of its own.
    noise = np.finfo(np.float64).eps * float(np.linalg.norm(components))
    components = np.where(np.abs(components) <= noise, 0.0, components)

    def at(mu: float) -> tuple[np.ndarray, float]:
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            step = np.where(components == 0, 0.0, -components / (gaps + mu))
            return step, float(np.linalg.norm(step))

    least = max(0.0, float(eigenvalues[0]))  # λ = 0, or the pole
    step, length = at(least)
    if length <= radius:
        if eigenvalues[0] < 0:
            # The hard case: a has no part along the lowest eigenvector, which fills the radius.
            step[0] += math.sqrt(radius**2 - length**2)  # equation 4.45
        return step
    low, high = least, float(np.linalg.norm(components)) / radius  # ‖s(high)‖ ≤ radius
    mu = high = max(high, low * (1 + 1e-15))
    for _ in range(100):
        step, length = at(mu)
        if abs(length - radius) <= 1e-10 * radius:
            break
        low, high = (mu, high) if length > radius else (low, mu)
        if high - low <= 1e-15 * high:
            break
        # ‖s‖' = -Σ sᵢ² / (λᵢ + λ) / ‖s‖: equations 4.43 and 4.44.
        mu += (length - radius) / radius * length**2 / float(np.sum(step**2 / (gaps + mu)))
        if not low < mu < high:
            mu = 0.5 * (low + high) if low > 0 else max(1e-3 * high, 1e-300)
    return step * (radius / length)


def _measure(value: mx.array, grad: Params, direction: mx.array, scale: Vector | None) -> mx.array:
    g = scaled(grad, direction.dtype, scale)
    return mx.stack([value.astype(g.dtype), largest_entry(grad), mx.inner(g, g)])
