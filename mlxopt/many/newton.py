"""Newton's method on many problems at once; the same method as `mlxopt.optimizers.Newton`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from mlxopt._dense import newton_direction
from mlxopt._status import Status
from mlxopt._tree import epsilon
from mlxopt.many._descent import Descent, DescentState, Directions
from mlxopt.many._objective import BatchedObjective
from mlxopt.many._state import Points, dot


class BatchedNewton(Descent):
    """Newton's method, damped, with a guard for indefinite Hessians.

    Args:
        hessian: a function `hessian(params, *data) -> (p, p)` of one problem; None differentiates
            the loss twice.
    """

    def __init__(self, hessian: Callable[..., mx.array] | None) -> None:
        self.hessian = hessian

    def start(self, points: Points, model: Any) -> tuple[()]:
        """Return nothing: the method has no memory."""
        return ()

    def choose(
        self, objective: BatchedObjective, state: DescentState, rows: np.ndarray
    ) -> Directions:
        """Return the solutions of H d = -gradient."""
        points = state.points
        matrix = objective.hessian(points.x, self.hessian)
        known = np.all(np.isfinite(matrix), axis=(1, 2))
        p = matrix.shape[1]
        matrix = np.where(known[:, None, None], matrix, np.eye(p))
        direction = newton_direction(matrix, points.grad, epsilon(objective.problems.like))
        slope = dot(direction, points.grad)
        status = np.full(len(slope), None, dtype=object)
        status[~state.moved | ~((slope < 0) & np.isfinite(slope))] = Status.NO_PROGRESS
        status[state.moved & ~known] = Status.NONFINITE
        return Directions(direction, np.ones(len(slope)), (), status)
