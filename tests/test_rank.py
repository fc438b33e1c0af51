"""Dependent columns, too few rows, constant columns: honest answers of LinearRegression."""

import warnings

import numpy as np
import pandas as pd
import pytest
from references import both, numbers
from sklearn.linear_model import LinearRegression as TheirLinear

from mlxopt.models import LinearRegression, RankWarning


def minimum_norm(X, y, w=None):
    """The oracle: pseudo-inverse of the centered, weighted design."""
    w = np.ones(len(y)) if w is None else w
    root = np.sqrt(w)[:, None]
    center = np.average(X, axis=0, weights=w)
    coef = np.linalg.pinv(root * (X - center), rcond=1e-11) @ (
        root[:, 0] * (y - np.average(y, weights=w))
    )
    return coef, np.average(y, weights=w) - center @ coef


@pytest.mark.parametrize("solver", ["auto", "qr", "newton", "lbfgs"])
def test_dependent_columns_are_named(solver):
    X, y, rng = numbers()
    X = np.c_[X, X[:, 0] + 2 * X[:, 3], rng.normal(size=len(y)), np.full(len(y), 0.1), X[:, 2]]
    frame = pd.DataFrame(X, columns=["a", "b", "c", "d", "sum", "e", "constant", "again"])
    with pytest.warns(RankWarning, match="'sum', 'constant', 'again'.*rank 6 of 9"):
        model = LinearRegression(solver).fit(frame, y)
    assert model.dependent_columns_ == ["sum", "constant", "again"]
    assert model.rank_ == 6
    coef, intercept = minimum_norm(X, y)
    np.testing.assert_allclose(model.coef_, coef, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(model.intercept_, intercept, rtol=1e-8)
    assert np.isnan(both(model, se=True)).all()
    assert "'sum', 'constant', 'again'" in str(model.summary()).replace("\n", " ")


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("n", [40, 30_000])
def test_dependence_is_found_at_any_scale(seed, dtype, n):
    # Only rounding is left of the last column, in its dtype's own size, whatever the units.
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 8)) + 10.0 ** rng.integers(-2, 3, 8)
    X = (X * 10.0 ** rng.integers(-4, 5, 8)).astype(dtype)
    X = np.c_[X, (X @ rng.normal(size=8)).astype(dtype)]
    with pytest.warns(RankWarning):
        model = LinearRegression().fit(X, rng.normal(size=n))
    assert model.dependent_columns_ == ["x8"]
    assert np.isfinite(model.coef_).all()


@pytest.mark.parametrize("kind", ["all levels", "sum", "twice", "combination"])
@pytest.mark.parametrize("levels", [4, 20])
@pytest.mark.parametrize("n", [1000, 200_000])
def test_dependent_categories_are_found_among_many_rows(n, levels, kind):
    # Sums of many equal numbers round alike: what is left of a column grows with the rows.
    rng = np.random.default_rng(n + levels)
    level = rng.integers(0, levels, n)
    X = np.zeros((n, levels))
    X[np.arange(n), level] = 1
    if kind == "sum":
        X[:, 0] = X[:, 1] + X[:, 2]
    elif kind == "twice":
        X[:, 0] = X[:, 1]
    elif kind == "combination":
        score, grade = rng.integers(0, 5, n), rng.integers(0, 9, n)
        X = np.c_[X[:, 1:], score, grade, 3 * grade - 2 * score + X[:, 1]]
    with pytest.warns(RankWarning):
        model = LinearRegression().fit(X, rng.normal(size=n))
    assert len(model.dependent_columns_) == 1
    assert np.abs(model.coef_).max() < 10


def test_what_only_looks_dependent_is_not_refused():
    # The last column differs from a sum by 1e-9 of its size, which float64 holds to seven digits.
    rng = np.random.default_rng(0)
    X, small = rng.normal(size=(100, 2)), rng.normal(size=100)
    X = np.c_[X, X.sum(axis=1) + 1e-9 * small]
    y = X[:, 0] + small
    model = LinearRegression().fit(X, y)
    assert model.rank_ == 4
    # y = x0 + small = x0 + 1e9 (x2 - x0 - x1)
    np.testing.assert_allclose(model.coef_, [1 - 1e9, -1e9, 1e9], rtol=1e-6)


def test_float32_columns_of_integers_carry_no_rounding():
    year = np.repeat(np.arange(2000, 2008), 3).astype(np.float32)
    X = np.c_[year, year**2 - year]  # exact in float32: 4e6 < 2²⁴
    assert LinearRegression().fit(X, np.sin(year)).rank_ == 3
    with pytest.warns(RankWarning, match="'x1'"):  # halves of a unit are not integers
        LinearRegression().fit(X + np.float32(0.5), np.sin(year))


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_more_columns_than_rows(fit_intercept):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(12, 30)) + 2, rng.normal(size=12)
    with pytest.warns(RankWarning, match="and 9 more|and 8 more"):
        model = LinearRegression(fit_intercept=fit_intercept).fit(X, y)
    assert model.rank_ == 12
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = TheirLinear(fit_intercept=fit_intercept).fit(X, y)
    np.testing.assert_allclose(model.coef_, theirs.coef_, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(model.predict(X), y, atol=1e-10)


def test_weighted_minimum_norm():
    X, y, rng = numbers()
    X = np.c_[X, X[:, 1] - X[:, 2]]
    w = rng.uniform(0, 2, len(y))
    w[:10] = 0
    with pytest.warns(RankWarning, match="'x4'"):
        model = LinearRegression().fit(X, y, w)
    coef, intercept = minimum_norm(X, y, w)
    np.testing.assert_allclose(both(model), np.r_[intercept, coef], rtol=1e-8)


def test_a_penalty_makes_dependent_columns_harmless():
    X, y, _ = numbers()
    model = LinearRegression(l2=0.1).fit(np.c_[X, X[:, 1]], y)
    assert model.coef_[1] == pytest.approx(model.coef_[4], rel=1e-9)
    assert model.dependent_columns_ == []


def test_one_row():
    with pytest.warns(RankWarning, match="rank 1 of 3"):
        model = LinearRegression().fit([[1.0, 2.0]], [5.0])
    assert model.intercept_ == 5.0
    np.testing.assert_array_equal(model.coef_, 0)


def test_as_many_rows_as_coefficients():
    model = LinearRegression().fit([[0.0], [1.0]], [1.0, 3.0])
    np.testing.assert_allclose(both(model), [1, 2], rtol=1e-15)
    assert np.isnan(both(model, se=True)).all()
    assert "2 rows for 2 coefficients" in str(model.summary())


def test_constant_target():
    X, _, _ = numbers()
    model = LinearRegression().fit(X, np.full(len(X), 0.1))
    np.testing.assert_array_equal(model.coef_, 0)
    assert model.intercept_ == 0.1
    assert model.score(X, np.full(len(X), 0.1)) == 1.0
    assert model.score(X, np.full(len(X), 0.2)) == 0.0
    assert "y is constant" in str(model.summary())
