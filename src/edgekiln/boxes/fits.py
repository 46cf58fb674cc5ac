"""Whether a toolchain's locked parts can run on this very machine, without an image.

The wheels say which C library they want, the toolchain which Python, its YAML which packages of
the distribution. What is cheap to know is known here before anything is fetched.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekiln.boxes import release
from edgekiln.calls import call
from edgekiln.errors import BoxError, KilnError

if TYPE_CHECKING:
    from edgekiln.progress import Progress
    from edgekiln.toolchain import Toolchain

_TAG = re.compile(r"manylinux_(\d+)_(\d+)_")
# The names that came before manylinux_X_Y, and what they stand for (PEP 600).
_LEGACY = {"manylinux2014": (2, 17), "manylinux2010": (2, 12), "manylinux1": (2, 5)}
# What watches a stage and ends all of it reads these.
_PROC = ("/proc/self/stat", "/proc/meminfo")


@dataclass(frozen=True, kw_only=True)
class Unfit:
    """Why a toolchain cannot run here, and what to do; each one line."""

    what: str
    why: str
    remedy: str

    @property
    def short(self) -> str:
        """Both in a line of a list."""
        return f"{self.what}: {self.why}"

    def error(self) -> BoxError:
        """The same as what a build is refused with."""
        return BoxError(self.what, why=self.why, remedy=self.remedy)


def why_not_native(toolchain: Toolchain) -> str:
    """Why the toolchain cannot be installed natively on this machine, in a line; "" if it can."""
    from edgekiln.prefix import prefix_ready

    found = None if prefix_ready(toolchain) else unfit(toolchain)
    return found.short if found else ""


def unfit(toolchain: Toolchain, have: tuple[int, int] | None = None) -> Unfit | None:
    """What forbids the toolchain here; None where nothing does. `have`: the C library, if known.

    A Python that is missing forbids nothing by itself: uv or apt may bring it.
    """
    return without_proc() or _older(toolchain, have or release.glibc())


def without_proc(files: Iterable[str] = _PROC) -> Unfit | None:
    """/proc that is not there, or masked: a stage's memory and processes could not be watched."""
    for name in files:
        try:
            if Path(name).read_bytes():
                continue
            why = f"{name} is empty"
        except OSError as error:
            why = f"{name}: {error.strerror}"
        return Unfit(
            what="stages cannot be watched on this machine",
            why=f"{why}; how much memory is free, and which processes a stage has, is told there",
            remedy="run it where /proc is mounted: in the box itself, not in a chroot inside it",
        )
    return None


def _older(toolchain: Toolchain, have: tuple[int, int] | None) -> Unfit | None:
    needs, wheel = needed_glibc(wheel.file for wheel in toolchain.lock.wheels)
    if have is None or have >= needs:
        return None
    _, _, name = release.distribution()
    return Unfit(
        what=f"toolchain {toolchain.name} cannot be installed natively on {name}",
        why=f"{wheel} wants glibc {_dotted(needs)}, this machine has {_dotted(have)}",
        remedy=f"rent {to_rent(toolchain)}; or use --executor rootfs, which brings its own",
    )


def needed_glibc(wheels: Iterable[str]) -> tuple[tuple[int, int], str]:
    """The oldest C library that all wheels run on, and the one that wants it; by their names."""
    return max(((_wants(name), name) for name in wheels), default=((0, 0), ""))


def _wants(wheel: str) -> tuple[int, int]:
    """A wheel with several tags runs where one of them is served."""
    found = []
    for tag in wheel.removesuffix(".whl").rpartition("-")[2].split("."):
        if numbers := _TAG.match(tag):
            found.append((int(numbers[1]), int(numbers[2])))
        elif (old := tag.partition("_")[0]) in _LEGACY:
            found.append(_LEGACY[old])
    return min(found, default=(0, 0))


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def to_rent(toolchain: Toolchain) -> str:
    """What to choose where this machine will not do: the profile knows its place's names."""
    from edgekiln.boxes.profiles import current

    base = toolchain.base.name
    told = current().rent.get(base)
    return told or f"a machine with {base} and Python {toolchain.python}"


@contextmanager
def what_to_rent(toolchain: Toolchain) -> Iterator[None]:
    """An error about a missing Python, with the box to rent where this one is rented."""
    from edgekiln.boxes.profiles import current

    try:
        yield
    except KilnError as error:
        if current().rent:
            error.remedy += f"; or rent {to_rent(toolchain)}"
        raise


def python_here(minor: str) -> str:
    """The path of a Python of that minor version, looked for without a network; "" if none."""
    from edgekiln.prefix.pythons import is_python

    folders = map(Path, os.environ.get("PATH", "").split(os.pathsep))
    found = [folder / f"python{minor}" for folder in folders]
    root = Path(os.environ.get("PYENV_ROOT", str(Path.home() / ".pyenv")))
    found += sorted(root.glob(f"versions/{minor}.*/bin/python{minor}"), reverse=True)
    return next((str(path) for path in found if is_python(str(path), minor)), "")


def missing_packages(toolchain: Toolchain) -> list[str]:
    """The distribution's packages of the toolchain that are not installed here, Python aside.

    Where dpkg does not answer nothing is known to be missing.
    """
    wanted = [name for name in toolchain.apt if not re.match(r"python3(\.\d+)?(-|$)", name)]
    if not wanted or shutil.which("dpkg-query") is None:
        return []
    done = call(["dpkg-query", "--show", "--showformat=${Package} ${Status}\\n", *wanted])
    there = {line.split()[0] for line in done.stdout.splitlines() if line.endswith(" installed")}
    return [name for name in wanted if name not in there]


def bring_packages(toolchain: Toolchain, progress: Progress) -> None:
    """Install what is missing of the distribution, as root in a box; else say that it is missing.

    It is not said to fail: the toolchain's verify decides whether anything is.
    """
    from edgekiln import offline
    from edgekiln.aptrun import can_install, install
    from edgekiln.boxes.box import container

    absent = missing_packages(toolchain)
    if not absent:
        return
    named = " ".join(absent)
    if not can_install() or not container() or offline.enabled():
        progress.note(f"not installed here: {named}")
        return
    progress.note(f"installing {named} with apt")
    try:
        install(absent)
    except KilnError as error:
        progress.note(f"{error.what}: {error.why}")


def with_packages(error: KilnError, toolchain: Toolchain) -> KilnError:
    """A failed verify, with the packages that are missing and most likely the reason."""
    if absent := missing_packages(toolchain):
        error.remedy = f"install what it needs of the distribution: apt install {' '.join(absent)}"
    return error
