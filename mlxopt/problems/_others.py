"""Common test functions beside those of Moré, Garbow and Hillstrom: smooth ones of two variables
for pictures, ones of any dimension, and ones within bounds.
"""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np

from mlxopt.problems._mgh import rosenbrock, wood
from mlxopt.problems._record import Minimum, Problem, constants, integers
from mlxopt.special import cos, exp, log, sin

_INF = math.inf


def himmelblau(x: mx.array) -> mx.array:
    """Return the residual of x² + y = 11 and x + y² = 7."""
    return mx.stack([mx.square(x[0]) + x[1] - 11, x[0] + mx.square(x[1]) - 7])


def booth(x: mx.array) -> mx.array:
    """Return the residual of x + 2y = 7 and 2x + y = 5."""
    return mx.stack([x[0] + 2 * x[1] - 7, 2 * x[0] + x[1] - 5])


def matyas(x: mx.array) -> mx.array:
    """Return 0.26 (x² + y²) - 0.48 x y: a quadratic bowl."""
    return 0.26 * mx.sum(mx.square(x)) - 0.48 * x[0] * x[1]


def six_hump_camel(x: mx.array) -> mx.array:
    """Return (4 - 2.1 x² + x⁴/3) x² + x y + (4 y² - 4) y²."""
    a, b = mx.square(x[0]), mx.square(x[1])
    return (4 - 2.1 * a + a * a / 3) * a + x[0] * x[1] + (4 * b - 4) * b


def branin(x: mx.array) -> mx.array:
    """Return (y - 5.1 x²/(4π²) + 5 x/π - 6)² + 10 (1 - 1/(8π)) cos x + 10."""
    valley = x[1] - 5.1 / (4 * math.pi**2) * mx.square(x[0]) + 5 / math.pi * x[0] - 6
    return mx.square(valley) + 10 * (1 - 1 / (8 * math.pi)) * cos(x[0]) + 10


def goldstein_price(x: mx.array) -> mx.array:
    """Return the product of two polynomials of degree four."""
    a, b = x[0], x[1]
    one = 19 - 14 * a + 3 * a * a - 14 * b + 6 * a * b + 3 * b * b
    two = 18 - 32 * a + 12 * a * a + 48 * b - 36 * a * b + 27 * b * b
    return (1 + mx.square(a + b + 1) * one) * (30 + mx.square(2 * a - 3 * b) * two)


def mccormick(x: mx.array) -> mx.array:
    """Return sin(x + y) + (x - y)² - 1.5 x + 2.5 y + 1."""
    a, b = x[0], x[1]
    return sin(a + b) + mx.square(a - b) - 1.5 * a + 2.5 * b + 1


def styblinski_tang(x: mx.array) -> mx.array:
    """Return ½ Σ (x⁴ - 16 x² + 5 x)."""
    squares = mx.square(x)
    return 0.5 * mx.sum(squares * squares - 16 * squares + 5 * x)


def rastrigin(x: mx.array) -> mx.array:
    """Return Σ (x² + 10 (1 - cos 2πx))."""
    return mx.sum(mx.square(x) + 10 * (1 - cos(2 * math.pi * x)))


def ackley(x: mx.array) -> mx.array:
    """Return 20 (1 - exp(-√(mean x²) / 5)) + e - exp(mean cos 2πx); it has a tip at zero."""
    root = mx.sqrt(mx.mean(mx.square(x)))
    return 20 * (1 - exp(-root / 5)) + math.e - exp(mx.mean(cos(2 * math.pi * x)))


def griewank(x: mx.array) -> mx.array:
    """Return 1 + Σ x²/4000 - Π cos(xᵢ/√i)."""
    cosines = cos(x / mx.sqrt(integers(x, 1, x.size)))
    product = cosines[0]
    for i in range(1, x.size):
        product = product * cosines[i]
    return 1 + mx.sum(mx.square(x)) / 4000 - product


def ellipsoid(x: mx.array) -> mx.array:
    """Return ½ Σ cᵢ (xᵢ - 1)², the c from 1 to 10⁶ evenly in their logarithm."""
    scale = constants(x, 10.0 ** (6 * np.arange(x.size) / (x.size - 1)))
    return 0.5 * mx.sum(scale * mx.square(x - 1))


def zakharov(x: mx.array) -> mx.array:
    """Return the residual (x, s, s²), s = ½ Σ i xᵢ."""
    s = (0.5 * mx.sum(integers(x, 1, x.size) * x)).reshape(1)
    return mx.concatenate([x, s, mx.square(s)])


def dixon_price(x: mx.array) -> mx.array:
    """Return the residual (x₁ - 1, √i (2 xᵢ² - xᵢ₋₁), i = 2, ...)."""
    roots = mx.sqrt(integers(x, 2, x.size))
    return mx.concatenate([x[:1] - 1, roots * (2 * mx.square(x[1:]) - x[:-1])])


def trid(x: mx.array) -> mx.array:
    """Return Σ (xᵢ - 1)² - Σ xᵢ xᵢ₋₁: a convex quadratic of poor condition."""
    return mx.sum(mx.square(x - 1)) - mx.sum(x[1:] * x[:-1])


def hock_schittkowski_3(x: mx.array) -> mx.array:
    """Return y + 1e-5 (y - x)²."""
    return x[1] + 1e-5 * mx.square(x[1] - x[0])


def hock_schittkowski_4(x: mx.array) -> mx.array:
    """Return (x + 1)³/3 + y."""
    return (x[0] + 1) ** 3 / 3 + x[1]


def hock_schittkowski_110(x: mx.array) -> mx.array:
    """Return Σ (log² (x - 2) + log² (10 - x)) - (Π x)^0.2."""
    logs = mx.square(log(x - 2)) + mx.square(log(10 - x))
    return mx.sum(logs) - exp(0.2 * mx.sum(log(x)))


def _zero(*point: float) -> tuple[Minimum]:
    return (Minimum(0.0, point),)


_GLOBAL = "Dixon and Szegö 1978, Towards Global Optimisation 2"
_HS = "Hock and Schittkowski 1981, Test Examples for Nonlinear Programming Codes, problem"

# fmt: off
OTHERS = (
    Problem("Himmelblau", (0.0, 0.0), 170.0, (
        *_zero(3.0, 2.0), *_zero(-2.805118086952745, 3.131312518250573),
        *_zero(-3.779310253377747, -3.283185991286170),
        *_zero(3.584428340330492, -1.848126526964404),
    ), "Himmelblau 1972, Applied Nonlinear Programming", residual=himmelblau, view=(-5, 5, -5, 5)),
    Problem("Booth", (0.0, 0.0), 74.0, _zero(1.0, 3.0), "Booth 1949", residual=booth,
            view=(-10, 10, -10, 10)),
    Problem("Matyas", (4.0, -3.0), 12.26, _zero(0.0, 0.0), "Matyas 1965", function=matyas,
            view=(-5, 5, -5, 5)),
    Problem("Six-hump camel", (1.0, 1.0), 97 / 30, (
        Minimum(-1.0316284534898774, (0.08984201310031805, -0.7126564030207396)),
        Minimum(-0.2154638243837179, (-1.703606714969981, 0.7960835686726251)),
        Minimum(-0.2154638243837179, (1.703606714969981, -0.7960835686726251)),
        Minimum(2.1042503103112584, (-1.6071047529201974, -0.5686514548841314)),
    ), _GLOBAL, function=six_hump_camel, view=(-2.2, 2.2, -1.2, 1.2)),
    Problem("Branin", (2.5, 7.5), 24.129964413622268, (
        Minimum(0.39788735772973816, (math.pi, 2.275)),
        Minimum(0.39788735772973816, (-math.pi, 12.275)),
        Minimum(0.39788735772973816, (3 * math.pi, 2.475)),
    ), "Branin 1972", function=branin, view=(-5, 10, 0, 15)),
    Problem("Goldstein and Price", (-0.5, 0.5), 10193.75, (
        Minimum(3.0, (0.0, -1.0)), Minimum(30.0, (-0.6, -0.4)), Minimum(84.0, (1.8, 0.2)),
        Minimum(840.0, (1.2, 0.8)),
    ), "Goldstein and Price 1971", function=goldstein_price, view=(-2, 2, -2, 2)),
    Problem("Styblinski and Tang", (0.0, 0.0), 0.0, (
        Minimum(-78.33233140754282, (-2.903534027771177, -2.903534027771177)),
        Minimum(-64.19561235905536, (2.746802770990837, -2.903534027771177)),
        Minimum(-50.05889331056789, (2.746802770990837, 2.746802770990837)),
    ), "Styblinski and Tang 1990", function=styblinski_tang, view=(-5, 5, -5, 5)),
    Problem("Rastrigin", (0.3, -0.2), 20.13, (
        *_zero(0.0, 0.0), Minimum(1.989918114186585, (0.9949586376523348, -0.9949586376523348)),
    ), "Rastrigin 1974", function=rastrigin, view=(-2.5, 2.5, -2.5, 2.5)),
    Problem("Ackley", (0.8, -0.6), 4.577012137495943, (
        Minimum(0.0), Minimum(3.5744518772576814, (0.9684776587077244, -0.9684776587077244)),
    ), "Ackley 1987", function=ackley, view=(-4, 4, -4, 4)),
    Problem("Griewank", (3.0, 4.0), 0.0644076416130831, (
        *_zero(0.0, 0.0), Minimum(0.007396040334115117, (3.1400226338955397, 4.438444480920714)),
    ), "Griewank 1981", function=griewank, view=(-10, 10, -10, 10)),
    Problem("Ellipsoid (10)", (0.0,) * 10, 637302.5684242216, _zero(*(1.0,) * 10),
            "a quadratic of condition 1e6", function=ellipsoid),
    Problem("Zakharov (5)", (1.0,) * 5, 3225.3125, _zero(*(0.0,) * 5), "Zakharov 1975",
            residual=zakharov),
    Problem("Dixon and Price (5)", (1.0,) * 5, 14.0, (
        Minimum(0.0, tuple(2.0 ** (2.0 ** -i - 1) for i in range(5))),
    ), "Dixon and Price 1989", residual=dixon_price),
    Problem("Trid (6)", (0.0,) * 6, 6.0, (Minimum(-50.0, (6.0, 10.0, 12.0, 12.0, 10.0, 6.0)),),
            "Neumaier 1998", function=trid),
)

BOUNDED = (
    Problem("Hock and Schittkowski 1", (-2.0, 1.0), 909.0, _zero(1.0, 1.0), f"{_HS} 1",
            residual=rosenbrock, bounds=((-_INF, -1.5), (_INF, _INF)), view=(-2.5, 2, -1.7, 3)),
    Problem("Hock and Schittkowski 2", (-2.0, 2.0), 409.0, (
        Minimum(0.05042618789360708, (1.2243707487363526, 1.5)),
        Minimum(4.941229317989186, (-1.2210262421071017, 1.5)),
    ), f"{_HS} 2, from a feasible start", residual=rosenbrock,
            bounds=((-_INF, 1.5), (_INF, _INF)), view=(-2.5, 2, 1, 3)),
    Problem("Hock and Schittkowski 3", (10.0, 1.0), 1.00081, _zero(0.0, 0.0), f"{_HS} 3",
            function=hock_schittkowski_3, bounds=((-_INF, 0.0), (_INF, _INF)),
            view=(-5, 12, -0.5, 2)),
    Problem("Hock and Schittkowski 4", (1.125, 0.125), 3.323567708333333,
            (Minimum(8 / 3, (1.0, 0.0)),), f"{_HS} 4", function=hock_schittkowski_4,
            bounds=((1.0, 0.0), (_INF, _INF)), view=(0.5, 2, -0.5, 1)),
    Problem("McCormick", (0.0, 0.0), 1.0, (
        Minimum(-math.sqrt(0.75) - math.pi / 3, (0.5 - math.pi / 3, -0.5 - math.pi / 3)),
        Minimum(1.2283696986087569, (2.5943951023931953, 1.5943951023931953)),
    ), f"{_HS} 5", function=mccormick, bounds=((-1.5, -3.0), (4.0, 3.0)),
            view=(-1.7, 4.2, -3.2, 3.2)),
    Problem("Hock and Schittkowski 38", (-3.0, -1.0, -3.0, -1.0), 19192.0, _zero(*(1.0,) * 4),
            f"{_HS} 38", residual=wood, bounds=((-10.0,) * 4, (10.0,) * 4)),
    Problem("Hock and Schittkowski 110", (9.0,) * 10, -43.134336918032559,
            (Minimum(-45.77846970744629, (9.350265833069386,) * 10),), f"{_HS} 110",
            function=hock_schittkowski_110, bounds=((2.001,) * 10, (9.999,) * 10)),
)
# fmt: on
