"""Why a loss or its gradient is not finite at a start, in words."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from mlxopt._operation import Function
from mlxopt._tree import Tree, dtype_name, is_finite, largest_entry, read, widened, working_dtype
from mlxopt.autodiff._arguments import argument_names, not_finite

_DOMAIN = (
    "Start inside the domain of the loss (log and sqrt of positive numbers, no division by zero), "
    "and check the data that it refers to for NaN and infinity."
)
_BRANCH = (
    "sqrt and norms have no finite derivative at 0, and mx.where(x > 0, mx.log(x), 0) multiplies "
    "that of the branch not taken, which is not finite, by 0: choose the argument in place of the "
    "result, mx.log(mx.where(x > 0, x, 1))."
)


def why_not_finite(
    loss: Function, output: Function, params: Tree, data: tuple[Any, ...], value: float, grad: Tree
) -> str:
    """Return the reason, as far as it is known, and what to do.

    Args:
        loss: `loss(params, *data)`, a scalar, with the same random numbers in every call.
        output: the residual of which the loss is the sum of squares; or the loss.
        params: the start.
        data: the other arguments.
        value: the loss there.
        grad: the gradient there; None if that is not known.
    """
    if place := not_finite((params,), ["params"]):
        return f"{place}: start at finite numbers."
    if place := not_finite(data, argument_names(loss, len(data))):
        return f"In the data {place}: leave out such rows."
    if wide := _overflows(loss, params, data, math.isfinite(value)):
        name = dtype_name(working_dtype(params))
        return (
            f"In float64 the loss is {wide:.6g}: it overflows {name}. Use float64 parameters, or "
            f"scale parameters and data."
        )
    if math.isfinite(value):
        place = None if grad is None else not_finite((grad,), ["the gradient in params"])
        where = f"{place[0].upper()}{place[1:]}, though the loss is finite. " if place else ""
        return f"{where}Which operation has no finite derivative there? {_BRANCH}"
    found = output(params, *data)
    place = not_finite((found,), ["residual"]) if found.ndim else None
    infinite = "It overflows, or something is divided by zero. " if math.isinf(value) else ""
    return f"All arguments are finite{f', and {place}' if place else ''}. {infinite}{_DOMAIN}"


def _overflows(loss: Function, params: Tree, data: tuple[Any, ...], gradient: bool) -> float | None:
    """Return the loss in float64 if it, and its gradient where that counts, are finite in it."""
    if working_dtype(params) == mx.float64:
        return None
    with mx.stream(mx.cpu):
        try:
            value, grad = mx.value_and_grad(loss)(widened(params), *widened(data))
            numbers = read(value, largest_entry(grad) if gradient else value)
        except Exception:  # of any kind: the loss cannot be computed in float64
            return None
    return numbers[0] if is_finite(*numbers) and value.dtype == mx.float64 else None
