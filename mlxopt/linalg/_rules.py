"""What every factorization shares: checks at the door, failures in words, and derivative rules.

A function of this package is made of two kinds of parts.

A *factorization* calls `mx.linalg`, which has no derivatives, and tells which matrices of a batch
it failed for. Where values are known the failure is raised, in words; under `mx.compile` and
`mx.vmap` they are not known, and the factors of a failed matrix become NaN. "Known" means that MLX
agrees to evaluate: within `mx.grad` it does, and reading a value there leaves the tape as it was,
since the factorization sees its argument behind `stop_gradient`. Within a trace MLX refuses, and
that refusal is caught here, so that no guard takes it for a loss that reads its own values.

A *rule* returns what a factorization found, together with its derivative in the matrix: it takes
the matrix and, as constants, the factors. Derivatives are written with rules again, so they can be
differentiated as often as one likes.

All of it runs on the CPU, where MLX has its linear algebra, whatever the default device.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from mlxopt._platform import blas
from mlxopt._tree import dtype_name, numpy_dtype

# An entry may differ from its mirror image by this part of the largest entry. Rounding and finite
# differences stay far below; a general or a triangular matrix passed by mistake does not.
_SKEW = 0.01


class LinAlgError(np.linalg.LinAlgError):
    """A matrix cannot be factorized, or has no such derivative; the message says which and why.

    It is also a `numpy.linalg.LinAlgError`, which is a `ValueError`: code written for NumPy's
    exception catches it.
    """


# --- Checks at the door --------------------------------------------------------------------------


def check_matrix(name: str, a: Any, square: bool = False, argument: str = "a") -> mx.array:
    """Return `a`, shape (..., m, n), if it is a stack of matrices of float32 or float64."""
    check_dtype(name, a, argument)
    if a.ndim < 2:
        raise ValueError(
            f"{name}: {argument} has shape {a.shape}; expected a matrix (n, n), or a stack of "
            f"them (..., n, n)."
        )
    if square and a.shape[-1] != a.shape[-2]:
        raise ValueError(
            f"{name}: {argument} has shape {a.shape}; expected square matrices (..., n, n). "
            f"lstsq solves with others, svd and qr factorize them."
        )
    if 0 in a.shape[-2:]:
        raise ValueError(f"{name}: {argument} has shape {a.shape}: matrices without entries.")
    return a


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
    if columns.ndim < 2 or columns.shape[-2] != a.shape[-2] or not _broadcasts(a, columns):
        hint = " A stack of vectors is b[..., None]." if b.shape == a.shape[:-1] else ""
        raise ValueError(
            f"{name}: a has shape {a.shape} and b has shape {b.shape}; expected b of shape "
            f"({a.shape[-2]},) or (..., {a.shape[-2]}, k).{hint}"
        )
    axes = max(a.ndim, columns.ndim)
    a = a.reshape((1,) * (axes - a.ndim) + a.shape)
    return a, columns.reshape((1,) * (axes - columns.ndim) + columns.shape), is_vector


def _broadcasts(a: mx.array, b: mx.array) -> bool:
    pairs = zip(reversed(a.shape[:-2]), reversed(b.shape[:-2]), strict=False)
    return all(i == j or 1 in (i, j) for i, j in pairs)


# --- Small pieces --------------------------------------------------------------------------------


def on_cpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` with all its operations on the CPU, where MLX has float64."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        blas.start()
        with mx.stream(mx.cpu):
            return function(*args, **kwargs)

    return wrapped


def transpose(a: mx.array) -> mx.array:
    """Return the matrices of a stack, each transposed."""
    return mx.swapaxes(a, -1, -2)


def symmetric(a: mx.array) -> mx.array:
    """Return ½(a + aᵀ): the function is one of all entries, and its gradient symmetric."""
    return 0.5 * (a + transpose(a))


def triangle(a: mx.array, upper: bool = False, strict: bool = False) -> mx.array:
    """Return the triangle of each matrix, its diagonal left out if `strict`, zeros elsewhere."""
    # Mask and zeros are whole constants: mx.tril would build a mask in every compiled call, and a
    # scalar zero make this two operations, which mx.compile fuses by calling a compiler.
    ones = np.ones(a.shape[-2:], dtype=bool)
    mask = np.triu(ones, int(strict)) if upper else np.tril(ones, -int(strict))
    return mx.where(mx.array(mask), a, constant(np.zeros(mask.shape), a))


def constant(values: np.ndarray, like: mx.array) -> mx.array:
    """Return an array of these values, of the dtype of another."""
    dtype = np.int32 if like.dtype == mx.int32 else numpy_dtype(like.dtype)
    return mx.array(values.astype(dtype), dtype=like.dtype)


def identity(a: mx.array) -> mx.array:
    """Return the identity matrix of the size and dtype of a square matrix of the stack."""
    return constant(np.eye(a.shape[-1]), a)


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


class _Reading(threading.local):
    """Whether values may be read in this thread."""

    is_allowed = True


_reading = _Reading()


@contextlib.contextmanager
def _no_reading() -> Iterator[None]:
    """Let no values be read meanwhile.

    For forward rules: what MLX evaluates within one it takes off the tape, and a gradient of the
    forward derivative would lack it without a word. (What it evaluates within the function or a
    backward rule it keeps.)
    """
    before, _reading.is_allowed = _reading.is_allowed, False
    try:
        yield
    finally:
        _reading.is_allowed = before


def known(array: mx.array) -> bool:
    """Return whether the values of an array can be read here: not within a compile or a vmap."""
    if not _reading.is_allowed:
        return False
    try:
        mx.eval(array)
    except ValueError as error:
        if "Attempting to eval an array during function transformations" in str(error):
            return False
        raise
    return True


def refuse(
    name: str, ok: mx.array, explain: Callable[..., str], arrays: Sequence[mx.array]
) -> None:
    """Raise LinAlgError for the first member of a stack that is not `ok`.

    Args:
        name: the function to name.
        ok: shape (...), boolean, its values known.
        explain: takes the member's part of each of `arrays` as float64 NumPy arrays and returns
            what is wrong with it, a clause that follows "the matrix".
        arrays: each of shape (..., and more).
    """
    flags = np.array(ok)
    if flags.all():
        return
    index = tuple(int(i) for i in np.argwhere(~flags)[0])
    member = [np.array(array, dtype=np.float64)[index] for array in arrays]
    where = f"matrix {list(index)} of the batch" if index else "the matrix"
    raise LinAlgError(f"{name}: {where} {explain(*member)}")


def explain_not_finite(a: np.ndarray, *_: np.ndarray) -> str:
    """Say which entry is NaN or infinite."""
    i, j = np.argwhere(~np.isfinite(a))[0]
    return f"has {a[i, j]} at [{i}, {j}]; expected finite numbers."


def explain_not_symmetric(a: np.ndarray) -> str | None:
    """Say what is wrong with a matrix that should be finite and symmetric, or None."""
    if not np.isfinite(a).all():
        return explain_not_finite(a)
    skew = np.abs(a - a.T)
    if skew.max() <= _SKEW * np.abs(a).max():
        return None
    i, j = np.unravel_index(np.argmax(skew), skew.shape)
    return (
        f"is not symmetric: {a[i, j]:.6g} at [{i}, {j}] but {a[j, i]:.6g} at [{j}, {i}]. Both "
        f"triangles are read, as 0.5 * (a + a.T); of one triangle make a symmetric matrix first."
    )


# --- Factorizations ------------------------------------------------------------------------------


def factorization(
    name: str, body: Callable[[mx.array], tuple[Any, mx.array]], explain: Callable[..., str]
) -> Callable[[mx.array], Any]:
    """Return `body` as a function that raises on failure, or gives NaN where values are unknown.

    Args:
        name: the function to name in a message.
        body: takes a stack (..., m, n) and returns (factors, ok): an array or a tuple of arrays,
            each with the stack's leading axes, and which matrices it worked for, shape (...). It
            may not make MLX fail, whatever the numbers.
        explain: takes one matrix and its factors, as NumPy arrays; see `refuse`.
    """

    def make(raises: bool) -> Any:
        @mx.custom_function
        def factorize(a: mx.array) -> Any:
            with mx.stream(mx.cpu):
                factors, ok = body(a)
                listed = factors if isinstance(factors, tuple) else (factors,)
                if raises and known(ok):
                    refuse(name, ok, explain, (a, *listed))
                    return factors
                marked = tuple(select(ok, factor, float("nan")) for factor in listed)
                return marked if isinstance(factors, tuple) else marked[0]

        @factorize.vmap
        def _(a: mx.array, axis: int) -> Any:
            # Here MLX would show the values: but one bad matrix should not take the batch with it.
            with mx.stream(mx.cpu):
                factors = quiet(mx.moveaxis(a, axis, 0))
            return factors, ((0,) * len(factors) if isinstance(factors, (tuple, list)) else 0)

        return factorize

    quiet, loud = make(raises=False), make(raises=True)
    return lambda a: loud(mx.stop_gradient(a))


# --- Rules ---------------------------------------------------------------------------------------


def rule(
    body: Callable[..., Any],
    vjp: Callable[..., Any],
    jvp: Callable[..., Any] | None = None,
) -> Any:
    """Return `body` as a function with this derivative, batching and all else.

    Args:
        body: takes arrays with equally many leading axes, which broadcast, and returns an array or
            a tuple of arrays.
        vjp: takes (arguments, cotangents, outputs), each a tuple, and returns the gradients in the
            first few arguments; the others, factors, are constants.
        jvp: takes (arguments, tangents, outputs); tangents come for the first argument alone. By
            default it is made of `vjp`, which is linear in the cotangents.
    """
    # The name of the wrapped function shows in MLX's own messages.
    function = mx.custom_function(functools.wraps(body)(on_cpu(body)))

    def gradients(arguments: Any, cotangents: Any, outputs: Any) -> list[mx.array]:
        found = vjp(arguments, cotangents, outputs)
        fitted = [_sum_to(g, a) for g, a in zip(found, arguments, strict=False)]
        return fitted + [mx.zeros_like(a) for a in arguments[len(fitted) :]]

    @function.vjp
    @on_cpu
    def _(arguments: Any, cotangents: Any, outputs: Any) -> Any:
        found = gradients(_tuple(arguments), _tuple(cotangents), _tuple(outputs))
        return tuple(found) if isinstance(arguments, (tuple, list)) else found[0]

    @function.jvp
    @on_cpu
    @_no_reading()
    def _(arguments: Any, tangents: Any) -> Any:
        arguments, tangents = _tuple(arguments), _tuple(tangents)
        outputs = function(*arguments)
        if jvp is not None:
            return jvp(arguments, tangents[0], _tuple(outputs))
        moving = [i for i, tangent in enumerate(tangents) if tangent is not None]

        def pull(*cotangents: mx.array) -> list[mx.array]:
            found = gradients(arguments, cotangents, _tuple(outputs))
            return [found[i] for i in moving]

        zeros = [mx.zeros_like(output) for output in _tuple(outputs)]
        _, pushed = mx.vjp(pull, zeros, [tangents[i] for i in moving])
        return tuple(pushed) if isinstance(outputs, (tuple, list)) else pushed[0]

    @function.vmap
    @on_cpu
    def _(arguments: Any, axes: Any) -> Any:
        axes = axes if isinstance(axes, (tuple, list)) else (axes,)
        stacked = [
            a[None] if axis is None else mx.moveaxis(a, axis, 0)
            for a, axis in zip(_tuple(arguments), axes, strict=True)
        ]
        outputs = function(*stacked)
        return outputs, ((0,) * len(outputs) if isinstance(outputs, (tuple, list)) else 0)

    return function


def _tuple(arrays: Any) -> tuple[mx.array, ...]:
    return tuple(arrays) if isinstance(arrays, (tuple, list)) else (arrays,)


def _sum_to(gradient: mx.array, like: mx.array) -> mx.array:
    """Return `gradient` summed over the axes along which `like` was broadcast."""
    axes = [
        axis
        for axis, (wide, narrow) in enumerate(zip(gradient.shape, like.shape, strict=True))
        if narrow == 1 and wide != 1
    ]
    return mx.sum(gradient, axis=axes, keepdims=True) if axes else gradient
