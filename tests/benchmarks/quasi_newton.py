"""L-BFGS on custom losses: mlxopt's loop against SciPy's with the same gradient."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import Any, cast

import mlx.core as mx
import numpy as np

import mlxopt as mo
from benchmarks.contest import NO_GOALS, Contestant, Goals, Task
from benchmarks.peers import has, load
from benchmarks.regression import Classes, classes

Loss = Callable[..., Any]
Arrays = tuple[np.ndarray, ...]

_MEMORY = 10  # pairs kept by each method
_MOST = 100_000  # evaluations
_GOALS = Goals(time=1.1, evaluations=1.1)


def lbfgs(quick: bool) -> Iterator[Task]:
    """Yield a loss of cheap evaluations, and in two dtypes a loss of expensive ones."""
    yield rosenbrock(100 if quick else 1_000)
    problem = classes(10_000 if quick else 100_000, 10)
    yield logistic(problem, np.dtype(np.float32))
    yield logistic(problem, np.dtype(np.float64))


def rosenbrock(size: int) -> Task:
    """Return the chained Rosenbrock function in float64: Σ 100 (xᵢ₊₁ - xᵢ²)² + (1 - xᵢ)²."""

    def loss(x: mx.array) -> mx.array:
        return mx.sum(100 * mx.square(x[1:] - mx.square(x[:-1])) + mx.square(1 - x[:-1]))

    def in_jax(x: Any) -> Any:
        return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()

    # The usual start. From smooth starts, such as zeros, some methods end early by luck.
    start = np.where(np.arange(size) % 2, 1.0, -1.2)
    duel = _Duel(loss, in_jax, start, (), 1e-6)
    title = f"L-BFGS, Rosenbrock of {size:,} parameters, float64"
    return Task(title, duel.contestants(NO_GOALS), np.ones(size), note=duel.note())


def logistic(problem: Classes, dtype: np.dtype[Any]) -> Task:
    """Return a logistic loss written in MLX ops."""
    rows, columns = problem.X.shape
    X = np.column_stack([np.ones(rows), problem.X]).astype(dtype)

    def loss(w: mx.array, X: mx.array, y: mx.array) -> mx.array:
        return mx.mean(mo.losses.logistic(X @ w, y))

    def in_jax(w: Any, X: Any, y: Any) -> Any:
        logits = X @ w
        return (load("jax.numpy").logaddexp(0.0, logits) - y * logits).mean()

    start, tol = np.zeros(columns + 1, dtype=dtype), 1e-8 if dtype == np.float64 else 1e-5
    duel = _Duel(loss, in_jax, start, (X, problem.y.astype(dtype)), tol)
    # In float32 rounding stops SciPy's line search early: loosen tol until SciPy reaches it.
    while dtype == np.float32 and duel.tol < 1e-2 and not duel.scipy_reaches_it():
        duel.tol *= 10
    title = f"L-BFGS, logistic loss, {rows:,} × {columns} and intercept, {dtype}"
    return Task(title, duel.contestants(Goals(time=1.0)), problem.truth, note=duel.note())


class _Duel:
    """The contestants for one loss, written in MLX and in JAX."""

    def __init__(self, loss: Loss, in_jax: Loss, start: np.ndarray, data: Arrays, tol: float):
        self.loss, self.in_jax, self.start, self.data, self.tol = loss, in_jax, start, data, tol
        self.dtype = mx.float64 if start.dtype == np.float64 else mx.float32
        self.first = mx.array(start, dtype=self.dtype)
        self.arrays = tuple(mx.array(array, dtype=self.dtype) for array in data)

    def note(self) -> str:
        """Return the stop rule, and the extent of the times."""
        return (
            f"Each stops when no entry of the gradient exceeds {self.tol:.0e}. A time is that of "
            f"a whole call: mlxopt and SciPy trace the loss in each call, jaxopt is jitted before."
        )

    def contestants(self, jaxopt_goals: Goals) -> list[Contestant]:
        """Return mlxopt, SciPy, and jaxopt where it is installed."""
        count = attrgetter("evaluations")
        ours = Contestant("mlxopt minimize", self.ours, "mlxopt", _converged, evaluations=count)
        scipy = Contestant(
            "SciPy L-BFGS-B, MLX gradient",
            self.by_scipy,
            "scipy",
            lambda result: self._reached(np.abs(result.jac).max(), result.x),
            evaluations=attrgetter("nfev"),
            goals=_GOALS,
        )
        return [ours, scipy, *([self._jaxopt(jaxopt_goals)] if has("jaxopt") else [])]

    def ours(self) -> mo.Result:
        """Minimize by mlxopt."""
        limits: dict[str, Any] = {"tol": self.tol, "max_steps": _MOST, "progress": False}
        return mo.minimize(self.loss, self.first, mo.LBFGS(_MEMORY), *self.arrays, **limits)

    def by_scipy(self) -> Any:
        """Minimize by SciPy's L-BFGS-B with the compiled loss and gradient."""
        from scipy.optimize import minimize as scipy_minimize

        compiled = mx.compile(mx.value_and_grad(self.loss))

        def evaluate(x: np.ndarray) -> tuple[float, np.ndarray]:
            value, grad = compiled(mx.array(x, dtype=self.dtype), *self.arrays)
            mx.eval(value, grad)
            return cast(float, value.item()), np.asarray(grad).astype(np.float64)

        options = {"gtol": self.tol, "ftol": 0.0, "maxiter": _MOST, "maxfun": _MOST}
        options["maxcor"] = _MEMORY
        method, start = "L-BFGS-B", self.start.astype(np.float64)
        on_cpu = self.dtype == mx.float64  # other devices have no float64
        with mx.stream(mx.cpu) if on_cpu else contextlib.nullcontext():
            return scipy_minimize(evaluate, start, jac=True, method=method, options=options)

    def scipy_reaches_it(self) -> bool:
        """Whether SciPy brings every entry of the gradient within the tolerance."""
        return bool(np.abs(self.by_scipy().jac).max() <= self.tol)

    def _reached(self, largest: float, params: Any) -> Any:
        """Return the parameters of a run that reached the tolerance; otherwise raise."""
        if not largest <= self.tol:
            raise RuntimeError(f"stopped with an entry of {largest:.1e} in the gradient")
        return params

    def _jaxopt(self, goals: Goals) -> Contestant:
        """Return jaxopt's L-BFGS. It tests the gradient's Euclidean norm, with the looser of two
        limits that brings the largest entry within the tolerance.
        """
        jax, jnp, jaxopt = load("jax"), load("jax.numpy"), load("jaxopt")
        first, arrays = jnp.asarray(self.start), tuple(jnp.asarray(array) for array in self.data)
        gradient = jax.jit(jax.grad(self.in_jax))

        def limited(limit: float) -> Callable[[], Any]:
            solver = jaxopt.LBFGS(self.in_jax, maxiter=_MOST, tol=limit, history_size=_MEMORY)
            run = jax.jit(solver.run)
            return lambda: jax.block_until_ready(run(first, *arrays))

        def largest(result: Any) -> float:
            return float(jnp.abs(gradient(result.params, *arrays)).max())

        for factor in (3.0, 1.0):
            run = limited(factor * self.tol)
            if largest(run()) <= self.tol:
                break
        return Contestant(
            "jaxopt LBFGS, jitted",
            run,
            "jaxopt",
            lambda result: self._reached(largest(result), result.params),
            evaluations=attrgetter("state.num_fun_eval"),
            goals=goals,
        )


def _converged(result: Any) -> Any:
    """Return the parameters of a run that converged; otherwise raise."""
    if not result.converged:
        raise RuntimeError(f"stopped: {result.status.name}")
    return result.params
