"""Newton's method on many problems at once; the same method as `mlxopt.optimizers.Newton`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from mlxopt._status import Status
from mlxopt._tree import epsilon
from mlxopt.many._descent import Descent, DescentState, Directions
from mlxopt.many._objective import BatchedObjective
from mlxopt.many._state import Points, dot


class BatchedNewton(Descent):
    """Newton's method, damped, with a guard for indefinite Hessians.

    Args:
        hessian: a function `hessian(params, *data) -> (p, p)` of one problem; None differentiates
            the loss twice.
    """

    def __init__(self, hessian: Callable[..., mx.array] | None) -> None:
        self.hessian = hessian

    def start(self, points: Points, model: Any) -> tuple[()]:
        """Return nothing: the method has no memory."""
        return ()

    def choose(
        self, objective: BatchedObjective, state: DescentState, rows: np.ndarray
    ) -> Directions:
        """Return the solutions of H d = -gradient."""
        points = state.points
        matrix = objective.hessian(points.x, self.hessian)
        known = np.all(np.isfinite(matrix), axis=(1, 2))
        p = matrix.shape[1]
        matrix = np.where(known[:, None, None], matrix, np.eye(p))
        direction = newton_directions(matrix, points.grad, epsilon(objective.problems.like))
        slope = dot(direction, points.grad)
        status = np.full(len(slope), None, dtype=object)
        status[~state.moved | ~((slope < 0) & np.isfinite(slope))] = Status.NO_PROGRESS
        status[state.moved & ~known] = Status.NONFINITE
        return Directions(direction, np.ones(len(slope)), (), status)


def newton_directions(matrix: np.ndarray, gradient: np.ndarray, eps: float) -> np.ndarray:
    """Return the solutions d of H d = -gradient, with H made positive definite where it is not.

    Args:
        matrix: H, shape (A, p, p), float64, finite.
        gradient: shape (A, p), float64.
        eps: the relative rounding error of the entries of H.
    """
    p = matrix.shape[1]
    matrix = 0.5 * (matrix + np.swapaxes(matrix, 1, 2))
    # Unit diagonal first: the size of a parameter's unit should not decide what is singular.
    diagonal = np.abs(np.einsum("app->ap", matrix))
    scale = 1.0 / np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    matrix = matrix * (scale[:, :, None] * scale[:, None, :])
    right = scale * gradient
    weak = ~(_least_pivots(matrix) ** 2 > p * eps)
    solution = np.empty_like(right)
    strong = ~weak
    solution[strong] = np.linalg.solve(matrix[strong], right[strong][:, :, None])[:, :, 0]
    if weak.any():
        eigenvalues, vectors = np.linalg.eigh(matrix[weak])
        # The floor: a direction without curvature takes a step of bounded length, not of noise.
        largest = np.abs(eigenvalues).max(axis=1, keepdims=True)
        floor = np.where(largest > 0, np.sqrt(eps) * largest, 1.0)
        eigenvalues = np.maximum(np.abs(eigenvalues), floor)
        along = np.einsum("apk,ap->ak", vectors, right[weak]) / eigenvalues
        solution[weak] = np.einsum("apk,ak->ap", vectors, along)
    return -scale * solution


def _least_pivots(matrix: np.ndarray) -> np.ndarray:
    """Return the smallest pivot of each Cholesky factor, shape (A,); zero where there is none."""
    try:
        return np.einsum("app->ap", np.linalg.cholesky(matrix)).min(axis=1)
    except np.linalg.LinAlgError:  # of one or more; NumPy does not say which
        if len(matrix) == 1:
            return np.zeros(1)
    # The safe ones at once, the others one after the other.
    safe = np.linalg.eigvalsh(matrix)[:, 0] > 1e-8
    pivots = np.zeros(len(matrix))
    for rows in ([safe] if safe.any() else []) + [[row] for row in np.flatnonzero(~safe)]:
        pivots[rows] = _least_pivots(matrix[rows])
    return pivots
