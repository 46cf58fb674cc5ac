"""What an ELF file says of itself, read with the standard library: it is in every toolchain.

`read` looks into a linked file as the system's loader does; `head`, `segments` and `symbols` serve
object files, too. The layout is the System V ABI's, for 64-bit little-endian files. Android adds a
note: the NDK's crt files write the API level, the NDK's name and its build number into
.note.android.ident (bionic's libc/arch-common/bionic/crtbrand.S).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MAGIC = b"\x7fELF"
AARCH64, X86_64 = 183, 62
LOAD = 1
_PROGRAM, _SHARED = 2, 3
_DYNAMIC, _NOTE = 2, 4
_HEAD = 64
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL_TABLES = (2, 11)  # all symbols, the loader's
_NEEDED, _STRTAB, _SYMTAB, _STRSZ, _SONAME = 1, 5, 6, 10, 14
_SYMBOL = struct.Struct("<IBBHQQ")
_ANDROID_IDENT = 1


class ElfError(Exception):
    """The file is no ELF of 64 bits, or is cut short."""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A program header: where its bytes lie in the file and in memory."""

    kind: int
    offset: int
    address: int
    size: int
    align: int


@dataclass(frozen=True, kw_only=True)
class Ident:
    """Android's note: the API level the file asks for, and the NDK that linked it."""

    api: int
    ndk: str
    build: str


@dataclass(frozen=True, kw_only=True)
class Elf:
    """A linked file: `align` is the least alignment of what is loaded, in bytes."""

    machine: int
    align: int
    soname: str
    needed: tuple[str, ...]
    defined: frozenset[str]
    ident: Ident | None


def read(path: Path) -> Elf:
    """Look into a linked ELF file. Raises ElfError."""
    content = path.read_bytes()
    try:
        with _whole():
            return _read(content)
    except ElfError as error:
        raise ElfError(f"{path.name} {error}") from error


@contextmanager
def _whole() -> Iterator[None]:
    """What points behind the file's end, or to no text, is of a file that is cut short."""
    try:
        yield
    except (struct.error, LookupError, ValueError) as error:
        raise ElfError("is cut short") from error


def _read(content: bytes) -> Elf:
    kind, machine = head(content)
    if kind not in (_PROGRAM, _SHARED):
        raise ElfError("is not linked: it is neither a program nor a shared library")
    parts = segments(content)
    loads = [s for s in parts if s.kind == LOAD]
    if not loads:
        raise ElfError("has nothing to load")
    needed, soname, defined = _dynamic(content, parts)
    return Elf(
        machine=machine,
        align=min(s.align for s in loads),
        soname=soname,
        needed=needed,
        defined=defined,
        ident=_ident(content, parts),
    )


def head(content: bytes) -> tuple[int, int]:
    """The file's type and machine. Raises ElfError for what is no ELF file of 64 bits."""
    if content[:4] != MAGIC:
        raise ElfError("is no ELF file")
    if content[4:6] != b"\x02\x01":
        raise ElfError("is not of 64 bits, little-endian")
    if len(content) < _HEAD:
        raise ElfError("is cut short")
    kind, machine = struct.unpack_from("<HH", content, 16)
    return kind, machine


def segments(content: bytes) -> list[Segment]:
    """Its program headers; none in an object file. Raises ElfError as `head` does."""
    head(content)
    with _whole():
        return list(_segments(content))


def _segments(content: bytes) -> Iterator[Segment]:
    (table,) = struct.unpack_from("<Q", content, 32)
    size, count = struct.unpack_from("<HH", content, 54)
    for i in range(count):
        kind, _, offset, address, _, filesz, _, align = struct.unpack_from(
            "<IIQQQQQQ", content, table + i * size
        )
        if offset + filesz > len(content):
            raise ElfError("is cut short")
        yield Segment(kind=kind, offset=offset, address=address, size=filesz, align=align)


def symbols(content: bytes) -> list[str]:
    """The global symbols it defines, by its sections, which every object file has.

    Raises ElfError as `head` does.
    """
    head(content)
    with _whole():
        return list(_symbols(content))


def _symbols(content: bytes) -> Iterator[str]:
    (table,) = struct.unpack_from("<Q", content, 40)
    size, count = struct.unpack_from("<HH", content, 58)
    sections = [_SECTION.unpack_from(content, table + i * size) for i in range(count)]
    for _, kind, _, _, offset, length, link, *_ in sections:
        if kind not in _SYMBOL_TABLES:
            continue
        names = sections[link][4]
        for name in _defined(content[offset : offset + length]):
            begin = names + name
            yield content[begin : content.index(b"\0", begin)].decode("utf-8", "replace")


def _place(parts: list[Segment], address: int) -> int:
    """Where in the file an address lies."""
    for s in parts:
        if s.kind == LOAD and s.address <= address < s.address + s.size:
            return s.offset + address - s.address
    raise ElfError("points outside of itself")


def _dynamic(content: bytes, parts: list[Segment]) -> tuple[tuple[str, ...], str, frozenset[str]]:
    """The libraries it needs, its own name, and the symbols it defines for others."""
    table = next((s for s in parts if s.kind == _DYNAMIC), None)
    if table is None:
        return (), "", frozenset()
    pairs = list(struct.iter_unpack("<QQ", content[table.offset : table.offset + table.size]))
    one = dict(reversed(pairs))
    start = _place(parts, one[_STRTAB])
    strings = content[start : start + one[_STRSZ]]

    def named(offset: int) -> str:
        return strings[offset : strings.index(b"\0", offset)].decode()

    needed = tuple(named(value) for tag, value in pairs if tag == _NEEDED)
    soname = named(one[_SONAME]) if _SONAME in one else ""
    first = _place(parts, one[_SYMTAB])
    found = _defined(content[first : _end_of_symbols(content, parts, one, first)])
    return needed, soname, frozenset(named(name) for name in found if name < one[_STRSZ])


def _end_of_symbols(content: bytes, parts: list[Segment], one: dict[int, int], first: int) -> int:
    """The end of the table of symbols: from the hash table that counts them."""
    if hashed := one.get(4):  # DT_HASH: the number of chains is that of symbols
        (count,) = struct.unpack_from("<I", content, _place(parts, hashed) + 4)
        return first + int(count) * _SYMBOL.size
    if gnu := one.get(0x6FFFFEF5):  # DT_GNU_HASH
        return first + _gnu_count(content, _place(parts, gnu)) * _SYMBOL.size
    return first


def _gnu_count(content: bytes, start: int) -> int:
    """How many symbols a GNU hash table covers: the last chain's end."""
    buckets, offset, bloom, _ = struct.unpack_from("<IIII", content, start)
    first = start + 16 + 8 * bloom
    last = max(struct.unpack_from(f"<{buckets}I", content, first), default=0)
    if last < offset:
        return int(offset)
    chains = first + 4 * buckets
    while not struct.unpack_from("<I", content, chains + 4 * (last - offset))[0] & 1:
        last += 1
    return int(last) + 1


def _defined(table: bytes) -> Iterator[int]:
    """The names' offsets of what is defined here."""
    whole = len(table) - len(table) % _SYMBOL.size
    for name, info, _, section, _, _ in _SYMBOL.iter_unpack(table[:whole]):
        if section and info >> 4 in (1, 2):  # global or weak
            yield name


def _ident(content: bytes, parts: list[Segment]) -> Ident | None:
    for segment in parts:
        if segment.kind != _NOTE:
            continue
        for owner, kind, body in _notes(content[segment.offset : segment.offset + segment.size]):
            if owner == b"Android" and kind == _ANDROID_IDENT and len(body) >= 4:
                words = [body[4:68], body[68:132]]
                ndk, build = (w.split(b"\0")[0].decode("ascii", "replace") for w in words)
                return Ident(api=struct.unpack_from("<I", body)[0], ndk=ndk, build=build)
    return None


def _notes(content: bytes) -> Iterator[tuple[bytes, int, bytes]]:
    at = 0
    while at + 12 <= len(content):
        named, sized, kind = struct.unpack_from("<III", content, at)
        at += 12
        owner = content[at : at + named].rstrip(b"\0")
        at += -(-named // 4) * 4
        yield owner, kind, content[at : at + sized]
        at += -(-sized // 4) * 4
