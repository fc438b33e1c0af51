"""lgamma, digamma, trigamma and betaln, for positive arguments.

Near the zeros of log Γ and ψ the zero is factored out, and a rational function approximates the
other factor: with s = x - 1 on [0, 3],

    log Γ(1 + s) = s (s - 1) R(s),      ψ(1 + s) = (s - s₀) D(s),

and 0 < x < 1 is reduced to it by Γ(x) = Γ(1 + x) / x. From 4 on Stirling's series (Abramowitz and
Stegun 6.1.40 and 6.3.18) are used, with a polynomial in 1/x² fitted to the remainder:

    log Γ(x) = (x - ½)(log x - 1) + ½ log 2π - ½ + A(1/x²) / x,
    ψ(x) = log x - 1/(2x) - B(1/x²) / x².

R, D, A and B are interpolated in 60 digits at Chebyshev nodes; tests/fit_special.py makes the
tables and measures their errors.
"""

from __future__ import annotations

import functools
import math

import mlx.core as mx

from mlxopt.special._elementwise import (
    Number,
    OfNumber,
    Pair,
    elementwise,
    numbers,
    on_gpu,
    pairwise,
    polynomial,
    rational,
    waist,
)

# R(s): numerator, denominator.
LGAMMA = {
    mx.float32: (
        (0.577215656, 0.753337431, 0.264075586, 0.0227340421, 0.000120731584),
        (1.0, 1.73000903, 0.923283373, 0.165257673, 0.00723842278),
    ),
    mx.float64: (
        numbers("""
            0.5772156649015329 1.9184491240724415 2.5482869266894705 1.7353784145854594
            0.6475379331820537 0.1315475077115862 0.013646965686628166 0.0006254321099418796
            9.052065947579509e-06 8.282713446174468e-09
        """),
        numbers("""
            1.0 3.748513119379957 5.738202953731988 4.6346276830093025 2.1337997969050173
            0.5661283333714182 0.08367193812940361 0.006335723831552411 0.0002076181974075422
            1.979616037398412e-06
        """),
    ),
}
# D(s): numerator, denominator.
DIGAMMA = {
    mx.float32: (
        (1.25038013, 1.33419279, 0.375822623, 0.0260760071, 0.000100177192),
        (1.0, 1.75057637, 0.89537785, 0.150855123, 0.00625070373),
    ),
    mx.float64: (
        numbers("""
            1.2503801375034054 2.0640550338033776 1.260774479611023 0.36415756639427715
            0.05217880373490824 0.0035208499918960136 9.402487088254612e-05 6.166032892141459e-07
        """),
        numbers("""
            1.0 2.3342888349401787 2.002117037199505 0.8264815629370313 0.1772408668376875
            0.019594361003348215 0.0010275635014212801 2.0801258837747944e-05 9.313922576087214e-08
        """),
    ),
}
# A(1/x²), which log Γ multiplies by 1/x, and B(1/x²), which ψ multiplies by 1/x²; x ≥ 4.
STIRLING = {
    mx.float32: (0.0833333293, -0.00277661487, 0.000742721429),
    mx.float64: numbers("""
        0.08333333333333331 -0.0027777777777176055 0.0007936507676291937 -0.0005952337085914222
        0.0008413741438815142 -0.0018988790775843355 0.005842830219816523 -0.018529842349409912
        0.03686739114470535
    """),
}
STIRLING_SLOPE = {
    mx.float32: (0.0833333061, -0.00832544608, 0.00362035707),
    mx.float64: numbers("""
        0.08333333333333295 -0.008333333332362195 0.003968253547733588 -0.004166595597256864
        0.007569628806402783 -0.020787300608348224 0.07392821575261915 -0.25668496075487657
        0.5365319953712206
    """),
}
# s₀ = 0.46…, where ψ(1 + s₀) = 0, less a float32 number near it.
_ROOT = (0.46163177490234375, 3.7006601859126265e-07)
_LARGE = 4.0
# Polygamma functions: terms summed before the asymptotic series (Abramowitz and Stegun 6.4.11), and
# its Bernoulli numbers B₂, B₄, ….
_STEPS = 8
_BERNOULLI = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6, -3617 / 510)


def _small(x: mx.array) -> mx.array:
    """Return s in [0, 3]: x where x < 1, else x - 1, exactly; 3 from x = 4 on."""
    # Without the waist the comparison that callers repeat would be a kernel of its own.
    x = waist(x)
    return waist(mx.minimum(mx.where(x < 1, x, x - 1), _LARGE - 1))


def _inverse(x: mx.array) -> mx.array:
    """Return 1/x where x ≥ 4, else ¼."""
    return waist(1 / mx.maximum(x, _LARGE))


def _stirling(x: mx.array) -> mx.array:
    """Return A(1/x²)/x = log Γ(x) - (x - ½)(log x - 1) - ½ log 2π + ½ where x ≥ 4."""
    y = _inverse(x)
    return y * waist(polynomial(STIRLING[x.dtype], mx.square(y)))


def _lgamma_values(x: mx.array) -> mx.array:
    s = _small(x)
    logarithm = mx.log(x)
    near = s * (s - 1) * rational(LGAMMA, s)
    near = near + mx.where(x < 1, -logarithm, mx.zeros_like(x))  # 0 at 1, not -0
    far = (x - 0.5) * (logarithm - 1) + ((0.5 * math.log(2 * math.pi) - 0.5) + _stirling(x))
    return mx.where(x < _LARGE, near, far)


@elementwise(lambda x, y: digamma(x), poles=True)
def lgamma(x: mx.array) -> mx.array:
    """Return log Γ(x) for x ≥ 0 (infinite at 0), NaN below.

    Within 4 units in the last place, and near the zeros at 1 and 2 of the value itself. The
    derivatives are `digamma`, `trigamma` and on, to any order.

    >>> import mlx.core as mx
    >>> lgamma(mx.array([0.0, 0.5, 1.0, 100.0]))
    array([inf, 0.572365, 0, 359.134], dtype=float32)
    """
    return _lgamma_values(x)


@elementwise(lambda x, y: trigamma(x), poles=True)
def digamma(x: mx.array) -> mx.array:
    """Return ψ(x), the derivative of log Γ, for x ≥ 0 (-inf at 0), NaN below.

    Within 4 units in the last place, and near the zero at 1.46 of the value itself.

    >>> import mlx.core as mx
    >>> digamma(mx.array([1.0, 1.461632, 10.0]))
    array([-0.577216, -1.27392e-07, 2.25175], dtype=float32)
    """
    s, y = _small(x), _inverse(x)
    near = ((s - _ROOT[0]) - _ROOT[1]) * rational(DIGAMMA, s)
    near = near - mx.where(x < 1, 1 / mx.abs(x), mx.zeros_like(x))  # -∞ at -0 as at 0
    square = y * y
    far = mx.log(x) - (0.5 * y + square * waist(polynomial(STIRLING_SLOPE[x.dtype], square)))
    return mx.where(x < 0, mx.full(x.shape, mx.nan, x.dtype), mx.where(x < _LARGE, near, far))


def trigamma(x: Number) -> mx.array:
    """Return ψ′(x), the second derivative of log Γ, for x ≥ 0 (infinite at 0), NaN below.

    A sum of positive terms, 1/(x + k)² for k < 8 and the asymptotic series from there.

    >>> import mlx.core as mx
    >>> trigamma(mx.array([0.0, 1.0, 10.0]))
    array([inf, 1.64493, 0.105166], dtype=float32)
    """
    return _polygamma(1)(x)


@functools.cache
def _polygamma(order: int) -> OfNumber:
    """Return the polygamma function of this order ≥ 1; its derivative is that of the next order."""
    sign = 1.0 if order % 2 else -1.0
    tail = tuple(
        b * math.factorial(2 * j + order - 1) / math.factorial(2 * j)
        for j, b in enumerate(_BERNOULLI, 1)
    )

    @elementwise(lambda x, y: _polygamma(order + 1)(x), poles=True)
    def polygamma(x: mx.array) -> mx.array:
        # Without the waist the terms common to two orders would be a kernel for each step.
        x = waist(x)
        y = 1 / (x + _STEPS)
        series = waist(polynomial(tail, y * y))
        series = math.factorial(order - 1) + y * (math.factorial(order) / 2 + y * series)
        terms = [_power(1 / (x + k), order + 1) for k in range(_STEPS)]
        # The small terms first.
        while len(terms) > 1:
            terms = [a + b for a, b in zip(terms[0::2], terms[1::2], strict=True)]
        value = sign * (math.factorial(order) * waist(terms[0]) + _power(y, order) * series)
        return mx.where(x < 0, mx.full(x.shape, mx.nan, x.dtype), value)

    return polygamma


def _power(x: mx.array, exponent: int) -> mx.array:
    """Return x to a whole power ≥ 1 by products, which fuse better than mx.power."""
    half = _power(mx.square(x), exponent // 2) if exponent > 1 else x
    return half * x if exponent % 2 and exponent > 1 else half


def _betaln_slopes(a: mx.array, b: mx.array) -> Pair:
    total = digamma(a + b)
    return digamma(a) - total, digamma(b) - total


@pairwise(_betaln_slopes)
def betaln(a: mx.array, b: mx.array) -> mx.array:
    """Return log B(a, b) = log Γ(a) + log Γ(b) - log Γ(a + b) for a, b > 0, which broadcast.

    Where an argument is large the sum cancels, so from 4 on the leading terms of Stirling's series
    are taken out first (Didonato and Morris 1992, "Algorithm 708", sections 7 and 8). In float64,
    and in float32 on a GPU, the error is up to 20 units in the last place of
    max(|result|, |log Γ(min(a, b))|), and 1e-15 near the zeros of log B. On the CPU float32 is
    computed in float64 and right to 1 unit.

    >>> import mlx.core as mx
    >>> betaln(mx.array([1.0, 1e-3, 5.0]), 1e8)
    array([-18.4207, 6.88876, -88.9253], dtype=float32)
    """
    working = a.dtype if on_gpu() else mx.float64
    small = mx.minimum(a.astype(working), b.astype(working))
    large = mx.maximum(a.astype(working), b.astype(working))
    total = small + large
    three = mx.stack([small, large, total])
    log_gamma, stirling = _lgamma_values(three), _stirling(three)
    few = (log_gamma[0] + log_gamma[1]) - log_gamma[2]
    rest = stirling[1] - stirling[2]
    shrink = mx.log1p(small / large)
    # log Γ(large) - log Γ(total) is of one sign, and so is each term but the least.
    mixed = log_gamma[0] - ((large - 0.5) * shrink + small * (mx.log(total) - 1) - rest)
    many = ((0.5 * math.log(2 * math.pi) - 0.5 * mx.log(large)) + (stirling[0] + rest)) - (
        (small - 0.5) * mx.log1p(large / small) + large * shrink
    )
    value = mx.where(large < _LARGE, few, mx.where(small < _LARGE, mixed, many))
    return value.astype(a.dtype)
