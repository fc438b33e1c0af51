"""Many small problems in one batch, against a loop over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import mlx.core as mx
import numpy as np

import mlxopt as mo
from benchmarks.contest import Contestant, Goals, Task
from benchmarks.peers import has, load

Loss = Callable[..., mx.array]

_EQUAL = 2e-4  # the error of the parameters at the default tol in float32
_TOLERANCES = tuple(10.0**-k for k in range(4, 9))


def regressions(quick: bool) -> Iterator[Task]:
    """Yield a batch of logistic regressions, each with its own data."""
    problems, rows, columns = (100, 200, 5) if quick else (1_000, 200, 5)
    rng = np.random.default_rng(0)
    X = rng.standard_normal((problems, rows, columns)).astype(np.float32)
    slopes = rng.standard_normal((problems, columns))
    slopes *= 2.0 / np.linalg.norm(slopes, axis=1, keepdims=True)  # the logits' spread is 2
    logits = np.einsum("bnp,bp->bn", X, slopes) - 0.5
    y = (rng.random(logits.shape) < 1.0 / (1.0 + np.exp(-logits))).astype(np.float32)
    truth = _newton(X, y)
    start = {"b": mx.array(0.0), "w": mx.zeros(columns)}

    def ours(name: str, loss: Loss, optimizer: mo.LBFGS | mo.Newton) -> Contestant:
        def run() -> mo.ManyResult:
            return mo.minimize_many(loss, start, optimizer, X, y, in_axes=(None, 0, 0))

        return Contestant(name, run, "mlxopt", _params)

    contestants = [
        ours("mlxopt minimize_many, LBFGS", _loss, mo.LBFGS()),
        ours("mlxopt minimize_many, Newton", _loss, mo.Newton()),
        ours("mlxopt, LBFGS, mx.logaddexp in the loss", _by_hand, mo.LBFGS()),
    ]
    if has("sklearn"):
        linear = load("sklearn.linear_model")
        # scikit-learn is faster in float64 than in float32.
        data = list(zip(X.astype(np.float64), y.astype(np.float64), strict=True))

        def loop(tol: float) -> np.ndarray:
            fits = (linear.LogisticRegression(C=np.inf, tol=tol).fit(*pair) for pair in data)
            return np.array([[*fit.intercept_, *fit.coef_[0]] for fit in fits])

        scale = np.abs(truth).max()
        tol = next(t for t in _TOLERANCES if np.abs(loop(t) - truth).max() <= _EQUAL * scale)
        name, goals = "scikit-learn LogisticRegression, a loop", Goals(times_faster=20)
        remark, run = f"tol {tol:.0e}", lambda: loop(tol)
        peer = Contestant(name, run, "scikit-learn", np.asarray, remark=remark, goals=goals)
        contestants.append(peer)
    title = f"{problems:,} logistic regressions at once, {rows} × {columns} each, float32"
    yield Task(title, contestants, truth.ravel(), most_error=_EQUAL)


def _loss(params: dict[str, mx.array], X: mx.array, y: mx.array) -> mx.array:
    return mx.mean(mo.losses.logistic(X @ params["w"] + params["b"], y))


def _by_hand(params: dict[str, mx.array], X: mx.array, y: mx.array) -> mx.array:
    logits = X @ params["w"] + params["b"]
    return mx.mean(mx.logaddexp(0, logits) - y * logits)


def _params(result: mo.ManyResult) -> np.ndarray:
    return np.column_stack([np.array(result.params["b"]), np.array(result.params["w"])])


def _newton(X: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the intercepts and coefficients, (B, 1 + p), by Newton's method in float64."""
    A = np.concatenate([np.ones((*y.shape, 1)), X], axis=2, dtype=np.float64)
    b = np.zeros((len(A), A.shape[2], 1))
    for _ in range(20):  # 7 or 8 reach rounding
        p = 1.0 / (1.0 + np.exp(-(A @ b)))
        gradient = np.swapaxes(A, 1, 2) @ (p - y[:, :, None])
        b -= np.linalg.solve(np.swapaxes(A, 1, 2) @ (A * (p * (1.0 - p))), gradient)
    return b[:, :, 0]
