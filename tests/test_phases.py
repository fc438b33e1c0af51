"""Several optimizers in turn, and the finish in float64."""

import warnings

import mlx.core as mx
import numpy as np
import pytest
import scipy.optimize
import scipy.special
from problems import array64, regression, squared_loss

import mlxopt as mo
from mlxopt import Status

START = {"w": mx.zeros(5), "b": mx.array(0.0)}


def test_the_finish_reaches_float64_on_a_logistic_regression():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(5000, 10))
    y = (rng.random(5000) < 1 / (1 + np.exp(-X @ rng.normal(size=10)))).astype(float)
    expected = np.zeros(10)
    for _ in range(20):
        p = 1 / (1 + np.exp(-X @ expected))
        expected += np.linalg.solve((X * (p * (1 - p))[:, None]).T @ X, X.T @ (y - p))

    def loss(w, X, y):
        return mx.mean(mo.losses.logistic(X @ w, y))

    narrow = mo.minimize(loss, mx.zeros(10), mo.LBFGS(), X, y)
    finished = mo.minimize(loss, mx.zeros(10), mo.LBFGS(), X, y, finish="float64")
    assert finished.converged
    assert finished.params.dtype == mx.float64
    # The goal is 1e-10; Newton steps end at some roundings.
    np.testing.assert_allclose(np.array(finished.params), expected, rtol=1e-12)
    assert np.abs(np.array(narrow.params) / expected - 1).max() > 1e-7
    assert [(p.optimizer, p.dtype) for p in finished.phases] == [
        ("LBFGS", "float32"),
        ("LBFGS", "float64"),
        ("Newton", "float64"),
    ]
    assert sum(p.steps for p in finished.phases) == finished.steps
    assert sum(p.evaluations for p in finished.phases) == finished.evaluations
    assert np.all(np.diff(finished.history.step) > 0)
    assert "LBFGS, float64: CONVERGED" in repr(finished)


def test_the_finish_takes_the_data_as_they_were_given():
    # Rounded to float32 first, the data would have another minimum.
    X, y, _ = regression(rows=300)
    design = np.column_stack([X, np.ones(len(X))])
    expected = np.linalg.lstsq(design, y, rcond=None)[0]
    for data in ((X, y), (array64(X), array64(y))):
        result = mo.minimize(squared_loss, START, mo.LBFGS(), *data, finish="float64")
        np.testing.assert_allclose(np.array(result.params["w"]), expected[:-1], rtol=1e-12)


def test_the_finish_of_float64_parameters_is_the_polish():
    X, y, _ = regression()
    start = {"w": array64(np.zeros(5)), "b": array64(0.0)}
    result = mo.minimize(squared_loss, start, mo.LBFGS(), X, y, finish="float64")
    assert result.phases[-1].optimizer == "Newton"
    assert result.optimality < 1e-14


@pytest.mark.parametrize("tol", [1e-3, 1e-11])
def test_tol_is_that_of_the_end(tol):
    X, y, _ = regression()
    result = mo.minimize(squared_loss, START, mo.LBFGS(), X, y, tol=tol, finish="float64")
    assert result.converged
    assert result.optimality <= tol


def test_a_run_that_failed_is_not_finished():
    X, y, _ = regression()
    with pytest.warns(mo.ConvergenceWarning, match="MAX_STEPS"):
        result = mo.minimize(
            squared_loss, START, mo.SGD(0.01), X, y, max_steps=10, finish="float64"
        )
    assert len(result.phases) == 1


def test_optimizers_in_turn_share_one_history():
    X, y, _ = regression()
    calls = []

    def loss(params, X, y):
        calls.append(1)
        return squared_loss(params, X, y)

    stages = [(mo.SGD(0.1), 20), (mo.Momentum(0.05), 30), mo.Newton()]
    seen = []
    result = mo.minimize(loss, START, stages, X, y, callback=lambda info: seen.append(info))
    assert result.converged
    assert [p.steps for p in result.phases][:2] == [20, 30]
    assert [p.status for p in result.phases] == [
        Status.MAX_STEPS,
        Status.MAX_STEPS,
        Status.CONVERGED,
    ]
    assert np.all(np.diff(result.history.step) > 0)
    assert result.history.step[-1] == result.steps
    assert np.all(np.diff([info.evaluations for info in seen]) >= 0)
    assert seen[-1].evaluations == result.evaluations
    # In turn by hand: the same points.
    first = mo.minimize(squared_loss, START, stages[0][0], X, y, max_steps=20, tol=0)
    second = mo.minimize(squared_loss, first.params, stages[1][0], X, y, max_steps=30, tol=0)
    assert result.phases[1].value == pytest.approx(second.value, rel=1e-6)


def test_a_stage_that_converges_ends_the_run():
    X, y, _ = regression()
    result = mo.minimize(squared_loss, START, [mo.LBFGS(), mo.Newton()], X, y)
    assert [p.optimizer for p in result.phases] == ["LBFGS"]


def test_two_methods_on_one_objective_do_not_mix_up_their_compiled_pieces():
    X, y, _ = regression()
    stages = [(mo.LBFGS(), 2), (mo.Newton(), 1), (mo.LBFGS(memory=3), 2), mo.SGD(0.1)]
    assert mo.minimize(squared_loss, START, stages, X, y).converged


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"optimizer": []}, ValueError, "at least one"),
        ({"optimizer": [mo.LBFGS]}, TypeError, "the class LBFGS"),
        ({"optimizer": [(mo.LBFGS(), 0)]}, ValueError, "1 or more"),
        ({"optimizer": [(mo.LBFGS(), 1.5)]}, TypeError, "whole number"),
        ({"finish": "float16"}, ValueError, 'None or "float64"'),
        ({"finish": True}, ValueError, 'None or "float64"'),
    ],
)
def test_misuse_raises_at_the_door(change, error, words):
    arguments = {"optimizer": mo.LBFGS(), **change}
    optimizer = arguments.pop("optimizer")
    with pytest.raises(error, match=words):
        mo.minimize(lambda w: mx.sum(w * w), mx.ones(2), optimizer, **arguments)


def test_the_finish_of_a_negative_binomial_regression_written_by_hand():
    rng = np.random.default_rng(3)
    X = np.column_stack([np.ones(800), rng.normal(size=(800, 2))])
    mean = np.exp(X @ [1.0, 0.5, -0.3])
    y = rng.poisson(mean * rng.gamma(2.0, 0.5, size=800)).astype(float)

    def loss(params, X, y):
        size = mo.special.exp(params["log_size"])
        eta = X @ params["coef"]
        total = mo.special.softplus(eta - params["log_size"]) + params["log_size"]  # log(size + μ)
        likelihood = mo.special.lgamma(y + size) - mo.special.lgamma(size)
        return mx.mean((y + size) * total - size * params["log_size"] - y * eta - likelihood)

    start = {"coef": mx.zeros(3), "log_size": mx.array(0.0)}
    result = mo.minimize(loss, start, mo.LBFGS(), X, y, finish="float64")
    assert result.converged
    assert result.certificate.is_minimum

    def slope(theta):  # of the same likelihood, by hand, in SciPy's functions
        size, mu = np.exp(theta[3]), np.exp(X @ theta[:3])
        by_eta = (y + size) * mu / (size + mu) - y
        by_size = (
            np.log((size + mu) / size) + (y + size) / (size + mu) - 1
            - scipy.special.digamma(y + size) + scipy.special.digamma(size)
        )  # fmt: skip
        return np.append(X.T @ by_eta, size * by_size.sum()) / len(y)

    found = np.append(np.array(result.params["coef"]), result.params["log_size"].item())
    expected = scipy.optimize.root(slope, found, tol=1e-14).x
    assert np.abs(slope(expected)).max() < 1e-14
    np.testing.assert_allclose(found, expected, rtol=1e-9)  # the goal


@pytest.mark.parametrize(
    "optimizer",
    [mo.LBFGSB(lower=0.0, upper=1.0), mo.ProximalGradient(mo.prox.Box(0.0, 1.0))],
    ids=lambda optimizer: type(optimizer).__name__,
)
def test_the_finish_stays_within_bounds(optimizer):
    target = mx.array([3.0, -0.2, 0.3])
    start = mx.full((3,), 0.5)
    result = mo.minimize(
        lambda x: mx.sum(mx.square(x - target)), start, optimizer, finish="float64"
    )
    assert result.converged
    np.testing.assert_allclose(np.array(result.params), [1.0, 0.0, 0.3], atol=1e-7)
    with pytest.raises(ValueError, match="without bounds"):
        _ = result.certificate


# --- least_squares -----------------------------------------------------------------------------

# NIST's Misra1a (StRD, lower difficulty), with its certified values of eleven digits.
VOLUME = [10.07, 14.73, 17.94, 23.93, 29.61, 35.18, 40.02, 44.82, 50.76, 55.05, 61.01, 66.4, 75.47,
          81.78]  # fmt: skip
PRESSURE = [77.6, 114.9, 141.1, 190.8, 239.9, 289.0, 332.8, 378.4, 434.8, 477.3, 536.8, 593.1,
            689.1, 760.0]  # fmt: skip
CERTIFIED = {"b1": (2.3894212918e2, 2.7070075241e0), "b2": (5.5015643181e-4, 7.2668688436e-6)}


def misra(params, x, y):
    return params["b1"] * -mo.special.expm1(-params["b2"] * x) - y


def misra_start(dtype):
    return {name: mx.array(number, dtype=dtype) for name, number in (("b1", 250.0), ("b2", 5e-4))}


def digits(tree, column):
    errors = [abs(tree[name].item() / known[column] - 1) for name, known in CERTIFIED.items()]
    return min(11.0, -np.log10(max(errors)))


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
@pytest.mark.parametrize("optimizer", [mo.LevenbergMarquardt(), mo.GaussNewton()])
def test_a_least_squares_fit_finishes_in_float64(optimizer, dtype):
    # The data are not numbers of float32: the finish must take them as they were given.
    fit = mo.least_squares(
        misra, misra_start(dtype), PRESSURE, VOLUME, optimizer=optimizer, finish="float64"
    )
    assert fit.converged
    assert fit.params["b1"].dtype == mx.float64
    assert digits(fit.params, 0) >= 10.5
    assert digits(fit.standard_errors, 1) >= 9
    name = type(optimizer).__name__
    assert [(phase.optimizer, phase.dtype) for phase in fit.phases] == [
        (name, "float32"),
        (name, "float64"),
        ("Polish", "float64"),
    ]
    assert fit.steps == sum(phase.steps for phase in fit.phases)
    assert np.all(np.diff(fit.history.step) > 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mo.ConvergenceWarning)
        narrow = mo.least_squares(misra, misra_start(dtype), PRESSURE, VOLUME, optimizer=optimizer)
    assert digits(narrow.params, 0) < 8


def test_the_finish_of_a_fit_in_float64_is_the_fit():
    plain, finished = (
        mo.least_squares(misra, misra_start(mx.float64), PRESSURE, VOLUME, finish=finish)
        for finish in (None, "float64")
    )
    assert [phase.optimizer for phase in finished.phases] == ["LevenbergMarquardt", "Polish"]
    assert finished.params["b1"].item() == plain.params["b1"].item()


def test_the_finish_of_a_fit_keeps_the_bounds_and_the_robust_loss():
    x = np.linspace(0, 1, 30)
    y = 2 * x + 0.1 + 0.01 * np.sin(40 * x)
    y[3] = 9.0

    def wide(p, x, y):
        return p[0] * x + p[1] + p[2] - y

    # The second one is held at a number that float32 rounds up, out of the bounds of float64.
    bounds = ([0.0, 0.1, None], [1.9, 0.1, None])
    fit = mo.least_squares(
        wide, mx.array([1.0, 0.1, 0.0]), x, y, bounds=bounds, robust=("huber", 0.1),
        finish="float64",
    )  # fmt: skip
    assert fit.converged
    assert fit.params.tolist()[:2] == [1.9, 0.1]

    def free(offset):
        return wide([1.9, 0.1, offset[0]], x, y)

    expected = scipy.optimize.least_squares(
        free, [0.0], loss="huber", f_scale=0.1, xtol=1e-15, ftol=1e-15, gtol=1e-15
    )
    np.testing.assert_allclose(fit.params[2].item(), expected.x[0], rtol=1e-8)


def test_the_finish_of_a_fit_at_the_door_and_at_the_end():
    with pytest.raises(ValueError, match='None or "float64"'):
        mo.least_squares(misra, misra_start(mx.float32), PRESSURE, VOLUME, finish="float16")
    with pytest.warns(mo.ConvergenceWarning, match="MAX_STEPS"):
        fit = mo.least_squares(
            misra, misra_start(mx.float32), PRESSURE, VOLUME, finish="float64", max_steps=1
        )
    assert [phase.dtype for phase in fit.phases] == ["float32"]


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize(
    "optimizer",
    [
        mo.ProximalGradient(mo.prox.Box(0.0, 0.3)),
        mo.LBFGSB(lower=[0.1, 0.0], upper=[0.1, 0.3]),
    ],
    ids=lambda optimizer: type(optimizer).__name__,
)
def test_a_finish_starts_at_a_bound_that_float32_rounds_outwards(optimizer, dtype):
    # 0.3 is above itself in float32 and 0.1 too: in float64 the run would start outside.
    def loss(x):
        return mx.sum(mx.square(x - mx.array([0.1, 2.0], dtype=x.dtype)))

    start = mx.array([0.1, 0.1], dtype=dtype)
    result = mo.minimize(loss, start, optimizer, finish="float64", progress=False)
    assert result.converged
    np.testing.assert_allclose(np.array(result.params), [0.1, 0.3], rtol=1e-7)
    assert result.params[1].item() <= 0.3
