"""`mlxopt doctor`: what MLX runs on, how fast it is, and what to install to make it faster."""

from __future__ import annotations

import platform
import shutil
import statistics
import sys
import timeit
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from mlxopt._platform import blas, compiler
from mlxopt._platform.config import facts
from mlxopt.cli._console import stdout

_SIDE = 1000  # of the matrices multiplied
_LENGTH = 10_000_000  # of the array summed
_REPEATS = 5


def doctor() -> None:
    """Show what MLX runs on here, how fast it is, and what would help.

    The measurements take about a second; on a busy machine, compare the ratios.
    """
    from rich.table import Table

    console = stdout()
    table = Table.grid(padding=(0, 2))
    for name, text in [*facts(), *_speeds(), _accuracy()]:
        table.add_row(name, text)
    console.print(table, markup=False)
    for line in _advice() or ["Nothing to improve."]:
        console.print(f"\n{line}", markup=False)


def _speeds() -> list[tuple[str, str]]:
    square = np.random.default_rng(0).normal(size=(_SIDE, _SIDE)).astype(np.float32)
    numbers = np.ones(_LENGTH, dtype=np.float32)
    a, x = mx.array(square), mx.array(numbers)
    flop, size = 2e-9 * _SIDE**3, 1e-9 * numbers.nbytes
    product, theirs = _seconds(lambda: mx.eval(a @ a)), _seconds(lambda: square @ square)
    total, their_total = _seconds(lambda: mx.eval(mx.sum(x))), _seconds(numbers.sum)
    speed = f"{flop / product:.0f} GFLOP/s in float32 (NumPy: {flop / theirs:.0f})"
    rate = f"{size / total:.1f} GB/s in float32 (NumPy: {size / their_total:.1f})"
    return [("product", speed), ("sum", rate)]


def _seconds(run: Callable[[], Any]) -> float:
    """Return the median time of a call after the first."""
    run()
    return statistics.median(timeit.repeat(run, number=1, repeat=_REPEATS))


def _accuracy() -> tuple[str, str]:
    x = np.linspace(-20, 20, 10_001)
    with mx.stream(mx.cpu):
        found = np.array(mx.exp(mx.array(x, dtype=mx.float64)))
    error = float(np.max(np.abs(found / np.exp(x) - 1)))
    in_float32 = "as in float32 (ml-explore/mlx#3047); all digits in a loss and in mo.special"
    verdict = "as expected" if error < 1e-14 else in_float32
    return "mx.exp, float64", f"relative error {error:.0e} on the CPU, {verdict}"


def _advice() -> list[str]:
    if sys.platform != "linux":
        return []
    lines = []
    if shutil.which("g++") is None:
        lines.append("Install g++ (apt-get install g++), so that MLX can fuse operations.")
    folder, problem = compiler.start()
    if problem:
        use = "runs functions op by op" if folder is None else f"compiles in {folder}"
        lines.append(
            f"MLX {use}, since {problem}. Set TMPDIR to a folder of your own, with room and on a "
            f"disk that allows programs."
        )
    library = blas.binding().library
    if library is None:
        lines.append("A faster BLAS would make most fits many times faster; see the reason above.")
    elif library != "MKL" and platform.machine() == "x86_64":
        lines.append("pip install mkl may make products and factorizations faster still.")
    return lines
