"""Newton's method on the exact Hessian, for the last digits of a sum of squares.

Gauss–Newton's JᵀJ leaves out Σ rᵢ ∇²rᵢ: slow with a large residual, and blind to saddles. The loss,
with a relative error of 1e-16, determines half of the digits of the parameters; the gradient all.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from mlxopt._dense import eigen
from mlxopt._objective import Objective
from mlxopt._residual_objective import ResidualObjective
from mlxopt._status import Status
from mlxopt._tree import Params, epsilon, from_host, to_numpy
from mlxopt.optimizers import _residual
from mlxopt.optimizers._base import Optimizer
from mlxopt.optimizers._residual import Linearization, norm

RISE = 1e-10  # the share of the loss by which rounding may raise it: its terms may be larger
_REACH = 0.1  # the first step off a saddle, relative to the parameters, in scaled units
_CONCAVE = 1e3  # roundings of the Hessian in an eigenvalue


class Escape(NamedTuple):
    """A search along a direction of negative curvature."""

    direction: np.ndarray  # (p,)
    slope: float  # the derivative of the loss along it, not positive
    curvature: float  # the second derivative, negative
    reach: float  # the next trial


class PolishState(NamedTuple):
    """The state of the polish."""

    params: Params  # the parameters
    value: float  # the loss there
    grad: Params  # its gradient there, like params
    optimality: float  # the largest cosine between the residual and a column of the Jacobian
    status: Status | None  # COMPLETED where Newton's method gains nothing more
    moved: bool  # whether the last trial was accepted
    model: Linearization  # the residual and its Jacobian there, on the host
    escape: Escape | None = None  # at a saddle
    escaped: bool = False  # whether such a search found a lower point


@dataclasses.dataclass(frozen=True)
class Polish(Optimizer[PolishState]):
    """Newton steps on the exact Hessian, as long as they converge; or a step off a saddle.

    A Newton step is accepted if the next step, with the same Hessian, is less than half as long and
    the loss does not rise beyond rounding (natural monotonicity, which does not depend on units:
    Deuflhard 2004, "Newton methods for nonlinear problems", section 3.3). Where the Hessian has a
    negative eigenvalue, a search along its eigenvector ends at the first lower point.
    """

    def init(self, objective: Objective, params: Params) -> PolishState:
        objective = _residual.needs_residual(objective, "Polish")
        trial = params, *_residual.evaluate(objective, params)
        return _at(objective, *trial)._replace(moved=False)

    @np.errstate(over="ignore", invalid="ignore")  # a far trial may overflow, and is then rejected
    def step(self, objective: Objective, state: PolishState) -> PolishState:
        objective = _residual.needs_residual(objective, "Polish")
        state = state._replace(moved=False)
        if state.escape is not None:
            return _leave(objective, state, state.escape)
        end, model = state._replace(status=Status.COMPLETED), state.model
        free = np.flatnonzero(~model.fixed)
        matrix = to_numpy(objective.hessian(state.params))[np.ix_(free, free)]
        if not (len(free) and np.isfinite(matrix).all()):
            return end
        hessian = eigen(matrix)
        least, scale, gradient = float(hessian.values[0]), hessian.scale, model.gradient[free]
        step = np.zeros_like(model.x)
        if least < -_CONCAVE * epsilon(state.params) * hessian.largest:
            step[free] = hessian.direction(0)
            slope = float(model.gradient @ step)
            reach = _REACH * float(
                np.hypot(np.sqrt(2 * state.value / hessian.largest), norm(model.x[free] / scale))
            )
            direction = -step if slope > 0 else step
            return _leave(objective, state, Escape(direction, -abs(slope), least, reach))
        if not least > 0:
            return end
        newton = hessian.solve(gradient)
        step[free] = -newton
        trial = _try(objective, state, step)
        if not trial[2] <= state.value + model.noise + RISE * abs(state.value):
            return end
        found = _at(objective, *trial)
        following = hessian.solve(found.model.gradient[free])
        shorter = np.linalg.norm(following / scale) < 0.5 * np.linalg.norm(newton / scale)
        return found if shorter else end


def _leave(objective: ResidualObjective, state: PolishState, escape: Escape) -> PolishState:
    t = escape.reach
    trial = _try(objective, state, t * escape.direction)
    predicted = t * escape.slope + 0.5 * t * t * escape.curvature
    if trial[2] < state.value + 0.25 * predicted:
        found = _at(objective, *trial)
        if np.isfinite(found.model.jacobian).all():
            return found._replace(status=Status.COMPLETED, escaped=True)
    if -predicted <= state.model.noise:
        return state._replace(status=Status.COMPLETED)
    return state._replace(escape=escape._replace(reach=0.5 * t))


def _try(objective: ResidualObjective, state: PolishState, step: np.ndarray) -> tuple:
    """Return the point after a step, its residual and its loss."""
    trial, _ = _residual.trial_at(objective, state.params, state.model.x + step)
    return trial, *_residual.evaluate(objective, trial)


def _at(
    objective: ResidualObjective, params: Params, residual: np.ndarray, value: float
) -> PolishState:
    model = _residual.linearize(objective, params, residual, value)
    grad = from_host(model.gradient, params)
    return PolishState(params, value, grad, model.optimality, None, True, model)
