"""Finished stage outputs, addressed by the digest of all that went into them.

    store/objects/ab/abcd…/entry.json    what it is, how it was made, every file's digest
    store/objects/ab/abcd…/out/          the outputs, read only
    store/doing/abcd….1234/              a running stage; renamed into objects/ when it ended well
    store/locks/abcd….lock               one builder a key
    store/index.sqlite                   the stat index

A rename is the only way in, so what lies in objects/ is whole. A killed build leaves a folder
in doing/ that the next build sweeps away.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekiln.digest import FileIndex, combine, digest_file, walk
from edgekiln.errors import AccessError, DiskError
from edgekiln.locking import held, is_held

_LAYOUT = "v1"
_USED_AGAIN = 86400.0
# Modes of what is kept: read only but for the folders, so that a store can be tidied.
_FOLDER, _PROGRAM, _FILE = 0o755, 0o555, 0o444


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A finished stage: where its outputs lie and what is written of them."""

    key: str
    path: Path
    meta: Mapping[str, Any]

    def output(self, name: str) -> Path:
        """Where an output lies."""
        return self.path / "out" / name

    def output_digest(self, name: str) -> str:
        """An output's content digest, as recorded when it was committed."""
        return str(self.meta["outputs"][name]["digest"])

    @property
    def size(self) -> int:
        """Bytes of all outputs."""
        return sum(int(o["size"]) for o in self.meta["outputs"].values())


class Store:
    """The store under one root folder; safe for several processes at once."""

    def __init__(self, root: Path) -> None:
        self.root = root / _LAYOUT
        try:
            for part in ("objects", "doing", "locks"):
                (self.root / part).mkdir(parents=True, exist_ok=True)
            self.index = FileIndex(self.root / "index.sqlite")
        except OSError as error:
            raise AccessError(
                f"cannot write the store at {self.root}",
                why=error.strerror or str(error),
                remedy="set EDGEKILN_HOME to a folder you may write",
            ) from error

    def close(self) -> None:
        """Let go of the index."""
        self.index.close()

    def find(self, key: str) -> Entry | None:
        """The entry of that key, if it is there and its files are as they were committed."""
        path = self._object(key)
        try:
            meta = json.loads((path / "entry.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        entry = Entry(key=key, path=path, meta=meta)
        if not self._intact(entry):
            return None
        if time.time() - self.last_used(entry) > _USED_AGAIN:
            os.utime(path / "entry.json")
        return entry

    def last_used(self, entry: Entry) -> float:
        """When an entry was made or last found, to the day (seconds since 1970)."""
        return (entry.path / "entry.json").stat().st_mtime

    def building(self, key: str, on_wait: Callable[[], None]) -> AbstractContextManager[None]:
        """Hold the right to make `key`; `on_wait` is called if another build is making it."""
        return held(self.root / "locks" / f"{key}.lock", on_wait)

    def workspace(self, key: str) -> Path:
        """A fresh folder for a running stage, with an empty out/ in it."""
        work = self.root / "doing" / f"{key}.{os.getpid()}"
        _remove(work)
        (work / "out").mkdir(parents=True)
        return work

    def commit(self, key: str, work: Path, meta: Mapping[str, Any]) -> Entry:
        """Make a finished workspace an entry. Whatever else is in `work` is thrown away."""
        place = self._object(key)
        for extra in work.iterdir():
            if extra.name != "out":
                _remove(extra)
        outputs = {out.name: _describe(out) for out in sorted((work / "out").iterdir())}
        full = {**meta, "key": key, "created": int(time.time()), "outputs": outputs}
        try:
            _write_whole(work / "entry.json", json.dumps(full, indent=1, sort_keys=True))
            _settle_modes(work / "out")
            place.parent.mkdir(parents=True, exist_ok=True)
            if place.exists():  # a damaged one: find() has refused it
                _remove(place)
            work.rename(place)
        except OSError as error:
            raise disk_error(error, place) from error
        return Entry(key=key, path=place, meta=full)

    def discard(self, work: Path) -> None:
        """Throw a workspace away; what cannot go now, the next sweep takes."""
        with contextlib.suppress(OSError):
            _remove(work)

    def sweep(self) -> None:
        """Remove workspaces whose builder is gone."""
        for work in (self.root / "doing").iterdir():
            key = work.name.split(".")[0]
            if not is_held(self.root / "locks" / f"{key}.lock"):
                self.discard(work)

    def running_elsewhere(self) -> int:
        """How many stages other living builds run now."""
        places = [work.name.split(".") for work in (self.root / "doing").iterdir()]
        others = [key for key, pid, *_ in places if pid != str(os.getpid())]
        return sum(is_held(self.root / "locks" / f"{key}.lock") for key in others)

    def entries(self) -> Iterator[Entry]:
        """Every entry, whole or damaged."""
        for file in sorted((self.root / "objects").glob("*/*/entry.json")):
            try:
                meta = json.loads(file.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
            yield Entry(key=file.parent.name, path=file.parent, meta=meta)

    def remove(self, entry: Entry) -> bool:
        """Remove an entry, unless somebody is building that very key."""
        if is_held(self.root / "locks" / f"{entry.key}.lock"):
            return False
        _remove(entry.path)
        (self.root / "locks" / f"{entry.key}.lock").unlink(missing_ok=True)
        return True

    def _object(self, key: str) -> Path:
        return self.root / "objects" / key[:2] / key

    def _intact(self, entry: Entry) -> bool:
        """Sizes and times as recorded; where a time differs, the bytes decide."""
        for name, output in entry.meta["outputs"].items():
            for relative, (size, mtime, sha) in output["files"].items():
                path = entry.output(name)
                path = path / relative if output["folder"] else path
                try:
                    found = path.stat()
                except OSError:
                    return False
                if found.st_size != size:
                    return False
                if found.st_mtime_ns != mtime and digest_file(path) != sha:
                    return False
        return True


def _describe(output: Path) -> dict[str, Any]:
    files = {f.relative: (f, digest_file(f.path)) for f in walk(output)}
    return {
        "folder": output.is_dir(),
        "size": sum(f.size for f, _ in files.values()),
        "digest": combine((name, f.size, sha) for name, (f, sha) in files.items()),
        "files": {n: [f.size, int(f.stamp.split(":")[1]), sha] for n, (f, sha) in files.items()},
    }


def disk_error(error: OSError, place: Path) -> DiskError | AccessError:
    """The right error for a write that failed."""
    import errno

    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskError(
            f"the disk is full at {place}",
            why=error.strerror or str(error),
            remedy="free some space (`kiln store gc` shows what can go), then run this again",
        )
    return AccessError(
        f"cannot write {place}",
        why=error.strerror or str(error),
        remedy="see that your user may write there, or give another place",
    )


def _write_whole(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text, encoding="utf-8", newline="\n")
    temporary.replace(path)


def _settle_modes(root: Path) -> None:
    """Files read only, and every mode the same whoever built, under whatever umask.

    A file may be run where its maker could run it; links are left as they are.
    """
    root.chmod(_FOLDER)
    for folder, folders, names in os.walk(root):
        for path in (Path(folder, name) for name in (*folders, *names)):
            if not path.is_symlink():
                runs = stat.S_IXUSR & path.stat().st_mode
                path.chmod(_FOLDER if path.is_dir() else _PROGRAM if runs else _FILE)


def _remove(path: Path) -> None:
    def writable(function: Callable[..., Any], name: str, _: object) -> None:
        Path(name).parent.chmod(0o700)
        Path(name).chmod(0o700)
        function(name)

    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, onerror=writable)
    else:
        path.unlink(missing_ok=True)
