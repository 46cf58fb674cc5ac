"""An APK read as what it is: a zip whose native libraries are mapped where they lie.

Offsets are those of PKWARE's APPNOTE; the block of signatures before the central directory is
Android's "APK Signing Block 42".
"""

from __future__ import annotations

import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path

_LOCAL_HEAD = 30
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
