"""The functions that a shared library imports, read from its file.

Program headers map parts of an ELF file to addresses, counted from where the library is loaded; its
dynamic section is for the linker. Section headers are not read: they can be stripped or stale.
"""

import mmap
import struct
from typing import NamedTuple

import numpy as np


class Unfit(Exception):
    """A reason, in words for the user, to leave MLX or a library alone."""


_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_NEEDED, _DT_PLTRELSZ, _DT_STRTAB, _DT_SYMTAB, _DT_RELA = 1, 2, 5, 6, 7
_DT_RELASZ, _DT_STRSZ, _DT_JMPREL, _DT_AARCH64_PAC_PLT = 8, 10, 23, 0x70000003
_SLOT_RELOCATIONS = {62: (6, 7), 183: (1025, 1026)}  # GLOB_DAT and JUMP_SLOT, by machine
_RELOCATION = np.dtype("<u8, <u4, <u4, <i8")  # slot, kind, symbol, addend


class Elf(NamedTuple):
    """The part of the file that concerns imported functions."""

    machine: int  # 62 is x86-64, 183 is aarch64
    start: int  # the virtual address of the first byte, usually 0
    needed: tuple[str, ...]  # the libraries to load with it
    slots: dict[str, tuple[int, ...]]  # imported symbol -> virtual addresses of its slots
    signed: bool  # whether slots hold signed pointers (aarch64 with pointer authentication)


def parse_elf(data: bytes | memoryview | mmap.mmap) -> Elf:
    """Return the imports of a 64-bit little-endian ELF file; raise `Unfit` for any other."""
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
                if tag == 0:  # the end; what follows is padding
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
                if section == 0:  # not defined by the library itself
                    slots[text(name)] = (*slots.get(text(name), ()), slot)
    start = next((address for offset, address, _ in loads if offset == 0), 0)
    needed = tuple(text(index) for index in dynamic.get(_DT_NEEDED, []))
    return Elf(machine, start, needed, slots, signed=_DT_AARCH64_PAC_PLT in dynamic)
