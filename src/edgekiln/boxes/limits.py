"""What the control group of this process allows: a box's own memory and cores, not the host's.

Both hierarchies are read, cgroup v2 and v1, from this process's group up to the top that can be
seen: the smallest limit on the way holds. In a container the top is the container's own group.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
# Page cache in the group's charge: the kernel takes it back when a program wants the memory.
_CACHE = {
    "v2": ("inactive_file", "active_file"),
    "v1": ("total_inactive_file", "total_active_file"),
}


def memory_limit(root: Path = _ROOT, membership: Path = _MEMBERSHIP) -> int | None:
    """Bytes that this group may hold at most; None where nothing limits it."""
    return min((limit for limit, _ in _memory(root, membership)), default=None)


def memory_free(root: Path = _ROOT, membership: Path = _MEMBERSHIP) -> int | None:
    """Bytes that this group may still take; None where nothing limits it.

    What it holds as a cache of files is counted as free: after a download that is most of it.
    """
    return min((max(limit - used, 0) for limit, used in _memory(root, membership)), default=None)


def cpu_quota(root: Path = _ROOT, membership: Path = _MEMBERSHIP) -> float | None:
    """How many cores this group may keep busy, e.g. 0.5; None where nothing limits it."""
    return min(_quotas(root, membership), default=None)


def _memory(root: Path, membership: Path) -> Iterator[tuple[int, int]]:
    """(limit, what is held that cannot be given back) of each group that has a limit."""
    for folder in _groups(root, membership, "memory"):
        with contextlib.suppress(OSError, ValueError):
            if (folder / "memory.max").is_file():
                limit = int((folder / "memory.max").read_text())  # "max" is no number
                yield limit, _held(folder, "memory.current", _CACHE["v2"])
            elif (folder / "memory.limit_in_bytes").is_file():
                limit = int((folder / "memory.limit_in_bytes").read_text())
                # Without a limit v1 says the largest number of pages there is.
                if limit < 1 << 62:
                    yield limit, _held(folder, "memory.usage_in_bytes", _CACHE["v1"])


def _held(folder: Path, usage: str, cache: tuple[str, ...]) -> int:
    held = int((folder / usage).read_text())
    lines = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
    return max(held - sum(int(words[1]) for words in lines if words[0] in cache), 0)


def _quotas(root: Path, membership: Path) -> Iterator[float]:
    for folder in _groups(root, membership, "cpu"):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            if (folder / "cpu.max").is_file():
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                quota = (folder / "cpu.cfs_quota_us").read_text()
                period = (folder / "cpu.cfs_period_us").read_text()
            if (cores := int(quota) / int(period)) > 0:  # v1 says -1, v2 "max", for no limit
                yield cores


def _groups(root: Path, membership: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's group and of those above it, in either hierarchy."""
    for top, inside in _places(root, membership, controller):
        here = top / inside.strip("/")
        while True:
            if here.is_dir():
                yield here
            if here == top:
                break
            here = here.parent


def _places(root: Path, membership: Path, controller: str) -> Iterator[tuple[Path, str]]:
    """(mount, path in it) of the hierarchies that a controller may be in.

    In a container with the host's names the path is not there; the mount's top then is its group.
    """
    told = ""
    with contextlib.suppress(OSError):
        told = membership.read_text()
    for line in told.splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if not controllers:
            yield root, path
        elif controller in controllers.split(","):
            yield root / controller, path
    if not told:
        yield root, ""
        yield root / controller, ""
