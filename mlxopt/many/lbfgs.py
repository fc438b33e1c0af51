"""L-BFGS for many problems at once; the method of `mlxopt.optimizers.LBFGS`."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from mlxopt.many._descent import Descent, DescentState
from mlxopt.many._objective import BatchedObjective
from mlxopt.many._state import Points, where


class Pairs(NamedTuple):
    """The last m pairs of changes, the newest last; zeros in place of missing ones."""

    s: np.ndarray  # (A, m, p): changes of the parameters
    y: np.ndarray  # (A, m, p): changes of the gradient
    sy: np.ndarray  # (A, m): their inner products, positive


class BatchedLBFGS(Descent):
    """Limited-memory BFGS."""

    def init_memory(self, points: Points, model: Any) -> Pairs:
        (A, p), m = points.x.shape, self.optimizer.memory
        return Pairs(np.zeros((A, m, p)), np.zeros((A, m, p)), np.zeros((A, m)))

    def direction(self, objective: BatchedObjective, state: DescentState) -> DescentState:
        """Return -H · gradient, with a first trial of 1 where H has a scale."""
        pairs, gradient = state.memory, state.points.grad
        step_size = np.where(pairs.sy[:, -1] > 0, 1.0, _first_step_size(gradient))
        return state._replace(direction=-two_loop(pairs, gradient), step_size=step_size)

    def restart(self, state: DescentState, rows: np.ndarray) -> DescentState:
        """Return the state without pairs in these rows; NO_PROGRESS where there were none."""
        gradient = state.points.grad
        state = super().restart(state, rows & (state.memory.sy[:, -1] == 0))
        none = Pairs(*(np.zeros_like(field) for field in state.memory))
        step_size = _first_step_size(gradient)
        down = state._replace(direction=-gradient, step_size=step_size, memory=none)
        return where(rows, down, state)

    def update(self, state: DescentState, trial: Points, model: Any, eps: float) -> Pairs:
        """Return the pairs with the newest one, where it has positive curvature."""
        s, y = trial.x - state.points.x, trial.grad - state.points.grad
        newest = Pairs(s, y, np.vecdot(s, y))
        new = (
            np.concatenate([old[:, 1:], last[:, None]], axis=1)
            for old, last in zip(state.memory, newest, strict=True)
        )
        curved = newest.sy > eps * np.sqrt(np.vecdot(s, s) * np.vecdot(y, y))
        return where(curved, Pairs(*new), state.memory)


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
        weights[i] = inverse[:, i] * np.vecdot(s[:, i], q)  # α = ρ sᵀq
        q = q - weights[i][:, None] * y[:, i]
    newest = np.vecdot(y[:, -1], y[:, -1])
    scale = np.where(newest > 0, sy[:, -1] / np.where(newest > 0, newest, 1.0), 1.0)  # γ
    r = scale[:, None] * q
    for i in used:
        correction = inverse[:, i] * np.vecdot(y[:, i], r)  # β = ρ yᵀr
        r = r + (weights[i] - correction)[:, None] * s[:, i]
    return r


def _first_step_size(gradient: np.ndarray) -> np.ndarray:
    """Return first trials along -gradient where no scale is known: moves by at most 1."""
    length = np.linalg.norm(gradient, axis=1)
    return np.minimum(1.0, 1.0 / np.where(length > 0, length, 1.0))
