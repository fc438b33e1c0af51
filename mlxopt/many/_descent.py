"""Methods with a line search, for the rows of arrays: all of them but the direction.

Nearly every trial is accepted at once, so that test alone runs on arrays; the few rows whose trial
was refused proceed one by one, by the line search of a single problem.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

import numpy as np

from mlxopt._status import Status
from mlxopt._tree import epsilon, numpy_dtype, rounded
from mlxopt.many._objective import BatchedObjective
from mlxopt.many._state import Method, Points, dot, is_none, where
from mlxopt.optimizers._line_search import begin, judge, proceed


class DescentState(NamedTuple):
    """The state of A runs of a method with a line search."""

    points: Points  # the parameters and what is known there
    status: np.ndarray  # (A,): why no further step can be taken, or None
    moved: np.ndarray  # (A,) bool: whether the last step changed the parameters
    direction: np.ndarray  # (A, p)
    slope: np.ndarray  # (A,): its product with the gradient
    step_size: np.ndarray  # (A,): the next trial
    search: np.ndarray  # (A,): the LineSearch of a row whose last trial was refused, else None
    memory: Any  # a named tuple of arrays with A rows


class Directions(NamedTuple):
    """The directions of A runs."""

    direction: np.ndarray  # (A, p)
    step_size: np.ndarray  # (A,): the first trial
    memory: Any  # that of the state, or that of a restart
    status: np.ndarray  # (A,): NO_PROGRESS where no direction leads down, else None


class Descent(Method):
    """A method whose steps are trials of line searches."""

    @abstractmethod
    def start(self, points: Points, model: Any) -> Any:
        """Return the memory of a start; `model` comes from `evaluate`."""

    @abstractmethod
    def choose(self, objective: Any, state: DescentState, rows: np.ndarray) -> Directions:
        """Return directions for these rows, a mask; the other rows of the result are not used.

        A row of them that did not move is one whose line search failed.
        """

    def update(
        self, state: DescentState, trial: Points, model: Any, moved: np.ndarray, eps: float
    ) -> Any:
        """Return the memory after some rows have moved to their trials.

        Args:
            state: the state before.
            trial: the trials of all rows.
            model: that of the trials, from `evaluate`.
            moved: the rows that moved, a mask.
            eps: the relative rounding error of a gradient.
        """
        return state.memory

    def evaluate(self, objective: Any, x: np.ndarray) -> tuple[Points, Any]:
        """Return the points x, shape (A, p), and whatever else the method needs there."""
        value, grad = objective.value_and_grad(x)
        return Points(x, value, grad, np.abs(grad).max(axis=1)), ()

    @np.errstate(all="ignore")  # a start may be infinite, and is then NONFINITE
    def init(self, objective: BatchedObjective, x: np.ndarray) -> DescentState:
        """Return the state at x, shape (A, p); one evaluation."""
        points, model = self.evaluate(objective, x)
        zero, none = np.zeros(len(x)), np.full(len(x), None)
        moved = np.ones(len(x), dtype=bool)
        memory = self.start(points, model)
        return DescentState(points, none, moved, np.zeros_like(x), zero, zero, none, memory)

    @np.errstate(all="ignore")  # a far trial may overflow, and is then refused
    def step(self, objective: BatchedObjective, state: DescentState) -> DescentState:
        """Evaluate one trial for each row; move those whose line search accepts it."""
        like = objective.problems.like
        idle = is_none(state.search)
        if idle.any():
            found = self.choose(objective, state, idle)
            slope = dot(found.direction, state.points.grad)
            state = state._replace(
                direction=where(idle, found.direction, state.direction),
                slope=where(idle, slope, state.slope),
                step_size=where(idle, found.step_size, state.step_size),
                memory=where(idle, found.memory, state.memory),
                status=where(idle, found.status, state.status),
            )
        points, step_size = state.points, state.step_size
        x = rounded(points.x + step_size[:, None] * state.direction, like)
        trial, model = self.evaluate(objective, x)
        slope = dot(trial.grad, state.direction)
        able = is_none(state.status)
        search = begin(points.value, state.slope, step_size, epsilon(like))
        moved = able & judge(search, trial.value, slope)[0]

        status, step_size, search = state.status.copy(), step_size.copy(), np.full(len(x), None)
        refused = np.flatnonzero(able & ~moved)
        numbers = np.array([points.value, state.slope, step_size, trial.value, slope])
        for row, (*first, value, end) in zip(refused, numbers[:, refused].T.tolist(), strict=True):
            one = state.search[row] or begin(first[0], first[1], first[2], epsilon(like))
            one = proceed(one, value, end)
            if one.verdict == "":
                search[row], step_size[row] = one, one.step_size
            elif one.verdict == "unbounded":
                status[row], moved[row] = Status.UNBOUNDED, np.isfinite(value + end)
            else:
                moved[row] = one.verdict == "accepted"
        eps = float(np.finfo(numpy_dtype(objective.dtype)).eps)
        memory = self.update(state, trial, model, moved, eps)
        return state._replace(
            points=where(moved, trial, points),
            status=status,
            moved=moved,
            step_size=step_size,
            search=search,
            memory=memory,
        )
