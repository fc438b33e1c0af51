"""What methods for sums of squares have in common: the linear model of the residual at a point.

Notation: r = the residual (m,), J = its Jacobian (m, p), g = Jᵀr = the gradient of ½ ‖r‖² (p,). The
residual and its Jacobian are computed in MLX; what solves with them is NumPy in float64. With a
robust loss both are weighted, so that JᵀJ ≈ its Hessian and Jᵀr = its gradient (Triggs and others
2000, "Bundle adjustment: a modern synthesis", section 4.3).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mlxopt._objective import Objective
from mlxopt._residual_objective import ResidualObjective
from mlxopt._tree import Tree, epsilon, from_host, to_host, to_numpy

# A residual smaller than this share of what the parameters contribute to it is compared with that
# instead of with itself: at a perfect fit nothing but rounding is left to be orthogonal to.
_SMALL = 1e-6
_NOTHING = 0.03  # the share of its rounding below which a residual is not worth lowering
# A robust loss may be concave in a residual; this share of its slope is kept as curvature.
_CURVATURE = 0.1


class Linearization(NamedTuple):
    """The residual near a point, float64 on the host."""

    x: np.ndarray  # (p,): the point
    value: float  # the loss there
    plain: np.ndarray  # (m,): r as it is
    weights: np.ndarray  # (m,): what a robust loss multiplies the rows of J by
    residual: np.ndarray  # (m,): r, weighted
    jacobian: np.ndarray  # (m, p): J, weighted
    gradient: np.ndarray  # (p,): g
    fixed: np.ndarray  # (p,) bool: at a bound that the loss pushes against
    cosine: float  # see `linearize`
    optimality: float  # the same with rounding allowed for
    noise: float  # the rounding error of value
    negligible: bool  # whether the residual is far below its own rounding


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
        gradient = jacobian.T @ residual
        fixed = np.zeros(len(x), dtype=bool)
        if objective.bounds is not None:
            lower, upper = objective.bounds
            fixed = ((x <= lower) & (gradient > 0)) | ((x >= upper) & (gradient < 0))
        contribution = np.abs(jacobian) @ np.abs(x)
        rounding = epsilon(params) * np.hypot(contribution, residual)
        noise = np.sqrt(np.square(jacobian).T @ np.square(rounding))
        scale = np.linalg.norm(jacobian, axis=0) * (
            np.linalg.norm(residual) + _SMALL * np.linalg.norm(contribution)
        )
        # A column of zeros: the parameter has no say here.
        noise = np.where(fixed | (gradient == 0), 0.0, noise / scale)
        cosines = np.where(fixed | (gradient == 0), 0.0, np.abs(gradient) / scale)
        cosine, optimality = float(np.max(cosines)), float(np.max(cosines + noise))
        noise = float(np.abs(residual) @ rounding) + 10 * epsilon(params) * abs(value)
        negligible = bool(np.linalg.norm(residual) < _NOTHING * np.linalg.norm(rounding))
    return Linearization(
        x, value, plain, weights, residual, jacobian, gradient, fixed, cosine, optimality,
        noise, negligible,
    )  # fmt: skip


def trial_at(objective: ResidualObjective, params: Tree, x: np.ndarray) -> tuple[Tree, np.ndarray]:
    """Return the point `x`, moved within the bounds, as a tree, and as that tree rounds it."""
    if objective.bounds is not None:
        x = np.clip(x, *objective.bounds)
    tree = from_host(x, params)
    return tree, to_host(tree)
