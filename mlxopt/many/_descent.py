"""What methods that look along one direction at a time have in common: all but the direction."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np

from mlxopt._status import Status
from mlxopt._tree import epsilon, numpy_dtype
from mlxopt.many._line_search import (
    ACCEPTED,
    SEARCHING,
    UNBOUNDED,
    Searches,
    begin,
    proceed,
)
from mlxopt.many._objective import BatchedObjective
from mlxopt.many._problems import rounded
from mlxopt.many._state import Points, dot, running, where


class DescentState(NamedTuple):
    """The state of A runs of a method with a line search."""

    points: Points  # where they are
    status: np.ndarray  # (A,): why no further step can be taken, or None
    moved: np.ndarray  # (A,) bool: whether the last trial was kept
    direction: np.ndarray  # (A, p): where the line searches look
    search: Searches  # where they stand
    memory: Any  # what the method has learnt: a named tuple of arrays with A rows


class Directions(NamedTuple):
    """Where A runs are to look."""

    direction: np.ndarray  # (A, p)
    step_size: np.ndarray  # (A,): the first trial
    memory: Any  # that of the state, or less
    status: np.ndarray  # (A,): NO_PROGRESS where there is no way down, else None


class Descent(ABC):
    """A method whose steps are trials of line searches."""

    @abstractmethod
    def start(self, points: Points, model: Any) -> Any:
        """Return the memory of runs that have learnt nothing; `model` is what `look` gave."""

    @abstractmethod
    def aim(self, objective: Any, state: DescentState, rows: np.ndarray) -> Directions:
        """Return directions for these rows, a mask; what it holds in others is not used."""

    def learn(
        self, state: DescentState, trial: Points, model: Any, kept: np.ndarray, eps: float
    ) -> Any:
        """Return the memory after these rows, a mask, have moved to their trial points.

        Args:
            state: before they moved.
            trial: the trial points of all.
            model: what `look` gave with them.
            kept: which have moved.
            eps: the relative rounding error of a gradient.
        """
        return state.memory

    def look(self, objective: Any, x: np.ndarray) -> tuple[Points, Any]:
        """Return the points x, shape (A, p), and what else the method wants to know there."""
        value, grad = objective.value_and_grad(x)
        return Points(x, value, grad, np.abs(grad).max(axis=1)), ()

    @np.errstate(all="ignore")  # a start may be infinite, and is then NONFINITE
    def init(self, objective: BatchedObjective, x: np.ndarray) -> DescentState:
        """Return the state at x, shape (A, p); one evaluation."""
        points, model = self.look(objective, x)
        nothing, none = np.zeros(len(x)), np.full(len(x), None, dtype=object)
        search = begin(points.value, nothing, nothing, 0.0)
        search = search._replace(verdict=np.full(len(x), ACCEPTED))  # there is none under way
        return DescentState(
            points, none, np.ones(len(x), dtype=bool), np.zeros_like(x), search,
            self.start(points, model),
        )  # fmt: skip

    @np.errstate(all="ignore")  # a far trial may overflow, and is then refused
    def step(self, objective: BatchedObjective, state: DescentState) -> DescentState:
        """Evaluate one trial for each; keep those that their line searches accept."""
        eps = epsilon(objective.problems.like)
        idle = state.search.verdict != SEARCHING
        if idle.any():
            found = self.aim(objective, state, idle)
            slope = dot(found.direction, state.points.grad)
            fresh = begin(state.points.value, slope, found.step_size, eps)
            state = state._replace(
                direction=where(idle, found.direction, state.direction),
                search=where(idle, fresh, state.search),
                memory=where(idle, found.memory, state.memory),
                status=where(idle, found.status, state.status),
            )
        points, search = state.points, state.search
        shift = search.step_size[:, None] * state.direction
        trial, model = self.look(objective, rounded(points.x + shift, objective.problems.like))
        slope = dot(trial.grad, state.direction)
        search = proceed(search, trial.value, slope)
        able = running(state.status)
        endless = able & (search.verdict == UNBOUNDED)
        kept = able & ((search.verdict == ACCEPTED) | (endless & np.isfinite(trial.value + slope)))
        status = state.status.copy()
        status[endless] = Status.UNBOUNDED
        eps = float(np.finfo(numpy_dtype(objective.dtype)).eps)
        memory = self.learn(state, trial, model, kept, eps)
        return state._replace(
            points=where(kept, trial, points), status=status, moved=kept, search=search,
            memory=memory,
        )  # fmt: skip
