"""Covariances against closed forms and statsmodels, and everything that must be refused."""

import math
import warnings
from typing import Any

import mlx.core as mx
import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm

import mlxopt as mo
from mlxopt import inference
from mlxopt.linalg import LinAlgError

f64 = mx.float64


# Both sides compute the same matrix product and inverse in float64 at the same estimate, of
# condition numbers under 1e4: 1e-10 leaves room. Where each side found the estimate by itself, to
# a gradient of 1e-10 of n, the covariance follows to the 1e-8 that is asked for.
def assert_same(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=0)


def assert_close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-14)


def line(params, X):
    return X @ params["w"] + params["b"]


def gauss(params, X, y):
    """Normal noise of known variance 0.49."""
    return 0.5 * mx.square(y - line(params, X)) / 0.49


def gauss_with_scale(params, X, y):
    # exp by sinh and cosh: MLX's own keeps 7 digits
    s = params["log_sigma"]
    inverse = mx.cosh(-s) + mx.sinh(-s)
    return 0.5 * mx.square((y - line(params, X)) * inverse) + s


def logit(params, X, y):
    return mo.losses.logistic(line(params, X), y)


def start(p, dtype=f64, **more):
    with mx.stream(mx.cpu):
        zeros = {"w": mx.zeros(p, dtype=dtype), "b": mx.array(0.0, dtype=dtype)}
        return zeros | {name: mx.array(value, dtype=dtype) for name, value in more.items()}


def fit(nll, params, *data, tol=None, optimizer=None):
    def mean(params, *data):
        return mx.mean(nll(params, *data))

    return mo.minimize(mean, params, optimizer or mo.Newton(), *data, tol=tol)


@pytest.fixture(scope="module")
def linear():
    rng = np.random.default_rng(1)
    X = rng.normal(size=(120, 3)) * [1.0, 4.0, 0.3]
    y = X @ [1.0, -0.2, 3.0] + 0.5 + rng.normal(size=120) * (0.3 + 0.5 * np.abs(X[:, 0]))
    return X, y, rng.integers(0, 15, size=120)


@pytest.fixture(scope="module")
def classes():
    rng = np.random.default_rng(2)
    X = rng.normal(size=(300, 2)) * [1.0, 2.0]
    y = (rng.uniform(size=300) < 1 / (1 + np.exp(-(0.4 + X @ [1.0, -0.5])))).astype(float)
    return X, y, rng.integers(0, 25, size=300)


def design(X):
    return np.column_stack([X, np.ones(len(X))])  # the order of the leaves: w, then b


# --- Against closed forms -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [mx.float32, f64])
def test_linear_with_known_variance(linear, dtype):
    X, y, _ = linear
    result = fit(gauss, start(3, dtype), X, y)
    found = inference.covariance(gauss, result, X, y)
    A = design(X)
    # The Hessian of a quadratic is the same everywhere, so float32 parameters lose nothing.
    assert_same(found.covariance, 0.49 * np.linalg.inv(A.T @ A))
    np.testing.assert_allclose(found.standard_errors, np.sqrt(np.diag(found.covariance)), rtol=0)
    assert found.names == ("params['w'][0]", "params['w'][1]", "params['w'][2]", "params['b']")
    assert found.examples == 120
    assert found.correction is found.clusters is None
    assert found.distance < (1e-3 if dtype == mx.float32 else 1e-9)
    assert found.covariance.dtype == found.estimate.dtype == np.float64
    np.testing.assert_array_equal(
        found.estimate, [*np.array(result.params["w"]), result.params["b"].item()]
    )


def test_linear_with_variance_as_parameter(linear):
    X, y, _ = linear
    result = fit(gauss_with_scale, start(3, log_sigma=0.0), X, y, tol=1e-12)
    found = inference.covariance(gauss_with_scale, result, X, y)
    A, n = design(X), len(y)
    residual = y - A @ np.linalg.lstsq(A, y)[0]
    variance = residual @ residual / n
    expected = np.zeros((5, 5))
    expected[:4, :4] = variance * np.linalg.inv(A.T @ A)
    expected[4, 4] = 1 / (2 * n)
    np.testing.assert_allclose(found.covariance, expected, rtol=1e-8, atol=1e-11)

    def sigma_squared(params):
        half = mx.cosh(params["log_sigma"]) + mx.sinh(params["log_sigma"])
        return half * half

    carried = inference.delta(sigma_squared, found)
    assert carried.names == ("sigma_squared",)
    np.testing.assert_allclose(carried.estimate, [variance], rtol=1e-10)
    np.testing.assert_allclose(carried.covariance, [[2 * variance**2 / n]], rtol=1e-8)


def test_least_squares_and_t_intervals_are_those_of_statsmodels(linear):
    X, y, _ = linear
    theirs = sm.OLS(y, design(X)).fit()

    def nll(params, X, y):
        return 0.5 * mx.square(y - line(params, X)) / theirs.scale

    found = inference.covariance(nll, fit(nll, start(3), X, y), X, y)
    assert_close(found.covariance, theirs.cov_params())
    for level in (0.95, 0.5):
        interval = found.intervals(level, degrees_of_freedom=theirs.df_resid)
        low, high = theirs.conf_int(1 - level).T
        assert_close(interval.lower, low)
        assert_close(interval.upper, high)
        assert interval.level == level
        assert interval.method == "Wald, t(116)"


COVARIANCES = [
    ("sandwich", None, "HC0", {}),
    ("sandwich", "HC0", "HC0", {}),
    ("sandwich", "HC1", "HC1", {}),
    ("cluster", "CR0", "cluster", {"use_correction": False}),
    ("cluster", "CR1S", "cluster", {"use_correction": True}),
]


@pytest.mark.parametrize(("kind", "correction", "theirs", "options"), COVARIANCES)
def test_sandwich_of_least_squares(linear, kind, correction, theirs, options: Any):
    X, y, groups = linear
    clusters = groups if kind == "cluster" else None
    if clusters is not None:
        options = {"cov_kwds": {"groups": groups, **options}}
    expected = sm.OLS(y, design(X)).fit(cov_type=theirs, **options).cov_params()
    result = fit(gauss, start(3), X, y)
    for scale in (1.0, 20.0):  # of the loss, which drops out

        def nll(params, X, y, scale=scale):
            return scale * gauss(params, X, y)

        found = inference.covariance(
            nll, result, X, y, kind=kind, correction=correction, clusters=clusters
        )
        assert_close(found.covariance, expected)


@pytest.mark.parametrize(
    ("kind", "correction", "theirs", "options"),
    [("observed", None, "nonrobust", {}), *COVARIANCES],
)
def test_logistic(classes, kind, correction, theirs, options: Any):
    X, y, groups = classes
    clusters = groups if kind == "cluster" else None
    if clusters is not None:
        options = {"cov_kwds": {"groups": groups, **options}}
    model = sm.Logit(y, design(X))
    # For its likelihood models statsmodels takes HC1 to be HC0; the factor is then ours to add.
    factor = 300 / 297 if correction == "HC1" else 1.0
    expected = model.fit(cov_type=theirs, disp=False, tol=1e-14, **options)
    result = fit(logit, start(2), X, y, tol=1e-10)
    found = inference.covariance(
        logit, result, X, y, kind=kind, correction=correction, clusters=clusters
    )
    assert_close(found.covariance, factor * expected.cov_params())
    low, high = expected.conf_int().T
    if factor == 1:
        assert_close(found.intervals().lower, low)
        assert_close(found.intervals().upper, high)


def test_default_correction_by_cluster(classes):
    X, y, groups = classes
    result = fit(logit, start(2), X, y, tol=1e-10)

    def by(clusters, correction=None):
        return inference.covariance(
            logit, result, X, y, kind="cluster", clusters=clusters, correction=correction
        )

    plain, usual = by(groups, "CR0"), by(groups)
    assert (usual.correction, usual.clusters, usual.notes) == ("CR1", 25, ())
    assert_same(usual.covariance, 25 / 24 * plain.covariance)
    # Labels are names: texts, a Series and an mx.array will do.
    texts = np.array([f"school {g}" for g in groups])
    for labels in (texts, texts.tolist(), pd.Series(groups), mx.array(groups)):
        assert_same(by(labels).covariance, usual.covariance)
    # A cluster for each example is no clustering.
    alone = by(np.arange(300), "CR0").covariance
    sandwich = inference.covariance(logit, result, X, y, kind="sandwich").covariance
    assert_same(alone, sandwich)


def test_a_float32_fit_is_judged_in_float64(classes):
    X, y, _ = classes
    kinds = {"observed": {}, "sandwich": {"kind": "sandwich"}}
    exact = fit(logit, start(2), X, y, tol=1e-10)
    rough = fit(logit, start(2, mx.float32), X.astype(np.float32), y.astype(np.float32))
    for options in kinds.values():
        found = inference.covariance(logit, rough, X, y, **options)
        expected = inference.covariance(logit, exact, X, y, **options)
        # The covariance moves with the estimate: by the float32 tolerance of 1e-5 on the mean's
        # gradient, over a curvature of 0.1.
        np.testing.assert_allclose(found.covariance, expected.covariance, rtol=1e-3)
        # The distance that it reports is the distance that it has.
        away = np.abs(found.estimate - expected.estimate) / expected.standard_errors
        assert found.distance == pytest.approx(away.max(), rel=0.05)
        assert 0 < found.distance < 1e-3


# --- Normalization --------------------------------------------------------------------------------


def test_one_number_for_all(classes):
    X, y, _ = classes
    result = fit(logit, start(2), X, y, tol=1e-10)
    expected = inference.covariance(logit, result, X, y)

    def total(params, X, y):
        return mx.sum(logit(params, X, y))

    found = inference.covariance(total, result, X, y)
    assert_same(found.covariance, expected.covariance)
    assert found.examples is None
    assert "one number for all the data" in repr(found)

    def mean(params, X, y):
        return mx.mean(logit(params, X, y))

    def penalized_mean(params, X, y):
        return mean(params, X, y) + 1e-3 * mx.sum(mx.square(params["w"]))

    for loss in (mean, penalized_mean):
        for rows in (300, 299, 2):  # halves that are equal, and not
            with pytest.raises(ValueError, match=f"{rows} times too large"):
                inference.covariance(loss, result, X[:rows], y[:rows])


def test_a_penalty_needs_total(classes):
    X, y, _ = classes

    def posterior(params, X, y):
        return mx.sum(logit(params, X, y)) + 2.0 * mx.sum(mx.square(params["w"]))

    result = mo.minimize(posterior, start(2), mo.Newton(), X, y)
    with pytest.raises(ValueError, match="total=True"):
        inference.covariance(posterior, result, X, y)
    found = inference.covariance(posterior, result, X, y, total=True)
    A = design(X)
    p = 1 / (1 + np.exp(-A @ found.estimate))
    hessian = (A.T * (p * (1 - p))) @ A + np.diag([4.0, 4.0, 0.0])
    assert_same(found.covariance, np.linalg.inv(hessian))


def test_without_data_nothing_shows_the_normalization(linear):
    X, y, _ = linear
    with mx.stream(mx.cpu):
        data = mx.array(X, dtype=f64), mx.array(y, dtype=f64)
    result = fit(gauss, start(3), X, y)
    with pytest.raises(ValueError, match="pass the data as arguments"):
        inference.covariance(lambda params: mx.sum(gauss(params, *data)), result)
    found = inference.covariance(lambda params: gauss(params, *data), result)
    expected = inference.covariance(gauss, result, X, y)
    np.testing.assert_array_equal(found.covariance, expected.covariance)


def test_values_depend_on_their_own_example_alone(linear):
    X, y, _ = linear
    result = fit(gauss, start(3), X, y)

    def divided(params, X, y):
        return gauss(params, X, y) / len(y)

    def standardized(params, X, y):
        residual = y - line(params, X)
        return mx.square(residual) / mx.mean(mx.square(residual))

    for nll in (divided, standardized):
        with pytest.raises(ValueError, match="the same example among fewer others"):
            inference.covariance(nll, result, X, y)

    def autoregression(params, X, y):  # looks back, which is fine
        before = mx.concatenate([mx.zeros(1, dtype=y.dtype), y[:-1]])
        return 0.5 * mx.square(y - line(params, X) - 0.1 * before)

    again = fit(autoregression, start(3), X, y)
    assert inference.covariance(autoregression, again, X, y).examples == 120


def refusals(linear):
    X, y, _ = linear
    column = y[:, None]
    return {
        "broadcast": (gauss, (X, column), {}, ValueError, r"shape \(120, 120\).*\(n, n\)"),
        "number": (lambda p, X, y: 1.0, (X, y), {}, TypeError, "builtins.float"),
        "nothing": (lambda p, X, y: None, (X, y), {}, TypeError, "NoneType"),
        "cast": (
            lambda p, X, y: gauss(p, X, y).astype(mx.float32), (X, y), {}, TypeError, "astype"
        ),
        "total by example": (gauss, (X, y), {"total": True}, ValueError, "Leave it out"),
        "NaN": (gauss, (X, np.where(np.arange(120) == 7, np.nan, y)), {}, ValueError, "example 7"),
        "kind": (gauss, (X, y), {"kind": "fisher"}, ValueError, "'observed', 'sandwich'"),
        "correction": (
            gauss, (X, y), {"kind": "sandwich", "correction": "HC3"}, ValueError, "leverage"
        ),
        "observed HC1": (gauss, (X, y), {"correction": "HC1"}, ValueError, "expected None"),
        "no clusters": (gauss, (X, y), {"kind": "cluster"}, ValueError, "needs clusters="),
        "idle clusters": (gauss, (X, y), {"clusters": y}, ValueError, "kind='cluster'"),
        "few labels": (
            gauss, (X, y), {"kind": "cluster", "clusters": [1, 2]}, ValueError, r"\(120,\)"
        ),
        "one cluster": (
            gauss, (X, y), {"kind": "cluster", "clusters": np.ones(120)}, ValueError, "two clusters"
        ),
        "NaN label": (
            gauss, (X, y), {"kind": "cluster", "clusters": np.where(y > 0, np.nan, 1)}, ValueError,
            "no label for example",
        ),
        "sum for sandwich": (
            lambda p, X, y: mx.sum(gauss(p, X, y)), (X, y), {"kind": "sandwich"}, ValueError,
            "Leave out the sum",
        ),
        "text": (gauss, (X, np.array(["a"] * 120)), {}, TypeError, "MLX cannot hold"),
        "other data": (gauss, (X[:, :2], y), {}, ValueError, "matmul"),
    }  # fmt: skip


@pytest.mark.parametrize("case", refusals((np.zeros((120, 3)), np.zeros(120), None)))
def test_refusals(linear, case):
    nll, data, options, error, words = refusals(linear)[case]
    X, y, _ = linear
    result = fit(gauss, start(3), X, y)
    with pytest.raises(error, match=words):
        inference.covariance(nll, result, *data, **options)


def test_off_the_tape(linear):
    X, y, _ = linear
    result = fit(gauss, start(3), X, y)

    def nll(params, X, y):
        return 0.5 * mx.square(y - line(params, X) * float(params["b"].item() > 0))

    with pytest.raises(mo.TapeError, match="compile=False"):
        inference.covariance(nll, result, X, y)
    expected = inference.covariance(lambda p, X, y: 0.49 * gauss(p, X, y), result, X, y)
    found = inference.covariance(nll, result, X, y, compile=False)
    assert_same(found.covariance, expected.covariance)


def test_result_or_parameters(linear):
    X, y, _ = linear
    result = fit(gauss, start(3), X, y)
    by_params = inference.covariance(gauss, result.params, X, y)
    np.testing.assert_array_equal(
        by_params.covariance, inference.covariance(gauss, result, X, y).covariance
    )
    numpy = {name: np.array(leaf) for name, leaf in result.params.items()}
    np.testing.assert_array_equal(
        by_params.covariance, inference.covariance(gauss, numpy, X, y).covariance
    )
    with pytest.raises(TypeError, match=r"params\['w'\] is builtins.str"):
        inference.covariance(gauss, {"w": "zero", "b": 0.0}, X, y)
    with pytest.raises(TypeError, match="expected a function"):
        inference.covariance(result, gauss, X, y)  # pyright: ignore[reportArgumentType]


# --- What has no covariance -----------------------------------------------------------------------


def test_not_identified(linear):
    X, y, _ = linear
    double = np.column_stack([X[:, 0], X[:, 1], 2 * X[:, 0] + 1])  # with the intercept, dependent

    def least_norm(params, X, y):
        return gauss(params, X, y)

    with mx.stream(mx.cpu):
        A = design(double)
        best = np.linalg.lstsq(A, y)[0]
        params = {"w": mx.array(best[:3], dtype=f64), "b": mx.array(best[3], dtype=f64)}
    words = (
        r"do not determine (params\['w'\]\[0\] - 0.5 params\['w'\]\[2\] \+ 0.5 params\['b'\]|.*)"
    )
    with pytest.raises(LinAlgError, match=words) as caught:
        inference.covariance(least_norm, params, double, y)
    # Along (2, 0, -1, 1) nothing changes; so it reads, and the column that is free stays out.
    assert "params['w'][0] - 0.5 params['w'][2] + 0.5 params['b']:" in str(caught.value)


def test_a_flat_direction_is_seen_through_rounding():
    nll = lambda w, X: 0.5 * mx.square(X @ w)  # noqa: E731
    smallest = []
    for seed in range(20):  # the smallest eigenvalue comes out now above, now below zero
        rng = np.random.default_rng(seed)
        X = rng.normal(size=(200, 3))
        X = np.column_stack([X, X @ rng.normal(size=3)])
        gram = X.T @ X
        unit = np.sqrt(np.diag(gram))
        smallest.append(np.linalg.eigvalsh(gram / np.outer(unit, unit))[0])
        with mx.stream(mx.cpu), pytest.raises(LinAlgError, match="not identified"):
            inference.covariance(nll, mx.zeros(4, dtype=f64), X)
    assert min(smallest) < 0 < max(smallest)


def test_a_parameter_without_effect(linear):
    X, y, _ = linear
    with pytest.warns(mo.ConvergenceWarning, match="ignores"):
        result = fit(gauss, start(3, idle=2.0), X, y)
    with pytest.raises(LinAlgError, match=r"does not change with params\['idle'\]"):
        inference.covariance(gauss, result, X, y)


def test_no_minimum():
    y = mx.zeros(3)

    def saddle(params, y):
        return params[0] ** 2 + 4 * params[0] * params[1] + params[1] ** 2 + y

    with pytest.raises(LinAlgError, match=r"curves downwards along params\[0\] - params\[1\]"):
        inference.covariance(saddle, mx.zeros(2), y)

    def top(params, y):
        return params[0] ** 2 - params[1] ** 2 + y

    with pytest.raises(LinAlgError, match=r"does not curve upwards in params\[1\]"):
        inference.covariance(top, mx.zeros(2), y)

    def kink(params, y):
        return mx.sqrt(mx.square(params)) ** 3 + y

    with pytest.raises(ValueError, match="no finite derivative"):
        inference.covariance(kink, mx.array(0.0), y)


def test_ill_conditioned_is_not_singular():
    rng = np.random.default_rng(5)
    X = rng.normal(size=(50, 2))
    X = np.column_stack([X[:, 0], X[:, 0] + 1e-4 * X[:, 1]])
    nll = lambda w, X: 0.5 * mx.square(X @ w)  # noqa: E731
    with mx.stream(mx.cpu):
        found = inference.covariance(nll, mx.zeros(2, dtype=f64), X)
    inverse = np.linalg.inv(np.linalg.qr(X).R)
    assert 1e8 < found.condition < 1e10
    np.testing.assert_allclose(found.covariance, inverse @ inverse.T, rtol=found.condition * 1e-15)


def test_far_from_the_minimum_warns(linear):
    X, y, _ = linear
    result = fit(gauss, start(3), X, y)
    close = inference.covariance(gauss, result, X, y)
    with mx.stream(mx.cpu):
        for share, warns in ((0.009, False), (0.011, True)):
            moved = dict(result.params)
            moved["b"] = moved["b"] + share * close.standard_errors[3]
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                found = inference.covariance(gauss, moved, X, y)
            assert found.distance == pytest.approx(share, rel=1e-6)
            assert bool(caught) == warns
            if caught:
                assert "params['b']" in str(caught[0].message)
                assert caught[0].filename == __file__

    def other(params, X, y):  # not what was minimized
        return gauss(params, X, y) + 0.05 * mx.square(params["w"][0])

    with pytest.warns(mo.ConvergenceWarning, match="the one that was minimized"):
        inference.covariance(other, result, X, y)


def test_a_failed_run_warns(classes):
    X, y, _ = classes
    with pytest.warns(mo.ConvergenceWarning, match="MAX_STEPS"):
        short = mo.minimize(
            lambda *args: mx.mean(logit(*args)), start(2), mo.LBFGS(), X, y, max_steps=3
        )
    with pytest.warns(mo.ConvergenceWarning, match="the run ended MAX_STEPS"):
        inference.covariance(logit, short, X, y)
    # Steps that were asked for and taken are no failure; where they led is what counts.
    taken = mo.minimize(
        lambda *args: mx.mean(logit(*args)), start(2), mo.Newton(), X, y, tol=0, max_steps=7
    )
    assert taken.status is mo.Status.COMPLETED
    assert inference.covariance(logit, taken, X, y).distance < 1e-6


def test_few_clusters_are_noted(linear):
    X, y, groups = linear
    result = fit(gauss, start(3), X, y)
    found = inference.covariance(gauss, result, X, y, kind="cluster", clusters=groups % 3)
    assert "3 clusters for 4 parameters" in found.notes[0]
    assert "Note: 3 clusters" in repr(found)
    assert found.intervals().notes == found.notes


# --- The delta method -----------------------------------------------------------------------------


def test_delta_of_a_ratio(classes):
    X, y, _ = classes
    found = inference.covariance(logit, fit(logit, start(2), X, y), X, y)

    def ratio(params):
        return params["w"][0] / params["w"][1]

    carried = inference.delta(ratio, found)
    a, b, _ = found.estimate
    J = np.array([1 / b, -a / b**2, 0.0])
    assert_same(carried.covariance, [[J @ found.covariance @ J]])
    assert carried.names == ("ratio",)
    assert (carried.kind, carried.examples) == ("observed", 300)


def test_delta_of_predictions_and_of_a_delta(classes):
    X, y, _ = classes
    found = inference.covariance(logit, fit(logit, start(2), X, y), X, y, kind="sandwich")

    def logits(params, X):
        return {"of": line(params, X)}

    few = X[:4].tolist()
    carried = inference.delta(logits, found, np.array(few))
    A = design(X[:4])
    np.testing.assert_allclose(carried.covariance, A @ found.covariance @ A.T, rtol=1e-9)
    assert carried.names[1] == "logits['of'][1]"
    # 4 numbers from 3: no variance of a combination may come out negative.
    twice = inference.delta(lambda out: mo.special.sigmoid(out["of"]), carried)
    p = 1 / (1 + np.exp(-A @ found.estimate))
    J = (p * (1 - p))[:, None] * A
    np.testing.assert_allclose(twice.covariance, J @ found.covariance @ J.T, rtol=1e-9)
    assert twice.names[0] == "function[0]"
    null = np.linalg.svd(A.T)[2][-1]
    flat = inference.delta(lambda out: mx.array(null, dtype=f64) @ out["of"], carried)
    assert 0 <= flat.standard_errors[0] < 1e-7  # the root of rounding


def test_delta_refuses(classes):
    X, y, _ = classes
    result = fit(logit, start(2), X, y)
    found = inference.covariance(logit, result, X, y)
    with pytest.raises(TypeError, match="It comes second"):
        inference.delta(lambda params: params["b"], result)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="value of function is NaN"):
        inference.delta(lambda params: mx.log(params["w"][1]), found)
    with pytest.raises(ValueError, match="derivative of function is NaN"):
        inference.delta(lambda params: mx.sqrt(params["b"] - params["b"]), found)
    with pytest.raises(mo.TapeError):
        inference.delta(lambda params: mx.array(params["b"].item()), found)


# --- Intervals and tables -------------------------------------------------------------------------


def test_tables(classes):
    X, y, groups = classes
    result = fit(logit, start(2), X, y)
    found = inference.covariance(logit, result, X, y, kind="cluster", clusters=groups)
    lines = repr(found).splitlines()
    assert lines[0] == (
        "Estimates (sandwich covariance by cluster, CR1; 300 examples in 25 clusters)"
    )
    assert lines[1].split() == ["estimate", "std.", "error", "95", "%", "interval"]
    name, estimate, error, low, _, high = lines[2].split()
    assert name == "params['w'][0]"
    assert float(estimate) == pytest.approx(found.estimate[0], rel=1e-5)
    assert float(error) == pytest.approx(found.standard_errors[0], rel=1e-3)
    assert float(low) == pytest.approx(found.intervals().lower[0], rel=1e-4)
    assert float(high) == pytest.approx(found.intervals().upper[0], rel=1e-4)
    assert len({len(line) for line in lines[1:]}) == 1
    tree = found.like_values(found.standard_errors)
    np.testing.assert_array_equal(tree["w"], found.standard_errors[:2])
    assert tree["b"].shape == ()
    with pytest.raises(ValueError, match=r"expected \(3,\)"):
        found.like_values(np.ones(2))
    for level in (0, 1, 95, math.nan):
        with pytest.raises(ValueError, match="between 0 and 1"):
            found.intervals(level)
    with pytest.raises(TypeError, match="expected a number"):
        found.intervals("95 %")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="more than zero"):
        found.intervals(degrees_of_freedom=0)


def test_a_matrix_of_parameters_has_named_entries():
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(40, 2)), rng.normal(size=(40, 2))

    def nll(layers, X, Y):
        return 0.5 * mx.sum(mx.square(X @ layers[0]["W"] - Y), axis=1)

    result = fit(nll, [{"W": mx.zeros((2, 2), dtype=f64)}], X, Y)
    found = inference.covariance(nll, result, X, Y)
    assert found.names[2] == "params[0]['W'][1, 0]"
    np.testing.assert_allclose(
        found.covariance, np.kron(np.linalg.inv(X.T @ X), np.eye(2)), rtol=1e-10, atol=1e-17
    )
    many = inference.delta(lambda layers: mx.repeat(layers[0]["W"].reshape(-1), 20), found)
    assert repr(many).endswith("... 20 more")
