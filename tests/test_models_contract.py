"""What both models owe: scikit-learn's conventions, no half fits, and a summary."""

import dataclasses
import pickle
import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.exceptions import NotFittedError as TheirNotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import mlxopt as mo
from mlxopt.models import LinearRegression, LogisticRegression, NotFittedError

MODELS = [LinearRegression, LogisticRegression]
each_model = pytest.mark.parametrize("Model", MODELS)


def sample(n=80):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, 3))
    y = (X @ [1, -2, 0.5] + rng.normal(size=n) > 0).astype(int)
    return X, y  # 0 and 1 serve either model


X0, Y0 = sample()


# --- scikit-learn's conventions -------------------------------------------------------------------


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that the models do not inherit from BaseEstimator
    their_checks = parametrize_with_checks(
        [LinearRegression(), LogisticRegression()],
        expected_failed_checks=lambda _: {
            "check_supervised_y_2d": "y of shape (n, 1) is refused, not flattened with a warning"
        },
    )


@pytest.mark.filterwarnings("ignore::mlxopt.ConvergenceWarning")
@their_checks
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


@each_model
def test_parameters_go_in_and_out(Model):
    model = Model("lbfgs", l2=0.5, fit_intercept=False, max_steps=7, precision="float32")
    params = {
        "solver": "lbfgs", "l2": 0.5, "fit_intercept": False, "max_steps": 7,
        "precision": "float32",
    }  # fmt: skip
    assert model.get_params() == params
    copy: Any = clone(model)
    assert copy.get_params() == params
    assert model.set_params(l2=1.0) is model
    assert model.l2 == 1.0
    with pytest.raises(ValueError, match=r"Invalid parameter 'alpha'.*'l2'"):
        model.set_params(alpha=1.0)
    assert repr(Model()) == f"{Model.__name__}()"
    assert repr(Model("lbfgs", l2=1.0)) == f"{Model.__name__}(solver='lbfgs', l2=1.0)"
    assert repr(Model(precision="float32")) == f"{Model.__name__}(precision='float32')"


@each_model
def test_an_optimizer_as_solver_survives_cloning(Model):
    X, y = sample()
    model: Any = clone(Model(mo.LBFGS(memory=4)))
    assert model.solver == mo.LBFGS(memory=4)
    np.testing.assert_allclose(model.fit(X, y).coef_, Model().fit(X, y).coef_, rtol=1e-9)


def test_kinds():
    assert is_regressor(LinearRegression())
    assert is_classifier(LogisticRegression())
    assert LinearRegression._estimator_type == "regressor"
    assert LogisticRegression._estimator_type == "classifier"
    tags = LogisticRegression().__sklearn_tags__()
    assert not tags.classifier_tags.multi_class
    assert tags.target_tags.required
    assert not tags.input_tags.sparse


@each_model
def test_in_a_pipeline_and_a_grid_search(Model):
    X, y = sample()
    pipe = make_pipeline(StandardScaler(), Model())
    assert pipe.fit(X, y).score(X, y) > 0.3
    name = f"{Model.__name__.lower()}__l2"
    search = GridSearchCV(pipe, {name: [0.0, 0.1, 100.0]}, cv=3).fit(X, y)
    assert search.best_params_[name] in (0.0, 0.1)
    assert len(cross_val_score(Model(), X, y, cv=3)) == 3
    search = GridSearchCV(Model(), {"l2": [0.1, 1.0]}, cv=3).fit(X, y, sample_weight=np.ones(80))
    assert search.best_estimator_.n_features_in_ == 3


@each_model
@pytest.mark.parametrize("solver", ["newton", "lbfgs"])
def test_a_fitted_model_can_be_kept(Model, solver):
    X, y = sample()
    model = Model(solver).fit(X, y)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict(X), model.predict(X))
    assert str(again.summary()) == str(model.summary())


@each_model
def test_what_a_fit_leaves(Model):
    X, y = sample()
    model = Model()
    before = set(vars(model))
    assert model.fit(X, y) is model
    learned = set(vars(model)) - before
    assert {"coef_", "intercept_", "coef_se_", "intercept_se_", "n_features_in_"} <= learned
    assert {"coef_error_", "intercept_error_"} <= learned
    assert {"status_", "n_iter_", "result_", "rank_", "dependent_columns_"} <= learned
    assert "feature_names_in_" not in learned
    assert all(name.endswith("_") for name in learned - {"_summary"})
    assert model.status_ is mo.Status.CONVERGED
    assert model.n_iter_ >= 1
    assert np.shape(model.coef_se_) == np.shape(model.coef_)
    assert np.shape(model.intercept_se_) == np.shape(model.intercept_)
    assert np.shape(model.coef_error_) == np.shape(model.coef_)
    assert np.shape(model.intercept_error_) == np.shape(model.intercept_)
    assert model.coef_.dtype == np.float64


def test_result_is_that_of_minimize():
    X, y = sample()
    assert LinearRegression().fit(X, y).result_ is None
    assert LinearRegression("qr").fit(X, y).result_ is None
    for model in (LinearRegression("lbfgs"), LogisticRegression()):
        model.fit(X, y)
        assert isinstance(model.result_, mo.Result)
        assert model.n_iter_ == model.result_.steps


@each_model
def test_unfitted(Model):
    X, y = sample()
    for call in (
        lambda: Model().predict(X), lambda: Model().score(X, y), lambda: Model().summary(),
    ):  # fmt: skip
        with pytest.raises(NotFittedError, match="not fitted yet") as caught:
            call()
        assert isinstance(caught.value, (ValueError, AttributeError))
        assert isinstance(caught.value, TheirNotFittedError)
    assert issubclass(NotFittedError, ValueError)
    assert issubclass(NotFittedError, AttributeError)


def test_scikit_learn_pandas_and_rich_are_not_imported():
    code = (
        "import sys, mlxopt as mo\n"
        "X, y = [[0.0], [1.0], [2.0], [3.0]], [0, 1, 0, 1]\n"
        "for Model in (mo.models.LinearRegression, mo.models.LogisticRegression):\n"
        "    try:\n"
        "        Model().predict(X)\n"
        "    except mo.models.NotFittedError:\n"
        "        print(Model().fit(X, y).score(X, y) > 0)\n"
        "print(sorted({'sklearn', 'pandas', 'polars', 'rich', 'matplotlib'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split("\n")[:3] == ["True", "True", "[]"]


@each_model
def test_column_names_must_agree(Model):
    X, y = sample()
    frame = pd.DataFrame(X, columns=["a", "b", "c"])
    model = Model().fit(frame, y)
    with pytest.raises(ValueError, match="unseen at fit time:\n- z\n"):
        model.predict(frame.rename(columns={"a": "z"}))
    with pytest.raises(ValueError, match="same order"):
        model.predict(frame[["c", "b", "a"]])
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        model.predict(X)
    with pytest.warns(UserWarning, match="was fitted without feature names"):
        Model().fit(X, y).predict(frame)


@each_model
def test_predict_wants_the_columns_of_fit(Model):
    X, y = sample()
    model = Model().fit(X, y)
    with pytest.raises(ValueError, match=r"X has 2 features, but .* is expecting 3"):
        model.predict(X[:, :2])
    with pytest.raises(ValueError, match="Reshape your data"):
        model.predict(X[0])
    spoilt = X.copy()
    spoilt[5, 1] = np.nan
    with pytest.raises(ValueError, match="NaN in row 5, column 'x1'"):
        model.predict(spoilt)


# --- Ctrl-C and failures --------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Interrupted(mo.optimizers.Optimizer):
    """L-BFGS, and a person who loses patience after three steps."""

    def init(self, objective, params):
        return mo.LBFGS().init(objective, params)

    def step(self, objective, state):
        if objective.evaluations > 3:
            raise KeyboardInterrupt
        return mo.LBFGS().step(objective, state)


@each_model
def test_ctrl_c_leaves_no_half_fit(Model):
    X, y = sample()
    model = Model().fit(X, y)
    model.set_params(solver=Interrupted())
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, y)
    with pytest.raises(NotFittedError):
        model.predict(X)
    assert not [name for name in vars(model) if name.endswith("_")]


@each_model
def test_a_failed_fit_forgets_the_one_before(Model):
    X, y = sample()
    model = Model().fit(X, y)
    with pytest.raises(ValueError, match="NaN"):
        model.fit(np.full_like(X, np.nan), y)
    with pytest.raises(NotFittedError):
        model.predict(X)


# --- The summary ----------------------------------------------------------------------------------


@each_model
def test_the_summary_prints(Model):
    frame = pd.DataFrame(
        X0, columns=["[red]age[/red]", "<b>", "a name that goes on for a good while"]
    )
    model = Model().fit(frame, Y0)
    summary = model.summary()
    text, page = str(summary), summary._repr_html_()
    letter = "t" if Model is LinearRegression else "z"
    for word in ("[red]age[/red]", "intercept", "std. error", f"P>|{letter}|", "rows", "80"):
        assert word in text
    assert f"{model.coef_.reshape(-1)[0]:.6g}" in text
    assert "&lt;b&gt;" in page
    assert "<b>intercept" not in page
    assert "\x1b" not in text
    assert all(len(line) <= 88 for line in text.splitlines())
    np.testing.assert_allclose(
        summary.statistic[1:], (model.coef_ / model.coef_se_).reshape(-1), rtol=1e-15
    )


@each_model
def test_the_summary_of_many_columns_is_cut(Model):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(600, 70)), np.arange(600) % 2
    summary = Model().fit(X, y).summary()
    assert "11 more" in str(summary)
    assert "x69" not in str(summary)
    assert len(summary.names) == len(summary.p_value) == 71


@each_model
def test_no_warning_without_a_reason(Model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = Model().fit(X0, Y0)
        model.predict(X0)
        model.score(X0, Y0)
        str(model.summary())
