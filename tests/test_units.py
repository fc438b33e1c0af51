"""No method has units: other units of the loss or of the parameters give the same answer.

A loss f(x) from x₀ becomes c · f(s · u) + constant from x₀ / s; the answer s · u must be as good.
"""

import functools
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import pytest
from scipy.optimize import curve_fit
from scipy.optimize import minimize as scipy_minimize

import mlxopt as mo

WIDE, NARROW = mx.float64, mx.float32


class Case(NamedTuple):
    """A loss, written once for MLX and for NumPy, from a start."""

    loss: Any  # loss(x, m, *data), m the module with the functions
    start: tuple[float, ...]
    data: tuple[np.ndarray, ...] = ()


class Device:
    """The functions of MLX, with all digits in float64."""

    sum, mean, square = mx.sum, mx.mean, mx.square
    exp, log1p = mo.special.exp, mo.special.log1p


def quadratic(x, m, A, b):
    return 0.5 * m.sum(x * (A @ x)) - m.sum(b * x)


def rosenbrock(x, m):
    return 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2


def exponentials(x, m, b):
    return m.sum(m.exp(x) - b * x)


def logistic(x, m, X, y):
    z = X @ x
    return m.mean(m.log1p(m.exp(-z * y)))


def saturation(x, m, dose, y):  # y = a · dose / (b + dose)
    return m.sum(m.square(x[0] * dose / (x[1] + dose) - y))


def _cases() -> dict[str, Case]:
    rng = np.random.default_rng(0)
    A = rng.normal(size=(4, 4))
    A, b = A @ A.T + 0.5 * np.eye(4), rng.normal(size=4)
    X = rng.normal(size=(60, 3))
    y = np.where(rng.random(60) < 1 / (1 + np.exp(-X @ [1.0, -0.5, 0.2])), 1.0, -1.0)
    dose = np.linspace(0.2, 8, 30)
    curve = 2 * dose / (3 + dose) + 0.02 * rng.normal(size=30)
    return {
        "quadratic": Case(quadratic, (3.0, -2.0, 1.0, 4.0), (A, b)),
        "rosenbrock": Case(rosenbrock, (-1.2, 1.0)),
        "exponentials": Case(exponentials, (1.0, -1.0, 0.5), (np.array([2.0, 0.5, 7.0]),)),
        "logistic": Case(logistic, (0.1, 0.2, -0.1), (X, y)),
        "saturation": Case(saturation, (1.5, 2.0), (dose, curve)),
    }


CASES = _cases()
METHODS = {
    "LBFGS": mo.LBFGS(),
    "BFGS": mo.BFGS(),
    "Newton": mo.Newton(),
    "NewtonCG": mo.NewtonCG(),
    "TrustRegion": mo.TrustRegion(),
    "TrustRegion by CG": mo.TrustRegion(exact=False),
    "hager-zhang": mo.ConjugateGradient(),
    "polak-ribiere": mo.ConjugateGradient("polak-ribiere"),
    "GradientDescent": mo.GradientDescent(),
    "LBFGSB": mo.LBFGSB(),
    "ProximalGradient": mo.ProximalGradient(None),
}


@functools.cache
def minimum(name):
    """The least value, by methods of SciPy without MLX; and the value at the start."""
    case = CASES[name]

    def f(x):
        return float(case.loss(x, np, *case.data))

    near = scipy_minimize(f, case.start, method="BFGS", options={"gtol": 1e-9}).x
    options = {"xatol": 1e-12, "fatol": 0, "maxfev": 5000}
    return scipy_minimize(f, near, method="Nelder-Mead", options=options).fun, f(case.start)


def run(name, optimizer, dtype, factor=1.0, units=1.0, constant=0.0):
    """Minimize factor · loss(units · u) + constant; return the result, and how far it is above the
    minimum as a share of the drop from the start.
    """
    case = CASES[name]
    units = np.broadcast_to(np.asarray(units, dtype=np.float64), len(case.start))

    def loss(u, units, *data):
        return factor * case.loss(units * u, Device, *data) + constant

    start = mx.array(np.array(case.start) / units, dtype=dtype)
    result = mo.minimize(loss, start, optimizer, units, *case.data, max_steps=3000)
    least, first = minimum(name)
    value = case.loss(units * np.array(result.params, dtype=np.float64), np, *case.data)
    return result, (value - least) / (first - least)


def check(name, optimizer, dtype, **change):
    result, gap = run(name, optimizer, dtype, **change)
    assert result.status is mo.Status.CONVERGED, (change, result.status, result.reason)
    assert gap <= (1e-12 if dtype == WIDE else 1e-6), (change, gap)
    return result


# Steepest descent and its accelerated form need thousands of steps in Rosenbrock's valley.
SLOW = {("GradientDescent", "rosenbrock"), ("ProximalGradient", "rosenbrock")}
PAIRS = [(method, name) for method in METHODS for name in CASES if (method, name) not in SLOW]


@pytest.mark.parametrize("dtype", [WIDE, NARROW], ids=["float64", "float32"])
@pytest.mark.parametrize(("method", "name"), PAIRS)
def test_neither_the_verdict_nor_the_answer_has_units(method, name, dtype):
    optimizer, changes = METHODS[method], []
    changes += [{}, {"factor": 1e12}, {"factor": 1e-12}, {"units": 1e12}, {"units": 1e-12}]
    # A constant costs digits: its rounding is that of the loss.
    changes.append({"constant": 100.0} if dtype == WIDE else {"constant": 0.5})
    if method != "ProximalGradient":  # a penalty knows one step size for all parameters
        rng, most = np.random.default_rng(len(name)), 12 if dtype == WIDE else 6
        for _ in range(2):
            powers = rng.integers(-most, most + 1, size=len(CASES[name].start))
            changes.append({"units": 10.0**powers, "factor": 10.0 ** int(rng.integers(-6, 7))})
    for change in changes:
        check(name, optimizer, dtype, **change)


@pytest.mark.parametrize("method", ["LBFGS", "BFGS", "TrustRegion", "NewtonCG", "LBFGSB"])
@pytest.mark.parametrize("name", ["rosenbrock", "logistic", "saturation"])
def test_nor_has_the_number_of_evaluations(method, name):
    optimizer = METHODS[method]
    plain = check(name, optimizer, WIDE).evaluations
    for power in (-12, -5, 3, 12):
        assert check(name, optimizer, WIDE, factor=10.0**power).evaluations == plain
        assert check(name, optimizer, WIDE, units=10.0**power).evaluations == plain
        # By parameters the units are known within a factor.
        units = 10.0 ** np.linspace(-power, power, len(CASES[name].start))
        assert check(name, optimizer, WIDE, units=units).evaluations <= 1.6 * plain + 5


@pytest.mark.parametrize("method", ["LBFGS", "BFGS", "Newton", "NewtonCG", "TrustRegion"])
def test_a_saturation_curve_below_a_millionth_is_fitted(method):
    dose = np.geomspace(100, 20_000, 25)
    noise = 1 + 0.01 * np.random.default_rng(0).normal(size=25)
    y = 8e-7 * dose / (3766.85 + dose) * noise

    def curve(dose, a, b):
        return a * dose / (b + dose)

    def loss(p, dose, y):
        return mx.mean(mx.square(curve(dose, p[0], p[1]) - y))

    expected = curve_fit(lambda d, a, b: 1e-6 * curve(d, a, b), dose, y, (1, 1000), xtol=1e-14)[0]
    start = mx.array([1e-6, 1000.0], dtype=mx.float64)
    result = mo.minimize(loss, start, METHODS[method], dose, y)
    assert result.converged
    np.testing.assert_allclose(np.array(result.params) * [1e6, 1], expected, rtol=1e-6)


@pytest.mark.parametrize("p", [5, 40, 400])
@pytest.mark.parametrize("method", ["LBFGS", "hager-zhang", "NewtonCG", "LBFGSB"])
def test_columns_of_any_units_are_fitted(method, p):
    rng = np.random.default_rng(p)
    units, truth = 10.0 ** rng.uniform(-8, 8, size=p), rng.normal(size=p)
    X = rng.normal(size=(3 * p, p)) * units
    y = X @ (truth / units)

    def loss(w, X, y):
        return 0.5 * mx.mean(mx.square(X @ w - y))

    result = mo.minimize(loss, mx.zeros(p, dtype=mx.float64), METHODS[method], X, y)
    assert result.converged
    np.testing.assert_allclose(np.array(result.params) * units, truth, atol=1e-6)
    assert result.evaluations <= 300


@pytest.mark.parametrize("factor", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("unit", [1e-12, 1.0, 1e9])
def test_bounds_and_penalties_have_the_units_of_the_loss_and_the_parameters(factor, unit):
    A = np.array([[3.0, 1.0, 0.2], [1.0, 2.0, -0.3], [0.2, -0.3, 1.5]])
    b = np.array([4.0, -3.0, 1.0])

    def loss(u, unit, A, b):
        return factor * quadratic(unit * u, Device, A, b)

    start, data = mx.full((3,), 0.5 / unit, dtype=mx.float64), (unit, A, b)
    bounded = mo.minimize(loss, start, mo.LBFGSB(lower=0, upper=1 / unit), *data)
    box = mo.prox.Box(0.0, 1 / unit)
    projected = mo.minimize(loss, start, mo.ProximalGradient(box), *data)
    expected = [1.0, 0.0, 0.8 / 1.5]
    for result in (bounded, projected):
        assert result.converged
        np.testing.assert_allclose(np.array(result.params) * unit, expected, atol=1e-7)
    penalty = mo.prox.L1(0.5 * factor * unit)
    sparse = mo.minimize(loss, start, mo.ProximalGradient(penalty), *data)
    assert sparse.converged
    x = np.array(sparse.params) * unit
    slope = A @ x - b
    assert x[2] == 0
    assert abs(slope[2]) < 0.5
    np.testing.assert_allclose(slope[:2] + 0.5 * np.sign(x[:2]), 0, atol=1e-7)


RULES = {
    "SGD": lambda c, s: mo.SGD(0.1 / (c * s * s)),
    "Momentum": lambda c, s: mo.Momentum(0.05 / (c * s * s), 0.8),
    "Nesterov": lambda c, s: mo.Momentum(0.05 / (c * s * s), 0.8, nesterov=True),
    "Adam": lambda c, s: mo.Adam(0.05 / s, epsilon=1e-8 * c * s),
    "RMSProp": lambda c, s: mo.RMSProp(0.02 / s, epsilon=1e-8 * c * s),
    "Adagrad": lambda c, s: mo.Adagrad(0.5 / s, epsilon=1e-8 * c * s),
    "Lion": lambda c, s: mo.Lion(0.02 / s),
    "Prodigy": lambda c, s: mo.Prodigy(distance=1e-6 / s, epsilon=1e-8 * c * s),
}


@pytest.mark.parametrize("dtype", [WIDE, NARROW], ids=["float64", "float32"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.filterwarnings("ignore::mlxopt.ConvergenceWarning")
def test_first_order_rules_follow_their_learning_rate(rule, dtype):
    # A learning rate has units itself, one for all parameters: those of each cannot be undone.
    A = np.array([[3.0, 1.0], [1.0, 2.0]])
    b, start = np.array([1.0, -1.0]), np.array([2.0, 1.0])
    make, most = RULES[rule], 12 if dtype == WIDE else 5

    def found(c, s):
        def loss(u, A, b):
            return c * quadratic(s * u, mx, A, b)

        result = mo.minimize(loss, mx.array(start / s, dtype=dtype), make(c, s), A, b)
        return result, np.array(result.params, dtype=np.float64) * s

    plain, x = found(1.0, 1.0)
    for power in (-most, -3, most):
        for c, s in ((10.0**power, 1.0), (1.0, 10.0**power)):
            result, moved = found(c, s)
            assert result.status is plain.status, (c, s)
            if plain.converged:
                np.testing.assert_allclose(moved, x, atol=1e-7 if dtype == WIDE else 1e-3)


@pytest.mark.parametrize("method", ["LBFGS", "Newton", "BFGS"])
def test_each_of_many_problems_has_its_own_units(method):
    case, rng = CASES["logistic"], np.random.default_rng(3)
    X, y = case.data
    units = 10.0 ** rng.integers(-8, 9, size=(6, 3))
    units[0] = 1

    def loss(u, units, X, y):
        return logistic(units * u, Device, X, y)

    start, axes = mx.zeros(3, dtype=WIDE), (None, 0, None, None)
    found = mo.minimize_many(loss, start, METHODS[method], units, X, y, in_axes=axes)
    assert found.converged.all()
    least, first = minimum("logistic")
    np.testing.assert_allclose(found.value, least, atol=1e-12 * (first - least))
    for index in range(6):
        alone = mo.minimize(loss, start, METHODS[method], units[index], X, y)
        assert found.steps[index] == alone.steps


@pytest.mark.parametrize("name", METHODS)
def test_gradients_whose_squares_underflow(name):
    # Steihaug's iteration multiplies three such numbers.
    least = 1e-100 if name == "TrustRegion by CG" else 1e-170
    for dtype, unit in ((mx.float64, least), (mx.float32, 1e-30)):
        with mx.stream(mx.cpu):
            start = mx.zeros(3, dtype=dtype)
        result = mo.minimize(
            lambda x, unit=unit: unit * (mx.sum(mx.square(x - 1)) + mx.sum((x - 1) ** 4)),
            start,
            METHODS[name],
        )
        assert result.converged
        np.testing.assert_allclose(
            np.array(result.params), 1.0, atol=1e-2 if unit > 1e-99 else 1e-4
        )
