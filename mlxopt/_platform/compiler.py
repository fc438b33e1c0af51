"""Precompiled header for MLX's kernels on Linux CPUs.

MLX calls g++ on each fused kernel: 0.45 s, nearly all of it for one header of the installed package
(ml-explore/mlx#3463). With a precompiled version (`NAME.gch`) in the folder of the kernel it takes
0.1 s. The version is made once for each release of MLX, in 1 s and 50 MB.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from pathlib import Path

import mlx.core as mx

_HEADER = "mlx/backend/cpu/compiled_preamble.h"
_FLAGS = ["-std=c++17", "-O3", "-Wall", "-fPIC"]  # those of MLX: GCC rejects a version with others


def precompiled_header() -> Path:
    """Return the path of the precompiled header, made or not."""
    names = ("TMPDIR", "TMP", "TEMP", "TEMPDIR")  # in the order of C++'s temp_directory_path
    folder = next((os.environ[name] for name in names if os.environ.get(name)), "/tmp")
    version = mx.__version__  # pyright: ignore[reportAttributeAccessIssue]
    return Path(folder, "mlx", version, "cpu", f"{_HEADER}.gch")


@functools.cache
def precompile_header() -> None:
    """Make the precompiled header, once, if MLX would use it; never raise."""
    import shutil  # 5 ms with subprocess
    import subprocess

    if sys.platform != "linux" or mx.default_device() != mx.cpu:
        return
    compiler = shutil.which("g++")
    include = Path(mx.__file__).parent / "include"
    target = precompiled_header()
    if compiler is None or not (include / _HEADER).is_file() or os.path.exists(target):
        return
    # Several processes can do this at once: each writes a file of its own.
    partial = target.with_name(f"{target.name}.{os.getpid()}")
    command = [compiler, *_FLAGS, f"-I{include}", "-x", "c++-header", str(include / _HEADER)]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        target.parent.mkdir(parents=True, exist_ok=True)
        command += ["-o", str(partial)]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        partial.replace(target)
    with contextlib.suppress(OSError):
        partial.unlink(missing_ok=True)
