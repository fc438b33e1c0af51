"""Symmetric matrices with a unit diagonal: eigenvalues, inverse roots, Newton directions.

A is scaled to S A S, S diagonal, whose diagonal entries are 1, -1 or 0: the units of the parameters
then do not decide what is singular. NumPy float64 throughout; leading axes hold many matrices.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

_LARGEST = 1e150  # entry of a scaled matrix, so that its squares are finite


class Eigen(NamedTuple):
    """The eigendecomposition of S A S = V diag(λ) Vᵀ."""

    values: np.ndarray  # (..., p): λ, ascending
    vectors: np.ndarray  # (..., p, p): V, eigenvectors in columns
    scale: np.ndarray  # (..., p): the diagonal of S

    @property
    def largest(self) -> np.ndarray:
        """The largest |λ|, shape (...)."""
        return np.abs(self.values).max(axis=-1)

    def floored(self, floor: np.ndarray | float) -> Eigen:
        """Return the decomposition with max(|λ|, floor) in place of λ."""
        return self._replace(values=np.maximum(np.abs(self.values), floor))

    def solve(self, right: np.ndarray) -> np.ndarray:
        """Return A⁻¹ `right`, both (..., p)."""
        along = times(self.vectors.mT, self.scale * right)
        return self.scale * times(self.vectors, along / self.values)

    def direction(self, index: int) -> np.ndarray:
        """Return S v, v an eigenvector: shape (..., p), a direction in the units of A."""
        return self.scale * self.vectors[..., index]

    def root(self) -> np.ndarray:
        """Return R with R Rᵀ = A, (..., p, p), negative eigenvalues taken for zero."""
        values = np.sqrt(np.maximum(self.values, 0.0))
        return self.vectors * values[..., None, :] / self.scale[..., None]

    def inverse_root(self) -> np.ndarray:
        """Return R with R Rᵀ = A⁻¹, (..., p, p); all eigenvalues must be positive."""
        return self.scale[..., None] * self.vectors / np.sqrt(self.values)[..., None, :]


def eigen(matrix: np.ndarray) -> Eigen:
    """Return the scaled eigendecomposition of A, shape (..., p, p), finite."""
    matrix, scale = _scaled(matrix)
    values, vectors = np.linalg.eigh(matrix)
    return Eigen(values, vectors, scale)


def inverse_root(matrix: np.ndarray, eps: float) -> np.ndarray | None:
    """Return R with R Rᵀ = A⁻¹, both (p, p); None unless A is positive definite beyond rounding.

    Args:
        matrix: A, finite.
        eps: the relative rounding error of its entries.
    """
    matrix, scale = _scaled(matrix)
    try:
        lower = np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        return None
    if np.diag(lower).min() ** 2 <= len(matrix) * eps:
        return None
    return scale[:, None] * np.linalg.inv(lower).T


def newton_direction(matrix: np.ndarray, gradient: np.ndarray, eps: float) -> np.ndarray:
    """Return the solution d of A d = -gradient, with A made positive definite if it is not.

    Where A is not safely positive definite, its scaled eigenvalues λ become max(|λ|, δ): d is still
    a descent direction (Nocedal and Wright 2006, section 3.4).

    Args:
        matrix: A, (p, p) or (B, p, p), finite.
        gradient: (p,) or (B, p).
        eps: the relative rounding error of the entries of A.
    """
    matrix, scale = _scaled(matrix)
    right = scale * gradient
    strong = _least_pivot(matrix) ** 2 > matrix.shape[-1] * eps
    solution = np.empty_like(right)
    solution[strong] = np.linalg.solve(matrix[strong], right[strong][..., None])[..., 0]
    if not strong.all():
        found = Eigen(*np.linalg.eigh(matrix[~strong]), np.ones_like(right[~strong]))
        # A direction without curvature takes a step of bounded length, not of noise.
        largest = found.largest[..., None]
        floor = np.where(largest > 0, np.sqrt(eps) * largest, 1.0)
        solution[~strong] = found.floored(floor).solve(right[~strong])
    return -scale * solution


def finite(matrix: np.ndarray) -> np.ndarray:
    """Return A (p, p) with rows and columns that are not finite as those of the largest diagonal.

    A step then goes along the gradient there, as short as elsewhere where A is largest.
    """
    bad = ~np.isfinite(matrix).all(axis=1) & ~np.isfinite(np.diag(matrix))
    rest = np.where(bad | bad[:, None], 0.0, matrix)
    rest = np.where(np.isfinite(rest), rest, 0.0)
    largest = float(np.abs(np.diag(rest)).max())
    return rest + np.diag(np.where(bad, largest or 1.0, 0.0))


def times(matrix: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Return A v of matrices (..., m, p) and vectors (..., p)."""
    return (matrix @ vector[..., None])[..., 0]


def _scaled(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return S (A + Aᵀ) S / 2 and the diagonal of S, (..., p)."""
    matrix = 0.5 * (matrix + matrix.mT)
    diagonal = np.abs(np.diagonal(matrix, axis1=-2, axis2=-1))
    # Neither the scale nor an entry beside a tiny diagonal overflows.
    least = np.where(diagonal > 0, np.maximum(diagonal, 1 / _LARGEST**2), 1.0)
    scale = 1.0 / np.sqrt(least)
    with np.errstate(over="ignore"):
        scaled = matrix * (scale[..., :, None] * scale[..., None, :])
    return np.clip(scaled, -_LARGEST, _LARGEST), scale


def _least_pivot(matrix: np.ndarray) -> np.ndarray:
    """Return the smallest pivot of the Cholesky factor, shape (...); zero where there is none."""
    try:
        pivots = np.diagonal(np.linalg.cholesky(matrix), axis1=-2, axis2=-1)
        return np.asarray(pivots.min(axis=-1))
    except np.linalg.LinAlgError:  # of one or more; NumPy does not say which
        if matrix.size == matrix.shape[-1] ** 2:
            return np.zeros(matrix.shape[:-2])
    # The safe ones at once, the others one after the other.
    safe = np.linalg.eigvalsh(matrix)[:, 0] > 1e-8
    pivots = np.zeros(len(matrix))
    for rows in ([safe] if safe.any() else []) + [[row] for row in np.flatnonzero(~safe)]:
        pivots[rows] = _least_pivot(matrix[rows])
    return pivots
