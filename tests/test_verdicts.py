"""Verdicts over many kinds of problems: how often a run is right, and how often it says so.

A case is a run with its right answer, computed by other means. Two things must not occur: a wrong
answer with CONVERGED (silent), and a right one with a failure (a false alarm).
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import array64
from scipy.optimize import minimize as scipy_minimize

import mlxopt as mo
from mlxopt import Status

FLAT, SADDLE, CONVERGED = Status.FLAT, Status.SADDLE, Status.CONVERGED
NO_PROGRESS = Status.NO_PROGRESS
METHODS = {
    "LBFGS": mo.LBFGS(),
    "BFGS": mo.BFGS(),
    "Newton": mo.Newton(),
    "NewtonCG": mo.NewtonCG(),
    "TrustRegion": mo.TrustRegion(),
    "ConjugateGradient": mo.ConjugateGradient(),
    "GradientDescent": mo.GradientDescent(),
    "LBFGSB": mo.LBFGSB(),
    "ProximalGradient": mo.ProximalGradient(None),
}
X = np.random.default_rng(1).normal(size=(60, 3))
CLASSES = (X @ np.array([1.0, -1.0, 0.5]) > 0).astype(np.float32)
Y = (np.random.default_rng(2).random(60) < 0.4).astype(float)


class Case(NamedTuple):
    """A run, its right answer, and how far off float32 and float64 may be."""

    name: str
    loss: Callable[..., mx.array]
    start: Any
    right: Any
    tolerance: float = 1e-3  # relative to the larger of the answer and its way from the start
    data: tuple[Any, ...] = ()
    dtype: mx.Dtype = mx.float32


def logistic(w, X, y):
    z = X @ w
    return mx.mean(mx.logaddexp(0, z) - y * z)


def saturation(p, x, y):
    return mx.mean(mx.square(p[0] * x / (p[1] + x) - y))


def logistic_answer(scale: float = 1.0) -> np.ndarray:
    w = np.zeros(3)
    for _ in range(50):  # Newton's method
        q = 1 / (1 + np.exp(-X @ w))
        w = w - np.linalg.solve((X.T * (q * (1 - q))) @ X, X.T @ (q - Y))
    return w / scale


x_s = np.linspace(1e3, 4e4, 30)
y_s = 8.2e-7 * x_s / (3766.85 + x_s)
RIGHT = [
    Case("micro", lambda p: mx.mean(mx.square(p - mx.array([3e-6, -2e-6]))), [0, 0], [3e-6, -2e-6]),
    Case("nano", lambda p: mx.sum(mx.square(p * 1e-9 - mx.array([2e-9, 1e-9]))), [0, 0], [2, 1]),
    Case("huge", lambda p: 1e12 * mx.sum(mx.square(p - mx.array([2.0, 1.0]))), [0, 0], [2, 1]),
    Case("a constant", lambda p: 100 + mx.sum(mx.square(p - mx.array([2.0, 1.0]))), [0, 0], [2, 1]),
    Case("large values", lambda p: mx.sum(mx.square(p - mx.array([2e8, 1e8]))), [0, 0], [2e8, 1e8]),
    Case("a small loss", lambda p: 1e-20 * (mx.exp(p) - 2 * p), 0.0, math.log(2)),
    Case("quartic", lambda p: mx.sum((p - 1) ** 4), [3, 3], [1, 1], 0.1),
    Case("logistic", logistic, [0, 0, 0], logistic_answer(), 1e-3, (X, Y)),
    Case("nano features", logistic, [0, 0, 0], logistic_answer(1e-9), 1e-3, (1e-9 * X, Y)),
    Case("giga features", logistic, [0, 0, 0], logistic_answer(1e9), 1e-3, (1e9 * X, Y)),
    Case("saturation", saturation, [7e-7, 3000.0], [8.2e-7, 3766.85], 1e-3, (x_s, y_s), mx.float64),
    Case("a minimum", lambda p: mx.sum(mx.square(p)), [0, 0], [0, 0]),
    Case("a flat minimum", lambda p: mx.sum(p**4), [0, 0], [0, 0]),
    # Parameters without slope and curvature that do not matter, or are at their minimum.
    Case("one unused", lambda p: mx.sum(mx.square(p[:2] - 2)), [0, 0, 0], [2, 2, 0]),
    Case("one times zero", lambda p: mx.sum(mx.square(p - 2) * mx.array([1, 0])), [0, 3], [2, 3]),
    Case("one clipped", lambda p: mx.maximum(p[0], 0) ** 2 + (p[1] - 1) ** 2, [-2, 0], [-2, 1]),
    Case("one quartic", lambda p: p[0] ** 4 + (p[1] - 1) ** 2, [0, 0], [0, 1]),
    Case(
        "an even hinge",
        lambda p: mx.sum(mx.maximum(1 - p, 0) ** 2 + 1e-3 * p**2),
        [0, 0],
        [1 / 1.001] * 2,
    ),
    Case("log-cosh afar", lambda p: mx.sum(mx.logaddexp(p - 3, 3 - p)), [90, -70], [3, 3]),
    Case("a cosine", lambda p: -mx.sum(mx.cos(p)), [0.5, 0.2], [0, 0]),
]
WRONG = {
    "round": (lambda p: mx.mean(mx.square(mx.round(p) - 3)), [0.2, 0.1], FLAT),
    "a threshold": (lambda p: mx.mean(mx.where(p > 1, 0.0, 1.0)), [0.2, 0.1], FLAT),
    "accuracy": (
        lambda p: -mx.mean(((mx.array(X) @ p > 0) == (mx.array(Y) > 0)).astype(mx.float32)),
        [0.1, 0.2, 0.3],
        FLAT,
    ),
    "argmax": (lambda p: mx.argmax(p).astype(mx.float32), [0.2, 0.1], FLAT),
    "stop_gradient": (lambda p: mx.sum(mx.square(mx.stop_gradient(p) - 1)), [0.2, 0.1], FLAT),
    "a peak far away": (lambda p: 1 - mx.exp(-mx.sum(p**2)), [30.0, 1.0], FLAT),
    "underflow": (lambda p: mx.prod(mx.exp(-mx.square(p) - 200)), [0.2, 0.1], FLAT),
    "a saturated unit": (lambda p: mx.sum(mx.tanh(1000 * p)), [1.0, 1.0], FLAT),
    "a dead unit": (lambda p: mx.sum(mx.maximum(p - 5, 0)), [0.0, 0.0], FLAT),
    "zero weights": (lambda p: mx.square(p[0] * p[1] - 1), [0.0, 0.0], SADDLE),
    "a saddle": (lambda p: p[0] ** 2 - p[1] ** 2 + p[1] ** 4, [0.0, 0.0], SADDLE),
    "a symmetric start": (lambda p: p[0] ** 2 - p[1] ** 2 + p[1] ** 4, [1.0, 0.0], SADDLE),
    "a maximum": (lambda p: mx.sum(mx.cos(p)), [0.0, 0.0], SADDLE),
    "an inflection": (lambda p: mx.sum(p**3), [0.0, 0.0], SADDLE),
    # One parameter of two: the other has a minimum.
    "round in one": (lambda p: mx.round(20 * p[0]) ** 2 + (p[1] - 1) ** 2, [0.28, 0.0], FLAT),
    "wide steps in one": (lambda p: mx.round(2 * p[0]) ** 2 + (p[1] - 1) ** 2, [0.28, 0.0], FLAT),
    "a threshold in one": (
        lambda p: mx.where(p[0] > 1, 0.0, 5.0) + mx.exp(p[1]) - p[1],
        [0.5, 2.0],
        FLAT,
    ),
    "a peak far away in one": (
        lambda p: 1 - mx.exp(-mx.square(p[0])) + mx.square(p[1] - 1),
        [30.0, 0.0],
        FLAT,
    ),
    "saturated in one": (
        lambda p: mx.square(mx.tanh(p[0]) - 0.2) + mx.square(p[1] - 1),
        [30.0, 0.0],
        None,
    ),
    "an inflection in one": (lambda p: p[0] ** 3 + (p[1] - 1) ** 2, [0.0, 0.0], SADDLE),
    "accuracy with a penalty": (
        lambda p: mx.mean(mx.square((mx.array(X) @ p > 0) - mx.array(CLASSES))) + 0.01 * p @ p,
        [0.3, 0.3, 0.3],
        NO_PROGRESS,
    ),
}


def start_of(case: Case) -> mx.array:
    return mx.array(np.array(case.start, dtype=float), dtype=case.dtype)


def is_right(case: Case, found: Any) -> bool:
    x, right, start = (np.array(one, dtype=float) for one in (found, case.right, case.start))
    size = np.maximum(np.abs(right), np.abs(right - start))
    return bool((np.abs(x - right) <= case.tolerance * np.maximum(size, 1e-30)).all())


@pytest.mark.parametrize("name", METHODS)
def test_right_answers_are_said_right_and_wrong_ones_are_not(name, record_property):
    """Each method on each case; the counts are in the report of the test."""
    counts = {"cases": 0, "right and said right": 0, "silent": [], "false alarms": [], "said": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mo.ConvergenceWarning)
        for case in RIGHT:
            result = mo.minimize(
                case.loss, start_of(case), METHODS[name], *case.data, max_steps=5000
            )
            right = is_right(case, np.array(result.params))
            said = result.status is CONVERGED
            counts["cases"] += 1
            counts["right and said right"] += right and said
            counts["said"] += not right and not said
            if said and not right:
                counts["silent"].append((case.name, np.array(result.params).tolist()))
            # A status that is about the number of steps is no verdict on the point.
            if right and not said and result.status is not Status.MAX_STEPS:
                counts["false alarms"].append((case.name, repr(result)))
    record_property("verdicts", str(counts))
    print(f"\n{name}: {counts}")
    assert counts["silent"] == []
    assert counts["false alarms"] == []
    assert counts["right and said right"] >= 9


@pytest.mark.parametrize("problem", WRONG)
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.filterwarnings("ignore::mlxopt.ConvergenceWarning")
def test_a_point_that_is_no_minimum_is_not_called_one(name, problem):
    loss, start, status = WRONG[problem]
    result = mo.minimize(loss, mx.array(start), METHODS[name])
    if result.converged:  # some methods leave a saddle by themselves
        assert status in (SADDLE, None)
        curved = np.array(mo.hessian(loss)(result.params))
        assert np.linalg.eigvalsh(curved)[0] >= -1e-4
    elif name != "TrustRegion" and status is not None:
        assert result.status is status


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", [mx.float32, mx.float64])
def test_a_warm_start_at_a_minimum_stays(name, dtype):
    start = mx.zeros(3, dtype=dtype)
    first = mo.minimize(logistic, start, mo.LBFGS(), X, Y)
    again = mo.minimize(logistic, first.params, METHODS[name], X, Y)
    assert again.converged
    assert again.steps <= 1


def convex(A: np.ndarray, b: np.ndarray, c: float) -> Callable[..., Any]:
    def loss(w, A, b):
        z = A @ w - b
        return mx.mean(mx.logaddexp(z, -z)) * c

    return loss


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 6),
    st.integers(-6, 6),
    st.integers(-4, 4),
    st.sampled_from([mx.float32, mx.float64]),
    st.sampled_from(["LBFGS", "Newton", "TrustRegion", "BFGS"]),
)
def test_converged_means_that_no_one_gains_more(seed, p, k, far, dtype, name):
    """An independent float64 minimizer gains no more than the certificate says it could."""
    rng = np.random.default_rng(seed)
    A, b, c = rng.normal(size=(20, p)), 3 * rng.normal(size=20), 10.0**k
    x0 = rng.normal(size=p) * 10.0**far
    loss = convex(A, b, c)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mo.ConvergenceWarning)
        result = mo.minimize(loss, mx.array(x0, dtype=dtype), METHODS[name], A, b)
    if not result.converged:
        return
    x = np.array(result.params, dtype=float)

    def value(w):
        return c * np.logaddexp(A @ w - b, b - A @ w).mean()

    def slope(w):
        return c * A.T @ np.tanh(A @ w - b) / 20

    other = scipy_minimize(value, x, jac=slope, method="BFGS", options={"gtol": 1e-12 * c})
    gained = value(x) - other.fun
    certificate = result.certificate
    assert certificate.is_minimum
    decrement = certificate.decrement or 0.0
    assert gained <= 0.5 * decrement**2 * 1.5 + 1e-6 * abs(value(x)) * (dtype == mx.float32) + (
        1e-13 * abs(value(x))
    )


def test_sums_over_large_data_in_order_are_not_trusted():
    # Sorted rows: MLX adds them up one after the other, in float32.
    rng = np.random.default_rng(0)
    x = np.sort(rng.normal(size=400_000)).astype(np.float32)
    y = (rng.random(len(x)) < 1 / (1 + np.exp(-x))).astype(np.float32)

    def loss(p, x, y):
        z = p[0] * x + p[1]
        return mx.mean(mx.logaddexp(0, z) - y * z)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mo.ConvergenceWarning)
        result = mo.minimize(loss, mx.zeros(2), mo.LBFGS(), x, y)
    p, hessian = np.zeros(2), np.eye(2)
    for _ in range(30):
        q = 1 / (1 + np.exp(-(p[0] * x.astype(float) + p[1])))
        rows = np.stack([x.astype(float), np.ones(len(x))])
        hessian = (rows * (q * (1 - q))) @ rows.T
        p = p - np.linalg.solve(hessian, rows @ (q - y))
    errors = np.sqrt(np.diag(np.linalg.inv(hessian)))
    if result.converged:
        assert (np.abs(np.array(result.params) - p) <= 0.5 * errors).all()
    else:
        assert "float32" in result.reason


def test_many_parameters_and_a_narrow_saddle():
    # One curvature in 400 is negative, a thousandth of the largest.
    scale = np.linspace(0.05, 1, 400)
    scale[7] = -1e-3
    loss = lambda w: 0.5 * mx.sum(mx.array(scale, dtype=mx.float64) * w * w)  # noqa: E731
    assert mo.certify(loss, array64(np.zeros(400))).is_minimum is not True


def test_noise_that_is_known_does_not_stop_a_run():
    # A float64 loss with seven digits inside.
    def loss(w):
        return mx.sum(mx.square((w * 1.0).astype(mx.float32).astype(mx.float64) - 0.3)) + 2.0

    result = mo.minimize(loss, array64(np.ones(3)), mo.LBFGS())
    np.testing.assert_allclose(np.array(result.params), 0.3, atol=1e-6)
    assert result.converged


STATUS_ROW = re.compile(r"^\| ([A-Z_]+) \|.*\| `(.*)` \|$", re.MULTILINE)


def ctrl_c(info: mo.Info) -> None:
    raise KeyboardInterrupt


def rows_of_readme() -> list[tuple[str, str]]:
    return STATUS_ROW.findall((Path(__file__).parents[1] / "README.md").read_text())


@pytest.mark.parametrize(("status", "example"), rows_of_readme())
@pytest.mark.filterwarnings("ignore::mlxopt.ConvergenceWarning")
def test_each_example_of_the_readme_gives_its_status(status, example):
    given = eval(f"dict({example})", {"mx": mx, "mo": mo, "ctrl_c": ctrl_c})
    loss, start = given.pop("f"), mx.array(given.pop("x"))
    optimizer = given.pop("optimizer", mo.LBFGS())
    assert mo.minimize(loss, start, optimizer, **given).status.name == status


def test_the_readme_lists_every_status():
    assert [status for status, _ in rows_of_readme()] == [status.name for status in STATUS_ORDER]


STATUS_ORDER = [
    *(Status.CONVERGED, Status.COMPLETED, Status.STOPPED, Status.INTERRUPTED),
    *(status for status in Status if status.is_failure),
]


@pytest.mark.parametrize("dtype", [mx.float32, mx.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("form", ["log", "own"])
def test_a_variance_that_goes_to_zero_is_no_minimum(form, name, dtype):
    # Exact data: the likelihood grows without end. In floating point rounding stands in for noise.
    x = np.linspace(0, 1, 20)

    def loss(p, x, y):
        sigma = mx.exp(p[2]) if form == "log" else p[2]
        return mx.mean(0.5 * mx.square((p[0] * x + p[1] - y) / sigma)) + mx.log(sigma)

    start = mx.array([0.0, 0.0, float(form == "own")], dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mo.ConvergenceWarning)
        result = mo.minimize(loss, start, METHODS[name], x, 2 * x + 1)
    assert not result.converged


POLES = {
    "a log": lambda p: mx.sum(mx.log(p)),
    "a log of a size": lambda p: mx.sum(mx.log(mx.abs(p))),
    "a division": lambda p: -1 / mx.sum(mx.square(p)),
    "a root": lambda p: mx.sum(mx.abs(p) ** 0.3),
}


@pytest.mark.parametrize("dtype", [mx.float32, mx.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("pole", POLES)
@pytest.mark.filterwarnings("ignore::mlxopt.ConvergenceWarning")
def test_a_pole_is_no_saddle(pole, name, dtype):
    result = mo.minimize(POLES[pole], mx.array([1.0, 2.0], dtype=dtype), METHODS[name])
    assert not result.converged
    assert result.status is not SADDLE


x_f = np.linspace(0, 5, 60)
FAR = {  # float64, where exp does not underflow
    "a sigmoid": (
        lambda p, x, y: mx.mean(mx.square(p[0] * mx.sigmoid(p[2] * (x - p[1])) - y)),
        [1.0, 50.0, 5.0],
        2 / (1 + np.exp(-3 * (x_f - 2.5))),
    ),
    "a peak": (
        lambda p, x, y: mx.mean(mx.square(p[0] * mx.exp(-mx.square((x - p[1]) / p[2])) - y)),
        [1.0, 12.0, 0.5],
        2 * np.exp(-np.square((x_f - 1) / 0.4)),
    ),
    "a step of tanh": (
        lambda p, x, y: mx.mean(mx.square(p[0] * mx.tanh(p[2] * (x - p[1])) - y)),
        [1.0, 60.0, 4.0],
        2 * np.tanh(2 * (x_f - 3)),
    ),
}


@pytest.mark.parametrize("name", ["LBFGS", "Newton", "GradientDescent", "BFGS"])
@pytest.mark.parametrize("model", FAR)
@pytest.mark.filterwarnings("ignore::mlxopt.ConvergenceWarning")
def test_a_far_start_with_a_tiny_gradient_is_no_minimum(model, name):
    loss, start, y = FAR[model]
    result = mo.minimize(loss, array64(start), METHODS[name], x_f, y)
    at_start = mo.minimize(loss, array64(start), METHODS[name], x_f, y, tol=0, max_steps=1).value
    assert not result.converged or result.value < 0.5 * at_start


def test_a_cubic_has_no_minimum():
    with pytest.warns(mo.ConvergenceWarning, match="SADDLE|UNBOUNDED|NO_PROGRESS"):
        result = mo.minimize(lambda p: p**3, mx.array(1.0), mo.LBFGS())
    assert not result.converged
