"""Gauss–Newton for many problems at once; the method of `mlxopt.optimizers.GaussNewton`."""

from __future__ import annotations

from typing import Any

import numpy as np

from mlxopt.many._descent import Descent, DescentState
from mlxopt.many._objective import BatchedObjective
from mlxopt.many._residual import Model, linearize
from mlxopt.many._state import Points


class BatchedGaussNewton(Descent):
    """Gauss–Newton with a line search; its memory is the linear model at the parameters."""

    def init_memory(self, points: Points, model: Model) -> Model:
        return model

    def update(self, state: DescentState, trial: Points, model: Model, eps: float) -> Model:
        return model

    def evaluate(self, objective: BatchedObjective, x: np.ndarray) -> tuple[Points, Model]:
        return linearize(objective, x)

    def direction(self, objective: BatchedObjective, state: DescentState) -> DescentState:
        """Return the shortest minimizers of ‖J d + r‖, in units where columns are equal.

        Not the function of a single run: that is `lstsq` of J itself, which NumPy does not batch,
        and its digits differ.
        """
        model: Any = state.memory
        single: Any = objective.single
        (A, p), m = state.points.x.shape, single.rows(objective.problems.like)
        scale = np.where(model.measures.columns > 0, model.measures.columns, 1.0)
        u, s, vt = np.linalg.svd(model.r / scale[:, None, :])
        kept = s > max(m, p) * np.finfo(float).eps * s[:, :1]
        inverse = np.where(kept, 1.0 / np.where(kept, s, 1.0), 0.0)
        along = np.einsum("apk,ap->ak", u, model.qtr) * inverse
        direction = -np.einsum("akp,ak->ap", vt, along) / scale
        return state._replace(direction=direction, step_size=np.ones(A))
