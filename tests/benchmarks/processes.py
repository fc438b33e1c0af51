"""Measurements in a process of their own: the time of an import, and the memory of a fit.

`python -m benchmarks.processes FIT ROWS`, with tests/ on the path, prints the memory of a fit.
"""

from __future__ import annotations

import gc
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contest import Contestant, Goals, Task
from benchmarks.peers import has, load
from benchmarks.regression import classes, flight_table

_COLUMNS = 50  # of the logistic regressions


def _python(*arguments: str, cache: str | None = None) -> float:
    """Return the number printed by a Python process.

    Args:
        *arguments: its command line.
        cache: a folder for bytecode, written even if PYTHONDONTWRITEBYTECODE is set.
    """
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    if cache is not None:
        environment["PYTHONPYCACHEPREFIX"] = cache
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["the process failed"])[-1])
    return float(done.stdout)


def imports(quick: bool) -> Iterator[Task]:
    """Yield the import of mlxopt."""

    def of(modules: str) -> Callable[[], float]:
        clock = "from time import perf_counter as now; began = now()"
        code = f"{clock}; import {modules}; print(now() - began)"
        return lambda: _python("-c", code, cache=cache)

    rounds = 3 if quick else 11
    with tempfile.TemporaryDirectory() as cache:
        ours = Contestant("import mlxopt", of("mlxopt"), "mlxopt", measures=True, rounds=rounds)
        name, run = "import mlx.core, numpy", of("mlx.core, numpy")
        peer = Contestant(name, run, measures=True, rounds=rounds, goals=Goals(time=2.0))
        note = "The modules are compiled to bytecode, as after a first import."
        yield Task("import, in a fresh process", [ours, peer], note=note)


def memory(quick: bool) -> Iterator[Task]:
    """Yield for each fit the growth of a process that holds X in float32."""
    rows = 5_000 if quick else 327_346
    linear, newton, lbfgs = "sklearn-linear", "sklearn-newton", "sklearn-lbfgs"
    yield _growth("flights, LinearRegression", rows, 366, "linear", *[linear] * (not quick))
    rows = 20_000 if quick else 1_000_000
    peers = [] if quick else [newton, lbfgs]
    yield _growth("LogisticRegression", rows, _COLUMNS, "newton", *peers)
    yield _growth("LogisticRegression('lbfgs')", rows, _COLUMNS, "lbfgs", *peers[1:])


def _growth(title: str, rows: int, columns: int, fit: str, *peers: str) -> Task:
    def growth(name: str, package: str, fit: str) -> Contestant:
        run = partial(_python, "-m", "benchmarks.processes", fit, str(rows))
        return Contestant(name, run, package, measures=True, rounds=1)

    size, goals = 4.0 * rows * columns, Goals(time=0.1)
    X = Contestant("X itself, float32", lambda: size, "numpy", measures=True, rounds=1, goals=goals)
    contestants = [growth("mlxopt", "mlxopt", fit), X]
    if has("sklearn"):
        for peer in peers:
            solver = peer.partition("-")[2]
            contestants.append(growth(f"scikit-learn, {solver}", "scikit-learn", peer))
    title = f"memory of {title}, {rows:,} × {columns}"
    note = "Peak growth of the process during the fit, beyond X and y."
    return Task(title, contestants, unit="bytes", note=note)


# --- In the process ------------------------------------------------------------------------------


def _fit(name: str) -> Callable[[np.ndarray, np.ndarray], Any]:
    if name.startswith("sklearn"):
        linear = load("sklearn.linear_model")
        models = {
            "sklearn-linear": lambda: linear.LinearRegression(fit_intercept=False),
            "sklearn-newton": lambda: linear.LogisticRegression(C=np.inf, solver="newton-cholesky"),
            "sklearn-lbfgs": lambda: linear.LogisticRegression(C=np.inf),
        }
    else:
        from mlxopt.models import LinearRegression, LogisticRegression

        models = {
            "linear": lambda: LinearRegression(fit_intercept=False),
            "newton": LogisticRegression,
            "lbfgs": lambda: LogisticRegression("lbfgs"),
        }
    return lambda X, y: models[name]().fit(X, y)


def _data(name: str, rows: int) -> tuple[np.ndarray, np.ndarray]:
    if name.endswith("linear"):
        return flight_table(rows)
    problem = classes(min(rows, 1000), _COLUMNS)
    X = np.empty((rows, _COLUMNS), dtype=np.float32)
    y = np.empty(rows)
    rng = np.random.default_rng(2)
    for start in range(0, rows, 10_000):  # in blocks, so that drawing the data is not the peak
        block = rng.standard_normal((min(10_000, rows - start), _COLUMNS), dtype=np.float32)
        chance = 1.0 / (1.0 + np.exp(-(block @ problem.truth[1:] / 2)))
        X[start : start + len(block)] = block
        y[start : start + len(block)] = rng.random(len(block)) < chance
    return X, y


def _peak_growth(work: Callable[[], Any]) -> float:
    """Return the peak growth of this process during `work`, in bytes."""
    gc.collect()
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")  # reset the peak
    except OSError:
        before = _peak_ever()  # an earlier peak hides growth below it
        work()
        return _peak_ever() - before
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def _status(field: str) -> float:
    with open("/proc/self/status", encoding="ascii", errors="replace") as lines:
        return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith(field))


def _peak_ever() -> float:
    unit = 1.0 if sys.platform == "darwin" else 1024.0
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main(name: str, rows: int) -> None:
    """Print the peak growth of this process during a fit, in bytes."""
    fit = _fit(name)
    fit(*_data(name, 5_000))  # imports, threads and compiled kernels are not the fit's memory
    X, y = _data(name, rows)
    print(_peak_growth(lambda: fit(X, y)))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
