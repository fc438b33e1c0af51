"""Gauss–Newton with a line search.

Notation: r, J = the residual and its Jacobian; d = the direction, the shortest minimizer of
‖J d + r‖² (Nocedal and Wright 2006, "Numerical optimization", section 10.3).
"""

from __future__ import annotations

import dataclasses

import numpy as np

from mlxopt._objective import Objective
from mlxopt._tree import Params, from_host
from mlxopt.optimizers import _residual
from mlxopt.optimizers._descent import Descent, DescentState, Direction, Trial
from mlxopt.optimizers._line_search import NO_SEARCH, LineSearch
from mlxopt.optimizers._residual import Linearization, linearize, needs_residual


@dataclasses.dataclass(frozen=True)
class GaussNewton(Descent):
    """Gauss–Newton: repeated linear least squares on the linear model, for `least_squares`.

    The direction comes from a singular value decomposition of the Jacobian, its columns scaled to
    length one, without the singular values that are rounding; a line search for the strong Wolfe
    conditions follows. It needs the fewest steps for fits close to linear and good starts, but
    fails where J loses rank, unlike `LevenbergMarquardt`, and takes no bounds. One step is one
    evaluation of the residual and its Jacobian.

    >>> import mlx.core as mx, mlxopt as mo
    >>> residual = lambda x: mx.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]])  # Rosenbrock
    >>> fit = mo.least_squares(residual, mx.array([-1.2, 1.0]), optimizer=mo.GaussNewton())
    >>> fit.params
    array([1, 1], dtype=float32)
    """

    def init(self, objective: Objective, params: Params) -> DescentState:
        """Return the state at `params`; one evaluation. Its memory is the linear model there."""
        objective = needs_residual(objective, "GaussNewton")
        if objective.bounds is not None:
            raise ValueError("GaussNewton knows no bounds; use LevenbergMarquardt().")
        model = linearize(objective, params, *_residual.evaluate(objective, params))
        point = params, model.value, from_host(model.gradient, params), model.optimality
        return DescentState(*point, None, False, None, NO_SEARCH, model)

    def direction(self, objective: Objective, state: DescentState) -> Direction:
        model = state.memory
        direction = gauss_newton_direction(model.jacobian, model.residual)
        return Direction(direction, float(direction @ model.gradient), 1.0)

    @np.errstate(over="ignore", invalid="ignore")  # a far trial may overflow, and is then rejected
    def evaluate(self, objective: Objective, state: DescentState) -> Trial | None:
        """Return the trial, with the linear model there; None if it rounds to `state.params`."""
        objective = needs_residual(objective, "GaussNewton")
        x = state.memory.x + state.search.step_size * state.direction
        params, rounded = _residual.trial_at(objective, state.params, x)
        if (rounded == state.memory.x).all():
            return None
        model = linearize(objective, params, *_residual.evaluate(objective, params))
        slope = float(model.gradient @ state.direction)
        grad = from_host(model.gradient, params)
        return Trial(params, model.value, grad, model.optimality, slope, model=model)

    def judge(self, search: LineSearch, trial: Trial) -> LineSearch:
        """Return the line search after the trial: a sum of squares is never unbounded."""
        search = super().judge(search, trial)
        unbounded = search.verdict == "unbounded"
        return search._replace(verdict="failed") if unbounded else search

    def update(self, state: DescentState, trial: Trial) -> Linearization:
        return trial.model


def gauss_newton_direction(jacobian: np.ndarray, residual: np.ndarray) -> np.ndarray:
    """Return the shortest minimizer d, shape (p,), of ‖J d + r‖, in units where columns are equal.

    Args:
        jacobian: J, shape (m, p), float64.
        residual: r, shape (m,), float64.
    """
    lengths = np.linalg.norm(jacobian, axis=0)
    scale = np.where(lengths > 0, lengths, 1.0)
    return np.linalg.lstsq(jacobian / scale, -residual, rcond=None)[0] / scale
