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
    """Bytes this machine can still give, by MemAvailable, or the container's limit if lower."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
            return min(free, _group_limit(free))
    raise OSError("no MemAvailable in /proc/meminfo")


def _group_limit(default: int) -> int:
    """What the control group still allows (cgroup v2, then v1): rentals limit by it."""
    pairs = (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    )
    for limit, used in pairs:
        with contextlib.suppress(OSError, ValueError):
            return int(Path(limit).read_text()) - int(Path(used).read_text())
    return default
