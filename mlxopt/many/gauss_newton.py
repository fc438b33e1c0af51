"""Gauss–Newton on many problems at once; the same method as `mlxopt.optimizers.GaussNewton`."""

from __future__ import annotations

import numpy as np

from mlxopt._status import Status
from mlxopt.many._descent import Descent, DescentState, Directions
from mlxopt.many._residual import BatchedResidual, Model, linearize
from mlxopt.many._state import Points, dot, where


class BatchedGaussNewton(Descent):
    """Gauss–Newton with a line search; its memory is the linear model where the runs are."""

    def start(self, points: Points, model: Model) -> Model:
        """Return the linear model at the start."""
        return model

    def update(
        self, state: DescentState, trial: Points, model: Model, moved: np.ndarray, eps: float
    ) -> Model:
        """Return the linear models where the runs now are."""
        return where(moved, model, state.memory)

    def evaluate(self, objective: BatchedResidual, x: np.ndarray) -> tuple[Points, Model]:
        """Return the points x, shape (A, p), and the linear models there."""
        return linearize(objective, x)

    def choose(
        self, objective: BatchedResidual, state: DescentState, rows: np.ndarray
    ) -> Directions:
        """Return the shortest minimizers of ‖J d + r‖, in units where columns are equal."""
        direction = gauss_newton_directions(state.memory, max(objective.m, state.points.x.shape[1]))
        slope = dot(direction, state.points.grad)
        status = np.full(len(slope), None, dtype=object)
        lost = ~state.moved | ~((slope < 0) & np.isfinite(slope))
        status[lost] = Status.NO_PROGRESS
        return Directions(direction, np.ones(len(slope)), state.memory, status)


def gauss_newton_directions(model: Model, size: int) -> np.ndarray:
    """Return the directions, shape (A, p).

    Not shared with the method for one problem: its `lstsq` of the Jacobian itself, which no BLAS
    batches, gives other digits.

    Args:
        model: of the residuals.
        size: the longer side of their Jacobians, by which rounding is judged.
    """
    scale = np.where(model.measures.columns > 0, model.measures.columns, 1.0)
    u, s, vt = np.linalg.svd(model.r / scale[:, None, :])
    kept = s > size * np.finfo(float).eps * s[:, :1]
    inverse = np.where(kept, 1.0 / np.where(kept, s, 1.0), 0.0)
    along = np.einsum("apk,ap->ak", u, model.qtr) * inverse
    return -np.einsum("akp,ak->ap", vt, along) / scale
