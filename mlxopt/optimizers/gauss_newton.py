"""Gauss–Newton with a line search.

Notation: r, J = the residual and its Jacobian; d = the direction, the shortest minimizer of
‖J d + r‖² (Nocedal and Wright 2006, "Numerical optimization", section 10.3).
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from mlxopt._objective import Objective
from mlxopt._residual_objective import ResidualObjective
from mlxopt._status import Status
from mlxopt._tree import Tree, epsilon
from mlxopt.optimizers._base import Optimizer
from mlxopt.optimizers._line_search import NO_SEARCH, LineSearch, begin, proceed
from mlxopt.optimizers._residual import (
    Linearization,
    evaluate,
    linearize,
    needs_residual,
    tree_of,
    trial_at,
)


class GaussNewtonState(NamedTuple):
    """The state of Gauss–Newton; p is the number of parameters."""

    params: Tree  # the parameters
    value: float  # the loss there
    grad: Tree  # its gradient there, like params
    optimality: float  # the largest cosine between the residual and a column of the Jacobian
    status: Status | None  # why no further step can be taken
    model: Linearization  # the residual and its Jacobian there, on the host
    direction: np.ndarray | None  # (p,): where the line search looks; None until it is needed
    search: LineSearch  # where it stands


@dataclasses.dataclass(frozen=True)
class GaussNewton(Optimizer[GaussNewtonState]):
    """Gauss–Newton: linear least squares on the linear model, again and again, for `least_squares`.

    The direction is found by a singular value decomposition of the Jacobian, whose columns are
    first scaled to length one; singular values that are rounding are left out. A line search for
    the strong Wolfe conditions takes the full step if it can. For fits close to linear and good
    starts it needs the fewest steps, and the textbook is short; where J loses rank on the way it
    gets stuck, and `LevenbergMarquardt` does not. It knows no bounds. One step is one evaluation of
    the residual and its Jacobian.

    >>> import mlx.core as mx, mlxopt as mo
    >>> residual = lambda x: mx.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]])  # Rosenbrock
    >>> fit = mo.least_squares(residual, mx.array([-1.2, 1.0]), optimizer=mo.GaussNewton())
    >>> fit.params
    array([1, 1], dtype=float32)
    """

    def init(self, objective: Objective, params: Tree) -> GaussNewtonState:
        """Return the state at `params`; one evaluation."""
        objective = needs_residual(objective, "GaussNewton")
        if objective.bounds is not None:
            raise ValueError("GaussNewton knows no bounds; use LevenbergMarquardt().")
        residual, value = evaluate(objective, params)
        model = linearize(objective, params, residual, value)
        return _arrive(params, model, NO_SEARCH)

    @np.errstate(over="ignore", invalid="ignore")  # a far trial may overflow, and is then refused
    def step(self, objective: Objective, state: GaussNewtonState) -> GaussNewtonState:
        """Evaluate one trial along the direction; keep it if the line search accepts it."""
        objective = needs_residual(objective, "GaussNewton")
        model = state.model
        if state.direction is None:
            direction = gauss_newton_direction(model.jacobian, model.residual)
            slope = float(direction @ model.gradient)
            if not (slope < 0 and np.isfinite(slope)):
                return state._replace(status=Status.NO_PROGRESS)
            search = begin(state.value, slope, 1.0, epsilon(state.params))
            state = state._replace(direction=direction, search=search)
        assert state.direction is not None
        at = model.x + state.search.step_size * state.direction
        trial, x = trial_at(objective, state.params, at)
        if (x == model.x).all():
            return state._replace(status=Status.NO_PROGRESS)
        arrived = self._look(objective, trial, state)
        slope = float(arrived.gradient @ state.direction)
        search = proceed(state.search, arrived.value, slope)
        if search.verdict == "":
            return state._replace(search=search)
        if search.verdict != "accepted":  # a sum of squares cannot fall for ever
            return state._replace(status=Status.NO_PROGRESS)
        return _arrive(trial, arrived, search)

    def _look(
        self, objective: ResidualObjective, trial: Tree, state: GaussNewtonState
    ) -> Linearization:
        residual, value = evaluate(objective, trial)
        return linearize(objective, trial, residual, value)


def _arrive(params: Tree, model: Linearization, search: LineSearch) -> GaussNewtonState:
    grad = tree_of(model.gradient, params)
    return GaussNewtonState(
        params, model.value, grad, model.optimality, None, model, None, search
    )  # fmt: skip


def gauss_newton_direction(jacobian: np.ndarray, residual: np.ndarray) -> np.ndarray:
    """Return the shortest minimizer d, shape (p,), of ‖J d + r‖, in units where columns are equal.

    Args:
        jacobian: J, shape (m, p), float64.
        residual: r, shape (m,), float64.
    """
    lengths = np.linalg.norm(jacobian, axis=0)
    scale = np.where(lengths > 0, lengths, 1.0)
    return np.linalg.lstsq(jacobian / scale, -residual, rcond=None)[0] / scale
