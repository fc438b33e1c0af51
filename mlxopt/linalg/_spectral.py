"""Eigenvalues and eigenvectors of a symmetric matrix, singular values and vectors of any.

Notation: a = V diag(w) Vᵀ with VᵀV = I, w ascending; a = U diag(s) Vᵀ, s descending; an overlined
letter is a cotangent; F[i, j] = 1 / (w[j] - w[i]), or 1 / (s[j]² - s[i]²), and F[i, i] = 0.

Values and vectors have separate derivatives. Those of functions of the values exist where values
are repeated. Those of the vectors do not, since any rotation among the vectors of one value would
do as well: there F is infinite, and the result is an error, or NaN. Zero would be right for a loss
that does not use these vectors, but such a loss cannot be told from V diag(w) Vᵀ at w = 0, which
needs more. Second derivatives of values use first ones of vectors. Values count as repeated where
they are closer than n · epsilon · the largest value.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from mlxopt._operation import Arrays, known
from mlxopt.linalg._gram import gram_qr
from mlxopt.linalg._rules import (
    both,
    check_matrix,
    explain_not_symmetric,
    factorization,
    identity,
    is_finite,
    is_symmetric,
    on_cpu,
    refuse,
    rule,
    select,
    symmetric,
    tall,
    transpose,
)

# --- Repeated values -----------------------------------------------------------------------------


def _rounding(values: mx.array) -> mx.array:
    """Return the distance, shape (...), below which two values count as equal."""
    return values.shape[-1] * mx.finfo(values.dtype).eps * mx.max(mx.abs(values), axis=-1)


def _inverse_gaps(name: str, values: mx.array, squares: bool = False) -> mx.array:
    """Return F, shape (..., n, n), NaN for repeated pairs; LinAlgError where values are known."""
    left, right = values[..., :, None], values[..., None, :]
    unit = np.eye(values.shape[-1], dtype=bool)
    near = mx.stop_gradient(mx.abs(right - left) <= _rounding(values)[..., None, None])
    repeated = both(near, mx.array(~unit))
    ok = ~mx.any(repeated, axis=(-2, -1))
    refuse(f"the derivative of {name}", ok, _explain_repeated, (values, repeated))
    gap = (right - left) * (right + left) if squares else right - left
    unit = mx.array(unit)
    f = _inverse(gap, mx.logical_or(repeated, unit))
    return mx.where(unit, mx.array(np.zeros(unit.shape), dtype=values.dtype), f)


def _inverse(x: mx.array, is_zero: mx.array) -> mx.array:
    """Return 1 / x, and NaN where `is_zero`."""
    # A second mask before dividing: the derivative of the masked branch would be 0 · infinity.
    nan, one = (mx.array(number, dtype=x.dtype) for number in (float("nan"), 1))
    return mx.where(is_zero, nan, 1 / mx.where(is_zero, one, x))


def _explain_repeated(values: np.ndarray, repeated: np.ndarray) -> str:
    i, j = np.argwhere(repeated)[0]
    return (
        f"has values {i} and {j} equal to rounding, {values[i]:.6g}: their vectors are not "
        f"defined, nor is this derivative. First derivatives of functions of the values alone are; "
        f"for second ones use logdet, inv or solve where they compute the same. Different small "
        f"numbers added to the diagonal separate the values."
    )


# --- Symmetric matrices --------------------------------------------------------------------------


def _eigh_body(a: mx.array) -> tuple[Arrays, mx.array]:
    ok = is_symmetric(a)
    # LAPACK can fail on NaN, or return finite numbers.
    return tuple(mx.linalg.eigh(select(ok, symmetric(a), identity(a)))), ok


_factorize_eigh = factorization(_eigh_body, explain_not_symmetric)


def _eigenvalues_vjp(arguments: Arrays, cotangents: Arrays, outputs: Arrays) -> mx.array:
    # ā = V diag(w̄) Vᵀ
    v = _eigenvectors(*arguments)
    return (v * cotangents[0][..., None, :]) @ transpose(v)


# _eigenvalues(a, w, v) = w, the eigenvalues of the symmetric matrix a, with vectors v.
_eigenvalues = rule(lambda a, w, v: w, _eigenvalues_vjp)


def _eigenvectors_vjp(arguments: Arrays, cotangents: Arrays, outputs: Arrays) -> mx.array:
    # The symmetric part of ā = V (F ∘ VᵀV̄) Vᵀ
    v = outputs[0]
    s = transpose(v) @ cotangents[0]
    f = _inverse_gaps("eigh", _eigenvalues(*arguments))
    return v @ (0.5 * (s - transpose(s)) * f) @ transpose(v)


def _eigenvectors_jvp(arguments: Arrays, tangents: Arrays, outputs: Arrays) -> mx.array:
    # dV = V (F ∘ Vᵀ da V), with NaN in the columns of repeated values only
    v = outputs[0]
    f = _inverse_gaps("eigh", _eigenvalues(*arguments))
    return v @ (transpose(v) @ tangents[0] @ v * f)


# _eigenvectors(a, w, v) = v
_eigenvectors = rule(lambda a, w, v: v, _eigenvectors_vjp, _eigenvectors_jvp)


@on_cpu
def eigh(a: mx.array) -> tuple[mx.array, mx.array]:
    """Return the eigenvalues and eigenvectors of a symmetric matrix: a = V diag(w) Vᵀ.

    Both triangles of `a` are read, as 0.5 · (a + aᵀ), so the gradient is symmetric. The sign of an
    eigenvector is arbitrary.

    Where eigenvalues are repeated (closer than n · epsilon · the largest) the first derivative of
    any symmetric function of the eigenvalues is right. Functions of the vectors have none there,
    and functions of eigenvalues no second one: LinAlgError, or NaN under `mx.compile`, `mx.vmap`
    and `mx.jvp`. Elsewhere derivatives exist to any order (Giles 2008, "Collected matrix derivative
    results for forward and reverse mode algorithmic differentiation"), with an error proportional
    to epsilon divided by the gap.

    Args:
        a: shape (..., n, n), float32 or float64.

    Returns:
        (w, V): w of shape (..., n), ascending; V of shape (..., n, n), eigenvectors in columns.

    Raises:
        LinAlgError: a matrix is not symmetric (to 1 % of its largest entry), or holds NaN or
            infinity; or the derivative is not defined. Under `mx.compile` and `mx.vmap` NaN.
        TypeError, ValueError: the dtype or the shape is not as described.

    >>> import mlx.core as mx
    >>> w, v = eigh(mx.array([[2.0, 1.0], [1.0, 2.0]]))
    >>> w
    array([1, 3], dtype=float32)
    >>> mx.grad(lambda a: eigh(a)[0][-1])(mx.array([[2.0, 1.0], [1.0, 2.0]])).round(4)
    array([[0.5, 0.5],
           [0.5, 0.5]], dtype=float32)
    """
    a = check_matrix("eigh", a, square=True)
    w, v = _factorize_eigh("eigh", a)
    a = symmetric(a)
    return _eigenvalues(a, w, v), _eigenvectors(a, w, v)


# --- Any matrices: the rules are those of matrices with no fewer rows than columns ---------------


def _svd_body(a: mx.array) -> tuple[Arrays, mx.array]:
    ok = is_finite(a)
    # MLX fails on NaN.
    a = select(ok, tall(a), 0)
    m, n = a.shape[-2:]
    # mx.linalg.svd makes U square. A QR factorization first avoids that; that of unknown values
    # needs full rank, so it is used only where U would be large.
    if m > n and known(a):
        q, a = mx.linalg.qr(a)
    elif m > 4 * n:
        q, a, is_full = gram_qr(a)
        ok, a = both(ok, is_full), select(is_full, a, 0)
    else:
        q = None
    u, s, v_transposed = mx.linalg.svd(a)
    u = u[..., :, :n] if q is None else q @ u
    return (u, s, transpose(v_transposed)), ok


_factorize_svd = factorization(_svd_body)


def _singular_values_vjp(arguments: Arrays, cotangents: Arrays, outputs: Arrays) -> mx.array:
    # ā = U diag(s̄) Vᵀ
    u, v = _singular_vectors(*arguments)
    return (u * cotangents[0][..., None, :]) @ transpose(v)


# _singular_values(a, u, s, v) = s
_singular_values = rule(lambda a, u, s, v: s, _singular_values_vjp)


def _explain_zero(values: np.ndarray, refused: np.ndarray) -> str:
    j = int(np.argmax(refused))
    return (
        f"has rank less than its number of columns: value {j} is {values[j]:.3g}, zero to "
        f"rounding, so its left vector, and this derivative with it, is not defined."
    )


def _inverse_values(s: mx.array) -> mx.array:
    """Return 1 / s, NaN for values that are zero; LinAlgError where values are known."""
    is_zero = mx.stop_gradient(s <= _rounding(s)[..., None])
    ok = ~mx.any(is_zero, axis=-1)
    refuse("the derivative of svd", ok, _explain_zero, (s, is_zero))
    return _inverse(s, is_zero)


def _singular_vectors_vjp(arguments: Arrays, cotangents: Arrays, outputs: Arrays) -> mx.array:
    # Townsend (2016): ā = U (F ∘ (UᵀŪ - ŪᵀU) S + S F ∘ (VᵀV̄ - V̄ᵀV)) Vᵀ + (I - UUᵀ) Ū S⁻¹ Vᵀ
    (u, v), (u_bar, v_bar) = outputs, cotangents
    s = _singular_values(*arguments)
    f = _inverse_gaps("svd", s, squares=True)
    left, right = transpose(u) @ u_bar, transpose(v) @ v_bar
    inner = (left - transpose(left)) * f * s[..., None, :]
    inner = inner + s[..., :, None] * f * (right - transpose(right))
    outer = u @ inner
    if u.shape[-2] > u.shape[-1]:
        outer = outer + (u_bar - u @ left) * _inverse_values(s)[..., None, :]
    return outer @ transpose(v)


def _singular_vectors_jvp(arguments: Arrays, tangents: Arrays, outputs: Arrays) -> Arrays:
    # dU = U F ∘ (C S + S Cᵀ) + (I - UUᵀ) da V S⁻¹ and dV = V F ∘ (S C + Cᵀ S), C = Uᵀ da V
    u, v = outputs
    s = _singular_values(*arguments)
    f = _inverse_gaps("svd", s, squares=True)
    moved = tangents[0] @ v
    c = transpose(u) @ moved
    left, right = c * s[..., None, :], s[..., :, None] * c
    du = u @ ((left + transpose(left)) * f)
    dv = v @ ((right + transpose(right)) * f)
    if u.shape[-2] > u.shape[-1]:
        du = du + (moved - u @ c) * _inverse_values(s)[..., None, :]
    return du, dv


# _singular_vectors(a, u, s, v) = (u, v)
_singular_vectors = rule(lambda a, u, s, v: (u, v), _singular_vectors_vjp, _singular_vectors_jvp)


@on_cpu
def svd(a: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """Return the thin singular value decomposition: a = U diag(s) Vᵀ.

    The common sign of a pair of vectors is arbitrary. At repeated singular values derivatives are
    those of `eigh`: functions of the values are right to first order; others are a LinAlgError, or
    NaN. A singular value of zero has a kink, as |x| has; its first derivative there is one of the
    subgradients, u vᵀ (Townsend 2016, "Differentiating the singular value decomposition").

    Args:
        a: shape (..., m, n), float32 or float64.

    Returns:
        (U, s, Vᵀ) of shapes (..., m, k), (..., k), descending, and (..., k, n), k = min(m, n).

    Raises:
        LinAlgError: a matrix holds NaN or infinity, or the derivative is not defined. Under
            `mx.compile` and `mx.vmap` NaN instead; under `mx.compile` also for a matrix without
            full rank that has one side over four times the other.
        TypeError, ValueError: the dtype or the shape is not as described.

    >>> import mlx.core as mx
    >>> u, s, vt = svd(mx.array([[3.0, 0.0], [0.0, 2.0], [4.0, 0.0]]))
    >>> s
    array([5, 2], dtype=float32)
    >>> nuclear_norm = lambda a: mx.sum(svd(a)[1])
    >>> mx.grad(nuclear_norm)(mx.array([[3.0, 0.0], [0.0, 2.0]]))
    array([[1, 0],
           [0, 1]], dtype=float32)
    """
    a = check_matrix("svd", a)
    is_wide = a.shape[-1] > a.shape[-2]
    factors = _factorize_svd("svd", a)
    a = tall(a)
    u, v = _singular_vectors(a, *factors)
    s = _singular_values(a, *factors)
    return (v, s, transpose(u)) if is_wide else (u, s, transpose(v))
