"""QR factors and inverses from Cholesky factors, for traces: MLX cannot vmap its QR and LU.

A trace does not show whether it is made for `mx.compile` or `mx.vmap`, and MLX refuses to vmap QR
and LU even inside a `custom_function` with a rule of its own. So where values are unknown the
factors are computed from the Gram matrix, in operations that MLX can vmap.

A Gram matrix squares the condition number, which would lose half of the digits. A second pass
restores them (CholeskyQR2), and two passes with a shift before (Fukaya, Kannan, Nakatsukasa,
Yamamoto and Yanagisawa 2020, "Shifted Cholesky QR for computing the QR factorization of
ill-conditioned matrices") extend that to all matrices whose columns, scaled to one size, are
independent to working precision. The cost is some fifteen matrix products, up to ten times the
work of LAPACK on a square matrix.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from mlxopt._operation import Arrays
from mlxopt.linalg._rules import both, identity, select, transpose


def gram_qr(a: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """Return Q, R with a positive diagonal, and for which matrices of the stack that worked.

    Args:
        a: shape (..., m, n), m ≥ n, its values unknown.
    """
    sizes = mx.max(mx.abs(a), axis=-2, keepdims=True)
    sizes = mx.where(sizes > 0, sizes, mx.array(1, dtype=a.dtype))
    q, r = a / sizes, None
    ok = mx.ones(a.shape[:-2], dtype=mx.bool_)
    rounding = 10 * a.shape[-1] * mx.finfo(a.dtype).eps
    for shift in (rounding, rounding, 0, 0):
        gram = transpose(q) @ q
        unit = identity(gram)
        # The shift keeps a tiny eigenvalue positive after rounding. Each shifted pass divides the
        # condition number by up to 1 / sqrt(shift).
        if shift:
            top = mx.max(mx.abs(gram), axis=(-2, -1), keepdims=True)
            gram = gram + top * mx.array(shift * np.eye(gram.shape[-1]), dtype=gram.dtype)
        lower = mx.linalg.cholesky(gram)
        ok = both(ok, mx.min(mx.diagonal(lower, axis1=-2, axis2=-1), axis=-1) > 0)
        lower = select(ok, lower, unit)
        upper, w = transpose(lower), transpose(mx.linalg.tri_inv(lower))
        before, q = q, q @ w
        if shift:
            # The factor is ill-conditioned, so its inverse needs a step of refinement.
            q = q + (before - q @ upper) @ w
        r = upper if r is None else upper @ r
    assert r is not None
    return q, r * sizes, ok


def gram_inverse(a: mx.array) -> Arrays:
    """Return two factors of a⁻¹, the sign of det a, log |det a|, and where that worked.

    Args:
        a: shape (..., n, n), its values unknown.
    """
    sizes = mx.max(mx.abs(a), axis=-1, keepdims=True)
    sizes = mx.where(sizes > 0, sizes, mx.array(1, dtype=a.dtype))
    q, r, ok = gram_qr(a / sizes)
    pivots = mx.diagonal(r, axis1=-2, axis2=-1)
    w = mx.linalg.tri_inv(select(ok, r, identity(r)), upper=True)
    value = mx.sum(mx.log(pivots), axis=-1) + mx.sum(mx.log(sizes), axis=(-2, -1))
    sign = _orthogonal_sign(select(ok, q, identity(q)))
    return w, transpose(q) / transpose(sizes), sign, value, ok


def _orthogonal_sign(q: mx.array) -> mx.array:
    """Return the determinant, 1 or -1, of each orthogonal matrix of a stack, shape (...)."""
    if q.size == 0:
        return mx.ones(q.shape[:-2], dtype=q.dtype)
    # It is -1 to the number of eigenvalues -1. The other eigenvalues of ½(q + qᵀ) are 1 and
    # cosines of angles, each twice. The widest gap in [-1, 1] separates no equal cosines, so the
    # number of eigenvalues below it is odd exactly where that of the -1's is.
    cosines = mx.linalg.eigvalsh(0.5 * (q + transpose(q)))
    end = mx.ones_like(cosines[..., :1])
    ends = mx.concatenate([-end, cosines, end], axis=-1)
    below = mx.argmax(ends[..., 1:] - ends[..., :-1], axis=-1)
    return (1 - 2 * (below % 2).astype(mx.int32)).astype(q.dtype)
