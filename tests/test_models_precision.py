"""`precision`, and the computational error that a fit reports: against exact arithmetic."""

import math
import warnings

import mlx.core as mx
import mpmath
import numpy as np
import pytest
from references import both, classes, numbers
from scipy.special import expit

import mlxopt as mo
from mlxopt.models import LinearRegression, LogisticRegression, RankWarning, SeparationWarning
from mlxopt.models._design import Design
from mlxopt.models._input import read_table
from mlxopt.models._likelihood import Likelihood
from mlxopt.models._rows import DeviceRows

MODELS = [LinearRegression, LogisticRegression]
each_model = pytest.mark.parametrize("Model", MODELS)
PRECISIONS = ["auto", "float32", "float64"]
WAYS = [
    *(
        (LinearRegression, solver)
        for solver in ("auto", "qr", "newton", "lbfgs", "momentum", "sgd")
    ),
    *((LogisticRegression, solver) for solver in ("newton", "lbfgs", "momentum", "sgd")),
    (LinearRegression, mo.LBFGS(memory=3)),
    (LogisticRegression, mo.Newton()),
]
each_way = pytest.mark.parametrize(
    ("Model", "solver"), WAYS, ids=lambda value: getattr(value, "__name__", None) or str(value)
)


def errors(model):
    """Bounds of the computational error, the intercept's first."""
    return np.r_[
        np.ravel(model.intercept_error_)[: model.fit_intercept], np.ravel(model.coef_error_)
    ]


def share(model):
    """The largest computational error in standard errors."""
    return float((errors(model) / both(model, se=True)).max())


def words(model):
    return model.summary().figures["computational error"]


def data(Model, n=300, seed=0):
    if Model is LinearRegression:
        X, y, _ = numbers(n, 4, seed)
    else:
        X, y, _ = classes(n, 3, seed)
    return X, y


# --- Exact answers, in 50 digits ------------------------------------------------------------------


def exact(Model, X, y, w, l2, start):
    """Intercept and coefficients to 40 digits or so: Newton's method in mpmath."""
    with mpmath.workdps(50):
        rows = [[mpmath.mpf(1), *map(mpmath.mpf, row)] for row in X.tolist()]
        target, weights = (list(map(mpmath.mpf, v.tolist())) for v in (y * 1.0, w * 1.0))
        b, q = list(map(mpmath.mpf, start.tolist())), len(start)
        ridge = [0] + [mpmath.mpf(l2) * mpmath.fsum(weights)] * (q - 1)
        for _ in range(8):
            z = [mpmath.fdot(row, b) for row in rows]
            if Model is LinearRegression:
                away = [zi - t for zi, t in zip(z, target, strict=True)]
                curvature = weights
            else:
                p = [1 / (1 + mpmath.exp(-zi)) for zi in z]
                away = [pi - t for pi, t in zip(p, target, strict=True)]
                curvature = [wi * pi * (1 - pi) for wi, pi in zip(weights, p, strict=True)]
            gradient, H = mpmath.matrix(q, 1), mpmath.matrix(q, q)
            pull = [wi * a for wi, a in zip(weights, away, strict=True)]
            for i in range(q):
                gradient[i] = mpmath.fdot(pull, [r[i] for r in rows]) + ridge[i] * b[i]
                bent = [c * r[i] for c, r in zip(curvature, rows, strict=True)]
                for j in range(i + 1):
                    H[i, j] = H[j, i] = mpmath.fdot(bent, [r[j] for r in rows])
                H[i, i] += ridge[i]
            step = mpmath.lu_solve(H, gradient)
            b = [bi - si for bi, si in zip(b, step, strict=True)]
            if max(map(abs, step)) < mpmath.mpf(10) ** -35 * (1 + max(map(abs, b))):
                return b
    raise AssertionError("the exact answer was not reached")


def distances(model, true):
    """How far the coefficients are from exact ones, with no rounding."""
    with mpmath.workdps(50):
        pairs = zip(both(model).tolist(), true, strict=True)
        return np.array([float(abs(mpmath.mpf(found) - value)) for found, value in pairs])


def design(seed):
    """Columns of a condition number from 1 to 1e9, some far from zero; weights; a penalty."""
    rng = np.random.default_rng(seed)
    n, p, digits = 30 + 8 * seed, 1 + seed % 4, seed % 10
    U, _ = np.linalg.qr(rng.normal(size=(n, p)))
    V, _ = np.linalg.qr(rng.normal(size=(p, p)))
    Z = U * math.sqrt(n)
    X = (Z * 10.0 ** -np.linspace(0, digits, p)) @ V.T + [0, 7, 3e3][seed % 3]
    w = np.ones(n) if seed % 2 else rng.uniform(0.1, 2, n)
    l2 = 0.1 if seed % 5 == 4 else 0.0
    return X, Z @ rng.normal(size=p) / math.sqrt(p), w, l2, rng


@pytest.mark.filterwarnings("ignore::mlxopt.ConvergenceWarning")
@each_model
@pytest.mark.parametrize("seed", range(12))
def test_the_true_error_is_within_the_reported_one(Model, seed):
    X, z, w, l2, rng = design(seed)
    if Model is LinearRegression:
        y = z + 10.0 ** -(seed % 7) * rng.normal(size=len(z))
    else:
        y = rng.uniform(size=len(z)) < expit(z)
    true = exact(Model, X, y, w, l2, both(Model(l2=l2).fit(X, y, w)))
    solvers = ("auto", "qr", "lbfgs") if Model is LinearRegression else ("newton", "lbfgs")
    for precision in PRECISIONS:
        for solver in solvers:
            model = Model(solver, l2=l2, precision=precision, max_steps=300).fit(X, y, w)
            converged = model.status_ is mo.Status.CONVERGED
            if Model is LogisticRegression and not converged:
                assert np.isnan(errors(model)).all()
                assert (solver, precision) not in (("newton", "auto"), ("newton", "float64"))
                continue
            assert (distances(model, true) <= errors(model)).all(), (solver, precision)
            if precision != "float32" and l2 == 0 and converged:
                assert share(model) < 0.01


@each_model
@pytest.mark.parametrize("seed", [0, 11])
def test_the_bound_is_no_scare(Model, seed):
    X, z, w, _, rng = design(seed)
    y = (
        z + rng.normal(size=len(z))
        if Model is LinearRegression
        else z + rng.normal(size=len(z)) > 0
    )
    # In float32 it is the very Newton step that is missing; in float64 the roundings are unknown.
    single = Model(precision="float32").fit(X, y, w)
    true = exact(Model, X, y, w, 0.0, both(single))
    error = distances(single, true)
    assert (errors(single) <= 1.01 * error + 1e-10 * np.abs(both(single))).all()
    assert (errors(Model().fit(X, y, w)) < 1e-4 * errors(single).max()).all()


def test_the_error_of_a_run_that_stopped_early():
    X, y = data(LinearRegression)
    with pytest.warns(mo.ConvergenceWarning, match="MAX_STEPS"):
        model = LinearRegression("sgd", max_steps=10).fit(X, y)
    away = np.abs(both(model) - both(LinearRegression().fit(X, y)))
    np.testing.assert_allclose(errors(model), away, rtol=1e-9)
    assert words(model).startswith("at most")
    X, y = data(LogisticRegression)
    with pytest.warns(mo.ConvergenceWarning, match="MAX_STEPS"):
        model = LogisticRegression("sgd", max_steps=10).fit(X, y)
    assert np.isnan(errors(model)).all()
    assert words(model) == "unknown (see the note)"


# --- Every solver in every precision --------------------------------------------------------------


@each_way
def test_every_solver_in_every_precision(Model, solver):
    X, y = data(Model)
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    fits = {p: Model(solver, precision=p, max_steps=20_000).fit(X, y) for p in PRECISIONS}
    exact = both(Model().fit(X, y))
    for precision, model in fits.items():
        assert model.status_ is mo.Status.CONVERGED
        assert model.coef_.dtype == np.float64
        used = "float32" if precision == "float32" else "float64"
        assert f"in {used}, CONVERGED" in model.summary().figures["solver"]
        if model.result_ is not None:
            assert model.result_.params.dtype == (mx.float32 if used == "float32" else mx.float64)
        # X has unit columns and 300 rows, so that rounding is all there is.
        rtol = 1e-4 if used == "float32" else 1e-12
        np.testing.assert_allclose(both(model), exact, rtol=rtol, atol=1e-2 * rtol)
        np.testing.assert_allclose(both(model, se=True), both(fits["auto"], se=True), rtol=rtol)
    np.testing.assert_array_equal(both(fits["auto"]), both(fits["float64"]))
    assert share(fits["auto"]) < 1e-9
    # The finish is what makes the difference.
    assert np.abs(both(fits["float32"]) - exact).max() > 1e-9
    assert 1e-9 < share(fits["float32"]) < 1e-2


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("l2", [0.0, 0.1])
@pytest.mark.parametrize("solver", ["auto", "qr"])
def test_large_least_squares_in_float32(solver, l2, weighted):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(30_000, 20)) * 2.0 ** rng.integers(-3, 4, 20) + rng.integers(-3, 4, 20)
    y = X @ rng.normal(size=20) + rng.normal(size=len(X))
    w = rng.integers(0, 3, len(X)) if weighted else None
    model = LinearRegression(solver, l2=l2, precision="float32").fit(X, y, w)
    plain = LinearRegression("qr", l2=l2).fit(X, y, w)
    away = np.abs(both(model) - both(plain))
    assert (away <= errors(model)).all()
    assert 1e-9 < away.max() < 1e-4
    assert model.summary().figures["R²"] == plain.summary().figures["R²"]
    if l2 == 0:
        np.testing.assert_allclose(both(model, se=True), both(plain, se=True), rtol=1e-4)
        assert f"{'QR' if solver == 'qr' else 'Gram matrix'} in float32" in str(model.summary())


def test_what_float32_cannot_reach():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20_000, 2))
    X, y = np.c_[x[:, 0], x[:, 0] + 1e-6 * x[:, 1]], x[:, 0] + rng.normal(size=len(x))
    with pytest.warns(mo.ConvergenceWarning, match=r'float32 goes\. precision="auto"') as warned:
        model = LinearRegression(precision="float32").fit(X, y)
    assert warned[0].filename == __file__
    assert model.rank_ == 3  # the data's rank, which float32 cannot see
    assert share(model) > 0.01
    assert words(model).startswith("up to ")
    assert np.isfinite(both(model)).all()
    assert share(LinearRegression().fit(X, y)) < 1e-3
    x, X = x[:60], X[:60]
    labels = rng.uniform(size=60) < expit(x[:, 0] + 2 * x[:, 1])  # which only x1 - x0 tells
    with pytest.warns(mo.ConvergenceWarning, match=r'NO_PROGRESS: float32.*precision="auto"'):
        model = LogisticRegression(precision="float32").fit(X, labels)
    assert model.status_ is mo.Status.NO_PROGRESS
    assert np.isnan(errors(model)).all()
    assert share(LogisticRegression().fit(X, labels)) < 1e-3


@pytest.mark.parametrize("digits", [3, 6, 10])
def test_nearly_dependent_columns_of_two_classes(digits):
    # In columns whose difference is tiny, the information has a condition number of 1e20.
    rng = np.random.default_rng(0)
    x, tiny = np.round(64 * rng.normal(size=(1000, 2))) / 64, 2.0 ** -round(digits / math.log10(2))
    labels = rng.uniform(size=len(x)) < expit(x @ [1, 0.5])
    plain = LogisticRegression().fit(x, labels)
    X = np.c_[x[:, 0], x[:, 0] + tiny * x[:, 1]]
    for solver in ("newton", "lbfgs"):
        model = LogisticRegression(solver).fit(X, labels)
        assert model.status_ is mo.Status.CONVERGED
        found, se = tiny * model.coef_[0, 1], tiny * model.coef_se_[0, 1]
        assert abs(found - plain.coef_[0, 1]) <= tiny * model.coef_error_[0, 1] + 1e-15
        assert share(model) < 0.01
        assert se == pytest.approx(plain.coef_se_[0, 1], rel=1e-6)
    clear = rng.uniform(size=len(x)) < expit(x @ [4, 2])
    with pytest.warns(mo.ConvergenceWarning, match="MAX_STEPS"):  # so a linear program decides
        assert LogisticRegression("sgd", max_steps=1).fit(X, clear).separating_columns_ == []
    with pytest.warns(SeparationWarning, match="'x0', 'x1'"):
        LogisticRegression().fit(X, x[:, 1] > 0.3)


@each_model
def test_a_mean_far_from_zero_costs_float32_nothing(Model):
    # The columns are shifted in float64 before they are rounded.
    X, y = data(Model)
    X = np.round(X * 64) / 64
    near, far = (Model(precision="float32").fit(A, y) for A in (X, X + 2.0**30))
    np.testing.assert_allclose(far.coef_, near.coef_, rtol=1e-5)
    assert share(far) < 1e-3


@each_model
def test_numbers_too_far_apart_for_float32(Model):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40_000, 20))
    y = X[:, 0] + rng.normal(size=len(X)) > 0
    X[1, 7], y[1] = 1e60, True  # a row that the sample lacks
    with pytest.raises(ValueError, match=r'too far from the others.*precision="auto"'):
        Model(precision="float32").fit(X, y)
    if Model is LinearRegression:  # the row alone tells the classes apart, as far as any can see
        assert LinearRegression().fit(X, y).rank_ == 21


@each_model
def test_dependent_columns_in_float32(Model):
    X, y = data(Model)
    wide = np.c_[X, X[:, 0] - X[:, 1]]
    with pytest.warns(RankWarning):
        model = Model(precision="float32").fit(wide, y)
    assert model.dependent_columns_ == [f"x{X.shape[1]}"]
    assert np.isnan(errors(model)).all()
    assert words(model) == "unknown (see the note)"
    plain = Model().fit(X, y)
    theirs, ours = (
        m.predict(A) if Model is LinearRegression else m.decision_function(A)
        for m, A in ((plain, X), (model, wide))
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())


def test_separation_in_float32():
    X, _ = data(LogisticRegression)
    with pytest.warns(SeparationWarning, match="'x1'"):
        model = LogisticRegression(precision="float32").fit(X, X[:, 1] > 301)
    assert model.status_ is mo.Status.UNBOUNDED
    assert words(model) == "unknown (see the note)"


# --- What the summary says ------------------------------------------------------------------------


@each_model
def test_the_summary_says_how_large_the_error_is(Model):
    X, y = data(Model)
    assert words(Model().fit(X, y)) == "under 0.0001 % of a standard error"
    X, y = data(Model, 20_000)
    model = Model(precision="float32").fit(X, y)
    assert 1e-6 < share(model) < 0.01
    number = float(words(model).removeprefix("at most ").removesuffix(" % of a standard error"))
    assert 100 * share(model) <= number <= 111 * share(model)
    assert words(Model(l2=0.1).fit(X, y)).endswith(" in any coefficient")
    assert "computational error" in str(model.summary())


def test_an_exact_fit():
    X, _ = data(LinearRegression)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = LinearRegression().fit(X, X @ [1.0, 2.0, 3.0, 4.0] + 5)
    assert words(model) == "of the size of the standard errors or more (see the note)"
    assert "down to the rounding of the computer" in str(model.summary().notes)
    assert words(LinearRegression().fit(X, np.zeros(len(X)))).startswith("under")


def test_an_error_that_float64_leaves():
    rng = np.random.default_rng(0)
    x = rng.normal(size=100)
    y = 1e15 + x + 0.5 * rng.normal(size=100)  # float64 holds eighths there
    with pytest.warns(mo.ConvergenceWarning, match="the target so far from zero"):
        model = LinearRegression().fit(x[:, None], y)
    assert words(model).startswith("up to ")
    assert "float64 does not do better" in str(model.summary().notes)


@each_model
@pytest.mark.parametrize("precision", ["single", None, 32, mx.float32])
def test_a_precision_that_is_none(Model, precision):
    X, y = data(Model)
    model = Model(precision=precision)
    assert model.precision is precision  # stored as it came
    with pytest.raises(ValueError, match=r"precision is .*'auto', 'float32', 'float64'"):
        model.fit(X, y)


# --- A million rows -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def million():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((1_000_000, 4), dtype=np.float32) + np.float32(1)
    z = X @ np.array([0.5, -0.5, 0.25, 0.1], dtype=np.float32)
    return X, z, rng


@pytest.mark.parametrize(
    ("Model", "solver"), [(LinearRegression, "auto"), (LogisticRegression, "lbfgs")]
)
def test_finished_fits_have_the_smaller_share(Model, solver, million):
    X, z, rng = million
    y = (
        z + rng.normal(size=len(z))
        if Model is LinearRegression
        else rng.uniform(size=len(z)) < expit(z)
    )
    finished, single = (Model(solver, precision=p).fit(X, y) for p in ("auto", "float32"))
    assert share(finished) < 1e-6
    assert 1e-6 < share(single) < 0.01
    away = np.abs(both(single) - both(finished))
    assert (away <= errors(single) + errors(finished)).all()
    assert (errors(single) <= 1.1 * away + 1e-9).all()


def test_float32_sums_keep_six_digits(million):
    X, z, rng = million
    labels = rng.uniform(size=len(z)) < expit(z)
    whole = Design(read_table(X), None, True)
    b = np.array([0.2, -0.5, 0.3, 0.1, 0.4])
    plain = Likelihood(whole, labels, np.arange(5), 0.0).slopes(b)  # see test_models_large.py
    single = Likelihood(whole.in_float32(), labels, np.arange(5), 0.0).slopes(b)
    assert single.value == pytest.approx(plain.value, rel=1e-6)
    np.testing.assert_allclose(single.gradient, plain.gradient, rtol=1e-6)
    np.testing.assert_allclose(single.information, plain.information, rtol=1e-5, atol=0.1)
    assert single.value != plain.value


def test_sums_of_equal_terms_in_float32():
    # The hardest: naive sums of 16,384 equal terms are off by 1e-5 and more.
    rows = DeviceRows(np.full((2**14, 3), 0.1, dtype=np.float32))
    tenths = np.full(2**14, 0.1, dtype=np.float32)
    term = float(np.float32(0.1)) ** 2
    np.testing.assert_allclose(tenths @ rows, 2**14 * term, rtol=1e-6)


def test_device_rows_are_a_matrix():
    rng = np.random.default_rng(0)
    A = rng.normal(size=(700, 5)).astype(np.float32)
    rows, root = DeviceRows(np.asfortranarray(A)), rng.uniform(size=700)
    b, r = rng.normal(size=5), rng.normal(size=700)
    assert rows.rows.dtype == mx.float32
    # Sums of 700 terms of size 1, each rounded at 6e-8.
    np.testing.assert_allclose(rows @ b, A @ b, atol=1e-6)
    np.testing.assert_allclose(r @ rows, r @ A, atol=1e-4)
    wide = A.astype(float)
    np.testing.assert_allclose(rows.gram(), wide.T @ wide, atol=1e-3)
    np.testing.assert_allclose(rows.gram(root), (wide * root[:, None] ** 2).T @ wide, atol=1e-3)
