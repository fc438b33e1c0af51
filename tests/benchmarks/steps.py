"""Full-batch SGD: time per step of `minimize` against the plain MLX loop, on one BLAS, in one run.

Run it with `python tests/benchmarks/steps.py`. The two are timed alternately, each after a short
rest (spinning threads of one would slow the other). On a shared machine only the ratio of the
medians is meaningful.
"""

from __future__ import annotations

import argparse
import statistics
import time

import mlx.core as mx
import numpy as np

import mlxopt as mo

SIZES = [(32, 2, 10_000), (1_000, 100, 10_000), (10_000, 100, 1_200)]
RATE = 0.01


def loss(w: mx.array, X: mx.array, y: mx.array) -> mx.array:
    return 0.5 * mx.mean(mx.square(X @ w - y))


def plain(X: mx.array, y: mx.array, steps: int) -> mx.array:
    """Return the parameters after the loop of MLX's documentation."""
    w = mx.zeros(X.shape[1])
    gradient = mx.grad(loss)
    for _ in range(steps):
        w = w - RATE * gradient(w, X, y)
        mx.eval(w)
    return w


def ours(X: mx.array, y: mx.array, steps: int) -> mx.array:
    result = mo.minimize(
        loss, mx.zeros(X.shape[1]), mo.SGD(RATE), X, y, tol=0, max_steps=steps, progress=False
    )
    return result.params


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, help="the same number of steps for every size")
    options = parser.parse_args()
    print(f"{'rows × columns':>16} {'plain MLX':>12} {'minimize':>12} {'speed-up':>9}   (per step)")
    for rows, columns, steps in SIZES:
        steps = options.steps or steps
        rng = np.random.default_rng(0)
        X = rng.normal(size=(rows, columns)).astype(np.float32)
        y = mx.array(X @ rng.normal(size=columns).astype(np.float32))
        X = mx.array(X)
        times: dict[str, list[float]] = {"plain": [], "ours": []}
        answers = [np.array(run(X, y, 50)) for run in (plain, ours)]  # also compiles
        np.testing.assert_allclose(answers[0], answers[1], rtol=1e-4, atol=1e-6)
        for _ in range(options.repeats):
            for name, run in (("plain", plain), ("ours", ours)):
                time.sleep(0.4)
                began = time.perf_counter()
                mx.eval(run(X, y, steps))
                times[name].append((time.perf_counter() - began) / steps)
        slow, fast = (statistics.median(times[name]) for name in ("plain", "ours"))
        print(
            f"{rows:>8,} × {columns:<5} {slow * 1e6:>9.1f} µs {fast * 1e6:>9.1f} µs"
            f" {slow / fast:>8.2f}×"
        )


if __name__ == "__main__":
    main()
