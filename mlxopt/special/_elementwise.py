"""What every function of one array shares: its dtype and its derivatives in all of MLX's modes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from numbers import Real
from typing import Any, TypeAlias

import mlx.core as mx

Number: TypeAlias = mx.array | float
Values: TypeAlias = Callable[[mx.array], mx.array]
Slope: TypeAlias = Callable[[mx.array, mx.array], mx.array]

_BLOCK = 2**18  # elements
_op_by_op: ContextVar[bool] = ContextVar("_op_by_op", default=False)


def elementwise(
    slope: Slope, poles: bool = False
) -> Callable[[Values], Callable[[Number], mx.array]]:
    """Return a decorator that gives a function of one array its derivative, in every mode.

    The decorated function is compiled, sees float32 or float64 only, and may use operations
    without a derivative (shifts, `view`); what it returns has the shape of its argument.

    Args:
        slope: `slope(x, y)`, the derivative at x where the value is y, of the shape of x; built
            from functions that have derivatives themselves, so that every order exists.
        poles: whether the slope is infinite or NaN where the value is. Then a zero cotangent or
            tangent gives zero there in place of 0 · ∞ = NaN, so that
            `mx.where(x > 0, log(x), 0)` has derivatives at 0.

    MLX asks a custom function for a rule in each mode, and without one it differentiates the
    operations inside: through a shift the derivative would be zero without a word.
    """

    def decorate(values: Values) -> Callable[[Number], mx.array]:
        kernels = fused(values)

        @mx.custom_function
        def rule(x: mx.array) -> mx.array:
            return _in_blocks(kernels, mx.stop_gradient(x))  # jvp would go through the inside too

        @rule.vjp
        def _(x: mx.array, cotangent: mx.array, y: mx.array) -> mx.array:
            return _product(cotangent, x, y, slope, poles)

        @rule.jvp
        def _(x: mx.array, tangent: mx.array) -> mx.array:
            with forward_mode():
                return _product(tangent, x, apply(x), slope, poles)

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


def pairwise(
    slopes: Callable[[mx.array, mx.array], tuple[mx.array, mx.array]],
) -> Callable[[Callable[[mx.array, mx.array], mx.array]], Callable[[Number, Number], mx.array]]:
    """Return a decorator like `elementwise` for a function of two arrays, which broadcast.

    Args:
        slopes: `slopes(a, b)`, the derivatives in a and in b, of one shape with both.
    """

    def decorate(
        values: Callable[[mx.array, mx.array], mx.array],
    ) -> Callable[[Number, Number], mx.array]:
        kernels = fused(values)

        @mx.custom_function
        def rule(a: mx.array, b: mx.array) -> mx.array:
            return kernels(mx.stop_gradient(a), mx.stop_gradient(b))

        @rule.vjp
        def _(pair: tuple[mx.array, mx.array], cotangent: mx.array, y: mx.array):
            in_a, in_b = slopes(*pair)
            return cotangent * in_a, cotangent * in_b

        @rule.jvp
        def _(pair: tuple[mx.array, mx.array], tangents: tuple[mx.array, mx.array]) -> mx.array:
            with forward_mode():
                in_a, in_b = slopes(*pair)
                return tangents[0] * in_a + tangents[1] * in_b

        @rule.vmap
        def _(pair: tuple[mx.array, mx.array], axes: tuple[int | None, int | None]):
            rows = [
                x if axis is None else mx.moveaxis(x, axis, 0)
                for x, axis in zip(pair, axes, strict=True)
            ]
            return apply(*rows), 0

        def apply(a: mx.array, b: mx.array) -> mx.array:
            a, b = mx.broadcast_arrays(a, b)
            return rule(a, b)  # pyright: ignore[reportReturnType] - typed as the tree it could be

        @functools.wraps(values)
        def function(a: Number, b: Number) -> mx.array:
            return in_working_precision(apply, a, b)

        return function

    return decorate


def fused(values: Callable[..., Any]) -> Callable[..., Any]:
    """Return `values` compiled, but op by op inside `forward_mode`."""
    compiled = mx.compile(values)

    @functools.wraps(values)
    def function(*args: mx.array) -> Any:
        return values(*args) if _op_by_op.get() else compiled(*args)

    return function


@contextmanager
def forward_mode() -> Iterator[None]:
    """Compile nothing inside: MLX hands a jvp rule arrays that it does not mark as traced, so under
    `mx.vmap` a compiled function would fuse them, and a fused kernel cannot be mapped.
    """
    token = _op_by_op.set(True)
    try:
        yield
    finally:
        _op_by_op.reset(token)


def _in_blocks(kernels: Callable[..., Any], x: mx.array) -> mx.array:
    """Return `kernels(x)`, on the CPU a block at a time: what passes from kernel to kernel then
    stays in the cache, which at 10⁷ elements saves a quarter to a half of the time.
    """
    if x.size < 2 * _BLOCK or on_gpu():
        return kernels(x)
    blocks = mx.split(x.reshape(-1), list(range(_BLOCK, x.size, _BLOCK)))
    return mx.concatenate([kernels(block) for block in blocks]).reshape(x.shape)


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
    arrays = [
        x.astype(working) if isinstance(x, mx.array) else mx.array(float(x), working) for x in args
    ]
    return function(*arrays).astype(dtype)


def _kind(x: Any) -> Any:
    """Return what `x` is, or None for what the functions here do not take."""
    if isinstance(x, mx.array):
        return None if x.dtype == mx.complex64 else mx.array
    return float if isinstance(x, Real) else None


def _promoted(a: mx.Dtype, b: mx.Dtype) -> mx.Dtype:
    return mx.result_type(mx.zeros((), a), mx.zeros((), b))


def _product(change: mx.array, x: mx.array, y: mx.array, slope: Slope, poles: bool) -> mx.array:
    """Return change · slope(x, y); with `poles`, zero where change is 0 and y is not finite."""
    if not poles:
        return change * slope(x, y)
    fine = mx.logical_or(change != 0, mx.abs(y) < mx.inf)
    # The slope is taken elsewhere there, so that its own derivatives have no 0 · ∞ either.
    one = mx.ones_like(x)
    product = change * slope(mx.where(fine, x, one), mx.where(fine, y, one))
    return mx.where(fine, product, mx.zeros_like(product))


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
