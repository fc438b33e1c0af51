"""The MLX backend: that there is one, that it is fast, and which device float64 needs."""

from __future__ import annotations

import contextlib
from typing import Any

try:
    import mlx.core as mx
except ImportError as error:  # the bare Linux wheel brings no backend at all
    raise ImportError(
        "mlxopt found no MLX backend. On Linux, install one with pip install 'mlxopt[cpu]' or "
        "pip install 'mlxopt[cuda]'; on macOS, pip install mlxopt brings it. "
        f"(MLX said: {error})"
    ) from None

from mlxopt import _blas
from mlxopt._tree import leaves

_blas.bind()


def device_for(*trees: Any) -> contextlib.AbstractContextManager[Any]:
    """Return a context for computing with these trees: the CPU if any holds float64, which only
    the CPU can compute, else whatever device is the default.
    """
    arrays = (leaf for leaf in leaves(trees) if isinstance(leaf, mx.array))
    if any(array.dtype == mx.float64 for array in arrays):
        return mx.stream(mx.cpu)
    return contextlib.nullcontext()
