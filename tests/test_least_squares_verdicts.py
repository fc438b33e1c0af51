"""least_squares says CONVERGED where it has, and only there: textbook fits, units, flat places."""

import warnings
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

import mlxopt as mo
from mlxopt._least_squares import least_squares

TENTHS = np.linspace(0, 10, 50)
YEARS = np.linspace(1990, 2020, 50)
# The model in MLX or NumPy, x, the truth, a start.
FITS: dict[str, tuple[Any, np.ndarray, list[float], list[float]]] = {
    "decay": (lambda p, x, m: p[0] * m.exp(-p[1] * x) + p[2], TENTHS, [3, 0.7, 0.5], [1, 1, 0]),
    "gauss": (
        lambda p, x, m: p[0] * m.exp(-((x - p[1]) ** 2) / (2 * p[2] ** 2)),
        TENTHS, [2, 4.5, 1.2], [1, 5, 1],
    ),
    "logistic": (
        lambda p, x, m: p[0] / (1 + m.exp(-p[1] * (x - p[2]))), TENTHS, [10, 1.1, 5.2], [8, 1, 4],
    ),
    "saturation": (lambda p, x, m: p[0] * x / (p[1] + x), TENTHS, [10, 2.5], [5, 1]),
    "power": (lambda p, x, m: p[0] * x ** p[1], TENTHS[2:], [2, 1.5], [1, 1]),
    "sine": (lambda p, x, m: p[0] * m.sin(p[1] * x + p[2]), TENTHS, [2, 1.3, 0.4], [1, 1.2, 0.2]),
    "two decays": (
        lambda p, x, m: p[0] * m.exp(-p[1] * x) + p[2] * m.exp(-p[3] * x),
        TENTHS, [3, 0.3, 2, 1.7], [2, 0.2, 1, 2],
    ),
    "line": (lambda p, x, m: p[0] + p[1] * x, YEARS, [-380, 0.2], [0, 0]),
    "curve": (lambda p, x, m: p[0] + p[1] * x + p[2] * x * x, YEARS, [4e4, -40, 0.01], [0, 0, 0]),
    "growth": (lambda p, x, m: p[0] * m.exp(p[1] * (x - 1990)), YEARS, [50, 0.03], [30, 0.01]),
}  # fmt: skip
DTYPES = [mx.float32, mx.float64]
EPS = {mx.float32: 2.0**-23, mx.float64: 2.0**-52}


def data(name: str, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    model, x, truth, _ = FITS[name]
    y = model(np.array(truth, dtype=float), x, np)
    return x, y + noise * np.ptp(y) * np.random.default_rng(seed).normal(size=len(x))


def fit(residual: Any, start: Any, *args: Any, dtype: Any = mx.float64, **options: Any) -> Any:
    return least_squares(residual, mx.array(np.array(start, float), dtype=dtype), *args, **options)


def gain_left(model: Any, at: np.ndarray, x: np.ndarray, y: np.ndarray, eps: float):
    """Return what SciPy gains from `at`, in residual variances, and in roundings of eps."""
    unit = np.where(at == 0, 1.0, np.abs(at))
    tight = {"xtol": 1e-15, "ftol": 1e-15, "gtol": 1e-15, "method": "lm", "max_nfev": 2000}
    with np.errstate(all="ignore"):
        ours = model(at, x, np) - y
        found = scipy.optimize.least_squares(
            lambda u: model(u * unit, x, np) - y, at / unit, **tight
        )
        terms = np.abs(found.jac) @ np.abs(at / unit)
    gain = max(float(ours @ ours - found.fun @ found.fun), 0.0)
    variance = max(float(found.fun @ found.fun) / max(len(x) - len(at), 1), 1e-300)
    return gain / variance, np.sqrt(gain) / (eps * np.linalg.norm(np.hypot(terms, ours)))


# --- no false alarms ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
@pytest.mark.parametrize("noise", [0, 0.02])
@pytest.mark.parametrize("name", FITS)
def test_textbook_fits_converge_without_a_warning(name, noise, dtype):
    model, _, truth, start = FITS[name]
    x, y = data(name, noise)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = fit(lambda p, x, y: model(p, x, mx) - y, start, x, y, dtype=dtype)
    assert result.converged
    found = np.array(result.params).astype(float)
    x, y = (np.array(mx.array(item, dtype=dtype)).astype(float) for item in (x, y))  # as rounded
    share, roundings = gain_left(model, found, x, y, EPS[dtype])
    assert share < 1e-4 or roundings < 2
    if noise == 0 and dtype == mx.float64:
        # Exact data; the columns of the curve have a condition of 2e5.
        np.testing.assert_allclose(found, truth, rtol=1e-10 if name == "curve" else 1e-13)
    elif noise == 0:
        assert result.reason == "to the rounding of float32."
        assert "orthogonal, to the rounding of float32" in " ".join(repr(result).split())
        # The years are known to 6e-8 in float32, and a curve's parameters depend on their squares.
        tolerance = {"curve": 1e-3, "line": 1e-5, "growth": 1e-5}.get(name, 2e-6)
        np.testing.assert_allclose(found, truth, rtol=tolerance)


def test_the_rounding_is_that_of_the_coarsest_leaf():
    x, y = data("decay", 0)
    result = fit(lambda p, x, y: FITS["decay"][0](p, x, mx) - y, [1, 1, 0], x, y, dtype=mx.float16)
    assert result.converged
    assert result.reason == "to the rounding of float16."
    np.testing.assert_allclose(np.array(result.params).astype(float), FITS["decay"][2], rtol=2e-3)


# --- units --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
@pytest.mark.parametrize("name", ["decay", "saturation", "sine", "growth", "line"])
def test_units_change_neither_verdict_nor_answer(name, dtype):
    model, _, _, start = FITS[name]
    x, y = data(name, 0.02)
    most = 12 if dtype == mx.float64 else 8
    plain = None
    for k in (0, -most, -most // 2, most // 2, most):
        units = 10.0 ** np.random.default_rng(most + k).integers(-most, most + 1, len(start))
        scale = mx.array(units if k else np.ones(len(start)), dtype=dtype)

        def residual(p, x, y, k=k, scale=scale):
            return 10.0**k * (model(p * scale, x, mx) - y)

        result = fit(residual, np.array(start) / np.array(scale), x, y, dtype=dtype, compile=False)
        assert result.converged
        found = np.array(result.params).astype(float) * np.array(scale)
        plain = found if plain is None else plain
        np.testing.assert_allclose(found, plain, rtol=1e-8 if dtype == mx.float64 else 1e-5)


@pytest.mark.parametrize("polish", [True, False])
def test_small_units_at_a_good_start(polish):
    model, x, truth = FITS["saturation"][0], 1000 * TENTHS, [1.2e-6, 3766.85]
    y = model(truth, x, np) * (1 + 0.01 * np.random.default_rng(0).normal(size=50))
    result = fit(lambda p, x, y: model(p, x, mx) - y, [1e-6, 1000], x, y, polish=polish)
    best, _ = scipy.optimize.curve_fit(lambda x, a, b: a * x / (b + x), x, 1e6 * y, [1, 1000])
    assert result.converged
    np.testing.assert_allclose(np.array(result.params), best * [1e-6, 1], rtol=1e-5)


# --- plateaus, saddles, wrong derivatives --------------------------------------------------------


def weightless(p, x, y):
    return p[0] * mx.tanh(p[1] * x) - y


PLATEAUS = {
    "round": (lambda p, x, y: mx.round(p[0]) * x - y, [1.2], "FLAT"),
    "peak far away": (lambda p, x, y: mx.exp(-((x - p[0]) ** 2)) - y, [300.0], "FLAT"),
    "underflow": (lambda p, x, y: mx.exp(-1e3 * p[0] * (1 + x)) - y, [5.0], "FLAT"),
    "clip": (lambda p, x, y: mx.clip(p[0], 0, 1) * x - y, [5.0], "FLAT"),
    "relu": (lambda p, x, y: mx.maximum(p[0] * x - 100, 0) - y, [1.0], "FLAT"),
    "stop_gradient": (lambda p, x, y: mx.stop_gradient(p[0] * x) - y, [1.0], "FLAT"),
    "threshold": (lambda p, x, y: mx.where(x > p[0], 1.0, 0.0) - y, [-0.01], "FLAT"),
    "inflection": (lambda p, x, y: p[0] ** 3 * x - y, [0.0], "SADDLE"),
    "part": (lambda p, x, y: p[0] * x + mx.stop_gradient(p[1]) - y, [1.0, 1.0], "SADDLE"),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
@pytest.mark.parametrize("name", PLATEAUS)
def test_a_jacobian_of_zeros_is_no_minimum(name, dtype):
    residual, start, status = PLATEAUS[name]
    with pytest.warns(mo.ConvergenceWarning, match=status):
        result = fit(residual, start, TENTHS, 3 * TENTHS + 2, dtype=dtype)
    assert result.status.name == status


MINIMA = {
    "nothing left": (lambda p: 0 * p, [1.0], 0.0),
    "a bowl": (lambda p: mx.stack([p[0] ** 2 + 1]), [0.0], 0.5),
    "a quartic": (lambda p: mx.stack([p[0] ** 2, 0 * p[0] + 1]), [0.0], 0.5),
    "a power": (lambda p: mx.stack([p[0] ** 4 + 2]), [0.0], 2.0),
    "a cosine": (lambda p: mx.stack([2 - mx.cos(p[0])]), [0.0], 0.5),
}


@pytest.mark.filterwarnings("ignore:the data do not determine")
@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
@pytest.mark.parametrize("name", MINIMA)
def test_a_start_in_a_minimum_stays_a_minimum(name, dtype):
    residual, start, value = MINIMA[name]
    result = fit(residual, start, dtype=dtype)
    assert result.converged
    assert result.value == value
    assert np.array(result.params).tolist() == start


def test_saddles_are_left_or_named():
    x, y = TENTHS, np.tanh(TENTHS)
    result = fit(weightless, [0.0, 0.0], x, y)  # both weights zero
    assert result.converged
    assert result.value < 1e-20
    for scale in (1e-9, 1.0, 1e9):
        with pytest.warns(mo.ConvergenceWarning, match="SADDLE"):
            fit(lambda p, x, y, s=scale: s * weightless(p, x, y), [0, 0], x, y, polish=False)
        left = fit(lambda p, x, y, s=scale: s * weightless(p, x, y), [0, 0], x, y)
        np.testing.assert_allclose(np.abs(np.array(left.params)), 1, rtol=1e-7)


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
def test_a_wrong_derivative_does_not_converge(dtype):
    @mx.custom_function
    def wrong(p):
        return mx.exp(p)

    @wrong.vjp
    def _(p, cotangent, _):
        return cotangent

    y = 3 * np.exp(-0.3 * TENTHS) + 0.03 * np.random.default_rng(0).normal(size=50)

    def residual(p, x, y):
        values: Any = wrong(p)
        return values[0] * mx.exp(-p[1] * x) - y

    with pytest.warns(mo.ConvergenceWarning, match="NO_PROGRESS.*check_grads"):
        fit(residual, [1.0, 1.0], TENTHS, y, dtype=dtype)


# --- what the data do not determine -------------------------------------------------------------

_RNG = np.random.default_rng(0)
_X = np.c_[TENTHS, _RNG.normal(size=50)]
FIRST_TWO = r"params\[0\].*params\[1\]"
REDUNDANT = {
    "sum": (lambda p, x, y: (p[0] + p[1]) * x - y, [1, 2], TENTHS, r"params\[0\] - params\[1\]", 1),
    "product": (lambda p, x, y: p[0] * p[1] * x - y, [1, 2], TENTHS, FIRST_TWO, 1),
    "cancels": (lambda p, x, y: p[0] * p[1] * x / p[1] - y, [1, 2], TENTHS, r"params\[1\]:", 1),
    "log": (lambda p, x, y: mx.exp(p[0] + p[1]) * x - y, [1, 0.2], TENTHS, "params", 1),
    "twice": (lambda p, X, y: X @ p - y, [0] * 3, np.c_[_X, _X[:, 0]], r"\[0\] - params\[2\]", 2),
    "units": (lambda p, X, y: X @ p - y, [0] * 3, np.c_[_X, 1e6 * _X[:, 0]], r"e-06 params\[2", 2),
    "dead": (
        lambda p, x, y: p[0] * x + mx.maximum(p[1] - 9, 0) - y, [1, 2], TENTHS, r"params\[1\]:", 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
@pytest.mark.parametrize("noise", [0, 0.1])
@pytest.mark.parametrize("name", REDUNDANT)
def test_parameters_that_the_data_do_not_determine_are_named(name, noise, dtype):
    residual, start, x, text, rank = REDUNDANT[name]
    y = 3 * TENTHS + noise * _RNG.normal(size=50)
    with pytest.warns(mo.ConvergenceWarning, match=f"the data do not determine .*{text}"):
        result = fit(residual, start, x, y, dtype=dtype)
    assert result.converged
    assert result.rank == rank
    assert np.isnan(np.diag(result.covariance)).any()
    best = 0.5 * np.sum((y - TENTHS * (TENTHS @ y) / (TENTHS @ TENTHS)) ** 2)
    assert result.value <= best * (1 + 1e-4) + (1e-9 if dtype == mx.float32 else 1e-25)


@pytest.mark.parametrize(("spread", "said"), [(1e-7, True), (1e-3, False)])
def test_columns_that_differ_by_the_rounding_of_float32_are_named(spread, said):
    X = np.c_[_X, _X[:, 0] + spread * _RNG.normal(size=50)]
    y = _X[:, 0] + _RNG.normal(size=50)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        result = fit(lambda p, X, y: X @ p - y, [0, 0, 0], X, y, dtype=mx.float32)
    assert result.converged
    assert any("do not determine" in str(one.message) for one in seen) == said
    # In float64 they are two columns.
    assert fit(lambda p, X, y: X @ p - y, [0, 0, 0], X, y).rank == 3


# --- second derivatives that are not finite, words ----------------------------------------------

NO_SECOND = {
    "a power of zero": lambda p, x, y: p[0] * x ** p[1] - y,
    "a root at zero": lambda p, x, y: p[0] * x + p[1] * mx.sqrt(x) - y,
    "a product with a power": lambda p, x, y: p[0] * x ** p[1] * mx.exp(-0 * p[0]) - y,
    "a sum of powers": lambda p, x, y: p[0] * x ** p[1] + 0 * p[1] - y,
    "a scaled power": lambda p, x, y: p[0] * (2 * x) ** p[1] / 2 ** p[1] - y,
}


@pytest.mark.parametrize("finish", [None, "float64"])
@pytest.mark.parametrize("name", NO_SECOND)
def test_a_second_derivative_that_is_not_finite_keeps_the_answer(name, finish):
    y = 2 * TENTHS**1.5 if name != "a root at zero" else 2 * TENTHS + np.sqrt(TENTHS)
    y = y + 0.01 * np.random.default_rng(0).normal(size=50)
    result = fit(NO_SECOND[name], [1.0, 1.0], TENTHS, y, dtype=mx.float32, finish=finish)
    other = fit(NO_SECOND[name], [1.5, 1.2], TENTHS, y, polish=False)
    assert result.converged
    assert other.converged
    np.testing.assert_allclose(np.array(result.params), np.array(other.params), rtol=1e-5)


def test_the_words_are_those_of_a_fit():
    def decay(p, x, y):
        return p[0] * mx.exp(-p[1] * x) - y

    y = 3 * np.exp(-0.3 * TENTHS)
    with pytest.warns(mo.ConvergenceWarning, match=r"MAX_STEPS.*geodesic") as seen:
        fit(decay, [1.0, 1.0], TENTHS, y, max_steps=2)
    assert "LBFGS" not in str(seen[0].message)
    with pytest.warns(mo.ConvergenceWarning, match=r"MAX_SECONDS.*result.params"):
        fit(decay, [1.0, 1.0], TENTHS, y, stop=mo.Seconds(0))

    def saturates(p, x, y):  # a convex curve: the best one is a line, at infinity
        return p[0] * (1 - mx.exp(-p[1] * x)) - y

    with pytest.warns(mo.ConvergenceWarning, match="float64|infinity|determine|MAX_STEPS"):
        fit(saturates, [5.0, 1.0], TENTHS, 0.3 * TENTHS + 0.01 * TENTHS**2, dtype=mx.float32)


# --- CONVERGED means that nothing is left to gain -------------------------------------------------


@pytest.mark.filterwarnings("ignore::mlxopt.ConvergenceWarning")
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(sorted(FITS)),
    dtype=st.sampled_from(["float32", "float64"]),
    noise=st.sampled_from([0, 1e-6, 0.02, 0.3]),
    seed=st.integers(0, 2**16),
    share=st.floats(-1, 1),
    polish=st.booleans(),
)
def test_converged_leaves_nothing_to_gain(name, dtype, noise, seed, share, polish):
    model, _, _, start = FITS[name]
    working, rng = getattr(mx, dtype), np.random.default_rng(seed)
    most = 12 if dtype == "float64" else 6
    units = mx.array(10.0 ** rng.integers(-most, most + 1, len(start)), dtype=working)
    scale = 10.0 ** int(share * most)
    start = np.array(start) * 10.0 ** (rng.uniform(-2, 2, len(start)) * (seed % 2))
    x, y = (mx.array(item, dtype=working) for item in data(name, noise, seed))
    try:
        result = fit(
            lambda p, x, y: scale * (model(p * units, x, mx) - y),
            start / np.array(units), x, y, dtype=working, polish=polish, compile=False,
        )  # fmt: skip
    except ValueError:  # the start is out of range
        return
    if result.converged:
        found = np.array(result.params).astype(float) * np.array(units)
        x, y = (np.array(item).astype(float) for item in (x, y))
        left, roundings = gain_left(model, found, x, y, EPS[working])
        assert left < 1e-3 or roundings < 3, (result, left, roundings)


@pytest.mark.parametrize("method", [mo.LevenbergMarquardt(), mo.GaussNewton()])
@pytest.mark.parametrize(
    "first",
    [
        lambda p: mx.round(2 * p) - 0.1,
        lambda p: mx.where(p > 1, 0.0, 5.0),
        lambda p: 1 - mx.exp(-mx.square(50 * p)),
        lambda p: mx.floor(p) + 3,
    ],
    ids=["round", "a threshold", "a peak far away", "floor"],
)
@pytest.mark.filterwarnings("ignore::mlxopt.ConvergenceWarning")
def test_a_plateau_in_one_parameter_is_no_minimum(first, method):
    residual = lambda p: mx.stack([first(p[0]), p[1] - 1])  # noqa: E731
    found = least_squares(residual, mx.array([0.6, 0.0]), optimizer=method)
    assert found.status in (mo.Status.FLAT, mo.Status.SADDLE)
    assert "params[0]" in found.reason or "falls a step away" in found.reason
