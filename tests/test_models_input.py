"""A clear word on every input that cannot be fitted, and the same answer for all that can."""

import mlx.core as mx
import numpy as np
import pandas as pd
import polars as pl
import pytest
import scipy.sparse

import mlxopt as mo
from mlxopt.models import LinearRegression, LogisticRegression

each_model = pytest.mark.parametrize("Model", [LinearRegression, LogisticRegression])


def with_entry(X, row, column, value):
    X = X.copy()
    X[row, column] = value
    return X


def sample(n=80):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, 3))
    return X, (X @ [1, -2, 0.5] + rng.normal(size=n) > 0).astype(int)


X0, Y0 = sample()
BAD_X = {
    "nan": (with_entry(X0, 3, 1, np.nan), ValueError, "X is NaN in row 3, column 'x1'"),
    "inf": (with_entry(X0, 7, 2, -np.inf), ValueError, "X is inf.* in row 7, column 'x2'"),
    "nan in a late block": (
        with_entry(np.ones((400_000, 3), dtype=np.float32), 399_999, 0, np.nan), ValueError,
        "row 399999, column 'x0'",
    ),
    "nan in a frame": (
        pd.DataFrame(with_entry(X0, 3, 1, np.nan), columns=["age", "height", "mass"]), ValueError,
        "row 3, column 'height'",
    ),
    "null": (pl.DataFrame({"a": [None, *range(79)]}), ValueError, "row 0, column 'a'"),
    "missing integer": (
        pd.DataFrame({"a": pd.array([None, *range(79)], dtype="Int64")}), ValueError,
        "row 0, column 'a'",
    ),
    "no rows": (X0[:0], ValueError, "0 rows"),
    "no columns": (X0[:, :0], ValueError, r"0 feature\(s\)"),
    "one dimension": (X0[:, 0], ValueError, r"2 dimensions.*reshape\(-1, 1\)"),
    "three dimensions": (X0[None], ValueError, "2 dimensions"),
    "a number": (3.0, ValueError, "2 dimensions"),
    "None": (None, ValueError, "NoneType"),
    "complex": (X0 + 1j, ValueError, "Complex data not supported"),
    "complex in MLX": (mx.array(X0 + 1j), ValueError, "Complex data not supported"),
    "sparse": (scipy.sparse.csr_matrix(X0), TypeError, r"sparse.*X.toarray\(\)"),
    "sparse array": (scipy.sparse.coo_array(X0), TypeError, "sparse"),
    "words": (np.array([["a", "b"]] * 80, dtype=object), ValueError, "could not convert.*'a'"),
    "strings": (np.array([["1", "2"]] * 80), ValueError, "dtype <U1; expected real numbers"),
    "dates": (
        np.array([["2020-01-01"]] * 80, dtype="datetime64[D]"), ValueError, "expected real numbers",
    ),
    "text column": (
        pd.DataFrame({"a": X0[:, 0], "city": ["x"] * 80}), ValueError, "'city'.*encode them",
    ),
    "text column in polars": (
        pl.DataFrame({"a": X0[:, 0], "city": ["x"] * 80}), ValueError, "'city'",
    ),
    "category": (pd.DataFrame({"a": pd.Categorical(["u", "v"] * 40)}), ValueError, "'a' .category"),
    "lazy": (pl.DataFrame(X0).lazy(), TypeError, r"X.collect\(\)"),
    "ragged": ([[1.0, 2.0], [3.0]] * 40, ValueError, "not a rectangular table"),
    "too large to square": (X0 * 1e200, ValueError, "'x0'.*squares overflow"),
}  # fmt: skip


@each_model
@pytest.mark.parametrize("case", BAD_X)
def test_bad_X(Model, case):
    X, error, message = BAD_X[case]
    y = np.arange(len(X) if case == "nan in a late block" else 80) % 2
    with pytest.raises(error, match=message):
        Model().fit(X, y)


BAD_Y = {
    "too short": (Y0[:-1], ValueError, "X has 80 rows and y has 79"),
    "a column": (Y0[:, None], ValueError, r"shape \(80, 1\).*y.ravel\(\)"),
    "a frame": (pd.DataFrame({"y": Y0}), ValueError, r"y.ravel\(\)"),
    "two columns": (np.c_[Y0, Y0], ValueError, r"shape \(80, 2\)"),
    "None": (None, ValueError, "target y is None"),
    "nan": (np.where(np.arange(80) == 4, np.nan, Y0), ValueError, "y is NaN in row 4"),
    "inf": (np.where(np.arange(80) > 77, np.inf, Y0), ValueError, "row 78, and 1 more"),
    "complex": (Y0 + 1j, ValueError, "Complex data not supported"),
    "sparse": (scipy.sparse.csr_matrix(Y0[:, None]), TypeError, "sparse"),
}
BAD_NUMBERS = {
    "words": (["a", "b"] * 40, ValueError, "y has dtype <U1; expected real numbers"),
    "too large": (Y0 * 1e200, ValueError, "y holds numbers so large"),
}
BAD_LABELS = {
    "one class": (np.ones(80), ValueError, "one class only, 1.0"),
    "three classes": (np.arange(80) % 3, ValueError, "3 classes, 0, 1, 2"),
    "numbers": (X0[:, 0], ValueError, "Unknown label type.*LinearRegression"),
    "mixed": (["a", 1] * 40, TypeError, "mixes strings and 1"),
    "missing": (["a", None] * 40, ValueError, "missing labels"),
}


@pytest.mark.parametrize(
    ("Model", "y", "error", "message"),
    [
        pytest.param(Model, *case, id=f"{Model.__name__}-{name}")
        for Model, cases in (
            (LinearRegression, BAD_Y | BAD_NUMBERS), (LogisticRegression, BAD_Y | BAD_LABELS),
        )
        for name, case in cases.items()
    ],
)  # fmt: skip
def test_bad_y(Model, y, error, message):
    with pytest.raises(error, match=message):
        Model().fit(X0, y)


BAD_WEIGHTS = {
    "negative": (np.where(np.arange(80) == 6, -0.5, 1), ValueError, "is -0.5 in row 6"),
    "all zero": (np.zeros(80), ValueError, "zero in every row"),
    "nan": (np.where(np.arange(80) == 6, np.nan, 1), ValueError, "sample_weight is NaN in row 6"),
    "too short": (np.ones(79), ValueError, "sample_weight has 79"),
    "a number": (2.0, ValueError, r"shape \(\)"),
    "a column": (np.ones((80, 1)), ValueError, r"sample_weight.ravel\(\)"),
    "words": (["a"] * 80, ValueError, "sample_weight has dtype"),
}


@each_model
@pytest.mark.parametrize("case", BAD_WEIGHTS)
def test_bad_weights(Model, case):
    weights, error, message = BAD_WEIGHTS[case]
    with pytest.raises(error, match=message):
        Model().fit(X0, Y0, sample_weight=weights)


def test_weights_that_leave_one_class():
    with pytest.raises(ValueError, match="positive sample_weight are of one class, 1"):
        LogisticRegression().fit(X0, Y0, sample_weight=Y0)


BAD_PARAMETERS = {
    "negative l2": ({"l2": -1.0}, ValueError, "l2 is -1.0"),
    "infinite l2": ({"l2": np.inf}, ValueError, "l2 is inf"),
    "l2 in words": ({"l2": "0.1"}, TypeError, "l2 is '0.1'; expected a number"),
    "misspelt solver": ({"solver": "newtn"}, ValueError, "'newtn'.*Did you mean 'newton'"),
    "another solver": ({"solver": "liblinear"}, ValueError, "expected one of"),
    "a class": ({"solver": mo.LBFGS}, TypeError, r"call it: LBFGS\(\)"),
    "None": ({"solver": None}, ValueError, "solver is None"),
    "no steps": ({"max_steps": 0}, ValueError, "max_steps is 0"),
    "half a step": ({"max_steps": 1.5}, TypeError, "whole number"),
    "intercept": ({"fit_intercept": "yes"}, TypeError, "True or False"),
}


@each_model
@pytest.mark.parametrize("case", BAD_PARAMETERS)
def test_bad_parameters(Model, case):
    params, error, message = BAD_PARAMETERS[case]
    model = Model(**params)  # unchecked, as scikit-learn has it
    with pytest.raises(error, match=message):
        model.fit(X0, Y0)


@each_model
@pytest.mark.parametrize("scale", [1e-100, 1e100])
def test_columns_of_any_size(Model, scale):
    plain, scaled = Model().fit(X0, Y0), Model().fit(X0 * scale, Y0)
    np.testing.assert_allclose(scaled.coef_ * scale, plain.coef_, rtol=1e-9)
    np.testing.assert_allclose(scaled.coef_se_ * scale, plain.coef_se_, rtol=1e-9)


@each_model
def test_booleans_integers_and_objects_are_numbers(Model):
    X = (X0 > 0.5).astype(float)
    plain = Model().fit(X, Y0)
    for same in (
        X > 0,
        X.astype(np.int8),
        X.astype(np.uint64),
        X.astype(np.float16),
        X.astype(object),
    ):
        np.testing.assert_allclose(Model().fit(same, Y0).coef_, plain.coef_, rtol=1e-12)
    frame = pd.DataFrame({"a": X[:, 0] > 0, "b": X[:, 1].astype(int), "c": X[:, 2].astype(object)})
    np.testing.assert_allclose(Model().fit(frame, Y0).coef_, plain.coef_, rtol=1e-12)
    frame = pl.DataFrame({"a": X[:, 0] > 0, "b": X[:, 1].astype(int), "c": X[:, 2]})
    np.testing.assert_allclose(Model().fit(frame, Y0).coef_, plain.coef_, rtol=1e-12)
    half = mx.array(X.astype(np.float32)).astype(mx.bfloat16)
    np.testing.assert_allclose(Model().fit(half, Y0).coef_, plain.coef_, rtol=1e-12)


@each_model
def test_the_input_is_left_as_it_was(Model):
    X, y, w = X0.copy(), Y0.astype(float), np.linspace(0, 1, 80)
    for array in (X, y, w):
        array.flags.writeable = False
    Model().fit(X, y, w).score(X, y, w)
    np.testing.assert_array_equal(X, X0)
