"""What every function of one array shares: its dtype and its derivatives in all of MLX's modes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import mlx.core as mx

Number: TypeAlias = mx.array | float
Values: TypeAlias = Callable[[mx.array], mx.array]

_HALVES = (mx.float16, mx.bfloat16)


def elementwise(
    slope: Callable[[mx.array, mx.array], mx.array], poles: bool = False
) -> Callable[[Values], Callable[[Number], mx.array]]:
    """Return a decorator that gives a function of one array its derivative, in every mode.

    The decorated function is compiled, sees float32 or float64 only, and may use operations
    without a derivative (shifts, `view`); what it returns has the shape of its argument.

    Args:
        slope: `slope(x, y)`, the derivative at x where the value is y, of the shape of x; built
            from functions that have derivatives themselves, so that every order exists.
        poles: whether the slope can be infinite or NaN. Then a zero cotangent or tangent gives
            zero in place of 0 · ∞ = NaN, so `mx.where(x > 0, log(x), 0)` has a gradient at 0.

    MLX asks a custom function for a rule in each mode, and without one it differentiates the
    operations inside: through a shift the derivative would be zero without a word.
    """

    def decorate(values: Values) -> Callable[[Number], mx.array]:
        compiled = mx.compile(values)

        @mx.custom_function
        def rule(x: mx.array) -> mx.array:
            return compiled(x)

        @rule.vjp
        def _(x: mx.array, cotangent: mx.array, y: mx.array) -> mx.array:
            return _product(cotangent, slope(x, y), poles)

        @rule.jvp
        def _(x: mx.array, tangent: mx.array) -> mx.array:
            return _product(tangent, slope(x, apply(x)), poles)

        @rule.vmap
        def _(x: mx.array, axis: int) -> tuple[mx.array, int]:
            return apply(x), axis

        def apply(x: mx.array) -> mx.array:
            return rule(x)  # pyright: ignore[reportReturnType] - typed as the tree it could be

        @functools.wraps(values)
        def function(x: Number) -> mx.array:
            return in_working_precision(apply, x)

        return function

    return decorate


def in_working_precision(function: Callable[..., mx.array], *args: Number) -> mx.array:
    """Return `function(*args)` computed in float64 if an argument is float64, else in float32.

    float16 and bfloat16 come back as they were, integers and booleans give float32, and a Python
    number takes the dtype of the arrays beside it.

    Raises:
        TypeError: an argument is complex, or neither an array nor a number.
    """
    kinds = [x.dtype for x in args if isinstance(x, mx.array)]
    for x, kind in zip(args, map(_kind, args), strict=True):
        if kind is None:
            raise TypeError(
                f"expected an mx.array of real numbers, or a number; got "
                f"{x.dtype if isinstance(x, mx.array) else type(x).__qualname__}."
            )
    dtype = functools.reduce(_promoted, kinds) if kinds else mx.float32
    if not mx.issubdtype(dtype, mx.floating):
        dtype = mx.float32
    working = mx.float64 if dtype == mx.float64 else mx.float32
    arrays = [x.astype(working) if isinstance(x, mx.array) else mx.array(x, working) for x in args]
    return function(*arrays).astype(dtype)


def _kind(x: Any) -> Any:
    """Return what `x` is, or None for what the functions here do not take."""
    if isinstance(x, mx.array):
        return None if x.dtype == mx.complex64 else mx.array
    return float if isinstance(x, (int, float)) else None


def _promoted(a: mx.Dtype, b: mx.Dtype) -> mx.Dtype:
    return mx.result_type(mx.zeros((), a), mx.zeros((), b))


def _product(cotangent: mx.array, slope: mx.array, poles: bool) -> mx.array:
    return cotangent * (_tamed(cotangent, slope) if poles else slope)


def _tamed(cotangent: mx.array, slope: mx.array) -> mx.array:
    """Return the slope, or zero where it is not finite and multiplies a zero."""
    harmless = mx.logical_or(cotangent != 0, mx.abs(slope) < mx.inf)
    return mx.where(harmless, slope, mx.zeros_like(slope))


def on_gpu() -> bool:
    """Return whether the default device is a GPU; MLX's own float32 kernels are accurate there."""
    return mx.default_device().type == mx.gpu


def waist(x: mx.array) -> mx.array:
    """Return x, and keep `mx.compile` from fusing across it.

    MLX cuts a graph into kernels every eleven operations in depth, wherever that falls, and each
    new kernel costs 0.4 s of g++ on the CPU. Across a wide expression such a cut leaves a kernel
    for every branch; a waist puts it where one array passes, so that functions share kernels.
    """
    return _barrier(x)  # pyright: ignore[reportReturnType] - typed as the tree it could be


@mx.custom_function
def _barrier(x: mx.array) -> mx.array:
    return x


@_barrier.vmap
def _(x: mx.array, axis: int) -> tuple[mx.array, int]:
    return x, axis  # a custom function without a rule is no operation of its own


def polynomial(coefficients: tuple[float, ...], x: mx.array) -> mx.array:
    """Return Σ coefficients[i] · xⁱ by Estrin's scheme (1960).

    Its depth grows with the logarithm of the degree: `mx.compile` fuses at most eleven operations
    in depth, so Horner's scheme would be cut into one kernel for every five coefficients.
    """
    terms: list[Any] = list(coefficients)
    while len(terms) > 1:
        pairs = zip(terms[0::2], terms[1::2], strict=False)
        rest = terms[-1:] if len(terms) % 2 else []
        terms = [low + high * x for low, high in pairs] + rest
        x = x * x
    return terms[0]
