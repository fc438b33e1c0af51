"""Fits to long narrow tables use one BLAS thread, and leave the number of threads as it was."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from mlxopt._platform.narrow import threads_for
from mlxopt.models import LinearRegression, LogisticRegression, _solve, linear, logistic

RNG = np.random.default_rng(0)


def threads():
    return [one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"]


@pytest.fixture
def several():
    """Give each BLAS two threads, whatever the machine has."""
    with threadpool_limits(2, user_api="blas"):
        if 2 not in threads():
            pytest.skip("no BLAS here has threads")
        yield threads()


@pytest.mark.parametrize(
    ("rows", "columns", "narrow"),
    [(100_000, 20, True), (2_000, 64, True), (100_000, 65, False), (100, 20, False)],
)
def test_the_number_of_threads(rows, columns, narrow, several):
    with threads_for(rows, columns):
        assert set(threads()) == ({1} if narrow else set(several))
    assert threads() == several


@pytest.mark.parametrize("model", [LinearRegression, LogisticRegression])
@pytest.mark.parametrize("columns", [3, 20, 80])
def test_a_fit_and_a_prediction(model, columns, several, monkeypatch):
    X = RNG.normal(size=(5_000, columns))
    y = X @ RNG.normal(size=columns) + RNG.normal(size=5_000)
    seen = []

    def spy(module, name):
        function = getattr(module, name)

        def seeing(*args):
            seen.append(max(threads()))
            return function(*args)

        monkeypatch.setattr(module, name, seeing)

    spy(linear, "solve")
    spy(logistic, "climb")
    spy(_solve, "refine")
    fitted = model().fit(X, y if model is LinearRegression else y > 0)
    assert set(seen) == {1 if columns * 5_000 >= 2**16 and columns <= 64 else 2}
    assert threads() == several
    predicted = fitted.predict(X)
    assert threads() == several
    with threadpool_limits(1, user_api="blas"):
        np.testing.assert_allclose(fitted.predict(X), predicted, rtol=1e-12)


def test_a_fit_that_fails(several):
    X = RNG.normal(size=(5_000, 20))
    X[4_000, 3] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        LinearRegression().fit(X, np.ones(5_000))
    assert threads() == several


def test_fits_at_once_in_threads():
    X = RNG.normal(size=(20_000, 20))
    y = X @ np.arange(20.0)
    before = threads()
    with ThreadPoolExecutor(4) as pool:
        fits = list(pool.map(lambda k: LinearRegression().fit(X, k * y).coef_, range(1, 13)))
        assert threads() == before
        assert set(pool.submit(_inside).result()) == {1}
    for k, coef in enumerate(fits, 1):
        np.testing.assert_allclose(coef, k * np.arange(20.0), atol=1e-8)
    assert threads() == before
    assert set(_inside()) == {1}
    assert threads() == before


def _inside():
    with threads_for(100_000, 20), threads_for(100_000, 20):
        return threads()
