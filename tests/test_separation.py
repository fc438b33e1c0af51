"""Separated classes are noticed, by name, and nothing else is taken for them."""

import warnings

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from references import GLM, both, classes, glm, needs_data
from scipy.optimize import linprog
from scipy.special import expit

import mlxopt as mo
from mlxopt.models import LogisticRegression, SeparationWarning
from mlxopt.models._design import Design
from mlxopt.models._input import read_table
from mlxopt.models._likelihood import Likelihood, finish
from mlxopt.models._separation import _direction

SOLVERS = ["newton", "lbfgs", "momentum"]


@needs_data
def test_quasi_separation_is_noticed_by_name():
    reference = GLM["logit_endometrial_quasisep"]
    X, y, _, _ = glm("logit_endometrial_quasisep")
    with pytest.warns(SeparationWarning, match="column 'NV' separates the classes.*quasi"):
        model = LogisticRegression().fit(X, y)
    assert model.separating_columns_ == ["NV"]
    assert model.status_ is mo.Status.UNBOUNDED
    assert np.isnan(both(model, se=True)).all()
    # The others have the limit's coefficients, and NV's is large but no monster.
    found = dict(zip(["(Intercept)", *X.columns], both(model), strict=True))
    for name, limit in reference["coef_finite_limit"].items():
        assert found[name] == pytest.approx(float(limit), rel=1e-5)
    assert 5 < found["NV"] < 40
    assert np.isfinite(model.predict_proba(X)).all()
    text = " ".join(str(model.summary()).split())
    assert "column 'NV' separates" in text
    assert "l2 > 0" in text


@pytest.mark.parametrize("solver", [*SOLVERS, "sgd"])
def test_complete_separation_by_one_column(solver):
    X, _, _ = classes()
    y = (X[:, 1] > 301).astype(int)
    with pytest.warns(SeparationWarning, match="column 'x1' separates the classes completely"):
        model = LogisticRegression(solver).fit(X, y)
    assert model.separating_columns_ == ["x1"]
    assert model.status_ is mo.Status.UNBOUNDED
    assert model.score(X, y) > 0.9
    assert np.isnan(both(model, se=True)).all()
    assert np.abs(model.decision_function(X)).max() < 1e4


def test_complete_separation_by_a_combination():
    X, _, _ = classes()
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    y = (X[:, 0] + X[:, 2] > 0.1).astype(int)
    with pytest.warns(SeparationWarning, match="completely") as warned:
        model = LogisticRegression().fit(X, y)
    assert {"x0", "x2"} <= set(model.separating_columns_)
    assert model.score(X, y) == 1
    assert warned[0].filename == __file__


def test_quasi_separation_by_a_combination():
    # Rows with a + b = 1 are of both classes, all others on their side; c has no part in it.
    rng = np.random.default_rng(3)
    a, b, c = rng.integers(0, 3, 90), rng.integers(0, 3, 90), rng.normal(size=90)
    total = a + b
    y = np.where(total == 2, rng.integers(0, 2, 90), total > 2)
    with pytest.warns(SeparationWarning, match="'a', 'b' separate the classes except on the bor"):
        model = LogisticRegression().fit(pd.DataFrame({"a": a, "b": b, "c": c}), y)
    assert model.separating_columns_ == ["a", "b"]


def test_separation_among_many_rows():
    # More rows than the linear program starts with.
    rng = np.random.default_rng(4)
    n = 50_000
    X = rng.integers(0, 6, (n, 3)).astype(float)
    total = X[:, 0] + X[:, 1]
    y = np.where(total == 5, rng.integers(0, 2, n), total > 5).astype(int)
    with pytest.warns(SeparationWarning, match="quasi"):
        model = LogisticRegression().fit(X, y)
    assert model.separating_columns_ == ["x0", "x1"]
    lone = np.argmax(total > 8)
    y[lone] = 1 - y[lone]  # one row against it
    assert LogisticRegression().fit(X, y).status_ is mo.Status.CONVERGED


def likelihood_of(X, y):
    design = Design(read_table(X), None, True)
    every = np.arange(design.width)
    return Likelihood(design, y.astype(float), every, 0.0)


def test_the_linear_program_hears_every_row():
    rng = np.random.default_rng(4)
    X = rng.integers(0, 6, (50_000, 3)).astype(float)
    total = X[:, 0] + X[:, 1]
    y = np.where(total == 5, rng.integers(0, 2, len(X)), total > 5)
    direction = _direction(likelihood_of(X, y))
    assert direction is not None
    # Along x0 + x1, and 5 of it is the border; in scaled columns, so up to their units.
    assert direction[1] == pytest.approx(direction[2], rel=1e-6)
    assert abs(direction[3]) < 1e-6
    lone = int(np.flatnonzero((total > 8) & (np.arange(len(X)) % 2 == 1))[0])
    y[lone] = 1 - y[lone]  # in none of the rows that the program starts with
    assert _direction(likelihood_of(X, y)) is None


def test_ordinary_data_need_no_linear_program(monkeypatch):
    monkeypatch.setattr("scipy.optimize.linprog", lambda *_, **__: pytest.fail("was called"))
    for solver in SOLVERS:
        X, y, _ = classes()
        LogisticRegression(solver).fit(X, y)


@pytest.mark.parametrize("far", [3.0, 30.0])
def test_the_finish_is_reached_from_afar(far):
    # A whole Newton step from there would lead ten times further away, and so on.
    X, y, _ = classes()
    likelihood = likelihood_of(X, y)
    model = LogisticRegression().fit(X, y)
    maximum = finish(likelihood, np.array([far, -far, 0.0, far]))
    assert maximum.converged
    coef, intercept = likelihood.design.unscale(maximum.b)
    np.testing.assert_allclose(np.r_[intercept, coef], both(model), rtol=1e-9)


def test_large_logits_without_separation_converge():
    x = np.linspace(-1000, 1000, 401)
    y = (x > 0).astype(int)
    y[[199, 202]] = 1, 0  # two rows near the middle on the wrong side
    model = LogisticRegression().fit(x[:, None], y)
    assert np.abs(model.decision_function(x[:, None])).max() > 50
    assert model.separating_columns_ == []
    assert model.status_ is mo.Status.CONVERGED
    theirs = sm.Logit(y, sm.add_constant(x)).fit(disp=0, tol=1e-14, maxiter=100)
    np.testing.assert_allclose(both(model), theirs.params, rtol=1e-7, atol=1e-12)


def test_separation_without_intercept_goes_through_zero():
    rng = np.random.default_rng(5)
    x = rng.uniform(1, 3, 60)
    y = (x > 2).astype(int)  # separable with an intercept, but zero separates nothing
    assert LogisticRegression(fit_intercept=False).fit(x[:, None], y).separating_columns_ == []
    with pytest.warns(SeparationWarning, match="'x0'"):
        LogisticRegression(fit_intercept=False).fit(x[:, None] - 2, y)


def test_a_penalty_makes_separation_harmless():
    X, _, _ = classes()
    y = (X[:, 1] > 301).astype(int)
    model = LogisticRegression(l2=1e-3).fit(X, y)
    assert model.status_ is mo.Status.CONVERGED
    assert model.separating_columns_ == []


def is_separated(X, y):
    """The oracle: a linear program with all the rows, written out."""
    rows = (2 * y - 1)[:, None] * np.c_[np.ones(len(y)), X]
    found = linprog(-rows.sum(axis=0), A_ub=-rows, b_ub=np.zeros(len(y)), bounds=(-1, 1))
    return -found.fun > 1e-6


def test_separation_agrees_with_the_linear_program():
    rng = np.random.default_rng(6)
    verdicts = []
    for _ in range(60):
        n, p = rng.integers(6, 25), rng.integers(1, 4)
        X = (
            rng.integers(0, 4, (n, p)).astype(float)
            if rng.uniform() < 0.5
            else rng.normal(size=(n, p))
        )
        y = (rng.uniform(size=n) < expit(3 * (X - X.mean(axis=0)).sum(axis=1))).astype(int)
        if y.min() == y.max() or np.linalg.matrix_rank(np.c_[np.ones(n), X]) <= p:
            continue
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            model = LogisticRegression().fit(X, y)
        verdicts.append(is_separated(X, y))
        assert bool(model.separating_columns_) == verdicts[-1]
        assert any(issubclass(w.category, SeparationWarning) for w in warned) == verdicts[-1]
        assert (model.status_ is mo.Status.CONVERGED) == (not verdicts[-1])
    assert 10 < sum(verdicts) < len(verdicts) - 10
