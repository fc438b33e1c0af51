"""The residuals of Moré, Garbow and Hillstrom (1981), "Testing unconstrained optimization
software", ACM Transactions on Mathematical Software 7(1), pages 17-41, by their numbers there.

x holds the parameters; t, u, y are the published data. Each returns the residual, shape (m,); the
loss is its sum of squares.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from mlxopt.problems._record import constants, integers
from mlxopt.special import cos, exp, sin


def rosenbrock(x: mx.array) -> mx.array:
    """Problem 1, and 21 for more parameters: pairs of them."""
    a, b = x[0::2], x[1::2]
    return mx.stack([10 * (b - mx.square(a)), 1 - a], axis=1).reshape(-1)


def freudenstein_roth(x: mx.array) -> mx.array:
    """Problem 2."""
    a, b = x[0], x[1]
    return mx.stack([-13 + a + ((5 - b) * b - 2) * b, -29 + a + ((b + 1) * b - 14) * b])


def powell_badly_scaled(x: mx.array) -> mx.array:
    """Problem 3."""
    return mx.stack([1e4 * x[0] * x[1] - 1, exp(-x[0]) + exp(-x[1]) - 1.0001])


def brown_badly_scaled(x: mx.array) -> mx.array:
    """Problem 4."""
    return mx.stack([x[0] - 1e6, x[1] - 2e-6, x[0] * x[1] - 2])


def beale(x: mx.array) -> mx.array:
    """Problem 5."""
    b = x[1]
    powers = mx.stack([b, mx.square(b), b * mx.square(b)])
    return constants(x, [1.5, 2.25, 2.625]) - x[0] * (1 - powers)


def jennrich_sampson(x: mx.array) -> mx.array:
    """Problem 6, m = 10."""
    i = integers(x, 1, 10)
    return 2 + 2 * i - (exp(i * x[0]) + exp(i * x[1]))


def helical_valley(x: mx.array) -> mx.array:
    """Problem 7."""
    turn = mx.arctan(x[1] / x[0]) / (2 * np.pi) + mx.where(x[0] > 0, 0.0, 0.5).astype(x.dtype)
    radius = mx.sqrt(mx.square(x[0]) + mx.square(x[1]))
    return mx.stack([10 * (x[2] - 10 * turn), 10 * (radius - 1), x[2]])


def bard(x: mx.array) -> mx.array:
    """Problem 8."""
    y = [0.14, 0.18, 0.22, 0.25, 0.29, 0.32, 0.35, 0.39, 0.37, 0.58, 0.73, 0.96, 1.34, 2.1, 4.39]
    u = integers(x, 1, 15)
    v = 16 - u
    return constants(x, y) - (x[0] + u / (v * x[1] + mx.minimum(u, v) * x[2]))


def gaussian(x: mx.array) -> mx.array:
    """Problem 9."""
    half = [0.0009, 0.0044, 0.0175, 0.054, 0.1295, 0.242, 0.3521]
    t = (8 - integers(x, 1, 15)) / 2
    y = constants(x, [*half, 0.3989, *half[::-1]])
    return x[0] * exp(-x[1] * mx.square(t - x[2]) / 2) - y


def meyer(x: mx.array) -> mx.array:
    """Problem 10."""
    y = [34780, 28610, 23650, 19630, 16370, 13720, 11540, 9744, 8261, 7030, 6005, 5147, 4427, 3820]
    t = 45 + 5 * integers(x, 1, 16)
    return x[0] * exp(x[1] / (t + x[2])) - constants(x, [*y, 3307, 2872])


def gulf(x: mx.array) -> mx.array:
    """Problem 11, m = 99, with |y - x₂| where the paper's misprint has |y·m·i·x₂|."""
    t = np.arange(1, 100) / 100
    y = constants(x, 25 + (-50 * np.log(t)) ** (2 / 3))
    return exp(-mx.power(mx.abs(y - x[1]), x[2]) / x[0]) - constants(x, t)


def box(x: mx.array) -> mx.array:
    """Problem 12, m = 10."""
    t = integers(x, 1, 10) / 10
    return exp(-t * x[0]) - exp(-t * x[1]) - x[2] * (exp(-t) - exp(-10 * t))


def powell_singular(x: mx.array) -> mx.array:
    """Problem 13, and 22 for more parameters: fours of them."""
    a, b, c, d = x[0::4], x[1::4], x[2::4], x[3::4]
    rows = [a + 10 * b, 5**0.5 * (c - d), mx.square(b - 2 * c), 10**0.5 * mx.square(a - d)]
    return mx.stack(rows, axis=1).reshape(-1)


def wood(x: mx.array) -> mx.array:
    """Problem 14."""
    a, b, c, d = x[0], x[1], x[2], x[3]
    first = [10 * (b - mx.square(a)), 1 - a, 90**0.5 * (d - mx.square(c)), 1 - c]
    return mx.stack([*first, 10**0.5 * (b + d - 2), (b - d) / 10**0.5])


def kowalik_osborne(x: mx.array) -> mx.array:
    """Problem 15."""
    y = [0.1957, 0.1947, 0.1735, 0.16, 0.0844, 0.0627, 0.0456, 0.0342, 0.0323, 0.0235, 0.0246]
    u = constants(x, [4, 2, 1, 0.5, 0.25, 0.167, 0.125, 0.1, 0.0833, 0.0714, 0.0625])
    return constants(x, y) - x[0] * (u * u + u * x[1]) / (u * u + u * x[2] + x[3])


def brown_dennis(x: mx.array) -> mx.array:
    """Problem 16, m = 20."""
    t = integers(x, 1, 20) / 5
    return mx.square(x[0] + t * x[1] - exp(t)) + mx.square(x[2] + x[3] * sin(t) - cos(t))


OSBORNE_1 = (
    "0.844 0.908 0.932 0.936 0.925 0.908 0.881 0.85 0.818 0.784 0.751 0.718 0.685 0.658 0.628 "
    "0.603 0.58 0.558 0.538 0.522 0.506 0.49 0.478 0.467 0.457 0.448 0.438 0.431 0.424 0.42 "
    "0.414 0.411 0.406"
)

OSBORNE_2 = (
    "1.366 1.191 1.112 1.013 0.991 0.885 0.831 0.847 0.786 0.725 0.746 0.679 0.608 0.655 0.616 "
    "0.606 0.602 0.626 0.651 0.724 0.649 0.649 0.694 0.644 0.624 0.661 0.612 0.558 0.533 0.495 0.5 "
    "0.423 0.395 0.375 0.372 0.391 0.396 0.405 0.428 0.429 0.523 0.562 0.607 0.653 0.672 0.708 "
    "0.633 0.668 0.645 0.632 0.591 0.559 0.597 0.625 0.739 0.71 0.729 0.72 0.636 0.581 0.428 0.292 "
    "0.162 0.098 0.054"
)


def osborne_1(x: mx.array) -> mx.array:
    """Problem 17."""
    t = 10 * integers(x, 0, 32)
    y = constants(x, [float(word) for word in OSBORNE_1.split()])
    return y - (x[0] + x[1] * exp(-t * x[3]) + x[2] * exp(-t * x[4]))


def biggs(x: mx.array) -> mx.array:
    """Problem 18, m = 13."""
    t = integers(x, 1, 13) / 10
    y = exp(-t) - 5 * exp(-10 * t) + 3 * exp(-4 * t)
    return x[2] * exp(-t * x[0]) - x[3] * exp(-t * x[1]) + x[5] * exp(-t * x[4]) - y


def osborne_2(x: mx.array) -> mx.array:
    """Problem 19."""
    t = integers(x, 0, 64) / 10
    y = constants(x, [float(word) for word in OSBORNE_2.split()])
    peaks = [x[i] * exp(-mx.square(t - x[i + 7]) * x[i + 4]) for i in (1, 2, 3)]
    return y - (x[0] * exp(-t * x[4]) + peaks[0] + peaks[1] + peaks[2])


def watson(x: mx.array) -> mx.array:
    """Problem 20, m = 31."""
    n = x.size
    t = np.arange(1, 30)[:, None] / 29
    j = np.arange(n)
    slopes = np.where(j > 0, j * t ** np.maximum(j - 1, 0), 0.0)
    rows = constants(x, slopes) @ x - mx.square(constants(x, t**j) @ x) - 1
    return mx.concatenate([rows, mx.stack([x[0], x[1] - mx.square(x[0]) - 1])])


def penalty_1(x: mx.array) -> mx.array:
    """Problem 23."""
    return mx.concatenate([1e-5**0.5 * (x - 1), (mx.sum(mx.square(x)) - 0.25).reshape(1)])


def penalty_2(x: mx.array) -> mx.array:
    """Problem 24."""
    n = x.size
    i = np.arange(2, n + 1)
    y = constants(x, np.exp(i / 10) + np.exp((i - 1) / 10))
    e = exp(x / 10)
    weights = integers(x, 1, n)[::-1]
    return mx.concatenate(
        [
            x[:1] - 0.2,
            1e-5**0.5 * (e[1:] + e[:-1] - y),
            1e-5**0.5 * (e[1:] - np.exp(-0.1)),
            (mx.sum(weights * mx.square(x)) - 1).reshape(1),
        ]
    )


def variably_dimensioned(x: mx.array) -> mx.array:
    """Problem 25."""
    total = mx.sum(integers(x, 1, x.size) * (x - 1)).reshape(1)
    return mx.concatenate([x - 1, total, mx.square(total)])


def trigonometric(x: mx.array) -> mx.array:
    """Problem 26."""
    cosines = cos(x)
    return x.size - mx.sum(cosines) + integers(x, 1, x.size) * (1 - cosines) - sin(x)


def brown_almost_linear(x: mx.array) -> mx.array:
    """Problem 27."""
    product = x[0]
    for i in range(1, x.size):  # mx.prod's derivative divides by the entries
        product = product * x[i]
    return mx.concatenate([x[:-1] + mx.sum(x) - (x.size + 1), (product - 1).reshape(1)])


def discrete_boundary_value(x: mx.array) -> mx.array:
    """Problem 28."""
    h = 1 / (x.size + 1)
    edge = mx.zeros(1, dtype=x.dtype)
    padded = mx.concatenate([edge, x, edge])
    cubes = (x + h * integers(x, 1, x.size) + 1) ** 3
    return 2 * x - padded[:-2] - padded[2:] + h**2 * cubes / 2


def discrete_integral(x: mx.array) -> mx.array:
    """Problem 29."""
    h = 1 / (x.size + 1)
    t = h * np.arange(1, x.size + 1)
    kernel = np.where(t[:, None] >= t, (1 - t[:, None]) * t, t[:, None] * (1 - t))
    return x + h * (constants(x, kernel) @ ((x + constants(x, t) + 1) ** 3)) / 2


def broyden_tridiagonal(x: mx.array) -> mx.array:
    """Problem 30."""
    edge = mx.zeros(1, dtype=x.dtype)
    padded = mx.concatenate([edge, x, edge])
    return (3 - 2 * x) * x - padded[:-2] - 2 * padded[2:] + 1


def broyden_banded(x: mx.array) -> mx.array:
    """Problem 31."""
    i = np.arange(x.size)
    distance = i - i[:, None]
    band = (distance >= -5) & (distance <= 1) & (distance != 0)
    return x * (2 + 5 * mx.square(x)) + 1 - constants(x, band) @ (x * (1 + x))


def linear_full_rank(x: mx.array) -> mx.array:
    """Problem 32, m = 2n."""
    m = 2 * x.size
    return mx.concatenate([x, mx.zeros(m - x.size, dtype=x.dtype)]) - 2 / m * mx.sum(x) - 1


def linear_rank_1(x: mx.array) -> mx.array:
    """Problem 33, m = 2n."""
    return integers(x, 1, 2 * x.size) * mx.sum(integers(x, 1, x.size) * x) - 1


def linear_rank_1_with_zeros(x: mx.array) -> mx.array:
    """Problem 34, m = 2n."""
    rows = np.arange(2 * x.size)
    rows[-1] = 0
    return constants(x, rows) * mx.sum(integers(x, 2, x.size - 1) * x[1:-1]) - 1


def chebyquad(x: mx.array) -> mx.array:
    """Problem 35, m = n: Chebyshev polynomials on [0, 1], their means against their integrals."""
    z = 2 * x - 1
    before, polynomial, rows = mx.ones_like(z), z, []
    for i in range(1, x.size + 1):
        integral = -1 / (i * i - 1) if i % 2 == 0 else 0.0
        rows.append(mx.mean(polynomial) - integral)
        before, polynomial = polynomial, 2 * z * polynomial - before
    return mx.stack(rows)
