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
        size = np.linalg.norm(scale * points.x, axis=1)
        radius = np.where(
            np.isinf(state.radius), self.radius * np.where(size > 0, size, 1.0), state.radius
        )
        scaled, multiplier = region_steps(model, scale, radius)
        step = scaled / np.where(scale > 0, scale, 1.0)
        trial_x = rounded(points.x + step, like)
        step = trial_x - points.x  # as rounded, not as intended
        length = np.linalg.norm(scale * step, axis=1)
        slope = dot(points.grad, step)
        change = np.einsum("apq,aq->ap", model.r, step)
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


def region_steps(
    model: Model, scale: np.ndarray, radius: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return D p within the regions, shape (A, p), and λ, shape (A,): as `one.region_step`."""
    # One function for both would take twice as long for one problem, 100 µs more a step.
    u, s, vt = np.linalg.svd(model.r / np.where(scale > 0, scale, 1.0)[:, None, :])
    c = -np.einsum("apk,ap->ak", u, model.qtr)
    floor = (s.shape[1] * np.finfo(float).eps) ** 2 * np.square(s[:, :1])

    def at(multiplier: np.ndarray) -> np.ndarray:
        curvature = s * s + multiplier[:, None]
        known = curvature > floor  # else it is rounding: the step of least length
        return np.where(known, c * s / np.where(known, curvature, 1.0), 0.0)

    z = at(np.zeros_like(radius))
    multiplier = np.zeros_like(radius)
    searching = ~(np.linalg.norm(z, axis=1) <= 1.1 * radius)
    low, high = np.zeros_like(radius), np.linalg.norm(s * c, axis=1) / radius
    multiplier = np.where(searching, 1e-3 * high, 0.0)
    for _ in range(50):
        z = np.where(searching[:, None], at(multiplier), z)
        length = np.linalg.norm(z, axis=1)
        searching &= ~(np.abs(length - radius) <= 0.1 * radius)
        if not searching.any():
            break
        long = length > radius
        low = np.where(searching & long, multiplier, low)
        high = np.where(searching & ~long, multiplier, high)
        # Newton's method on 1/‖z‖, which is nearly linear in λ (Hebden 1973).
        slope = -np.sum(z * z / (s * s + multiplier[:, None]), axis=1) / length
        guess = multiplier - (length / radius) * (length - radius) / slope
        middle = np.where(low > 0, np.sqrt(low * high), 1e-3 * high)
        guess = np.where((low < guess) & (guess < high), guess, middle)
        multiplier = np.where(searching, guess, multiplier)
    return np.einsum("akp,ak->ap", vt, z), multiplier
