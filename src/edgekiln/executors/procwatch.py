"""How much memory a native stage holds, read from /proc (Linux)."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def group_rss(group: int) -> int:
    """Resident bytes of every process of a process group, shared pages counted once a process."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = 0
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        # A process may end between the listing and the reading.
        with contextlib.suppress(OSError, ValueError, IndexError):
            # The name in brackets may hold spaces: fields are counted from its end.
            # proc(5): state, ppid, pgrp follow; rss is field 24.
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[2]) == group:
                total += int(fields[21]) * page
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
