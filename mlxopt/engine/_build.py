"""C source compiled, kept in the user's cache folder, and loaded."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import stat
import tempfile
from pathlib import Path
from typing import Any

from mlxopt.engine._graph import Unsupported

_HERE = Path(__file__).parent
_FLAGS = [
    *("-O3", "-march=native", "-std=gnu11", "-shared", "-fPIC", "-fopenmp-simd"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-w"),
]


@functools.cache
def compiler() -> str | None:
    """Return the path of a C compiler; None without one."""
    import shutil

    return next(filter(None, map(shutil.which, ("gcc", "cc", "clang"))), None)


@functools.cache
def build(text: str) -> Any:
    """Return the function `run` of a C source.

    Raises:
        Unsupported: there is no compiler, or it fails.
    """
    import ctypes

    program = compiler()
    if program is None:
        raise Unsupported("no C compiler")
    text = f'#include "runtime.h"\n{text}'
    folder = _folder()
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="mlxopt-") as private:  # of mode 0700
            found = ctypes.CDLL(str(_compiled(program, text, Path(private))))
    else:
        kept = folder / f"{_key(program, text)}.so"
        if not _is_ours(kept, stat.S_ISREG):
            with tempfile.TemporaryDirectory(prefix=".", dir=folder) as private:
                os.replace(_compiled(program, text, Path(private)), kept)
        try:
            found = ctypes.CDLL(str(kept))
        except OSError:  # a part of a file, say
            kept.unlink(missing_ok=True)
            raise Unsupported("a compiled function cannot be loaded") from None
    found.run.restype, found.run.argtypes = None, [ctypes.c_void_p] * 3
    return found.run


def _compiled(program: str, text: str, folder: Path) -> Path:
    import subprocess

    source, library = folder / "run.c", folder / "run.so"
    source.write_text(text)
    command = [program, *_FLAGS, f"-I{_HERE}", str(source), "-o", str(library), "-lm"]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise Unsupported("the C compiler fails") from error
    library.chmod(0o600)
    return library


def _folder() -> Path | None:
    """Return the folder of compiled functions; None if it is not this user's alone."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "mlxopt", "engine")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # can be written to
            pass
    except (OSError, RuntimeError):  # no home
        return None
    return folder if _is_ours(folder, stat.S_ISDIR) else None


def _is_ours(path: Path, is_kind: Any) -> bool:
    """Whether a file or folder of this kind is there, and no other user can write to it."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return is_kind(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022


def _key(program: str, text: str) -> str:
    """Return a name for what the compiler makes of a source on this processor."""
    found = os.stat(program)
    headers = [path.read_text() for path in sorted(_HERE.glob("*.h"))]
    parts = [text, *headers, *_FLAGS, program, str(found.st_size), str(found.st_mtime_ns), _cpu()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@functools.cache
def _cpu() -> str:
    """Return what distinguishes the processor for -march=native."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # macOS
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("vendor_id", "cpu family", "model", "stepping", "flags", "Features")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))
