"""How much memory a native stage holds, read from /proc (Linux)."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from edgekiln.executors.guard import descendants


def tree_rss(root: int) -> int:
    """Resident bytes of all that `root` started, shared pages counted once a process."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = 0
    for pid in descendants(root):
        # A process may end between the listing and the reading.
        with contextlib.suppress(OSError, ValueError, IndexError):
            # proc(5), statm: total size, then what is resident, in pages.
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page
    return total


def available_memory() -> int:
    """Bytes this machine can still give, by MemAvailable, or what the box may take if less.

    A rented box sees the host's figures in /proc; its control group has its own. Where /proc tells
    nothing, the group counts alone, else all the memory there is.
    """
    from edgekiln.boxes.limits import memory_free

    told = [free for free in (_meminfo(), memory_free()) if free is not None]
    if told:
        return min(told)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _meminfo() -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None
