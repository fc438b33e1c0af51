"""A faster BLAS and LAPACK for MLX on Linux, put in place at import.

MLX's CPU wheels for Linux are linked against the reference BLAS and LAPACK, up to fifty times
slower than the libraries that SciPy and MKL bring. This module lends MLX a better one, without
rebuilding it, changing a file or taking anything from NumPy.

How it works. A shared library does not call another library's function directly: it jumps through
a *slot*, eight bytes of its own memory that hold the function's address, and the dynamic linker
fills that slot in. The library's file says where the slots are: its dynamic section leads to tables
of relocations, each of which pairs a slot with a symbol such as "cblas_sgemm". ``bind`` reads those
tables from libmlx.so, opens a fast library, and does the linker's work again: it writes the fast
library's addresses into the slots of the BLAS and LAPACK functions. From then on MLX calls the fast
library. ``unbind`` writes the old addresses back.

What keeps it safe. Only memory that is writable already is written: where the linker sealed the
slots (full RELRO), nothing is done. Every slot must lead to a reference library. The fast library's
integers must have 32 bits (LP64), as those of MLX's calls have. Then MLX's answers are compared
with NumPy's, and on any doubt everything is put back. Nothing here raises, warns or prints:
``binding()`` tells what was done and why.

The environment variable ``MLXOPT_BLAS`` chooses: ``auto`` (MKL if installed, else SciPy's
OpenBLAS), ``mkl``, ``openblas``, ``none``, or the path of a library. ``OMP_NUM_THREADS``,
``OPENBLAS_NUM_THREADS``, ``MKL_NUM_THREADS`` and ``MKL_THREADING_LAYER`` mean what they always do.

Two limits. MKL cannot be opened quite privately: it shares its names with whatever is loaded later,
which matters to a library that looks for a plain ``dgemm_`` or for OpenMP; and like every user of
Intel's OpenMP it cannot meet a second copy of that runtime (MKL_THREADING_LAYER=SEQUENTIAL can).
OpenBLAS waits by spinning: on cores that other processes keep busy, small factorizations take
hundreds of times as long (NumPy's and SciPy's too), which OPENBLAS_NUM_THREADS=1 cures.

Notation: an *address* is a place in memory, an *offset* a place in a file, and a slot's *home* the
address of the reference function that it leads to when MLX is left to itself.
"""

import ctypes
import glob
import mmap
import os
import re
import sys
import threading
import time
from bisect import bisect_right
from dataclasses import dataclass
from importlib.util import find_spec
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from mlxopt._platform.elf import Unfit, parse_elf

__all__ = ["Binding", "bind", "binding", "unbind"]


@dataclass(frozen=True)
class Binding:
    """Which library does MLX's BLAS and LAPACK work, and why."""

    library: str | None  # its name; None where MLX was left alone
    path: str | None  # the file it came from
    symbols: int  # how many functions MLX now takes from it
    reason: str  # a sentence for a person: why it is so and, where that is possible, how to improve
    seconds: float  # what finding, opening and checking it cost


# --- What the running process holds --------------------------------------------------------------


class _Region(NamedTuple):
    start: int
    stop: int
    mode: str  # "r-xp": read, write, execute, private
    offset: int
    path: str


def _memory_map() -> list[_Region]:
    """The process's memory, in the order of the addresses."""
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
    """A function's address in a library; 0 if it has none of that name."""
    function = getattr(library, name, None)
    return 0 if function is None else ctypes.cast(function, ctypes.c_void_p).value or 0


def _word(address: int) -> ctypes.c_uint64:
    """The eight bytes at an address: ``.value`` reads them, or writes them in one store."""
    return ctypes.c_uint64.from_address(address)


# --- libmlx.so: which slots, and may they be written? --------------------------------------------

# Fortran compilers differ in how a function returns a complex number (cdotc_ and its kin): such
# names are never taken.
_BLAS_NAME = re.compile(r"cblas_\w+|(?![cz](?:dot[cu]|ladiv)_)i?[sdcz][a-z0-9]+_")
_REFERENCE_FILE = re.compile(r"lib(c?blas|lapacke?)[-.]")
# Distributions install other libraries under the same file name, in a folder called after them.
_OTHER_FOLDER = re.compile("openblas|flexiblas|blis|mkl|atlas|nvpl|armpl", re.IGNORECASE)

_Targets = dict[str, dict[int, int]]  # function -> slot's address -> home


def _is_reference(path: str) -> bool:
    folder, name = os.path.split(path)
    return bool(_REFERENCE_FILE.match(name)) and not _OTHER_FOLDER.search(os.path.basename(folder))


def _survey(asked: bool) -> _Targets:
    """The slots of libmlx.so to write; raises ``Unfit`` where it is to be let be.

    ``asked`` says that a library was chosen, which settles a matter of taste below.
    """
    if sys.platform != "linux":
        raise Unfit("MLX brings a fast BLAS of its own on this platform: nothing needs doing.")
    glibc = "CS_GNU_LIBC_VERSION"
    if not (glibc in os.confstr_names and os.confstr(glibc)):
        raise Unfit("The C library is not glibc, the only one for which this was tested.")
    if not hasattr(mx, "new_thread_local_stream"):
        # The self-check would start the default stream's thread: see there.
        raise Unfit("This version of MLX is too old to be checked safely: update it to 0.32.")
    regions = _memory_map()
    paths = {region.path for region in regions if os.path.basename(region.path) == "libmlx.so"}
    if len(paths) != 1:  # none in a static build, or where the file was replaced since
        raise Unfit(f"{len(paths)} files named libmlx.so are loaded, and one was expected.")
    path = paths.pop()
    with open(path, "rb") as file:
        elf = parse_elf(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    if not any(_is_reference(name) for name in elf.needed):
        raise Unfit("This build of MLX does not use the reference BLAS: nothing needs doing.")
    if not asked and any(name.startswith("libcuda.so") for name in elf.needed):
        # All arrays of such a build live in the GPU's memory manager, which the self-check would
        # start: slow at import, and lost to processes forked later.
        raise Unfit("MLX has a GPU; for a faster CPU as well, set MLXOPT_BLAS=openblas or mkl.")
    if elf.signed:
        raise Unfit("This build of MLX signs its function pointers: left alone.")

    base = next(r.start for r in regions if r.path == path and r.offset == 0) - elf.start
    targets: _Targets = {}
    for name in filter(_BLAS_NAME.fullmatch, elf.slots):
        for slot in (base + address for address in elf.slots[name]):
            if not _region(regions, slot).mode.startswith("rw"):
                raise Unfit("The slots of this build of MLX are read-only (RELRO): left alone.")
            # Python has the linker fill every slot as it imports a module, so each holds its home.
            home = _word(slot).value
            owner = _region(regions, home)
            if "x" not in owner.mode or not _is_reference(owner.path):
                raise Unfit(f"MLX takes {name} from {owner.path or 'elsewhere'}: left alone.")
            targets.setdefault(name, {})[slot] = home
    if not targets:
        raise Unfit("This build of MLX imports no BLAS function: nothing needs doing.")
    return targets


# --- The fast libraries --------------------------------------------------------------------------

_MKL_LAYERS = {  # MKL_THREADING_LAYER: MKL's own file, and the runtime that it needs
    "INTEL": ("libmkl_intel_thread", "libiomp5.so"),
    "TBB": ("libmkl_tbb_thread", "libtbb.so.12"),
    "GNU": ("libmkl_gnu_thread", "libgomp.so.1"),
    "SEQUENTIAL": ("libmkl_sequential", None),
}


def _mkl_file() -> str | None:
    """The libmkl_rt that the PyPI package ``mkl`` installed.

    ``importlib.metadata.files`` would say the same, but importing it takes 20 ms; the RECORD that
    it reads lists each file of the package relative to the folder the package is in.
    """
    for folder in sys.path:
        for record in glob.glob(os.path.join(glob.escape(folder), "mkl-*.dist-info", "RECORD")):
            with open(record, encoding="utf-8") as lines:
                for line in lines:
                    if "libmkl_rt.so" in line:
                        return os.path.realpath(os.path.join(folder, line.split(",")[0]))
    return None


def _openblas_file() -> str | None:
    """The OpenBLAS inside SciPy's wheel, found without importing SciPy, which is slow."""
    spec = find_spec("scipy")
    if spec is None or spec.origin is None:
        return None
    libraries = os.path.join(os.path.dirname(os.path.dirname(spec.origin)), "scipy.libs")
    files = glob.glob(os.path.join(glob.escape(libraries), "lib*openblas*.so*"))
    # "64_" marks a build with 64-bit integers.
    return next((path for path in sorted(files) if "64_" not in os.path.basename(path)), None)


def _prepare_mkl(path: str) -> None:
    """Refuse MKL where its first call would end the process, and load what it would look for.

    libmkl_rt opens its other files at the first call, and calls exit() where one is missing.
    """
    if os.environ.get("MKL_INTERFACE_LAYER", "").upper() not in ("", "LP64"):
        raise Unfit("MKL_INTERFACE_LAYER asks for another interface than MLX's: unset it")
    if os.environ.get("LD_BIND_NOW"):
        raise Unfit("MKL cannot be loaded with LD_BIND_NOW set")
    layer = os.environ.get("MKL_THREADING_LAYER", "").upper() or "INTEL"
    if layer not in _MKL_LAYERS:
        raise Unfit(f"MKL_THREADING_LAYER={layer} is unknown: use {', '.join(_MKL_LAYERS)}")
    folder, name = os.path.split(path)
    threads, runtime = _MKL_LAYERS[layer]
    for part in ("libmkl_core", "libmkl_intel_lp64", threads):
        if not os.path.exists(os.path.join(folder, name.replace("libmkl_rt", part))):
            raise Unfit(f"its file {part} is missing: reinstall the package mkl")
    if runtime is None:
        return
    beside = os.path.join(folder, runtime)
    beside = beside if os.path.exists(beside) else runtime
    if layer == "INTEL":
        for other in {region.path for region in _memory_map()}:
            same = os.path.realpath(other) == os.path.realpath(beside)
            if re.match(r"lib(i?omp5|omp)[-.]", os.path.basename(other)) and not same:
                # Two copies of this runtime (LLVM's libomp is one) stop the process when they meet.
                layers = "MKL_THREADING_LAYER=SEQUENTIAL or TBB"
                raise Unfit(f"{other}, another OpenMP runtime, is loaded: set {layers}")
    ctypes.CDLL(beside)


def _is_lp64(library: ctypes.CDLL, prefix: str) -> bool:
    """Whether a library's integers have 32 bits, asked so that no answer does harm.

    ``isamax`` gets a length whose lower half is 2 and whose upper half makes it negative. With
    32-bit integers it looks at both numbers and returns 2, the place of the larger; with 64-bit
    ones it sees a negative length and returns 0 without reading anything.
    """
    length, step = ctypes.c_int64((-1 << 32) + 2), ctypes.c_int64(1)
    numbers = (ctypes.c_float * 2)(1.0, 2.0)
    return library[f"{prefix}isamax_"](ctypes.byref(length), numbers, ctypes.byref(step)) == 2


def _self_check() -> str | None:
    """Compare MLX with NumPy on small problems: the first thing that is off, or None.

    The work runs on a stream of its own. A stream's thread starts with its first work and does not
    survive a fork, so work on the default stream would make MLX hang in a process forked later.
    """
    mx.default_stream(mx.cpu)  # streams are numbered as they appear: the default keeps its number
    stream = mx.new_stream(mx.cpu)
    wave = np.cos(np.arange(24.0 * 17) ** 1.5).reshape(24, 17)
    definite = wave @ wave.T + np.eye(24)  # no eigenvalue near 0, which would hide its vector
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
        for name, (got, wanted) in pairs.items():
            error = np.max(np.abs(got - wanted)) / np.max(np.abs(wanted))
            if not error <= 200 * np.finfo(tall.dtype).eps:  # NaN is not
                return f"{name} in {tall.dtype}"
    return None


# --- Binding -------------------------------------------------------------------------------------

_lock = threading.RLock()
_current: Binding | None = None
_homes: dict[int, int] = {}  # of the slots that were written
_library: ctypes.CDLL | None = None  # keeps the functions where they are


def _restore() -> None:
    for slot, home in _homes.items():
        _word(slot).value = home
    _homes.clear()


def _attach(path: str, targets: _Targets) -> tuple[str, int]:
    """Open a library, write its functions into the slots, check; its name and their number."""
    global _library
    if os.path.basename(path).startswith("libmkl_rt"):
        _prepare_mkl(path)
    library = ctypes.CDLL(path, mode=os.RTLD_LOCAL)
    prefix = next((p for p in ("", "scipy_") if hasattr(library, f"{p}isamax_")), None)
    if prefix is None:
        raise Unfit("it has no isamax_, which tells how wide its integers are")
    if not _is_lp64(library, prefix):
        raise Unfit("its integers have 64 bits, and those of MLX's calls have 32")
    # What the library lacks stays with the reference library. The mixture is sound: a routine keeps
    # nothing between calls, and what one hands to the next (pivots, Householder vectors) has one
    # layout, which LAPACK prescribes. But a wrong answer anywhere means that the library as a whole
    # is not what it seems, and then none of its functions stays.
    found = {name: _address(library, prefix + name) for name in targets}
    found = {name: address for name, address in found.items() if address}
    if not found:
        raise Unfit("it has none of the functions that MLX calls")
    try:
        for name, address in found.items():
            _homes.update(targets[name])
            for slot in targets[name]:
                _word(slot).value = address
        with np.errstate(all="ignore"):
            wrong = _self_check()
        if wrong is not None:
            raise Unfit(f"{wrong} differed from NumPy's")
    except BaseException:
        _restore()
        raise
    _library = library
    marks = {"MKL": "mkl_get_max_threads", "OpenBLAS": f"{prefix}openblas_get_config"}
    known = [name for name, mark in marks.items() if hasattr(library, mark)]
    return (known or [os.path.basename(path)])[0], len(found)


_KNOWN = {
    "mkl": ("MKL", _mkl_file, "MKL is not installed (pip install mkl)"),
    "openblas": ("OpenBLAS (SciPy)", _openblas_file, "SciPy has no OpenBLAS (pip install scipy)"),
}


def _bind() -> tuple[str | None, str | None, int, str]:
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
    """Lend MLX a fast BLAS and LAPACK where that is possible; a second call changes nothing."""
    global _current
    with _lock:
        if _current is None:
            start = time.perf_counter()
            try:
                result = _bind()
            except Unfit as unfit:
                result = None, None, 0, str(unfit)
            except Exception as error:  # an import must not fail for want of speed
                result = None, None, 0, f"MLX was left alone after {type(error).__name__}: {error}"
            _current = Binding(*result, seconds=time.perf_counter() - start)
        return _current


def binding() -> Binding:
    """Who does MLX's BLAS and LAPACK work now."""
    return _current or Binding(None, None, 0, "bind() has not been called.", 0.0)


def unbind() -> None:
    """Let MLX call the reference library again; the next ``bind`` starts afresh."""
    global _current
    with _lock:
        _restore()
        _current = None
