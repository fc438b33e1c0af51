"""Functions that MLX takes as one operation, with derivatives of their own in every mode.

MLX looks for a separate rule in reverse mode, in forward mode and under `mx.vmap`. Without one it
differentiates the body instead: through a bit shift the derivative would be zero, without an error.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, TypeAlias

import mlx.core as mx

Arrays: TypeAlias = tuple[mx.array, ...]
Rule: TypeAlias = Callable[[Any, Any, Any], Any]
Function: TypeAlias = Callable[..., Any]

# What to use in place of MLX's operations that have no derivative.
INSTEAD = {
    "Cholesky": "mo.linalg.cholesky, or mo.linalg.logdet, has one",
    "Inverse": "mo.linalg.inv, mo.linalg.solve and mo.linalg.solve_triangular have one",
    "QRF": "mo.linalg.qr, or mo.linalg.lstsq, has one",
    "SVD": "mo.linalg.svd has one, and mo.linalg.lstsq in place of a pseudo-inverse",
    "Eigh": "mo.linalg.eigh has one",
    "Eig": "mo.linalg.eigh, for symmetric matrices, has one",
    "LUF": "mo.linalg.solve, mo.linalg.inv and mo.linalg.slogdet have one",
    "gather_axis": "mo.linalg.solve has one, in place of mx.linalg.solve; where indices depend on "
    "the parameters, mx.stop_gradient holds them constant",
    "scatter_prod": "mx.prod has one",
}
OTHERWISE = (
    "write it with other operations, give it a derivative by mx.custom_function, or hold its "
    "result constant by mx.stop_gradient"
)

_forward: ContextVar[bool] = ContextVar("_forward", default=False)
_ORDERS = 2  # of derivatives that the engine needs
_depth: ContextVar[int] = ContextVar("_depth", default=0)  # the order of the slope being written
lowering: ContextVar[bool] = ContextVar("lowering", default=False)  # to a graph for the engine


def operation(
    body: Function, vjp: Rule, jvp: Rule | None = None, device: mx.DeviceType | None = None
) -> Function:
    """Return `body` as one operation; its rules can use operations, for derivatives of any order.

    In forward mode MLX also differentiates the body, and drops the result: a body of operations
    without a jvp starts with `mx.stop_gradient`.

    Args:
        body: takes arrays with equally many axes, which broadcast, and returns an array or a
            tuple of arrays.
        vjp: takes (arguments, cotangents, outputs), each a tuple, and returns the gradients in the
            first few arguments; the others are constants.
        jvp: takes (arguments, tangents, outputs) and returns the tangents of the outputs. By
            default it is the transpose of `vjp`, which is linear in the cotangents.
        device: where body and rules are computed; None for the default device.
    """
    on_device = _unchanged if device is None else on(device)

    function: Any = mx.custom_function(on_device(body))

    def gradients(arguments: Arrays, cotangents: Arrays, outputs: Arrays) -> Arrays:
        found = as_tuple(vjp(arguments, cotangents, outputs))
        fitted = map(_sum_to, found, arguments)
        return *fitted, *map(mx.zeros_like, arguments[len(found) :])

    @function.vjp
    @on_device
    def _(arguments: Any, cotangents: Any, outputs: Any) -> Any:
        found = gradients(as_tuple(arguments), as_tuple(cotangents), as_tuple(outputs))
        return _like(arguments, found)

    @function.jvp
    @on_device
    def _(arguments: Any, tangents: Any) -> Any:
        arguments, tangents = as_tuple(arguments), as_tuple(tangents)
        token = _forward.set(True)
        try:
            outputs = function(*arguments)
            if jvp is not None:
                return jvp(arguments, tangents, as_tuple(outputs))
            moving = [i for i, tangent in enumerate(tangents) if tangent is not None]

            def pull(*cotangents: mx.array) -> list[mx.array]:
                found = gradients(arguments, cotangents, as_tuple(outputs))
                return [found[i] for i in moving]

            _, pushed = mx.vjp(pull, [*as_tuple(outputs)], [tangents[i] for i in moving])
            return _like(outputs, pushed)
        finally:
            _forward.reset(token)

    function.vmap(on_device(batched(function)))
    return function


def replaced(function: Function, plain: Function) -> Function:
    """Return `function`, in whose place `plain` is traced for the engine.

    MLX cannot export a function with rules of its own, and the engine needs none of our care for
    MLX's rounding.
    """

    @functools.wraps(function)
    def either(*args: Any) -> Any:
        return (plain if lowering.get() else function)(*args)

    return either


def straight_through(value: mx.array, products: Function, *arguments: mx.array) -> mx.array:
    """Return `value` with derivatives of its own, up to the second, without a custom function.

    The term that has them is zero: Σ (x - -(-x)) · slope. The engine leaves it out.

    Args:
        value: of the operation.
        products: takes (arguments, changes, outputs), and returns the sum of products of the
            slopes with the changes.
        arguments: those that it depends on.
    """
    constant, depth = mx.stop_gradient(value), _depth.get()
    if depth == _ORDERS:
        return constant
    token = _depth.set(depth + 1)
    try:
        held = tuple(map(mx.stop_gradient, arguments))
        # -(-x), which nobody else writes, tells the engine of the zero; x - x may be NaN.
        changes = tuple(x - mx.negative(-x_held) for x, x_held in zip(arguments, held, strict=True))
        # The slope may be written by the value, which then needs a slope of its own.
        output = straight_through(value, products, *arguments)
        # (x - x) s(x) has the second derivative 2 s'.
        twice = products(arguments, changes, (output,)) + products(held, changes, (constant,))
        return constant + 0.5 * twice
    finally:
        _depth.reset(token)


def batched(function: Function) -> Function:
    """Return the `mx.vmap` rule of a function that works on leading axes."""

    def rule(arguments: Any, axes: Any) -> Any:
        stacked = [
            a[None] if axis is None else mx.moveaxis(a, axis, 0)
            for a, axis in zip(as_tuple(arguments), as_tuple(axes), strict=True)
        ]
        outputs = function(*stacked)
        return outputs, _like(outputs, (0,) * len(as_tuple(outputs)))

    return rule


def on(device: mx.DeviceType) -> Callable[[Function], Function]:
    """Return a decorator that puts all operations of a function on a device."""

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with mx.stream(device):
                return function(*args, **kwargs)

        return wrapped

    return decorate


def in_forward_rule() -> bool:
    """Return whether a jvp rule is being computed, whose arrays MLX does not mark as traced.

    An array evaluated there leaves the tape, and a gradient of the forward derivative would lack
    it; a function compiled there cannot be mapped by `mx.vmap`.
    """
    return _forward.get()


def is_refusal(error: BaseException) -> bool:
    """Return whether MLX refuses here to evaluate an array whose value is not known yet."""
    return "[eval] Attempting to eval an array during function transformations" in str(error)


def known(*arrays: mx.array) -> bool:
    """Return whether values can be read here: not within a compile, a vmap or a jvp rule."""
    if in_forward_rule():
        return False
    try:
        mx.eval(*arrays)
    except ValueError as error:
        if is_refusal(error):
            return False
        raise
    return True


def _unchanged(function: Function) -> Function:
    return function


def as_tuple(arrays: Any) -> tuple[Any, ...]:
    """Return several arrays as a tuple, and one as a tuple of one."""
    return tuple(arrays) if isinstance(arrays, (tuple, list)) else (arrays,)


def _like(arrays: Any, found: Any) -> Any:
    """Return `found` as a tuple where `arrays` is one, else its only member."""
    return tuple(found) if isinstance(arrays, (tuple, list)) else found[0]


def _sum_to(gradient: mx.array, like: mx.array) -> mx.array:
    """Return `gradient` summed over the axes along which `like` was broadcast."""
    pairs = enumerate(zip(gradient.shape, like.shape, strict=True))
    axes = [axis for axis, (wide, narrow) in pairs if wide != narrow]
    return mx.sum(gradient, axis=axes, keepdims=True) if axes else gradient
