"""Eigenvalues and eigenvectors of a symmetric matrix, singular values and vectors of any.

Notation: a = V diag(w) Vᵀ with VᵀV = I, w ascending; a = U diag(s) Vᵀ, s descending; an overlined
letter is a cotangent; F[i, j] = 1 / (w[j] - w[i]), or 1 / (s[j]² - s[i]²), and F[i, i] = 0.

Values and vectors have separate derivatives. That of a value exists wherever values are what is
asked for, repeated ones too. That of the vectors does not exist where values are repeated, since
any rotation among the vectors of one value would do as well: there F is infinite, and the answer is
an error, or NaN, never the zero that suggests itself. Zero would be right for a loss that does not
use these vectors; but such a loss looks, from here, like V diag(w) Vᵀ where w is 0, which needs
more. Second derivatives of values go through the first ones of vectors. "Repeated" is closer than
rounding can tell: n · epsilon · the largest value.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from mlxopt.linalg._gram import gram_qr
from mlxopt.linalg._rules import (
    both,
    check_matrix,
    constant,
    explain_not_finite,
    explain_not_symmetric,
    factorization,
    identity,
    is_finite,
    is_symmetric,
    known,
    on_cpu,
    refuse,
    rule,
    select,
    symmetric,
    transpose,
)

# --- Repeated values -----------------------------------------------------------------------------


def _repeated(values: mx.array) -> mx.array:
    """Return which pairs of different values are equal to rounding: shape (..., n, n), boolean."""
    values = mx.stop_gradient(values)
    gap = mx.abs(values[..., None, :] - values[..., :, None])
    off_diagonal = mx.array(~np.eye(values.shape[-1], dtype=bool))
    return both(gap <= _rounding(values)[..., None, None], off_diagonal)


def _rounding(values: mx.array) -> mx.array:
    """Return the distance, shape (...), below which two values are one."""
    return values.shape[-1] * mx.finfo(values.dtype).eps * mx.max(mx.abs(values), axis=-1)


def _inverse_gaps(name: str, values: mx.array, squares: bool = False) -> mx.array:
    """Return F, shape (..., n, n), NaN for repeated pairs; LinAlgError where values are known."""
    repeated = _repeated(values)
    ok = ~mx.any(repeated, axis=(-2, -1))
    if known(ok):
        refuse(f"the derivative of {name}", ok, _explain_repeated, (values, repeated))
    left, right = values[..., :, None], values[..., None, :]
    gap = (right - left) * (right + left) if squares else right - left
    unit = mx.array(np.eye(values.shape[-1], dtype=bool))
    f = _inverse(gap, mx.logical_or(repeated, unit))
    return mx.where(unit, constant(np.zeros(unit.shape), values), f)


def _inverse(x: mx.array, is_zero: mx.array) -> mx.array:
    """Return 1 / x, and NaN where `is_zero`."""
    # Before dividing too: the derivative of what a where leaves out would be 0 · infinity.
    return mx.where(is_zero, _nan(x), 1 / mx.where(is_zero, mx.array(1, dtype=x.dtype), x))


def _nan(like: mx.array) -> mx.array:
    return mx.array(float("nan"), dtype=like.dtype)


def _explain_repeated(values: np.ndarray, repeated: np.ndarray) -> str:
    i, j = np.argwhere(repeated)[0]
    return (
        f"has values {i} and {j} equal to rounding, {values[i]:.6g}: their vectors are not "
        f"defined, nor is this derivative. First derivatives of functions of the values alone are; "
        f"for second ones use logdet, inv or solve where they say the same. Different small "
        f"numbers added to the diagonal tell the values apart."
    )


# --- Symmetric matrices --------------------------------------------------------------------------


def _eigh_body(a: mx.array) -> tuple[Any, mx.array]:
    ok = is_symmetric(a)
    # LAPACK may fail on NaN, or return numbers: it gets to see none.
    return tuple(mx.linalg.eigh(select(ok, symmetric(a), identity(a)))), ok


_factorize_eigh = factorization("eigh", _eigh_body, lambda a, *_: explain_not_symmetric(a) or "")


def _eigenvalues_vjp(arguments: Any, cotangents: Any, outputs: Any) -> Any:
    # ā = V diag(w̄) Vᵀ
    v = _eigenvectors(*arguments)
    return ((v * cotangents[0][..., None, :]) @ transpose(v),)


# _eigenvalues(a, w, v) = w, the eigenvalues of the symmetric matrix a, with vectors v.
_eigenvalues = rule(lambda a, w, v: w, _eigenvalues_vjp)


def _eigenvectors_vjp(arguments: Any, cotangents: Any, outputs: Any) -> Any:
    # ā = V (F ∘ VᵀV̄) Vᵀ, of which only the symmetric part matters
    v = outputs[0]
    s = transpose(v) @ cotangents[0]
    f = _inverse_gaps("eigh", _eigenvalues(*arguments))
    return (v @ (0.5 * (s - transpose(s)) * f) @ transpose(v),)


def _eigenvectors_jvp(arguments: Any, tangent: mx.array, outputs: Any) -> mx.array:
    # dV = V (F ∘ Vᵀ da V): forwards NaN stays in the columns of repeated values
    v = outputs[0]
    f = _inverse_gaps("eigh", _eigenvalues(*arguments))
    return v @ (transpose(v) @ tangent @ v * f)


# _eigenvectors(a, w, v) = v
_eigenvectors = rule(lambda a, w, v: v, _eigenvectors_vjp, _eigenvectors_jvp)


@on_cpu
def eigh(a: mx.array) -> tuple[mx.array, mx.array]:
    """Return the eigenvalues and eigenvectors of a symmetric matrix: a = V diag(w) Vᵀ.

    Both triangles of `a` are read, as 0.5 · (a + aᵀ), so the gradient is symmetric. The sign of an
    eigenvector is LAPACK's and means nothing.

    Where eigenvalues are repeated (closer than n · epsilon · the largest) the first derivative of
    any symmetric function of the eigenvalues is right. What depends on the vectors has none there,
    and functions of eigenvalues no second one: LinAlgError, or NaN under `mx.compile`, `mx.vmap`
    and `mx.jvp`. Elsewhere all is differentiable to any order (Giles 2008, "Collected matrix
    derivative results for forward and reverse mode algorithmic differentiation"), with an error
    that grows as epsilon divided by the gap.

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
    w, v = _factorize_eigh(a)
    a = symmetric(a)
    return _eigenvalues(a, w, v), _eigenvectors(a, w, v)


# --- Any matrices: here with no fewer rows than columns, a tall one ------------------------------


def _svd_body(a: mx.array) -> tuple[Any, mx.array]:
    ok = is_finite(a)
    a = select(ok, a, 0)  # MLX fails on NaN
    m, n = a.shape[-2:]
    # MLX would make U square. What takes its place of unknown values works for full rank only, so
    # it is left to matrices so tall that there is no other way.
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


_factorize_svd = factorization("svd", _svd_body, explain_not_finite)
_factorize_wide = factorization("svd", _svd_body, lambda a, *_: explain_not_finite(a.T))


def _singular_values_vjp(arguments: Any, cotangents: Any, outputs: Any) -> Any:
    # ā = U diag(s̄) Vᵀ
    u, v = _singular_vectors(*arguments)
    return ((u * cotangents[0][..., None, :]) @ transpose(v),)


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
    if known(ok):
        refuse("the derivative of svd", ok, _explain_zero, (s, is_zero))
    return _inverse(s, is_zero)


def _singular_vectors_vjp(arguments: Any, cotangents: Any, outputs: Any) -> Any:
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
    return (outer @ transpose(v),)


def _singular_vectors_jvp(arguments: Any, tangent: mx.array, outputs: Any) -> Any:
    # dU = U F ∘ (C S + S Cᵀ) + (I - UUᵀ) da V S⁻¹ and dV = V F ∘ (S C + Cᵀ S), C = Uᵀ da V
    u, v = outputs
    s = _singular_values(*arguments)
    f = _inverse_gaps("svd", s, squares=True)
    moved = tangent @ v
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

    The common sign of a pair of vectors is LAPACK's and means nothing. At repeated singular values
    derivatives are what `eigh` says: those of functions of the values are right to first order;
    others are a LinAlgError, or NaN. At a singular value of zero, which has a kink there as |x|
    has, the first derivative is one of its subgradients, u vᵀ (Townsend 2016, "Differentiating the
    singular value decomposition").

    Args:
        a: shape (..., m, n), float32 or float64.

    Returns:
        (U, s, Vᵀ) of shapes (..., m, k), (..., k), descending, and (..., k, n), k = min(m, n).

    Raises:
        LinAlgError: a matrix holds NaN or infinity, or the derivative is not defined. Under
            `mx.compile` and `mx.vmap` NaN instead; under `mx.compile` also all of a matrix without
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
    if a.shape[-1] > a.shape[-2]:
        a = transpose(a)
        factors = _factorize_wide(a)
        v, u = _singular_vectors(a, *factors)
    else:
        factors = _factorize_svd(a)
        u, v = _singular_vectors(a, *factors)
    return u, _singular_values(a, *factors), transpose(v)
