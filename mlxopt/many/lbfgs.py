"""L-BFGS on many problems at once; the same method as `mlxopt.optimizers.LBFGS`."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from mlxopt._status import Status
from mlxopt.many._descent import Descent, DescentState, Directions
from mlxopt.many._objective import BatchedObjective
from mlxopt.many._state import Points, dot, where


class Pairs(NamedTuple):
    """The last m pairs of changes, the newest last; zeros where there is none yet."""

    s: np.ndarray  # (A, m, p): changes of the parameters
    y: np.ndarray  # (A, m, p): changes of the gradient
    sy: np.ndarray  # (A, m): their inner products, positive


class BatchedLBFGS(Descent):
    """Limited-memory BFGS with a line search.

    Args:
        memory: m, the pairs of changes kept.
    """

    def __init__(self, memory: int) -> None:
        self.memory = memory

    def start(self, points: Points, model: Any) -> Pairs:
        """Return no pairs."""
        A, p = points.x.shape
        nothing = np.zeros((A, self.memory, p))
        return Pairs(nothing, nothing, np.zeros((A, self.memory)))

    def choose(
        self, objective: BatchedObjective, state: DescentState, rows: np.ndarray
    ) -> Directions:
        """Return -H · gradient, or -gradient where that led nowhere."""
        pairs, gradient = state.memory, state.points.grad
        direction = -two_loop(pairs, gradient)
        slope = dot(direction, gradient)
        known = pairs.sy[:, -1] > 0
        lost = ~state.moved | ~((slope < 0) & np.isfinite(slope))
        # Drop all pairs and follow the gradient; where that was just done, give up.
        status = np.full(len(slope), None, dtype=object)
        status[lost & ~known] = Status.NO_PROGRESS
        if lost.any():
            nothing = Pairs(*(np.zeros_like(field) for field in pairs))
            pairs = where(rows & lost, nothing, pairs)
            direction = where(lost, -gradient, direction)
        # The first step knows no scale: move by at most 1. Later, H sets it.
        length = np.linalg.norm(gradient, axis=1)
        first = np.minimum(1.0, 1.0 / np.where(length > 0, length, 1.0))
        return Directions(direction, np.where(known & ~lost, 1.0, first), pairs, status)

    def update(
        self, state: DescentState, trial: Points, model: Any, moved: np.ndarray, eps: float
    ) -> Pairs:
        """Return the pairs with the newest one, where it has positive curvature."""
        pairs, points = state.memory, state.points
        s, y = trial.x - points.x, trial.grad - points.grad
        sy = dot(s, y)
        good = moved & (sy > eps * np.sqrt(dot(s, s) * dot(y, y)))
        new = Pairs(
            np.concatenate([pairs.s[:, 1:], s[:, None]], axis=1),
            np.concatenate([pairs.y[:, 1:], y[:, None]], axis=1),
            np.concatenate([pairs.sy[:, 1:], sy[:, None]], axis=1),
        )
        return where(good, new, pairs)


def two_loop(pairs: Pairs, gradient: np.ndarray) -> np.ndarray:
    """Return H · gradient, shape (A, p): algorithm 7.4 of Nocedal and Wright (2006).

    A place without a pair has s = y = 0 and changes nothing.
    """
    s, y, sy = pairs
    inverse = np.where(sy > 0, 1.0 / np.where(sy > 0, sy, 1.0), 0.0)  # ρ
    used = np.flatnonzero(sy.any(axis=0))
    q = gradient
    weights = {}
    for i in used[::-1]:
        weights[i] = inverse[:, i] * dot(s[:, i], q)  # α = ρ sᵀq
        q = q - weights[i][:, None] * y[:, i]
    newest = dot(y[:, -1], y[:, -1])
    scale = np.where(newest > 0, sy[:, -1] / np.where(newest > 0, newest, 1.0), 1.0)  # γ
    r = scale[:, None] * q
    for i in used:
        correction = inverse[:, i] * dot(y[:, i], r)  # β = ρ yᵀr
        r = r + (weights[i] - correction)[:, None] * s[:, i]
    return r
