"""A faster BLAS and LAPACK under MLX on Linux.

MLX's wheels for Linux use the reference implementation (ml-explore/mlx#660), up to fifty times
slower than OpenBLAS or MKL. `bind` makes MLX alone call such a library; no file changes.

Mechanism. A shared library calls an imported function through a *slot*: eight bytes of its own
memory that the dynamic linker fills with the function's address, its *home*. `bind` finds the slots
in the relocation tables of libmlx.so and writes a faster library's functions into them.

Safety. Slots must be writable (no full RELRO), their homes in a reference library, and the integers
of the faster library 32 bits wide (LP64). MLX's results are then compared with NumPy's; any doubt
restores every slot. Nothing raises, warns or prints: `Binding.reason` says what was done and why.

`MLXOPT_BLAS` is `auto` (MKL if installed, else SciPy's OpenBLAS), `mkl`, `openblas`, `none`, or the
path of a library. The libraries' own variables, such as `MKL_NUM_THREADS`, keep their meaning.

Limits. Libraries loaded later can resolve a plain `dgemm_` or OpenMP from MKL. OpenBLAS's threads
spin: on busy cores small factorizations take hundreds of times as long, in NumPy and SciPy too,
unless `OPENBLAS_NUM_THREADS=1`.
"""

import ctypes
import functools
import mmap
import os
import re
import sys
import threading
import time
from bisect import bisect_right
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from mlxopt._platform.elf import Unfit, parse_elf


class Binding(NamedTuple):
    """The library under MLX's BLAS and LAPACK, and why."""

    library: str | None  # its name; None if MLX was left alone
    path: str | None  # its file
    symbols: int  # the number of functions that MLX takes from it
    reason: str  # a sentence for the user, with the remedy if there is one
    seconds: float  # the time to find, open and check it


# --- The memory of the process -------------------------------------------------------------------


class _Region(NamedTuple):
    start: int
    stop: int
    mode: str  # "r-xp": read, write, execute, private
    offset: int
    path: str


def _memory_map() -> list[_Region]:
    regions = []
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            span, mode, offset, _, _, *path = line.rstrip("\n").split(None, 5)
            start, stop = (int(end, 16) for end in span.split("-"))
            regions.append(_Region(start, stop, mode, int(offset, 16), *path or [""]))
    return regions


def _region(regions: list[_Region], address: int) -> _Region:
    region = regions[bisect_right(regions, address, key=lambda region: region.start) - 1]
    return region if region.start <= address < region.stop else _Region(0, 0, "----", 0, "")


def _address(library: ctypes.CDLL, name: str) -> int:
    """Return the address of a function, 0 if the library does not have it."""
    function = getattr(library, name, None)
    return 0 if function is None else ctypes.cast(function, ctypes.c_void_p).value or 0


def _word(address: int) -> ctypes.c_uint64:
    """Return the eight bytes at an address; `.value` reads them, or writes them in one store."""
    return ctypes.c_uint64.from_address(address)


# --- The slots of libmlx.so ----------------------------------------------------------------------

# Fortran compilers differ in how a function returns a complex number (cdotc_ and the like): these
# names are excluded.
_BLAS_NAME = re.compile(r"cblas_\w+|(?![cz](?:dot[cu]|ladiv)_)i?[sdcz][a-z0-9]+_")
_REFERENCE_FILE = re.compile(r"lib(c?blas|lapacke?)[-.]")
# Distributions install other libraries under the same file name, in a folder named after them.
_OTHER_FOLDER = re.compile("openblas|flexiblas|blis|mkl|atlas|nvpl|armpl", re.IGNORECASE)


def _is_reference(path: str) -> bool:
    folder, name = os.path.split(path)
    return bool(_REFERENCE_FILE.match(name)) and not _OTHER_FOLDER.search(os.path.basename(folder))


def _survey(asked: bool) -> list[tuple[str, int, int]]:
    """Return the function, address and home of each slot; `asked`: the user named a library."""
    if sys.platform != "linux":
        raise Unfit("MLX brings a fast BLAS of its own on this platform: nothing needs doing.")
    glibc = "CS_GNU_LIBC_VERSION"
    if glibc not in os.confstr_names or not os.confstr(glibc):
        raise Unfit("The C library is not glibc, the only one for which this was tested.")
    if not hasattr(mx, "new_thread_local_stream"):  # the self-check needs such a version
        raise Unfit("This version of MLX is too old to be checked safely: update it to 0.32.")
    regions = _memory_map()
    paths = {region.path for region in regions if os.path.basename(region.path) == "libmlx.so"}
    if len(paths) != 1:  # none in a static build, or after the file was replaced
        raise Unfit(f"{len(paths)} files named libmlx.so are loaded, and one was expected.")
    path = paths.pop()
    with open(path, "rb") as file:
        elf = parse_elf(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    if not any(_is_reference(name) for name in elf.needed):
        raise Unfit("This build of MLX does not use the reference BLAS: nothing needs doing.")
    if not asked and any(name.startswith("libcuda.so") for name in elf.needed):
        # The self-check would start the GPU: slow, and unusable in processes forked later.
        raise Unfit("MLX has a GPU; for a faster CPU as well, set MLXOPT_BLAS=openblas or mkl.")
    if elf.signed:
        raise Unfit("This build of MLX signs its function pointers: left alone.")

    base = next(r.start for r in regions if r.path == path and r.offset == 0) - elf.start
    targets = []
    for name in filter(_BLAS_NAME.fullmatch, elf.slots):
        for slot in (base + address for address in elf.slots[name]):
            if not _region(regions, slot).mode.startswith("rw"):
                raise Unfit("The slots of this build of MLX are read-only (RELRO): left alone.")
            # Filled already: Python loads extension modules with RTLD_NOW.
            home = _word(slot).value
            owner = _region(regions, home)
            if "x" not in owner.mode or not _is_reference(owner.path):
                raise Unfit(f"MLX takes {name} from {owner.path or 'elsewhere'}: left alone.")
            targets.append((name, slot, home))
    if not targets:
        raise Unfit("This build of MLX imports no BLAS function: nothing needs doing.")
    return targets


# --- The fast libraries --------------------------------------------------------------------------

_MKL_LAYERS = {  # MKL_THREADING_LAYER: the file of MKL, and the runtime that it needs
    "INTEL": ("libmkl_intel_thread", "libiomp5.so"),
    "TBB": ("libmkl_tbb_thread", "libtbb.so.12"),
    "GNU": ("libmkl_gnu_thread", "libgomp.so.1"),
    "SEQUENTIAL": ("libmkl_sequential", None),
}


def _mkl_file() -> str | None:
    """Return the libmkl_rt of the PyPI package `mkl`."""
    # importlib.metadata would take 20 ms to import.
    for folder in map(Path, sys.path):
        for record in folder.glob("mkl-*.dist-info/RECORD"):
            for line in record.read_text("utf-8").splitlines():
                if "libmkl_rt.so" in line:
                    return os.path.realpath(folder / line.split(",")[0])
    return None


def _openblas_file() -> str | None:
    """Return the OpenBLAS of SciPy's wheel, without importing SciPy, which is slow."""
    spec = find_spec("scipy")
    if spec is None or spec.origin is None:
        return None
    found = Path(spec.origin).parents[1].glob("scipy.libs/lib*openblas*.so*")
    # "64_" marks a build with 64-bit integers.
    return next((str(path) for path in sorted(found) if "64_" not in path.name), None)


def _prepare_mkl(path: str) -> None:
    """Load the runtime that MKL needs; raise `Unfit` where MKL itself would call exit()."""
    if os.environ.get("MKL_INTERFACE_LAYER", "").upper() not in ("", "LP64"):
        raise Unfit("MKL_INTERFACE_LAYER asks for another interface than MLX's: unset it")
    if os.environ.get("LD_BIND_NOW"):
        raise Unfit("MKL cannot be loaded with LD_BIND_NOW set")
    layer = os.environ.get("MKL_THREADING_LAYER", "").upper() or "INTEL"
    if layer not in _MKL_LAYERS:
        raise Unfit(f"MKL_THREADING_LAYER={layer} is unknown: use {', '.join(_MKL_LAYERS)}")
    threads, runtime = _MKL_LAYERS[layer]
    file = Path(path)
    for part in ("libmkl_core", "libmkl_intel_lp64", threads):
        if not file.with_name(file.name.replace("libmkl_rt", part)).exists():
            raise Unfit(f"its file {part} is missing: reinstall the package mkl")
    if runtime is None:
        return
    beside = str(file.with_name(runtime)) if file.with_name(runtime).exists() else runtime
    if layer == "INTEL":
        # Two copies of this runtime (LLVM's libomp is one) end the process.
        for other in {region.path for region in _memory_map()}:
            same = os.path.realpath(other) == os.path.realpath(beside)
            if re.match(r"lib(i?omp5|omp)[-.]", os.path.basename(other)) and not same:
                layers = "MKL_THREADING_LAYER=SEQUENTIAL or TBB"
                raise Unfit(f"{other}, another OpenMP runtime, is loaded: set {layers}")
    ctypes.CDLL(beside)


def _is_lp64(library: ctypes.CDLL, prefix: str) -> bool:
    """Return whether the integers of a library have 32 bits; harmless either way.

    The length given to `isamax` is 2 in its lower half and negative as a whole: with 32 bits the
    result is 2, the index of the larger number; with 64 it is 0, and no number is read.
    """
    length, step = ctypes.c_int64((-1 << 32) + 2), ctypes.c_int64(1)
    numbers = (ctypes.c_float * 2)(1.0, 2.0)
    return library[f"{prefix}isamax_"](ctypes.byref(length), numbers, ctypes.byref(step)) == 2


def _self_check() -> str | None:
    """Compare MLX with NumPy on small problems; return the first difference."""
    mx.default_stream(mx.cpu)  # created first, so that it keeps its number
    # A stream's thread starts with its first work and does not survive a fork: on the default
    # stream MLX would hang in a process forked later.
    stream = mx.new_stream(mx.cpu)
    wave = np.cos(np.arange(24.0 * 17) ** 1.5).reshape(24, 17)
    definite = wave @ wave.T + np.eye(24)  # an eigenvalue near 0 would hide its eigenvector
    for kind in (mx.float32, mx.float64):
        a, b = mx.array(wave, kind), mx.array(definite, kind)
        product = mx.matmul(mx.transpose(a, stream=stream), b, stream=stream)
        outputs = (product, *mx.linalg.qr(a, stream=stream), *mx.linalg.eigh(b, stream=stream))
        mx.eval(a, b, outputs)
        tall, square, product, q, r, values, vectors = (np.array(x) for x in (a, b, *outputs))
        pairs = {
            "a matrix product": (product, tall.T @ square),
            "a QR factorization": (q @ r, tall),
            "the eigenvalues of a matrix": (values, np.linalg.eigvalsh(square)),
            "the eigenvectors of a matrix": (vectors * values @ vectors.T, square),
        }
        for name, (got, expected) in pairs.items():
            error = np.max(np.abs(got - expected)) / np.max(np.abs(expected))
            if not error <= 200 * np.finfo(tall.dtype).eps:  # also if NaN
                return f"{name} in {tall.dtype}"
    return None


# --- Binding -------------------------------------------------------------------------------------

_UNBOUND = Binding(None, None, 0, "unbind() was called.", 0.0)
_lock = threading.RLock()
_current: Binding | None = None  # None before the first computation
_homes: dict[int, int] = {}  # of the slots that were written


def _restore() -> None:
    for slot, home in _homes.items():
        _word(slot).value = home
    _homes.clear()


def _attach(path: str, targets: list[tuple[str, int, int]]) -> tuple[str, int]:
    """Write a library's functions into the slots and check; return its name and their number."""
    if os.path.basename(path).startswith("libmkl_rt"):
        _prepare_mkl(path)
    library = ctypes.CDLL(path, mode=os.RTLD_LOCAL)  # never unloaded by ctypes
    prefix = next((p for p in ("", "scipy_") if hasattr(library, f"{p}isamax_")), None)
    if prefix is None:
        raise Unfit("it has no isamax_, which tells how wide its integers are")
    if not _is_lp64(library, prefix):
        raise Unfit("its integers have 64 bits, and those of MLX's calls have 32")
    # Functions that the library lacks remain those of the reference. The mixture is sound: LAPACK
    # prescribes the layout of what routines exchange (pivots, Householder vectors).
    found = {name: _address(library, prefix + name) for name, _, _ in targets}
    if not any(found.values()):
        raise Unfit("it has none of the functions that MLX calls")
    try:
        for name, slot, home in targets:
            if found[name]:
                _homes[slot] = home
                _word(slot).value = found[name]
        with np.errstate(all="ignore"):
            wrong = _self_check()
        if wrong is not None:
            raise Unfit(f"{wrong} differed from NumPy's")
    except BaseException:
        _restore()
        raise
    marks = {"mkl_get_max_threads": "MKL", f"{prefix}openblas_get_config": "OpenBLAS"}
    names = [name for mark, name in marks.items() if hasattr(library, mark)]
    return (names or [os.path.basename(path)])[0], sum(map(bool, found.values()))


_KNOWN = {
    "mkl": ("MKL", _mkl_file, "MKL is not installed (pip install mkl)"),
    "openblas": ("OpenBLAS (SciPy)", _openblas_file, "SciPy has no OpenBLAS (pip install scipy)"),
}


def _bind() -> tuple[str, str, int, str]:
    """Return the first four fields of the binding."""
    setting = os.environ.get("MLXOPT_BLAS", "").strip()
    choice = setting.lower() or "auto"
    if choice == "none":
        raise Unfit("MLXOPT_BLAS=none asks to leave MLX alone.")
    if choice not in ("auto", *_KNOWN) and not os.path.isfile(setting):
        options = "auto, mkl, openblas, none or the path of a library"
        raise Unfit(f"There is no file {setting!r}: set MLXOPT_BLAS to {options}.")
    targets = _survey(asked=choice != "auto")
    absent, refused = [], []
    for key in _KNOWN if choice == "auto" else [choice]:
        label, find, advice = _KNOWN.get(key, (None, lambda: os.path.realpath(setting), ""))
        try:
            path = find()
            if path is None:
                absent.append(advice)
                continue
            name, count = _attach(path, targets)
        except Exception as error:
            refused.append(f"{label or setting} was not used: {error}")
        else:
            reason = "; ".join([f"MLX calls {label or name}", *refused])
            return label or name, path, count, f"{reason}."
    raise Unfit(f"MLX keeps the slow reference BLAS: {'; '.join(refused + absent)}.")


def bind() -> Binding:
    """Make MLX call a fast BLAS and LAPACK if possible; a second call changes nothing."""
    global _current
    with _lock:
        if _current is None or _current is _UNBOUND:
            began = time.perf_counter()
            try:
                result = _bind()
            except Unfit as unfit:
                result = None, None, 0, str(unfit)
            except Exception as error:  # a lack of speed must not fail a computation
                result = None, None, 0, f"MLX was left alone after {type(error).__name__}: {error}"
            _current = Binding(*result, seconds=time.perf_counter() - began)
        return _current


@functools.cache  # whose later calls are free
def start() -> None:
    """Bind at the first computation, unless `unbind` was called before."""
    if _current is None:
        bind()


def binding() -> Binding:
    """Return the binding in force; bind if nothing was computed yet."""
    return _current or bind()


def unbind() -> None:
    """Make MLX call the reference library until the next `bind`."""
    global _current
    with _lock:
        _restore()
        _current = _UNBOUND
