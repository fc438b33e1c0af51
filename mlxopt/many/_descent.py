"""The part common to all methods with a line search, for the rows of arrays.

Nearly every trial is accepted at once, so that test alone runs on arrays; the few rows whose trial
is rejected proceed one by one, by the line search of a single run.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

import numpy as np

from mlxopt._status import Status
from mlxopt._tree import numpy_dtype, rounded
from mlxopt.many._objective import BatchedObjective
from mlxopt.many._state import Method, Points, is_none, where
from mlxopt.optimizers._line_search import begin, judge, proceed


class DescentState(NamedTuple):
    """The state of A runs of a method with a line search."""

    points: Points
    status: np.ndarray  # (A,): why no further step is possible, or None
    moved: np.ndarray  # (A,) bool: whether the last trial was accepted; at the start too
    direction: np.ndarray  # (A, p): that of the line search
    slope: np.ndarray  # (A,): its product with the gradient
    step_size: np.ndarray  # (A,): the next trial
    search: np.ndarray  # (A,): the LineSearch after a rejected trial; None if a new one begins
    memory: Any  # the method's own: a NamedTuple of arrays with A rows, or empty


class Descent(Method):
    """A method with a line search; subclasses define the memory and the direction."""

    def init_memory(self, points: Points, model: Any) -> Any:
        """Return the memory at the start; `model` comes from `evaluate`."""
        return ()

    @abstractmethod
    def direction(self, objective: Any, state: DescentState) -> DescentState:
        """Return the state with directions, first trials, and a status where there is none."""

    def update(self, state: DescentState, trial: Points, model: Any, eps: float) -> Any:
        """Return the memory after a step of all rows; `eps` is the rounding error of a gradient."""
        return ()

    def restart(self, state: DescentState, rows: np.ndarray) -> DescentState:
        """Return the state with the memory of a start in these rows; NO_PROGRESS if it is that."""
        status = state.status.copy()
        status[rows] = Status.NO_PROGRESS
        return state._replace(status=status)

    def evaluate(self, objective: Any, x: np.ndarray) -> tuple[Points, Any]:
        """Return the points x, shape (A, p), and whatever else the method needs there."""
        value, grad = objective.value_and_grad(x)
        return Points(x, value, grad, np.abs(grad).max(axis=1)), ()

    @np.errstate(all="ignore")  # a start may be infinite, and is then NONFINITE
    def init(self, objective: BatchedObjective, x: np.ndarray) -> DescentState:
        points, model = self.evaluate(objective, x)
        none, moved, zero = np.full(len(x), None), np.ones(len(x), bool), np.zeros(len(x))
        memory = self.init_memory(points, model)
        return DescentState(points, none, moved, np.zeros_like(x), zero, zero, none, memory)

    @np.errstate(all="ignore")  # a far trial may overflow, and is then rejected
    def step(self, objective: BatchedObjective, state: DescentState) -> DescentState:
        """Evaluate one trial for each row; move those whose line search accepts it."""
        like, idle = objective.problems.like, is_none(state.search)
        if idle.any():
            new = self.direction(objective, state)
            slope = np.vecdot(new.direction, new.points.grad)
            lost = idle & ~(state.moved & (slope < 0) & np.isfinite(slope))
            if lost.any():
                new = self.restart(new, lost)
                slope = np.vecdot(new.direction, new.points.grad)
            state = where(idle, new._replace(slope=slope), state)
        points, step_size = state.points, state.step_size
        x = rounded(points.x + step_size[:, None] * state.direction, like)
        trial, model = self.evaluate(objective, x)
        slope = np.vecdot(trial.grad, state.direction)
        able = is_none(state.status)
        noise = objective.epsilon()
        search = begin(points.value, state.slope, step_size, noise)
        moved = able & judge(search, trial.value, slope)[0]

        status, step_size, search = state.status.copy(), step_size.copy(), np.full(len(x), None)
        rejected = np.flatnonzero(able & ~moved)
        table = np.array([points.value, state.slope, step_size, trial.value, slope])[:, rejected]
        for row, (start, descent, t, value, end) in zip(rejected, table.T.tolist(), strict=True):
            one = state.search[row] or begin(start, descent, t, noise[row])
            one = proceed(one, value, end)
            if one.verdict == "":
                search[row], step_size[row] = one, one.step_size
            elif one.verdict == "unbounded":
                status[row], moved[row] = Status.UNBOUNDED, np.isfinite(value + end)
            else:
                moved[row] = one.verdict == "accepted"
        eps = float(np.finfo(numpy_dtype(objective.dtype)).eps)
        return state._replace(
            points=where(moved, trial, points),
            status=status,
            moved=moved,
            step_size=step_size,
            search=search,
            memory=where(moved, self.update(state, trial, model, eps), state.memory),
        )
