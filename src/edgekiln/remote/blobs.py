"""The far side's files by their digests: what has once arrived is never asked for again.

    remote/blobs/ab/abcd…        a whole file
    remote/parts/abcd…           one that has arrived in part; more is added to its end
    remote/inputs/abcd…/NAME     a tree made of them, by the digest of the tree

What this machine has of its own (outputs of finished stages, files that were hashed once, such as
a model's) counts as arrived. Trees are made of hard links, so they cost no room.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from edgekiln.digest import combine
from edgekiln.locking import held
from edgekiln.remote.parts import forget_unused, receive
from edgekiln.store import Store, disk_error

# A tree: its files' sizes, digests and whether they are programs, by their paths in it.
Tree = Mapping[str, tuple[int, str, bool]]


class Blobs:
    """The files below one root, which is on the file system of the store."""

    def __init__(self, root: Path, store: Store) -> None:
        self._root, self._store = root, store
        self._seen: dict[str, Path] = {}

    def have(self, wanted: Mapping[str, int]) -> dict[str, int]:
        """How many bytes of each file, by its digest, have arrived; `wanted` tells the sizes."""
        there = {sha: self._arrived(sha, size) for sha, size in wanted.items()}
        if any(count < wanted[sha] for sha, count in there.items()):
            self._seen = dict(self._elsewhere())
            for sha in [s for s, count in there.items() if count < wanted[s] and s in self._seen]:
                self.take(sha, self._seen[sha])
                there[sha] = self._arrived(sha, wanted[sha])
        return there

    def take(self, sha: str, path: Path) -> None:
        """Keep a file of this machine as if it had arrived."""
        whole = self.path(sha)
        whole.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):  # then it is sent
            if not whole.exists():
                _link(path, whole)
            self._part(sha).unlink(missing_ok=True)

    def _arrived(self, sha: str, size: int) -> int:
        whole = self.path(sha)
        if not size:
            whole.parent.mkdir(parents=True, exist_ok=True)
            whole.touch()
        with contextlib.suppress(OSError):
            if whole.stat().st_size == size:
                os.utime(whole)
                return size
        try:
            return self._part(sha).stat().st_size
        except OSError:
            return 0

    def _elsewhere(self) -> Iterator[tuple[str, Path]]:
        """Files that this machine has for other reasons, by their digests."""
        yield from self._store.index.known()
        for entry in self._store.entries():
            for name, output in entry.meta["outputs"].items():
                for relative, (size, mtime, sha) in output["files"].items():
                    path = entry.output(name)
                    path = path / relative if output["folder"] else path
                    with contextlib.suppress(OSError):
                        stat = path.stat()
                        if (stat.st_size, stat.st_mtime_ns) == (size, mtime):
                            yield sha, path

    def add(self, sha: str, offset: int, pieces: Iterator[bytes]) -> None:
        """Add what is missing of a file to its part, checked and kept when it is whole.

        A cut leaves what has arrived. Raises DigestError for bytes that are not the announced.
        """
        receive(self._part(sha), self.path(sha), sha, offset, pieces)

    def tree(self, name: str, files: Tree, folder: bool) -> Path:
        """A tree of files that are all there, laid out as it was at home; made once."""
        digest = combine((path, size, sha) for path, (size, sha, _) in files.items())
        place = self._root / "inputs" / digest / name
        with held(self._root / "locks" / f"{digest}.lock"):  # stages side by side read the same
            if not place.exists():
                self._lay_out(place, files, folder)
            os.utime(place.parent)
        return place

    def _lay_out(self, place: Path, files: Tree, folder: bool) -> None:
        fresh = place.parent.with_name(f".{place.parent.name}.{os.getpid()}")
        shutil.rmtree(fresh, ignore_errors=True)
        made = fresh / place.name
        try:
            for path, (_, sha, program) in files.items():
                target = made / path if folder else made
                target.parent.mkdir(parents=True, exist_ok=True)
                _lay(self.path(sha), target, program)
            made.parent.mkdir(parents=True, exist_ok=True)
            if folder:
                made.mkdir(exist_ok=True)
            if place.parent.exists():  # the same files under another name
                made.rename(place)
                shutil.rmtree(fresh, ignore_errors=True)
            else:
                fresh.rename(place.parent)
        except OSError as error:
            raise disk_error(error, place) from error

    def path(self, sha: str) -> Path:
        """Where a whole file lies, or will."""
        return self._root / "blobs" / sha[:2] / sha

    def _part(self, sha: str) -> Path:
        return self._root / "parts" / sha

    def sweep(self) -> None:
        """Remove what nobody has asked for in a fortnight."""
        kept = ("checkouts/*", "envs/*", "*.part", "inputs/*", "jobs/*", "blobs/*/*", "parts/*")
        forget_unused(path for pattern in kept for path in self._root.glob(pattern))


def _lay(source: Path, target: Path, program: bool) -> None:
    """A program gets a file of its own: the bit that makes it one belongs to the file."""
    if program:
        shutil.copyfile(source, target)
        target.chmod(0o555)
    else:
        _link(source, target)


def _link(source: Path, target: Path) -> None:
    real = source.resolve()
    try:
        os.link(real, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(real, target)
