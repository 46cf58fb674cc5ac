"""What a build will need, and whether this machine has it: told before the first byte."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekiln import units
from edgekiln.errors import AccessError, KilnError, OutOfMemoryError
from edgekiln.home import home
from edgekiln.room import too_small

if TYPE_CHECKING:
    from edgekiln.kits import Kit

# Left to the system and its other programs.
_RESERVE = 768 << 20


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing looked at. `error` is what a build would be refused with."""

    name: str
    found: str
    error: KilnError | None = None

    @property
    def ok(self) -> bool:
        """Whether a build can go on."""
        return self.error is None


def usable_memory() -> int:
    """Bytes a stage may use on this machine."""
    return max(available_memory() - _RESERVE, 256 << 20)


def available_memory() -> int:
    """Bytes that are free now (Linux), or all there are (elsewhere, where the engine limits)."""
    if platform.system() == "Linux":
        from edgekiln.executors.procwatch import available_memory as from_proc

        return from_proc()
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    # Docker Desktop on Windows has its own limit; the engine enforces it.
    return 64 << 30


def usable_cpus() -> int:
    """Cores this process may keep busy: those it may run on, or the box's quota if that is less."""
    from edgekiln.boxes.limits import cpu_quota

    allowed = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    quota = cpu_quota()
    return allowed if quota is None else max(1, min(allowed, int(quota)))


def check_memory(need: int, have: int, what: str) -> Check:
    """Whether the hungriest stage fits."""
    found = f"{units.size(have)} usable, {units.size(need)} needed by {what}"
    if need <= have:
        return Check(name="memory", found=found)
    error = OutOfMemoryError(
        f"{what} needs about {units.size(need)} of memory, {units.size(have)} can be used",
        why="it would be killed half-way",
        remedy="close other programs, use a larger machine, or say --force to try all the same",
    )
    return Check(name="memory", found=found, error=error)


def check_vram(need: int, what: str) -> Check:
    """Whether the largest GPU has room for a stage that wants one."""
    have = max(free_vram(), default=0)
    found = f"{units.size(have)} free on a GPU, {units.size(need)} needed by {what}"
    if need <= have:
        return Check(name="GPU memory", found=found)
    error = OutOfMemoryError(
        f"{what} needs about {units.size(need)} of a GPU's memory, "
        + (f"{units.size(have)} are free" if have else "and nvidia-smi shows no GPU"),
        why="on the processor alone it would take days"
        if not have
        else "it would stop half-way for want of memory",
        remedy="use a machine with such a GPU, or --quantizer edgekiln, which needs none; or say "
        "--force to try all the same",
    )
    return Check(name="GPU memory", found=found, error=error)


def free_vram() -> list[int]:
    """Free bytes of each NVIDIA GPU, as nvidia-smi tells them; nothing where there is none."""
    from edgekiln.boxes.gpu import free_memory

    return free_memory()


def check_disk(needs: Iterable[tuple[Path, int, str]]) -> list[Check]:
    """Whether what will be written fits, for each file system once."""
    by_device: dict[int, tuple[Path, int, list[str]]] = {}
    for place, size, what in needs:
        there = existing(place)
        device = there.stat().st_dev
        path, total, names = by_device.get(device, (there, 0, []))
        by_device[device] = (path, total + size, [*names, what])
    return [_disk(path, total, names) for path, total, names in by_device.values()]


def room_for_kits(kits: Iterable[Kit]) -> list[tuple[Path, int, str]]:
    """What `check_disk` wants to know of kits that are still to be fetched or unpacked."""
    size = sum(kit.download + kit.room for kit in _still_to_come(kits))
    return [(home(), size, "kits")] if size else []


def tell_kits(kits: Iterable[Kit]) -> list[Check]:
    """A line for each kit that is not ready: what has to be fetched, under which licence."""
    return [Check(name=f"kit {kit.name}", found=_to_come(kit)) for kit in _still_to_come(kits)]


def _still_to_come(kits: Iterable[Kit]) -> list[Kit]:
    wanted = {kit.name: kit for kit in kits}
    if not wanted:
        return []
    from edgekiln.kits import is_ready

    return [kit for kit in wanted.values() if not is_ready(kit)]


def _to_come(kit: Kit) -> str:
    from edgekiln.kits import licences, missing

    absent = missing([kit])
    if not absent:
        return "at hand, to be unpacked"
    known = units.size(sum(part.size for part in absent))
    unknown = sum(1 for part in absent if not part.size)
    sizes = [known] if unknown < len(absent) else []
    sizes += [f"{unknown} of unknown size" if sizes else "size unknown"] if unknown else []
    plural = "repositories" if all(p.file.endswith(".git") for p in absent) else "files"
    what = absent[0].file if len(absent) == 1 else f"{len(absent)} {plural}"
    said = f"to be fetched: {what} ({' and '.join(sizes)})"
    if kit.licence and not licences.accepted(kit.licence):
        said += f"; wants --accept-licence {kit.licence}"
    return said


def _disk(path: Path, need: int, names: list[str]) -> Check:
    free = shutil.disk_usage(path).free
    found = f"{units.size(free)} free, {units.size(need)} needed for {', '.join(names)}"
    if free >= need:
        return Check(name=f"disk at {path}", found=found)
    remedy = "free some space (`kiln store gc`), set EDGEKILN_HOME elsewhere, or say --force"
    error = too_small(path, need=need, free=free, what=", ".join(names), remedy=remedy)
    return Check(name=f"disk at {path}", found=found, error=error)


def refuse_unwritable(place: Path, remedy: str = "give another place with --out") -> None:
    """Raise AccessError where nothing can be put at `place`: now, not after an hour's work."""
    there = existing(place)
    if not os.access(there, os.W_OK) or _read_only(there):
        reason = "is on a read-only disk" if _read_only(there) else "may not be written by you"
        raise AccessError(f"cannot write {place}", why=f"{there} {reason}", remedy=remedy)


def refuse_unwritable_home() -> None:
    """Raise AccessError where the cache cannot be written, with the place that could be."""
    from edgekiln.boxes.profiles import current, data_disk

    place = data_disk(current())
    better = f"{place}/edgekiln" if place else "a folder on a disk that may be written"
    refuse_unwritable(home(), remedy=f"set EDGEKILN_HOME to {better}")


def _read_only(there: Path) -> bool:
    return hasattr(os, "statvfs") and bool(os.statvfs(there).f_flag & os.ST_RDONLY)


def existing(path: Path) -> Path:
    """The path itself, or the nearest folder above it that is there."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path
