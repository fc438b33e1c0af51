"""The curvature at a point, and the decrease of the loss that it lets expect.

Notation: g = the gradient, H = the Hessian, S = the diagonal scaling that gives H a unit diagonal,
λ and v = the eigenvalues and eigenvectors of S H S. Nothing here has units: scaling the loss or a
parameter changes S and g, not λ.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from mlxopt._dense import eigen
from mlxopt._krylov import NotPositiveError, conjugate_gradients, lanczos
from mlxopt._tree import Tree, dtype_name, working_dtype

DENSE = 300  # parameters up to which the whole Hessian is computed
PRODUCTS = 30  # Hessian-vector products beyond that, before a run may end
SEARCHED = 100  # and for a certificate
_ULPS = 4.0  # roundings of a parameter that a step has to exceed to count
_TINY = 1e-200
_LEAST_DROP = 0.1  # the share by which the optimality falls at least between two looks

Number = Any  # a float, or an array of the leading axes: many points

_CONCAVE = 1e3  # roundings of λ, below which a negative one is no saddle


class Curvature(NamedTuple):
    """What the Hessian at a point, restricted to q free parameters, says."""

    gradient: np.ndarray  # (..., q): g
    gain: Number  # ½ gᵀH⁻¹g: the decrease of the loss still to be expected
    step: np.ndarray  # (..., q): -H⁻¹g, the Newton step
    values: np.ndarray  # (..., k): λ, ascending
    directions: np.ndarray  # (..., k, q): S v, one a row
    rounding: Number  # the error of λ
    whole: bool  # whether all of H was computed

    @property
    def is_concave(self) -> Number:
        """Whether the loss curves down along a direction, beyond rounding."""
        if not self.values.shape[-1]:
            return False
        return self.values[..., 0] < -np.maximum(_CONCAVE * self.rounding, 1e-6) * self._size

    @property
    def may_be_concave(self) -> Number:
        """Whether an eigenvalue is below zero by more than rounding may explain."""
        return self.values.shape[-1] > 0 and self.values[..., 0] < -self.rounding * self._size

    @property
    def is_flat(self) -> np.ndarray:
        """Whether each direction has no curvature beyond rounding, (..., k)."""
        return np.abs(self.values) <= np.expand_dims(self.rounding * self._size, -1)

    @property
    def flat(self) -> np.ndarray:
        """The directions that are flat, (f, q), the flattest first; of one point."""
        flat = self.is_flat
        return self.directions[flat][np.argsort(np.abs(self.values[flat]))]

    @property
    def is_zero(self) -> bool:
        """Whether there is no curvature at all; of one point."""
        return not self._size > 0

    def gain_of(self, gradient: np.ndarray) -> float:
        """Return the gain with another gradient, (q,), at the same point."""
        if not self.whole:
            scale = float(np.linalg.norm(gradient) / max(np.linalg.norm(self.gradient), 1e-300))
            return self.gain * scale**2
        along = self.directions @ gradient
        floor = self.rounding * self._size if self._size > 0 else _TINY
        return 0.5 * float(np.sum(along**2 / np.maximum(np.abs(self.values), floor)))

    @property
    def _size(self) -> Number:
        return np.abs(self.values).max(axis=-1, initial=0.0)


def of_matrix(
    matrix: np.ndarray, gradient: np.ndarray, eps: float, error: np.ndarray | float = 0.0
) -> Curvature:
    """Return the curvature from the whole Hessian.

    Args:
        matrix: H, (..., q, q), finite.
        gradient: g, (..., q).
        eps: the machine epsilon of the arithmetic that computed H.
        error: of the entries of H, where known; entries within it count as zero.
    """
    if not gradient.shape[-1]:
        none = np.zeros(0)
        return Curvature(gradient, 0.0, none, none, np.zeros((0, 0)), eps, True)
    error = np.abs(matrix - matrix.mT) + error  # the asymmetry is rounding
    matrix = np.where(np.abs(matrix) <= error, 0.0, matrix)
    found = eigen(matrix)
    scale = found.scale[..., :, None]
    error = np.where(matrix == 0, 0.0, scale * error * found.scale[..., None, :])
    rounding = error.sum(axis=-1).max(axis=-1)
    rounding = np.minimum(np.maximum(4 * matrix.shape[-1] * eps, rounding), 0.1)
    # Without any curvature nothing bounds the gain.
    floor = np.where(found.largest > 0, rounding * found.largest, _TINY)
    step = -found.floored(floor[..., None]).solve(gradient)
    gain = -0.5 * np.vecdot(gradient, step)
    directions = (scale * found.vectors).mT
    return Curvature(gradient, gain, step, found.values, directions, rounding, True)


def of_products(
    times: Callable[[np.ndarray], np.ndarray],
    gradient: np.ndarray,
    eps: float,
    products: int = PRODUCTS,
) -> Curvature:
    """Return the curvature from some products H v with vectors; the gain is then a lower bound.

    By Lanczos's method from a random vector, which may miss a narrow direction, and conjugate
    gradients from g.
    """
    start = np.random.default_rng(0).normal(size=gradient.size)
    values, vectors = lanczos(times, start, products)
    step = np.zeros_like(gradient)
    try:
        for found, _ in conjugate_gradients(times, -gradient, 1e-2, products):
            step = found
    except NotPositiveError:
        pass
    gain = -0.5 * float(gradient @ step)
    rounding = 4 * gradient.size**0.5 * eps
    return Curvature(gradient, gain, step, values, vectors.T, rounding, False)


# These hold for the numbers of one point, and for arrays with leading axes: many of them.


def seems_minimal(x: np.ndarray, g: np.ndarray, curved: Any, level: Any, eps: float) -> Any:
    """Return whether the least decrease along -g, where gᵀHg = `curved`, is at most `level`.

    Or the step to it is one of rounding. A step along -g gains less than one with all of H.
    """
    square = np.vecdot(g, g)
    length = np.where(curved > 0, square / np.where(curved > 0, curved, 1.0), np.inf)
    with np.errstate(invalid="ignore"):  # 0 · inf
        step, gain = np.expand_dims(length, -1) * g, 0.5 * square * length
    return (gain <= level) | is_rounding(x, step, eps)


def drop_so_far(drop: Any, along: Any, curved: Any, noise: Any) -> Any:
    """Return the drop of the loss so far, or that of the quadratic model if it is less.

    A start so far off that the loss there says nothing about a minimum would pass anything. A large
    constant in the loss hides the drop.

    Args:
        drop: of the loss, from the start.
        along: gᵀs, s the way from the start.
        curved: sᵀHs.
        noise: of the loss.
    """
    return np.fmin(np.maximum(drop, noise), np.abs(along) + 0.5 * np.abs(curved))


def next_goal(optimality: Any, gain: Any, reference: Any, tol: float) -> Any:
    """Return the optimality at which to look again, after a gain too large for tol."""
    positive = gain > 0
    wanted = tol * np.sqrt(np.where(positive, reference / np.where(positive, gain, 1.0), 0.0))
    return optimality * np.clip(wanted, 1e-3, 1 - _LEAST_DROP)


def points_around(x: np.ndarray, size: np.ndarray, eps: float) -> np.ndarray:
    """Return points on a line through x, (9, ..., p), some roundings of `size` apart."""
    signs = np.where(np.random.default_rng(0).random(x.shape[-1]) < 0.5, -1.0, 1.0)
    return x + np.arange(-4, 5).reshape(-1, *[1] * x.ndim) * (8 * eps * signs * size)


def noise_of(values: np.ndarray) -> np.ndarray:
    """Return the standard deviation of the rounding error of a loss with these values, (9, ...).

    From its fourth differences over steps of some roundings (Moré and Wild 2011, "Estimating
    computational noise", equation 2.4); 0 where a value is not finite.
    """
    known = np.isfinite(values).all(axis=0)
    differences = np.diff(np.where(known, values, 0.0), 4, axis=0)
    return np.sqrt(np.mean(differences**2, axis=0) / 70)


def is_hidden(found: Curvature, x: np.ndarray, noise: Any, eps: float) -> Any:
    """Whether rounding hides what is left to gain, of the loss or of the parameters."""
    return (found.gain <= noise) | is_rounding(x, found.step, eps)


def is_rounding(x: np.ndarray, step: np.ndarray, eps: float) -> Any:
    """Whether a step moves no parameter by more than a few roundings."""
    return (np.abs(step) <= _ULPS * eps * np.abs(x)).all(axis=-1)


def to_rounding(params: Tree) -> str:
    """Return the reason of a convergence that ends at rounding."""
    return f"to the rounding of {dtype_name(working_dtype(params))}."
