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
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from edgekiln.digest import combine, digest_file
from edgekiln.errors import DigestError
from edgekiln.store import Store, disk_error

_UNUSED_SECONDS = 14 * 86400.0
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

    def add(self, sha: str, size: int, offset: int, pieces: Iterator[bytes]) -> None:
        """Add what arrives to a file's part; once it is whole it is checked and kept.

        A cut leaves what has arrived. Raises DigestError for bytes that are not the announced.
        """
        part = self._part(sha)
        try:
            part.parent.mkdir(parents=True, exist_ok=True)
            with part.open("r+b" if part.exists() else "wb", buffering=0) as file:
                file.seek(offset)
                file.truncate()
                for piece in pieces:
                    file.write(piece)
            if part.stat().st_size == size:
                self._keep(part, sha)
        except OSError as error:
            raise disk_error(error, part) from error

    def _keep(self, part: Path, sha: str) -> None:
        if (found := digest_file(part)) != sha:
            part.unlink()
            raise DigestError(
                "a file arrived with other bytes than were sent",
                why=f"sha256 {found}, expected {sha}",
                remedy="run it again; where it comes back, look at the far machine's disk",
            )
        whole = self.path(sha)
        whole.parent.mkdir(parents=True, exist_ok=True)
        part.chmod(0o444)
        part.replace(whole)

    def tree(self, name: str, files: Tree, folder: bool) -> Path:
        """A tree of files that are all there, laid out as it was at home; made once."""
        digest = combine((path, size, sha) for path, (size, sha, _) in files.items())
        place = self._root / "inputs" / digest / name
        if place.exists():
            os.utime(place.parent)
            return place
        fresh = self._root / "inputs" / f".{digest}.{os.getpid()}"
        shutil.rmtree(fresh, ignore_errors=True)
        try:
            for path, (_, sha, program) in files.items():
                target = fresh / name / path if folder else fresh / name
                target.parent.mkdir(parents=True, exist_ok=True)
                _lay(self.path(sha), target, program)
            (fresh / name).parent.mkdir(parents=True, exist_ok=True)
            if folder:
                (fresh / name).mkdir(exist_ok=True)
            place.parent.parent.mkdir(parents=True, exist_ok=True)
            if place.parent.exists():  # the same files under another name
                (fresh / name).rename(place)
                shutil.rmtree(fresh, ignore_errors=True)
            else:
                fresh.rename(place.parent)
        except OSError as error:
            raise disk_error(error, place) from error
        return place

    def path(self, sha: str) -> Path:
        """Where a whole file lies, or will."""
        return self._root / "blobs" / sha[:2] / sha

    def _part(self, sha: str) -> Path:
        return self._root / "parts" / sha

    def sweep(self) -> None:
        """Remove what nobody has asked for in a fortnight."""
        old = time.time() - _UNUSED_SECONDS
        for mark in (*self._root.glob("checkouts/*/.whole"), *self._root.glob("envs/*/.whole")):
            if mark.stat().st_mtime < old:
                shutil.rmtree(mark.parent, ignore_errors=True)
        for place in (*self._root.glob("inputs/*"), *self._root.glob("jobs/*")):
            if place.is_dir() and place.stat().st_mtime < old:
                shutil.rmtree(place, ignore_errors=True)
        for file in (*self._root.glob("blobs/*/*"), *self._root.glob("parts/*")):
            with contextlib.suppress(OSError):
                if file.stat().st_mtime < old:
                    file.unlink()


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
