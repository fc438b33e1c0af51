"""Small problems that know their answers, shared by the tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from mlxopt import problems

rosenbrock = problems.get("Chained Rosenbrock (3)").loss  # in any number of parameters


class Problem(NamedTuple):
    """A loss, where to start, and what is known of its minimum."""

    name: str
    loss: Callable[[Any], mx.array]  # of a vector of shape (p,)
    start: list[float]
    minimizer: list[float]
    value: float
    convex: bool


def quadratic(x):
    scale = mx.array([1.0, 4.0, 9.0], dtype=x.dtype)
    return 0.5 * mx.sum(scale * mx.square(x - 1)) + 2


def exponentials(x):
    # Minimizers where exp(x) = k: log 1, log 2, log 3. sinh and cosh, since mx.exp is not float64.
    k = mx.arange(1, 4).astype(x.dtype)
    return mx.sum(mx.sinh(x) + mx.cosh(x) - k * x)


def softened_absolute(x):
    return mx.sum(mx.sqrt(1 + mx.square(x + 2)))


LOGS = [float(np.log(k)) for k in (1, 2, 3)]

PROBLEMS = [
    Problem("quadratic", quadratic, [0.0, 0.0, 0.0], [1.0, 1.0, 1.0], 2.0, True),
    Problem(
        "exponentials", exponentials, [0.0, 0.0, 0.0], LOGS, 6 - 2 * LOGS[1] - 3 * LOGS[2], True
    ),
    Problem("softened absolute", softened_absolute, [3.0, -8.0], [-2.0, -2.0], 2.0, True),
    Problem("rosenbrock", rosenbrock, [-1.2, 1.0], [1.0, 1.0], 0.0, False),
    Problem("beale", problems.get("Beale").loss, [1.0, 1.0], [3.0, 0.5], 0.0, False),
]


def array64(values: Any) -> mx.array:
    return mx.array(np.asarray(values, dtype=np.float64), dtype=mx.float64)


def regression(rows: int = 200, columns: int = 5, seed: int = 0, noise: float = 0.1):
    """Return X, y, w as float64 NumPy arrays with y = X w + noise."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(rows, columns))
    w = rng.normal(size=columns)
    return X, X @ w + noise * rng.normal(size=rows), w


def squared_loss(params, X, y):
    """½ mean squared residual of a linear model with params {"w": (p,), "b": ()}."""
    return 0.5 * mx.mean(mx.square(X @ params["w"] + params["b"] - y))
