"""Triangular systems, and the derivative rules of inverses and solutions.

`mx.linalg.solve_triangular` is a triangular inverse and a product. Here the inverses are factors,
computed once and kept for the derivatives, and a solution gets one step of iterative refinement,
which restores the accuracy that an explicit inverse loses (Higham 2002, "Accuracy and Stability of
Numerical Algorithms", chapters 12 and 14). That holds for inverses of triangular and orthogonal
matrices applied one after the other; with their product in one matrix the residual would grow with
the condition number.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from mlxopt._operation import Arrays
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
    transpose,
    triangle,
)


def _solution_body(a: mx.array, b: mx.array, *inverses: mx.array) -> mx.array:
    def approximate(b: mx.array) -> mx.array:
        for w in reversed(inverses):
            b = w @ b
        return b

    x = approximate(b)
    return x + approximate(b - a @ x)


def _solution_vjp(arguments: Arrays, cotangents: Arrays, outputs: Arrays) -> Arrays:
    a, _, *inverses = arguments
    transposed = (transpose(w) for w in reversed(inverses))
    z = solution(transpose(a), cotangents[0], *transposed)
    return -z @ transpose(outputs[0]), z


# solution(a, b, *inverses) = a⁻¹ b where the product of the inverses is a⁻¹, and constant:
# dx = a⁻¹ (db - da x).
solution = rule(_solution_body, _solution_vjp)


def _inverse_vjp(arguments: Arrays, cotangents: Arrays, outputs: Arrays) -> mx.array:
    x = transpose(outputs[0])
    return -x @ cotangents[0] @ x


# inverse(a, w) = a⁻¹ where w = a⁻¹ is a constant: dx = -x da x.
inverse = rule(lambda a, w: w, _inverse_vjp)


def _body(a: mx.array) -> tuple[mx.array, mx.array]:
    diagonal = mx.min(mx.abs(mx.diagonal(a, axis1=-2, axis2=-1)), axis=-1)
    ok = both(diagonal > 0, is_finite(a))
    return mx.linalg.tri_inv(select(ok, a, identity(a))), ok


def _explain(a: np.ndarray, *_: np.ndarray) -> str:
    j = int(np.argmin(np.abs(np.diagonal(a))))
    return f"is singular: 0 at [{j}, {j}], on the diagonal of a triangular matrix."


_invert_lower = factorization(_body, _explain)


def invert_triangular(a: mx.array, upper: bool = False) -> mx.array:
    """Return the inverse of each triangular matrix of a stack, as a constant without derivative."""
    if upper:
        return transpose(invert_triangular(transpose(a)))
    return _invert_lower("solve_triangular", a)


@on_cpu
def solve_triangular(a: mx.array, b: mx.array, *, upper: bool = False) -> mx.array:
    """Return x with a x = b for a triangular matrix a.

    Differentiable in both arguments, to any order. The gradient in `a` is triangular.

    Args:
        a: shape (..., n, n), float32 or float64. The other triangle is not read.
        b: shape (n,), one vector, or (..., n, k); leading axes broadcast.
        upper: which triangle of `a` is read.

    Returns:
        x, of the shape that b has, broadcast; float64 if either argument is.

    Raises:
        LinAlgError: there is a zero on the diagonal, NaN or infinity. Under `mx.compile` and
            `mx.vmap` the solution is NaN instead.
        TypeError, ValueError: dtypes or shapes are not as described.

    >>> import mlx.core as mx
    >>> solve_triangular(mx.array([[2.0, 0.0], [1.0, 4.0]]), mx.array([2.0, 9.0]))
    array([1, 2], dtype=float32)
    """
    a = check_matrix("solve_triangular", a, square=True)
    a, b, is_vector = align("solve_triangular", triangle(a, upper), b)
    x = solution(a, b, invert_triangular(a, upper))
    return x[..., 0] if is_vector else x
