"""LogisticRegression against 20-digit references, other programs and algebra; and separation."""

import json

import mlx.core as mx
import numpy as np
import pandas as pd
import polars as pl
import pytest
import statsmodels.api as sm
from references import DATA, GLM, both, classes, flights, glm, glm_truth, needs_data
from scipy.special import expit
from sklearn.linear_model import LogisticRegression as TheirLogistic

import mlxopt as mo
from mlxopt.models import LogisticRegression, RankWarning

SOLVERS = ["newton", "lbfgs", "momentum"]


# --- References and other programs ----------------------------------------------------------------


@needs_data
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    "name", [name for name in GLM if name.startswith("logit_") and "coef" in GLM[name]]
)
def test_twenty_digit_references(name, solver):
    X, y, w, _ = glm(name)
    if w is not None:  # shares of successes: as many rows of 1 and of 0
        X = pd.concat([X, X])
        y, w = np.repeat([1, 0], len(y)), np.r_[w * y, w * (1 - y)]
    model = LogisticRegression(solver).fit(X, y, w)
    # The issue asks for 1e-9 and 1e-4; float64 allows this.
    np.testing.assert_allclose(both(model), glm_truth(name, "coef"), rtol=1e-12)
    np.testing.assert_allclose(both(model, se=True), glm_truth(name, "se"), rtol=1e-9)
    assert model.status_ is mo.Status.CONVERGED
    if w is None:
        assert float(model.summary().figures["deviance"]) == pytest.approx(
            float(GLM[name]["deviance"]), rel=1e-7
        )


@needs_data
@pytest.mark.parametrize("formula", ["late ~ dep_delay", "late ~ dep_delay + factor(month)"])
def test_flights(formula):
    true = json.loads((DATA / "flights_reference.json").read_text())[formula]
    arrival, departure, month = flights("arr_delay", "dep_delay", "month")
    dummies = [month == m for m in range(2, 13)] if "month" in formula else []
    X = np.column_stack([*dummies, departure]).astype(np.float32)
    # Logits of up to 140, in 327,346 rows, and no separation.
    model = LogisticRegression().fit(X, arrival > 15)
    np.testing.assert_allclose(both(model), np.array(true["coef"], dtype=float), rtol=1e-10)
    np.testing.assert_allclose(both(model, se=True), np.array(true["se"], dtype=float), rtol=1e-9)


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_equals_statsmodels(fit_intercept):
    X, y, _ = classes()
    X = X - X.mean(axis=0)
    theirs = sm.Logit(y, sm.add_constant(X) if fit_intercept else X).fit(disp=0, tol=1e-14)
    model = LogisticRegression(fit_intercept=fit_intercept).fit(X, y)
    np.testing.assert_allclose(both(model), theirs.params, rtol=1e-8)
    np.testing.assert_allclose(both(model, se=True), theirs.bse, rtol=1e-8)
    summary = model.summary()
    np.testing.assert_allclose(summary.p_value, theirs.pvalues, rtol=1e-6)
    assert float(summary.figures["log-likelihood"]) == pytest.approx(theirs.llf, rel=1e-7)
    assert float(summary.figures["AIC"]) == pytest.approx(theirs.aic, rel=1e-7)
    if fit_intercept:
        assert float(summary.figures["R², McFadden"]) == pytest.approx(theirs.prsquared, rel=1e-5)


@pytest.mark.parametrize("l2", [1e-4, 0.1, 10.0])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("solver", SOLVERS)
def test_penalty_equals_scikit_learns(l2, weighted, solver):
    X, y, rng = classes()
    X = (X - X.mean(axis=0)) / X.std(axis=0)  # theirs wants columns of one size
    w = rng.uniform(0.1, 3, len(y)) if weighted else np.ones(len(y))
    theirs = TheirLogistic(C=1 / (l2 * w.sum()), solver="newton-cholesky", tol=1e-13).fit(X, y, w)
    model = LogisticRegression(solver, l2=l2).fit(X, y, w)
    np.testing.assert_allclose(both(model), np.r_[theirs.intercept_, theirs.coef_[0]], rtol=1e-7)
    np.testing.assert_allclose(model.predict_proba(X), theirs.predict_proba(X), rtol=1e-7)
    assert np.isnan(both(model, se=True)).all()
    assert "l2 > 0" in str(model.summary())


@pytest.mark.parametrize("solver", [*SOLVERS, "sgd", mo.LBFGS(memory=3)])
def test_the_gradient_vanishes_at_the_answer(solver):
    X, y, rng = classes()
    w, l2 = rng.uniform(0, 2, len(y)), 0.01
    model = LogisticRegression(solver, l2=l2, max_steps=5000).fit(X, y, w)
    slack = w * (expit(model.decision_function(X)) - y) / w.sum()
    assert abs(slack.sum()) < 1e-14
    # X holds numbers near 300, and sums of 200 of them.
    np.testing.assert_allclose(X.T @ slack, -l2 * model.coef_[0], atol=1e-11)


def test_a_run_that_stops_early_says_so():
    X, y, _ = classes()
    with pytest.warns(mo.ConvergenceWarning, match="MAX_STEPS"):
        model = LogisticRegression("sgd", max_steps=10).fit(X, y)
    assert model.status_ is mo.Status.MAX_STEPS
    assert np.isnan(both(model, se=True)).all()
    assert "did not converge" in str(model.summary())


# --- What must not matter, and what must ----------------------------------------------------------


@pytest.mark.parametrize("solver", SOLVERS)
def test_weights_are_repetition(solver):
    X, y, rng = classes()
    w = rng.integers(0, 4, len(y))
    weighted = LogisticRegression(solver).fit(X, y, w)
    repeated = LogisticRegression(solver).fit(np.repeat(X, w, axis=0), np.repeat(y, w))
    np.testing.assert_allclose(both(weighted), both(repeated), rtol=1e-10)
    np.testing.assert_allclose(both(weighted, se=True), both(repeated, se=True), rtol=1e-10)


def test_unit_weights_are_no_weights():
    X, y, _ = classes()
    plain = LogisticRegression().fit(X, y)
    for size in (1, 4):
        other = LogisticRegression().fit(X, y, np.full(len(y), size))
        np.testing.assert_allclose(both(other), both(plain), rtol=1e-12)
        np.testing.assert_allclose(
            both(other, se=True), both(plain, se=True) / np.sqrt(size), rtol=1e-11
        )


def test_rows_of_weight_zero_are_left_out():
    X, y, rng = classes()
    w = rng.uniform(0.5, 2, len(y))
    model = LogisticRegression().fit(
        np.r_[X, 1e12 * np.ones((2, 3))], np.r_[y, [0, 1]], np.r_[w, 0, 0]
    )
    plain = LogisticRegression().fit(X, y, w)
    np.testing.assert_array_equal(both(model), both(plain))
    np.testing.assert_array_equal(both(model, se=True), both(plain, se=True))


def test_the_order_of_rows_and_columns_does_not_matter():
    X, y, rng = classes()
    plain = LogisticRegression().fit(X, y)
    rows, columns = rng.permutation(len(y)), rng.permutation(3)
    np.testing.assert_allclose(both(LogisticRegression().fit(X[rows], y[rows])), both(plain), 1e-11)
    model = LogisticRegression().fit(X[:, columns], y)
    np.testing.assert_allclose(model.coef_, plain.coef_[:, columns], rtol=1e-11)
    np.testing.assert_allclose(model.coef_se_, plain.coef_se_[:, columns], rtol=1e-11)


def test_shifted_and_scaled_columns():
    X, y, _ = classes()
    plain = LogisticRegression().fit(X, y)
    factor, shift = np.array([1e6, 1e-6, -2.0]), np.array([1e7, 0.25, -300.0])
    model = LogisticRegression().fit(X * factor + shift, y)
    np.testing.assert_allclose(model.coef_[0], plain.coef_[0] / factor, rtol=1e-8)
    np.testing.assert_allclose(model.coef_se_[0], plain.coef_se_[0] / np.abs(factor), rtol=1e-8)
    np.testing.assert_allclose(
        model.predict_proba(X * factor + shift), plain.predict_proba(X), rtol=1e-8
    )


def test_flipped_labels_negate_the_coefficients():
    X, y, _ = classes()
    plain, flipped = LogisticRegression().fit(X, y), LogisticRegression().fit(X, 1 - y)
    np.testing.assert_allclose(both(flipped), -both(plain), rtol=1e-11)
    np.testing.assert_allclose(both(flipped, se=True), both(plain, se=True), rtol=1e-11)
    np.testing.assert_allclose(flipped.predict_proba(X), plain.predict_proba(X)[:, ::-1], rtol=1e-9)


@pytest.mark.parametrize(
    "labels",
    [
        ["no", "yes"], [1, 2], [-1, 1], [False, True], [0.5, 1.5],
        np.array(["a", "b"], dtype=object),
    ],
    ids=str,
)  # fmt: skip
def test_any_two_labels(labels):
    X, y, _ = classes()
    names = np.array(labels)[y]
    model, plain = LogisticRegression().fit(X, names), LogisticRegression().fit(X, y)
    assert model.classes_.tolist() == list(labels)
    np.testing.assert_array_equal(both(model), both(plain))
    np.testing.assert_array_equal(model.predict(X), np.array(labels)[plain.predict(X)])
    assert model.score(X, names) == plain.score(X, y) == np.mean(plain.predict(X) == y)
    assert repr(labels[1]) in model.summary().title


@pytest.mark.parametrize("kind", ["list", "mlx", "float32", "pandas", "polars"])
def test_one_answer_for_every_container(kind):
    X, y, _ = classes()
    X = np.round(X * 64) / 64  # exact in float32 too
    Xk, yk = {
        "list": lambda: (X.tolist(), y.tolist()),
        "mlx": lambda: (mx.array(X.astype(np.float32)), mx.array(y)),
        "float32": lambda: (X.astype(np.float32), y.astype(np.float32)),
        "pandas": lambda: (pd.DataFrame(X, columns=list("abc")), pd.Series(y, dtype="category")),
        "polars": lambda: (pl.DataFrame(X, schema=list("abc")), pl.Series(y)),
    }[kind]()
    model, plain = LogisticRegression().fit(Xk, yk), LogisticRegression().fit(X, y)
    np.testing.assert_allclose(both(model), both(plain), rtol=1e-12)
    np.testing.assert_allclose(model.predict_proba(Xk), plain.predict_proba(X), rtol=1e-12)
    assert model.score(Xk, yk) == plain.score(X, y)


def test_probabilities():
    X, y, rng = classes()
    model = LogisticRegression().fit(X, y)
    probability = model.predict_proba(X)
    assert probability.shape == (len(y), 2)
    np.testing.assert_allclose(probability.sum(axis=1), 1, rtol=1e-15)
    z = model.decision_function(X)
    np.testing.assert_allclose(probability[:, 1], 0.5 * (1 + np.tanh(z / 2)), rtol=1e-12)
    np.testing.assert_allclose(np.log(probability), model.predict_log_proba(X), rtol=1e-12)
    w = rng.uniform(size=len(y))
    right = model.predict(X) == y
    assert model.score(X, y, sample_weight=w) == pytest.approx(w[right].sum() / w.sum())
    # Far out, where 1 - σ would be 0.
    out = X + np.array([100.0, 0.0, 0.0])
    far = model.predict_proba(out)[:, 0]
    np.testing.assert_allclose(far, expit(-model.decision_function(out)), rtol=1e-12)
    assert 0 < far.max() < 1e-16


# --- Dependent columns ----------------------------------------------------------------------------


@pytest.mark.parametrize("solver", SOLVERS)
def test_dependent_columns_are_named(solver):
    X, y, _ = classes()
    wide = np.c_[X, X[:, 0] - X[:, 2], np.full(len(y), 0.1)]
    with pytest.warns(RankWarning, match="'x3', 'x4'.*rank 4 of 6"):
        model = LogisticRegression(solver).fit(wide, y)
    plain = LogisticRegression().fit(X, y)
    np.testing.assert_allclose(model.decision_function(wide), plain.decision_function(X), 1e-8)
    assert np.isnan(both(model, se=True)).all()
    assert model.coef_[0, 4] == 0
    # The smallest norm: orthogonal to what changes no prediction, x0 - x2 - x3.
    assert model.coef_[0, :4] @ [1, 0, -1, -1] == pytest.approx(0, abs=1e-12)
    assert model.dependent_columns_ == ["x3", "x4"]
