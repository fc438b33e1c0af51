"""Numbers that show whether a gradient is that of the loss, where a trace does not."""

from __future__ import annotations

import contextlib
import functools
import io
import math
from typing import Any

import mlx.core as mx
import numpy as np

from mlxopt._operation import Function, is_refusal
from mlxopt._tree import Tree, epsilon, from_host, is_float, leaves, to_host, to_numpy
from mlxopt.autodiff._guards import (
    TapeError,
    agree,
    compile_traces,
    compiled,
    name_of,
    reads,
    tape_guard,
    trace,
)

_MARGIN = 100.0  # times the rounding that is observed
_CLEAR = 0.02  # the share of a derivative that is a clear disagreement
_SLACK = 10.0  # times the differences between finite differences
_STEPS = (0.03, 0.003, 0.0003)  # of finite differences, relative to the entries
_STATELESS = (
    "It depends on more than its arguments: a counter, the time, NumPy's random numbers. Pass what "
    "changes among the data, and draw with mx.random."
)


def reads_in_vain(function: Function, params: Tree) -> bool:
    """Whether no number that `function(params)` reads back counts, as in a print.

    Either none depends on the parameters, which alone are traced here; or the value is the same
    with NaN and infinities in place of the numbers, of which min and max drop one or two.
    """
    try:
        with tape_guard(function):
            trace(function, params)
        return True
    except (ValueError, RuntimeError):
        if not compile_traces():
            return False
    try:
        plain = function(params)
        for number in (math.nan, math.inf, -math.inf):
            quiet = contextlib.redirect_stdout(io.StringIO())  # these numbers are none to show
            with reads(functools.partial(_read_as, number)), quiet:
                blind = compiled(function)(params)
            finite = [mx.all(mx.isfinite(leaf)) for leaf in leaves(blind) if is_float(leaf)]
            if not (all(map(bool, finite)) and agree(blind, plain)):
                return False
        return True
    except Exception:  # of any kind: the number is not what the function expects
        return False


def _read_as(number: float, read: Function, array: mx.array, *args: Any, **kwargs: Any) -> Any:
    """Return `number`, in the form that `read` gives, in place of numbers that are not known."""
    try:
        return read(array, *args, **kwargs)
    except (ValueError, RuntimeError) as error:
        if not is_refusal(error) or read.__name__ in ("__bool__", "__index__"):
            raise
    if read.__name__ == "__repr__":
        return f"array(traced, shape={array.shape}, dtype={array.dtype})"
    if read.__name__ == "__format__":
        return format(number, *args)
    if read.__name__ == "tolist":
        return np.full(array.shape, number).tolist()
    return int(number) if read.__name__ == "__int__" else number


def check_trace(
    loss: Function, params: Tree, data: tuple[Any, ...], plain: mx.array, traced: mx.array
) -> None:
    """Raise TapeError where the trace of a loss differs from the loss by more than rounding.

    Args:
        loss: `loss(params, *data)`, with the same random numbers in every call.
        params: the point.
        data: the other arguments.
        plain: the value there, op by op.
        traced: the value there by the compiled loss.
    """
    name, again = name_of(loss), loss(params, *data)
    if not agree(again, plain):
        raise TapeError(
            f"{name} is no function of its arguments: two evaluations at the start gave "
            f"{_differing(plain, again)}. {_STATELESS}"
        )
    rounding = np.max([_change(loss, params, data, plain, sign) for sign in (-1, 1)])
    error = np.abs(to_numpy(traced) - to_numpy(plain))
    if np.nanmax(error, initial=0.0) <= _MARGIN * rounding:
        return
    raise TapeError(
        f"{name} gives {_differing(plain, traced)}, the second where it is traced to be compiled: "
        f"it computes something else there, so its derivative may be silently wrong. Does it read "
        f"an array within try/except, or in another thread? Stay in MLX operations. (compile=False "
        f"does without a trace.)"
    )


def _change(loss: Function, params: Tree, data: Any, plain: mx.array, sign: int) -> float:
    """Return the change of a loss by a move of the parameters by rounding errors."""
    x = to_host(params)
    nudge = sign * epsilon(params) * np.maximum(1.0, np.abs(x)) * np.cos(1.0 + np.arange(x.size))
    moved = to_numpy(loss(from_host(x + nudge, params), *data))
    return float(np.nanmax(np.abs(moved - to_numpy(plain)), initial=0.0))


def _differing(one: mx.array, other: mx.array) -> str:
    """Return the two numbers that differ most, in words."""
    pair = [to_numpy(item).reshape(-1) for item in (one, other)]
    with np.errstate(invalid="ignore"):
        gaps = np.abs(pair[0] - pair[1])
    worst = int(np.argmax(np.where(np.isnan(gaps), np.inf, gaps)))
    entry = f" in entry {worst}" if one.ndim else ""
    return f"{pair[0][worst]:.9g} and {pair[1][worst]:.9g}{entry}"
