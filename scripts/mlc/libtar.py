"""A .tar of objects whose bytes depend on the objects alone.

TVM packs with the system's tar: members in the order of a folder, compressed, with the times and
the owner of the files it has just written. Written anew, two runs give the same bytes.
"""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

# 1980-01-01, as SOURCE_DATE_EPOCH is for every stage.
_TIME = 315532800
_MODE = 0o644


def normalise(file: Path) -> None:
    """Pack an archive anew: members by name, one time, owner 0, not compressed.

    Members that are no files are left out; TVM unpacks plain and compressed archives alike.
    """
    with tarfile.open(file) as archive:
        held = {}
        for member in archive.getmembers():
            stream = archive.extractfile(member) if member.isfile() else None
            if stream:
                held[member.name.removeprefix("./")] = stream.read()
    fresh = file.with_name(f"{file.name}.new")
    with tarfile.open(fresh, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name in sorted(held):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime, entry.mode = len(held[name]), _TIME, _MODE
            archive.addfile(entry, io.BytesIO(held[name]))
    fresh.replace(file)
