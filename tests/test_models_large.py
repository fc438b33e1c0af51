"""Large data: what a sample may decide, sparse columns, memory, and sums that stay right."""

import gc
import math
import subprocess
import sys
import tracemalloc
import weakref

import mlx.core as mx
import numpy as np
import pandas as pd
import polars as pl
import pytest
from references import both, digits
from scipy.special import expit

import mlxopt as mo
from mlxopt.models import LinearRegression, LogisticRegression, RankWarning, _run
from mlxopt.models._design import STRIDE, Design
from mlxopt.models._factor import factorize
from mlxopt.models._input import read_table
from mlxopt.models._likelihood import Likelihood
from mlxopt.models._rows import SparseRows, gram, split


def large(n=40_000, p=20, seed=0):
    """Enough numbers for a sample to be taken; logits of ordinary size."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, p)) * 2.0 ** rng.integers(-3, 4, p) + rng.integers(-3, 4, p)
    z = (X - X.mean(axis=0)) / X.std(axis=0) @ rng.normal(size=p) / math.sqrt(p)
    return X, z, rng


def design_of(X, **options):
    return Design(read_table(X), None, True, **options)


def lstsq(X, y, w=None):
    root = np.ones(len(y)) if w is None else np.sqrt(w)
    A = np.c_[np.ones(len(y)), X].astype(np.float64)
    return np.linalg.lstsq(A * root[:, None], y * root)[0]


# --- A sample says how to scale -------------------------------------------------------------------


def test_a_large_design_is_scaled_by_a_sample():
    X, z, _ = large()
    design, small = design_of(X), design_of(X[:1000])
    assert small.sample is None
    assert design.sample is not None
    assert len(X) / 40 < design.sample.n < len(X) / 10
    unit = design.scale.unit
    assert design.measure()
    assert not design.measure()  # now it is
    np.testing.assert_array_equal(unit, design.scale.unit)  # a spread to within a factor of √2
    model = LinearRegression().fit(X, z)
    np.testing.assert_allclose(both(model), lstsq(X, z), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("Model", [LinearRegression, LogisticRegression])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("row", [1, 3 * STRIDE, 39_999])  # outside and inside the sample
def test_the_cell_that_is_not_finite_is_named(Model, value, row):
    X, z, _ = large()
    X[row, 7] = value
    with pytest.raises(ValueError, match=rf"X is .* in row {row}, column 'x7'"):
        Model().fit(X, z > 0)


@pytest.mark.parametrize("Model", [LinearRegression, LogisticRegression])
def test_numbers_whose_squares_overflow_are_refused(Model):
    X, z, rng = large()
    X[1, 7] = 1e200  # not in the sample
    with pytest.raises(ValueError, match=r"column 'x7' of X holds numbers so large"):
        Model().fit(X, z + rng.normal(size=len(z)) > 0)


def test_what_the_sample_has_not_seen():
    X, z, rng = large()
    X[:, 3] = 5.0
    X[1::STRIDE, 3] = rng.normal(size=len(X[1::STRIDE]))  # constant in the sample
    X[:, 4] = 1e6 + rng.normal(size=len(X))
    X[::STRIDE, 4] = 0.0  # in the sample the column has no spread and another mean
    X[2, 5] = 1e7  # an outlier
    y = z + X[:, 3] + rng.normal(size=len(X))
    model = LinearRegression().fit(X, y)
    shifted = X - [0, 0, 0, 0, 1e6, *15 * [0]]  # the oracle has no refinement
    np.testing.assert_allclose(model.coef_, lstsq(shifted, y)[1:], rtol=1e-8, atol=1e-13)
    assert model.rank_ == 21
    labels = y > np.median(y)
    model = LogisticRegression().fit(X, labels)
    assert model.status_ is mo.Status.CONVERGED
    slack = expit(model.decision_function(X)) - labels
    assert abs(slack.mean()) < 1e-13
    np.testing.assert_allclose(shifted.T @ slack / len(slack), 0, atol=1e-10 * np.ptp(shifted))


@pytest.mark.parametrize("solver", ["auto", "qr"])
def test_a_sample_of_light_rows(solver):
    X, z, rng = large()
    exact = np.round(64 * rng.normal(size=len(z))) / 64
    X[:, 4] = 1e9 + exact  # no rounding
    X[::STRIDE, 4] = 1.0  # the sample has a center of its own
    w = np.ones(len(z))
    w[::STRIDE] = 1e-60  # which does not count
    shifted = X - [0, 0, 0, 0, 1e9, *15 * [0]]
    y = z + exact + rng.normal(size=len(z))
    assert math.isnan(factorize(Design(read_table(X), w, True), 0.0).residual)  # by the Gram matrix
    far, near = (LinearRegression(solver).fit(A, y, w) for A in (X, shifted))
    np.testing.assert_allclose(far.coef_, near.coef_, rtol=1e-10, atol=1e-15)
    np.testing.assert_allclose(far.coef_se_, near.coef_se_, rtol=1e-10)


def test_a_column_that_the_sample_cannot_judge():
    X, z, rng = large()
    X[:, 3] = 0.0
    X[1, 3] = 1.0  # a dummy of one row, which is then fitted exactly
    y = z + rng.normal(size=len(X))
    model = LinearRegression().fit(X, y)
    assert model.rank_ == 21
    assert model.predict(X[1:2])[0] == pytest.approx(y[1], rel=1e-12)
    X[1, 3] = 0.0
    with pytest.warns(RankWarning, match="'x3'"):
        assert LinearRegression().fit(X, y).rank_ == 20
    with pytest.warns(RankWarning, match="'x3'"):
        assert LogisticRegression().fit(X, y > 0).rank_ == 20


@pytest.mark.parametrize("order", ["shuffled", "sorted", "one class in the sample"])
def test_any_sample_leads_to_the_same_maximum(order):
    X, z, rng = large()
    y = rng.uniform(size=len(z)) < expit(z)
    plain = LogisticRegression("lbfgs").fit(X, y)  # starts from zero
    index = np.argsort(y, kind="stable")
    if order == "one class in the sample":
        zeros, ones = index[: (~y).sum()], index[(~y).sum() :]
        index = np.concatenate([zeros, ones])
        sampled = np.zeros(len(y), dtype=bool)
        sampled[::STRIDE] = True
        merged = np.empty(len(y), dtype=int)
        merged[sampled], merged[~sampled] = index[: sampled.sum()], index[sampled.sum() :]
        index = merged
        assert not y[index][::STRIDE].any()
    elif order == "shuffled":
        index = rng.permutation(len(y))
    model = LogisticRegression().fit(X[index], y[index])
    np.testing.assert_allclose(both(model), both(plain), rtol=1e-9)
    np.testing.assert_allclose(both(model, se=True), both(plain, se=True), rtol=1e-8)
    if order != "one class in the sample":
        assert model.n_iter_ <= 3  # five to seven from zero


@pytest.mark.parametrize("Model", [LinearRegression, LogisticRegression])
def test_whole_blocks_of_weight_zero(Model):
    X, z, rng = large()
    y = rng.uniform(size=len(z)) < expit(z)
    w = np.zeros(len(y))
    w[-1000:] = rng.uniform(0.5, 2, 1000)
    for solver in Model._solvers[:3]:
        model, plain = (
            Model(solver).fit(X, y, w),
            Model(solver).fit(X[-1000:], y[-1000:], w[-1000:]),
        )
        np.testing.assert_allclose(both(model), both(plain), rtol=1e-9)
        np.testing.assert_allclose(both(model, se=True), both(plain, se=True), rtol=1e-8)
        assert model.summary().figures["rows"] == plain.summary().figures["rows"]


def test_weights_and_penalty_with_a_sample():
    X, z, rng = large()
    y = rng.uniform(size=len(z)) < expit(z)
    w = rng.integers(0, 3, len(y)).astype(float)
    model = LogisticRegression(l2=0.01).fit(X, y, w)
    slack = w * (expit(model.decision_function(X)) - y) / w.sum()
    np.testing.assert_allclose(X.T @ slack, -0.01 * model.coef_[0], atol=1e-12)
    w[::STRIDE] = 0  # the sample has no row of positive weight
    model, gone = LogisticRegression().fit(X, y, w), w > 0
    plain = LogisticRegression().fit(X[gone], y[gone], w[gone])
    np.testing.assert_allclose(both(model), both(plain), rtol=1e-10)
    model = LinearRegression().fit(X, z + rng.normal(size=len(z)), w)
    assert model.status_ is mo.Status.CONVERGED


@pytest.mark.parametrize("make", [np.asarray, mx.array, pd.DataFrame, pl.DataFrame])
def test_every_few_rows_of_a_table(make):
    X = np.arange(200, dtype=np.float32).reshape(100, 2)
    table = read_table(make(X)).every(7)
    assert table.rows == 15
    np.testing.assert_array_equal(table.block(0, 15), X[::7])
    np.testing.assert_array_equal(table.block(4, 99), X[28::7])


@pytest.mark.parametrize("kind", ["mlx", "bfloat16", "float32", "pandas", "polars", "fortran"])
def test_one_answer_for_every_large_container(kind):
    X, z, rng = large()
    X = np.asarray(mx.array(X.astype(np.float32)).astype(mx.bfloat16).astype(mx.float32))
    y = rng.uniform(size=len(z)) < expit(z)
    given = {
        "mlx": lambda: mx.array(X),
        "bfloat16": lambda: mx.array(X).astype(mx.bfloat16),
        "float32": lambda: X,
        "pandas": lambda: pd.DataFrame(X),
        "polars": lambda: pl.DataFrame(X),
        "fortran": lambda: np.asfortranarray(X),
    }[kind]()
    plain = X.astype(np.float64)
    for Model, target in ((LinearRegression, z), (LogisticRegression, y)):
        np.testing.assert_allclose(
            both(Model().fit(given, target)), both(Model().fit(plain, target)), rtol=1e-11
        )


# --- Columns that are mostly zero -----------------------------------------------------------------


def one_hot(n=30_000, levels=60, seed=0):
    """Dummies of all levels but the first, a column of zeros and numbers, one without zeros."""
    rng = np.random.default_rng(seed)
    level = rng.integers(0, levels, n)
    X = np.zeros((n, levels + 1), dtype=np.float32)
    X[np.arange(n), level - 1] = 1  # the first level in the last column, which is then replaced
    X[:, levels - 1] = np.where(rng.uniform(size=n) < 0.05, rng.normal(size=n), 0)
    X[:, levels] = 40 + 3 * rng.normal(size=n)
    y = rng.normal(size=levels)[level] + X[:, levels - 1] + 0.1 * X[:, levels] + rng.normal(size=n)
    return X, y, rng


def is_sparse(design):
    return all(isinstance(rows, SparseRows) for _, rows in design.pieces())


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_sparse_columns_change_nothing(weighted, fit_intercept):
    X, y, rng = one_hot()
    w = rng.integers(0, 3, len(y)).astype(float) if weighted else None
    assert is_sparse(Design(read_table(X), w, fit_intercept, y))
    for l2 in (0.0, 0.1):
        sparse = LinearRegression(l2=l2, fit_intercept=fit_intercept).fit(X, y, w)
        dense = LinearRegression("qr", l2=l2, fit_intercept=fit_intercept).fit(X, y, w)
        np.testing.assert_allclose(both(sparse), both(dense), rtol=1e-11)
        np.testing.assert_allclose(both(sparse, se=True), both(dense, se=True), rtol=1e-10)
        assert sparse.summary().figures["R²"] == dense.summary().figures["R²"]


@pytest.mark.parametrize("weighted", [True, False])
def test_logistic_regression_of_sparse_columns(weighted):
    X, y, rng = one_hot()
    w = rng.integers(0, 3, len(y)).astype(float) if weighted else np.ones(len(y))
    labels = y > np.median(y)
    for solver in ("newton", "lbfgs"):
        model = LogisticRegression(solver).fit(X, labels, w)
        slack = w * (expit(model.decision_function(X)) - labels) / w.sum()
        assert abs(slack.sum()) < 1e-13
        np.testing.assert_allclose(X.T @ slack, 0, atol=1e-12)
    p = expit(model.decision_function(X))
    A = np.c_[np.ones(len(y)), X].astype(float)
    information = (A * (w * p * (1 - p))[:, None]).T @ A
    error = np.sqrt(np.diag(np.linalg.inv(information)))
    np.testing.assert_allclose(both(model, se=True), error, rtol=1e-9)


def test_dependent_and_sparse():
    X, y, _ = one_hot()
    X[:, 10] = X[:, 11] + X[:, 12]  # still mostly zero
    with pytest.warns(RankWarning, match="'x12'"):
        model = LinearRegression().fit(X, y)
    assert model.dependent_columns_ == ["x12"]
    with pytest.warns(RankWarning, match="'x12'"):
        LogisticRegression().fit(X, y > np.median(y))


def test_sparse_rows_are_a_matrix():
    rng = np.random.default_rng(0)
    A = rng.normal(size=(70, 9))
    at = np.array([1, 2, 5, 8])
    A[:, at] *= rng.uniform(size=(70, 4)) < 0.2
    other = np.setdiff1d(np.arange(9), at)
    sparse, rest = split((A[i : i + 32] for i in range(0, 70, 32)), 9, at)
    rows = SparseRows(rest, other, sparse, at)
    b, r, root = rng.normal(size=9), rng.normal(size=70), rng.uniform(size=70)
    np.testing.assert_array_equal(rest, A[:, other])
    np.testing.assert_allclose(rows @ b, A @ b, rtol=1e-13)
    np.testing.assert_allclose(rows @ np.c_[b, -b], A @ np.c_[b, -b], rtol=1e-13)
    np.testing.assert_allclose(r @ rows, r @ A, rtol=1e-13)
    np.testing.assert_allclose(gram(rows), A.T @ A, rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(gram(rows, root), gram(A, root), rtol=1e-13, atol=1e-14)
    assert sparse.nnz == np.count_nonzero(A[:, at])


def test_the_gram_matrix_of_a_sparse_design():
    X, y, _ = one_hot()
    sparse, dense = design_of(X, target=y), design_of(X, target=y)
    dense.sparse = None
    total = [sum(gram(rows) for _, rows in design.pieces()) for design in (sparse, dense)]
    # The units are powers of two, so but for sums of the two full columns nothing is rounded.
    np.testing.assert_allclose(total[0], total[1], rtol=1e-12, atol=1e-9)
    assert factorize(sparse, 0.0).condition == pytest.approx(factorize(dense, 0.0).condition)


# --- Any optimizer over data outside MLX ----------------------------------------------------------


def test_the_loss_has_two_derivatives():
    # Without its XᵀWX, Newton's method differentiates the loss twice, by way of vmap.
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 3))
    y = rng.uniform(size=300) < expit(X @ [1, -1, 0.5])
    named = LogisticRegression("newton").fit(X, y)
    given = LogisticRegression(mo.Newton()).fit(X, y)
    np.testing.assert_allclose(both(given), both(named), rtol=1e-12)
    assert given.n_iter_ == named.n_iter_
    assert given.n_iter_ < 10
    assert LinearRegression(mo.Newton()).fit(X, X[:, 0]).n_iter_ == 1


def test_a_run_sees_value_gradient_and_curvature(monkeypatch):
    seen = {}

    def spy(loss, start, *args, **options):
        point = mx.array(np.array([0.3, -0.2]), dtype=mx.float64)
        vector = mx.array(np.array([1.0, 2.0]), dtype=mx.float64)
        with mx.stream(mx.cpu):
            slope = lambda at: mx.sum(mx.grad(loss)(at) * vector)  # noqa: E731
            seen["value"], seen["gradient"] = mx.value_and_grad(loss)(point)
            seen["product"] = mx.grad(slope)(point)
        return mo.minimize(loss, start, *args, **options)

    monkeypatch.setattr(_run, "minimize", spy)
    rng = np.random.default_rng(0)
    X = rng.normal(size=(50, 2))
    y = (rng.uniform(size=50) < 0.5).astype(float)
    LogisticRegression("lbfgs", fit_intercept=False).fit(X, y)
    design = Design(read_table(X), None, False)
    A = X / design.scale.unit
    p = expit(A @ [0.3, -0.2])
    value = np.mean(np.logaddexp(0, A @ [0.3, -0.2]) - y * (A @ [0.3, -0.2]))
    assert seen["value"].item() == pytest.approx(value, rel=1e-14)
    np.testing.assert_allclose(np.array(seen["gradient"]), A.T @ (p - y) / 50, rtol=1e-13)
    hessian = (A * (p * (1 - p))[:, None]).T @ A / 50
    np.testing.assert_allclose(np.array(seen["product"]), hessian @ [1, 2], rtol=1e-13)


@pytest.mark.parametrize("Model", [LinearRegression, LogisticRegression])
def test_a_fitted_model_lets_go_of_the_data(Model):
    class Held(np.ndarray):
        pass

    X, z, rng = large()
    X, y = X.view(Held), rng.uniform(size=len(z)) < expit(z)
    held = weakref.ref(X)
    model = Model("lbfgs").fit(X, y)
    del X
    gc.collect()
    assert held() is None
    assert model.result_.converged


# --- Memory ---------------------------------------------------------------------------------------

MEMORY = """
import sys, threading, time
import numpy as np, mlxopt as mo
kind, solver, dtype, precision = sys.argv[1:]
Model = getattr(mo.models, kind)

def data(n):
    rng = np.random.default_rng(0)
    X = rng.standard_normal(size=(n, 40), dtype=np.float32).astype(dtype)
    y = X @ np.full(40, 0.1, dtype) + rng.standard_normal(n, dtype=np.float32)
    return X, y if kind == "LinearRegression" else (y > 0).astype(int)

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

def watch():
    while not done:
        seen.append(resident())
        time.sleep(0.001)

def fit(X, y):
    Model(solver, max_steps=30, precision=precision).fit(X, y)

fit(*data(15_000))  # whatever is loaded when it is first needed
X, y = data(600_000)
base, seen, done = resident(), [], False
watcher = threading.Thread(target=watch)
watcher.start()
fit(X, y)
done = True
watcher.join()
print((max(seen) - base) / (4 * X.size))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the resident memory from /proc")
@pytest.mark.parametrize(
    ("kind", "solver", "dtype", "precision"),
    [
        ("LinearRegression", "auto", "float32", "auto"),
        ("LinearRegression", "auto", "float32", "float32"),
        ("LinearRegression", "qr", "float64", "auto"),
        ("LinearRegression", "lbfgs", "float32", "auto"),
        ("LogisticRegression", "newton", "float32", "auto"),
        ("LogisticRegression", "newton", "float64", "auto"),
        ("LogisticRegression", "lbfgs", "float32", "float32"),
    ],
)
def test_a_fit_takes_a_tenth_of_X(kind, solver, dtype, precision):
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MEMORY, kind, solver, dtype, precision],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    # Of X in float32, 96 MB: a few blocks of 2 MB and what malloc keeps; a column in float64 would
    # be a twentieth, a copy 1.
    assert float(found.stdout) < 0.1


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("Model", [LinearRegression, LogisticRegression])
@pytest.mark.parametrize("precision", ["auto", "float32"])
def test_nothing_as_long_as_the_table_is_kept(Model, precision, weighted):
    X, z, rng = large(300_000, 8)
    y, w = (z > 0 if Model is LogisticRegression else z), rng.uniform(0.5, 2, len(z))
    y = np.where(rng.uniform(size=len(z)) < 0.3, y[::-1], y)
    tracemalloc.start()
    Model("lbfgs", precision=precision).fit(X, y, w if weighted else None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # A block of 16,384 rows is 1.3 MB, its product with weights as much; labels and what checks
    # them are 0.3 MB each. One column in float64 would be 2.4 MB.
    assert peak < 4e6


# --- Sums that stay right -------------------------------------------------------------------------


def check_sums(n):
    """Value and gradient of both models, of float32 data, against sums in extended precision."""
    rng = np.random.default_rng(0)
    X = (rng.standard_normal(size=(n, 2), dtype=np.float32) + np.float32(0.1)) * np.float32(0.7)
    y = (rng.random(n, dtype=np.float32) < 0.3).astype(np.float32)
    design = design_of(X)
    b = np.array([0.2, -0.5, 0.3])
    scaled = b.copy()
    scaled[1:] *= design.scale.unit
    scaled[0] += design.scale.center @ b[1:]
    slopes = Likelihood(design, y.astype(float), np.arange(3), 0.0).slopes(scaled)
    value, gradient = np.longdouble(0), np.zeros(3, dtype=np.longdouble)
    for start in range(0, n, 2**16):
        A = np.c_[np.ones(len(X[start : start + 2**16])), X[start : start + 2**16]]
        A, t = A.astype(np.longdouble), y[start : start + 2**16].astype(np.longdouble)
        z = A @ b
        value += np.sum(np.logaddexp(0, z) - t * z)
        gradient += A.T @ (1 / (1 + np.exp(-z)) - t)
    gradient[1:] = (gradient[1:] - design.scale.center * gradient[0]) / design.scale.unit
    assert slopes.value == pytest.approx(float(value), rel=1e-12)  # 1e-6 is asked for
    np.testing.assert_allclose(slopes.gradient, gradient.astype(float), rtol=1e-11)

    model = LinearRegression("lbfgs").fit(X, y)
    exact = LinearRegression("auto").fit(X, y)
    A = np.c_[np.ones(n), X]
    residual = y - A @ both(exact)
    half = (
        0.5
        * float(residual @ residual)
        / n
        / Design(read_table(X), None, True, y.astype(float)).target_scale.unit[0] ** 2
    )
    assert model.result_ is not None
    assert model.result_.value == pytest.approx(half, rel=1e-11)
    assert np.abs(A.T @ residual).max() / n < 1e-12
    assert digits(both(model), both(exact)) > 11


def test_sums_over_a_million_float32_rows():
    check_sums(1_000_000)


@pytest.mark.slow
def test_sums_over_ten_million_float32_rows():
    check_sums(10_000_000)
