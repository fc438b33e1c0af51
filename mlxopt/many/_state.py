"""Where many runs stand: named tuples of arrays with one row for each of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np


class Points(NamedTuple):
    """Points and what is known there; A is the number of runs, p that of their parameters."""

    x: np.ndarray  # (A, p): the parameters, as their dtype holds them
    value: np.ndarray  # (A,): the loss
    grad: np.ndarray  # (A, p): its gradient
    optimality: np.ndarray  # (A,): what is compared with tol


class Method(ABC):
    """The optimizer of a single run, for the rows of arrays; a step is one trial for each row.

    Its state is a NamedTuple of arrays with A rows; the loop reads `points`, `status` (a Status
    each, or None) and `moved` (bool).
    """

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer

    @abstractmethod
    def init(self, objective: Any, x: np.ndarray) -> Any:
        """Return the state at x, shape (A, p); one evaluation."""

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
