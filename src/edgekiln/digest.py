"""Content digests of files and trees, with an index so that unchanged bytes are not read again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from edgekiln.errors import AccessError

_CHUNK = 1 << 20
# A file changed this recently may change again within one tick of its clock: git calls such
# an entry racy. Its digest is used but not remembered.
_RACY_NS = 2_000_000_000


def canonical(value: object) -> bytes:
    """JSON with one spelling: sorted keys, no spaces, plain UTF-8."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode()


def digest_json(value: object) -> str:
    """sha256 (hex) of a JSON value in its one spelling."""
    return hashlib.sha256(canonical(value)).hexdigest()


def digest_file(path: Path, told: Callable[[int], None] = lambda _: None) -> str:
    """sha256 (hex) of a file's bytes; `told` hears of each piece read, in bytes."""
    sha = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as file:
            buffer = memoryview(bytearray(_CHUNK))
            while count := file.readinto(buffer):
                sha.update(buffer[:count])
                told(count)
    except OSError as error:
        raise cannot_read(path, error) from error
    return sha.hexdigest()


@dataclass(frozen=True)
class FileEntry:
    """A file of a tree: its path from the root with forward slashes, and what stat says."""

    relative: str
    path: Path
    size: int
    stamp: str


def walk(root: Path) -> Iterator[FileEntry]:
    """Every file under `root`, by name; what starts with a dot (.git, .cache) is left out.

    A single file is a tree of one, called by its own name. Links are followed.
    """
    if root.is_file():
        yield _entry(root.name, root)
        return
    for folder, folders, names in os.walk(root, followlinks=True, onerror=_unreadable):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in sorted(n for n in names if not n.startswith(".")):
            path = Path(folder, name)
            yield _entry(path.relative_to(root).as_posix(), path)


def _unreadable(error: OSError) -> None:
    raise cannot_read(error.filename, error)


def cannot_read(path: Path | str, error: OSError) -> AccessError:
    """What to raise for a file or folder that could not be read."""
    return AccessError(
        f"cannot read {path}",
        why=error.strerror or str(error),
        remedy="see that your user may read it",
    )


def _entry(relative: str, path: Path) -> FileEntry:
    try:
        stat = path.stat()
    except OSError as error:
        raise cannot_read(path, error) from error
    stamp = f"{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}:{stat.st_ino}"
    return FileEntry(relative, path, stat.st_size, stamp)


def combine(parts: Iterable[tuple[str, int, str]]) -> str:
    """A tree's digest from (relative path, size, sha256) of each file; order does not matter."""
    return digest_json(sorted([name, size, sha] for name, size, sha in parts))


class FileIndex:
    """Remembers a file's sha256 by its path, size, times and inode."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = _open(path)
        except sqlite3.OperationalError:
            # A full or read-only disk: this build remembers for itself alone.
            self._db = _open(":memory:")
        except sqlite3.DatabaseError:
            # Damaged; it holds nothing that cannot be read again.
            path.unlink()
            self._db = _open(path)

    def close(self) -> None:
        """Let go of the index file."""
        self._db.close()

    def digest(self, root: Path, told: Callable[[int, int], None] = lambda *_: None) -> str:
        """The tree digest of a file or folder; only new or changed files are read.

        `told(done, total)` hears of the bytes that had to be read.
        """
        found = self.files(root, told)
        return combine((name, size, sha) for name, (size, sha) in found.items())

    def files(
        self, root: Path, told: Callable[[int, int], None] = lambda *_: None
    ) -> dict[str, tuple[int, str]]:
        """Size and sha256 of every file under `root`, by its path in it."""
        files = list(walk(root))
        known = {f.relative: self._known(f) for f in files}
        fresh = [f for f in files if known[f.relative] is None]
        if fresh:
            known |= self._read(fresh, told)
        return {f.relative: (f.size, known[f.relative] or "") for f in files}

    def known(self) -> Iterator[tuple[str, Path]]:
        """sha256 and path of every file that was hashed once and has not changed since."""
        for path, stamp, sha in self._db.execute("SELECT path, stamp, sha256 FROM files"):
            try:
                entry = _entry("", Path(path))
            except AccessError:
                continue
            if entry.stamp == stamp:
                yield str(sha), entry.path

    def _known(self, file: FileEntry) -> str | None:
        row = self._db.execute(
            "SELECT sha256 FROM files WHERE path = ? AND stamp = ?",
            (str(file.path.absolute()), file.stamp),
        ).fetchone()
        return str(row[0]) if row else None

    def _read(self, files: list[FileEntry], told: Callable[[int, int], None]) -> dict[str, str]:
        total = sum(f.size for f in files)
        done = 0

        def count(size: int) -> None:
            nonlocal done
            done += size
            told(done, total)

        # hashlib lets go of the interpreter while it works, so threads really run side by side.
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
            digests = list(pool.map(lambda f: digest_file(f.path, count), files))
        self._remember(zip(files, digests, strict=True))
        return {f.relative: d for f, d in zip(files, digests, strict=True)}

    def _remember(self, pairs: Iterable[tuple[FileEntry, str]]) -> None:
        now = time.time_ns()
        rows = [
            (str(file.path.absolute()), file.stamp, sha)
            for file, sha in pairs
            if now - int(file.stamp.split(":")[1]) > _RACY_NS
            and _entry(file.relative, file.path).stamp == file.stamp
        ]
        # What cannot be remembered is read again the next time.
        with contextlib.suppress(sqlite3.Error), self._db:
            self._db.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?)", rows)


def _open(path: Path | str) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=30, check_same_thread=False)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=OFF")
    db.execute("CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, stamp TEXT, sha256 TEXT)")
    return db
