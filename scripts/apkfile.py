"""An APK read as what it is: a zip whose native libraries are mapped where they lie.

It can be written anew, each library at the beginning of a page. Offsets are those of PKWARE's
APPNOTE; the block of signatures before the central directory is
Android's "APK Signing Block 42".
"""

from __future__ import annotations

import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path

_LOCAL_HEAD = 30
_CENTRAL_HEAD = 46
_END_HEAD = 22
# The field that Android's tools pad with: what an entry is aligned to, then zeros. apksigner reads
# it, and keeps to it when it moves entries; without it some versions align libraries to 4 KB.
_ALIGNMENT = 0xD935
_ZIP_ALIGNMENT = 4
_BLOCK = b"APK Sig Block 42"
_SCHEMES = {0x7109871A: "v2", 0xF05368C0: "v3", 0x1B93AD61: "v3.1"}


@dataclass(frozen=True, kw_only=True)
class Library:
    """A native library in an APK: its name, whether it is stored as it is, where it begins."""

    name: str
    stored: bool
    offset: int


def libraries(apk: Path) -> list[Library]:
    """The native libraries of an APK."""
    found = []
    with zipfile.ZipFile(apk) as archive, apk.open("rb") as file:
        for entry in archive.infolist():
            if not (entry.filename.startswith("lib/") and entry.filename.endswith(".so")):
                continue
            file.seek(entry.header_offset)
            head = file.read(_LOCAL_HEAD)
            name, extra = struct.unpack_from("<HH", head, 26)
            found.append(
                Library(
                    name=entry.filename,
                    stored=entry.compress_type == zipfile.ZIP_STORED,
                    offset=entry.header_offset + _LOCAL_HEAD + name + extra,
                )
            )
    return found


def misaligned(apk: Path, page_size: int) -> list[str]:
    """The libraries that are stored as they are and do not begin at a page of that many bytes."""
    return [lib.name for lib in libraries(apk) if lib.stored and lib.offset % page_size]


def align(apk: Path, aligned: Path, page_size: int) -> None:
    """Write an APK anew with each stored library at a page, and other stored entries at 4 bytes.

    A page has at most 32768 bytes: the field that says so has two. What lies between the entries
    and the central directory (signatures) is left out. Raises
    RuntimeError for an archive of a kind that Android's tools do not make.
    """
    with zipfile.ZipFile(apk) as archive:
        entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
        start = archive.start_dir
    data = apk.read_bytes()
    table_size, _, comment = struct.unpack_from("<IIH", data, len(data) - _END_HEAD + 12)
    if data[-_END_HEAD:][:4] != b"PK\x05\x06" or comment:
        raise RuntimeError(f"{apk.name} is no plain zip file")
    ends = [*(entry.header_offset for entry in entries[1:]), _entries_end(data, start)]
    moved = {}
    with aligned.open("wb") as file:
        for entry, end in zip(entries, ends, strict=True):
            moved[entry.header_offset] = file.tell()
            file.write(_padded(data[entry.header_offset : end], entry, file.tell(), page_size))
        begin = file.tell()
        file.write(_moved(data[start : start + table_size], moved))
        file.write(data[-_END_HEAD:][:16] + struct.pack("<I", begin) + data[-2:])


def _entries_end(data: bytes, start: int) -> int:
    """Where the entries end: at the block of signatures, or the central directory."""
    if data[start - 16 : start] != _BLOCK:
        return start
    return int(start - 8 - struct.unpack_from("<Q", data, start - 24)[0])


def _padded(local: bytes, entry: zipfile.ZipInfo, at: int, page_size: int) -> bytes:
    """An entry whose data begin at a multiple of what it wants, when it is written at `at`."""
    name, extra = struct.unpack_from("<HH", local, 26)
    body = local[_LOCAL_HEAD + name + extra :]
    head = local[: _LOCAL_HEAD + name]
    if entry.compress_type != zipfile.ZIP_STORED:
        return head[:28] + struct.pack("<H", 0) + head[_LOCAL_HEAD:] + body
    multiple = page_size if entry.filename.endswith(".so") else _ZIP_ALIGNMENT
    least = at + len(head) + 6
    zeros = -least % multiple
    field = struct.pack("<HHH", _ALIGNMENT, 2 + zeros, multiple) + bytes(zeros)
    return head[:28] + struct.pack("<H", len(field)) + head[_LOCAL_HEAD:] + field + body


def _moved(table: bytes, moved: dict[int, int]) -> bytes:
    """The central directory with the entries' new places."""
    fresh, at = bytearray(table), 0
    while at < len(table):
        name, extra, comment = struct.unpack_from("<HHH", table, at + 28)
        place = struct.unpack_from("<I", table, at + 42)[0]
        struct.pack_into("<I", fresh, at + 42, moved[place])
        at += _CENTRAL_HEAD + name + extra + comment
    return bytes(fresh)


def abis(apk: Path) -> list[str]:
    """The processors an APK has libraries for, by Android's names."""
    return sorted({lib.name.split("/")[1] for lib in libraries(apk)})


def schemes(apk: Path) -> list[str]:
    """The signature schemes an APK says it is signed with (v1 is a file in META-INF)."""
    with zipfile.ZipFile(apk) as archive:
        names = archive.namelist()
        start = archive.start_dir
    first = ["v1"] if any(n.startswith("META-INF/") and n.endswith(".SF") for n in names) else []
    data = apk.read_bytes()[:start]
    if data[-16:] != _BLOCK:
        return first
    size = struct.unpack_from("<Q", data, start - 24)[0]
    at, end = start - size, start - 24
    found = []
    while at < end:
        length, kind = struct.unpack_from("<QI", data, at)
        if kind in _SCHEMES:
            found.append(_SCHEMES[kind])
        at += 8 + length
    return [*first, *sorted(found)]
