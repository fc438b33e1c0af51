"""Levenberg–Marquardt for many problems at once, without bounds; notation as for one."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mlxopt._status import Status
from mlxopt._tree import epsilon, rounded
from mlxopt.many._objective import BatchedObjective
from mlxopt.many._residual import Model, linearize
from mlxopt.many._state import Method, Points, is_none, where
from mlxopt.optimizers import LevenbergMarquardt
from mlxopt.optimizers import levenberg_marquardt as one
from mlxopt.optimizers._residual import norm, times


class LevenbergMarquardtState(NamedTuple):
    """The state of A runs."""

    points: Points
    status: np.ndarray  # (A,): why no further step is possible, or None
    moved: np.ndarray  # (A,) bool: whether the last trial was accepted
    model: Model  # of the residuals there
    scale: np.ndarray  # (A, p): D
    radius: np.ndarray  # (A,): Δ; infinite before the first step


class BatchedLevenbergMarquardt(Method):
    """Levenberg–Marquardt with Moré's scaling."""

    def __init__(self, optimizer: LevenbergMarquardt) -> None:
        if optimizer.geodesic:
            raise ValueError(
                "LevenbergMarquardt(geodesic=True) works on one problem at a time; expected "
                "geodesic=False in minimize_many."
            )
        super().__init__(optimizer)

    def init(self, objective: BatchedObjective, x: np.ndarray) -> LevenbergMarquardtState:
        points, model = linearize(objective, x)
        none, moved, radius = np.full(len(x), None), np.ones(len(x), bool), np.full(len(x), np.inf)
        return LevenbergMarquardtState(points, none, moved, model, model.measures.columns, radius)

    @np.errstate(all="ignore")  # rows where a branch does not apply compute with any numbers
    def step(
        self, objective: BatchedObjective, state: LevenbergMarquardtState
    ) -> LevenbergMarquardtState:
        """Evaluate one trial each within the region; accept those that fall as predicted."""
        points, model, scale, like = state.points, state.model, state.scale, objective.problems.like
        size = norm(scale * points.x)
        first = self.optimizer.radius * np.where(size > 0, size, 1.0)
        radius = np.where(np.isinf(state.radius), first, state.radius)
        unit = np.where(scale > 0, scale, 1.0)
        u, s, vt = np.linalg.svd(model.r / unit[:, None, :])
        c, free = -times(u.mT, model.qtr), np.arange(scale.shape[1])
        factored = one.Factored(free, model.r, model.qtr, s, vt, c, unit)
        scaled, multiplier = one.region_step(factored, radius)
        x = rounded(points.x + scaled / unit, like)
        step = x - points.x  # as rounded, not as intended
        length = norm(scale * step)
        slope, change = np.vecdot(points.grad, step), times(model.r, step)
        predicted = -(slope + 0.5 * np.vecdot(change, change))
        still = ~step.any(axis=1)
        futile = still | ~(predicted > 0)
        tiny = (multiplier > 0) & (length < epsilon(like) * radius)
        hopeless = model.measures.negligible | (futile & (still | tiny))

        trial, arrived = linearize(objective, x)
        finite = np.isfinite(trial.value)
        actual = points.value - trial.value
        ratio = np.where(finite, actual / predicted, -np.inf)
        # Where rounding hides the decrease of the loss, the gradients decide.
        noise = model.measures.noise
        hidden = (predicted <= noise) & (np.abs(actual) <= noise) & ~futile
        flatter = finite & (arrived.measures.cosine < 0.99 * model.measures.cosine)
        hopeless |= hidden & ~flatter & (predicted <= one._FLOOR * noise)

        moved = ~hopeless & ~futile & np.where(hidden, flatter, ratio >= one._ENOUGH)
        # The first step knows how far it went, not how far it may.
        reach = np.where(np.isinf(state.radius), np.minimum(radius, length), radius)
        judged = one.new_radius(reach, length, multiplier, ratio, slope, actual)
        judged = np.where(hidden & flatter, state.radius, judged)
        status = state.status.copy()
        status[hopeless & is_none(status)] = Status.NO_PROGRESS
        return LevenbergMarquardtState(
            where(moved, trial, points),
            status,
            moved,
            where(moved, arrived, model),
            where(moved, np.maximum(scale, arrived.measures.columns), scale),
            np.where(futile | (hidden & ~flatter), 0.25 * np.minimum(radius, length), judged),
        )
