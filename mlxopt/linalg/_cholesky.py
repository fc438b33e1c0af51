"""The Cholesky factor of a symmetric positive definite matrix, and its log determinant.

Notation: a = L Lᵀ, L lower triangular with a positive diagonal; Φ(x) is the lower triangle of x
with its diagonal halved; an overlined letter is a cotangent, the gradient of the loss in it.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from mlxopt._operation import Arrays
from mlxopt.linalg._lu import log_determinant
from mlxopt.linalg._rules import (
    both,
    check_matrix,
    explain_not_symmetric,
    factorization,
    is_symmetric,
    on_cpu,
    rule,
    symmetric,
    transpose,
    triangle,
)
from mlxopt.linalg._triangular import inverse, invert_triangular


def _body(a: mx.array) -> tuple[mx.array, mx.array]:
    a_symmetric = symmetric(a)
    # LAPACK stops at the first pivot that is not positive, and leaves it in the diagonal.
    lower = mx.linalg.cholesky(a_symmetric)
    pivots = mx.diagonal(lower, axis1=-2, axis2=-1)
    # A pivot is the rest of an entry after subtractions, and noise below the rounding of the entry.
    epsilon = mx.finfo(a.dtype).eps
    floor = mx.sqrt(epsilon * mx.diagonal(a_symmetric, axis1=-2, axis2=-1))
    return lower, both(mx.all(pivots > floor, axis=-1), is_symmetric(a))


def _explain(a: np.ndarray, lower: np.ndarray) -> str:
    if skewed := explain_not_symmetric(a):
        return skewed
    pivots = np.diagonal(lower)
    with np.errstate(invalid="ignore"):
        failed = ~(pivots > 0)
    j = int(np.argmax(failed) if failed.any() else np.argmin(pivots**2 / np.diagonal(a)))
    pivot = a[j, j] - np.sum(lower[j, :j] ** 2)
    rounding = "" if failed.any() else " and lost in rounding"
    return (
        f"is not positive definite: pivot {j}, the rest of {a[j, j]:.6g} at [{j}, {j}] after the "
        f"columns before it, is {pivot:.3g}{rounding}. To a covariance or kernel matrix add a "
        f"small multiple of the identity, and check for duplicate rows."
    )


_factorize = factorization(_body, _explain)


def _vjp(arguments: Arrays, cotangents: Arrays, outputs: Arrays) -> mx.array:
    # Murray (2016): ā = L⁻ᵀ Φ(Lᵀ L̄) L⁻¹; its caller takes ½(a + aᵀ), so ā becomes symmetric.
    lower = outputs[0]
    inner = transpose(lower) @ triangle(cotangents[0])
    n = lower.shape[-1]
    phi = mx.array(np.tri(n) - 0.5 * np.eye(n), dtype=lower.dtype)
    w = inverse(lower, invert_triangular(lower))
    return transpose(w) @ (phi * inner) @ w


# _factor(a, lower) = lower, the Cholesky factor of the symmetric matrix a.
_factor = rule(lambda a, lower: lower, _vjp)


@on_cpu
def cholesky(a: mx.array) -> mx.array:
    """Return L, lower triangular with a positive diagonal, such that L Lᵀ = a.

    Both triangles of `a` are read, as 0.5 · (a + aᵀ), so the gradient is symmetric and is that of a
    function of all n² entries: finite differences in any of them agree with it. The derivative, to
    any order, is that of Murray (2016), "Differentiation of the Cholesky decomposition".

    Args:
        a: symmetric positive definite, shape (..., n, n), float32 or float64.

    Returns:
        L, shape (..., n, n), zeros above the diagonal.

    Raises:
        LinAlgError: a matrix is not symmetric (to 1 % of its largest entry), holds NaN or infinity,
            or is not positive definite to working precision; the message names the pivot. Under
            `mx.compile` and `mx.vmap`, where values are unknown, its factor is NaN instead.
        TypeError, ValueError: the dtype or the shape is not as described.

    >>> import mlx.core as mx
    >>> cholesky(mx.array([[4.0, 2.0], [2.0, 5.0]]))
    array([[2, 0],
           [1, 2]], dtype=float32)
    >>> cholesky(mx.array([[1.0, 2.0], [2.0, 1.0]]))
    Traceback (most recent call last):
    ...
    mlxopt.linalg._rules.LinAlgError: cholesky: the matrix is not positive definite: pivot 1, ...
    """
    a = check_matrix("cholesky", a, square=True)
    return _factor(symmetric(a), _factorize("cholesky", a))


@on_cpu
def logdet(a: mx.array) -> mx.array:
    """Return log det a of a symmetric positive definite matrix, by its Cholesky factor.

    Its gradient is a⁻¹. The logarithm neither overflows nor underflows where the determinant would.
    For other square matrices there is `slogdet`.

    Args:
        a: symmetric positive definite, shape (..., n, n), float32 or float64. Both triangles are
            read, as 0.5 · (a + aᵀ).

    Returns:
        log det a, natural, shape (...).

    Raises:
        LinAlgError: as `cholesky` does; under `mx.compile` and `mx.vmap` NaN instead.
        TypeError, ValueError: the dtype or the shape is not as described.

    >>> import mlx.core as mx
    >>> logdet(mx.array([[4.0, 2.0], [2.0, 5.0]]))  # log 16
    array(2.77259, dtype=float32)
    >>> mx.grad(logdet)(mx.array([[4.0, 2.0], [2.0, 5.0]]))
    array([[0.3125, -0.125],
           [-0.125, 0.25]], dtype=float32)
    """
    a = check_matrix("logdet", a, square=True)
    lower = _factorize("logdet", a)
    value = 2 * mx.sum(mx.log(mx.diagonal(lower, axis1=-2, axis2=-1)), axis=-1)
    w = invert_triangular(lower)
    return log_determinant(symmetric(a), value, transpose(w) @ w)
