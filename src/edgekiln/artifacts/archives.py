"""Archives of objects: static libraries (ar), and the .tar that MLC's compile writes.

A library for a phone made by TVM carries its device code in an object of its own, under the
symbol PREFIX__tvm_ffi__library_bin (or __tvm_dev_mblob before TVM's ffi): an app that links two
models needs two prefixes.
"""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from edgekiln import units
from edgekiln.artifacts import Facts, damaged, macho
from edgekiln.artifacts.elf import MAGIC, machine_name

_AR = b"!<arch>\n"
_HEAD = 60
_BLOBS = ("__tvm_ffi__library_bin", "__tvm_dev_mblob")
_LARGEST_OBJECT = 1 << 28
_GZIP, _GZIP_WINDOW = b"\x1f\x8b", 31
_BLOCK = 512


def is_static(start: bytes) -> bool:
    """Whether a file that begins so is a static library."""
    return start.startswith(_AR)


def is_tar(start: bytes) -> bool:
    """Whether a file that begins so is a tar archive (POSIX and GNU), compressed or not.

    TVM runs `tar -czf`, so the .tar that MLC's compile writes is a compressed one.
    """
    if start.startswith(_GZIP):
        try:
            start = zlib.decompressobj(_GZIP_WINDOW).decompress(start, _BLOCK)
        except zlib.error:
            return False
    return start[257:262] == b"ustar"


def read_static(path: Path) -> Facts:
    """A static library's members and the symbols its index names."""
    try:
        members, symbols = _ar(path)
    except (ValueError, struct.error, UnicodeDecodeError) as error:
        raise damaged(path, "static library", error) from error
    return _facts("static library", members, symbols)


def read_tar(path: Path) -> Facts:
    """A tar's members; of those that are objects, the symbols they define."""
    members, symbols = [], []
    try:
        with tarfile.open(path) as archive:
            for entry in archive:
                if not entry.isfile():
                    continue
                stream = archive.extractfile(entry)
                data = stream.read() if stream and entry.size <= _LARGEST_OBJECT else b""
                members.append(_member(entry.name, entry.size, data))
                if data[:4] == MAGIC:
                    symbols += list(_defined(io.BytesIO(data)))
                elif data[:4] == macho.MAGIC:
                    symbols += list(macho.defined(data))
    except (tarfile.TarError, EOFError, OSError) as error:
        raise damaged(path, "tar archive", error) from error
    except _elf_errors() as error:
        raise damaged(path, "object in a tar archive", error) from error
    return _facts("tar archive", members, symbols)


def _ar(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    members, symbols, names = [], [], b""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(len(_AR))
        while head := file.read(_HEAD):
            if len(head) < _HEAD or head[58:60] != b"`\n":
                raise ValueError("a member has no proper head")
            name, length = head[:16].decode("ascii").rstrip(), int(head[48:58])
            begin = file.tell()
            if begin + length > size:
                raise ValueError(f"{name} should end at byte {begin + length} of {size}")
            if name in ("/", "/SYM64/"):
                symbols = _index(file.read(length), 8 if name == "/SYM64/" else 4)
            elif name == "//":
                names = file.read(length)
            else:
                members.append(_member(_long(name, names), length, file.read(min(length, 64))))
            file.seek(begin + length + length % 2)
    return members, symbols


def _long(name: str, names: bytes) -> str:
    """GNU's spelling: /12 stands for the name at byte 12 of the table; others end in /."""
    if name.startswith("/") and name[1:].isdigit():
        at = int(name[1:])
        return names[at:].split(b"/\n")[0].decode("utf-8", "replace")
    return name.removesuffix("/")


def _index(data: bytes, width: int) -> list[str]:
    """The archive's symbol table: a count, that many offsets (big-endian), then the names."""
    count = int.from_bytes(data[:width], "big")
    return [n.decode("utf-8", "replace") for n in data[width * (1 + count) :].split(b"\0")[:count]]


def _member(name: str, size: int, data: bytes) -> dict[str, Any]:
    member: dict[str, Any] = {"name": name, "size": size}
    if data[:4] == MAGIC and len(data) >= 20:
        order = "<" if data[5] == 1 else ">"
        member["abi"] = machine_name(struct.unpack_from(f"{order}H", data, 18)[0])
    elif data[:4] == macho.MAGIC and len(data) >= 8:
        member["abi"] = macho.machine(data)
    return member


def _elf_errors() -> tuple[type[Exception], ...]:
    from elftools.common.exceptions import ELFError
    from elftools.construct import ConstructError

    return (ELFError, ConstructError, ValueError, KeyError, IndexError, AttributeError)


def _defined(stream: IO[bytes]) -> Iterator[str]:
    """The global symbols an object defines."""
    from elftools.elf.elffile import ELFFile
    from elftools.elf.sections import SymbolTableSection

    for section in ELFFile(stream).iter_sections():
        if isinstance(section, SymbolTableSection):
            for symbol in section.iter_symbols():
                bound = symbol["st_info"]["bind"] != "STB_LOCAL"
                if bound and symbol["st_shndx"] != "SHN_UNDEF":
                    yield symbol.name


def _facts(kind: str, members: list[dict[str, Any]], symbols: list[str]) -> Facts:
    blobs = sorted({s for s in symbols if s.endswith(_BLOBS)})
    prefixes = sorted({s.removesuffix(b) for s in blobs for b in _BLOBS if s.endswith(b)})
    abis = sorted({m["abi"] for m in members if "abi" in m})
    rows = [("kind", f"{kind}, {len(members)} members, {len(symbols)} symbols")]
    rows += [("for", ", ".join(abis))] if abis else []
    rows += [("TVM code", ", ".join(blobs))] if blobs else []
    rows += [
        (m["name"], f"{units.size(m['size'])}{' ' + m['abi'] if 'abi' in m else ''}")
        for m in members[:20]
    ]
    rows += [("…", f"{len(members) - 20} more")] if len(members) > 20 else []
    facts = {"members": members, "symbols": len(symbols), "abis": abis}
    facts |= {"tvm_symbols": blobs, "tvm_prefixes": prefixes}
    return Facts(kind=kind, facts=facts, rows=tuple(rows))
