"""Object files of a model library: of which kind, for which machine, with which kernels.

Numbers are those of the System V ABI (ELF-64), of Microsoft's PE/COFF, of Apple's mach-o/loader.h
and of the WebAssembly core specification. Archives (.tar) are TVM's.
"""

from __future__ import annotations

import re
import struct
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import elfparts

_MACHINES = {
    elfparts.AARCH64: "aarch64",
    elfparts.X86_64: "x86_64",
    40: "arm",
    3: "i386",
    243: "riscv",
    164: "hexagon",
}
_COFF = {0x8664: "x86_64", 0xAA64: "aarch64"}
_MACHO = {0x01000007: "x86_64", 0x0100000C: "aarch64"}
# The same numbers in ELF and in Mach-O.
_TYPES = {1: "object", 2: "program", 3: "shared library"}
# The symbol under which TVM packs a module's device code; the second one before its ffi.
BLOBS = ("__tvm_ffi__library_bin", "__tvm_dev_mblob")
_KERNEL = re.compile(rb"__kernel void (\w+)\s*\(")


class Damaged(ValueError):  # noqa: N818 - it says what a file is
    """A file that is cut short, or not of its kind."""


@dataclass(frozen=True, kw_only=True)
class Object:
    """One object file: its name, size in bytes, and what kind of file for which machine."""

    name: str
    size: int
    format: str
    machine: str
    kind: str
    defined: tuple[str, ...] = ()
    kernels: tuple[str, ...] = ()

    def facts(self) -> dict[str, object]:
        """What a report says of it."""
        return {
            "name": self.name,
            "bytes": self.size,
            "format": self.format,
            "machine": self.machine,
            "kind": self.kind,
        }


def read(name: str, data: bytes) -> Object:
    """What an object file is. Raises Damaged for an ELF file of 32 bits, or one cut short."""
    try:
        form, machine, kind = _kind(data)
        defined = tuple(elfparts.symbols(data)) if form == "elf" else ()
    except elfparts.ElfError as error:
        raise Damaged(f"{name} {error}") from error
    kernels = tuple(sorted({k.decode() for k in _KERNEL.findall(data)}))
    return Object(
        name=name,
        size=len(data),
        format=form,
        machine=machine,
        kind=kind,
        defined=defined,
        kernels=kernels,
    )


def _kind(data: bytes) -> tuple[str, str, str]:
    if data[:4] == elfparts.MAGIC:
        kind, machine = elfparts.head(data)
        return "elf", _MACHINES.get(machine, f"machine {machine}"), _TYPES.get(kind, str(kind))
    if data[:4] == b"\xcf\xfa\xed\xfe" and len(data) >= 16:
        machine, _, kind = struct.unpack_from("<III", data, 4)
        return "mach-o", _MACHO.get(machine, f"machine {machine}"), _TYPES.get(kind, str(kind))
    if data[:4] == b"\0asm":
        return "wasm", "wasm32", "module"
    if len(data) >= 20 and (machine := struct.unpack_from("<H", data, 0)[0]) in _COFF:
        return "coff", _COFF[machine], "object"
    return "data", "", ""


def load_alignments(data: bytes) -> list[int]:
    """How the segments that are loaded of an ELF-64 file are aligned, in bytes."""
    try:
        return sorted({s.align for s in elfparts.segments(data) if s.kind == elfparts.LOAD})
    except elfparts.ElfError as error:
        raise Damaged(f"it {error}") from error


def read_library(file: Path) -> list[Object]:
    """The objects of a model library: a .tar's members, or the file itself.

    Raises Damaged for an archive that cannot be read.
    """
    if not tarfile.is_tarfile(file):
        return [read(file.name, file.read_bytes())]
    try:
        with tarfile.open(file) as archive:
            members = [m for m in archive.getmembers() if m.isfile()]
            return [read(m.name, _bytes(archive, m)) for m in members]
    except (tarfile.TarError, EOFError, OSError) as error:
        raise Damaged(f"{file.name} is a damaged archive: {error}") from error


def _bytes(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = archive.extractfile(member)
    return stream.read() if stream else b""


def prefixed(objects: Sequence[Object], prefix: str) -> str:
    """The symbol that a library of that prefix has, or nothing."""
    wanted = {f"{prefix}{blob}" for blob in BLOBS}
    return next((s for o in objects for s in o.defined if s in wanted), "")


def model_libs(objects: Sequence[Object]) -> dict[str, str]:
    """The model_lib of every model in these objects, and the symbol that says so.

    The symbol is PREFIX + a fixed name, and model_lib the prefix without its last underscore:
    upstream looks for MODEL_LIB + "_" + that name, so a prefix without one cannot be named.
    """
    found = {}
    for symbol in (s for o in objects for s in o.defined):
        for blob in BLOBS:
            prefix = symbol.removesuffix(blob)
            if prefix != symbol and prefix.endswith("_"):
                found[prefix[:-1]] = symbol
    return found


def kernels(objects: Sequence[Object]) -> Mapping[str, tuple[str, ...]]:
    """The OpenCL kernels of each object that holds any."""
    return {o.name: o.kernels for o in objects if o.kernels}
