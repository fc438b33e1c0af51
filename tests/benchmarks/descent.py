"""Gradient descent: on all the data, on mini-batches, and with the accuracy at every step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, cast

import mlx.core as mx
import numpy as np

import mlxopt as mo
from benchmarks.contest import NO_GOALS, Contestant, Goals, Task
from benchmarks.peers import blas, has, load
from mlxopt.cli.demo import Problem, linear_problem, logistic_problem, numpy_descent

_STOCK_SHARE = 0.1  # of the steps, on the slow BLAS of MLX's wheel


def large(quick: bool) -> Iterator[Task]:
    """Yield full-batch gradient descent in which matrix products dominate."""
    rows, columns, steps = (2_000, 50, 200) if quick else (10_000, 100, 1_200)
    goals = {"numpy": Goals(time=0.8), "optax": Goals(time=0.5), "torch": Goals(time=0.4)}
    yield _full_batch(rows, columns, steps, goals | {"stock": Goals(times_faster=30)})


def small(quick: bool) -> Iterator[Task]:
    """Yield full-batch gradient descent in which the overhead of a step dominates."""
    rows, columns, steps = (500, 20, 1_000) if quick else (1_000, 100, 10_000)
    goals = {"optax": Goals(time=1.0), "torch": Goals(time=0.25)}
    yield _full_batch(rows, columns, steps, goals | {"stock": Goals(times_faster=20)})


def _full_batch(rows: int, columns: int, steps: int, goals: dict[str, Goals]) -> Task:
    problem = linear_problem(rows, columns, seed=0)
    X, y, start = mx.array(problem.X), mx.array(problem.y), mx.zeros(columns)
    mx.eval(X, y, start)
    run = _minimizer(problem, start, X, y, steps)

    def plain(count: int) -> mx.array:
        return _plain_descent(problem, X, y, count)

    def peer(name: str, package: str, run: Callable[[], Any]) -> Contestant:
        return Contestant(name, run, package, np.asarray, goals=goals.get(package, NO_GOALS))

    contestants = [
        Contestant("mlxopt minimize", run, "mlxopt", lambda result: result.params),
        *_plain(problem, plain, steps, goals["stock"]),
        peer("NumPy loop", "numpy", lambda: numpy_descent(problem, steps)),
    ]
    if has("optax"):
        contestants.append(peer("optax, jitted loop", "optax", _optax_descent(problem, steps)))
    if has("torch"):
        contestants.append(peer("torch loop", "torch", _torch_descent(problem, steps)))
    title = f"SGD on all of {rows:,} × {columns}, {steps:,} steps"
    return Task(title, contestants, _exact_descent(problem, steps))


def _minimizer(
    problem: Problem, start: mx.array, X: mx.array, y: mx.array, steps: int, **options: Any
) -> Callable[[], mo.Result]:
    options |= {"tol": 0, "max_steps": steps, "progress": False}
    rule = mo.SGD(problem.learning_rate)
    return lambda: mo.minimize(problem.loss, start, rule, X, y, **options)


def _plain(
    problem: Problem, run: Callable[[int], Any], steps: int, goals: Goals
) -> list[Contestant]:
    """Return MLX's plain loop on its wheel's own BLAS, for a tenth of the steps, and on the BLAS
    that mlxopt binds.
    """
    bound = Contestant("plain MLX loop, same BLAS", lambda: run(steps), params=np.asarray)
    if blas.bind().library is None:
        return [dataclasses.replace(bound, name="plain MLX loop")]
    few = max(1, int(steps * _STOCK_SHARE))
    stock = Contestant(
        "plain MLX loop, stock wheel",
        lambda: run(few),
        params=np.asarray,
        truth=_exact_descent(problem, few),
        share=few / steps,
        stock=True,
        goals=goals,
        remark=f"{few:,} steps, scaled to {steps:,}" if few < steps else "",
    )
    return [stock, bound]


def _plain_descent(problem: Problem, X: mx.array, y: mx.array, steps: int) -> mx.array:
    """Return the parameters after the loop of MLX's documentation."""
    w = mx.zeros(X.shape[1])
    gradient = mx.grad(problem.loss)
    for _ in range(steps):
        w = w - problem.learning_rate * gradient(w, X, y)
        mx.eval(w)
    return w


def _exact_descent(problem: Problem, steps: int) -> np.ndarray:
    """Return the parameters after the same steps in float64."""
    wide = dataclasses.replace(problem, X=problem.X.astype(float), y=problem.y.astype(float))
    return numpy_descent(wide, steps)


def _optax_descent(problem: Problem, steps: int) -> Callable[[], Any]:
    jax, jnp, optax = load("jax"), load("jax.numpy"), load("optax")
    X, y, start = jnp.asarray(problem.X), jnp.asarray(problem.y), jnp.zeros(len(problem.X[0]), "f4")
    optimizer = optax.sgd(problem.learning_rate)

    def loss(w: Any, X: Any, y: Any) -> Any:
        return 0.5 * jnp.mean(jnp.square(X @ w - y))

    @jax.jit
    def descend(w: Any, X: Any, y: Any) -> Any:
        def step(_: int, carry: Any) -> Any:
            w, state = carry
            updates, state = optimizer.update(jax.grad(loss)(w, X, y), state)
            return optax.apply_updates(w, updates), state

        return jax.lax.fori_loop(0, steps, step, (w, optimizer.init(w)))[0]

    return lambda: jax.block_until_ready(descend(start, X, y))


def _torch_descent(problem: Problem, steps: int) -> Callable[[], Any]:
    torch = load("torch")
    X, y = torch.from_numpy(problem.X), torch.from_numpy(problem.y)

    def descend() -> Any:
        w = torch.zeros(X.shape[1], requires_grad=True)
        optimizer = torch.optim.SGD([w], lr=problem.learning_rate)
        for _ in range(steps):
            optimizer.zero_grad()
            loss = 0.5 * torch.mean((X @ w - y) ** 2)
            loss.backward()
            optimizer.step()
        return w.detach()

    return descend


def accuracy(quick: bool) -> Iterator[Task]:
    """Yield gradient descent on a logistic regression, with the accuracy at every step."""
    rows, columns, steps = (500, 20, 300) if quick else (1_000, 100, 2_000)
    problem = logistic_problem(rows, columns, seed=0)
    X, y, start = mx.array(problem.X), mx.array(problem.y), mx.zeros(columns)
    positive, is_second = y > 0.5, problem.y > 0.5
    mx.eval(X, y, start, positive)

    def share_right(w: mx.array) -> float:
        return cast(float, mx.mean((X @ w > 0) == positive).item())

    def share_in_numpy(w: Any) -> float:
        return float(np.mean((problem.X @ np.asarray(w) > 0) == is_second))

    def ours() -> Any:
        seen: list[float] = []

        # In NumPy, since the parameters are on the host: MLX would take one more round trip.
        def callback(info: mo.Info) -> None:
            seen.append(share_in_numpy(info.params))

        result = _minimizer(problem, start, X, y, steps, record_every=1, callback=callback)()
        assert len(seen) > steps
        return result

    def plain(count: int) -> mx.array:
        seen: list[float] = []
        w, gradient = start, mx.grad(problem.loss)
        for _ in range(count):
            w = w - problem.learning_rate * gradient(w, X, y)
            seen.append(share_right(w))
        return w

    def numpy_loop() -> np.ndarray:
        seen: list[float] = []
        w = np.zeros(columns, dtype=np.float32)
        for _ in range(steps):
            residual = problem.mean(problem.X @ w) - problem.y
            w -= problem.learning_rate * (problem.X.T @ residual / rows)
            seen.append(share_in_numpy(w))
        return w

    yield Task(
        f"logistic SGD on all of {rows:,} × {columns}, {steps:,} steps, accuracy at each",
        [
            Contestant("mlxopt minimize, callback", ours, "mlxopt", lambda result: result.params),
            *_plain(problem, plain, steps, Goals(times_faster=10)),
            Contestant("NumPy loop", numpy_loop, "numpy", np.asarray, goals=Goals(time=2.5)),
        ],
        _exact_descent(problem, steps),
    )


def minibatch(quick: bool) -> Iterator[Task]:
    """Yield stochastic gradient descent on batches so small that overhead dominates."""
    rows, size, epochs, rate = 1_000, 32, 3 if quick else 50, 0.03
    rng = np.random.default_rng(0)
    X = rng.normal(size=(rows, 2)).astype(np.float32)
    truth = np.array([2.0, -3.4])
    y = (X @ truth + 0.01 * rng.normal(size=rows)).astype(np.float32)
    on_mlx = mx.array(X), mx.array(y)
    mx.eval(on_mlx)

    def loss(w: mx.array, X: mx.array, y: mx.array) -> mx.array:
        return mx.mean(mo.losses.squared_error(X @ w, y))

    def ours() -> Any:
        batches = mo.batches(*on_mlx, batch_size=size)
        return mo.train(loss, mx.zeros(2), mo.SGD(rate), batches, epochs=epochs, progress=False)

    def plain() -> mx.array:
        w, gradient = mx.zeros(2), mx.grad(loss)
        for epoch in range(epochs):
            order = mx.array(np.random.default_rng(epoch).permutation(rows))
            for start in range(0, rows, size):
                batch = order[start : start + size]
                w = w - rate * gradient(w, on_mlx[0][batch], on_mlx[1][batch])
                mx.eval(w)
        return w

    def numpy_loop() -> np.ndarray:
        w = np.zeros(2, dtype=np.float32)
        for epoch in range(epochs):
            order = np.random.default_rng(epoch).permutation(rows)
            for start in range(0, rows, size):
                Xb, yb = X[order[start : start + size]], y[order[start : start + size]]
                w -= rate * (Xb.T @ (Xb @ w - yb) / len(yb))
        return w

    contestants = [
        Contestant("mlxopt train", ours, "mlxopt", lambda result: result.params),
        Contestant(
            "plain MLX loop, same BLAS", plain, params=np.asarray, goals=Goals(times_faster=2.5)
        ),
        Contestant("NumPy loop", numpy_loop, "numpy", np.asarray),
    ]
    if has("torch"):
        with_loader, with_slices = _torch_minibatch(X, y, size, epochs, rate)
        contestants += [
            Contestant(
                "torch loop, DataLoader", with_loader, "torch", np.asarray, goals=Goals(time=0.3)
            ),
            Contestant("torch loop, indices", with_slices, "torch", np.asarray),
        ]
    yield Task(
        f"SGD on batches of {size} × 2 from {rows:,} rows, {epochs} epochs",
        contestants,
        np.linalg.lstsq(X.astype(float), y.astype(float))[0],
        note="The error is the distance from the minimum, around which SGD fluctuates.",
    )


def _torch_minibatch(
    X: np.ndarray, y: np.ndarray, size: int, epochs: int, rate: float
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Return torch's loop over a DataLoader, and over shuffled indices."""
    torch, utils = load("torch"), load("torch.utils.data")
    features, target = torch.from_numpy(X), torch.from_numpy(y)

    def epoch_by_hand() -> Iterator[Any]:
        for batch in torch.randperm(len(features)).split(size):
            yield features[batch], target[batch]

    def descend(epoch: Callable[[], Any]) -> Any:
        torch.manual_seed(0)
        w = torch.zeros(2, requires_grad=True)
        optimizer = torch.optim.SGD([w], lr=rate)
        for _ in range(epochs):
            for Xb, yb in epoch():
                optimizer.zero_grad()
                loss = 0.5 * torch.mean((Xb @ w - yb) ** 2)
                loss.backward()
                optimizer.step()
        return w.detach()

    dataset = utils.TensorDataset(features, target)
    loader = utils.DataLoader(dataset, batch_size=size, shuffle=True)
    return lambda: descend(lambda: loader), lambda: descend(epoch_by_hand)
