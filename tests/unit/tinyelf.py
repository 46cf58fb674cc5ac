"""Objects and model libraries of a few hundred bytes, written by hand: ELF64 as the format says."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

AARCH64, X86_64 = 183, 62
_NULL, _PROGBITS, _SYMTAB, _STRTAB = 0, 1, 2, 3
_GLOBAL_OBJECT = 0x11


def write_object(symbols: Sequence[str], machine: int = AARCH64) -> bytes:
    """An object file whose data section has these global symbols."""
    names = b"\0" + b"".join(s.encode() + b"\0" for s in symbols)
    table, at = struct.pack("<IBBHQQ", 0, 0, 0, 0, 0, 0), 1
    for symbol in symbols:
        table += struct.pack("<IBBHQQ", at, _GLOBAL_OBJECT, 0, 1, 0, 8)
        at += len(symbol) + 1
    kinds = b"\0.data\0.symtab\0.strtab\0"
    bodies = [bytes(8), table, names, kinds]
    offsets = [64 + sum(map(len, bodies[:i])) for i in range(4)]
    sections = [
        (0, _NULL, 0, 0, 0, 0, 0),
        (1, _PROGBITS, offsets[0], 8, 0, 0, 0),
        (7, _SYMTAB, offsets[1], len(table), 3, 1, 24),
        (15, _STRTAB, offsets[2], len(names), 0, 0, 0),
        (15, _STRTAB, offsets[3], len(kinds), 0, 0, 0),
    ]
    rows = [
        struct.pack("<IIQQQQIIQQ", name, kind, 0, 0, offset, size, link, info, 1, each)
        for name, kind, offset, size, link, info, each in sections
    ]
    head = struct.pack(
        "<4sBBB9sHHIQQQIHHHHHH",
        b"\x7fELF", 2, 1, 1, bytes(9), 1, machine, 1, 0, 0, 64 + sum(map(len, bodies)),
        0, 64, 0, 0, 64, len(sections), len(sections) - 1,
    )  # fmt: skip
    return head + b"".join(bodies) + b"".join(rows)


def write_library(
    path: Path,
    prefix: str | None,
    *,
    machine: int = AARCH64,
    suffix: str = "__tvm_ffi__library_bin",
    compressed: bool = True,
) -> Path:
    """A model library as TVM writes it: lib0.o, and the device's code under the prefix."""
    device = [] if prefix is None else [f"{prefix}{suffix}"]
    objects = {"lib0.o": ["main"], "devc.o": device}
    data = _tar({name: write_object(symbols, machine) for name, symbols in objects.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if compressed else data)
    return path


def _tar(members: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()
