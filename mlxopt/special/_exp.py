"""exp, expm1 and the logarithms."""

from __future__ import annotations

import math

import mlx.core as mx

from mlxopt._operation import lowering
from mlxopt.special._elementwise import elementwise, on_gpu, polynomial, waist

# (eʳ - 1 - r) / r² on |r| ≤ ln 2, interpolated at the Chebyshev nodes: relative error 4e-9.
EXP = (0.5, 0.1666667, 0.04166667, 0.00833277276, 0.0013888329, 0.000200742391, 2.50343445e-05)
_LN4 = (1.38671875, 2 * math.log(2) - 1.38671875)  # 9 bits, so that its multiples are exact
_ROUND = 1.5 * 2.0**23  # adding and subtracting it rounds a small float32 to an integer
# MLX's own by another name: while a loss is called, `mx.expm1` can be `expm1` below.
_expm1, _log2, _log10 = mx.expm1, mx.log2, mx.log10


def exp_values(x: mx.array) -> mx.array:
    """Return eˣ for x of float32 or float64, without a derivative."""
    return mx.exp(x) if lowering.get() else waist(_exp_kernels(waist(x)))


def _exp_kernels(x: mx.array) -> mx.array:
    if x.dtype == mx.float64:
        # expm1 is the C library's. Below -700 its inverse would underflow too soon.
        size = mx.abs(x)
        low = x < -700
        grown = 1 + _expm1(mx.where(low, size - 64, size))
        fallen = 1 / grown
        return mx.where(x < 0, mx.where(low, fallen * math.exp(-64), fallen), grown)
    if on_gpu():
        return mx.exp(x)
    # eˣ = 4ⁿ eʳ with |r| ≤ ln 2. Within these bounds on n, 2ⁿ is a float32 whose square, taken
    # last, overflows and underflows where eˣ does, with one rounding. Three kernels: the bits of
    # 2ⁿ, then r (for which n is read off the bits again), then the polynomial.
    n = (x * (0.5 / math.log(2)) + _ROUND) - _ROUND
    bits = waist((mx.minimum(mx.maximum(n, -76), 65).astype(mx.int32) + 127) << 23)
    n = ((bits >> 23) - 127).astype(mx.float32)
    r = waist(mx.minimum(mx.maximum((x - n * _LN4[0]) - n * _LN4[1], -1), 1))
    power = mx.view(bits, mx.float32)
    return (1 + (r + r * r * polynomial(EXP, r))) * power * power


@elementwise(lambda x, y: y, poles=True)
def exp(x: mx.array) -> mx.array:
    """Return eˣ, within 2 units in the last place, with overflow and underflow as in C.

    On the CPU MLX's own is good to 7 digits in float64 and to 31 units in float32, and several
    times slower on long arrays. The float32 algorithm is the classical one (Cody and Waite 1980,
    "Software Manual for the Elementary Functions", ch. 6): reduce by a multiple of 2 ln 2 held in
    two parts, a polynomial of degree 8, then a power of two made from its bits. In float64 it is
    1 + expm1|x| or its inverse, of the C library's expm1.

    >>> import mlx.core as mx
    >>> exp(mx.array([-1.0, 0.0, 1.0, 100.0]))
    array([0.367879, 1, 2.71828, inf], dtype=float32)
    """
    return exp_values(x)


@elementwise(lambda x, y: exp(x), poles=True)
def expm1(x: mx.array) -> mx.array:
    """Return eˣ - 1 to all its digits near 0 too, with a derivative that is right in float64.

    >>> import mlx.core as mx
    >>> expm1(mx.array([1e-8, 1.0]))
    array([1e-08, 1.71828], dtype=float32)
    """
    return _expm1(x)


@elementwise(lambda x, y: 1 / x, poles=True)
def log(x: mx.array) -> mx.array:
    """Return the natural logarithm: -inf at 0, NaN below.

    >>> import mlx.core as mx
    >>> x = mx.array([0.0, 1.0])
    >>> log(x)
    array([-inf, 0], dtype=float32)
    >>> mx.grad(lambda x: mx.where(x > 0, log(x), 0).sum())(x)  # mx.log gives NaN at 0
    array([0, 1], dtype=float32)
    """
    return mx.log(x)


@elementwise(lambda x, y: 1 / (1 + x), poles=True)
def log1p(x: mx.array) -> mx.array:
    """Return log(1 + x) to all its digits near 0 too.

    >>> import mlx.core as mx
    >>> log1p(mx.array([1e-8, 1.0]))
    array([1e-08, 0.693147], dtype=float32)
    """
    return mx.log1p(x)


@elementwise(lambda x, y: (1 / math.log(2)) / x, poles=True)
def log2(x: mx.array) -> mx.array:
    """Return the logarithm to base 2, with a derivative that is right in float64.

    >>> import mlx.core as mx
    >>> log2(mx.array([0.0, 1.0, 8.0]))
    array([-inf, 0, 3], dtype=float32)
    """
    return _log2(x)


@elementwise(lambda x, y: (1 / math.log(10)) / x, poles=True)
def log10(x: mx.array) -> mx.array:
    """Return the logarithm to base 10, with a derivative that is right in float64.

    >>> import mlx.core as mx
    >>> log10(mx.array([0.0, 1.0, 1000.0]))
    array([-inf, 0, 3], dtype=float32)
    """
    return _log10(x)
