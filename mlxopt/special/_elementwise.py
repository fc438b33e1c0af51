"""Functions of arrays entry by entry: their dtype, compilation and derivatives."""

from __future__ import annotations

import functools
from collections.abc import Callable
from numbers import Real
from typing import Any, TypeAlias

import mlx.core as mx

from mlxopt._operation import (
    Function,
    batched,
    in_forward_rule,
    lowering,
    operation,
    replaced,
    straight_through,
)
from mlxopt._platform import compiler

Number: TypeAlias = mx.array | float
Pair: TypeAlias = tuple[mx.array, mx.array]
Unary: TypeAlias = Callable[[mx.array], mx.array]
Binary: TypeAlias = Callable[[mx.array, mx.array], mx.array]
OfNumber: TypeAlias = Callable[[Number], mx.array]
OfNumbers: TypeAlias = Callable[[Number, Number], mx.array]

_BLOCK = 2**18  # elements


def elementwise(slope: Binary, poles: bool = False) -> Callable[[Unary], OfNumber]:
    """Return a decorator that gives a function of one array its derivative, in every mode.

    The decorated function is compiled, sees float32 or float64 only, can use operations without a
    derivative (shifts, `view`), and returns an array of the shape of its argument.

    Args:
        slope: `slope(x, y)`, the derivative at x where the value is y; built from functions that
            have derivatives themselves, so that every order exists.
        poles: whether the slope is infinite or NaN where the value is. Then a zero cotangent or
            tangent gives zero there in place of 0 · ∞ = NaN, so that
            `mx.where(x > 0, log(x), 0)` has derivatives at 0.
    """

    def decorate(values: Unary) -> OfNumber:
        def product(arguments: Any, changes: Any, outputs: Any) -> mx.array:
            (x,), (change,), (y,) = arguments, changes, outputs
            if not poles:
                return change * slope(x, y)
            fine = mx.logical_or(change != 0, mx.abs(y) < mx.inf)
            # Elsewhere the slope is taken at 1, so that its own derivatives have no 0 · ∞ either.
            one = mx.ones_like(x)
            product = change * slope(mx.where(fine, x, one), mx.where(fine, y, one))
            return mx.where(fine, product, mx.zeros_like(product))

        kernels = fused(values)
        # The Jacobian is diagonal, so one product serves both modes.
        rule = operation(lambda x: _in_blocks(kernels, mx.stop_gradient(x)), product, product)
        plain = _plain(values)
        rule = replaced(rule, lambda x: straight_through(plain(x), product, x))

        @functools.wraps(values)
        def function(x: Number) -> mx.array:
            return in_working_precision(rule, x)

        return function

    return decorate


def pairwise(slopes: Callable[[mx.array, mx.array], Pair]) -> Callable[[Binary], OfNumbers]:
    """Return a decorator like `elementwise` for a function of two arrays, which broadcast.

    Args:
        slopes: `slopes(a, b)`, the derivatives in a and in b.
    """

    def decorate(values: Binary) -> OfNumbers:
        def vjp(pair: Any, cotangents: Any, outputs: Any) -> list[mx.array]:
            return [cotangents[0] * slope for slope in slopes(*pair)]

        kernels = fused(values)
        rule = operation(lambda a, b: kernels(mx.stop_gradient(a), mx.stop_gradient(b)), vjp)
        plain = _plain(values)

        def products(pair: Any, changes: Any, _: Any) -> mx.array:
            one, two = (d * slope for d, slope in zip(changes, slopes(*pair), strict=True))
            return one + two

        rule = replaced(rule, lambda a, b: straight_through(plain(a, b), products, a, b))

        @functools.wraps(values)
        def function(a: Number, b: Number) -> mx.array:
            return in_working_precision(lambda a, b: rule(*mx.broadcast_arrays(a, b)), a, b)

        return function

    return decorate


def _plain(values: Function) -> Function:
    """Return MLX's function of this name, which the engine computes to all digits, or `values`."""
    own = getattr(mx, values.__name__, None)
    return values if own is None else own


def fused(values: Function) -> Function:
    """Return `values` compiled, but computed op by op in a jvp rule, see `in_forward_rule`."""
    compiled = mx.compile(values)

    @functools.wraps(values)
    def function(*args: mx.array) -> Any:
        compiler.start()
        return (values if in_forward_rule() or lowering.get() else compiled)(*args)

    return function


def _in_blocks(kernels: Function, x: mx.array) -> mx.array:
    """Return `kernels(x)`, on the CPU a block at a time.

    The arrays between two kernels then fit in the cache: at 10⁷ elements that saves a quarter to a
    half of the time.
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
    for x in args:
        is_array = isinstance(x, mx.array)
        if x.dtype == mx.complex64 if is_array else not isinstance(x, Real):
            raise TypeError(
                f"expected an mx.array of real numbers, or a number; got "
                f"{x.dtype if is_array else type(x).__qualname__}."
            )
    dtypes = [x.dtype for x in args if isinstance(x, mx.array)]
    dtype = functools.reduce(_promoted, dtypes) if dtypes else mx.float32
    if not mx.issubdtype(dtype, mx.floating):
        dtype = mx.float32
    working = mx.float64 if dtype == mx.float64 else mx.float32
    arrays = [
        x.astype(working) if isinstance(x, mx.array) else mx.array(float(x), working) for x in args
    ]
    return function(*arrays).astype(dtype)


def _promoted(a: mx.Dtype, b: mx.Dtype) -> mx.Dtype:
    return mx.result_type(mx.zeros((), a), mx.zeros((), b))


def on_gpu() -> bool:
    """Return whether the default device is a GPU; MLX's own float32 kernels are accurate there."""
    return mx.default_device().type == mx.gpu


def waist(x: mx.array) -> mx.array:
    """Return x, and keep `mx.compile` from fusing across it.

    MLX cuts a graph into kernels every eleven operations in depth, and each new kernel costs 0.4 s
    of g++ on the CPU. A cut across a wide expression leaves a kernel for every branch; a waist cuts
    where one array passes, so that functions share kernels.
    """
    return x if lowering.get() else _barrier(x)  # pyright: ignore[reportReturnType] - as a tree


# A custom function without a rule would be no operation of its own.
_barrier = mx.custom_function(lambda x: x)
_barrier.vmap(batched(_barrier))


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


def numbers(text: str) -> tuple[float, ...]:
    """Return the numbers of a table."""
    return tuple(map(float, text.split()))


def rational(table: dict[mx.Dtype, Any], x: mx.array) -> mx.array:
    """Return P(x) / Q(x); the table holds the coefficients of P and Q for each dtype."""
    above, below = table[x.dtype]
    return waist(polynomial(above, x) / polynomial(below, x))
