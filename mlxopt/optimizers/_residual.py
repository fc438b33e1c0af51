"""The linear model of a residual at a point, for methods that minimize sums of squares.

Notation: r = the residual (m,), J = its Jacobian (m, p), g = Jᵀr = the gradient of ½ ‖r‖² (p,). r
and J are computed in MLX, steps from them by NumPy in float64. For a robust loss both are weighted:
JᵀJ ≈ its Hessian and Jᵀr = its gradient (Triggs and others 2000, "Bundle adjustment: a modern
synthesis", section 4.3).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from mlxopt._dense import times
from mlxopt._objective import Objective
from mlxopt._residual_objective import ResidualObjective
from mlxopt._tree import Tree, epsilon, from_host, to_host, to_numpy

Array = np.ndarray

# The share of the terms in r that is added to ‖r‖: at a perfect fit r itself is rounding error.
_SMALL = 1e-6
_NOTHING = 0.03  # a residual below this share of its rounding counts as zero
# A robust loss can be concave in a residual; this share of its slope is the least curvature.
_CURVATURE = 0.1


class Measures(NamedTuple):
    """The gradient and the optimality of a sum of squares; leading axes hold many."""

    gradient: Array  # (..., p): g
    fixed: Array  # (..., p) bool: at a bound that the loss pushes against
    columns: Array  # (..., p): ‖Jⱼ‖
    cosine: Any  # (...): see `linearize`
    optimality: Any  # (...): the same with rounding errors added
    noise: Any  # (...): the rounding error of the loss
    negligible: Any  # (...) bool: whether the residual is far below its own rounding


class Linearization(NamedTuple):
    """The residual near a point, float64 on the host."""

    x: Array  # (p,): the point
    value: float  # the loss there
    plain: Array  # (m,): r, not weighted
    weights: Array  # (m,): of the rows of J, for a robust loss
    residual: Array  # (m,): r, weighted
    jacobian: Array  # (m, p): J, weighted
    # As in Measures:
    gradient: Array
    fixed: Array
    columns: Array
    cosine: float
    optimality: float
    noise: float
    negligible: bool


def needs_residual(objective: Objective, name: str) -> ResidualObjective:
    """Return `objective` if it has a residual, else raise TypeError."""
    if isinstance(objective, ResidualObjective):
        return objective
    raise TypeError(
        f"{name} minimizes sums of squares; expected a residual, such as predictions - y. Write "
        f"least_squares(residual, params, *data, optimizer={name}()), or use LBFGS()."
    )


def evaluate(objective: ResidualObjective, params: Tree) -> tuple[np.ndarray, float]:
    """Return the residual, not weighted, and the loss at `params`; one evaluation."""
    residual = to_numpy(objective.residual(params))
    with np.errstate(over="ignore", invalid="ignore"):
        return residual, objective.robust.value(residual)


def linearize(
    objective: ResidualObjective, params: Tree, residual: np.ndarray, value: float
) -> Linearization:
    """Return the linear model at `params`, where `residual` and `value` are known.

    The optimality is the largest |gⱼ| / (‖Jⱼ‖ ‖r‖) over the parameters that are free to move: the
    cosine of the angle between the residual and column j of the Jacobian (Moré 1978, "The
    Levenberg-Marquardt algorithm: implementation and theory", section 5), which does not depend on
    the units of parameters and residuals. The rounding of r, at least that of x, is added to gⱼ.
    """
    x = to_host(params)
    jacobian = to_numpy(objective.jacobian(params))
    with np.errstate(all="ignore"):
        plain = residual
        pull, curvature = objective.robust.slopes(plain)
        weights = np.sqrt(np.maximum(curvature, _CURVATURE * pull))
        jacobian = jacobian * weights[:, None]
        residual = plain * pull / np.where(weights > 0, weights, 1.0)
        found = measure(x, value, residual, jacobian, epsilon(params), objective.bounds)
    numbers = (number.item() for number in found[3:])
    return Linearization(x, value, plain, weights, residual, jacobian, *found[:3], *numbers)


def measure(x: Array, value: Any, r: Array, J: Array, eps: float, bounds: Any = None) -> Measures:
    """Return the measures of linear models at x, shape (..., p); leading axes hold many."""
    g = times(J.mT, r)
    fixed = np.zeros(g.shape, dtype=bool)
    if bounds is not None:
        fixed = ((x <= bounds.lower) & (g > 0)) | ((x >= bounds.upper) & (g < 0))
    contribution = times(np.abs(J), np.abs(x))
    rounding = eps * np.hypot(contribution, r)
    columns, length = np.linalg.norm(J, axis=-2), norm(r)
    scale = columns * (length + _SMALL * norm(contribution))[..., None]
    flat = fixed | (g == 0) | (scale == 0)  # as for a column of zeros, or one whose norm underflows
    cosines = np.where(flat, 0.0, np.abs(g) / scale)
    spread = np.sqrt(times(np.square(J).mT, np.square(rounding)))
    allowed = cosines + np.where(flat, 0.0, spread / scale)
    noise = np.vecdot(np.abs(r), rounding) + 10 * eps * np.abs(value)
    negligible = length < _NOTHING * norm(rounding)
    return Measures(g, fixed, columns, cosines.max(-1), allowed.max(-1), noise, negligible)


def norm(vector: Array) -> Any:
    return np.sqrt(np.vecdot(vector, vector))


def trial_at(objective: ResidualObjective, params: Tree, x: np.ndarray) -> tuple[Tree, np.ndarray]:
    """Return `x` projected onto the bounds, as a tree and as the vector of its rounded leaves."""
    if objective.bounds is not None:
        x = np.clip(x, *objective.bounds)
    tree = from_host(x, params)
    return tree, to_host(tree)
