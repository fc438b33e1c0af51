"""The facts of `mo.show_config()` and `mlxopt doctor`."""

from __future__ import annotations

import platform
import shutil
import sys

import mlx.core as mx

from mlxopt._platform import blas, compiler
from mlxopt.engine._lowered import describe


def show_config() -> None:
    """Print what mlxopt runs on: versions, device, BLAS and compiler. For bug reports.

    `mlxopt doctor`, on the command line, adds speeds and advice.

    >>> import mlxopt as mo
    >>> mo.show_config()
    mlxopt ...
    mlx ...
    device ...
    BLAS ...
    """
    for name, text in facts():
        print(f"{name:11}  {text}")


def facts() -> list[tuple[str, str]]:
    """Return rows of a name and a text; a row without a name continues the one above."""
    where = f"{platform.system()} {platform.machine()}"
    binding = blas.binding()
    rows = [
        *((name, _version(name)) for name in ("mlxopt", "mlx", "numpy", "scipy")),
        ("Python", f"{platform.python_version()} on {where}"),
        ("device", mx.default_device().type.name.upper()),
        ("engine", describe()),
        ("BLAS", binding.library or "MLX's own"),
    ]
    if binding.reason != f"MLX calls {binding.library}.":
        rows.append(("", binding.reason))
    if binding.library is not None:
        rows.append(("in place of", "the reference BLAS of MLX's wheel (ml-explore/mlx#660)"))
    if sys.platform == "linux":
        program = shutil.which("g++")
        rows.append(("compiler", program or "none: compiled functions run op by op"))
        folder, problem = compiler.start()
        if program:
            rows.append(("kernels", folder or "none: compiled functions run op by op"))
            if problem:
                rows.append(("", f"since {problem}"))
        if program and folder:
            made = compiler.precompiled_header().exists()
            rows.append(("its header", "precompiled" if made else "precompiled by the first run"))
    return rows


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version  # takes 20 ms

    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"
