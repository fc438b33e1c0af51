"""A faster BLAS and LAPACK for MLX on Linux, put in place at import.

MLX's CPU wheels for Linux are linked against the reference BLAS and LAPACK, which are up to
fifty times slower than the libraries that NumPy and SciPy bring. This module lends MLX a better
one, without rebuilding it, changing a file or touching any other package.

How it works. A shared library does not call another library's function directly: it jumps through
a *slot*, eight bytes of its own memory that hold the function's address, and the dynamic linker
fills that slot in. The library's file says where the slots are: its dynamic section leads to a
table of relocations, each of which pairs a slot (an offset from the address at which the library
was loaded) with a symbol ("cblas_sgemm"). ``bind`` reads that table from libmlx.so, opens a fast
library privately, and does the linker's work again: it writes the fast library's addresses into
the slots of the BLAS and LAPACK functions. From then on MLX calls the fast library. The old values
are remembered, and ``unbind`` writes them back.

What keeps it safe. Only slots that are writable already are written: where the linker was told to
seal them (full RELRO), nothing is done. Every slot must hold what the linker would have put there,
and lead to a reference library. The fast library's integers must be 32 bits wide (LP64), as MLX's
calls assume. Afterwards MLX's answers are compared with NumPy's, and on any doubt everything is
put back. Nothing here raises, warns or prints; ``binding()`` tells what happened and why.

``MLXOPT_BLAS`` chooses: ``auto`` (MKL if installed, else SciPy's OpenBLAS), ``mkl``, ``openblas``,
``none``, or the path of a library. Variables such as ``OMP_NUM_THREADS`` and ``MKL_NUM_THREADS``
work as usual.

Notation: an *address* is a place in memory, an *offset* a place in a file; a *home* is the value a
slot has when MLX is left to itself.
"""

from __future__ import annotations

import ctypes
import glob
import mmap
import os
import re
import struct
import sys
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import NamedTuple

import mlx.core as mx
import numpy as np

__all__ = ["Binding", "bind", "binding", "unbind"]


@dataclass(frozen=True)
class Binding:
    """Which library does MLX's BLAS and LAPACK work, and why.

    Attributes:
        library: the fast library's name, or None where MLX was left alone.
        path: the file it came from.
        symbols: the number of functions that MLX now takes from it.
        reason: one sentence for a person: why it is so and, if there is one, how to do better.
        seconds: what finding, opening and checking the library cost.
    """

    library: str | None
    path: str | None
    symbols: int
    reason: str
    seconds: float


class _Unfit(Exception):
    """A reason, in words for a person, to leave MLX (or one library) alone."""


# --- What the file of a shared library says ------------------------------------------------------

_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_NEEDED, _DT_PLTRELSZ, _DT_STRTAB, _DT_SYMTAB, _DT_RELA = 1, 2, 5, 6, 7
_DT_RELASZ, _DT_STRSZ, _DT_JMPREL, _DT_AARCH64_PAC_PLT = 8, 10, 23, 0x70000003

_X86_64, _AARCH64 = 62, 183
_SLOT_RELOCATIONS = {_X86_64: (6, 7), _AARCH64: (1025, 1026)}  # GLOB_DAT, JUMP_SLOT

_RELOCATION = np.dtype([("slot", "<u8"), ("info", "<u8"), ("addend", "<i8")])
_SYMBOL = np.dtype(
    [("name", "<u4"), ("info", "u1"), ("other", "u1"), ("section", "<u2"), ("value", "<u8")]
    + [("size", "<u8")]
)


@dataclass(frozen=True)
class Elf:
    """The part of a shared library's file that matters here.

    Attributes:
        machine: the processor (62 is x86-64, 183 is aarch64).
        start: the virtual address of the file's first byte, nearly always 0.
        needed: the names of the libraries that it asks the linker for.
        slots: for each imported symbol, the virtual addresses of the slots that hold its address.
        signed: whether its slots hold signed pointers (aarch64 with pointer authentication).
    """

    machine: int
    start: int
    needed: tuple[str, ...]
    slots: dict[str, tuple[int, ...]]
    signed: bool


def parse_elf(data: bytes | memoryview | mmap.mmap) -> Elf:
    """Read the dynamic section and the relocations of a 64-bit little-endian ELF file.

    Section headers may be stripped or stale, so everything is found as the linker finds it: through
    the program headers and the dynamic section. Symbols that the library defines itself are left
    out of ``slots``: a library with a BLAS of its own inside imports none.
    """
    view = memoryview(data)
    if bytes(view[:6]) != b"\x7fELF\x02\x01":
        raise _Unfit("the file is not a 64-bit little-endian ELF library")
    (machine,) = struct.unpack_from("<H", view, 18)
    if machine not in _SLOT_RELOCATIONS:
        raise _Unfit("the processor is neither x86-64 nor aarch64")
    (table,) = struct.unpack_from("<Q", view, 32)
    width, count = struct.unpack_from("<HH", view, 54)
    headers = [struct.unpack_from("<I4xQQ8xQ", view, table + i * width) for i in range(count)]
    loads = [(offset, address, size) for kind, offset, address, size in headers if kind == _PT_LOAD]

    def offset_of(address: int) -> int:
        for offset, start, size in loads:
            if start <= address < start + size:
                return offset + address - start
        raise _Unfit("its tables point outside the file")

    dynamic: dict[int, list[int]] = {}
    for kind, offset, _, size in headers:
        if kind == _PT_DYNAMIC:
            for tag, value in struct.iter_unpack("<QQ", view[offset : offset + size // 16 * 16]):
                if tag == 0:  # DT_NULL: the end; what follows is padding
                    break
                dynamic.setdefault(tag, []).append(value)
    if not {_DT_STRTAB, _DT_STRSZ, _DT_SYMTAB} <= dynamic.keys():
        raise _Unfit("it has no dynamic section (a static library)")

    names = offset_of(dynamic[_DT_STRTAB][0])
    strings = bytes(view[names : names + dynamic[_DT_STRSZ][0]])

    def text(index: int) -> str:
        return strings[index : strings.index(b"\0", index)].decode()

    slots: dict[str, tuple[int, ...]] = {}
    for at, length in ((_DT_RELA, _DT_RELASZ), (_DT_JMPREL, _DT_PLTRELSZ)):
        if at not in dynamic:
            continue
        offset, rows = offset_of(dynamic[at][0]), dynamic[length][0] // _RELOCATION.itemsize
        relocations = np.frombuffer(view, _RELOCATION, rows, offset)
        kinds = relocations["info"] & np.uint64(0xFFFFFFFF)
        relocations = relocations[np.isin(kinds, _SLOT_RELOCATIONS[machine])]
        indices = (relocations["info"] >> np.uint64(32)).astype(np.int64)
        rows = int(indices.max(initial=0)) + 1
        symbols = np.frombuffer(view, _SYMBOL, rows, offset_of(dynamic[_DT_SYMTAB][0]))[indices]
        imported = symbols["section"] == 0
        for index, slot in zip(symbols["name"][imported], relocations["slot"][imported]):
            name = text(int(index))
            slots[name] = (*slots.get(name, ()), int(slot))

    return Elf(
        machine=machine,
        start=next((address for offset, address, _ in loads if offset == 0), 0),
        needed=tuple(text(index) for index in dynamic.get(_DT_NEEDED, [])),
        slots=slots,
        signed=_DT_AARCH64_PAC_PLT in dynamic,
    )


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


def _address(library: ctypes.CDLL, name: str) -> int | None:
    """The address of a function, looked up in a library and in those that it depends on."""
    function = getattr(library, name, None)
    return None if function is None else ctypes.cast(function, ctypes.c_void_p).value


def _word(address: int) -> ctypes.c_uint64:
    """The eight bytes at an address: ``.value`` reads them, or writes them in one store."""
    return ctypes.c_uint64.from_address(address)


# --- libmlx.so: which slots, and may they be written? --------------------------------------------

# A function that returns a complex number by value (cdotc_ and its kin) follows a different calling
# convention in different Fortran compilers; such names are never taken.
_BLAS_NAME = re.compile(r"cblas_\w+|(?!(?:[cz]dot[cu]|[cz]ladiv)_)i?[sdcz][a-z0-9]+_")
_REFERENCE_FILE = re.compile(r"lib(c?blas|lapacke?)[-.]")
_OTHER_FOLDER = re.compile("openblas|blis|mkl|atlas|nvpl|armpl", re.IGNORECASE)


def _is_reference(path: str) -> bool:
    """Whether a file is the reference BLAS or LAPACK.

    Distributions install OpenBLAS and others as a libblas.so.3 too, in a folder named after them.
    """
    folder, name = os.path.split(path)
    other = _OTHER_FOLDER.search(os.path.basename(folder))
    return _REFERENCE_FILE.match(name) is not None and "64" not in name.split("-")[0] and not other


def _survey() -> tuple[int, dict[str, dict[int, int]]]:
    """The processor, and for each BLAS function of libmlx.so its slots' addresses and homes."""
    if sys.platform != "linux":
        raise _Unfit("MLX brings a fast BLAS of its own on this platform: nothing needs doing.")
    if not os.confstr("CS_GNU_LIBC_VERSION"):  # musl and others: no such variable, or no value
        raise _Unfit("The C library is not glibc, for which alone this was tested.")
    regions = _memory_map()
    paths = {r.path for r in regions if os.path.basename(r.path) == "libmlx.so"}
    if len(paths) != 1:
        raise _Unfit(f"{len(paths)} files named libmlx.so are loaded, and one was expected.")
    path = paths.pop()
    with open(path, "rb") as file:
        elf = parse_elf(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    if not any(_is_reference(name) for name in elf.needed):
        raise _Unfit("This build of MLX does not use the reference BLAS: nothing needs doing.")
    if elf.signed:
        raise _Unfit("This build of MLX signs its function pointers, which are left alone.")

    base = next(r.start for r in regions if r.path == path and r.offset == 0) - elf.start
    everyone, own = ctypes.CDLL(None), ctypes.CDLL(path, mode=os.RTLD_NOLOAD)
    targets: dict[str, dict[int, int]] = {}
    for name, slots in elf.slots.items():
        if not _BLAS_NAME.fullmatch(name):
            continue
        # The linker's rule: what the whole process shares comes before a library's own needs.
        linked = _address(everyone, name) or _address(own, name)
        owner = _region(regions, linked or 0)
        if linked is None or "x" not in owner.mode or not _is_reference(owner.path):
            raise _Unfit(f"MLX already takes {name} from {owner.path or 'elsewhere'}: left alone.")
        for slot in (base + offset for offset in slots):
            if not _region(regions, slot).mode.startswith("rw"):
                raise _Unfit("The slots of this build of MLX are read-only (RELRO): left alone.")
            value = _word(slot).value
            # A slot that was never used leads back into libmlx.so, to the code that has the linker
            # look the symbol up. Its home is what the linker would find today: MKL adds its names
            # to those that the process shares, so a look-up after it came would find MKL instead.
            if value != linked and _region(regions, value).path != path:
                raise _Unfit(f"The slot of {name} was changed by someone else: left alone.")
            targets.setdefault(name, {})[slot] = linked
    if not targets:
        raise _Unfit("This build of MLX imports no BLAS function: nothing needs doing.")
    return elf.machine, targets


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
    it reads lists each file of the package relative to the folder the RECORD is in.
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

    libmkl_rt opens its other files at the first call, and where one is missing it calls exit().
    """
    if os.environ.get("MKL_INTERFACE_LAYER", "").upper() not in ("", "LP64"):
        raise _Unfit("MKL_INTERFACE_LAYER asks for other integers than MLX's: unset it.")
    layer = os.environ.get("MKL_THREADING_LAYER", "").upper() or "INTEL"
    if layer not in _MKL_LAYERS:
        raise _Unfit(f"MKL_THREADING_LAYER={layer} is unknown: use one of {', '.join(_MKL_LAYERS)}")
    folder, name = os.path.split(path)
    threads, runtime = _MKL_LAYERS[layer]
    for part in ("libmkl_core", "libmkl_intel_lp64", threads):
        if not os.path.exists(os.path.join(folder, name.replace("libmkl_rt", part))):
            raise _Unfit(f"MKL's file {part} is missing: reinstall the package mkl.")
    if runtime is None:
        return
    beside = os.path.join(folder, runtime)
    if layer == "INTEL":
        # Two copies of this runtime (LLVM's libomp is one too) stop the process when they meet.
        for other in {region.path for region in _memory_map()}:
            if re.match(r"lib(iomp5|omp5?)[-.]", os.path.basename(other)):
                if not (os.path.exists(beside) and os.path.samefile(other, beside)):
                    raise _Unfit("another OpenMP runtime is loaded: set MKL_THREADING_LAYER=TBB.")
    ctypes.CDLL(beside if os.path.exists(beside) else runtime)


def _is_lp64(isamax: Callable[..., int]) -> bool:
    """Whether a library's integers are 32 bits wide, asked so that no answer does harm.

    ``isamax`` gets a length whose lower half is 2 and whose upper half makes it negative. With
    32-bit integers it looks at both numbers and returns 2 (the place of the larger); with 64-bit
    ones it sees a negative length and returns 0 without reading anything.
    """
    length, step = ctypes.c_int64((-1 << 32) + 2), ctypes.c_int64(1)
    numbers = (ctypes.c_float * 2)(1.0, 2.0)
    return isamax(ctypes.byref(length), numbers, ctypes.byref(step)) == 2


def _self_check() -> str | None:
    """Compare MLX with NumPy on small problems; the first thing that is off, or None.

    The work runs on a stream of its own. A stream's thread starts with its first work and does not
    survive a fork, so work on the default stream would make MLX hang in a process forked later.
    """
    mx.default_stream(mx.cpu)  # streams are numbered as they appear: the default keeps its number
    stream = mx.new_stream(mx.cpu)
    wave = np.cos(np.arange(24.0 * 17) ** 1.5).reshape(24, 17)
    for dtype, kind in ((np.float32, mx.float32), (np.float64, mx.float64)):
        tall = wave.astype(dtype)
        square = (tall @ tall.T).astype(dtype)
        a, b = mx.array(tall, dtype=kind), mx.array(square, dtype=kind)
        product = mx.matmul(mx.transpose(a, stream=stream), b, stream=stream)
        q, r = mx.linalg.qr(a, stream=stream)
        values, vectors = mx.linalg.eigh(b, stream=stream)
        mx.eval(product, q, r, values, vectors)
        q, r, values, vectors = (np.array(x, np.float64) for x in (q, r, values, vectors))
        expected = np.linalg.eigvalsh(square.astype(np.float64))
        pairs = {
            "a matrix product": (product, tall.T.astype(np.float64) @ square),
            "QR's product": (q @ r, tall),
            "QR's basis": (q.T @ q, np.eye(17)),
            "eigh's values": (values, expected),
            "eigh's vectors": (vectors * values @ vectors.T, square),
        }
        for name, (got, wanted) in pairs.items():
            error = np.max(np.abs(np.asarray(got) - wanted))
            if not error <= 200 * np.finfo(dtype).eps * np.max(np.abs(wanted)):  # true of NaN too
                return f"{name} in {np.dtype(dtype)}"
    return None


# --- Binding -------------------------------------------------------------------------------------

_lock = threading.RLock()
_current: Binding | None = None
_homes: dict[int, int] = {}  # what to put back: slot's address → value
_library: ctypes.CDLL | None = None  # kept so that the functions stay where they are


def _restore() -> None:
    for slot, home in _homes.items():
        _word(slot).value = home
    _homes.clear()


def _attach(path: str, targets: dict[str, dict[int, int]]) -> tuple[str, int]:
    """Open a library, write its functions into the slots, check; its name and their number."""
    global _library
    if os.path.basename(path).startswith("libmkl_rt"):
        _prepare_mkl(path)
    library = ctypes.CDLL(path)  # RTLD_LOCAL
    prefix = next((p for p in ("", "scipy_") if hasattr(library, f"{p}isamax_")), None)
    if prefix is None:
        raise _Unfit("it has no isamax_, by which the width of its integers is told.")
    if not _is_lp64(library[f"{prefix}isamax_"]):
        raise _Unfit("its integers have 64 bits, and those of MLX's calls have 32.")
    found = {name: _address(library, prefix + name) for name in targets}
    # What the library lacks stays with the reference library. The mixture is sound: a routine keeps
    # nothing between calls, and what one hands to the next (pivots, Householder vectors) has one
    # layout, which LAPACK prescribes. But a wrong answer anywhere means that the library as a whole
    # is not what it seems, and then none of its functions stays.
    found = {name: address for name, address in found.items() if address is not None}
    if not found:
        raise _Unfit("it has none of the functions that MLX calls.")
    try:
        for name, address in found.items():
            for slot, home in targets[name].items():
                _homes[slot] = home
                _word(slot).value = address
        with np.errstate(all="ignore"):
            wrong = _self_check()
        if wrong is not None:
            raise _Unfit(f"{wrong} differed from NumPy's, so everything was put back.")
    except BaseException:
        _restore()
        raise
    _library = library
    marks = {"MKL": "mkl_get_max_threads", "OpenBLAS": prefix + "openblas_get_config"}
    names = [name for name, mark in marks.items() if hasattr(library, mark)]
    return (names or [os.path.basename(path)])[0], len(found)


def _candidates(choice: str, machine: int) -> Iterator[tuple[str, str | None, str]]:
    """The libraries to try in turn: a name, a file, and how to get it where it is absent."""
    if choice in ("auto", "mkl"):
        absent = "MKL is not installed (pip install mkl)"
        if machine != _X86_64:
            absent = "MKL is for x86-64 alone"
        yield "MKL", _mkl_file() if machine == _X86_64 else None, absent
    if choice in ("auto", "openblas"):
        absent = "there is no OpenBLAS of SciPy's (pip install scipy)"
        yield "OpenBLAS (SciPy)", _openblas_file(), absent


def _bind() -> tuple[str | None, str | None, int, str]:
    setting = os.environ.get("MLXOPT_BLAS", "")
    choice = setting.strip().lower() or "auto"
    if choice == "none":
        return None, None, 0, "MLXOPT_BLAS=none asks to leave MLX alone."
    if choice in ("auto", "mkl", "openblas"):
        machine, targets = _survey()
        candidates = _candidates(choice, machine)
    elif os.path.isfile(setting):
        _, targets = _survey()
        candidates = iter([("", os.path.realpath(setting), "")])
    else:
        known = "auto, mkl, openblas, none or the path of a library"
        return None, None, 0, f"MLXOPT_BLAS={setting!r} is no file: use {known}."

    failures = []
    for label, path, absent in candidates:
        if path is None:
            failures.append(absent)
            continue
        try:
            name, count = _attach(path, targets)
        except Exception as error:
            failures.append(f"{label or path} was not used: {error}".rstrip("."))
            continue
        return label or name, path, count, f"MLX takes its BLAS and LAPACK from {label or name}."
    return None, None, 0, "MLX keeps the slow reference BLAS: " + "; ".join(failures) + "."


def bind() -> Binding:
    """Lend MLX a fast BLAS and LAPACK if that is possible; asked again, say what was done."""
    global _current
    with _lock:
        if _current is None:
            start = time.perf_counter()
            try:
                result = _bind()
            except _Unfit as unfit:
                result = None, None, 0, str(unfit)
            except Exception as error:  # an import must not fail for want of speed
                result = None, None, 0, f"MLX was left alone after {type(error).__name__}: {error}"
            _current = Binding(*result, seconds=time.perf_counter() - start)
        return _current


def binding() -> Binding:
    """The library that does MLX's BLAS and LAPACK work now."""
    return _current or Binding(None, None, 0, "bind() has not been called.", 0.0)


def unbind() -> None:
    """Put MLX's own slots back; the next ``bind`` starts afresh."""
    global _current
    with _lock:
        _restore()
        _current = None
