"""The QR factorization, and least squares by it.

Notation: a = Q R, QᵀQ = I, R upper triangular; an overlined letter is a cotangent.
"""

from __future__ import annotations

import functools

import mlx.core as mx
import numpy as np

from mlxopt._operation import Arrays, known
from mlxopt.linalg._gram import gram_qr
from mlxopt.linalg._rules import (
    align,
    both,
    check_matrix,
    factorization,
    identity,
    is_finite,
    on_cpu,
    rule,
    select,
    tall,
    transpose,
    triangle,
)
from mlxopt.linalg._triangular import inverse, solution


def _body(a: mx.array) -> tuple[Arrays, mx.array]:
    a = tall(a)
    if known(a):
        q, r = mx.linalg.qr(a)
        ok = is_finite(a)
    else:
        q, r, ok = gram_qr(a)
        ok = both(ok, is_finite(a))
    diagonal = mx.diagonal(r, axis1=-2, axis2=-1)
    one = mx.ones_like(diagonal)
    sign = mx.where(diagonal < 0, -one, one)
    return (q * sign[..., None, :], r * sign[..., :, None]), ok


_factorize = factorization(_body)


def _invert(r: mx.array) -> tuple[mx.array, mx.array]:
    """Return R⁻¹, and whether the columns of R are independent to working precision."""
    pivots = mx.min(mx.abs(mx.diagonal(r, axis1=-2, axis2=-1)), axis=-1)
    exists = both(pivots > 0, is_finite(r))
    w = mx.linalg.tri_inv(select(exists, r, identity(r)), upper=True)
    # The norm of column j of R times that of row j of R⁻¹ is 1 / sin of the angle between column j
    # and the span of the others, independently of the scale of the columns.
    cosecant = mx.max(mx.abs(r), axis=-2) * mx.max(mx.abs(w), axis=-1)
    return w, both(exists, mx.max(cosecant, axis=-1) < 0.1 / mx.finfo(r.dtype).eps)


def _explain(what: str, r: np.ndarray, w: np.ndarray) -> str:
    pivots = np.abs(np.diagonal(r))
    cosecant = np.abs(r).max(axis=0) * np.abs(w).max(axis=1)
    j = int(np.argmin(pivots) if pivots.min() == 0 else np.argmax(cosecant))
    return (
        f"does not have full rank: to working precision {what} {j} is zero or a combination of "
        f"other {what}s. Drop one of them, or add a penalty."
    )


_invert_columns = factorization(_invert, functools.partial(_explain, "column"))
_invert_rows = factorization(_invert, functools.partial(_explain, "row"))


def _vjp(arguments: Arrays, cotangents: Arrays, outputs: Arrays) -> mx.array:
    # Walter and Lehmann (2010): with M = R R̄ᵀ - Q̄ᵀ Q and M' the symmetric matrix that
    # has the lower triangle of M, ā = (Q̄ + Q M') R⁻ᵀ.
    (q, r), (q_bar, r_bar) = outputs, cotangents
    m = r @ transpose(triangle(r_bar, upper=True)) - transpose(q_bar) @ q
    mirrored = triangle(m) + transpose(triangle(m, strict=True))
    w = _invert_columns("the derivative of qr", r)
    return (q_bar + q @ mirrored) @ transpose(inverse(r, w))


# _factors(a, q, r) = (q, r), the QR factors of the tall matrix a.
_factors = rule(lambda a, q, r: (q, r), _vjp)


@on_cpu
def qr(a: mx.array) -> tuple[mx.array, mx.array]:
    """Return Q with orthonormal columns and R upper triangular such that Q R = a.

    The diagonal of R is not negative, which makes the factors of a matrix of full rank unique.
    Differentiable to any order where the first min(m, n) columns of `a` are independent (Walter and
    Lehmann 2010, "Algorithmic differentiation of linear algebra functions with application in
    optimum experimental design").

    Args:
        a: shape (..., m, n), float32 or float64.

    Returns:
        (Q, R) of shapes (..., m, k) and (..., k, n), k = min(m, n).

    Raises:
        LinAlgError: a matrix holds NaN or infinity; or, from the derivative, its columns are
            dependent. Under `mx.compile` and `mx.vmap` NaN instead; under `mx.compile` the factors
            themselves are NaN where columns are dependent.
        TypeError, ValueError: the dtype or the shape is not as described.

    >>> import mlx.core as mx
    >>> q, r = qr(mx.array([[3.0, 1.0], [4.0, 3.0]]))
    >>> r.round(4)
    array([[5, 3],
           [0, 1]], dtype=float32)
    """
    a = check_matrix("qr", a)
    m, n = a.shape[-2:]
    square = a[..., :, :m]
    q, r = _factors(square, *_factorize("qr", square))
    if n > m:
        r = mx.concatenate([r, transpose(q) @ a[..., :, m:]], axis=-1)
    return q, r


@on_cpu
def lstsq(a: mx.array, b: mx.array) -> mx.array:
    """Return the x that makes ‖a x - b‖ smallest: the solution only.

    By QR factorization, to the accuracy that the condition number of `a` allows, not its square.
    Where `a` has fewer rows than columns, x is the shortest of the solutions of a x = b.
    Differentiable in both arguments, to any order.

    Args:
        a: shape (..., m, n) of full rank, float32 or float64.
        b: shape (m,), one vector, or (..., m, k); leading axes broadcast.

    Returns:
        x, shape (n,) or (..., n, k); float64 if either argument is.

    Raises:
        LinAlgError: a matrix does not have full rank to working precision (the message names a
            column), or holds NaN or infinity; under `mx.compile` and `mx.vmap` NaN instead.
        TypeError, ValueError: dtypes or shapes are not as described.

    >>> import mlx.core as mx
    >>> a = mx.array([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]])  # a line through three points
    >>> lstsq(a, mx.array([1.0, 3.0, 5.0])).round(4)
    array([1, 2], dtype=float32)
    """
    a, b, is_vector = align("lstsq", check_matrix("lstsq", a), b)
    q, r = _factors(tall(a), *_factorize("lstsq", a))
    if a.shape[-1] > a.shape[-2]:
        # aᵀ = Q R, so a = Rᵀ Qᵀ.
        x = q @ solution(transpose(r), b, transpose(_invert_rows("lstsq", r)))
    else:
        x = solution(r, transpose(q) @ b, _invert_columns("lstsq", r))
    return x[..., 0] if is_vector else x
