"""Where there is room: every file system of a disk that this user may write to."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from edgekiln import units
from edgekiln.boxes.profiles import Profile

# File systems that are no place to keep things: the kernel's own, and memory.
_NOT_DISKS = (
    *("autofs", "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts"),
    *("devtmpfs", "fusectl", "hugetlbfs", "mqueue", "nsfs", "proc", "pstore", "ramfs"),
    *("securityfs", "squashfs", "sysfs", "tracefs"),
)
# Where the system and container engines mount things of their own.
_SYSTEM = ("/boot", "/dev", "/etc", "/proc", "/run", "/sys", "/usr", "/var/lib")


@dataclass(frozen=True, kw_only=True)
class Disk:
    """A file system: where it is mounted, its free and whole bytes, the profile's data disk?"""

    path: Path
    free: int
    total: int
    kind: str
    data: bool = False

    def told(self) -> str:
        """It in a line."""
        memory = ", in memory" if self.kind == "tmpfs" else ""
        data = ", the data disk" if self.data else ""
        sizes = f"{units.size(self.free)} free of {units.size(self.total)}"
        return f"{self.path}: {sizes}{memory}{data}"


def disks(profile: Profile, mounts: Path = Path("/proc/mounts")) -> list[Disk]:
    """The writable ones, each once, the one with the most room first; the data disk leads."""
    by_device: dict[int, Disk] = {}
    for path, kind in _mounted(mounts):
        with contextlib.suppress(OSError):
            if not os.access(path, os.W_OK | os.X_OK):
                continue
            usage, data = shutil.disk_usage(path), str(path) in profile.data
            if data or path.stat().st_dev not in by_device:
                by_device[path.stat().st_dev] = Disk(
                    path=path, free=usage.free, total=usage.total, kind=kind, data=data
                )
    return sorted(by_device.values(), key=lambda disk: (not disk.data, -disk.free))


def _mounted(mounts: Path) -> Iterable[tuple[Path, str]]:
    """(folder, file system) of each mount that may be a disk; / and home where nothing tells."""
    found = [(Path("/"), "")]
    with contextlib.suppress(OSError):
        for line in mounts.read_text(encoding="utf-8", errors="replace").splitlines():
            _, place, kind, *_ = [*line.split(), "", "", ""]
            path = Path(place.replace("\\040", " "))
            if kind in _NOT_DISKS or any(path.is_relative_to(name) for name in _SYSTEM):
                continue
            found.append((path, kind))
    found.append((Path.home(), ""))
    return [(path, kind) for path, kind in found if path.is_dir()]
