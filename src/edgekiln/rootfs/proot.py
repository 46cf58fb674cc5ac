"""proot, found or brought: on PATH, from the vendor folder by digest, or by apt as root.

The two packages of Debian 12 run wherever glibc is 2.15 or newer: proot is started by this
machine's own loader, with its one library beside it.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

from edgekiln.calls import call
from edgekiln.errors import EngineError
from edgekiln.progress import Progress
from edgekiln.rootfs.ways import Proot
from edgekiln.toolchain.debs import find_debs, names_of
from edgekiln.toolchain.lock import Deb

_PATIENCE = 30
_LOADER = "/lib64/ld-linux-x86-64.so.2"
_HEAD, _ENTRY = b"!<arch>\n", 60
# Tried in this order: a newer proot's filter for system calls does not work in every sandbox.
_SETTINGS: tuple[dict[str, str], ...] = ({}, {"PROOT_NO_SECCOMP": "1"})


# Debian 12's. The file that each is wanted for.
DEBS = (
    Deb(
        name="proot",
        version="5.1.0-1.3",
        sha256="ba51946d76c0a681c034b93266d870db7e21b0d3230a4d2dea3bffb556271aeb",
        size=75060,
    ),
    Deb(
        name="libtalloc2",
        version="2.4.0-f2",
        sha256="2cbba68ca13003a0da794f5bcc44d95d0a191514fdd2d2764858b37215f0867c",
        size=25616,
    ),
)
_WANTED = {"proot": "usr/bin/proot", "libtalloc2": "usr/lib/x86_64-linux-gnu/libtalloc.so.2"}
BASE = "debian-12"
FILES = tuple(names_of(deb)[0] for deb in DEBS)


def find_proot() -> Proot | None:
    """A proot that works here, of those that are at hand already."""
    found = shutil.which("proot")
    if found and (works := _working([found])):
        return works
    return _working(_started(_folder())) if _complete(_folder()) else None


def bring_proot(progress: Progress) -> Proot:
    """A proot that works here: one at hand, the vendor folder's, or the distribution's.

    Raises DigestError for a package that is not the one that is pinned, and EngineError where there
    is no way, with all of them.
    """
    if found := find_proot():
        return found
    if _unpacked(_folder()) and (found := _working(_started(_folder()))):
        return found
    if _may_install():
        progress.note("installing proot with apt")
        from edgekiln.aptrun import install

        install(["proot"], EngineError)
        if found := find_proot():
            return found
    raise EngineError(
        "there is no proot to enter an unpacked image with",
        why=_why_not(),
        remedy=f"install proot, or put {' and '.join(FILES)} into the folder of "
        "--vendor-dir (EDGEKILN_VENDOR)",
    )


def _why_not() -> str:
    if at_hand := shutil.which("proot") or (_folder() if _complete(_folder()) else None):
        return f"{at_hand} does not run here: nobody may trace processes (ptrace), it seems"
    return "it is neither on PATH nor in the vendor folder, and apt is for root on Debian or Ubuntu"


def _may_install() -> bool:
    from edgekiln import offline
    from edgekiln.aptrun import can_install

    return can_install() and not offline.enabled() and not shutil.which("proot")


def _folder() -> Path:
    from edgekiln.home import home

    return home() / "tools" / f"proot-{DEBS[0].sha256[:12]}"


def _started(folder: Path) -> list[str]:
    """By the loader: the library's folder must not be in what the stage's programs inherit."""
    return [_LOADER, "--library-path", str(folder), str(folder / "proot")]


def _complete(folder: Path) -> bool:
    return all((folder / Path(name).name).is_file() for name in _WANTED.values())


def _working(words: list[str]) -> Proot | None:
    """Whether it starts a program under each setting in turn: it needs ptrace(2)."""
    for env in _SETTINGS:
        done = call([*words, "-v", "-1", "-r", "/", "/bin/true"], env=_env(env), timeout=_PATIENCE)
        if done.returncode == 0:
            said = call([*words, "--version"], env=_env(env), timeout=_PATIENCE).stdout
            number = re.search(r"\d+(\.\d+)+", said)
            return Proot(words=words, version=number[0] if number else "?", env=env)
    return None


def _env(more: dict[str, str]) -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", os.defpath), **more}


def _unpacked(folder: Path) -> bool:
    """Take both files out of the packages, if they lie in the vendor folder or apt's own."""
    found = find_debs(DEBS)
    absent = [deb for deb in DEBS if deb not in found.here]
    found.refuse(absent)
    if absent:
        return False
    folder.mkdir(parents=True, exist_ok=True)
    for deb in DEBS:
        wanted = _WANTED[deb.name]
        target = folder / Path(wanted).name
        fresh = target.with_name(f".{target.name}-{os.getpid()}")
        fresh.write_bytes(member(found.here[deb].read_bytes(), wanted))
        fresh.chmod(0o755)
        fresh.replace(target)
    return True


def member(deb: bytes, name: str) -> bytes:
    """A file out of a package (deb(5)); a link is followed within it."""
    data = next(body for part, body in _parts(deb) if part.startswith("data.tar"))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        found = tar.getmember(f"./{name}")
        while found.issym():
            found = tar.getmember(f"./{Path(name).parent.as_posix()}/{found.linkname}")
        stream = tar.extractfile(found)
        assert stream is not None, f"{name} is no file"
        return stream.read()


def _parts(deb: bytes) -> Iterator[tuple[str, bytes]]:
    """The members of an ar(5) archive: name, bytes."""
    place = len(_HEAD)
    while place + _ENTRY <= len(deb):
        head = deb[place : place + _ENTRY]
        size = int(head[48:58])
        yield head[:16].decode().strip().rstrip("/"), deb[place + _ENTRY : place + _ENTRY + size]
        place += _ENTRY + size + size % 2
