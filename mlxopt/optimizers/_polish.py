"""Newton's method on the exact Hessian, for the last digits of a sum of squares.

Gauss–Newton's JᵀJ leaves out Σ rᵢ ∇²rᵢ, so that where the residual stays large it only creeps up to
the minimum; and the loss, whose rounding hides a decrease of 1e-16 of it, says nothing about the
last half of the parameters' digits. Here the gradient decides, and the whole Hessian leads. It also
tells a minimum from a saddle, which JᵀJ, never negative, cannot.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from mlxopt._dense import eigen
from mlxopt._objective import Objective
from mlxopt._residual_objective import ResidualObjective
from mlxopt._status import Status
from mlxopt._tree import Tree, epsilon, from_host, to_numpy
from mlxopt.optimizers._base import Optimizer
from mlxopt.optimizers._residual import (
    Linearization,
    evaluate,
    linearize,
    needs_residual,
    trial_at,
)

# The share of the loss that it may seem to rise by: what it is computed from may be far larger.
_RISE = 1e-10
_REACH = 0.1  # how far a first step off a saddle goes, relative to the parameters, in scaled units
_HALVINGS = 30
_CONCAVE = 1e3  # roundings of the Hessian by which an eigenvalue may seem negative


class Escape(NamedTuple):
    """A search along a direction in which the loss is concave."""

    direction: np.ndarray  # (q,): of the free parameters
    slope: float  # the derivative of the loss along it, not positive
    curvature: float  # its second derivative, negative
    reach: float  # the next trial


class PolishState(NamedTuple):
    """The state of the polish; q parameters are free to move."""

    params: Tree  # the parameters
    value: float  # the loss there
    grad: Tree  # its gradient there, like params
    optimality: float  # the largest cosine between the residual and a column of the Jacobian
    status: Status | None  # COMPLETED where Newton's method gains nothing more
    moved: bool  # whether the last trial was accepted
    model: Linearization  # the residual and its Jacobian there, on the host
    escape: Escape | None = None  # where the point turned out to be no minimum
    escaped: bool = False  # whether a lower point was found that way


@dataclasses.dataclass(frozen=True)
class Polish(Optimizer[PolishState]):
    """Newton steps on the exact Hessian, for as long as they converge; or a step off a saddle.

    A Newton step is kept if the next one would be less than half as long and the loss does not
    visibly rise. The next is measured with the Hessian of this one, which no change of the
    parameters' units affects (Deuflhard 2004, "Newton methods for nonlinear problems", section
    3.3: natural monotonicity). In an ill-conditioned valley the gradient may well grow in a step
    that gains four digits. Where the Hessian has a negative eigenvalue, a search along its
    eigenvector ends at the first lower point. Start it where a method for sums of squares ended.
    """

    def init(self, objective: Objective, params: Tree) -> PolishState:
        """Return the state at `params`; one evaluation."""
        objective = needs_residual(objective, "Polish")
        residual, value = evaluate(objective, params)
        return _at(params, linearize(objective, params, residual, value))._replace(moved=False)

    @np.errstate(over="ignore", invalid="ignore")  # a far trial may overflow, and is then refused
    def step(self, objective: Objective, state: PolishState) -> PolishState:
        """Evaluate one trial of the parameters that no bound holds; keep it if it is good."""
        objective = needs_residual(objective, "Polish")
        free = np.flatnonzero(~state.model.fixed)
        state = state._replace(moved=False)
        if state.escape is not None:
            return self._leave(objective, state, free, state.escape)
        matrix = to_numpy(objective.hessian(state.params))[np.ix_(free, free)]
        end = state._replace(status=Status.COMPLETED)
        if not (len(free) and np.isfinite(matrix).all()):
            return end
        hessian = eigen(matrix)
        least, scale, gradient = hessian.values[0], hessian.scale, state.model.gradient[free]
        if least < -_CONCAVE * epsilon(state.params) * hessian.largest:
            direction = hessian.direction(0)
            slope = float(gradient @ direction)
            reach = _REACH * max(1.0, float(np.linalg.norm(state.model.x[free] / scale)))
            direction = -direction if slope > 0 else direction
            escape = Escape(direction, -abs(slope), float(least), reach)
            return self._leave(objective, state, free, escape)
        if not least > 0:
            return end

        step = hessian.solve(gradient)
        trial, residual, value = self._try(objective, state, free, -step)
        if not value <= state.value + state.model.noise + _RISE * abs(state.value):
            return end
        arrived = linearize(objective, trial, residual, value)
        remaining = hessian.solve(arrived.gradient[free])
        if not np.linalg.norm(remaining / scale) < 0.5 * np.linalg.norm(step / scale):
            return end
        return _at(trial, arrived)

    def _leave(
        self, objective: ResidualObjective, state: PolishState, free: np.ndarray, escape: Escape
    ) -> PolishState:
        """Try one step off the saddle."""
        t = escape.reach
        trial, residual, value = self._try(objective, state, free, t * escape.direction)
        promised = t * escape.slope + 0.5 * t * t * escape.curvature
        if value < state.value + 0.25 * promised:
            arrived = linearize(objective, trial, residual, value)
            if np.isfinite(arrived.jacobian).all():
                return _at(trial, arrived)._replace(status=Status.COMPLETED, escaped=True)
        if -promised <= state.model.noise or t < 2.0**-_HALVINGS:
            return state._replace(status=Status.COMPLETED)
        return state._replace(escape=escape._replace(reach=0.5 * t))

    def _try(
        self, objective: ResidualObjective, state: PolishState, free: np.ndarray, step: np.ndarray
    ) -> tuple[Tree, np.ndarray, float]:
        """Return the point, its residual and its loss after a step of the free parameters."""
        x = state.model.x.copy()
        x[free] += step
        trial, _ = trial_at(objective, state.params, x)
        return trial, *evaluate(objective, trial)


def _at(params: Tree, model: Linearization) -> PolishState:
    grad = from_host(model.gradient, params)
    return PolishState(params, model.value, grad, model.optimality, None, True, model)
