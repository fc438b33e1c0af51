"""Other common test functions: of two variables for pictures, of any dimension, and with bounds."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np

from mlxopt.problems import _mgh
from mlxopt.problems._record import constants, integers, problems, product
from mlxopt.special import cos, exp, log, sin


def chained_rosenbrock(x: mx.array) -> mx.array:
    """Return the residual of Σ 100 (xᵢ₊₁ - xᵢ²)² + (1 - xᵢ)²."""
    return _mgh.rosenbrock(mx.stack([x[:-1], x[1:]], axis=1).reshape(-1))


def himmelblau(x: mx.array) -> mx.array:
    return mx.stack([mx.square(x[0]) + x[1] - 11, x[0] + mx.square(x[1]) - 7])


def booth(x: mx.array) -> mx.array:
    return mx.stack([x[0] + 2 * x[1] - 7, 2 * x[0] + x[1] - 5])


def matyas(x: mx.array) -> mx.array:
    return 0.26 * mx.sum(mx.square(x)) - 0.48 * x[0] * x[1]


def six_hump_camel(x: mx.array) -> mx.array:
    a, b = mx.square(x[0]), mx.square(x[1])
    return (4 - 2.1 * a + a * a / 3) * a + x[0] * x[1] + (4 * b - 4) * b


def branin(x: mx.array) -> mx.array:
    valley = x[1] - 5.1 / (4 * math.pi**2) * mx.square(x[0]) + 5 / math.pi * x[0] - 6
    return mx.square(valley) + 10 * (1 - 1 / (8 * math.pi)) * cos(x[0]) + 10


def goldstein_price(x: mx.array) -> mx.array:
    a, b = x[0], x[1]
    one = 19 - 14 * a + 3 * a * a - 14 * b + 6 * a * b + 3 * b * b
    two = 18 - 32 * a + 12 * a * a + 48 * b - 36 * a * b + 27 * b * b
    return (1 + mx.square(a + b + 1) * one) * (30 + mx.square(2 * a - 3 * b) * two)


def mccormick(x: mx.array) -> mx.array:
    a, b = x[0], x[1]
    return sin(a + b) + mx.square(a - b) - 1.5 * a + 2.5 * b + 1


def styblinski_tang(x: mx.array) -> mx.array:
    squares = mx.square(x)
    return 0.5 * mx.sum(squares * squares - 16 * squares + 5 * x)


def rastrigin(x: mx.array) -> mx.array:
    return mx.sum(mx.square(x) + 10 * (1 - cos(2 * math.pi * x)))


def ackley(x: mx.array) -> mx.array:
    """Return 20 (1 - exp(-√(mean x²) / 5)) + e - exp(mean cos 2πx), with a tip at zero."""
    root = mx.sqrt(mx.mean(mx.square(x)))
    return 20 * (1 - exp(-root / 5)) + math.e - exp(mx.mean(cos(2 * math.pi * x)))


def griewank(x: mx.array) -> mx.array:
    cosines = cos(x / mx.sqrt(integers(x, 1, x.size)))
    return 1 + mx.sum(mx.square(x)) / 4000 - product(cosines)


def ellipsoid(x: mx.array) -> mx.array:
    """Return ½ Σ cᵢ (xᵢ - 1)², the c from 1 to 10⁶ evenly in their logarithm."""
    scale = constants(x, 10.0 ** (6 * np.arange(x.size) / (x.size - 1)))
    return 0.5 * mx.sum(scale * mx.square(x - 1))


def zakharov(x: mx.array) -> mx.array:
    s = (0.5 * mx.sum(integers(x, 1, x.size) * x)).reshape(1)
    return mx.concatenate([x, s, mx.square(s)])


def dixon_price(x: mx.array) -> mx.array:
    roots = mx.sqrt(integers(x, 2, x.size))
    return mx.concatenate([x[:1] - 1, roots * (2 * mx.square(x[1:]) - x[:-1])])


def trid(x: mx.array) -> mx.array:
    return mx.sum(mx.square(x - 1)) - mx.sum(x[1:] * x[:-1])


def hock_schittkowski_3(x: mx.array) -> mx.array:
    return x[1] + 1e-5 * mx.square(x[1] - x[0])


def hock_schittkowski_4(x: mx.array) -> mx.array:
    return (x[0] + 1) ** 3 / 3 + x[1]


def hock_schittkowski_110(x: mx.array) -> mx.array:
    logs = mx.square(log(x - 2)) + mx.square(log(10 - x))
    return mx.sum(logs) - exp(0.2 * mx.sum(log(x)))


_OTHERS = """
Chained Rosenbrock (3) | Rosenbrock 1960, summed over neighbors | residual chained_rosenbrock
    | 508.2 at -1.2 1 -1.2 | 0 at 1 1 1
Himmelblau | Himmelblau 1972, Applied Nonlinear Programming | residual himmelblau | 170 at 0 0
    | view -5 5 -5 5 | 0 at 3 2 | 0 at -2.805118086952745 3.131312518250573
    | 0 at -3.779310253377747 -3.28318599128617 | 0 at 3.584428340330492 -1.848126526964404
Booth | Booth 1949 | residual booth | 74 at 0 0 | view -10 10 -10 10 | 0 at 1 3
Matyas | Matyas 1965 | function matyas | 12.26 at 4 -3 | view -5 5 -5 5 | 0 at 0 0
Six-hump camel | Dixon and Szegö 1978, Towards Global Optimisation 2 | function six_hump_camel
    | 97/30 at 1 1 | view -2.2 2.2 -1.2 1.2
    | -1.0316284534898774 at 0.08984201310031804 -0.7126564030207396
    | -0.2154638243837179 at -1.703606714969981 0.7960835686726251
    | -0.2154638243837179 at 1.703606714969981 -0.7960835686726251
    | 2.1042503103112584 at -1.6071047529201974 -0.5686514548841314
Branin | Branin 1972 | function branin | 24.129964413622268 at 2.5 7.5 | view -5 10 0 15
    | 0.39788735772973816 at 3.141592653589793 2.275
    | 0.39788735772973816 at -3.141592653589793 12.275
    | 0.39788735772973816 at 9.42477796076938 2.475
Goldstein and Price | Goldstein and Price 1971 | function goldstein_price | 10193.75 at -0.5 0.5
    | view -2 2 -2 2 | 3 at 0 -1 | 30 at -0.6 -0.4 | 84 at 1.8 0.2 | 840 at 1.2 0.8
Styblinski and Tang | Styblinski and Tang 1990 | function styblinski_tang | 0 at 0 0
    | view -5 5 -5 5 | -78.33233140754282 at -2.903534027771177 -2.903534027771177
    | -64.19561235905536 at 2.746802770990837 -2.903534027771177
    | -50.05889331056789 at 2.746802770990837 2.746802770990837
Rastrigin | Rastrigin 1974 | function rastrigin | 20.13 at 0.3 -0.2 | view -2.5 2.5 -2.5 2.5
    | 0 at 0 0 | 1.989918114186585 at 0.9949586376523348 -0.9949586376523348
    | 7.959662381108175 at -1.9899122337085496 1.9899122337085496
Ackley | Ackley 1987 | function ackley | 4.577012137495943 at 0.8 -0.6 | view -4 4 -4 4 | 0
    | 3.5744518772576814 at 0.9684776587077244 -0.9684776587077244
Griewank | Griewank 1981 | function griewank | 0.0644076416130831 at 3 4 | view -10 10 -10 10
    | 0 at 0 0 | 0.007396040334115117 at 3.1400226338955397 4.438444480920714
Ellipsoid (10) | a quadratic of condition 1e6 | function ellipsoid | 637302.5684242216 at 10*0
    | 0 at 10*1
Zakharov (5) | Zakharov 1975 | residual zakharov | 3225.3125 at 5*1 | 0 at 5*0
Dixon and Price (5) | Dixon and Price 1989 | residual dixon_price | 14 at 5*1
    | 0 at 1 0.7071067811865476 0.5946035575013605 0.5452538663326288 0.5221368912137069
Trid (6) | Neumaier 1998 | function trid | 6 at 6*0 | -50 at 6 10 12 12 10 6
"""

_BOUNDED = """
Hock and Schittkowski 1 | 1 | residual rosenbrock | 909 at -2 1 | bounds -inf -1.5, inf inf
    | view -2.5 2 -1.7 3 | 0 at 1 1
Hock and Schittkowski 2 | 2, from a feasible start | residual rosenbrock | 409 at -2 2
    | bounds -inf 1.5, inf inf | view -2.5 2 1 3 | 0.05042618789360708 at 1.2243707487363527 1.5
    | 4.941229317989186 at -1.2210262421071016 1.5
Hock and Schittkowski 3 | 3 | function hock_schittkowski_3 | 1.00081 at 10 1
    | bounds -inf 0, inf inf | view -5 12 -0.5 2 | 0 at 0 0
Hock and Schittkowski 4 | 4 | function hock_schittkowski_4 | 3.323567708333333 at 1.125 0.125
    | bounds 1 0, inf inf | view 0.5 2 -0.5 1 | 8/3 at 1 0
McCormick | 5 | function mccormick | 1 at 0 0 | bounds -1.5 -3, 4 3 | view -1.7 4.2 -3.2 3.2
    | -1.9132229549810362 at -0.5471975511965976 -1.5471975511965976
    | 1.2283696986087569 at 2.5943951023931953 1.5943951023931953
Hock and Schittkowski 38 | 38 | residual wood | 19192 at -3 -1 -3 -1 | bounds 4*-10, 4*10 | 0 at 4*1
Hock and Schittkowski 110 | 110 | function hock_schittkowski_110 | -43.13433691803256 at 10*9
    | bounds 10*2.001, 10*9.999 | -45.77846970744629 at 10*9.350265833069386
"""
_HOCK = "Hock and Schittkowski 1981, Test Examples for Nonlinear Programming Codes, problem "
OTHERS = problems(_OTHERS, globals())
BOUNDED = problems(_BOUNDED, vars(_mgh) | globals(), _HOCK)
