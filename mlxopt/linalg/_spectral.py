"""Eigenvalues and eigenvectors of a symmetric matrix, singular values and vectors of any.

Notation: a = V diag(w) Vᵀ with VᵀV = I, w ascending; a = U diag(s) Vᵀ, s descending; an overlined
letter is a cotangent; F[i, j] = 1 / (w[j] - w[i]), or 1 / (s[j]² - s[i]²), and F[i, i] = 0.

Values and vectors have separate derivatives. That of a value exists wherever values are what is
asked for, repeated ones too. That of a vector does not exist where its value is repeated, since any
rotation among the vectors of that value would do as well: there F is infinite, and the answer is an
error, or NaN, never the zero that some libraries put. "Repeated" is closer than rounding can tell,
n · epsilon · the largest value. A vector that the loss does not use (its cotangent is zero) may
belong to a repeated value. Second derivatives of values go through the vectors' first, and there a
zero cotangent may also stand for a stationary point, so any repetition counts.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from mlxopt.linalg._gram import gram_qr
from mlxopt.linalg._rules import (
    both,
    check_matrix,
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


def _inverse_gaps(values: mx.array, fill: mx.array, squares: bool = False) -> mx.array:
    """Return F, shape (..., n, n), with `fill` for repeated pairs."""
    left, right = values[..., :, None], values[..., None, :]
    gap = (right - left) * (right + left) if squares else right - left
    unit = mx.array(np.eye(values.shape[-1], dtype=bool))
    fill = mx.where(unit, mx.array(0, dtype=values.dtype), fill)
    return _inverse(gap, mx.logical_or(_repeated(values), unit), fill)


def _inverse(x: mx.array, leave: mx.array, fill: mx.array) -> mx.array:
    """Return 1 / x, and `fill`, with no derivative, where `leave`."""
    # Put in before dividing too: the derivative of what a where leaves out would be 0 · infinity.
    return mx.where(leave, fill, 1 / mx.where(leave, mx.array(1, dtype=x.dtype), x))


def _fill(name: str, values: mx.array, used: mx.array | None) -> mx.array:
    """Return what takes the place of F for repeated pairs: 0, or NaN where a derivative needs it.

    Args:
        name: the derivative to name in a LinAlgError, raised for NaN where values are known.
        values: shape (..., n).
        used: shape (..., n), which vectors the loss uses. None: any may be.
    """
    refused = _repeated(values)
    if used is not None:
        refused = both(refused, mx.logical_or(used[..., None, :], used[..., :, None]))
    ok = ~mx.any(refused, axis=(-2, -1))
    if known(ok):
        refuse(name, ok, _explain_repeated, (values, refused))
    return _nan_where(refused, values)


def _nan_where(refused: mx.array, like: mx.array) -> mx.array:
    return mx.where(refused, *(mx.array(x, dtype=like.dtype) for x in (float("nan"), 0)))


def _explain_repeated(values: np.ndarray, refused: np.ndarray) -> str:
    i, j = np.argwhere(refused)[0]
    return (
        f"has values {i} and {j} equal to rounding, {values[i]:.6g}, so their vectors, and this "
        f"derivative with them, are not defined. First derivatives of functions of the values "
        f"alone are; for second ones use logdet, inv or solve where they say the same."
    )


def _used(cotangent: mx.array) -> mx.array:
    """Return which columns of a cotangent are not zero, shape (..., n)."""
    return mx.any(mx.stop_gradient(cotangent) != 0, axis=-2)


# --- Symmetric matrices --------------------------------------------------------------------------


def _eigh_body(a: mx.array) -> tuple[Any, mx.array]:
    ok = is_symmetric(a)
    # LAPACK may fail on NaN, or return numbers: it gets to see none.
    return tuple(mx.linalg.eigh(select(ok, symmetric(a), identity(a)))), ok


_factorize_eigh = factorization("eigh", _eigh_body, lambda a, *_: explain_not_symmetric(a) or "")


def _eigenvalues_vjp(arguments: Any, cotangents: Any, outputs: Any) -> Any:
    # ā = V diag(w̄) Vᵀ
    v = _eigenvectors_behind_values(*arguments)
    return ((v * cotangents[0][..., None, :]) @ transpose(v),)


# _eigenvalues(a, w, v) = w, the eigenvalues of the symmetric matrix a, with vectors v.
_eigenvalues = rule(lambda a, w, v: w, _eigenvalues_vjp)


def _eigenvectors_rule(name: str, any_used: bool) -> Any:
    def vjp(arguments: Any, cotangents: Any, outputs: Any) -> Any:
        # ā = V (F ∘ VᵀV̄) Vᵀ, of which only the symmetric part matters
        v, v_bar = outputs[0], cotangents[0]
        values = _eigenvalues(*arguments)
        f = _inverse_gaps(values, _fill(name, arguments[1], None if any_used else _used(v_bar)))
        s = transpose(v) @ v_bar
        return (v @ (0.5 * (s - transpose(s)) * f) @ transpose(v),)

    def jvp(arguments: Any, tangent: mx.array, outputs: Any) -> mx.array:
        # dV = V (F ∘ Vᵀ da V). Which vectors the loss will use is not known yet: those of repeated
        # values get NaN, and the others their derivative.
        v = outputs[0]
        f = _inverse_gaps(_eigenvalues(*arguments), mx.array(float("nan"), dtype=v.dtype))
        return v @ (transpose(v) @ tangent @ v * f)

    return rule(lambda a, w, v: v, vjp, jvp)


# Both return v; they differ in what they take for a use of repeated values' vectors.
_eigenvectors = _eigenvectors_rule("the derivative of eigh", any_used=False)
_eigenvectors_behind_values = _eigenvectors_rule("the second derivative of eigh", any_used=True)


@on_cpu
def eigh(a: mx.array) -> tuple[mx.array, mx.array]:
    """Return the eigenvalues and eigenvectors of a symmetric matrix: a = V diag(w) Vᵀ.

    Both triangles of `a` are read, as 0.5 · (a + aᵀ), so the gradient is symmetric. The sign of an
    eigenvector is LAPACK's and means nothing.

    At repeated eigenvalues (closer than n · epsilon · the largest) the first derivative of any
    symmetric function of the eigenvalues is right. Anything that depends on their vectors has no
    derivative there, and neither do second derivatives of functions of eigenvalues: LinAlgError, or
    NaN under `mx.compile`, `mx.vmap` and `mx.jvp`. Elsewhere all is differentiable to any order
    (Giles 2008, "Collected matrix derivative results for forward and reverse mode algorithmic
    differentiation"), with an error that grows as epsilon divided by the gap.

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
    u, v = _singular_vectors_behind_values(*arguments)
    return ((u * cotangents[0][..., None, :]) @ transpose(v),)


# _singular_values(a, u, s, v) = s
_singular_values = rule(lambda a, u, s, v: s, _singular_values_vjp)


def _is_zero(values: mx.array) -> mx.array:
    """Return which singular values are zero to rounding, shape (..., n)."""
    return values <= _rounding(values)[..., None]


def _explain_zero(values: np.ndarray, refused: np.ndarray) -> str:
    j = int(np.argmax(refused))
    return (
        f"has rank less than its number of columns: value {j} is {values[j]:.3g}, zero to "
        f"rounding, so its left vector, and this derivative with it, is not defined."
    )


def _singular_vectors_rule(name: str, any_used: bool) -> Any:
    def vjp(arguments: Any, cotangents: Any, outputs: Any) -> Any:
        # Townsend (2016): ā = U (F ∘ (UᵀŪ - ŪᵀU) S + S F ∘ (VᵀV̄ - V̄ᵀV)) Vᵀ
        #                      + (I - UUᵀ) Ū S⁻¹ Vᵀ
        (u, v), (u_bar, v_bar) = outputs, cotangents
        s = _singular_values(*arguments)
        used = None if any_used else mx.logical_or(_used(u_bar), _used(v_bar))
        f = _inverse_gaps(s, _fill(name, arguments[2], used), squares=True)
        left, right = transpose(u) @ u_bar, transpose(v) @ v_bar
        inner = (left - transpose(left)) * f * s[..., None, :]
        inner = inner + s[..., :, None] * f * (right - transpose(right))
        outer = u @ inner
        if u.shape[-2] > u.shape[-1]:
            is_zero = _is_zero(arguments[2])
            refused = is_zero if any_used else both(is_zero, _used(u_bar))
            ok = ~mx.any(refused, axis=-1)
            if known(ok):
                refuse(name, ok, _explain_zero, (arguments[2], refused))
            s_inverse = _inverse(s, is_zero, _nan_where(refused, s))
            outer = outer + (u_bar - u @ left) * s_inverse[..., None, :]
        return (outer @ transpose(v),)

    def jvp(arguments: Any, tangent: mx.array, outputs: Any) -> tuple[mx.array, mx.array]:
        # dU = U F ∘ (C S + S Cᵀ) + (I - UUᵀ) da V S⁻¹ and dV = V F ∘ (S C + Cᵀ S), C = Uᵀ da V;
        # NaN for the vectors that are not defined.
        u, v = outputs
        s = _singular_values(*arguments)
        nan = mx.array(float("nan"), dtype=s.dtype)
        f = _inverse_gaps(s, nan, squares=True)
        moved = tangent @ v
        c = transpose(u) @ moved
        left = c * s[..., None, :]
        right = s[..., :, None] * c
        du = u @ ((left + transpose(left)) * f)
        dv = v @ ((right + transpose(right)) * f)
        if u.shape[-2] > u.shape[-1]:
            du = du + (moved - u @ c) * _inverse(s, _is_zero(arguments[2]), nan)[..., None, :]
        return du, dv

    return rule(lambda a, u, s, v: (u, v), vjp, jvp)


_singular_vectors = _singular_vectors_rule("the derivative of svd", any_used=False)
_singular_vectors_behind_values = _singular_vectors_rule(
    "the second derivative of svd", any_used=True
)


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
