"""Apple's object files (Mach-O, 64 bits): what machine they are for, and the names they define.

mach-o/loader.h and mach-o/nlist.h. TVM writes such objects for the iPhone and the Mac, wherever it
runs, so a package for them can be looked through on any machine.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

MAGIC = b"\xcf\xfa\xed\xfe"
_MACHINES = {0x0100000C: "arm64", 0x01000007: "x86_64"}
_HEAD = 32
_SYMTAB = 2
_ENTRY = struct.Struct("<IBBHQ")
# n_type: a debugger's entry, the kind of the symbol, and whether other objects see it.
_STAB, _TYPE, _EXTERNAL = 0xE0, 0x0E, 0x01


def machine(data: bytes) -> str:
    """The machine of an object's first bytes, as people call it."""
    number = struct.unpack_from("<I", data, 4)[0]
    return f"{_MACHINES.get(number, f'machine {number:#x}')} (Apple)"


def defined(data: bytes) -> Iterator[str]:
    """The global names an object defines, without the underscore that Apple's linker adds.

    Raises ValueError for an object that is cut short.
    """
    try:
        at, count, names, size = _table(data)
        for begin in range(at, at + count * _ENTRY.size, _ENTRY.size):
            name, kind, *_ = _ENTRY.unpack_from(data, begin)
            if kind & _EXTERNAL and not kind & _STAB and kind & _TYPE:
                text = data[names + name : names + size].split(b"\0", 1)[0]
                yield text.decode("utf-8", "replace").removeprefix("_")
    except struct.error as error:
        raise ValueError("its table of symbols is cut short") from error


def _table(data: bytes) -> tuple[int, int, int, int]:
    """Where the symbols begin, how many there are, and where their names lie."""
    commands, at = struct.unpack_from("<I", data, 16)[0], _HEAD
    for _ in range(commands):
        command, size = struct.unpack_from("<II", data, at)
        if command == _SYMTAB:
            begin, count, names, length = struct.unpack_from("<IIII", data, at + 8)
            return begin, count, names, length
        if size < 8:
            raise ValueError(f"a load command of {size} bytes")
        at += size
    return 0, 0, 0, 0
