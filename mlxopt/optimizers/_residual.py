"""What methods for sums of squares have in common: the linear model of the residual at a point.

Notation: r = the residual (m,), J = its Jacobian (m, p), g = Jᵀr = the gradient of ½ ‖r‖² (p,). The
residual and its Jacobian are computed in MLX; what solves with them is NumPy in float64. With a
robust loss both are weighted, so that JᵀJ ≈ its Hessian and Jᵀr = its gradient (Triggs and others
2000, "Bundle adjustment: a modern synthesis", section 4.3).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from mlxopt._objective import Objective
from mlxopt._residual_objective import ResidualObjective
from mlxopt._tree import Tree, epsilon, from_host, to_host, to_numpy

tree_of, host = from_host, to_numpy  # for the modules that import them from here

Array = np.ndarray

# A residual smaller than this share of what the parameters contribute to it is compared with that
# instead of with itself: at a perfect fit nothing but rounding is left to be orthogonal to.
_SMALL = 1e-6
_NOTHING = 0.03  # the share of its rounding below which a residual is not worth lowering
# A robust loss may be concave in a residual; this share of its slope is kept as curvature.
_CURVATURE = 0.1


class Measures(NamedTuple):
    """What a residual and its Jacobian say of their point; leading axes hold many."""

    gradient: Array  # (..., p): g
    fixed: Array  # (..., p) bool: at a bound that the loss pushes against
    columns: Array  # (..., p): ‖Jⱼ‖
    cosine: Any  # (...): see `linearize`
    optimality: Any  # (...): the same with rounding allowed for
    noise: Any  # (...): the rounding error of the loss
    negligible: Any  # (...) bool: whether the residual is far below its own rounding


class Linearization(NamedTuple):
    """The residual near a point, float64 on the host."""

    x: Array  # (p,): the point
    value: float  # the loss there
    plain: Array  # (m,): r as it is
    weights: Array  # (m,): what a robust loss multiplies the rows of J by
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
        f"{name} minimizes sums of squares and needs their terms; expected a residual. Write "
        f"least_squares(residual, params, *data, optimizer={name}()), where residual returns an "
        f"array such as predictions - y; or take LBFGS() for any other loss."
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

    Its optimality is the largest |gⱼ| / (‖Jⱼ‖ ‖r‖) over the parameters that are free to move: the
    cosine of the angle between the residual and what parameter j can change in it (Moré 1978,
    "The Levenberg-Marquardt algorithm: implementation and theory", section 5). It has no unit: a
    parameter of size 1e-9 counts as much as one of size 1e9, which for the gradient itself is far
    from so. The rounding of r, at least that of x, is added to gⱼ: what is not known to be small
    is not small.
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
    flat = fixed | (g == 0)  # a column of zeros: the parameter has no say here
    cosines = np.where(flat, 0.0, np.abs(g) / scale)
    spread = np.sqrt(times(np.square(J).mT, np.square(rounding)))
    allowed = cosines + np.where(flat, 0.0, spread / scale)
    noise = np.vecdot(np.abs(r), rounding) + 10 * eps * np.abs(value)
    negligible = length < _NOTHING * norm(rounding)
    return Measures(g, fixed, columns, cosines.max(-1), allowed.max(-1), noise, negligible)


def times(matrix: Array, vector: Array) -> Any:
    """Return matrices (..., m, p) times vectors (..., p)."""
    return (matrix @ vector[..., None])[..., 0]


def norm(vector: Array) -> Any:
    """Return the lengths of vectors (..., p)."""
    return np.sqrt(np.vecdot(vector, vector))


def trial_at(objective: ResidualObjective, params: Tree, x: np.ndarray) -> tuple[Tree, np.ndarray]:
    """Return the point `x`, moved within the bounds, as a tree, and as that tree rounds it."""
    if objective.bounds is not None:
        x = np.clip(x, *objective.bounds)
    tree = from_host(x, params)
    return tree, to_host(tree)
