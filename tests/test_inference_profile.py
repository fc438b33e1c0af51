"""Profile-likelihood intervals against closed forms, SciPy and statsmodels; and coverage."""

import math

import mlx.core as mx
import numpy as np
import pytest
import statsmodels.api as sm
from scipy.optimize import brentq
from scipy.stats import chi2

import mlxopt as mo
from mlxopt import inference

f64 = mx.float64
Z = 1.959963984540054


# A limit is found to |r - z| ≤ 1e-9, which is 1e-9 standard errors; the oracles to as much or more.
def assert_close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-9)


def root(function, low, high) -> float:
    return brentq(function, low, high, xtol=1e-14)  # pyright: ignore[reportReturnType]


def exp(x):
    return mx.cosh(x) + mx.sinh(x)  # MLX's own keeps 7 digits


def array(values):
    with mx.stream(mx.cpu):
        return mx.array(values, dtype=f64)


def minimized(nll, start, *data):
    return mo.minimize(lambda *args: mx.mean(nll(*args)), start, mo.Newton(), *data, tol=1e-10)


TIMES = np.array([1.0, 2.0, 6.0, 0.5])


def exponential(rate, y):
    return rate * y - mx.log(rate)


def exponential_by_log(log_rate, y):
    return exp(log_rate) * y - log_rate


@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_one_parameter(level):
    n, total = len(TIMES), TIMES.sum()
    with mx.stream(mx.cpu):
        result = array(n / total)
    found = inference.profile(exponential, result, TIMES, level=level)
    z = math.sqrt(chi2.ppf(level, 1))

    def rise(rate):
        return total * rate - n * math.log(rate) - (n - n * math.log(n / total)) - z**2 / 2

    low = root(rise, 1e-12, n / total)
    high = root(rise, n / total, 50)
    assert_close([found.lower[0], found.upper[0]], [low, high])
    assert (found.names, found.level, found.notes) == (("params",), level, ())


def test_invariance_under_reparametrization():
    rate = array(len(TIMES) / TIMES.sum())
    log_rate = array(math.log(len(TIMES) / TIMES.sum()))
    plain = inference.profile(exponential, rate, TIMES)
    by_log = inference.profile(exponential_by_log, log_rate, TIMES)
    assert_close(np.exp(by_log.lower), plain.lower)
    assert_close(np.exp(by_log.upper), plain.upper)
    # Wald's are not: here they differ by a factor of more than 1.2, so that this says something.
    wald = inference.covariance(exponential, rate, TIMES).intervals()
    wald_by_log = inference.covariance(exponential_by_log, log_rate, TIMES)
    assert np.exp(wald_by_log.intervals().upper[0]) > 1.2 * wald.upper[0]


def gauss(params, X, y):
    scale = exp(-params["log_sigma"])
    return 0.5 * mx.square((y - X @ params["w"]) * scale) + params["log_sigma"]


def test_regression_with_unknown_variance():
    rng = np.random.default_rng(3)
    X = np.column_stack([rng.normal(size=(25, 2)) * [1.0, 30.0], np.ones(25)])
    y = X @ [1.0, 0.2, -3.0] + 2 * rng.normal(size=25)
    start = {"w": mx.zeros(3), "log_sigma": mx.array(1.0)}
    with mx.stream(mx.cpu):
        start = {name: leaf.astype(f64) for name, leaf in start.items()}
    found = inference.profile(gauss, minimized(gauss, start, X, y), X, y)
    # With β_j held at x the sum of squares is RSS + (x - β̂_j)² / C_jj, and twice the likelihood's
    # fall is n log of their ratio.
    C, best = np.linalg.inv(X.T @ X), np.linalg.lstsq(X, y)[0]
    n, rss = len(y), np.sum((y - X @ best) ** 2)
    margin = np.sqrt((math.exp(Z**2 / n) - 1) * rss * np.diag(C))
    assert_close(found.lower[:3], best - margin)
    assert_close(found.upper[:3], best + margin)
    # For σ itself: n (log σ² + σ̂²/σ² - log σ̂² - 1) = z².
    variance = rss / n

    def rise(u):  # u = log(σ / σ̂)
        return n * (2 * u + math.exp(-2 * u) - 1) - Z**2

    sigma = 0.5 * math.log(variance)
    assert_close(found.lower[3], sigma + root(rise, -3, 0))
    assert_close(found.upper[3], sigma + root(rise, 0, 3))
    np.testing.assert_allclose(found.estimate, [*best, sigma], rtol=1e-9)


def logistic(w, X, y):
    return mo.losses.logistic(X @ w, y)


@pytest.fixture(scope="module")
def classes():
    rng = np.random.default_rng(4)
    X = np.column_stack([np.ones(40), rng.normal(size=(40, 2))])
    y = (rng.uniform(size=40) < 1 / (1 + np.exp(-X @ [0.3, 1.5, -0.7]))).astype(float)
    return X, y


def test_logistic_regression(classes):
    X, y = classes
    result = minimized(logistic, array(np.zeros(3)), X, y)
    found = inference.profile(logistic, result, X, y)
    whole = sm.Logit(y, X).fit(disp=False, tol=1e-14)
    for j in range(3):
        others = np.delete(X, j, axis=1)

        def rise(x, j=j, others=others):
            held = sm.GLM(y, others, family=sm.families.Binomial(), offset=x * X[:, j])
            return 2 * (whole.llf - held.fit(tol=1e-14).llf) - Z**2

        beta, reach = whole.params[j], 4 * whole.bse[j]
        low = root(rise, beta - reach, beta)
        high = root(rise, beta, beta + reach)
        assert_close([found.lower[j], found.upper[j]], [low, high])
    # It is no mirror image of itself: longer on the side away from zero.
    assert found.upper[1] - found.estimate[1] > 1.1 * (found.estimate[1] - found.lower[1])


def test_a_float32_fit_gives_the_float64_limits(classes):
    X, y = classes
    exact = inference.profile(logistic, minimized(logistic, array(np.zeros(3)), X, y), X, y)
    rough = mo.minimize(lambda *args: mx.mean(logistic(*args)), mx.zeros(3), mo.LBFGS(), X, y)
    found = inference.profile(logistic, rough, X, y)
    assert_close(found.lower, exact.lower)
    assert_close(found.upper, exact.upper)
    assert_close(found.estimate, exact.estimate)


def test_where_the_likelihood_is_normal_it_is_wald():
    rng = np.random.default_rng(6)
    X, y = rng.normal(size=(30, 2)), rng.normal(size=30)
    nll = lambda w, X, y: 0.5 * mx.square(X @ w - y)  # noqa: E731
    result = minimized(nll, array(np.zeros(2)), X, y)
    wald = inference.covariance(nll, result, X, y).intervals(0.9)
    found = inference.profile(nll, result, X, y, level=0.9)
    assert_close(found.lower, wald.lower)
    assert_close(found.upper, wald.upper)
    assert repr(found).startswith("90 % intervals, profile likelihood\n")


def test_some_names(classes):
    X, y = classes

    def nll(params, X, y):
        return logistic(params["a"]["w"], X, y) + 0.5 * mx.square(params["b"]) / 40

    start = {"a": {"w": array(np.zeros(3))}, "b": array(0.0)}
    result = minimized(nll, start, X, y)
    every = inference.profile(nll, result, X, y)
    some = inference.profile(nll, result, X, y, names=["params['b']", "params['a']['w'][1]"])
    assert some.names == ("params['b']", "params['a']['w'][1]")
    np.testing.assert_allclose(some.lower, every.lower[[3, 1]], rtol=1e-9)
    np.testing.assert_allclose(some.upper[0], Z, rtol=1e-9)
    leaf = inference.profile(nll, result, X, y, names="params['a']['w']")
    assert leaf.names == every.names[:3]
    for wrong in ("params['a']['w'][3]", "params['c']", "w"):
        with pytest.raises(ValueError, match="names holds"):
            inference.profile(nll, result, X, y, names=[wrong])


def test_an_open_end():
    # A mean of tanh θ: however large θ, the likelihood falls by 50 · 0.1² / 2 = 0.25 at most.
    y = np.full(50, 0.9)
    nll = lambda theta, y: 0.5 * mx.square(y - mx.tanh(theta))  # noqa: E731
    found = inference.profile(nll, array(math.atanh(0.9)), y)
    assert found.upper[0] == math.inf
    assert_close(found.lower[0], math.atanh(0.9 - Z / math.sqrt(50)))
    (note,) = found.notes
    assert note == "upper limit of params: the likelihood never falls far enough."
    assert note in repr(found)


def test_the_end_of_the_domain():
    # A normal likelihood that ends at 0, half a standard error below the estimate.
    def nll(theta, y):
        inside = 0.5 * mx.square(y - theta)
        return mx.where(theta > 0, inside, mx.array(math.nan, dtype=f64))

    found = inference.profile(nll, array(0.25), np.full(4, 0.25))
    np.testing.assert_allclose(found.lower, 0, atol=1e-9)
    assert_close(found.upper, 0.25 + Z / 2)
    assert found.notes == ("lower limit of params: the likelihood ends or jumps here.",)


def test_a_narrow_domain_is_searched_to_its_end():
    # At θ → 0 the likelihood falls without limit, but Wald's margin leads to θ < 0 and NaN.
    y = np.array([1.0, 3.0])
    found = inference.profile(exponential, array(0.5), y)
    assert 0 < found.lower[0] < 0.2
    assert found.notes == ()


def test_lower_elsewhere_is_said():
    def nll(theta, y):  # minima near -3 and 3, the latter the higher
        return 0.02 * mx.square(mx.square(theta) - 9) + 0.3 * theta + 0 * y

    local = minimized(nll, array(2.5), np.zeros(1))
    assert local.params.item() > 0
    with pytest.raises(ValueError, match="no global minimum"):
        inference.profile(nll, local, np.zeros(1))


def test_from_afar_newton_is_damped():
    def nll(theta, y):  # from 2 whole Newton steps lead to -8, to 512, ...
        return mx.sqrt(1 + mx.square(theta - y))

    near = inference.profile(nll, array(0.0), np.zeros(3))
    with pytest.warns(mo.ConvergenceWarning, match="close enough"):
        far = inference.profile(nll, array(2.0), np.zeros(3))
    np.testing.assert_allclose(far.estimate, 0, atol=1e-9)
    assert_close(far.upper, near.upper)
    assert_close(near.upper, [math.sqrt((1 + Z**2 / 6) ** 2 - 1)])


def test_normalization_is_checked_as_in_covariance(classes):
    X, y = classes
    result = minimized(logistic, array(np.zeros(3)), X, y)
    with pytest.raises(ValueError, match="40 times too large"):
        inference.profile(lambda *args: mx.mean(logistic(*args)), result, X, y)
    total = inference.profile(lambda *args: mx.sum(logistic(*args)), result, X, y)
    assert_close(total.lower, inference.profile(logistic, result, X, y).lower)
    with pytest.raises(ValueError, match="between 0 and 1"):
        inference.profile(logistic, result, X, y, level=1.0)
    with pytest.warns(mo.ConvergenceWarning, match="standard errors"):
        inference.profile(logistic, array([0.0, 0.0, 0.0]), X, y)


# --- Coverage -------------------------------------------------------------------------------------


def coverage(fits, seed, draw, nll, truth, intervals):
    """Return the shares of intervals that hold the truth, (p,), over so many fits."""
    rng, held = np.random.default_rng(seed), np.zeros(len(truth))
    for _ in range(fits):
        data = draw(rng)
        result = minimized(nll, array(truth), *data)
        found = intervals(nll, result, *data)
        held += (found.lower <= truth) & (truth <= found.upper)
    return held / fits


def room(fits):
    """Three standard deviations of a share of 0.95."""
    return 3 * math.sqrt(0.95 * 0.05 / fits)


@pytest.mark.parametrize("method", ["Wald", "profile"])
def test_coverage_of_logistic_regression(method):
    truth = np.array([0.5, -1.0])

    def draw(rng):
        X = np.column_stack([np.ones(200), rng.normal(size=200)])
        return X, (rng.uniform(size=200) < 1 / (1 + np.exp(-X @ truth))).astype(float)

    def intervals(*args):
        if method == "profile":
            return inference.profile(*args)
        return inference.covariance(*args).intervals()

    fits = 300 if method == "Wald" else 120
    shares = coverage(fits, 7, draw, logistic, truth, intervals)
    assert np.all(np.abs(shares - 0.95) < room(fits)), shares


def test_coverage_where_the_variance_is_not_constant():
    truth = np.array([1.0, 2.0])
    nll = lambda w, X, y: 0.5 * mx.square(X @ w - y)  # noqa: E731

    def draw(rng):  # the average variance is 1, as the likelihood has it
        x = rng.normal(size=300)
        X = np.column_stack([np.ones(300), x])
        return X, X @ truth + np.abs(x) * rng.normal(size=300)

    def by(kind):
        return lambda *args: inference.covariance(*args, kind=kind).intervals()

    sandwich = coverage(300, 8, draw, nll, truth, by("sandwich"))
    assert np.all(np.abs(sandwich - 0.95) < room(300)), sandwich
    # The model is wrong, and its own intervals know nothing of it: √3 too short for the slope.
    assert coverage(100, 8, draw, nll, truth, by("observed"))[1] < 0.85


def test_coverage_by_cluster():
    truth = np.array([1.0])
    nll = lambda w, y: 0.5 * mx.square(y - w)  # noqa: E731
    groups = np.repeat(np.arange(60), 5)

    def draw(rng):
        return ((truth + rng.normal(size=60))[groups] + rng.normal(size=300),)

    def by(**options):
        return lambda *args: inference.covariance(*args, **options).intervals()

    clustered = coverage(300, 9, draw, nll, truth, by(kind="cluster", clusters=groups))
    assert np.all(np.abs(clustered - 0.95) < room(300)), clustered
    assert coverage(100, 9, draw, nll, truth, by(kind="sandwich"))[0] < 0.85
