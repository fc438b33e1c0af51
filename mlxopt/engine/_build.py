"""C source compiled and loaded."""

from __future__ import annotations

import functools
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
    """Return the functions of a C source, `run` among them.

    Raises:
        Unsupported: there is no compiler, or it fails.
    """
    import ctypes
    import subprocess

    program = compiler()
    if program is None:
        raise Unsupported("no C compiler")
    text = f'#include "runtime.h"\n{text}'
    with tempfile.TemporaryDirectory(prefix="mlxopt-") as folder:  # of mode 0700
        source, library = Path(folder, "run.c"), Path(folder, "run.so")
        source.write_text(text)
        command = [program, *_FLAGS, f"-I{_HERE}", str(source), "-o", str(library), "-lm"]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise Unsupported("the C compiler fails") from error
        found = ctypes.CDLL(str(library))
    found.run.restype, found.run.argtypes = None, [ctypes.c_void_p] * 3
    return found
