"""L-BFGS for many problems at once; the method of `mlxopt.optimizers.LBFGS`."""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import numpy as np

from mlxopt._tree import from_host, to_device, to_host
from mlxopt.many._descent import Descent, DescentState
from mlxopt.many._objective import BatchedObjective
from mlxopt.many._state import Points, is_none, where
from mlxopt.optimizers._descent import WHOLE, are_alike, first_step_size, is_due, units


class Pairs(NamedTuple):
    """The last m pairs of changes, the newest last; zeros in place of missing ones."""

    s: np.ndarray  # (A, m, p): D⁻¹ times changes of the parameters
    y: np.ndarray  # (A, m, p): D times changes of the gradient
    sy: np.ndarray  # (A, m): their inner products, positive


class Memory(NamedTuple):
    """The memory of L-BFGS for A problems."""

    pairs: Pairs
    scale: np.ndarray  # (A, p): D, the units of the parameters; see `optimizers/_descent.py`
    first: np.ndarray  # (A,): the first trial along -D²g without pairs; NaN until it is computed
    accepted: np.ndarray  # (A,) int: trials accepted


class BatchedLBFGS(Descent):
    """Limited-memory BFGS."""

    def init(self, objective: BatchedObjective, x: np.ndarray) -> DescentState:
        self.objective = objective
        return super().init(objective, x)

    def init_memory(self, points: Points, model: Any) -> Memory:
        (A, p), m = points.x.shape, self.optimizer.memory
        none = Pairs(np.zeros((A, m, p)), np.zeros((A, m, p)), np.zeros((A, m)))
        one, problems = self.objective.single, self.objective.problems
        # A few evaluations: compiling would take longer.
        self.batched = BatchedObjective(one, problems, compile=False, rows=p)
        product, gradient = self.batched.times_gradient(points.x), points.grad
        first = np.vecdot(gradient, gradient) / np.abs(np.vecdot(gradient, product))
        first[~np.isfinite(first)] = np.nan
        memory = Memory(none, np.ones((A, p)), first, np.zeros(A, dtype=np.int64))
        self._rescale(memory, ~np.array([are_alike(one) for one in product]), points)
        return memory

    def direction(self, objective: BatchedObjective, state: DescentState) -> DescentState:
        """Return -H · gradient, with a first trial of 1 where H has a scale."""
        (pairs, D, first, _), points = state.memory, state.points
        alone, first = pairs.sy[:, -1] == 0, first.copy()
        wanted = alone & np.isnan(first) & is_none(state.search) & is_none(state.status)
        for row in np.flatnonzero(wanted).tolist():
            loss, params = objective.alone(row, points.x[row])
            first[row] = first_step_size(loss, params, points.grad[row], D[row])
        return state._replace(
            direction=-D * two_loop(pairs, D * points.grad),
            step_size=np.where(alone, first, 1.0),
            memory=state.memory._replace(first=first),
        )

    def restart(self, state: DescentState, rows: np.ndarray) -> DescentState:
        """Return the state without pairs in these rows; NO_PROGRESS where there were none."""
        pairs = state.memory.pairs
        state = super().restart(state, rows & (pairs.sy[:, -1] == 0))
        none = Pairs(*(np.zeros_like(field) for field in pairs))
        first = np.full(len(rows), np.nan)
        down = state._replace(memory=state.memory._replace(pairs=none, first=first))
        return self.direction(self.objective, where(rows, down, state))

    def update(self, state: DescentState, trial: Points, model: Any, eps: float) -> Memory:
        """Return the pairs with the newest one, where it has positive curvature."""
        pairs, D, first, accepted = state.memory
        s, y = (trial.x - state.points.x) / D, D * (trial.grad - state.points.grad)
        newest = Pairs(s, y, np.vecdot(s, y))
        new = (
            np.concatenate([old[:, 1:], last[:, None]], axis=1)
            for old, last in zip(pairs, newest, strict=True)
        )
        curved = newest.sy > eps * np.sqrt(np.vecdot(s, s) * np.vecdot(y, y))
        pairs = where(curved, Pairs(*new), pairs)
        return Memory(pairs, D, np.full_like(first, np.nan), accepted + 1)

    def step(self, objective: BatchedObjective, state: DescentState) -> DescentState:
        """Take a step, and compute again the units of those that have some."""
        state = super().step(objective, state)
        D = state.memory.scale
        due = state.moved & is_none(state.status) & is_due(state.memory.accepted, D.shape[1])
        due &= (D[:, :1] != D).any(axis=1)
        if due.any():
            pairs, *rest = state.memory
            memory = Memory(Pairs(*map(np.copy, pairs)), *map(np.copy, rest))
            self._rescale(memory, due, state.points)
            state = state._replace(memory=memory)
        return state

    def _rescale(self, memory: Memory, rows: np.ndarray, points: Points) -> None:
        """Write the memory of a start into these rows where other units than theirs are right."""
        like, dtype = self.objective.problems.like, self.objective.dtype
        matrices = None
        if rows.any() and points.x.shape[1] <= WHOLE:
            self.batched.keep(self.objective.alive[rows])
            with contextlib.suppress(ValueError, RuntimeError, IndexError):  # each by itself
                matrices = self.batched.hessian(points.x[rows])
        for index, row in enumerate(np.flatnonzero(rows).tolist()):
            loss, params = self.objective.alone(row, points.x[row])
            if matrices is not None:
                loss.keep_hessian(params, None, to_device(matrices[index], dtype))
            gradient = points.grad[row]
            found = units(loss, params, from_host(gradient, like))
            D = np.ones_like(gradient) if found is None else to_host(found)
            if not are_alike(memory.scale[row] / D):
                memory.scale[row] = D
                memory.first[row] = first_step_size(loss, params, gradient, D)
                for field in memory.pairs:
                    field[row] = 0


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
