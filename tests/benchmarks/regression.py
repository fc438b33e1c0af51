"""Fits of the reference models against other libraries, at equal accuracy."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np

from benchmarks.contest import NO_GOALS, Contestant, Goals, Task, relative_error
from benchmarks.peers import has, load
from mlxopt.models import LinearRegression, LogisticRegression

_EQUAL = 1e-8  # an error relative to the largest parameter
_TOLERANCES = tuple(10.0**-k for k in range(4, 13))
_DAYS = 365
_WITH_ERRORS = "with standard errors"


# --- Least squares -------------------------------------------------------------------------------


def least_squares(quick: bool) -> Iterator[Task]:
    """Yield a dense least-squares problem."""
    rows, columns = (2_000, 50) if quick else (10_000, 100)
    rng = np.random.default_rng(0)
    X = rng.standard_normal((rows, columns)).astype(np.float32).astype(np.float64)
    y = X @ rng.standard_normal(columns) + rng.standard_normal(rows)

    def ours(name: str, *solver: Any) -> Contestant:
        def run() -> Any:
            return LinearRegression(*solver, fit_intercept=False).fit(X, y)

        return Contestant(name, run, "mlxopt", _coef, remark=_WITH_ERRORS)

    goals = Goals(time=0.5, error=1.0)
    contestants = [
        ours("mlxopt LinearRegression"),
        ours("mlxopt LinearRegression, QR", "qr"),
        Contestant("numpy.linalg.lstsq", lambda: _lstsq(X, y), "numpy", np.asarray, goals=goals),
    ]
    if has("sklearn"):
        name, run = "scikit-learn LinearRegression", lambda: _sklearn_linear(X, y)
        contestants.append(Contestant(name, run, "scikit-learn", _coef, goals=goals))
    if has("statsmodels"):
        name, ols = "statsmodels", load("statsmodels.api").OLS

        def errors() -> Any:
            return ols(y, X).fit().bse

        def params(_: Any) -> Any:
            return ols(y, X).fit().params

        peer = Contestant("statsmodels OLS", errors, name, params, remark=_WITH_ERRORS)
        contestants.append(peer)
    title = f"least squares, {rows:,} × {columns}, float64"
    yield Task(title, contestants, exact_least_squares(X, y))


def _lstsq(X: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.linalg.lstsq(X, y)[0]


def _sklearn_linear(X: Any, y: np.ndarray, **options: Any) -> Any:
    model = load("sklearn.linear_model").LinearRegression
    return model(fit_intercept=False, **options).fit(X, y)


def flights(quick: bool) -> Iterator[Task]:
    """Yield the least-squares problem of a year's flights: a column per day, and the delay."""
    rows, days = (10_000, 60) if quick else (327_346, _DAYS)
    X, y = flight_table(rows, days)
    wide = X.astype(np.float64)

    def ours() -> Any:
        return LinearRegression(fit_intercept=False).fit(X, y)

    name, goals = "numpy.linalg.lstsq, float64 X", Goals(time=0.07)
    contestants = [
        Contestant(
            "mlxopt LinearRegression, float32 X", ours, "mlxopt", _coef, remark=_WITH_ERRORS
        ),
        Contestant(name, lambda: _lstsq(wide, y), "numpy", np.asarray, goals=goals),
    ]
    if has("sklearn"):
        # mlxopt detects the zeros itself; scikit-learn needs a sparse matrix.
        sparse = load("scipy.sparse").csr_array(wide)

        def peer(data: Any, kind: str, **about: Any) -> Contestant:
            name, run = f"scikit-learn LinearRegression, {kind}", partial(_sklearn_linear, data, y)
            return Contestant(name, partial(run, tol=1e-12), "scikit-learn", _coef, **about)

        contestants += [
            peer(wide, "float64 X", goals=Goals(time=0.2)),
            peer(X, "float32 X"),
            peer(sparse, "sparse X", remark="LSQR to 1e-12"),
        ]
    title = f"flights: least squares, {rows:,} × {days + 1}, one-hot days and the delay"
    truth = exact_least_squares(X, y)
    yield Task(title, contestants, truth, most_error=1e-7, note="Synthetic flights of that shape.")


def flight_table(rows: int, days: int = _DAYS) -> tuple[np.ndarray, np.ndarray]:
    """Return synthetic flights: X, (rows, days + 1) float32, a column per day and the departure
    delay in minutes, and y, (rows,) float64, the arrival delay. The days' columns add up to ones,
    so there is no intercept.
    """
    rng = np.random.default_rng(0)
    day = rng.permutation(np.arange(rows) % days)
    delay = np.round(rng.gamma(0.4, 45.0, rows) - 6.0)  # most leave early, a few very late
    X = np.zeros((rows, days + 1), dtype=np.float32)
    X[np.arange(rows), day] = 1.0
    X[:, days] = delay
    effect = rng.normal(-6.0, 8.0, days)
    return X, np.round(effect[day] + delay + rng.normal(0.0, 15.0, rows))


def exact_least_squares(X: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the least-squares solution to float64 precision.

    Refinement: the gradient is computed in NumPy's long double (64 bits of mantissa on x86), and
    an approximate correction with the Gram matrix's factor (Björck 1987, "Stability analysis of
    the method of seminormal equations").
    """
    from scipy.linalg import cho_factor, cho_solve

    blocks = [slice(start, start + 4096) for start in range(0, len(X), 4096)]
    gram = np.zeros((X.shape[1], X.shape[1]))
    for block in blocks:
        part = X[block].astype(np.float64)
        gram += part.T @ part
    factor = cho_factor(gram)
    solution = np.zeros(X.shape[1], dtype=np.longdouble)
    for _ in range(4):
        gradient = np.zeros_like(solution)
        for block in blocks:
            part = X[block].astype(np.longdouble)
            gradient += (y[block] - part @ solution) @ part
        solution += cho_solve(factor, gradient.astype(np.float64))
    return solution.astype(np.float64)


# --- Logistic regression -------------------------------------------------------------------------


class Classes(NamedTuple):
    """A logistic regression and its answer."""

    X: np.ndarray  # (n, p) float64
    y: np.ndarray  # (n,) float64, 0 or 1
    truth: np.ndarray  # (1 + p,): the intercept and the coefficients


def classes(rows: int, columns: int) -> Classes:
    """Return two overlapping classes: the logits have a standard deviation of 2."""
    rng = np.random.default_rng(1)
    X = rng.standard_normal((rows, columns)).astype(np.float32).astype(np.float64)
    slopes = rng.standard_normal(columns)
    slopes *= 2.0 / np.linalg.norm(slopes)
    y = (rng.random(rows) < 1.0 / (1.0 + np.exp(-(X @ slopes - 0.5)))).astype(np.float64)
    return Classes(X, y, _newton(np.column_stack([np.ones(rows), X]), y))


def _newton(A: np.ndarray, y: np.ndarray, tol: float = 0.0) -> np.ndarray:
    """Return the logistic regression of y on the columns of A by full Newton steps, until the mean
    gradient is within `tol`, or to rounding if `tol` is 0. Overlapping classes need no damping.
    """
    from scipy.special import expit

    b = np.zeros(A.shape[1])
    for _ in range(15):  # 6 or 7 reach rounding
        p = expit(A @ b)
        gradient = A.T @ (p - y)
        if np.abs(gradient).max() <= tol * len(y):
            break
        b -= np.linalg.solve(A.T @ (A * (p * (1.0 - p))[:, None]), gradient)
    return b


def logistic(quick: bool) -> Iterator[Task]:
    """Yield a logistic regression that every library solves to the same accuracy."""
    rows, columns = (10_000, 10) if quick else (100_000, 10)
    problem = classes(rows, columns)
    X, y, truth = problem
    A = np.column_stack([np.ones(rows), X])

    def ours() -> Any:
        return LogisticRegression().fit(X, y)

    name, remark = "mlxopt LogisticRegression", _WITH_ERRORS
    contestants = [Contestant(name, ours, "mlxopt", _intercept_and_coef, remark=remark)]

    def add(
        name: str,
        package: str,
        fit: Callable[[float], Any],
        params: Callable[[Any], Any] = _intercept_and_coef,
        goals: Goals = NO_GOALS,
        remark: str = "",
    ) -> None:
        tol = _loosest(lambda tol: relative_error(params(fit(tol)), truth))
        remark = ", ".join(filter(None, [f"tol {tol:.0e}", remark]))
        run = partial(fit, tol)
        contestants.append(Contestant(name, run, package, params, remark=remark, goals=goals))

    add("NumPy Newton", "numpy", lambda tol: _newton(A, y, tol), np.asarray)
    if has("sklearn"):
        model = load("sklearn.linear_model").LogisticRegression
        for solver, goal in (("newton-cholesky", 0.6), ("lbfgs", 0.3)):
            options = {"C": np.inf, "solver": solver, "max_iter": 10_000}

            def fit(tol: float, options: dict[str, Any] = options) -> Any:
                return model(tol=tol, **options).fit(X, y)

            add(f"scikit-learn, {solver}", "scikit-learn", fit, goals=Goals(time=goal))
    if has("statsmodels"):
        logit, goals = load("statsmodels.api").Logit, Goals(time=0.25)

        def fit_logit(tol: float) -> Any:
            return logit(y, A).fit(disp=0, tol=tol)

        params = attrgetter("params")
        add("statsmodels Logit", "statsmodels", fit_logit, params, goals, _WITH_ERRORS)
    if has("glum"):
        glum = load("glum").GeneralizedLinearRegressor
        options = {"family": "binomial", "alpha": 0, "max_iter": 1000}
        add("glum", "glum", lambda tol: glum(gradient_tol=tol, **options).fit(X, y))
    title = f"logistic regression, {rows:,} × {columns}, float64"
    note = f"Each has the loosest tol, of powers of ten, that brings its error to {_EQUAL:g}."
    yield Task(title, contestants, truth, most_error=_EQUAL, note=note)


def _loosest(error_at: Callable[[float], float]) -> float:
    """Return the loosest tolerance that brings an error to the common accuracy, or the best."""
    errors: dict[float, float] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about tolerances out of reach
        for tol in _TOLERANCES:
            errors[tol] = error_at(tol)
            if errors[tol] <= _EQUAL:
                break
    return min(errors, key=lambda tol: (max(errors[tol], _EQUAL), -tol))


def _coef(model: Any) -> np.ndarray:
    return model.coef_


def _intercept_and_coef(model: Any) -> np.ndarray:
    return np.concatenate([np.ravel(model.intercept_), np.ravel(model.coef_)])
