"""erf, erfinv, erfc and the normal distribution function, from one approximation of the tail.

Notation: φ and Φ are the density and the distribution function of the standard normal law, z ≥ 0.
Laplace's continued fraction of the inverse Mills ratio (Abramowitz and Stegun 26.2.14),

    h(z) = φ(z) / Φ(-z) = z + u,   u = 1 / (z + K),   K = 2 / (z + L),   L = 3 / (z + 4 / (z + …)),

is cut at L, which one rational function approximates on the whole half line. h gives the values,
and u, K and L the derivatives of log Φ without cancellation in the tail:

    (log Φ)' = h,   h' = -h u,   (h u)' = -h w,   u' = u² - w,   w = u² + h u - 1 = u² K (L - K).

L and erf(x)/x are interpolated in 60 digits at Chebyshev nodes, mapped to the half line by
z = c (1 + t) / (1 - t); tests/fit_special.py makes the tables and measures their errors.
"""

from __future__ import annotations

import math

import mlx.core as mx

from mlxopt.special._elementwise import elementwise, numbers, polynomial, rational, waist
from mlxopt.special._exp import exp, exp_values

# erf(x)/x in x², |x| ≤ ½.
ERF = {
    mx.float32: (1.12837917, -0.37612609, 0.112828314, -0.0267577327, 0.00471908257),
    mx.float64: numbers("""
        1.1283791670955126 -0.37612638903183476 0.11283791670925353 -0.026866170632887928
        0.00522397737302147 -0.0008548297753674966 0.00012053335124353741 -1.484584925970787e-05
        1.4725865480556744e-06
    """),
}
# L(z): numerator, denominator.
TAIL = {
    mx.float32: (
        (1.59576912, 0.736253693, 0.189163775, 0.0273092644, 0.00189675582),
        (1.0, 0.745580676, 0.283957123, 0.0654855019, 0.00910499045, 0.000632245616),
    ),
    mx.float64: (
        numbers("""
            1.5957691216057306 1.4875042296348338 0.73572422898652 0.24142469838747194
            0.05685576836485722 0.00986456268452315 0.00125508121317599 0.00011286263524102038
            6.533589025931322e-06 1.8731100167182207e-07
        """),
        numbers("""
            1.0 1.2163571245264895 0.7602589293325617 0.31314606279518337 0.09288976524047526
            0.02058177584527471 0.003437423188654911 0.0004270718417004262 3.787062655374677e-05
            2.177863008124532e-06 6.243700055759916e-08
        """),
    ),
}
# Beyond, exp(-x²) is 0 in both dtypes, L(z) is 3/z (its error moves h by less than a rounding), and
# a power of z could overflow.
_FAR = 1e3
_WINITZKI = 0.147


def _near(x: mx.array) -> mx.array:
    """Return |x|, at most 1,000."""
    return waist(mx.minimum(mx.abs(x), _FAR))


def _gaussian_values(z: mx.array, scale: float) -> mx.array:
    """Return exp(-scale · z²) for 0 ≤ z ≤ 1,000 and scale 1 or ½."""
    # The rounding of z² would move the result by up to 700 units in the last place. It is computed
    # exactly from the halves of z (Dekker 1971) and put back to first order.
    split = z * (2.0**27 + 1 if z.dtype == mx.float64 else 2.0**12 + 1)
    high = split - (split - z)
    square = z * z
    rest = (high * high - square) + (z + high) * (z - high)
    return waist(exp_values(-square if scale == 1 else -scale * square) * (1 - scale * rest))


def _half_tail(near: mx.array) -> mx.array:
    """Return h(z) for 0 ≤ z ≤ 1,000."""
    return near + waist(1 / (near + 2 / (near + rational(TAIL, near))))


def _fraction(x: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """Return (u, K, L) at z = |x|, however far."""
    z = mx.abs(x)
    last = waist(rational(TAIL, _near(x)) / mx.maximum(z * (1 / _FAR), 1))
    k = 2 / (z + last)
    return waist(1 / (z + k)), k, last


def _upper_erfc(z: mx.array) -> mx.array:
    """Return erfc(z) = 2 Φ(-√2 z) for 0 ≤ z ≤ 1,000."""
    root = waist(mx.minimum(z * math.sqrt(2), _FAR))
    return math.sqrt(2 / math.pi) * _gaussian_values(z, 1.0) / _half_tail(root)


def _density_values(near: mx.array) -> mx.array:
    """Return φ(near) for 0 ≤ near ≤ 1,000."""
    return math.sqrt(0.5 / math.pi) * _gaussian_values(near, 0.5)


@elementwise(lambda x, y: -2 * x * y)
def _bell(x: mx.array) -> mx.array:
    """Return exp(-x²)."""
    return _gaussian_values(_near(x), 1.0)


@elementwise(lambda x, y: -x * y)
def _density(x: mx.array) -> mx.array:
    """Return φ(x)."""
    return _density_values(_near(x))


@elementwise(lambda x, y: (2 / math.sqrt(math.pi)) * _bell(x))
def erf(x: mx.array) -> mx.array:
    """Return the error function 2/√π ∫₀ˣ exp(-t²) dt.

    x P(x²) where |x| < ½, else 1 - erfc|x| with the sign of x.

    >>> import mlx.core as mx
    >>> erf(mx.array([-1.0, 0.0, 1e-20]))
    array([-0.842701, 0, 1.12838e-20], dtype=float32)
    """
    z = _near(x)
    inner = x * waist(polynomial(ERF[x.dtype], mx.square(mx.minimum(z, 0.5))))
    outer = 1 - _upper_erfc(z)
    return mx.where(z < 0.5, inner, mx.where(x < 0, -outer, outer))


@elementwise(lambda x, y: (-2 / math.sqrt(math.pi)) * _bell(x))
def erfc(x: mx.array) -> mx.array:
    """Return 1 - erf(x), to all its digits in the far tail too.

    >>> import mlx.core as mx
    >>> erfc(mx.array([-1.0, 0.0, 1.0, 9.0]))
    array([1.8427, 1, 0.157299, 4.13703e-37], dtype=float32)
    """
    upper = _upper_erfc(_near(x))
    return mx.where(x < 0, 2 - upper, upper)


def _erfinv_slope(x: mx.array, y: mx.array) -> mx.array:
    return (0.5 * math.sqrt(math.pi)) * exp(y * y)


@elementwise(_erfinv_slope, poles=True)
def erfinv(x: mx.array) -> mx.array:
    """Return the y with erf(y) = x: ±∞ at ±1, NaN beyond.

    A start good to 2e-3 (Winitzki 2008, "A handy approximation for the error function and its
    inverse") and two or three steps of Halley's method, on erf where |x| < ½ and else on erfc.

    >>> import mlx.core as mx
    >>> erfinv(mx.array([-1.0, 0.0, 0.5]))
    array([-inf, 0, 0.476936], dtype=float32)
    """
    a = waist(mx.minimum(mx.abs(x), 1 - mx.finfo(x.dtype).eps / 2))
    rest = 1 - a
    log = mx.log(rest * (1 + a))
    half = 2 / (math.pi * _WINITZKI) + 0.5 * log
    ratio = -log / _WINITZKI
    y = waist(mx.sqrt(ratio / (half + mx.sqrt(half * half + ratio))))
    for _ in range(3 if x.dtype == mx.float64 else 2):
        inner = y * waist(polynomial(ERF[x.dtype], mx.square(mx.minimum(y, 0.5)))) - a
        gap = waist(mx.where(a < 0.5, inner, rest - _upper_erfc(y)))
        u = gap * ((0.5 * math.sqrt(math.pi)) * exp_values(y * y))
        y = waist(y - u / (1 + y * u))
    y = mx.where(mx.abs(x) < 1, y, mx.where(mx.abs(x) == 1, mx.inf, mx.nan))
    return mx.where(x < 0, -y, y)


@elementwise(lambda x, y: _density(x))
def normal_cdf(x: mx.array) -> mx.array:
    """Return Φ(x), the probability that a standard normal variable is below x.

    ½ + ½ erf(x/√2) where |x| < ½, else from the tail.

    >>> import mlx.core as mx
    >>> normal_cdf(mx.array([-10.0, 0.0, 1.96]))
    array([7.61985e-24, 0.5, 0.975002], dtype=float32)
    """
    z = _near(x)
    half_erf = waist(polynomial(ERF[x.dtype], 0.5 * mx.square(mx.minimum(z, 0.5))))
    inner = 0.5 + x * (math.sqrt(0.125) * half_erf)
    lower = _density_values(z) / _half_tail(z)
    return mx.where(z < 0.5, inner, mx.where(x < 0, lower, 1 - lower))


@elementwise(lambda x, y: _hazard(x), poles=True)  # infinite at -∞
def normal_log_cdf(x: mx.array) -> mx.array:
    """Return log Φ(x), finite and exact where Φ(x) underflows, with derivatives that are too.

    >>> import mlx.core as mx
    >>> normal_log_cdf(mx.array([-100.0, 0.0, 6.0]))
    array([-5005.52, -0.693147, -9.86588e-10], dtype=float32)
    >>> mx.grad(normal_log_cdf)(mx.array(-100.0))
    array(100.01, dtype=float32)
    """
    # log Φ(-z) = -z²/2 - log(√(2π) h(z)): two terms of one sign.
    z = mx.abs(x)
    tail = z + _fraction(x)[0]
    left = -(0.5 * z) * z - mx.log(math.sqrt(2 * math.pi) * tail)
    right = mx.log1p(-(_density_values(_near(x)) / tail))
    return mx.where(x < 0, left, right)


def _right_hazard(x: mx.array, tail: mx.array) -> mx.array:
    """Return φ(x) / Φ(x) where x ≥ 0, given h(x)."""
    density = _density_values(_near(x))
    return density / (1 - density / tail)


@elementwise(lambda x, y: -_bend(x))
def _hazard(x: mx.array) -> mx.array:
    """Return h(-x) = φ(x) / Φ(x) for every x."""
    tail = waist(mx.abs(x) + _fraction(x)[0])
    return mx.where(x < 0, tail, _right_hazard(x, tail))


def _bend_slope(x: mx.array, y: mx.array) -> mx.array:
    return -_hazard(x) * _third(x)


@elementwise(_bend_slope)
def _bend(x: mx.array) -> mx.array:
    """Return h u = -(log Φ)'' for every x."""
    u = _fraction(x)[0]
    tail = waist(mx.abs(x) + u)
    hazard = _right_hazard(x, tail)
    return mx.where(x < 0, tail * u, hazard * (mx.minimum(x, _FAR) + hazard))


@elementwise(lambda x, y: y * y - _third(x))
def _excess(x: mx.array) -> mx.array:
    """Return u = x + φ(x) / Φ(x) for x ≤ 1,000; beyond, multiplied by φ(x) = 0, u(1,000)."""
    u = _fraction(x)[0]
    right = mx.minimum(x, _FAR) + _right_hazard(x, mx.abs(x) + u)
    return mx.where(x < 0, u, right)


def _third_slope(x: mx.array, y: mx.array) -> mx.array:
    u = _excess(x)
    return 2 * u * (u * u - y) - _hazard(x) * y


@elementwise(_third_slope)
def _third(x: mx.array) -> mx.array:
    """Return w = u² + h u - 1, with the u of `_excess`."""
    u, k, last = _fraction(x)
    hazard = _right_hazard(x, mx.abs(x) + u)
    right = mx.minimum(x, _FAR) + hazard
    return mx.where(x < 0, (u * u) * (k * (last - k)), right * (right + hazard) - 1)
