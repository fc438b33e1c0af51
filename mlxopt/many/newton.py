"""Newton's method for many problems at once; the method of `mlxopt.optimizers.Newton`."""

from __future__ import annotations

import numpy as np

from mlxopt._dense import newton_direction
from mlxopt._status import Status
from mlxopt._tree import epsilon
from mlxopt.many._descent import Descent, DescentState
from mlxopt.many._objective import BatchedObjective


class BatchedNewton(Descent):
    """Newton's method, damped, with a guard for indefinite Hessians."""

    def direction(self, objective: BatchedObjective, state: DescentState) -> DescentState:
        """Return the solutions of H d = -gradient; NONFINITE where H is not finite."""
        x, gradient = state.points.x, state.points.grad
        matrix = objective.hessian(x, self.optimizer.hessian)
        known = np.isfinite(matrix).all(axis=(1, 2))
        matrix[~known] = np.eye(x.shape[1])
        status = np.full(len(x), None)
        status[~known] = Status.NONFINITE
        direction = newton_direction(matrix, gradient, epsilon(objective.problems.like))
        return state._replace(direction=direction, step_size=np.ones(len(x)), status=status)
