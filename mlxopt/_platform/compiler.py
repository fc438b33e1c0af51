"""The folder of MLX's kernels on Linux CPUs, and a precompiled header for them.

MLX compiles and loads each fused kernel in a shared temporary folder, under a name that can be
foreseen, and loads a library of that name as it is. A folder that other users can write to is
therefore not used: MLX reads TMPDIR before each kernel, so another value is another folder.

MLX calls g++ on each kernel: 0.45 s, nearly all of it for one header of the installed package
(ml-explore/mlx#3463). With a precompiled version (`NAME.gch`) in the folder of the kernel it takes
0.1 s. The version is made once for each release of MLX, in 1 s and 50 MB.
"""

from __future__ import annotations

import contextlib
import functools
import os
import stat
import sys
import threading
from pathlib import Path

import mlx.core as mx

from mlxopt._status import warn

_HEADER = "mlx/backend/cpu/compiled_preamble.h"
_FLAGS = ["-std=c++17", "-O3", "-Wall", "-fPIC"]  # those of MLX: GCC rejects a version with others
_SHARED = "/dev/shm"  # the last folder to try
_ROOM = 2**18  # bytes of a few kernels


def temporary_folder() -> str:
    """Return the folder that C++ takes for temporary files, TMPDIR or /tmp."""
    names = ("TMPDIR", "TMP", "TEMP", "TEMPDIR")  # in the order of C++'s temp_directory_path
    return next((os.environ[name] for name in names if os.environ.get(name)), "/tmp")


def kernel_folder(temporary: str) -> Path:
    """Return the folder of MLX's kernels within that of temporary files."""
    version = mx.__version__  # pyright: ignore[reportAttributeAccessIssue]
    return Path(temporary, "mlx", version, "cpu")


def problem_of(temporary: str) -> str | None:
    """Return why kernels cannot be compiled safely in this folder; None if they can.

    Its part of MLX is made where it is missing, for this user alone.
    """
    folder = kernel_folder(temporary)
    try:
        above = os.stat(temporary)
        if above.st_mode & 0o022 and not above.st_mode & stat.S_ISVTX:
            return f"other users can rename folders in {temporary}"
        for part in (*reversed(folder.parents[:2]), folder):
            with contextlib.suppress(FileExistsError):
                part.mkdir(mode=0o700)
            found = part.lstat()
            if not stat.S_ISDIR(found.st_mode):
                return f"{part} is not a folder"
            if found.st_uid != os.geteuid():
                return f"{part} belongs to another user"
            if found.st_mode & 0o022:
                return f"other users can write to {part}"
        if os.statvfs(folder).f_flag & os.ST_NOEXEC:
            return f"{temporary} does not allow programs"
        trial = folder / f".{os.getpid()}-{threading.get_ident()}"
        try:
            trial.write_bytes(bytes(_ROOM))
        finally:
            trial.unlink(missing_ok=True)
    except OSError as error:
        return f"{folder} cannot be written to ({(error.strerror or str(error)).lower()})"
    return None


@functools.cache
def start() -> tuple[str | None, str | None]:
    """Choose the folder of temporary files under which MLX compiles its kernels.

    Returns:
        the folder, None if there is none and functions run op by op; and what is wrong with that of
        the system, if anything.

    Warns:
        UserWarning: the folder is not that of the system.
    """
    first = temporary_folder()
    if sys.platform != "linux" or not (problem := problem_of(first)):
        return first, None
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    own = f"mlxopt-{os.geteuid()}"
    for folder in (f"{cache}/mlxopt", f"{first}/{own}", f"{_SHARED}/{own}"):
        with contextlib.suppress(OSError):
            os.makedirs(folder, mode=0o700, exist_ok=True)
            if os.lstat(folder).st_uid == os.geteuid() and problem_of(folder) is None:
                os.putenv("TMPDIR", folder)  # for C++ alone: os.environ and `tempfile` keep theirs
                warn(
                    f"MLX compiles its kernels in {folder}, since {problem}. To choose the folder, "
                    f"set TMPDIR before the first computation.",
                    UserWarning,
                )
                return folder, problem
    mx.disable_compile()
    warn(
        f"functions are computed op by op, more slowly: MLX has no safe folder for its kernels, "
        f"since {problem}. Set TMPDIR to a folder of your own.",
        UserWarning,
    )
    return None, problem


def precompiled_header() -> Path:
    """Return the path of the precompiled header, made or not."""
    return kernel_folder(start()[0] or temporary_folder()) / f"{_HEADER}.gch"


@functools.cache
def precompile_header() -> None:
    """Make the precompiled header, once, if MLX would use it; never raise."""
    import shutil  # 5 ms with subprocess
    import subprocess

    if sys.platform != "linux" or mx.default_device() != mx.cpu or start()[0] is None:
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
