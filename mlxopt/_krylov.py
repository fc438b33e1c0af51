"""Methods that need only products A v of a symmetric matrix; vectors are NumPy float64, (p,)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

Product = Callable[[np.ndarray], np.ndarray]  # v ↦ A v


class NotPositiveError(ArithmeticError):
    """A direction d has dᵀA d ≤ 0."""


def conjugate_gradients(
    times: Product, right: np.ndarray, tol: float, most: int
) -> Iterator[tuple[np.ndarray, float]]:
    """Yield (x, ‖residual‖²) of each iterate of conjugate gradients for A x = `right`.

    Hestenes and Stiefel (1952), from x = 0. The residual is that of the recurrence. At most `most`
    products, and none once it is at most `tol` times `right`.

    Raises:
        NotPositiveError: A is not positive definite.
    """
    x, residual = np.zeros_like(right), right
    direction, size = right, float(right @ right)
    goal = tol**2 * size
    yield x, size
    for _ in range(most):
        if size <= goal:
            return
        product = times(direction)
        curvature = float(direction @ product)
        if not curvature > 0:
            raise NotPositiveError
        step = size / curvature
        x, residual = x + step * direction, residual - step * product
        before, size = size, float(residual @ residual)
        direction = residual + (size / before) * direction
        yield x, size


def lanczos(times: Product, start: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the Ritz values of A, (k,), ascending, and the Ritz vectors, (p, k).

    Golub and Van Loan (2013), section 10.1, with full reorthogonalization.

    `start` needs a part along every eigenvector that matters, as a random vector has. k is at most
    `most`, and smaller where the Krylov space is exhausted.
    """
    most = min(most, start.size)
    basis = np.empty((most, start.size))
    basis[0] = start / np.linalg.norm(start)
    diagonal, beside = [], []
    for k in range(most):
        product, known = times(basis[k]), basis[: k + 1]
        diagonal.append(float(basis[k] @ product))
        size = np.inf
        # Orthogonal to all before; again where that has taken most of it, against rounding (Kahan's
        # "twice is enough", in Parlett 1980, section 6.9).
        while (length := float(np.linalg.norm(product))) < 0.7 * size and length > 0:
            size = length
            product -= (known @ product) @ known
        beside.append(length)
        if length <= 1e-12 * max(np.abs(diagonal).max(), 1e-300) or k + 1 == most:
            break
        basis[k + 1] = product / length
    order = len(diagonal)
    projected = np.diag(diagonal) + np.diag(beside[: order - 1], -1)
    values, vectors = np.linalg.eigh(projected)  # which reads the lower triangle
    return values, basis[:order].T @ vectors
