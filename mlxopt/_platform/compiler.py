"""A faster first use of each loss on Linux CPUs: the header of MLX's kernels, precompiled.

There MLX writes each fused kernel to a file and calls g++ on it: 0.45 s a kernel, kept on disk
afterwards. Nearly all of that goes into reading one header, the same for all kernels. GCC takes a
precompiled version of a header where it finds one (`NAME.gch`) and looks beside the file that
includes it first: in MLX's own folder of kernels. With one there a kernel takes 0.1 s. It is made
once, in about a second and 50 MB, for each version of MLX; GCC itself checks that it fits and reads
the header as ever where it does not.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from pathlib import Path

import mlx.core as mx

_HEADER = "mlx/backend/cpu/compiled_preamble.h"
_FLAGS = ["-std=c++17", "-O3", "-Wall", "-fPIC"]  # those of MLX: with others GCC would not take it
_LIMIT = 60.0  # seconds


def precompiled_header() -> Path:
    """Return where the precompiled header is, or would be."""
    names = ("TMPDIR", "TMP", "TEMP", "TEMPDIR")  # C++'s temp_directory_path, which MLX asks
    folder = next((os.environ[name] for name in names if os.environ.get(name)), "/tmp")
    version = mx.__version__  # pyright: ignore[reportAttributeAccessIssue]
    return Path(folder, "mlx", version, "cpu", f"{_HEADER}.gch")


@functools.cache  # one attempt a process
def precompile_header() -> None:
    """Make the precompiled header if this machine can use one and has none; never raise."""
    import shutil  # these take 5 ms to import, and this runs once
    import subprocess

    if sys.platform != "linux" or mx.default_device() != mx.cpu:
        return
    compiler = shutil.which("g++")
    include = Path(mx.__file__).parent / "include"
    if compiler is None or not (include / _HEADER).is_file():
        return
    target = precompiled_header()
    # Several processes may be at it: each writes a file of its own, and the last one stays.
    partial = target.with_name(f"{target.name}.{os.getpid()}")
    try:
        if target.exists():
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        command = [compiler, *_FLAGS, f"-I{include}", "-x", "c++-header"]
        subprocess.run(
            [*command, str(include / _HEADER), "-o", str(partial)],
            check=True, capture_output=True, timeout=_LIMIT,
        )  # fmt: skip
        partial.replace(target)
    except (OSError, subprocess.SubprocessError):
        pass  # nothing is lost: kernels then take their usual time
    with contextlib.suppress(OSError):
        partial.unlink(missing_ok=True)
