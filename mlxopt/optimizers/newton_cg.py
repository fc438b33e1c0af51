"""Newton's method with the linear system solved roughly, by conjugate gradients.

Notation, as in Nocedal and Wright (2006), section 7.1: g = gradient, B = Hessian, z = the step so
far, r = B z + g its residual, d = the search direction inside the system, m(z) = gᵀz + ½ zᵀB z.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from mlxopt._objective import Objective
from mlxopt._tree import Tree, Vector, count, epsilon, is_finite, unravel, working_dtype
from mlxopt.optimizers._descent import (
    Descent,
    DescentState,
    Direction,
    Trial,
    first_trial,
    scaled,
    steepest,
)


@dataclasses.dataclass(frozen=True)
class NewtonCG(Descent):
    """Newton's method without the Hessian: only its products with vectors.

    The direction solves B d = -gradient by conjugate gradients, stopped when the residual is below
    min(½, √(‖g‖/‖g‖₀)) · ‖g‖, ‖g‖₀ the largest so far (cheap early steps, superlinear convergence)
    or at the first direction of negative curvature, which makes it a descent direction for any
    Hessian (Nocedal and Wright 2006, algorithm 7.1; Dembo and Steihaug 1983, "Truncated-Newton
    algorithms for large-scale unconstrained optimization"). A line search follows. One step of
    `minimize` is one evaluation of the loss and its gradient; the Hessian-vector products before
    each new direction cost about two gradients each and are not counted as evaluations.

    >>> import mlx.core as mx, mlxopt as mo
    >>> loss = lambda x: mx.sum(mx.exp(x) - 2.0 * x)
    >>> result = mo.minimize(loss, mx.zeros(1000), mo.NewtonCG())
    >>> result.converged, round(result.params[0].item(), 4)  # log 2
    (True, 0.6931)
    """

    def init_memory(self, params: Tree, grad: Vector, squared: float) -> Norms:
        return Norms(squared, squared)

    def update(self, state: DescentState, trial: Trial) -> Norms:
        return Norms(trial.gg, max(trial.gg, state.memory.largest))

    def direction(self, objective: Objective, state: DescentState) -> Direction:
        squared, largest = state.memory
        scale = state.scale
        g = scaled(state.grad, working_dtype(state.params), scale)
        if squared == 0:
            return Direction(g, 0.0, 1.0)
        enough = residual_allowed(squared, largest)
        found = truncated_cg(objective, state.params, g, squared, enough, scale=scale)
        if found.curved:  # negative curvature at once: along -gradient, with no scale known
            return Direction(steepest(state.grad, state), -squared, first_trial(objective, state))
        return Direction(found.step if scale is None else scale * found.step, found.slope, 1.0)


class Norms(NamedTuple):
    """The memory of NewtonCG."""

    squared: float  # gᵀD²g
    largest: float  # its largest value so far


def residual_allowed(squared: float, largest: float) -> float:
    """Return the norm of the residual at which the system is solved: min(½, √(‖g‖/‖g‖₀)) ‖g‖."""
    share = squared / largest if squared else 0.0
    return min(0.5, share**0.25) * math.sqrt(squared)


class TruncatedStep(NamedTuple):
    """The result of `truncated_cg`."""

    step: mx.array  # (p,): z
    slope: float  # gᵀz
    decrease: float  # -m(z)
    length: float  # ‖z‖
    curved: bool  # whether z ends along negative curvature, or is 0 because of it


def truncated_cg(
    objective: Objective,
    params: Tree,
    g: Vector,
    squared: float,
    enough: float,
    radius: float = math.inf,
    scale: Vector | None = None,
) -> TruncatedStep:
    """Return an approximate minimizer z of gᵀz + ½ zᵀB z over ‖z‖ ≤ radius.

    Conjugate gradients from z = 0, ended at a residual of norm `enough`, at the radius, or at a
    curvature that is not positive (Steihaug 1983, "The conjugate gradient method and trust regions
    in large scale optimization"; Nocedal and Wright 2006, algorithm 7.2). With an infinite radius
    the last returns the z before it (algorithm 7.1). One compiled call and one read an iteration.
    `objective` gives the products B v at `params`; g has shape (p,), and `squared` is gᵀg. With a
    `scale` D, g is D · gradient and B stands for D B D.
    """
    iterate = objective.compiled(_iterate, lambda: _iterate)
    z, r, d, rr = mx.zeros_like(g), g, -g, squared
    slope = decrease = length = 0.0
    eps = epsilon(params)
    for _ in range(2 * count(params)):  # p in exact arithmetic
        Bd = objective.hvp(params, unravel(d if scale is None else scale * d, params))
        rr_array = mx.array(rr, dtype=g.dtype)
        next_z, next_r, next_d, numbers = iterate(g, z, r, d, Bd, rr_array, scale)
        mx.eval(next_z, next_r, next_d, numbers)
        curvature, size, next_rr, zd, dd, gd, next_length = np.array(numbers).tolist()
        flat = not curvature > eps * math.sqrt(dd) * size  # not positive beyond rounding, or NaN
        if flat and math.isinf(radius):
            return TruncatedStep(z, slope, decrease, length, length == 0)
        if flat or next_length >= radius:
            # The τ ≥ 0 with ‖z + τ d‖ = radius, as the root without cancellation.
            rest = max(radius**2 - length**2, 0.0)
            below = zd + math.sqrt(zd**2 + dd * rest)  # zero where squares underflow
            tau = rest / below if below else 0.0
            if is_finite(curvature):
                decrease += tau * rr - 0.5 * tau**2 * curvature  # rᵀd = -rᵀr
            step = z + mx.array(tau, dtype=g.dtype) * d
            return TruncatedStep(step, slope + tau * gd, decrease, radius, flat)
        alpha = rr / curvature
        z, r, d = next_z, next_r, next_d
        slope, decrease, length = slope + alpha * gd, decrease + 0.5 * alpha * rr, next_length
        rr = next_rr
        if not math.sqrt(rr) > enough:
            break
    return TruncatedStep(z, slope, decrease, length, False)


def _iterate(
    g: Vector,
    z: Vector,
    r: Vector,
    d: Vector,
    product: Tree,
    rr: mx.array,
    scale: Vector | None,
) -> Any:
    """Return z, r and d after one iteration, and the numbers that decide whether to take it."""
    Bd = scaled(product, d.dtype, scale)
    curvature = mx.inner(d, Bd)
    alpha = rr / curvature
    next_z, next_r = z + alpha * d, r + alpha * Bd
    next_rr = mx.inner(next_r, next_r)
    next_d = (next_rr / rr) * d - next_r
    size, length = mx.sqrt(mx.inner(Bd, Bd)), mx.sqrt(mx.inner(next_z, next_z))
    products = [mx.inner(a, d) for a in (z, d, g)]
    return next_z, next_r, next_d, mx.stack([curvature, size, next_rr, *products, length])
