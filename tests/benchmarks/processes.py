"""What is measured in a process of its own: the time of an import, and the memory of a fit.

`python -m benchmarks.processes FIT ROWS`, in tests/, is such a process.
"""

from __future__ import annotations

import gc
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contest import Contestant, Goals, Task
from benchmarks.peers import has, load
from benchmarks.regression import classes, flight_table

_COLUMNS = 50  # of the logistic regressions


def _python(*arguments: str, cache: str | None = None) -> float:
    """Return the number that a Python process prints.

    Args:
        *arguments: of the command line.
        cache: a folder for the bytecode of what is imported, even where none is to be written.
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
        yield Task(
            "import, in a fresh process",
            [
                Contestant("import mlxopt", of("mlxopt"), "mlxopt", measures=True, rounds=rounds),
                Contestant(
                    "import mlx.core, numpy", of("mlx.core, numpy"), measures=True, rounds=rounds,
                    goals=Goals(time=2.0),
                ),
            ],
            note="Compiled to bytecode before, as after any first import.",
        )  # fmt: skip


def memory(quick: bool) -> Iterator[Task]:
    """Yield for each fit by how much it makes a process grow that holds X in float32."""
    rows = 5_000 if quick else 327_346
    linear, newton, lbfgs = "sklearn-linear", "sklearn-newton", "sklearn-lbfgs"
    yield _growth("flights, LinearRegression", rows, 366, "linear", *[linear] * (not quick))
    rows = 20_000 if quick else 1_000_000
    peers = [] if quick else [newton, lbfgs]
    yield _growth("LogisticRegression", rows, _COLUMNS, "newton", *peers)
    yield _growth("LogisticRegression('lbfgs')", rows, _COLUMNS, "lbfgs", *peers[1:])


def _growth(title: str, rows: int, columns: int, fit: str, *peers: str) -> Task:
    def grow(name: str) -> Callable[[], float]:
        return lambda: _python("-m", __name__, name, str(rows))

    size = 4.0 * rows * columns
    contestants = [
        Contestant("mlxopt", grow(fit), "mlxopt", measures=True, rounds=1),
        Contestant(
            "X itself, float32", lambda: size, "numpy", measures=True, rounds=1,
            goals=Goals(time=0.1),
        ),
    ]  # fmt: skip
    if has("sklearn"):
        contestants += [
            Contestant(
                f"scikit-learn, {peer.partition('-')[2]}", grow(peer), "scikit-learn",
                measures=True, rounds=1,
            )
            for peer in peers
        ]  # fmt: skip
    return Task(
        f"memory of {title}, {rows:,} × {columns}", contestants, unit="bytes",
        note="Growth of the process at its peak, y and X being there already.",
    )  # fmt: skip


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
    for start in range(0, rows, 10_000):  # in blocks, or making the data would be the peak
        block = rng.standard_normal((min(10_000, rows - start), _COLUMNS), dtype=np.float32)
        chance = 1.0 / (1.0 + np.exp(-(block @ problem.truth[1:] / 2)))
        X[start : start + len(block)] = block
        y[start : start + len(block)] = rng.random(len(block)) < chance
    return X, y


def _peak_growth(work: Callable[[], Any]) -> float:
    """Return by how many bytes the process grows while it works, at its largest."""
    gc.collect()
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")  # forget the peak so far
    except OSError:
        before = _peak_ever()  # an earlier peak hides what stays below it
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
    """Print by how many bytes a fit makes the process grow."""
    fit = _fit(name)
    fit(*_data(name, 5_000))  # imports, threads and compiled kernels stay, whatever is fitted
    X, y = _data(name, rows)
    print(_peak_growth(lambda: fit(X, y)))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
