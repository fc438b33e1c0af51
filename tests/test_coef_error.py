"""`coef_error_` bounds the distance to the exact solution, computed with 80 digits."""

import mpmath
import numpy as np
import pytest

import mlxopt as mo
from mlxopt.models import LinearRegression

GAPS = [1e-5, 1e-7, 1e-9, 1e-11]


def two_pairs(rng, n, gap):
    a, b, c = rng.normal(size=(3, n))
    near_a, near_b = a + gap * rng.normal(size=n), b + gap * rng.normal(size=n)
    return np.column_stack([a, near_a, b, near_b, c])


def three_pairs(rng, n, gap):
    a = rng.normal(size=(n, 3)) * [1.0, 1e3, 1e-3]
    return np.column_stack([a, a * (1 + gap * rng.normal(size=(n, 3)))])[:, [0, 3, 1, 4, 2, 5]]


def one_pair(rng, n, gap):
    a = rng.normal(size=(n, 4))
    return np.column_stack([a, a[:, 0] + gap * rng.normal(size=n)])


def triple(rng, n, gap):
    a = rng.normal(size=(n, 1))
    return np.hstack([a, a + gap * rng.normal(size=(n, 2))])


def pairs_of_years(rng, n, gap):
    years = 2000.0 + rng.integers(0, 40, size=(n, 2))
    return np.hstack([years, years + 1e3 * gap * rng.normal(size=(n, 2))])[:, [0, 2, 1, 3]]


def one_row_apart(rng, n, gap):
    a = rng.normal(size=(n, 2))
    b = a.copy()
    b[0, 0] += gap
    b[1, 1] += gap
    return np.hstack([a, b])[:, [0, 2, 1, 3]]


DESIGNS = [two_pairs, three_pairs, one_pair, triple, pairs_of_years, one_row_apart]


def exact(X, y, weights, l2, fit_intercept):
    """Return the intercept, if any, and the coefficients."""
    columns = np.column_stack([np.ones(len(X)), X]) if fit_intercept else X
    weights = weights / weights.mean()
    with mpmath.workdps(80):
        A, W = mpmath.matrix(columns.tolist()), mpmath.diag([mpmath.mpf(w) for w in weights])
        ridge = mpmath.diag([0] * fit_intercept + [mpmath.mpf(l2) * len(X)] * X.shape[1])
        normal = A.T * W * A + ridge
        return np.array(
            [float(b) for b in mpmath.lu_solve(normal, A.T * W * mpmath.matrix(list(y)))]
        )


@pytest.mark.filterwarnings("ignore::mlxopt.ConvergenceWarning")
@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("design", DESIGNS, ids=lambda design: design.__name__)
def test_the_error_is_within_its_bound(design, gap):
    checked = 0
    for seed in range(6):
        rng = np.random.default_rng(seed)
        n = int(rng.integers(15, 60))
        X = design(rng, n, gap)
        noise = 0.1 * rng.normal(size=n) if seed % 2 else 0.0
        y = X @ rng.normal(size=X.shape[1]) + noise if seed % 3 else X[:, 0] + noise
        weights = np.exp(rng.normal(size=n)) if seed == 4 else np.ones(n)
        intercept = seed != 5
        model = LinearRegression(fit_intercept=intercept).fit(X, y, sample_weight=weights)
        if np.isnan(model.coef_error_).any():
            continue
        right = exact(X, y, weights, 0.0, intercept)
        assert (np.abs(model.coef_ - right[intercept:]) <= model.coef_error_).all()
        if intercept:
            assert abs(model.intercept_ - right[0]) <= model.intercept_error_
        checked += 1
    assert checked >= 4


@pytest.mark.filterwarnings("ignore::mlxopt.ConvergenceWarning")
@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("solver", ["qr", "newton", mo.LBFGS()], ids=repr)
def test_whatever_the_solver_and_the_penalty(solver, gap):
    rng = np.random.default_rng(1)
    X = two_pairs(rng, 40, gap)
    y = X @ np.array([1.0, -1.0, 2.0, 0.5, 3.0]) + 0.01 * rng.normal(size=40)
    for l2 in (0.0, 1e-14, 1e-6):
        model = LinearRegression(solver=solver, l2=l2).fit(X, y)
        right = exact(X, y, np.ones(40), l2, True)[1:]
        assert (np.abs(model.coef_ - right) <= model.coef_error_).all()
