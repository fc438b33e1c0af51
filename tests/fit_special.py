"""Make the tables of mlxopt/special: `python tests/fit_special.py` prints them with their errors.

Each is a rational function, or a polynomial, that agrees with the true function at as many
Chebyshev nodes as it has coefficients. The equations for the coefficients are linear and solved in
60 digits; the error is within a small factor of the best possible (Powell 1967, "On the maximum
errors of polynomial approximations defined by interpolation and by least squares criteria").
"""

import mpmath
from mpmath import mp, mpf

DIGITS = 60
SINGLE, DOUBLE = "mx.float32", "mx.float64"


def nodes(count):
    """Return the Chebyshev nodes on [-1, 1], from the right."""
    return [mpmath.cos(mp.pi * (2 * i + 1) / (2 * count)) for i in range(count)]


def interpolate(function, points, above, below):
    """Return (numerator, denominator) of degrees `above` and `below`, constant term 1 below."""
    rows = [
        [x**j for j in range(above + 1)] + [-function(x) * x**j for j in range(1, below + 1)]
        for x in points
    ]
    found = list(mpmath.lu_solve(mpmath.matrix(rows), mpmath.matrix([function(x) for x in points])))
    return found[: above + 1], [mpf(1), *found[above + 1 :]]


def value(coefficients, x):
    total = mpf(0)
    for c in reversed(coefficients):
        total = total * x + c
    return total


def exp_rest(r):
    """(eʳ - 1 - r) / r²."""
    if abs(r) < mpf(10) ** -20:
        return mpf(1) / 2 + r / 6
    return (mpmath.expm1(r) - r) / r**2


def log1p_rest(u):
    """(artanh(s) / s - 1) / s² at s = √u."""
    if u < mpf(10) ** -20:
        return mpf(1) / 3 + u / 5
    s = mpmath.sqrt(u)
    return (mpmath.atanh(s) / s - 1) / u


def erf_rest(y):
    """erf(x)/x at x = √y."""
    x = mpmath.sqrt(y)
    return mpmath.erf(x) / x if x else 2 / mpmath.sqrt(mp.pi)


def tail(z):
    """L(z) of special/_erf.py, by its definition; where that cancels, by the fraction."""
    if z > 30:
        rest = mpf(0)
        for j in range(400, 2, -1):
            rest = j / (z + rest)
        return rest
    with mp.workdps(DIGITS + 40):
        hazard = mpmath.npdf(z) / mpmath.ncdf(-z)
        return 2 / (1 / (hazard - z) - z) - z


def hazard(z, last):
    return z + 1 / (z + 2 / (z + last))


def lgamma_rest(s):
    """log Γ(1 + s) / (s (s - 1))."""
    if s in (0, 1):
        return mp.euler if s == 0 else 1 - mp.euler
    return mpmath.loggamma(1 + s) / (s * (s - 1))


def digamma_root():
    return mpmath.findroot(lambda s: mpmath.digamma(1 + s), mpf("0.4616321449683623"))


def digamma_rest(s):
    """ψ(1 + s) / (s - s₀)."""
    return mpmath.digamma(1 + s) / (s - digamma_root())


def stirling(v):
    """A(v), v = 1/x²."""
    x = 1 / mpmath.sqrt(v)
    leading = (x - mpf(1) / 2) * mpmath.log(x) - x + mpmath.log(2 * mp.pi) / 2
    return (mpmath.loggamma(x) - leading) * x


def stirling_slope(v):
    """B(v), v = 1/x²."""
    x = 1 / mpmath.sqrt(v)
    return (mpmath.log(x) - 1 / (2 * x) - mpmath.digamma(x)) / v


def on_interval(function, low, high, above, below=0):
    """Return (numerator, denominator, the largest relative error on [low, high])."""
    middle, half = (mpf(low) + high) / 2, (mpf(high) - low) / 2
    points = [middle + half * t for t in nodes(above + below + 1)]
    p, q = interpolate(function, points, above, below)
    grid = [middle + half * t for t in nodes(203)]
    return p, q, max(abs(value(p, x) / value(q, x) / function(x) - 1) for x in grid)


def on_half_line(scale, above, below):
    """Return (numerator, denominator) of L and the largest relative error of h."""
    points = [scale * (1 + t) / (1 - t) for t in nodes(above + below + 1)]
    p, q = interpolate(tail, points, above, below)
    grid = [2 * (1 + t) / (1 - t) for t in nodes(203)]
    errors = [
        hazard(z, value(p, z) / value(q, z)) / hazard(z, tail(z)) - 1 for z in grid if z < 1000
    ]
    return p, q, max(map(abs, errors))


def tables():
    """Return {name: {dtype: (numerator, denominator, error)}}; the error is in full digits."""
    with mp.workdps(DIGITS):
        log2, wide = mpmath.log(2), mpf(1) / 16
        return {
            "EXP": {SINGLE: on_interval(exp_rest, -log2, log2, 6)},
            "LOG1P": {SINGLE: on_interval(log1p_rest, 0, mpf(1) / 9, 4)},
            "ERF": {
                SINGLE: on_interval(erf_rest, 0, 0.25, 4),
                DOUBLE: on_interval(erf_rest, 0, 0.25, 8),
            },
            "TAIL": {SINGLE: on_half_line(1.5, 4, 5), DOUBLE: on_half_line(2, 9, 10)},
            "LGAMMA": {
                SINGLE: on_interval(lgamma_rest, 0, 3, 4, 4),
                DOUBLE: on_interval(lgamma_rest, 0, 3, 9, 9),
            },
            "DIGAMMA": {
                SINGLE: on_interval(digamma_rest, 0, 3, 4, 4),
                DOUBLE: on_interval(digamma_rest, 0, 3, 7, 8),
            },
            "STIRLING": {
                SINGLE: on_interval(stirling, 0, wide, 2),
                DOUBLE: on_interval(stirling, 0, wide, 8),
            },
            "STIRLING_SLOPE": {
                SINGLE: on_interval(stirling_slope, 0, wide, 2),
                DOUBLE: on_interval(stirling_slope, 0, wide, 8),
            },
        }


def rounded(coefficients, dtype):
    """Return the coefficients as the floats that stand in the tables."""
    return tuple(float(mpmath.nstr(c, 9 if dtype == SINGLE else 17)) for c in coefficients)


def main():
    for name, kinds in tables().items():
        for dtype, (p, q, error) in kinds.items():
            print(f"{name}[{dtype}]: relative error {float(error):.0e}")
            print(rounded(p, dtype), rounded(q, dtype) if len(q) > 1 else "", sep="\n")
    with mp.workdps(DIGITS):
        root = digamma_root()
        lead = mpf(round(root * 2**20)) / 2**20
        print("_ROOT", float(lead), float(root - lead))


if __name__ == "__main__":
    main()
