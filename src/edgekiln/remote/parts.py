"""Files that arrive over a line, on either side: by their digests, in part, and kept a while."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from edgekiln.digest import digest_file
from edgekiln.errors import DigestError
from edgekiln.store import disk_error

_UNUSED_SECONDS = 14 * 86400.0


def receive(part: Path, whole: Path, sha: str, at: int, pieces: Iterator[bytes]) -> None:
    """Put what arrives behind the first `at` bytes of `part`; checked, it becomes `whole`.

    `pieces` are all that is missing; where they break off, what has arrived stays in the part.
    Raises DigestError for bytes that are not the announced, and what the disk says.
    """
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        with part.open("r+b" if part.exists() else "wb", buffering=0) as file:
            file.seek(at)
            file.truncate()
            for piece in pieces:
                file.write(piece)
        if (found := digest_file(part)) != sha:
            part.unlink()
            raise DigestError(
                "a file arrived with other bytes than it was announced with",
                why=f"sha256 {found}, expected {sha}",
                remedy="run it again; where it comes back, look at the far machine's disk",
            )
        whole.parent.mkdir(parents=True, exist_ok=True)
        part.chmod(0o444)
        part.replace(whole)
    except OSError as error:
        raise disk_error(error, part) from error


def forget_unused(places: Iterable[Path]) -> None:
    """Remove the files and folders that nobody has used in a fortnight.

    A folder's own time is that of its file `.whole`, where it has one.
    """
    old = time.time() - _UNUSED_SECONDS
    for place in places:
        with contextlib.suppress(OSError):  # another edgekiln removes them, too
            mark = place / ".whole"
            if (mark if mark.is_file() else place).stat().st_mtime >= old:
                continue
            if place.is_dir():
                shutil.rmtree(place, ignore_errors=True)
            else:
                place.unlink()
