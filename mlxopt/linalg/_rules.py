"""The common parts of all factorizations: checks of arguments, failures, and derivative rules.

A *factorization* calls `mx.linalg`, which has no derivatives, and tells which matrices of a batch
it failed for. Where values are known it raises an error; under `mx.compile` and `mx.vmap` they are
not, and the factors of a failed matrix become NaN. Within `mx.grad` values are known, and reading
them leaves the tape as it was, since the factorization sees its argument behind `stop_gradient`.

A *rule* returns the factors together with their derivative in the matrix: it takes the matrix and,
as constants, the factors. Derivatives are written with rules again, so all orders exist.

Everything runs on the CPU, the only device with `mx.linalg`, under any default device.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from mlxopt._operation import Function, as_tuple, batched, known, on, operation
from mlxopt._platform.device import begin
from mlxopt._tree import dtype_name

Explain: TypeAlias = Callable[..., str]

rule = functools.partial(operation, device=mx.cpu)

# The share of the largest entry by which an entry can differ from its mirror image: far above
# rounding and finite differences, far below a general or triangular matrix passed by mistake.
_SKEW = 0.01


class LinAlgError(np.linalg.LinAlgError):
    """A matrix cannot be factorized, or has no such derivative; the message says which and why.

    It is also a `numpy.linalg.LinAlgError`, which is a `ValueError`.
    """


# --- Checks at the door --------------------------------------------------------------------------


def check_matrix(name: str, a: Any, square: bool = False) -> mx.array:
    """Return `a`, shape (..., m, n), if it is a stack of matrices of float32 or float64."""
    check_dtype(name, a, "a")
    if a.ndim < 2:
        expected = "expected a matrix (n, n), or a stack of them (..., n, n)"
    elif square and a.shape[-1] != a.shape[-2]:
        expected = (
            "expected square matrices (..., n, n). lstsq solves with others, svd and qr factorize "
            "them"
        )
    elif 0 in a.shape[-2:]:
        expected = "matrices without entries cannot be factorized"
    else:
        return a
    raise ValueError(f"{name}: a has shape {a.shape}; {expected}.")


def check_dtype(name: str, a: Any, argument: str) -> None:
    """Raise TypeError unless `a` is an MLX array of float32 or float64."""
    if not isinstance(a, mx.array):
        raise TypeError(
            f"{name}: {argument} is {type(a).__module__}.{type(a).__qualname__}; expected an "
            f"mx.array. Write mx.array({argument}, dtype=mx.float32), or mx.float64."
        )
    if a.dtype not in (mx.float32, mx.float64):
        advice = (
            "Split it into a real and an imaginary part."
            if a.dtype == mx.complex64
            else f"Write {argument}.astype(mx.float32)."
        )
        raise TypeError(
            f"{name}: {argument} has dtype {dtype_name(a.dtype)}; expected float32 or float64, "
            f"the dtypes that matrices are factorized in. {advice}"
        )


def align(name: str, a: Any, b: Any) -> tuple[mx.array, mx.array, bool]:
    """Return a and b with the same dtype and number of axes, and whether b was one vector.

    Args:
        name: the function to name in a message.
        a: shape (..., m, n), checked.
        b: shape (m,) or (..., m, k), of any real dtype.
    """
    if not isinstance(b, mx.array) or b.dtype == mx.complex64:
        check_dtype(name, b, "b")
    dtype = mx.float64 if mx.float64 in (a.dtype, b.dtype) else mx.float32
    a, b = a.astype(dtype), b.astype(dtype)
    is_vector = b.ndim == 1
    columns = b[:, None] if is_vector else b
    leading = zip(a.shape[-3::-1], columns.shape[-3::-1], strict=False)
    fits = columns.ndim >= 2 and columns.shape[-2] == a.shape[-2]
    if not fits or any(i != j and 1 not in (i, j) for i, j in leading):
        hint = " A stack of vectors is b[..., None]." if b.shape == a.shape[:-1] else ""
        raise ValueError(
            f"{name}: a has shape {a.shape} and b has shape {b.shape}; expected b of shape "
            f"({a.shape[-2]},) or (..., {a.shape[-2]}, k).{hint}"
        )
    axes = max(a.ndim, columns.ndim)
    a = a.reshape((1,) * (axes - a.ndim) + a.shape)
    return a, columns.reshape((1,) * (axes - columns.ndim) + columns.shape), is_vector


# --- Small pieces --------------------------------------------------------------------------------


def on_cpu(function: Function) -> Function:
    """Return `function` with its operations on the CPU, where MLX has float64, and a fast BLAS."""
    placed = on(mx.cpu)(function)

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        begin()
        return placed(*args, **kwargs)

    return wrapped


def transpose(a: mx.array) -> mx.array:
    """Return the matrices of a stack, each transposed."""
    return mx.swapaxes(a, -1, -2)


def tall(a: mx.array) -> mx.array:
    """Return `a`, or its transpose where it has more columns than rows."""
    return transpose(a) if a.shape[-1] > a.shape[-2] else a


def symmetric(a: mx.array) -> mx.array:
    """Return ½(a + aᵀ), a function of all entries, whose gradient is symmetric."""
    return 0.5 * (a + transpose(a))


def triangle(a: mx.array, upper: bool = False, strict: bool = False) -> mx.array:
    """Return the triangle of each matrix, its diagonal left out if `strict`, zeros elsewhere."""
    # Mask and zeros are constants of full size: mx.tril would build a mask in every compiled call,
    # and with a scalar zero mx.compile would fuse two operations, by calling a compiler.
    ones = np.ones(a.shape[-2:], dtype=bool)
    mask = np.triu(ones, int(strict)) if upper else np.tril(ones, -int(strict))
    return mx.where(mx.array(mask), a, mx.array(np.zeros(mask.shape), dtype=a.dtype))


def identity(a: mx.array) -> mx.array:
    """Return the identity matrix of the size and dtype of a square matrix of the stack."""
    return mx.array(np.eye(a.shape[-1]), dtype=a.dtype)


def is_finite(a: mx.array) -> mx.array:
    """Return which matrices of a stack hold neither NaN nor infinity: shape (...), boolean."""
    return mx.max(mx.abs(a), axis=(-2, -1)) < float("inf")


def is_symmetric(a: mx.array) -> mx.array:
    """Return which matrices are finite and symmetric to within 1 % of their largest entry."""
    skew = mx.max(a - transpose(a), axis=(-2, -1))
    return skew <= _SKEW * mx.max(mx.abs(a), axis=(-2, -1))


def select(ok: mx.array, a: mx.array, other: Any) -> mx.array:
    """Return `a` for the members of a stack that are `ok`, shape (...), and `other` elsewhere."""
    ok = ok.reshape(ok.shape + (1,) * (a.ndim - ok.ndim))
    return mx.where(ok, a, mx.array(other, dtype=a.dtype))


def both(*conditions: mx.array) -> mx.array:
    """Return where all of these hold. MLX 0.32 gets `&` wrong under `mx.vmap`, and `|` too."""
    return functools.reduce(mx.logical_and, conditions)


# --- Failures ------------------------------------------------------------------------------------


def refuse(name: str, ok: mx.array, explain: Explain, arrays: Sequence[mx.array]) -> bool:
    """Raise LinAlgError for the first member of a stack that is not `ok`, if values are known.

    Args:
        name: the function to name.
        ok: shape (...), boolean.
        explain: takes the member's part of each of `arrays` as float64 NumPy arrays, the first of
            them finite, and returns a clause to follow "the matrix".
        arrays: each of shape (..., and more).

    Returns:
        whether values are known.
    """
    if not known(ok):
        return False
    flags = np.array(ok)
    if flags.all():
        return True
    index = tuple(int(i) for i in np.argwhere(~flags)[0])
    first, *others = (np.array(array, dtype=np.float64)[index] for array in arrays)
    where = f"matrix {list(index)} of the batch" if index else "the matrix"
    if np.isfinite(first).all():
        raise LinAlgError(f"{name}: {where} {explain(first, *others)}")
    entry = np.argwhere(~np.isfinite(first))[0].tolist()
    number = first[tuple(entry)]
    raise LinAlgError(f"{name}: {where} has {number} at {entry}; expected finite numbers.")


def explain_not_symmetric(a: np.ndarray, *_: np.ndarray) -> str:
    """Say where a finite matrix is not symmetric; an empty string where it is."""
    skew = np.abs(a - a.T)
    if skew.max() <= _SKEW * np.abs(a).max():
        return ""
    i, j = np.unravel_index(np.argmax(skew), skew.shape)
    return (
        f"is not symmetric: {a[i, j]:.6g} at [{i}, {j}] but {a[j, i]:.6g} at [{j}, {i}]. Both "
        f"triangles are read, as 0.5 * (a + a.T); of one triangle make a symmetric matrix first."
    )


def factorization(body: Function, explain: Explain = lambda *_: "") -> Callable[..., Any]:
    """Return `factorize(name, a)`, which raises LinAlgError where `body` fails.

    Where values are unknown the factors of a failed matrix are NaN instead.

    Args:
        body: takes a stack (..., m, n) and returns (factors, ok): an array or a tuple of arrays,
            each with the stack's leading axes, and which matrices it worked for, shape (...). It
            must not raise for any numbers.
        explain: takes one finite matrix and its factors; see `refuse`.
    """

    @functools.cache
    def named(name: str | None) -> Any:
        """Return the function under one name; under None it raises nothing."""

        @mx.custom_function
        @on(mx.cpu)
        def factorize(a: mx.array) -> Any:
            factors, ok = body(a)
            if name is not None and refuse(name, ok, explain, (a, *as_tuple(factors))):
                return factors
            return tree_map(lambda factor: select(ok, factor, float("nan")), factors)

        # Under vmap values can be read, but one bad matrix should not take the batch with it.
        quiet = factorize if name is None else named(None)
        factorize.vmap(on(mx.cpu)(batched(quiet)))
        return factorize

    return lambda name, a: named(name)(mx.stop_gradient(a))
