"""What the file of a shared library says of the functions that it imports.

An ELF file is what Linux loads: a header, program headers that say which parts go where in memory,
and a dynamic section that tells the linker what to fetch. Addresses in it count from where the
library will be loaded; the program headers turn them into places in the file.
"""

import mmap
import struct
from typing import NamedTuple

import numpy as np


class Unfit(Exception):
    """A reason, in words for a person, to leave MLX or one library alone."""


_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_NEEDED, _DT_PLTRELSZ, _DT_STRTAB, _DT_SYMTAB, _DT_RELA = 1, 2, 5, 6, 7
_DT_RELASZ, _DT_STRSZ, _DT_JMPREL, _DT_AARCH64_PAC_PLT = 8, 10, 23, 0x70000003
_X86_64, _AARCH64 = 62, 183
_SLOT_RELOCATIONS = {_X86_64: (6, 7), _AARCH64: (1025, 1026)}  # GLOB_DAT, JUMP_SLOT
_RELOCATION = np.dtype("<u8, <u4, <u4, <i8")  # slot, kind, symbol, addend


class Elf(NamedTuple):
    """The part of a shared library's file that matters here."""

    machine: int  # 62 is x86-64, 183 is aarch64
    start: int  # the virtual address of the file's first byte, nearly always 0
    needed: tuple[str, ...]  # the libraries it asks the linker for
    slots: dict[str, tuple[int, ...]]  # imported symbol -> virtual addresses of its slots
    signed: bool  # whether slots hold signed pointers (aarch64 with pointer authentication)


def parse_elf(data: bytes | memoryview | mmap.mmap) -> Elf:
    """Read the dynamic section and the relocations of a 64-bit little-endian ELF file.

    Section headers may be stripped or stale, so everything is found as the linker finds it: through
    the program headers and the dynamic section. Symbols that the library defines itself are left
    out of ``slots``: a library with a BLAS of its own inside imports none.
    """
    view = memoryview(data)
    if bytes(view[:6]) != b"\x7fELF\x02\x01":
        raise Unfit("it is not a 64-bit little-endian ELF file")
    (machine,) = struct.unpack_from("<H", view, 18)
    if machine not in _SLOT_RELOCATIONS:
        raise Unfit("it is for neither x86-64 nor aarch64")
    (table,) = struct.unpack_from("<Q", view, 32)
    width, count = struct.unpack_from("<HH", view, 54)
    headers = [struct.unpack_from("<I4xQQ8xQ", view, table + i * width) for i in range(count)]
    loads = [(offset, address, size) for kind, offset, address, size in headers if kind == _PT_LOAD]

    def offset_of(address: int) -> int:
        for offset, start, size in loads:
            if start <= address < start + size:
                return offset + address - start
        raise Unfit("its tables point outside the file")

    dynamic: dict[int, list[int]] = {}
    for kind, offset, _, size in headers:
        if kind == _PT_DYNAMIC:
            for tag, value in struct.iter_unpack("<QQ", view[offset : offset + size // 16 * 16]):
                if tag == 0:  # DT_NULL ends the section; what follows is padding
                    break
                dynamic.setdefault(tag, []).append(value)
    if not {_DT_STRTAB, _DT_STRSZ, _DT_SYMTAB} <= dynamic.keys():
        raise Unfit("it has no dynamic section")
    names, symbols = (offset_of(dynamic[tag][0]) for tag in (_DT_STRTAB, _DT_SYMTAB))
    strings = bytes(view[names : names + dynamic[_DT_STRSZ][0]])

    def text(index: int) -> str:
        return strings[index : strings.index(b"\0", index)].decode()

    slots: dict[str, tuple[int, ...]] = {}
    for tag, tag_size in ((_DT_RELA, _DT_RELASZ), (_DT_JMPREL, _DT_PLTRELSZ)):
        if tag in dynamic:
            rows = dynamic[tag_size][0] // _RELOCATION.itemsize
            table = np.frombuffer(view, _RELOCATION, rows, offset_of(dynamic[tag][0]))
            table = table[np.isin(table["f1"], _SLOT_RELOCATIONS[machine])]
            for slot, _, symbol, _ in table.tolist():
                name, section = struct.unpack_from("<I2xH", view, symbols + 24 * symbol)
                if section == 0:  # defined elsewhere
                    slots[text(name)] = (*slots.get(text(name), ()), slot)
    return Elf(
        machine=machine,
        start=next((address for offset, address, _ in loads if offset == 0), 0),
        needed=tuple(text(index) for index in dynamic.get(_DT_NEEDED, [])),
        slots=slots,
        signed=_DT_AARCH64_PAC_PLT in dynamic,
    )
