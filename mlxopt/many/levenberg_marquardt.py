"""Levenberg–Marquardt on many problems at once; as `mlxopt.optimizers.LevenbergMarquardt`, without
bounds. Notation and equations are those of its file.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mlxopt._status import Status
from mlxopt._tree import epsilon, rounded
from mlxopt.many._residual import BatchedResidual, Model, linearize
from mlxopt.many._state import Method, Points, dot, is_none, where
from mlxopt.optimizers import levenberg_marquardt as one
from mlxopt.optimizers._residual import norm, times


class LevenbergMarquardtState(NamedTuple):
    """The state of A runs."""

    points: Points  # where they are
    status: np.ndarray  # (A,): why no further step can be taken, or None
    moved: np.ndarray  # (A,) bool: whether the last trial was kept
    model: Model  # of the residuals there
    scale: np.ndarray  # (A, p): D
    radius: np.ndarray  # (A,): Δ; infinite before the first step


class BatchedLevenbergMarquardt(Method):
    """Levenberg–Marquardt with Moré's scaling.

    Args:
        radius: the first region reaches this many times the (scaled) size of the start.
    """

    def __init__(self, radius: float) -> None:
        self.radius = radius

    def init(self, objective: BatchedResidual, x: np.ndarray) -> LevenbergMarquardtState:
        """Return the state at x, shape (A, p); one evaluation."""
        points, model = linearize(objective, x)
        none, moved, radius = np.full(len(x), None), np.ones(len(x), bool), np.full(len(x), np.inf)
        return LevenbergMarquardtState(points, none, moved, model, model.measures.columns, radius)

    @np.errstate(all="ignore")  # a masked branch computes with whatever the others hold
    def step(
        self, objective: BatchedResidual, state: LevenbergMarquardtState
    ) -> LevenbergMarquardtState:
        """Evaluate one trial each within the region; keep those that do as the model predicted."""
        points, model, scale = state.points, state.model, state.scale
        like = objective.problems.like
        size = norm(scale * points.x)
        radius = np.where(
            np.isinf(state.radius), self.radius * np.where(size > 0, size, 1.0), state.radius
        )
        unit = np.where(scale > 0, scale, 1.0)
        u, s, vt = np.linalg.svd(model.r / unit[:, None, :])
        c, free = -times(u.mT, model.qtr), np.arange(scale.shape[1])
        factored = one.Factored(free, model.r, model.qtr, s, vt, c, unit)
        scaled, multiplier = one.region_step(factored, radius)
        step = scaled / unit
        trial_x = rounded(points.x + step, like)
        step = trial_x - points.x  # as rounded, not as intended
        length = norm(scale * step)
        slope = dot(points.grad, step)
        change = times(model.r, step)
        predicted = -(slope + 0.5 * dot(change, change))
        still = ~step.any(axis=1)
        futile = still | ~(predicted > 0)
        tiny = (multiplier > 0) & (length < epsilon(like) * radius)
        hopeless = model.measures.negligible | (futile & (still | tiny))

        trial, arrived = linearize(objective, trial_x)
        finite = np.isfinite(trial.value)
        actual = points.value - trial.value
        ratio = np.where(finite, actual / predicted, -np.inf)
        # Where the rounding of the loss hides its decrease, the gradient decides.
        noise = model.measures.noise
        hidden = (predicted <= noise) & (np.abs(actual) <= noise) & ~futile
        flatter = finite & (arrived.measures.cosine < 0.99 * model.measures.cosine)
        hopeless |= hidden & ~flatter & (predicted <= one._FLOOR * noise)

        kept = ~hopeless & ~futile & np.where(hidden, flatter, ratio >= one._ENOUGH)
        # The first step knows how far it went, not how far it may.
        reach = np.where(np.isinf(state.radius), np.minimum(radius, length), radius)
        judged = one.new_radius(reach, length, multiplier, ratio, slope, actual)
        quarter = 0.25 * np.minimum(radius, length)
        after = np.where(
            futile, quarter, np.where(hidden, np.where(flatter, state.radius, quarter), judged)
        )
        status = state.status.copy()
        status[hopeless & is_none(status)] = Status.NO_PROGRESS
        return LevenbergMarquardtState(
            points=where(kept, trial, points),
            status=status,
            moved=kept,
            model=where(kept, arrived, model),
            scale=where(kept, np.maximum(scale, arrived.measures.columns), scale),
            radius=after,
        )
