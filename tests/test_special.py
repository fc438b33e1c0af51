"""Accuracy of mlxopt.special in units in the last place, point by point against mpmath."""

import math

import mlx.core as mx
import mpmath
import numpy as np
import pytest
from mpmath import mp, mpf

from mlxopt import special

DTYPES = {"float32": (np.float32, mx.float32), "float64": (np.float64, mx.float64)}
DIGITS = 50


def binades(rng, low, high, each):
    """Return `each` random numbers for every power of two from `low` to `high`."""
    first, last = math.floor(math.log2(low)), math.ceil(math.log2(high))
    exponents = np.repeat(np.arange(first, last), each).astype(float)
    numbers = np.ldexp(1 + rng.random(len(exponents)), exponents.astype(int))
    return numbers[(numbers >= low) & (numbers <= high)]


def around(dtype, points, width):
    """Return each point and the floats of `dtype` up to `width` steps away on either side."""
    found = []
    for point in points:
        up = down = dtype(point)
        found.append(up)
        for _ in range(width):
            up, down = np.nextafter(up, dtype(np.inf)), np.nextafter(down, dtype(-np.inf))
            found += [up, down]
    return np.array(found, dtype=dtype)


def line(low=1e-9, high=1e3, special_points=(), signs=(1, -1), spread=(), each=16):
    """Return a maker of points: every binade of |x| in [low, high], the neighborhood of the
    special points, and 600 uniform points in each interval of `spread`.
    """

    def points(dtype):
        rng = np.random.default_rng(20)
        x = binades(rng, low, high, each)
        x = np.concatenate([sign * x for sign in signs])
        x = np.concatenate([x, *(rng.uniform(*interval, 600) for interval in spread)])
        return np.unique(np.concatenate([x.astype(dtype), around(dtype, special_points, 6)]))

    return points


def trigonometric(dtype):
    """Return points up to 1e5, half of them next to a multiple of π/2."""
    rng = np.random.default_rng(21)
    multiples = rng.integers(1, 63662, 300) * (np.pi / 2)
    return np.concatenate([line(1e-9, 1e5, spread=[(-1e5, 1e5)])(dtype), around(dtype, multiples, 1)])


def log_cdf(x):
    return mpmath.log(mpmath.ncdf(x)) if x < 0 else mpmath.log1p(-mpmath.ncdf(-x))


def log1p_exp(x):
    return mpmath.log1p(mpmath.exp(x))


# The function in mpmath, its points, the limit in units in the last place, and the size below
# which the error is measured absolutely.
CASES = {
    "exp": (mpmath.exp, line(1e-9, 745, (0, -87.33, 88.7, -708.3, 709.7), spread=[(-2, 2)]), 2, 0),
    "expm1": (mpmath.expm1, line(1e-9, 709, spread=[(-2, 2)]), 4, 0),
    "log": (mpmath.log, line(1e-37, 1e38, (1,), (1,), [(0.5, 2)], 8), 4, 0),
    "log1p": (mpmath.log1p, line(1e-9, 1e30, (-0.5, 1), (1,), [(-0.999, 1)]), 4, 0),
    "sigmoid": (lambda x: 1 / (1 + mpmath.exp(-x)), line(1e-9, 740, (0,), spread=[(-9, 9)]), 4, 0),
    "softplus": (log1p_exp, line(1e-9, 740, (0,), spread=[(-9, 9)]), 4, 0),
    "log_sigmoid": (lambda x: -log1p_exp(-x), line(1e-9, 740, (0,), spread=[(-9, 9)]), 4, 0),
    "erf": (mpmath.erf, line(1e-9, 9, (0.5, -0.5), spread=[(-4, 4)]), 4, 0),
    "erfc": (mpmath.erfc, line(1e-9, 27, (0, 0.5), spread=[(-4, 4), (0, 26), (9, 10)]), 16, 0),
    "normal_cdf": (mpmath.ncdf, line(1e-9, 38, (0,), spread=[(-5, 5), (-38, 0), (-14, -12)]), 4, 0),
    "normal_log_cdf": (log_cdf, line(1e-9, 1e5, (0,), spread=[(-9, 9), (0, 37)]), 16, 0),
    "sin": (mpmath.sin, trigonometric, 4, 0),
    "cos": (mpmath.cos, trigonometric, 4, 0),
    "lgamma": (mpmath.loggamma, line(1e-9, 1e30, (1, 2, 4), (1,), [(0, 3), (3, 30)]), 4, 0.1),
    "digamma": (
        mpmath.digamma,
        line(1e-9, 1e30, (1, 1.4616321449683623, 4), (1,), [(0, 3), (3, 30)]),
        4,
        0.1,
    ),
    "trigamma": (lambda x: mpmath.psi(1, x), line(1e-9, 1e15, (1, 4), (1,), [(0, 30)]), 4, 0),
}


def truths(function, points):
    with mp.workdps(DIGITS):
        return [mpmath.re(function(mpf(float(x)))) for x in points]


def units(dtype, got, expected, floor=0.0):
    """Return the error of each value in units in the last place of max(|expected|, floor)."""
    with mp.workdps(DIGITS):
        with np.errstate(over="ignore"):
            scale = [dtype(float(max(abs(t), mpf(floor)))) for t in expected]
        return np.array(
            [
                float(abs(mpf(float(g)) - t) / float(np.spacing(s))) if np.isfinite(s) else 0.0
                for g, t, s in zip(got, expected, scale, strict=True)
            ]
        )


@pytest.fixture(scope="module")
def table():
    """Return a function that computes the points and true values of a case once."""
    known = {}

    def case(name, dtype):
        if (name, dtype) not in known:
            function, points, _, _ = CASES[name]
            x = points(dtype)
            known[name, dtype] = x, truths(function, x)
        return known[name, dtype]

    return case


def fused(function):
    """Compile with a neighbor on either side, so that other operations fuse with its own."""
    mirrored = mx.compile(lambda x: -function(-x))
    return lambda x: -mirrored(-x)


def unfused(function):
    def call(x):
        mx.disable_compile()
        try:
            y = function(x)
            mx.eval(y)
        finally:
            mx.enable_compile()
        return y

    return call


MODES = {"alone": lambda function: function, "fused": fused, "unfused": unfused}


def worst(name, kind, mode, table):
    dtype, mlx_dtype = DTYPES[kind]
    x, expected = table(name, dtype)
    with mx.stream(mx.cpu):
        got = np.array(MODES[mode](getattr(special, name))(mx.array(x, dtype=mlx_dtype)))
    assert got.dtype == dtype
    errors = units(dtype, got, expected, CASES[name][3])
    at = int(np.argmax(np.where(np.isnan(errors), np.inf, errors)))
    return errors[at], x[at], got[at]


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CASES)
def test_accuracy(name, mode, kind, table):
    error, x, got = worst(name, kind, mode, table)
    assert error <= CASES[name][2], f"{error:.2f} units at {x!r}, where it gave {got!r}"


if __name__ == "__main__":  # the table of figures: python tests/test_special.py
    print(f"{'':16}{'points':>7} " + "".join(f"{m + ' ' + k:>17}" for k in DTYPES for m in MODES))
    known = {}

    def remember(name, dtype):
        if (name, dtype) not in known:
            x = CASES[name][1](dtype)
            known[name, dtype] = x, truths(CASES[name][0], x)
        return known[name, dtype]

    for name in CASES:
        row = [worst(name, kind, mode, remember) for kind in DTYPES for mode in MODES]
        print(f"{name:16}{len(known[name, np.float64][0]):7} ", end="")
        print("".join(f"{error:8.2f}@{x:<8.3g}" for error, x, _ in row))
