"""Room on a disk: refused before the first byte, in the same words whatever is to be written."""

from __future__ import annotations

import shutil
from pathlib import Path

from edgekiln import units
from edgekiln.errors import DiskError

_MORE = "free some space (`kiln store gc`), or set EDGEKILN_HOME to a folder on a larger disk"


def refuse_full(place: Path, need: int, what: str) -> None:
    """Raise DiskError where `need` more bytes, for `what`, do not fit on the disk of a folder."""
    free = shutil.disk_usage(place).free
    if need > free:
        raise too_small(place, need=need, free=free, what=what)


def too_small(place: Path, *, need: int, free: int, what: str, remedy: str = _MORE) -> DiskError:
    """The error for a disk without room. `need` and `free` are bytes."""
    return DiskError(
        f"{units.size(need)} are needed at {place}, {units.size(free)} are free",
        why=f"for {what}",
        remedy=remedy,
    )
