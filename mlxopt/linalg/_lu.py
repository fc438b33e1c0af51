"""General square systems, by LU factorization with row exchanges.

Notation: P a = L U, L with a unit diagonal, U upper triangular, P a permutation; W = a⁻¹.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from mlxopt._operation import Arrays, known
from mlxopt.linalg._gram import gram_inverse
from mlxopt.linalg._rules import (
    align,
    both,
    check_matrix,
    factorization,
    identity,
    is_finite,
    on_cpu,
    refuse,
    rule,
    select,
    transpose,
    triangle,
)
from mlxopt.linalg._triangular import inverse, solution


def _body(a: mx.array) -> tuple[Arrays, mx.array]:
    """Return (left, right, sign, value), and whether a⁻¹ = left · right exists.

    Sign and value are those of the determinant and the logarithm of its size.
    """
    left, right, sign, value, ok = _by_lu(a) if known(a) else gram_inverse(a)
    w = left @ right
    # Row j of W times column j of a is 1. The sum of the absolute terms measures the cancellation
    # in it, independently of the scale of rows and columns (Bauer 1966, Skeel 1979).
    terms = mx.sum(mx.abs(w * transpose(a)), axis=-1)
    clear = mx.max(terms, axis=-1) < 0.1 / mx.finfo(a.dtype).eps
    return (left, right, sign, value), both(ok, clear, is_finite(a))


def _by_lu(a: mx.array) -> Arrays:
    """Return a⁻¹ as U⁻¹ · L⁻¹P, sign and value, and whether no pivot is zero."""
    if a.shape[-1] == 1:
        # Here mx.linalg.lu of MLX 0.32 writes past the end of its memory.
        rows, lower, upper = mx.zeros(a.shape[:-1], dtype=mx.uint32), mx.ones_like(a), a
    else:
        # a = lower[rows] @ upper
        rows, lower, upper = mx.linalg.lu(a)
    pivots = mx.diagonal(upper, axis1=-2, axis2=-1)
    ok = mx.min(mx.abs(pivots), axis=-1) > 0
    left = mx.linalg.tri_inv(select(ok, upper, identity(a)), upper=True)
    columns = mx.broadcast_to(rows[..., None, :], lower.shape)
    right = mx.take_along_axis(mx.linalg.tri_inv(lower), columns, axis=-1)
    # Each pair of rows out of order is one exchange.
    crossed = (rows[..., None, :] > rows[..., :, None]).astype(mx.int32)
    swaps = mx.sum(triangle(crossed, strict=True), axis=(-2, -1))
    sign = (1 - 2 * (swaps % 2)).astype(a.dtype) * mx.prod(mx.sign(pivots), axis=-1)
    return left, right, sign, mx.sum(mx.log(mx.abs(pivots)), axis=-1), ok


def _explain(*_: np.ndarray) -> str:
    return (
        "is singular: to working precision its columns are dependent. lstsq solves systems with "
        "more rows than columns; a small multiple of the identity makes a covariance regular."
    )


def _invert(a: mx.array) -> tuple[Arrays, mx.array]:
    factors, ok = _body(a)
    return factors[:2], ok


def _determine(a: mx.array) -> tuple[Arrays, mx.array]:
    # A singular matrix has the determinant 0 but no inverse: NaN, and so is its derivative.
    (left, right, sign, value), ok = _body(a)
    return (select(ok, left @ right, float("nan")), sign, value), is_finite(a)


_factorize_inverse = factorization(_invert, _explain)
_factorize_determinant = factorization(_determine, _explain)


def _log_determinant_vjp(arguments: Arrays, cotangents: Arrays, outputs: Arrays) -> mx.array:
    a, value, w = arguments
    ok = mx.logical_or(~mx.isnan(w[..., 0, 0]), mx.isnan(value))
    refuse("the derivative of slogdet", ok, _explain, (a,))
    return cotangents[0][..., None, None] * transpose(inverse(a, w))


# log_determinant(a, value, w) = value, the logarithm of |det a|, where w = a⁻¹.
log_determinant = rule(lambda a, value, w: value, _log_determinant_vjp)


@on_cpu
def solve(a: mx.array, b: mx.array) -> mx.array:
    """Return x with a x = b, by LU factorization and one step of iterative refinement.

    Differentiable in both arguments, to any order: dx = a⁻¹ (db - da x).

    Args:
        a: shape (..., n, n), float32 or float64.
        b: shape (n,), one vector, or (..., n, k); leading axes broadcast. A stack of vectors is
            b[..., None].

    Returns:
        x, of the shape that b has, broadcast; float64 if either argument is.

    Raises:
        LinAlgError: a matrix is singular to working precision, or holds NaN or infinity. Under
            `mx.compile` and `mx.vmap`, where values are unknown, its solution is NaN instead.
        TypeError, ValueError: dtypes or shapes are not as described.

    >>> import mlx.core as mx
    >>> solve(mx.array([[2.0, 1.0], [1.0, 3.0]]), mx.array([4.0, 7.0]))
    array([1, 2], dtype=float32)
    """
    a, b, is_vector = align("solve", check_matrix("solve", a, square=True), b)
    x = solution(a, b, *_factorize_inverse("solve", a))
    return x[..., 0] if is_vector else x


@on_cpu
def inv(a: mx.array) -> mx.array:
    """Return a⁻¹. To solve a system, `solve` is more accurate.

    Differentiable to any order: d(a⁻¹) = -a⁻¹ da a⁻¹.

    Args:
        a: shape (..., n, n), float32 or float64.

    Returns:
        a⁻¹, shape (..., n, n).

    Raises:
        LinAlgError: a matrix is singular to working precision, or holds NaN or infinity; under
            `mx.compile` and `mx.vmap` its inverse is NaN instead.
        TypeError, ValueError: the dtype or the shape is not as described.

    >>> import mlx.core as mx
    >>> inv(mx.array([[2.0, 0.0], [1.0, 4.0]]))
    array([[0.5, 0],
           [-0.125, 0.25]], dtype=float32)
    """
    a = check_matrix("inv", a, square=True)
    left, right = _factorize_inverse("inv", a)
    return inverse(a, left @ right)


@on_cpu
def slogdet(a: mx.array) -> tuple[mx.array, mx.array]:
    """Return the sign of det a and log |det a|, so that det a = sign · exp(logarithm).

    The gradient of the logarithm is a⁻ᵀ, that of the sign zero. For a symmetric positive definite
    matrix `logdet` is faster, and raises where the matrix is not one.

    Args:
        a: shape (..., n, n), float32 or float64.

    Returns:
        (sign, logarithm), each of shape (...); (0, -inf) for an exactly singular matrix, or NaN
        under `mx.compile`.

    Raises:
        LinAlgError: a matrix holds NaN or infinity; or, from the derivative, it is singular to
            working precision. Under `mx.compile` and `mx.vmap` NaN instead.
        TypeError, ValueError: the dtype or the shape is not as described.

    >>> import mlx.core as mx
    >>> slogdet(mx.array([[0.0, 2.0], [3.0, 0.0]]))  # det = -6
    (array(-1, dtype=float32), array(1.79176, dtype=float32))
    """
    a = check_matrix("slogdet", a, square=True)
    w, sign, value = _factorize_determinant("slogdet", a)
    return sign, log_determinant(a, value, w)
