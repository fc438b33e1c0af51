"""`mlxopt doctor`: what MLX runs on here, how fast it is, and what to install to do better."""

from __future__ import annotations

import platform
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import mlx.core as mx
import numpy as np

from mlxopt._platform import blas
from mlxopt._platform.compiler import precompiled_header
from mlxopt.cli._console import stdout

_SIDE = 1000  # of the matrices multiplied
_LENGTH = 10_000_000  # of the array summed
_REPEATS = 5


def doctor() -> None:
    """Show what MLX runs on here, how fast, and what would help.

    Measures for about a second; on a busy machine, look at the ratios rather than the numbers.
    """
    from rich.table import Table

    console = stdout()
    table = Table.grid(padding=(0, 2))
    for name, text in [*_versions(), *_backend(), *_speeds(), *_accuracy()]:
        table.add_row(name, text)
    console.print(table, markup=False)
    advice = _advice()
    for line in advice or ["Nothing to improve."]:
        console.print(f"\n{line}", markup=False)


def _versions() -> list[tuple[str, str]]:
    packages = ["mlxopt", "mlx", "numpy", "scipy"]
    found = ", ".join(f"{name} {_version(name)}" for name in packages)
    where = f"{platform.system()} {platform.machine()}"
    return [("versions", found), ("Python", f"{platform.python_version()} on {where}")]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"


def _backend() -> list[tuple[str, str]]:
    binding = blas.start()
    compiler = shutil.which("g++")
    rows = [
        ("device", mx.default_device().type.name.upper()),
        ("BLAS", binding.library or "MLX's own"),
    ]
    if binding.reason != f"MLX calls {binding.library}.":  # then it says more than the line above
        rows.append(("", binding.reason))
    if sys.platform == "linux":
        rows.append(("compiler", compiler or "none: compiled functions run op by op"))
        if compiler:
            made = precompiled_header().exists()
            text = "precompiled, which makes kernels quick to compile"
            rows.append(
                ("its header", text if made else "not precompiled yet: a first run does it")
            )
    return rows


def _speeds() -> list[tuple[str, str]]:
    rng = np.random.default_rng(0)
    square = rng.normal(size=(_SIDE, _SIDE)).astype(np.float32)
    numbers = np.ones(_LENGTH, dtype=np.float32)
    on_mlx, long = mx.array(square), mx.array(numbers)
    mx.eval(on_mlx, long)
    flop, size = 2e-9 * _SIDE**3, 1e-9 * numbers.nbytes
    product = _seconds(lambda: mx.eval(on_mlx @ on_mlx)), _seconds(lambda: square @ square)
    total = _seconds(lambda: mx.eval(mx.sum(long))), _seconds(numbers.sum)
    return [
        (
            "product",
            f"{flop / product[0]:.0f} GFLOP/s in float32 (NumPy: {flop / product[1]:.0f})",
        ),
        ("sum", f"{size / total[0]:.1f} GB/s in float32 (NumPy: {size / total[1]:.1f})"),
    ]


def _seconds(run: Callable[[], Any]) -> float:
    """Return the median time of a call that has been warmed up."""
    run()
    times = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def _accuracy() -> list[tuple[str, str]]:
    x = np.linspace(-20, 20, 10_001)
    with mx.stream(mx.cpu):
        found = np.array(mx.exp(mx.array(x, dtype=mx.float64)))
    error = float(np.max(np.abs(found / np.exp(x) - 1)))
    good = "as it should be" if error < 1e-14 else "no better than float32: use mo.special.exp"
    return [("mx.exp, float64", f"relative error {error:.0e} on the CPU: {good}")]


def _advice() -> list[str]:
    lines = []
    on_linux = sys.platform == "linux"
    if on_linux and shutil.which("g++") is None:
        lines.append(
            "Install g++ (on Debian: apt-get install g++), so that MLX can fuse operations."
        )
    if on_linux and blas.start().library is None:
        lines.append("A faster BLAS would make most fits many times faster; see the reason above.")
    elif on_linux and platform.machine() == "x86_64" and blas.start().library != "MKL":
        lines.append("pip install mkl may make products and factorizations faster still.")
    return lines
