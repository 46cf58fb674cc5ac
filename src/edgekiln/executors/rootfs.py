"""Stages inside a toolchain's own image, unpacked on this disk, where no engine can run.

For rented boxes, which are containers themselves: nothing can be mounted and no namespace made
there. The image (exported elsewhere, or pulled from a registry) lies below EDGEKILN_HOME/rootfs;
proot or chroot (rootfs/ways.py) shows a stage the places that a container would show it, so the
programs are the image's own, down to its libc, whatever the box's distribution is.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekiln import images
from edgekiln.calls import call, last_words
from edgekiln.errors import EngineError, ImageError, UsageError
from edgekiln.executors.base import StageRun, environment
from edgekiln.executors.kitlinks import kits_ready, make_kits
from edgekiln.executors.processes import Launch, Processes
from edgekiln.home import home
from edgekiln.progress import Silent
from edgekiln.rootfs import gpu, unpack
from edgekiln.rootfs.confine import has_landlock
from edgekiln.rootfs.proot import bring_proot, find_proot
from edgekiln.rootfs.view import SCRATCH, common_binds, stage_binds
from edgekiln.rootfs.ways import Chroot, Way, chroot_works, clear_leftovers, confined

if TYPE_CHECKING:
    from edgekiln.progress import Progress
    from edgekiln.rootfs.view import Bind
    from edgekiln.toolchain import Toolchain

# Which way into a root: proot or chroot; without it, proot where it can be had.
_WAY = "EDGEKILN_ROOTFS"
_PYTHON = "/opt/edgekiln/bin/python3"
_VERIFY = "/opt/edgekiln/verify"
_PROVED = "proved.json"


class RootfsExecutor(Processes):
    """Runs stages in a toolchain's unpacked image."""

    name = "rootfs"

    def __init__(self) -> None:
        super().__init__()
        from edgekiln.prefix import refuse_elsewhere

        refuse_elsewhere()
        self._asked = os.environ.get(_WAY, "")
        if self._asked not in ("", "proot", "chroot"):
            raise UsageError(f"{_WAY} is {self._asked}", remedy="it is proot, chroot or nothing")
        self._found = self._at_hand()

    def describe(self) -> str:
        """Where stages will run, by which way, and what cannot be kept from them."""
        by = f"by {self._found.describe()}" if self._found else "a way in is still to be had"
        said = [by, self._network(), *([] if has_landlock() else ["root NOT read only"])]
        return f"rootfs on this machine ({', '.join(said)})"

    def ready(self, toolchain: Toolchain) -> bool:
        """Whether the image is unpacked and proved, and the kits are there."""
        there = self._found is not None and unpack.is_ready(toolchain)
        return there and _proof(toolchain).is_file() and kits_ready(toolchain)

    def prepare(self, toolchain: Toolchain, progress: Progress) -> None:
        """Unpack the toolchain's kits and image, and prove it where it is to run.

        Raises EngineError where there is no way into a root, or where the GPU that is here does
        not answer inside; ImageError where there is no image, or where it fails its verify.
        """
        self._way(progress)
        if toolchain.kits:
            make_kits([toolchain], progress)
        root = unpack.ready(toolchain, _Hundredths(progress))
        if not _proof(toolchain).is_file():
            progress.update(0, None, "verify")
            report = self._prove(root, toolchain)
            fresh = _proof(toolchain).with_suffix(f".{os.getpid()}")
            fresh.write_text(json.dumps(report), encoding="utf-8")
            fresh.replace(_proof(toolchain))
        if gpu.nodes() and gpu.uses_cuda(toolchain):
            progress.note(self._first_call(root))

    def tidy(self) -> None:
        """Remove what a proot that was killed could not remove."""
        clear_leftovers()

    def drift(self, toolchain: Toolchain) -> list[str]:
        """The packages of the distribution that are newer than locked, by the image's verify."""
        if not _proof(toolchain).is_file():
            return []
        report = json.loads(_proof(toolchain).read_text(encoding="utf-8"))
        return [str(line) for line in report.get("drift", [])]

    @contextmanager
    def _laid_out(self, toolchain: Toolchain, run: StageRun) -> Iterator[Launch]:
        """The same places that a container has: /in, /out, /scratch, /kiln."""
        params = run.work / "params.json"
        params.write_text(json.dumps(run.params), encoding="utf-8")
        binds = stage_binds(toolchain, run, params)
        program = [_PYTHON, "-s", f"/kiln/scripts/{run.program}"]
        env = environment(
            toolchain, run, scripts="/kiln/scripts", path=images.PATH, kits=images.KITS
        )
        env |= {"HOME": SCRATCH, "TMPDIR": SCRATCH}
        with self._inside(_root(toolchain), binds, run.work, program, env) as launch:
            yield launch

    @contextmanager
    def _inside(
        self,
        root: Path,
        binds: Sequence[Bind],
        work: Path,
        program: Sequence[str],
        env: Mapping[str, str],
    ) -> Iterator[Launch]:
        with self._way(Silent()).into(root, binds, work / "way") as entered:
            words = [*entered.words, *confined(_PYTHON, binds), *program]
            yield Launch(words=words, env={**env, **entered.env}, folder=work)

    def _at_hand(self) -> Way | None:
        if self._asked == "chroot":
            return Chroot() if _may_chroot() else None
        return find_proot()

    def _way(self, progress: Progress) -> Way:
        """The way in; proot is brought where it is missing, and chroot taken where it cannot be."""
        if self._found is None and self._asked != "chroot":
            try:
                self._found = bring_proot(progress)
            except EngineError as error:
                if self._asked == "proot" or not _may_chroot():
                    raise
                progress.note(f"{error.short}: chroot it is")
        if self._found is None:
            if not _may_chroot():
                raise EngineError(
                    "chroot cannot be used here",
                    why="it wants root, and a disk on which devices can be made",
                    remedy=f"set {_WAY}=proot",
                )
            self._found = Chroot()
        return self._found

    def _prove(self, root: Path, toolchain: Toolchain) -> dict[str, Any]:
        """Run the image's own verify inside, as a stage is run; what it reports."""
        done = self._said(root, [_PYTHON, _VERIFY, "--json"])
        lines = done.stdout.strip().splitlines()
        if done.returncode or not lines:
            where = f"the unpacked image of {toolchain.name}"
            raise ImageError(f"{where} failed its verify", why=last_words(done), remedy=str(root))
        report: dict[str, Any] = json.loads(lines[-1])
        return report

    def _first_call(self, root: Path) -> str:
        """Have the driver's library count the GPUs inside; a line about what it said."""
        done = self._said(root, [_PYTHON, "-I", "-c", gpu.FIRST_CALL])
        told: dict[str, Any] = {"code": last_words(done)}
        if done.returncode == 0:
            told = json.loads(done.stdout)
        if told["code"] or not told["count"]:
            raise EngineError(
                "the GPU of this machine does not answer inside the unpacked image",
                why=f"cuInit: {told['code'] or 'no GPU'}",
                remedy="see that nvidia-smi works here; or use --executor native",
            )
        version = f"{told['version'] // 1000}.{told['version'] % 1000 // 10}"
        return f"inside the image: {told['count']} GPU, a driver for CUDA up to {version}"

    def _said(self, root: Path, program: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run a program of the image to its end, without a network where that can be."""
        parent = home() / "tmp"
        parent.mkdir(parents=True, exist_ok=True)
        env = {"PATH": images.PATH, "HOME": "/tmp", "TMPDIR": "/tmp", "LANG": "C.UTF-8"}
        with tempfile.TemporaryDirectory(prefix="rootfs-", dir=parent) as scratch:
            work = Path(scratch)
            binds = [
                replace(bind, writable=bind.writable or bind.target == "/tmp")
                for bind in common_binds(work)
            ]
            with self._inside(root, binds, work, program, env) as launch:
                return call([*self._cut, *launch.words], env=launch.env)


class _Hundredths:
    """Bytes as parts of a hundred: making a toolchain ready is told in steps."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.note = progress.note

    def update(self, done: float, total: float | None = None, what: str = "") -> None:
        if total:
            self._progress.update(int(100 * done / total), 100, what)
        else:
            self._progress.update(0, None, what)


def _root(toolchain: Toolchain) -> Path:
    return unpack.rootfs_path(toolchain) / "root"


def _proof(toolchain: Toolchain) -> Path:
    """What the image's verify reported, beside its root."""
    return unpack.rootfs_path(toolchain) / _PROVED


def _may_chroot() -> bool:
    place = home() / "tmp"
    place.mkdir(parents=True, exist_ok=True)
    return chroot_works(place)
