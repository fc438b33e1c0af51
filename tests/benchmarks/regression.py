"""Fits of the reference models, against other libraries at equal accuracy."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from benchmarks.contest import NO_GOALS, Contestant, Goals, Task, relative_error
from benchmarks.peers import has, load

_EQUAL = 1e-8  # an error of the parameters, relative to the largest
_TOLERANCES = tuple(10.0**-k for k in range(4, 13))
_DAYS = 365


# --- Least squares -------------------------------------------------------------------------------


def least_squares(quick: bool) -> Iterator[Task]:
    """Yield a dense least-squares problem."""
    from mlxopt.models import LinearRegression

    rows, columns = (2_000, 50) if quick else (10_000, 100)
    rng = np.random.default_rng(0)
    X = rng.standard_normal((rows, columns)).astype(np.float32).astype(np.float64)
    y = X @ rng.standard_normal(columns) + rng.standard_normal(rows)

    contestants = [
        Contestant(
            "mlxopt LinearRegression",
            lambda: LinearRegression(fit_intercept=False).fit(X, y),
            "mlxopt", _coef, remark="with standard errors",
        ),
        Contestant(
            "mlxopt LinearRegression, QR",
            lambda: LinearRegression("qr", fit_intercept=False).fit(X, y),
            "mlxopt", _coef, remark="with standard errors",
        ),
        Contestant(
            "numpy.linalg.lstsq", lambda: np.linalg.lstsq(X, y)[0], "numpy", np.asarray,
            goals=Goals(time=0.5, error=1.0),
        ),
    ]  # fmt: skip
    if has("sklearn"):
        linear = load("sklearn.linear_model")
        contestants.append(
            Contestant(
                "scikit-learn LinearRegression",
                lambda: linear.LinearRegression(fit_intercept=False).fit(X, y),
                "scikit-learn",
                _coef,
                goals=Goals(time=0.5, error=1.0),
            )
        )
    if has("statsmodels"):
        api = load("statsmodels.api")
        contestants.append(
            Contestant(
                "statsmodels OLS",
                lambda: api.OLS(y, X).fit().bse,
                "statsmodels",
                lambda _: api.OLS(y, X).fit().params,
                remark="with standard errors",
            )
        )
    title = f"least squares, {rows:,} × {columns}, float64"
    yield Task(title, contestants, exact_least_squares(X, y))


def flights(quick: bool) -> Iterator[Task]:
    """Yield the least-squares problem of a year's flights: one column a day, and the delay."""
    from mlxopt.models import LinearRegression

    rows, days = (10_000, 60) if quick else (327_346, _DAYS)
    X, y = flight_table(rows, days)
    wide = X.astype(np.float64)
    contestants = [
        Contestant(
            "mlxopt LinearRegression, float32 X",
            lambda: LinearRegression(fit_intercept=False).fit(X, y),
            "mlxopt", _coef, remark="with standard errors",
        ),
        Contestant(
            "numpy.linalg.lstsq, float64 X", lambda: np.linalg.lstsq(wide, y)[0], "numpy",
            np.asarray, goals=Goals(time=0.07),
        ),
    ]  # fmt: skip
    if has("sklearn"):
        linear = load("sklearn.linear_model")

        # mlxopt finds the zeros itself; scikit-learn is also told of them.
        sparse = load("scipy.sparse").csr_array(wide)

        def fit(X: Any) -> Any:
            return linear.LinearRegression(fit_intercept=False, tol=1e-12).fit(X, y)

        contestants += [
            Contestant(
                "scikit-learn LinearRegression, float64 X", lambda: fit(wide), "scikit-learn",
                _coef, goals=Goals(time=0.2),
            ),
            Contestant(
                "scikit-learn LinearRegression, float32 X", lambda: fit(X), "scikit-learn", _coef
            ),
            Contestant(
                "scikit-learn LinearRegression, sparse X", lambda: fit(sparse), "scikit-learn",
                _coef, remark="LSQR to 1e-12",
            ),
        ]  # fmt: skip
    title = f"flights: least squares, {rows:,} × {days + 1}, one-hot days and the delay"
    truth = exact_least_squares(X, y)
    yield Task(title, contestants, truth, most_error=1e-7, note="Made-up flights of that shape.")


def flight_table(rows: int, days: int = _DAYS) -> tuple[np.ndarray, np.ndarray]:
    """Return made-up flights: (rows, days + 1) float32, a column for each day and the departure
    delay in minutes, and (rows,) float64, the delay at arrival. The days' columns add up to ones,
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
    """Return the least-squares solution with all digits of a float64.

    Refinement: the gradient at the solution so far is computed in NumPy's long double (64 bits of
    mantissa on x86), and the Gram matrix's factor turns it into a correction, which need not be
    exact (Björck 1987, "Stability analysis of the method of seminormal equations").
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
    """Return two classes that overlap: the logits have a spread of 2."""
    rng = np.random.default_rng(1)
    X = rng.standard_normal((rows, columns)).astype(np.float32).astype(np.float64)
    slopes = rng.standard_normal(columns)
    slopes *= 2.0 / np.linalg.norm(slopes)
    y = (rng.random(rows) < 1.0 / (1.0 + np.exp(-(X @ slopes - 0.5)))).astype(np.float64)
    return Classes(X, y, _newton(np.column_stack([np.ones(rows), X]), y))


def _newton(A: np.ndarray, y: np.ndarray, tol: float = 0.0) -> np.ndarray:
    """Return the logistic regression of y on the columns of A: by full Newton steps, which suffice
    for classes like these, until the mean gradient is within `tol`; to rounding if that is 0.
    """
    from scipy.special import expit

    b = np.zeros(A.shape[1])
    for _ in range(15):  # 6 or 7 reach rounding; more do no harm
        p = expit(A @ b)
        gradient = A.T @ (p - y)
        if np.abs(gradient).max() <= tol * len(y):
            break
        b -= np.linalg.solve(A.T @ (A * (p * (1.0 - p))[:, None]), gradient)
    return b


def logistic(quick: bool) -> Iterator[Task]:
    """Yield a logistic regression that every library solves to the same accuracy."""
    from mlxopt.models import LogisticRegression

    rows, columns = (10_000, 10) if quick else (100_000, 10)
    problem = classes(rows, columns)
    X, y, _ = problem
    A = np.column_stack([np.ones(rows), X])
    contestants = [
        Contestant(
            "mlxopt LogisticRegression", lambda: LogisticRegression().fit(X, y), "mlxopt",
            _intercept_and_coef, remark="with standard errors",
        ),
        _to_equal_accuracy(
            "NumPy Newton", lambda tol: _newton(A, y, tol), "numpy", problem, NO_GOALS, np.asarray
        ),
    ]  # fmt: skip
    if has("sklearn"):
        linear = load("sklearn.linear_model")
        for solver, goal in (("newton-cholesky", 0.6), ("lbfgs", 0.3)):
            contestants.append(
                _to_equal_accuracy(
                    f"scikit-learn, {solver}",
                    lambda tol, solver=solver: linear.LogisticRegression(
                        C=np.inf, solver=solver, tol=tol, max_iter=10_000
                    ).fit(X, y),
                    "scikit-learn",
                    problem,
                    Goals(time=goal),
                )
            )
    if has("statsmodels"):
        api = load("statsmodels.api")
        contestants.append(
            _to_equal_accuracy(
                "statsmodels Logit",
                lambda tol: api.Logit(y, A).fit(disp=0, tol=tol),
                "statsmodels",
                problem,
                Goals(time=0.25),
                lambda fit: fit.params,
                remark="with standard errors",
            )
        )
    if has("glum"):
        glum = load("glum")
        contestants.append(
            _to_equal_accuracy(
                "glum",
                lambda tol: glum.GeneralizedLinearRegressor(
                    family="binomial", alpha=0, gradient_tol=tol, max_iter=1000
                ).fit(X, y),
                "glum",
                problem,
                NO_GOALS,
            )
        )
    yield Task(
        f"logistic regression, {rows:,} × {columns}, float64",
        contestants,
        problem.truth,
        most_error=_EQUAL,
        note=f"Each has the loosest tol, of powers of ten, that brings its error to {_EQUAL:g}.",
    )


def _to_equal_accuracy(
    name: str,
    fit: Callable[[float], Any],
    package: str,
    problem: Classes,
    goals: Goals,
    params: Callable[[Any], Any] | None = None,
    remark: str = "",
) -> Contestant:
    """Return a contestant with the loosest tolerance that brings it to the common accuracy."""
    params = params or _intercept_and_coef
    errors: dict[float, float] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a tolerance that is out of reach
        for tol in _TOLERANCES:
            errors[tol] = relative_error(params(fit(tol)), problem.truth)
            if errors[tol] <= _EQUAL:
                break
    best = min(errors, key=lambda tol: (max(errors[tol], _EQUAL), -tol))
    remark = ", ".join(filter(None, [f"tol {best:.0e}", remark]))
    return Contestant(name, lambda: fit(best), package, params, remark=remark, goals=goals)


def _coef(model: Any) -> np.ndarray:
    return model.coef_


def _intercept_and_coef(model: Any) -> np.ndarray:
    return np.concatenate([np.ravel(model.intercept_), np.ravel(model.coef_)])
