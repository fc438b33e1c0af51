"""Where many runs stand: named tuples of arrays with one row for each of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import numpy as np

from mlxopt._stop import Progress
from mlxopt._tree import Tree, from_host


class Points(NamedTuple):
    """Points and what is known there; A is the number of runs, p that of their parameters."""

    x: np.ndarray  # (A, p): the parameters, as their dtype holds them
    value: np.ndarray  # (A,): the loss
    grad: np.ndarray  # (A, p): its gradient
    optimality: np.ndarray  # (A,): what is compared with tol


class Verdicts(NamedTuple):
    """A `Verdict` on each of A runs."""

    status: np.ndarray  # (A,): a Status, or None where the run goes on
    reason: np.ndarray  # (A,): in a sentence, or ""
    gain: np.ndarray  # (A,): the decrease still to be expected, or NaN

    @classmethod
    def of(cls, status: np.ndarray) -> Verdicts:
        """Return verdicts that say no more than this status."""
        size = len(status)
        return cls(status, np.full(size, "", dtype=object), np.full(size, np.nan))


class Running(NamedTuple):
    """The runs under way; A rows."""

    rows: np.ndarray  # (A,) int: their places among all
    state: Any  # the method's
    progress: Progress
    start: Points
    best: Points


class Spot(NamedTuple):
    """The part of a single optimizer's state that a verdict needs."""

    params: Tree
    value: float
    grad: Tree
    optimality: float


class Method(ABC):
    """The optimizer of a single run, for the rows of arrays; a step is one trial for each row.

    Its state is a NamedTuple of arrays with A rows; the loop reads `points`, `status` (a Status
    each, or None) and `moved` (bool).
    """

    in_step: ClassVar[bool] = False
    """Whether all rows need to have taken the same number of steps."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer

    @abstractmethod
    def init(self, objective: Any, x: np.ndarray) -> Any:
        """Return the state at x, shape (A, p); one evaluation."""

    def single(self, state: Any, point: Points, like: Tree) -> Any:
        """Return the state of a single run at a point of the row to which `state` is reduced."""
        x, value, grad, optimality = point
        return Spot(from_host(x, like), float(value), from_host(grad, like), float(optimality))

    @abstractmethod
    def step(self, objective: Any, state: Any) -> Any:
        """Return the state after one evaluation at one trial each."""

    def advance(self, objective: Any, state: Any, count: int) -> tuple[Any, np.ndarray]:
        """Return the state after up to `count` steps, and how many each row took, shape (A,)."""
        taken = np.zeros(len(state.status), dtype=np.int64)
        moved = taken > 0
        for _ in range(count):
            able = is_none(state.status)
            if not able.any():
                break
            state = self.step(objective, state)
            taken, moved = taken + able, moved | state.moved
        return state._replace(moved=moved), taken


# Recursive by themselves: MLX's tree_map, written for trees of any kind, takes five times as long.


def take(rows: Any, state: Any) -> Any:
    """Return these rows, a mask or a number, of every array of a NamedTuple of them."""
    if isinstance(state, tuple):
        return type(state)(*(take(rows, field) for field in state))
    return state[rows] if isinstance(state, np.ndarray) else state


def join(one: Running, other: Running) -> Running:
    """Return the rows of both."""

    def joined(one: Any, other: Any) -> Any:
        if isinstance(one, tuple):
            return type(one)(*(joined(*fields) for fields in zip(one, other, strict=True)))
        return np.concatenate([one, other]) if isinstance(one, np.ndarray) else one

    if not len(one.rows):
        return other
    return joined(one, other) if len(other.rows) else one


def where(rows: np.ndarray, new: Any, old: Any) -> Any:
    """Return the new state in these rows, a mask of shape (A,), and the old one elsewhere."""
    if rows.all():
        return new
    if not rows.any():
        return old
    if isinstance(new, tuple):
        return type(new)(*(where(rows, *fields) for fields in zip(new, old, strict=True)))
    return np.where(rows.reshape(-1, *[1] * (new.ndim - 1)), new, old)


def is_none(entries: np.ndarray) -> np.ndarray:
    """Return which entries of an array of objects are None, a mask."""
    return np.array([entry is None for entry in entries], dtype=bool)
