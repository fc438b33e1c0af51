"""What comes before a computation: its device, a fast BLAS, a thread that can compute."""

from __future__ import annotations

import contextlib
from typing import Any

import mlx.core as mx

from mlxopt._platform import blas, compiler, threads
from mlxopt._tree import leaves


def device_for(*trees: Any) -> contextlib.AbstractContextManager[Any]:
    """Return a context: the CPU if any leaf is float64, which needs it, else the default device."""
    arrays = (leaf for leaf in leaves(trees) if isinstance(leaf, mx.array))
    if any(array.dtype == mx.float64 for array in arrays):
        return mx.stream(mx.cpu)
    return contextlib.nullcontext()


def begin() -> None:
    """Prepare the process and the thread for their first computation; else do nothing.

    Raises:
        RuntimeError: the process is the child of a fork that MLX does not survive.
    """
    blas.start()
    compiler.start()
    if not hasattr(threads.local, "end"):
        threads.enter()
