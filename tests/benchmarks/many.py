"""A thousand logistic regressions of 200 × 5 at once, against scikit-learn in a loop.

`python tests/benchmarks/many.py [problems]` prints the median times of runs taken in turn, how many
times faster each way of minimize_many is, and the worst error of a coefficient or intercept,
relative to the largest of its problem, against Newton's method in float64 to the last digit.
scikit-learn gets float64 data, with which it is faster, and runs twice: with its own tolerance, and
with the loosest that brings its worst error to that of mlxopt.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
from sklearn.linear_model import LogisticRegression

import mlxopt as mo

ROWS, COLUMNS, ROUNDS = 200, 5, 7


def classes(problems: int) -> tuple[np.ndarray, np.ndarray]:
    """Return X (B, n, p) and labels y (B, n), float32, each problem with coefficients of its own;
    the logits have a spread of 2.
    """
    rng = np.random.default_rng(0)
    X = rng.standard_normal((problems, ROWS, COLUMNS)).astype(np.float32)
    slopes = rng.standard_normal((problems, COLUMNS))
    slopes *= 2.0 / np.linalg.norm(slopes, axis=1, keepdims=True)
    logits = np.einsum("bnp,bp->bn", X, slopes) - 0.5
    return X, (rng.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(np.float32)


def exact(X: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the intercepts and coefficients, (B, 1 + p), by Newton's method in float64."""
    A = np.concatenate([np.ones((*y.shape, 1)), X], axis=2, dtype=np.float64)
    b, gradient = np.zeros((len(A), A.shape[2], 1)), np.inf
    for _ in range(20):
        p = 1 / (1 + np.exp(-(A @ b)))
        gradient = np.swapaxes(A, 1, 2) @ (p - y[:, :, None])
        b -= np.linalg.solve(np.swapaxes(A, 1, 2) @ (A * (p * (1 - p))), gradient)
    assert np.abs(gradient).max() < 1e-11
    return b[:, :, 0]


def loss(params: dict[str, mx.array], X: mx.array, y: mx.array) -> mx.array:
    """Return the mean logistic loss."""
    return mx.mean(mo.losses.logistic(X @ params["w"] + params["b"], y))


def by_hand(params: dict[str, mx.array], X: mx.array, y: mx.array) -> mx.array:
    """Return the same as it is written where there is nothing but mlx.core."""
    logits = X @ params["w"] + params["b"]
    return mx.mean(mx.logaddexp(0, logits) - y * logits)


def at_once(loss: Callable[..., mx.array], optimizer: Any, X: np.ndarray, y: np.ndarray) -> Any:
    """Return the intercepts and coefficients, (B, 1 + p)."""
    start = {"b": mx.zeros(()), "w": mx.zeros(COLUMNS)}
    result = mo.minimize_many(loss, start, optimizer, X, y, in_axes=(None, 0, 0))
    assert result.converged.all()
    return np.column_stack([np.array(result.params["b"]), np.array(result.params["w"])])


def in_a_loop(tol: float, X: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the same by scikit-learn."""
    fits = []
    for one, labels in zip(X, y, strict=True):
        fit = LogisticRegression(C=np.inf, tol=tol).fit(one, labels)
        fits.append(np.concatenate([fit.intercept_, fit.coef_[0]]))
    return np.array(fits)


def error(found: np.ndarray, truth: np.ndarray) -> float:
    """Return the worst error, relative to the largest entry of its problem."""
    return float(np.max(np.abs(found - truth).max(axis=1) / np.abs(truth).max(axis=1)))


def main() -> None:
    """Print the comparison."""
    problems = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    X, y = classes(problems)
    truth = exact(X, y)
    ways = {
        "minimize_many, Newton": lambda: at_once(loss, mo.Newton(), X, y),
        "minimize_many, LBFGS": lambda: at_once(loss, mo.LBFGS(), X, y),
        "the same, loss by hand, Newton": lambda: at_once(by_hand, mo.Newton(), X, y),
        "the same, loss by hand, LBFGS": lambda: at_once(by_hand, mo.LBFGS(), X, y),
    }
    errors = {name: error(way(), truth) for name, way in ways.items()}
    goal = errors["minimize_many, LBFGS"]
    wide = X.astype(np.float64), y.astype(np.float64)
    found = {}
    for tol in (1e-4, 1e-5, 1e-6, 1e-7, 1e-8):
        found[tol] = error(in_a_loop(tol, *wide), truth)
        if found[tol] <= goal:
            break
    equal = f"scikit-learn, tol {tol:.0e}"
    ways["scikit-learn, default tol"] = lambda: in_a_loop(1e-4, *wide)
    ways[equal] = lambda: in_a_loop(tol, *wide)
    errors["scikit-learn, default tol"], errors[equal] = found[1e-4], found[tol]
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round in range(ROUNDS):
        for name in list(ways)[:: 1 if round % 2 else -1]:
            gc.collect()
            time.sleep(0.1)  # in which the threads of the one before fall asleep
            began = time.perf_counter()
            ways[name]()
            seconds[name].append(time.perf_counter() - began)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    print(f"{problems:,} logistic regressions of {ROWS} × {COLUMNS}, with an intercept, float32")
    for name in ways:
        ratios = " and ".join(
            f"{median[peer] / median[name]:4.1f}" for peer in ("scikit-learn, default tol", equal)
        )
        print(
            f"{name:<32} {1e3 * median[name]:7.1f} ms, {ratios} times faster than the last two, "
            f"worst error {errors[name]:.1e}"
        )


if __name__ == "__main__":
    main()
