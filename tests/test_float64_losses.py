"""Losses of MLX's own functions have all digits of float64 while the toolkit calls them."""

import types
import warnings

import mlx.core as mx
import numpy as np
import pytest
import scipy.special

import mlxopt as mo

# The same names as in mlx.core, from the C library and SciPy.
NUMPY = types.SimpleNamespace(
    **{name: getattr(np, name) for name in ("exp", "sin", "cos", "tan", "log10", "logaddexp")},
    sigmoid=scipy.special.expit,
    erf=scipy.special.erf,
    erfinv=scipy.special.erfinv,
)
X = np.linspace(0.02, 0.98, 40)

# A curve (of the functions in m), its parameters, and a start.
CURVES = {
    "decay": (lambda m, p, x: p[0] * m.exp(-p[1] * x), [3.0, 2.5], [1.0, 1.0]),
    "two exponentials": (
        lambda m, p, x: p[0] * m.exp(-p[1] * x) + p[2] * m.exp(-p[3] * x),
        [2.0, 1.0, 1.0, 9.0],
        [1.5, 0.7, 1.2, 6.0],
    ),
    "Gaussian peak": (
        lambda m, p, x: p[0] * m.exp(-(((x - p[1]) / p[2]) ** 2)),
        [2.0, 0.4, 0.2],
        [1.5, 0.5, 0.3],
    ),
    "sine": (lambda m, p, x: p[0] * m.sin(p[1] * x + p[2]), [1.5, 9.0, 0.3], [1.0, 8.5, 0.5]),
    "damped cosine": (
        lambda m, p, x: p[0] * m.exp(-p[1] * x) * m.cos(p[2] * x),
        [2.0, 1.5, 12.0],
        [1.5, 1.0, 11.5],
    ),
    "logistic growth": (
        lambda m, p, x: p[0] * m.sigmoid(p[1] * (x - p[2])),
        [2.0, 9.0, 0.5],
        [1.5, 6.0, 0.4],
    ),
    "Gompertz": (
        lambda m, p, x: p[0] * m.exp(-p[1] * m.exp(-p[2] * x)),
        [2.0, 4.0, 5.0],
        [1.5, 3.0, 4.0],
    ),
    "erf link": (
        lambda m, p, x: p[0] * m.erf((x - p[1]) / p[2]),
        [2.0, 0.4, 0.3],
        [1.5, 0.5, 0.4],
    ),
    "normal quantiles": (
        lambda m, p, x: p[0] + p[1] * m.erfinv(p[2] * (2 * x - 1)),
        [1.0, 2.0, 0.9],
        [0.0, 1.0, 0.7],
    ),
    "hinge": (
        lambda m, p, x: p[0] * m.logaddexp(20 * (x - p[1]), 0.0),
        [0.1, 0.5],
        [0.08, 0.4],
    ),
    "tangent": (lambda m, p, x: p[0] * m.tan(p[1] * x), [2.0, 1.2], [1.5, 1.0]),
    "decibels": (lambda m, p, x: p[0] * m.log10(1 + p[1] * x), [10.0, 30.0], [8.0, 20.0]),
    "a power of ten": (
        lambda m, p, x: 1e39 * m.exp(p[0] * x - 90),
        [3.0],
        [2.0],
    ),
}


def data(name, noise=0.0):
    curve, right, _ = CURVES[name]
    y = curve(NUMPY, np.array(right), X)
    scale = noise * np.abs(y).mean()
    return y + scale * np.random.default_rng(1).normal(size=len(y))


def residual_of(name):
    curve = CURVES[name][0]
    return lambda p, x, y: curve(mx, p, x) - y


def best_fit(name, y):
    """Return the parameters by Gauss-Newton in NumPy, with fourth-order differences."""
    curve, right, _ = CURVES[name]
    p = np.array(right)

    def slope(j):
        step = 1e-3 * np.abs(p[j]) * np.eye(len(p))[j]
        f = [curve(NUMPY, p + k * step, X) for k in (-2, -1, 1, 2)]
        return (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * 1e-3 * np.abs(p[j]))

    for _ in range(60):
        jacobian = np.stack([slope(j) for j in range(len(p))], axis=1)
        p = p - np.linalg.lstsq(jacobian, curve(NUMPY, p, X) - y, rcond=None)[0]
    return p


def start(values):
    with mx.stream(mx.cpu):
        return mx.array(values, dtype=mx.float64)


def without_warning(function, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = function(*args, **kwargs)
    assert result.status is mo.Status.CONVERGED
    return result


@pytest.mark.parametrize("noise", [0.0, 0.01])
@pytest.mark.parametrize("name", CURVES)
def test_a_curve_is_fitted_to_ten_digits(name, noise):
    y = data(name, noise)
    right = best_fit(name, y) if noise else np.array(CURVES[name][1])
    result = without_warning(mo.least_squares, residual_of(name), start(CURVES[name][2]), X, y)
    np.testing.assert_allclose(np.array(result.params), right, rtol=1e-10)


@pytest.mark.parametrize("optimizer", [mo.LBFGS(), mo.Newton()], ids=["LBFGS", "Newton"])
@pytest.mark.parametrize("name", CURVES)
def test_a_curve_is_minimized_to_the_digits_of_its_loss(name, optimizer):
    residual, y = residual_of(name), data(name, 0.01)

    def loss(p, x, y):
        return mx.mean(mx.square(residual(p, x, y)))

    right = best_fit(name, y)
    near = start(right * (1 + 1e-3 * np.cos(np.arange(len(right)))))
    result = without_warning(mo.minimize, loss, near, optimizer, X, y)
    least = np.mean((CURVES[name][0](NUMPY, right, X) - y) ** 2)
    assert result.value == pytest.approx(least, rel=1e-8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = mo.minimize(loss, near, optimizer, X, y, tol=0, max_steps=60)
    np.testing.assert_allclose(np.array(result.params), right, rtol=1e-10)
