"""LinearRegression against certified values, other programs and algebra.

Digits are log relative errors, -log10 |found - true| / |true|, of the worst coefficient.
"""

import json
import tracemalloc
from typing import Any

import mlx.core as mx
import numpy as np
import pandas as pd
import polars as pl
import pytest
import statsmodels.api as sm
from references import DATA, GLM, both, digits, flights, glm, glm_truth, needs_data, numbers
from sklearn.linear_model import Ridge

import mlxopt as mo
from mlxopt.models import LinearRegression

# --- Certified values -----------------------------------------------------------------------------

NIST_DIGITS = {  # of the coefficients; what the issue asks for
    "Norris": 11, "NoInt2": 13, "Longley": 9, "Wampler1": 8.5, "Wampler2": 11, "Wampler4": 7,
    "Filip": 7,
}  # fmt: skip


def nist(name):
    certified = json.loads((DATA / "nist_linear" / "certified.json").read_text())[name]
    lines = (DATA / "nist_linear" / f"{name}.dat").read_text().split()
    wide = 7 if name == "Longley" else 2
    rows = np.array(lines[-certified["n"] * wide :], dtype=float).reshape(-1, wide)
    y, X = rows[:, 0], rows[:, 1:]
    if certified["kind"] == "poly":
        X = X ** np.arange(1, certified["p"] + (not certified["intercept"]))
    return X, y, certified


@needs_data
@pytest.mark.parametrize("solver", ["auto", "qr", "newton"])
@pytest.mark.parametrize("name", NIST_DIGITS)
def test_nist(name, solver):
    X, y, certified = nist(name)
    model = LinearRegression(solver, fit_intercept=certified["intercept"]).fit(X, y)
    true, true_se = (np.array([float(s) for s in certified[key]]) for key in ("coef", "se"))
    assert digits(both(model), true) >= NIST_DIGITS[name]
    if name == "Filip":
        # The powers of x, rounded to float64, are another problem: solved in exact rational
        # arithmetic it agrees with the certified values to 7.6 digits.
        assert digits(both(model, se=True), true_se) >= 7
    elif true_se.any():
        assert digits(both(model, se=True), true_se) >= 9
    else:  # an exact fit, up to rounding
        assert (both(model, se=True) <= 1e-9 * (1 + np.abs(true))).all()


@needs_data
@pytest.mark.parametrize("solver", ["auto", "lbfgs"])
@pytest.mark.parametrize("name", [name for name in GLM if name.startswith("lm_")])
def test_twenty_digit_references(name, solver):
    X, y, _, has_intercept = glm(name)
    model = LinearRegression(solver, fit_intercept=has_intercept).fit(X, y)
    # float64 keeps 15.9 digits; the worst condition number here, Longley's, is 4e4.
    assert digits(both(model), glm_truth(name, "coef")) >= 11
    assert digits(both(model, se=True), glm_truth(name, "se")) >= 11


# --- Other programs, other ways -------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(50, 4), (3000, 40), (20_000, 60)])
def test_equals_numpys_least_squares(shape):
    rng = np.random.default_rng(1)
    n, p = shape
    X, y = rng.normal(size=(n, p)) + 3, rng.normal(size=n)
    true = np.linalg.lstsq(np.c_[np.ones(n), X], y)[0]
    model = LinearRegression().fit(X, y)
    # Relative to the largest: the oracle itself carries the conditioning of uncentered columns.
    assert np.abs(both(model) - true).max() <= 1e-12 * np.abs(true).max()


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_equals_statsmodels(fit_intercept, weighted):
    X, y, rng = numbers()
    w: Any = rng.uniform(0.5, 3, len(y)) if weighted else np.ones(len(y))
    theirs = sm.WLS(y, sm.add_constant(X) if fit_intercept else X, weights=w).fit()
    model = LinearRegression(fit_intercept=fit_intercept).fit(X, y, w)
    np.testing.assert_allclose(both(model), theirs.params, rtol=1e-9)
    np.testing.assert_allclose(both(model, se=True), theirs.bse, rtol=1e-9)
    summary = model.summary()
    np.testing.assert_allclose(summary.statistic, theirs.tvalues, rtol=1e-9)
    np.testing.assert_allclose(summary.p_value, theirs.pvalues, rtol=1e-6)
    assert float(summary.figures["R²"].split()[0]) == pytest.approx(theirs.rsquared, rel=1e-5)
    assert float(summary.figures["R², adjusted"]) == pytest.approx(theirs.rsquared_adj, rel=1e-5)
    assert float(summary.figures["log-likelihood"]) == pytest.approx(theirs.llf, rel=1e-7)
    if fit_intercept:
        assert float(summary.figures["F"].split()[0]) == pytest.approx(theirs.fvalue, rel=1e-4)
    assert float(summary.figures["residual SD"].split()[0]) == pytest.approx(
        np.sqrt(theirs.scale), rel=1e-5
    )


@pytest.mark.parametrize("solver", ["auto", "qr", "newton", "lbfgs", mo.LBFGS(memory=3)])
@pytest.mark.parametrize("weighted", [True, False])
def test_penalty_in_closed_form(solver, weighted):
    X, y, rng = numbers()
    l2 = 0.3
    w = rng.uniform(0.5, 3, len(y)) if weighted else np.ones(len(y))
    Xc, yc = X - np.average(X, axis=0, weights=w), y - np.average(y, weights=w)
    true = np.linalg.solve(Xc.T @ (w[:, None] * Xc) + l2 * w.sum() * np.eye(4), Xc.T @ (w * yc))
    model = LinearRegression(solver, l2=l2).fit(X, y, w)
    np.testing.assert_allclose(model.coef_, true, rtol=1e-9)
    theirs = Ridge(alpha=l2 * w.sum()).fit(X, y, w)
    np.testing.assert_allclose(model.intercept_, theirs.intercept_, rtol=1e-8)
    assert np.isnan(both(model, se=True)).all()
    assert "l2 > 0" in str(model.summary())


def test_every_solver_gives_one_answer():
    X, y, _ = numbers()
    true = both(LinearRegression("qr").fit(X, y))
    for solver in ("newton", "lbfgs", "momentum", "sgd"):
        model = LinearRegression(solver, max_steps=20_000).fit(X, y)
        np.testing.assert_allclose(both(model), true, rtol=1e-9, err_msg=solver)
        assert model.status_ is mo.Status.CONVERGED
        assert model.result_ is not None
        # The run itself came this far: the gradient was within 1e-10 in scaled columns.
        assert model.result_.optimality <= 1e-10
        assert model.n_iter_ == model.result_.steps


def test_a_run_that_stops_early_says_so():
    X, y, _ = numbers()
    with pytest.warns(mo.ConvergenceWarning, match="MAX_STEPS"):
        model = LinearRegression("sgd", max_steps=10).fit(X, y)
    assert model.status_ is mo.Status.MAX_STEPS
    assert model.n_iter_ == 10
    assert np.isnan(both(model, se=True)).all()
    assert "did not converge" in str(model.summary())
    exact = LinearRegression().fit(X, y)
    assert digits(model.coef_, exact.coef_) < 6  # its own answer, not the finished one
    assert model.score(X, y) < exact.score(X, y)


# --- What must not matter, and what must ----------------------------------------------------------


@pytest.mark.parametrize("solver", ["auto", "lbfgs"])
def test_weights_are_repetition(solver):
    X, y, rng = numbers()
    w = rng.integers(0, 4, len(y))
    repeated = LinearRegression(solver).fit(np.repeat(X, w, axis=0), np.repeat(y, w))
    weighted = LinearRegression(solver).fit(X, y, w)
    np.testing.assert_allclose(both(weighted), both(repeated), rtol=1e-10)
    # R's lm: the variance is per row, so it knows how many rows there really are.
    spare = int((w > 0).sum()) - 5, int(w.sum()) - 5
    ratio = np.sqrt(spare[1] / spare[0])
    np.testing.assert_allclose(both(weighted, se=True), both(repeated, se=True) * ratio, rtol=1e-10)


def test_unit_weights_are_no_weights():
    X, y, _ = numbers()
    plain = LinearRegression().fit(X, y)
    for w in (np.ones(len(y)), np.full(len(y), 7)):
        other = LinearRegression().fit(X, y, w)
        np.testing.assert_allclose(both(other), both(plain), rtol=1e-12)
        np.testing.assert_allclose(both(other, se=True), both(plain, se=True), rtol=1e-12)


def test_rows_of_weight_zero_are_left_out():
    X, y, rng = numbers()
    w = rng.uniform(0.5, 2, len(y))
    gone = np.r_[X, 1e12 * np.ones((3, 4))], np.r_[y, [1e12, -1e12, 0]], np.r_[w, 0, 0, 0]
    model, plain = LinearRegression().fit(*gone), LinearRegression().fit(X, y, w)
    np.testing.assert_array_equal(both(model), both(plain))
    np.testing.assert_array_equal(both(model, se=True), both(plain, se=True))
    assert model.summary().figures == plain.summary().figures


def test_the_order_of_rows_and_columns_does_not_matter():
    X, y, rng = numbers()
    plain = LinearRegression().fit(X, y)
    rows, columns = rng.permutation(len(y)), rng.permutation(4)
    np.testing.assert_allclose(both(LinearRegression().fit(X[rows], y[rows])), both(plain), 1e-11)
    model = LinearRegression().fit(X[:, columns], y)
    np.testing.assert_allclose(model.coef_, plain.coef_[columns], rtol=1e-11)
    np.testing.assert_allclose(model.coef_se_, plain.coef_se_[columns], rtol=1e-11)


def test_shifted_and_scaled_columns():
    X, y, _ = numbers()
    plain = LinearRegression().fit(X, y)
    factor, shift = np.array([1e6, 1e-6, -2.0, 0.5]), np.array([1e7, 0.25, 0.0, -300.0])
    model = LinearRegression().fit(X * factor + shift, y)
    # The shift by 1e7 itself rounds the first column in its tenth digit.
    np.testing.assert_allclose(model.coef_, plain.coef_ / factor, rtol=1e-8)
    np.testing.assert_allclose(model.coef_se_, plain.coef_se_ / np.abs(factor), rtol=1e-8)
    np.testing.assert_allclose(
        model.intercept_, plain.intercept_ - shift @ (plain.coef_ / factor), rtol=1e-8
    )


def test_adding_a_plane_to_y_adds_its_coefficients():
    X, y, rng = numbers()
    b = rng.normal(size=4)
    plain, moved = LinearRegression().fit(X, y), LinearRegression().fit(X, y + X @ b + 9)
    np.testing.assert_allclose(moved.coef_ - plain.coef_, b, rtol=1e-9)
    np.testing.assert_allclose(moved.intercept_ - plain.intercept_, 9, rtol=1e-8)
    np.testing.assert_allclose(both(moved, se=True), both(plain, se=True), rtol=1e-9)


def test_a_large_mean_costs_no_digits():
    # In years, or in kelvin, raw normal equations would square a condition number of 1e9.
    x = np.arange(50.0)
    y = 3 * x + np.sin(x)
    plain, far = LinearRegression().fit(x[:, None], y), LinearRegression().fit(x[:, None] + 1e9, y)
    np.testing.assert_allclose(far.coef_, plain.coef_, rtol=1e-14)
    np.testing.assert_allclose(far.coef_se_, plain.coef_se_, rtol=1e-13)
    assert far.rank_ == 2


@pytest.mark.parametrize("kind", ["list", "mlx", "float32", "pandas", "polars", "fortran", "rows"])
def test_one_answer_for_every_container(kind):
    X, y, _ = numbers()
    X, y = np.round(X * 64) / 64, np.round(y * 64) / 64  # exact in float32 too
    plain = LinearRegression().fit(X, y)
    names = list("abcd")
    Xk, yk = {
        "list": lambda: (X.tolist(), y.tolist()),
        "mlx": lambda: (mx.array(X.astype(np.float32)), mx.array(y.astype(np.float32))),
        "float32": lambda: (X.astype(np.float32), y.astype(np.float32)),
        "pandas": lambda: (pd.DataFrame(X, columns=names), pd.Series(y)),
        "polars": lambda: (pl.DataFrame(X, schema=names), pl.Series(y)),
        "fortran": lambda: (np.asfortranarray(X), y),
        "rows": lambda: (np.repeat(X, 2, axis=0)[::2], y),
    }[kind]()
    model = LinearRegression().fit(Xk, yk)
    np.testing.assert_allclose(both(model), both(plain), rtol=1e-12)
    assert isinstance(model.coef_, np.ndarray)
    assert model.coef_.dtype == np.float64
    assert isinstance(model.intercept_, float)
    np.testing.assert_allclose(model.predict(Xk), plain.predict(X), rtol=1e-12)
    assert model.score(Xk, yk) == pytest.approx(plain.score(X, y), rel=1e-12)
    if kind in ("pandas", "polars"):
        assert list(model.feature_names_in_) == names
        assert model.summary().names == ["intercept", *names]


# --- Large designs --------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("l2", [0.0, 0.5])
def test_gram_and_qr_agree(weighted, l2):
    rng = np.random.default_rng(2)
    n, p = 20_000, 30
    X = rng.normal(size=(n, p)) @ rng.normal(size=(p, p)) + 50  # condition number some 1e2
    y, w = rng.normal(size=n), rng.uniform(0, 2, n) if weighted else None
    gram, qr = LinearRegression(l2=l2).fit(X, y, w), LinearRegression("qr", l2=l2).fit(X, y, w)
    np.testing.assert_allclose(gram.coef_, qr.coef_, rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(gram.coef_se_, qr.coef_se_, rtol=1e-9)
    assert gram.summary().figures["R²"] == qr.summary().figures["R²"]


def test_the_gram_matrix_is_refined():
    # Condition number 4e3: the Gram matrix alone, with its square, gives 9 digits.
    rng = np.random.default_rng(7)
    x, b = rng.normal(size=(50_000, 2)), np.array([3.0, -2.0])
    X = np.c_[x[:, 0], x[:, 0] + 2.0**-11 * x[:, 1]]
    model = LinearRegression().fit(X, X @ b)
    assert digits(model.coef_, b) >= 11.5


def test_an_ill_conditioned_large_design_is_solved_by_qr():
    x = np.linspace(0, 1, 30_000)
    X, b = x[:, None] ** np.arange(1, 9), np.arange(1.0, 9)
    # Condition number 1e6 after scaling: its square would leave the Gram matrix 4 digits.
    model = LinearRegression().fit(X, X @ b)
    assert digits(model.coef_, b) >= 8


def test_X_is_never_copied_whole():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(400_000, 20)).astype(np.float32)
    y = X @ np.ones(20, dtype=np.float32)
    for solver in ("auto", "qr"):
        tracemalloc.start()
        LinearRegression(solver).fit(X, y)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        # y twice in float64, a few blocks of 8 MB, and the temporaries of QR.
        assert peak < 2 * 8 * len(y) + 50e6, solver
        assert peak < 2 * X.nbytes


def flights_of(days):
    """arr_delay ~ dep_delay + dates, as in flights_reference.json, of the first months."""
    month, day, arrival, departure = flights("month", "day", "arr_delay", "dep_delay")
    date = [f"{m} {d}" for m, d in zip(month.tolist(), day.tolist(), strict=True)]
    levels = sorted(set(date))[:days]
    place = {level: index for index, level in enumerate(levels)}
    index = np.array([place.get(level, -1) for level in date])
    rows = np.flatnonzero(index >= 0)
    X = np.zeros((len(rows), days), dtype=np.float32)
    X[np.arange(len(rows)), index[rows] - 1] = 1
    X[:, -1] = departure[rows]  # over the first level, which is the intercept
    return X, arrival[rows].astype(float), levels


@needs_data
def test_flights_of_forty_days():
    X, y, _ = flights_of(40)
    model = LinearRegression().fit(X, y)
    # Within dates: center by date, then one slope (Frisch, Waugh and Lovell).
    date = np.where(X[:, :-1].any(axis=1), X[:, :-1].argmax(axis=1) + 1, 0)
    mean = lambda v: (np.bincount(date, v) / np.bincount(date))[date]  # noqa: E731
    x = X[:, -1].astype(float)
    xc, yc = x - mean(x), y - mean(y)
    slope = (xc @ yc) / (xc @ xc)
    residual = yc - slope * xc
    se = np.sqrt(residual @ residual / (len(y) - 41) / (xc @ xc))
    assert digits(model.coef_[-1], slope) >= 11
    assert digits(model.coef_se_[-1], se) >= 11


@needs_data
@pytest.mark.slow
def test_flights_of_the_year():
    X, y, levels = flights_of(365)
    true = json.loads((DATA / "flights_reference.json").read_text())
    tracemalloc.start()
    model = LinearRegression().fit(X, y)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert X.shape == (327_346, 365)
    assert peak < X.nbytes / 4
    for effects, found in (("group_effects", model.coef_), ("group_se", model.coef_se_)):
        expected = [float(true[effects][level]) for level in levels[1:]]
        assert digits(found[:-1], expected) >= 10
    assert digits(both(model)[[0, -1]], [float(true[k]) for k in ("intercept", "dep_delay")]) >= 10
    assert digits(
        both(model, se=True)[[0, -1]], [float(true[k]) for k in ("se_intercept", "se_dep_delay")]
    ) >= 10  # fmt: skip
