"""Levenberg–Marquardt: Gauss–Newton in a region where the linear model is trusted.

Notation, as in Moré (1978), "The Levenberg-Marquardt algorithm: implementation and theory":
    r, J = the residual and its Jacobian         D = diagonal scaling, Dⱼ = largest ‖Jⱼ‖ seen
    Δ = the radius of the region ‖D p‖ ≤ Δ       λ = its multiplier
    p = the step, the minimizer of ½ ‖J p + r‖² + ½ λ ‖D p‖²
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from mlxopt._checks import check_fields
from mlxopt._objective import Objective
from mlxopt._residual_objective import Bounds, ResidualObjective
from mlxopt._status import Status
from mlxopt._tree import Params, epsilon, from_host
from mlxopt.optimizers import _residual
from mlxopt.optimizers._base import Optimizer
from mlxopt.optimizers._residual import Array, Linearization, norm, times

_ENOUGH = 1e-4  # the least share of the predicted decrease of an accepted step
_FLOOR = 1e-3  # the least predicted decrease, in roundings of the loss
_ACCELERATION = 0.75  # the longest correction, relative to the step (Transtrum and Sethna's α)
_PROBE = 0.1  # the share of the step over which its second derivative is measured


class Factored(NamedTuple):
    """J as Q R, and R D⁻¹ as U diag(s) Vᵀ, of the free parameters."""

    free: Array  # (q,): indices of the parameters
    r: Array  # (q, q): R
    qtr: Array  # (q,): Qᵀ r
    s: Array  # (q,): singular values
    vt: Array  # (q, q): Vᵀ
    c: Array  # (q,): -Uᵀ Qᵀ r
    scale: Array  # (q,): their D


class LevenbergMarquardtState(NamedTuple):
    """The state of Levenberg–Marquardt; p is the number of parameters."""

    params: Params  # the parameters
    value: float  # the loss there
    grad: Params  # its gradient there, like params
    optimality: float  # the largest cosine between the residual and a free column of the Jacobian
    status: Status | None  # why no further step is possible
    moved: bool  # whether the last trial was accepted
    model: Linearization  # the residual and its Jacobian there, on the host
    scale: Array  # (p,): D
    radius: float  # Δ; infinite before the first step
    factored: Factored | None  # of the Jacobian; None until it is needed


@dataclasses.dataclass(frozen=True)
class LevenbergMarquardt(Optimizer[LevenbergMarquardtState]):
    """Levenberg–Marquardt with Moré's scaling: the method for sums of squares, `least_squares`.

    Each step minimizes the linear model of the residual within an ellipsoid scaled by the Jacobian,
    so that the units of the parameters do not matter (Moré 1978; by a singular value decomposition
    of the triangular factor of J, which may be singular). One step is one evaluation of the
    residual; an accepted step also computes its Jacobian.

    Bounds: parameters at a bound that the loss pushes against are held; a step of the others is cut
    off at the bounds and the rest solved again (after Kanzow, Yamashita and Fukushima 2004,
    "Levenberg-Marquardt methods with strong local convergence properties for solving nonlinear
    equations with convex constraints").

    Args:
        geodesic: correct each step by the curvature of the residual along it, for one more
            evaluation a step and fewer steps in curved valleys (Transtrum and Sethna 2012,
            "Improvements to the Levenberg-Marquardt algorithm for nonlinear least-squares
            minimization", equation 5).
        radius: the first radius over the scaled start; 0.1 to 100, smaller if steps overshoot.

    >>> import mlx.core as mx, mlxopt as mo
    >>> residual = lambda x: mx.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]])  # Rosenbrock
    >>> fit = mo.least_squares(residual, mx.array([-1.2, 1.0]), optimizer=mo.LevenbergMarquardt())
    >>> fit.converged, fit.params
    (True, array([1, 1], dtype=float32))
    """

    geodesic: bool = False
    radius: float = 10.0

    def __post_init__(self) -> None:
        if not isinstance(self.geodesic, bool):
            raise TypeError(f"LevenbergMarquardt(geodesic={self.geodesic!r}): expected a bool.")
        check_fields(self, "radius", above=0)

    def init(self, objective: Objective, params: Params) -> LevenbergMarquardtState:
        objective = _residual.needs_residual(objective, "LevenbergMarquardt")
        model = _residual.linearize(objective, params, *_residual.evaluate(objective, params))
        state = _at(params, model, np.zeros(len(model.x)), np.inf)
        return state._replace(moved=False)

    def reduced(self, state: LevenbergMarquardtState) -> tuple[np.ndarray, np.ndarray]:
        fixed = state.model.fixed
        return np.where(fixed, 0.0, state.model.gradient), ~fixed

    @np.errstate(all="ignore")  # a far trial may overflow, and is then rejected
    def step(self, objective: Objective, state: LevenbergMarquardtState) -> LevenbergMarquardtState:
        objective = _residual.needs_residual(objective, "LevenbergMarquardt")
        model, radius = state.model, state.radius
        factored = state.factored or _factored(model, state.scale)
        state = state._replace(moved=False, factored=factored)
        if not len(factored.free) or model.negligible:
            return state._replace(status=Status.NO_PROGRESS)
        if np.isinf(radius):
            radius = self.radius * (
                float(norm(state.scale * model.x)) or float(norm(model.residual))
            )

        scaled, multiplier = region_step(factored, radius)
        step = np.zeros_like(model.x)
        step[factored.free] = scaled / factored.scale
        if objective.bounds is not None:
            step = _within(objective.bounds, model.x, factored, step, multiplier)
        trial, x = _residual.trial_at(objective, state.params, model.x + step)
        step = x - model.x  # as rounded and bounded
        length = float(np.linalg.norm(state.scale * step))
        change = model.jacobian @ step
        predicted = -float(model.gradient @ step + 0.5 * change @ change)
        if not step.any() or not predicted > 0:
            if not step.any() or (multiplier > 0 and length < epsilon(state.params) * radius):
                return state._replace(status=Status.NO_PROGRESS)
            return state._replace(radius=0.25 * min(radius, length))

        if self.geodesic:
            bent = model.x + _accelerated(objective, state, step, multiplier)
            trial, _ = _residual.trial_at(objective, state.params, bent)
        residual, value = _residual.evaluate(objective, trial)
        actual = state.value - value
        ratio = actual / predicted if np.isfinite(value) else -np.inf
        if predicted <= model.noise and abs(actual) <= model.noise:
            # Rounding hides the decrease of the loss: the gradients decide.
            found = _residual.linearize(objective, trial, residual, value)
            if found.cosine < 0.99 * model.cosine:
                return _at(trial, found, state.scale, state.radius)
            if predicted <= _FLOOR * model.noise:
                return state._replace(status=Status.NO_PROGRESS)
            return state._replace(radius=0.25 * min(state.radius, length))
        if np.isinf(state.radius):
            radius = min(radius, length)
        slope = model.gradient @ step
        radius = float(new_radius(radius, length, multiplier, ratio, slope, actual))
        if ratio < _ENOUGH:
            return state._replace(radius=radius)
        found = _residual.linearize(objective, trial, residual, value)
        if not np.isfinite(found.jacobian).all():
            return state._replace(radius=0.1 * min(radius, length))
        return _at(trial, found, state.scale, radius)


def _at(params: Params, model: Linearization, scale: Array, radius) -> LevenbergMarquardtState:
    point = params, model.value, from_host(model.gradient, params), model.optimality, None, True
    return LevenbergMarquardtState(*point, model, np.maximum(scale, model.columns), radius, None)


def _factored(model: Linearization, scale: Array) -> Factored:
    free = np.flatnonzero(~model.fixed)
    scale = np.where(scale > 0, scale, 1.0)[free]
    q, r = np.linalg.qr(model.jacobian[:, free])
    u, s, vt = np.linalg.svd(r / scale)
    qtr = q.T @ model.residual
    return Factored(free, r, qtr, s, vt, -(u.T @ qtr), scale)


def _accelerated(objective: ResidualObjective, state: Any, step: Array, multiplier: float) -> Array:
    """Return the step bent along the residual's second derivative in its direction."""
    model, factored = state.model, state.factored
    probe, x = _residual.trial_at(objective, state.params, model.x + _PROBE * step)
    moved, _ = _residual.evaluate(objective, probe)
    if not np.isfinite(moved).all():
        return step
    # Transtrum and Sethna, equation 22: from two values and the slope along the step.
    along = model.jacobian @ (x - model.x) / _PROBE
    second = 2 / _PROBE * (model.weights * (moved - model.plain) / _PROBE - along)
    slope = (model.jacobian.T @ second)[factored.free] / factored.scale
    inverse = _inverse(factored.s**2 + multiplier, factored.s.max() ** 2)
    bend = -(factored.vt.T @ (inverse * (factored.vt @ slope)))
    length = np.linalg.norm(factored.scale * step[factored.free])
    if not np.linalg.norm(bend) <= _ACCELERATION * length:
        return step
    bent = step.copy()
    bent[factored.free] += 0.5 * bend / factored.scale
    return bent


def region_step(factored: Factored, radius: Any) -> tuple[Array, Any]:
    """Return D p of the free parameters, shape (..., q), within the region, and λ, shape (...).

    Moré (1978), section 4 and algorithm 5.5: λ is zero or such that ‖D p‖ is within a tenth of Δ.
    Leading axes hold many.
    """
    s, c, radius = factored.s, factored.c, np.asarray(radius)

    def at(multiplier: Array) -> Array:
        return c * s * _inverse(s * s + multiplier[..., None], s[..., :1] ** 2)

    multiplier = np.zeros_like(radius)
    z = at(multiplier)
    outside = ~(norm(z) <= 1.1 * radius)
    if outside.any():
        low, high = multiplier, norm(s * c) / radius
        multiplier = np.where(outside, 1e-3 * high, 0.0)
        for _ in range(50):
            z = at(multiplier)
            length = norm(z)
            outside = outside & ~(abs(length - radius) <= 0.1 * radius)
            if not outside.any():
                break
            far = length > radius
            low, high = np.where(far, multiplier, low), np.where(far, high, multiplier)
            # Newton's method on 1/‖z‖, which is nearly linear in λ (Hebden 1973).
            slope = -np.sum(z * z / (s * s + multiplier[..., None]), axis=-1) / length
            guess = multiplier - (length / radius) * (length - radius) / slope
            middle = np.where(low > 0, np.sqrt(low * high), 1e-3 * high)
            guess = np.where((low < guess) & (guess < high), guess, middle)
            multiplier = np.where(outside, guess, multiplier)
    return times(factored.vt.mT, z), multiplier


def _inverse(curvature: Any, largest: Any) -> Array:
    """Return 1 / curvature, and zero where that is rounding: the step of least length."""
    floor = (curvature.shape[-1] * np.finfo(float).eps) ** 2 * largest
    return np.where(curvature > floor, 1 / curvature, 0.0)


def _within(bounds: Bounds, x: Array, factored: Factored, step: Array, multiplier: float) -> Array:
    """Return the step cut off at the faces of the box, with the other parameters solved again."""
    lower, upper = bounds.lower - x, bounds.upper - x
    free, r, scale = factored.free, factored.r, factored.scale
    step = step.copy()
    held = np.zeros(len(free), dtype=bool)
    for _ in range(len(free)):
        part = step[free]
        out = ~held & ((part < lower[free]) | (part > upper[free]))
        if not out.any():
            break
        held |= out
        step[free] = part = np.clip(part, lower[free], upper[free])
        if held.all():
            break
        rest = ~held
        matrix = np.vstack([r[:, rest], np.sqrt(multiplier) * np.diag(scale[rest])])
        target = np.concatenate([-factored.qtr - r[:, held] @ part[held], np.zeros(rest.sum())])
        step[free[rest]] = np.linalg.lstsq(matrix, target, rcond=None)[0]
    return np.clip(step, lower, upper)


def new_radius(radius: Any, length: Any, multiplier: Any, ratio: Any, slope: Any, actual: Any):
    """Return Δ after a trial, or after many (Moré 1978, algorithm 7.1, steps d and e)."""
    # Where the loss grew: to the minimum of the parabola through both values and the slope.
    parabola = np.minimum(0.5, np.maximum(0.1, 0.5 * slope / (slope + actual)))
    shrink = np.where(np.isfinite(actual), np.where(actual < 0, parabola, 0.5), 0.1)
    grown = np.where((ratio >= 0.75) | (multiplier == 0), 2 * length, radius)
    return np.where(ratio <= 0.25, shrink * np.minimum(radius, 10 * length), grown)
