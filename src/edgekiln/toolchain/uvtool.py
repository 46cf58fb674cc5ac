"""The uv a lock names, taken out of its wheel.

The wheel comes through the user's own pip, so that mirrors, proxies and certificates hold; its
digest makes any of them safe.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

from edgekiln import offline
from edgekiln.calls import call, last_words
from edgekiln.errors import FetchError
from edgekiln.home import home
from edgekiln.progress import Progress
from edgekiln.toolchain.lock import Wheel
from edgekiln.toolchain.wheels import check_file, find_local
from edgekiln.user.pipconf import PipSettings, pip_command

PINNED = Wheel(
    name="uv",
    version="0.13.8",
    file="uv-0.13.8-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
    sha256="e18a57b8b352eb7c8feb317b9f6f533c8f0ad9673fd6cf34bbe3cf1a9f6a8984",
)


def linux_uv(pinned: Wheel, pip: PipSettings, progress: Progress) -> Path:
    """The uv for the image (linux x86-64, whatever this machine is), fetched once."""
    kept = home() / "tools" / f"uv-{pinned.version}-{pinned.sha256[:12]}" / "uv"
    if kept.is_file():
        return kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
        wheel = find_local([pinned], pip).get(pinned.file)
        if wheel is None:
            progress.note(f"fetching uv {pinned.version}")
            wheel = _download(pinned, Path(scratch))
        check_file(wheel, pinned.sha256)
        fresh = Path(scratch) / "uv"
        _take_out(wheel, fresh)
        fresh.replace(kept)
    return kept


def host_uv(pip: PipSettings, progress: Progress) -> Path:
    """A uv that runs here: the pinned one on linux x86-64, elsewhere the one on PATH."""
    import platform

    if sys.platform == "linux" and platform.machine() == "x86_64":
        return linux_uv(PINNED, pip, progress)
    found = shutil.which("uv")
    if found is None:
        raise FetchError("uv is not installed", remedy=f"pip install uv=={PINNED.version}")
    return Path(found)


def _download(pinned: Wheel, into: Path) -> Path:
    offline.refuse(pinned.file, why=f"it is sha256:{pinned.sha256}")
    command = pip_command()
    if command is None:
        raise FetchError("uv cannot be fetched", why="this Python has no pip", remedy="install pip")
    options = ["--no-deps", "--only-binary=:all:", "--platform=manylinux2014_x86_64", "--quiet"]
    where = ["--dest", str(into), f"uv=={pinned.version}"]
    done = call([*command, "download", *options, *where])
    if done.returncode or not (into / pinned.file).is_file():
        why = last_words(done) if done.returncode else "pip brought another file"
        remedy = "check that pip can reach its index: pip download uv"
        raise FetchError(f"uv {pinned.version} could not be fetched", why=why, remedy=remedy)
    return into / pinned.file


def _take_out(wheel: Path, target: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".data/scripts/uv"))
        with archive.open(name) as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink)
    target.chmod(0o755)
