"""Small problems for optimizers; each loss is half the sum of squares of a residual."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from mlxopt import problems
from mlxopt._residual_objective import ResidualObjective
from mlxopt._tree import Tree, working_dtype

PROBLEMS = ("quadratic", "rosenbrock")  # those to be solved


class Given(NamedTuple):
    """A residual, where to start, and the data."""

    residual: Callable[..., mx.array]
    params: Tree
    data: tuple[mx.array, ...] = ()

    def objective(self) -> ResidualObjective:
        return ResidualObjective(self.residual, self.data)

    def evaluate(self, params: Tree) -> tuple[float, Tree]:
        """Return the loss and its gradient, by MLX alone."""

        def loss(params: Tree) -> mx.array:
            residual = self.residual(params, *self.data)
            return 0.5 * mx.sum(mx.square(residual.astype(working_dtype(params))))

        value, grad = mx.value_and_grad(loss)(params)
        return float(np.array(value)), grad


def regression(dtype: mx.Dtype) -> Given:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 3)) / np.sqrt(40)
    y = X @ [1.0, -2.0, 0.5] + 0.3 / np.sqrt(40) + 0.02 * rng.normal(size=40)
    # A tuple inside a dict, and shapes from () to (2, 1).
    w = mx.full((2, 1), 0.5, dtype=dtype), mx.zeros(1, dtype=dtype)
    params = {"w": w, "b": mx.array(0.0, dtype=dtype)}
    return Given(_linear, params, (mx.array(X, dtype=dtype), mx.array(y, dtype=dtype)))


def curved(dtype: mx.Dtype) -> Given:
    return regression(dtype)._replace(residual=_saturating)


def _linear(params: Tree, X: mx.array, y: mx.array) -> mx.array:
    w = mx.concatenate([leaf.reshape(-1) for leaf in params["w"]])
    return X @ w + params["b"] / X.shape[0] ** 0.5 - y


def _saturating(params: Tree, X: mx.array, y: mx.array) -> mx.array:
    return mx.tanh(2 * _linear(params, X, y))


def mixed(params: Tree) -> mx.array:
    return mx.concatenate([params["a"].astype(mx.float32) - 1, (params["b"] - 2).reshape(1)])


def border(x: mx.array) -> mx.array:
    return mx.where(x < 1, x - 3, mx.array(float("nan"), dtype=x.dtype))


def border_of_gradient(x: mx.array) -> mx.array:
    # The square root is never chosen, but beyond 1 its derivative is NaN, and 0 · NaN is NaN.
    return x - 3 + mx.where(x > -1e300, 0, mx.sqrt(1 - x))


def bowl(x: mx.array) -> mx.array:
    return x - 1


_CENTER = np.array([1.0, -0.7, 0.31])  # no multiple of a step size


def _valley(x: mx.array) -> mx.array:
    # No axis is an axis of the ellipsoids; the curvatures are 0.6, 1.9 and 2.7.
    matrix = np.array([[1.0, 0.5, 0.0], [0.0, 1.2, -0.4], [0.3, 0.0, 1.5]])
    return mx.array(matrix, dtype=x.dtype) @ (x - mx.array(_CENTER, dtype=x.dtype))


def solvable(problem: str) -> tuple[Given, np.ndarray]:
    """Return a problem and its only minimum."""
    if problem == "quadratic":
        return Given(_valley, mx.zeros(3, dtype=mx.float64)), _CENTER
    rosenbrock = problems.get("Rosenbrock")
    assert rosenbrock.residual is not None
    return Given(rosenbrock.residual, rosenbrock.params()), np.ones(2)
