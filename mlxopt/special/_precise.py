"""All digits in float64 for `mx.exp` and the like, for as long as a user's function is called.

In float64 on the CPU MLX computes these functions, or their derivatives, in float32. While a
function wrapped by `precise` is called, the names in `mlx.core` stand for functions that compute
float64 arrays of the calling thread with those of `mlxopt.special`, and all others with MLX's own.
Code that reaches MLX by these names, such as `mlx.nn`, then has the digits too.
`from mlx.core import exp` keeps MLX's own, and so do rules that run later: those of a user's
`mx.custom_function`, and the second pass of `mx.checkpoint`.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from mlxopt import special
from mlxopt._operation import Function
from mlxopt._tree import is_float, leaves

# Functions of mlxopt.special with the names of MLX's.
_NAMES = (
    *("cos", "erf", "erfinv", "exp", "expm1", "log2", "log10", "logaddexp", "logcumsumexp"),
    *("logsumexp", "sigmoid", "sin", "softmax", "tan"),
)


def _softmax(x: mx.array, axis: Any = None, *, precise: bool = False) -> mx.array:
    return special.softmax(x, axis)


def _layer_norm(x: mx.array, weight: Any, bias: Any, eps: float) -> mx.array:
    centered = x - mx.mean(x, axis=-1, keepdims=True)
    return _rms_norm(centered, weight, eps) + (0 if bias is None else bias)


def _rms_norm(x: mx.array, weight: Any, eps: float) -> mx.array:
    y = x * mx.rsqrt(mx.mean(mx.square(x), axis=-1, keepdims=True) + eps)
    return y if weight is None else y * weight


def _dispatched(ours: Function, own: Function) -> Function:
    """Return MLX's `own`, with `ours` in its place where an argument is a float64 array."""

    @functools.wraps(own)
    def function(*args: Any, **options: Any) -> mx.array:
        arrays = [arg for arg in args if isinstance(arg, mx.array)]
        dtypes = {array.dtype for array in arrays}
        # MLX has rules of its own for complex numbers, and for empty arrays.
        is_ours = mx.float64 in dtypes and mx.complex64 not in dtypes
        if not (is_ours and _inside.get()) or any(array.size == 0 for array in arrays):
            return own(*args, **options)
        # MLX would take the numbers of a NumPy array in float32.
        args = tuple(mx.array(x, mx.float64) if isinstance(x, np.ndarray) else x for x in args)
        stream = options.pop("stream", None)
        with contextlib.nullcontext() if stream is None else mx.stream(stream):
            return ours(*args, **options)

    return function


def _table() -> Iterator[tuple[Any, str, Function, Function]]:
    """Yield (owner, name, MLX's own, the function in its place)."""
    ours = {name: getattr(special, name) for name in _NAMES} | {"softmax": _softmax}
    for owner in (mx, mx.array):
        for name in ours:
            if own := vars(owner).get(name):
                yield owner, name, own, _dispatched(ours[name], own)
    for name, function in (("layer_norm", _layer_norm), ("rms_norm", _rms_norm)):
        own = getattr(mx.fast, name)
        yield mx.fast, name, own, _dispatched(function, own)


_TABLE = tuple(_table())
_lock = threading.Lock()
_threads: set[int] = set()  # those with a call in progress
_inside: ContextVar[bool] = ContextVar("_inside", default=False)  # whether this thread is in one


def precise(function: Function) -> Function:
    """Return `function`, called with all digits of float64 in MLX's functions.

    Calls can be nested, and made in several threads; the names are MLX's own again after the last.
    """

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        is_outermost = not _inside.get()
        try:
            if is_outermost:
                _exchange(_threads.add)
                _inside.set(True)
            return _traced_anew(function, args, kwargs)
        except ValueError as error:
            if "CustomTransforms cannot infer output shapes" not in str(error):
                raise
            raise ValueError(
                "in float64 a loss cannot call a function compiled with shapeless=True, such as "
                "the activations of mlx.nn, on arrays other than its arguments: compute such a "
                "constant before the run, or pass it as data."
            ) from error
        finally:
            if is_outermost:
                _inside.set(False)
                _exchange(_threads.discard)

    return called


def _traced_anew(function: Function, args: Any, kwargs: Any) -> Any:
    """Return `function(*args, **kwargs)`, in which functions that MLX compiled are traced anew.

    On plain arrays they would repeat an older trace, of MLX's own functions; and in a trace for
    any shape MLX takes no operation with derivatives of its own. The plain arrays among the
    arguments therefore become variables of a gradient, whose operations MLX runs one by one.
    """
    plain = [leaf for leaf in leaves((args, kwargs)) if is_float(leaf) and not _is_variable(leaf)]
    if not plain:
        return function(*args, **kwargs)
    names = {id(leaf): index for index, leaf in enumerate(plain)}
    results = []

    def call(variables: list[mx.array]) -> mx.array:
        in_place = tree_map(
            lambda leaf: variables[names[id(leaf)]] if id(leaf) in names else leaf, (args, kwargs)
        )
        results.append(function(*in_place[0], **in_place[1]))
        return mx.zeros(())

    mx.grad(call)(plain)
    return results[0]


def _is_variable(x: mx.array) -> bool:
    """Whether x is a variable of a derivative, a trace or a batch; nothing is evaluated.

    Those are the arrays for which MLX runs a compiled function in Python in place of its trace.
    """
    _probe(mx.zeros(x.shape, x.dtype))  # so that there is a trace
    _probed.ran = False
    _probe(x)
    return _probed.ran


_probed = threading.local()


@functools.partial(mx.compile, shapeless=True)
def _probe(x: mx.array) -> mx.array:
    _probed.ran = True
    return -x


def _exchange(change: Function) -> None:
    """Add or discard this thread, and put the functions in place that its threads then need.

    Where Ctrl-C cuts this short, the next call in the thread puts it right; in the meantime ours
    pass each call on to MLX's.
    """
    with _lock:
        change(threading.get_ident())
        for owner, name, own, ours in _TABLE:
            before, after = (own, ours) if _threads else (ours, own)
            if vars(owner)[name] is before:  # not where someone else has put a function
                setattr(owner, name, after)
