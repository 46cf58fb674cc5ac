"""How a program is brought into an unpacked root: proot, or chroot where root may and no proot is.

Both give it the view that a container has (view.py). proot shows what is bound by tracing every
system call: it wants nobody's leave, and costs time where many small files are read. chroot costs
nothing, but binds nothing either: what a stage needs is linked (or copied, from another disk) into
a root of its own, made of links to the unpacked one; of /proc there are a few copied files only.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edgekiln.calls import call
from edgekiln.errors import EngineError
from edgekiln.rootfs.view import CONFINE, SCRATCH, Bind

# chroot has no bound /proc: what libraries ask of the processor and the memory.
_KERNEL_FILES = (
    *(f"/proc/{name}" for name in ("cpuinfo", "meminfo", "stat", "version", "filesystems")),
    *(f"/sys/devices/system/cpu/{name}" for name in ("online", "possible", "present")),
)
_KERNELS = ("/proc", "/sys")
_OWN_FOLDERS = ("/in", "/kiln", "/opt/edgekiln/kits")
_ENTER = "import os, sys; os.chroot(sys.argv[1]); os.chdir(sys.argv[2]); "
_ENTER += "os.execv(sys.argv[3], sys.argv[3:])"


@dataclass(frozen=True, kw_only=True)
class Entered:
    """The words to put before a program of the root, and what is added to its environment."""

    words: Sequence[str]
    env: dict[str, str]


class Way(Protocol):
    """A way into a root."""

    def describe(self) -> str:
        """Which one, in a few words."""

    def into(
        self, root: Path, binds: Sequence[Bind], work: Path
    ) -> AbstractContextManager[Entered]:
        """Have `root` with the binds ready; what was written is at its sources at the end.

        `work` is an empty place of this run alone, on the disk of the root.
        """


@dataclass(frozen=True, kw_only=True)
class Proot:
    """Enters by proot: `words` start it, `env` is what it needs to work here."""

    words: Sequence[str]
    version: str
    env: dict[str, str]

    def describe(self) -> str:
        """Its name and version."""
        return f"proot {self.version}"

    @contextmanager
    def into(self, root: Path, binds: Sequence[Bind], work: Path) -> Iterator[Entered]:
        """Every bind becomes an option; sources are named by links, since a name may hold `:`."""
        links = work / "binds"
        links.mkdir(parents=True)
        words = [*self.words, "-v", "-1", "-r", str(root.absolute()), "-w", SCRATCH]
        for number, bind in enumerate(_with_points(root, binds, work / "points")):
            source = bind.source
            if ":" in str(source):
                source = links / str(number)
                source.symlink_to(bind.source.resolve())
            words += ["-b", f"{source}:{bind.target}"]
        try:
            yield Entered(words=words, env=self.env)
        finally:
            clear_leftovers()


@dataclass(frozen=True, kw_only=True)
class Chroot:
    """Enters by chroot(2), as root."""

    def describe(self) -> str:
        """Its name, and what it lacks."""
        return "chroot, without /proc"

    @contextmanager
    def into(self, root: Path, binds: Sequence[Bind], work: Path) -> Iterator[Entered]:
        """A root of links for this run alone, with all that is bound put into it."""
        own = work / "root"
        _linked(root, own)
        moved: list[tuple[Path, Path]] = []
        try:
            for bind in binds:
                target = own / bind.target.lstrip("/")
                if bind.writable and bind.source.is_dir():
                    _cleared(target)
                    bind.source.rename(target)
                    moved.append((target, bind.source))
                elif bind.target in _KERNELS:
                    _kernels_files(bind.target, own)
                else:
                    _put(bind.source, target)
            enter = [sys.executable, "-I", "-S", "-c", _ENTER, str(own), SCRATCH]
            yield Entered(words=enter, env={})
        finally:
            for target, source in moved:
                target.rename(source)
            shutil.rmtree(own, ignore_errors=True)


def confined(python: str, binds: Sequence[Bind]) -> list[str]:
    """The words, inside a root, that keep a program from changing what is not its own."""
    places = [word for bind in binds if bind.writable for word in ("--writable", bind.target)]
    return [python, "-I", "-S", CONFINE, *places, "--"]


def chroot_works(place: Path) -> bool:
    """Whether this process may change its root, and make a device that works at `place`."""
    if os.geteuid() != 0:
        return False
    node = place / f".device-{os.getpid()}"
    try:
        _node(Path("/dev/null"), node)
        with node.open("wb") as stream:
            stream.write(b"x")
    except OSError:
        return False
    finally:
        node.unlink(missing_ok=True)
    done = call([sys.executable, "-I", "-S", "-c", _ENTER, "/", "/", "/bin/true"])
    return done.returncode == 0


def clear_leftovers() -> None:
    """Remove what a proot that was killed left in /tmp, by its process id: places, its loader."""
    for path in Path("/tmp").glob("proot*-*-*"):
        with contextlib.suppress(OSError, ValueError):
            mine = path.lstat().st_uid == os.geteuid()
            if mine and not Path("/proc", path.name.split("-")[1]).exists():
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _with_points(root: Path, binds: Sequence[Bind], own: Path) -> list[Bind]:
    """The binds, each of whose places is there before proot starts.

    proot would make what is missing in the root, and take it away when it ends, although another
    stage of the same root may be using it. Folders whose contents differ from stage to stage are
    this stage's own; places elsewhere are made in the root, and stay.
    """
    folders = [Bind(source=own / name.lstrip("/"), target=name) for name in _OWN_FOLDERS]
    for folder in folders:
        folder.source.mkdir(parents=True)
    for bind in (*folders, *binds):
        parent = next((f for f in folders if bind.target.startswith(f"{f.target}/")), None)
        place = (own if parent else root) / bind.target.lstrip("/")
        with contextlib.suppress(OSError):  # another's root: proot's own way is left
            _point(place, folder=bind.source.is_dir())
    return [*folders, *binds]


def _point(place: Path, *, folder: bool) -> None:
    if folder:
        place.mkdir(parents=True, exist_ok=True)
    elif not place.is_symlink():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()


def _linked(root: Path, own: Path) -> None:
    try:
        shutil.copytree(root, own, symlinks=True, copy_function=os.link)
    except (OSError, shutil.Error) as error:
        first = error.args[0][0] if isinstance(error, shutil.Error) else str(error)
        raise EngineError(
            "the image cannot be laid out for a chroot",
            why=str(first)[:300],
            remedy="have all of EDGEKILN_HOME on one disk, or use proot",
        ) from error


def _put(source: Path, target: Path) -> None:
    """Have a file, folder or device at `target`, by links where the disk is the same."""
    source = source.resolve()
    _cleared(target)
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True, copy_function=_link)
    elif source.is_char_device():
        _node(source, target)
    else:
        _link(str(source), str(target))


def _cleared(target: Path) -> None:
    """Take away what the image has at that place: it is a link to the unpacked root's."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)


def _link(source: str, target: str) -> str:
    """A further name of a file; on another disk a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


def _node(like: Path, target: Path) -> None:
    found = like.stat()
    os.mknod(target, found.st_mode, found.st_rdev)
    target.chmod(found.st_mode & 0o777)


def _kernels_files(of: str, own: Path) -> None:
    for name in _KERNEL_FILES:
        target = own / name.lstrip("/")
        if name.startswith(f"{of}/"):
            target.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(OSError):
                target.write_bytes(Path(name).read_bytes())
