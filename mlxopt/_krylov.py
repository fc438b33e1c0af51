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
    basis, diagonal, beside = [start / np.linalg.norm(start)], [], []
    for _ in range(min(most, start.size)):
        product = times(basis[-1])
        diagonal.append(float(basis[-1] @ product))
        for _ in range(2):  # orthogonal to all before, twice, against rounding
            product -= np.stack(basis).T @ (np.stack(basis) @ product)
        beside.append(float(np.linalg.norm(product)))
        if beside[-1] <= 1e-12 * max(np.abs(diagonal).max(), 1e-300):
            break
        basis.append(product / beside[-1])
    order = len(diagonal)
    projected = np.diag(diagonal) + np.diag(beside[: order - 1], -1)
    values, vectors = np.linalg.eigh(projected)  # which reads the lower triangle
    return values, np.stack(basis[:order]).T @ vectors
