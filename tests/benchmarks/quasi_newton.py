"""L-BFGS on a loss of one's own: mlxopt's loop against SciPy's, which drives the same gradient."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, cast

import mlx.core as mx
import numpy as np

import mlxopt as mo
from benchmarks.contest import NO_GOALS, Contestant, Goals, Task
from benchmarks.peers import has, load
from benchmarks.regression import Classes, classes

_MEMORY = 10  # pairs that each of them keeps
_MOST = 100_000  # evaluations
_GOALS = Goals(time=1.1, evaluations=1.1)


def lbfgs(quick: bool) -> Iterator[Task]:
    """Yield a loss whose evaluation costs nothing, and in two dtypes one where it costs most."""
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

    # The usual start. From smoother ones, such as zeros, some methods are there at a bound.
    start = np.where(np.arange(size) % 2, 1.0, -1.2)
    duel = _Duel(loss, in_jax, start, (), 1e-6)
    title = f"L-BFGS, Rosenbrock of {size:,} parameters, float64"
    return Task(title, duel.contestants(NO_GOALS), np.ones(size), note=duel.note())


def logistic(problem: Classes, dtype: np.dtype[Any]) -> Task:
    """Return a logistic loss as one writes it oneself."""
    rows, columns = problem.X.shape
    X = np.column_stack([np.ones(rows), problem.X]).astype(dtype)

    def loss(w: mx.array, X: mx.array, y: mx.array) -> mx.array:
        return mx.mean(mo.losses.logistic(X @ w, y))

    def in_jax(w: Any, X: Any, y: Any) -> Any:
        logits = X @ w
        return (load("jax.numpy").logaddexp(0.0, logits) - y * logits).mean()

    start, tol = np.zeros(columns + 1, dtype=dtype), 1e-8 if dtype == np.float64 else 1e-5
    duel = _Duel(loss, in_jax, start, (X, problem.y.astype(dtype)), tol)
    # In float32 rounding stops SciPy's line search early: what it can reach is what is asked for.
    while dtype == np.float32 and duel.tol < 1e-2 and not duel.scipy_reaches_it():
        duel.tol *= 10
    title = f"L-BFGS, logistic loss of one's own, {rows:,} × {columns} and intercept, {dtype}"
    return Task(title, duel.contestants(Goals(time=1.0)), problem.truth, note=duel.note())


class _Duel:
    """Two losses that are one, in MLX and in JAX, and all that minimize them."""

    def __init__(
        self, loss: Callable[..., mx.array], in_jax: Callable[..., Any], start: np.ndarray,
        data: tuple[np.ndarray, ...], tol: float,
    ) -> None:  # fmt: skip
        self.loss, self.in_jax, self.start, self.data, self.tol = loss, in_jax, start, data, tol
        self.dtype = mx.float64 if start.dtype == np.float64 else mx.float32
        self.first = mx.array(start, dtype=self.dtype)
        self.arrays = tuple(mx.array(array, dtype=self.dtype) for array in data)

    def note(self) -> str:
        """Return how the runs end and what their times hold."""
        return (
            f"Each stops when no entry of the gradient is above {self.tol:.0e}. A time is that of "
            f"one whole call: mlxopt's and SciPy's trace the loss anew in each, jaxopt's is "
            f"jitted before."
        )

    def contestants(self, jaxopt_goals: Goals) -> list[Contestant]:
        """Return mlxopt, SciPy, and jaxopt where it is installed."""
        found = [
            Contestant(
                "mlxopt minimize", self.ours, "mlxopt",
                _converged,
                evaluations=lambda result: result.evaluations,
            ),
            Contestant(
                "SciPy L-BFGS-B, MLX gradient", self.by_scipy, "scipy",
                lambda result: self._reached(np.abs(result.jac).max(), result.x),
                evaluations=lambda result: result.nfev, goals=_GOALS,
            ),
        ]  # fmt: skip
        return [*found, self._jaxopt(jaxopt_goals)] if has("jaxopt") else found

    def ours(self) -> Any:
        """Minimize by mlxopt."""
        return mo.minimize(
            self.loss, self.first, mo.LBFGS(_MEMORY), *self.arrays,
            tol=self.tol, max_steps=_MOST, progress=False,
        )  # fmt: skip

    def by_scipy(self) -> Any:
        """Minimize by SciPy's L-BFGS-B, which calls the same compiled function."""
        from scipy.optimize import minimize as scipy_minimize

        compiled = mx.compile(mx.value_and_grad(self.loss))

        def evaluate(x: np.ndarray) -> tuple[float, np.ndarray]:
            value, grad = compiled(mx.array(x, dtype=self.dtype), *self.arrays)
            mx.eval(value, grad)
            return cast(float, value.item()), np.asarray(grad).astype(np.float64)

        limits = {"gtol": self.tol, "ftol": 0.0, "maxiter": _MOST, "maxfun": _MOST}
        on_cpu = self.dtype == mx.float64  # other devices have no float64
        with mx.stream(mx.cpu) if on_cpu else contextlib.nullcontext():
            return scipy_minimize(
                evaluate, self.start.astype(np.float64), jac=True, method="L-BFGS-B",
                options={"maxcor": _MEMORY, **limits},
            )  # fmt: skip

    def scipy_reaches_it(self) -> bool:
        """Whether SciPy gets every entry of the gradient within the tolerance."""
        return bool(np.abs(self.by_scipy().jac).max() <= self.tol)

    def _reached(self, largest: float, params: Any) -> Any:
        """Return the parameters of a run that reached the tolerance; raise for another."""
        if not largest <= self.tol:
            raise RuntimeError(f"stopped with an entry of {largest:.1e} in the gradient")
        return params

    def _jaxopt(self, goals: Goals) -> Contestant:
        """Return jaxopt's L-BFGS. It tests the gradient's Euclidean norm: of a few limits on that,
        the loosest is taken that keeps the largest entry within the tolerance.
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
            "jaxopt LBFGS, jitted", run, "jaxopt",
            lambda result: self._reached(largest(result), result.params),
            evaluations=lambda result: int(result.state.num_fun_eval), goals=goals,
        )  # fmt: skip


def _converged(result: Any) -> Any:
    """Return the parameters of a run that converged; raise for another."""
    if not result.converged:
        raise RuntimeError(f"stopped: {result.status.name}")
    return result.params
