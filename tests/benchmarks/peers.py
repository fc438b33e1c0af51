"""The libraries that mlxopt is compared with, their threads, and the machine."""

from __future__ import annotations

import importlib
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import mlx.core as mx
import numpy as np

# The binding of MLX to a BLAS; `compare.py` also imports checkouts with the older name.
blas = importlib.import_module(
    "mlxopt._platform.blas" if find_spec("mlxopt._platform") else "mlxopt._blas"
)

# Import names and the names of the distributions.
PEERS = {
    "sklearn": "scikit-learn",
    "statsmodels": "statsmodels",
    "glum": "glum",
    "jax": "jax",
    "optax": "optax",
    "jaxopt": "jaxopt",
    "torch": "torch",
}
_NEEDS = {"optax": ("jax",), "jaxopt": ("jax",)}
# Each library reads one of these when it is loaded or first used.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NPROC")


def has(name: str) -> bool:
    """Whether a peer and its requirements are installed."""
    return all(find_spec(each) is not None for each in (name, *_NEEDS.get(name, ())))


def load(name: str) -> Any:
    """Import a module of a peer."""
    return importlib.import_module(name)


def absent() -> list[str]:
    """Return the distribution names of the peers that are not installed."""
    return [pip for name, pip in PEERS.items() if not has(name)]


def threads() -> int:
    """Return the number of threads for each library: OMP_NUM_THREADS, or one per core."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    return cores()


def cores() -> int:
    """Return the number of cores available to this process."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def environment() -> dict[str, str]:
    """Return an environment in which every library uses the same number of threads and the CPU."""
    settings = dict.fromkeys(_THREADS, str(threads()))
    return {**os.environ, **settings, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "1"}


def is_set_up() -> bool:
    """Whether this process runs in that environment."""
    return dict(os.environ) == environment()


def set_torch_threads() -> None:
    """Set torch's number of threads, if it is installed."""
    if has("torch"):
        load("torch").set_num_threads(threads())


def machine() -> dict[str, Any]:
    """Return properties of the machine and the versions of the packages, by name."""
    binding = blas.bind()
    numpy_blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    packages = ["mlxopt", "mlx", "numpy", "scipy", *PEERS.values()]
    return {
        "CPU": _cpu(),
        "cores": cores(),
        "threads": f"{threads()} for every library (set by {', '.join(_THREADS)} and for torch)",
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "MLX device": str(mx.default_device()).removeprefix("Device(").removesuffix(")"),
        "MLX BLAS": binding.library or "MLX's own",
        "NumPy BLAS": f"{numpy_blas['name']} {numpy_blas['version']}",
        "versions": {name: found for name in packages if (found := _version(name))},
        "absent": absent(),
    }


def busy_seconds() -> float | None:
    """Return the CPU time, in seconds, of all processes but this one and its children; None if
    the system does not report it.
    """
    try:
        with open("/proc/stat", encoding="ascii") as lines:
            user, nice, system, _, _, *interrupts = map(int, lines.readline().split()[1:9])
    except OSError:
        return None
    total = (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")
    return total - sum(os.times()[:4])


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
