"""Files to and from another machine, by their digests: each byte once, whatever is cut."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from edgekiln import units
from edgekiln.digest import combine
from edgekiln.errors import DigestError, RemoteError
from edgekiln.remote.line import Line
from edgekiln.remote.parts import receive
from edgekiln.remote.wire import CHUNK
from edgekiln.store import disk_error

# An answer is waited for after so many bytes, or files.
_BATCH = 32 << 20
_BATCH_FILES = 500
_TELL_SECONDS = 0.1
_DISTRUST = "send nothing to that machine: no honest one says so"
_SHA256 = re.compile(r"[0-9a-f]{64}")
# (bytes done, bytes in all, rate in words)
Told = Callable[[int, int, str], None]


@dataclass(frozen=True, kw_only=True)
class Moved:
    """What a transfer came to: bytes that went over, bytes that were there already, seconds."""

    moved: int
    there: int
    seconds: float

    def __str__(self) -> str:
        rate = f" in {units.seconds(self.seconds)} ({_rate(self.moved, self.seconds)})"
        text = units.size(self.moved) + (rate if self.moved and self.seconds else "")
        return text + (f"; {units.size(self.there)} were there" if self.there else "")


def send(line: Line, files: Mapping[str, Path], told: Told) -> Moved:
    """See that the far side has these files, by their digests; only what it lacks goes over.

    Raises Cut; what has arrived until then counts the next time.
    """
    sizes = {sha: path.stat().st_size for sha, path in files.items()}
    have = line.ask(do="have", files=sizes)["have"]
    lacking = [(sha, sizes[sha], have[sha]) for sha in files if have[sha] != sizes[sha]]
    lacking = [(sha, size, at if at < size else 0) for sha, size, at in lacking]
    total = sum(size - at for _, size, at in lacking)
    meter = _Meter(total, told)
    for batch in _batches(lacking):
        pieces = (p for sha, _, at in batch for p in meter.counted(_read(files[sha], at)))
        line.ask(pieces, do="put", files=batch)
    return Moved(moved=total, there=sum(sizes.values()) - total, seconds=meter.seconds)


def fetch(line: Line, key: str, outputs: Mapping[str, Any], incoming: Path, told: Told) -> Moved:
    """Bring every file of a finished stage into `incoming`, by its digest.

    Raises Cut (what has arrived is kept), DigestError for bytes that are not the recorded, and
    RemoteError for names that would lead out of the folder.
    """
    _refuse_astray(outputs)
    wanted = {
        sha: (f"{name}/{path}" if output["folder"] else name, size)
        for name, output in outputs.items()
        for path, (size, sha, _) in output["files"].items()
    }
    lacking = []
    for sha, (path, size) in wanted.items():
        if not _whole(incoming / sha, size):
            lacking.append((sha, path, size, _partly(incoming, sha, size)))
    total = sum(size - at for _, _, size, at in lacking)
    meter = _Meter(total, told)
    for batch in _batches(lacking):
        line.ask(do="get", key=key, files=[lack[1:] for lack in batch])
        for sha, _, size, at in batch:
            pieces = meter.counted(line.body(size - at))
            receive(_part(incoming, sha), incoming / sha, sha, at, pieces)
    there = sum(size for _, size in wanted.values()) - total
    return Moved(moved=total, there=there, seconds=meter.seconds)


def _refuse_astray(outputs: Mapping[str, Any]) -> None:
    """What another machine calls its files becomes paths here: none may lead elsewhere."""
    for name, output in outputs.items():
        for path, (_, sha, _) in output["files"].items():
            parts = PurePosixPath(name, path).parts
            if path.startswith("/") or "/" in name or {"..", ""} & set(parts) or "\\" in path:
                what = f"output {name} has a file {path!r}, which leads elsewhere"
                raise RemoteError(what, remedy=_DISTRUST)
            if not _SHA256.fullmatch(sha):
                raise RemoteError(f"output {name}: {sha!r} is no sha256", remedy=_DISTRUST)


def lay_out(outputs: Mapping[str, Any], incoming: Path, out: Path) -> None:
    """Put fetched files where the stage's program would have; checked as a tree, too."""
    uses = [sha for o in outputs.values() for _, sha, _ in o["files"].values()]
    for name, output in outputs.items():
        if output["folder"]:
            (out / name).mkdir(parents=True, exist_ok=True)
        for path, (_, sha, program) in output["files"].items():
            target = out / name / path if output["folder"] else out / name
            uses.remove(sha)
            _place(incoming / sha, target, last=sha not in uses, program=program)
        files = output["files"].items()
        found = combine((path, size, sha) for path, (size, sha, _) in files)
        if found != output["digest"]:
            raise DigestError(
                f"output {name} came back as another tree",
                why=f"digest {found}, expected {output['digest']}",
                remedy="run it again",
            )


def _place(source: Path, target: Path, *, last: bool, program: bool) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if last:
            shutil.move(source, target)
        else:
            shutil.copyfile(source, target)
        target.chmod(0o755 if program else 0o644)
    except OSError as error:
        raise disk_error(error, target) from error


def _whole(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _part(incoming: Path, sha: str) -> Path:
    return incoming / f"{sha}.part"


def _partly(incoming: Path, sha: str, size: int) -> int:
    """How much of a file an earlier try has left."""
    part = _part(incoming, sha)
    found = part.stat().st_size if part.is_file() else 0
    return found if found < size else 0


def _read(path: Path, at: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(at)
        while piece := file.read(CHUNK):
            yield piece


def _batches(lacking: list[Any]) -> Iterator[list[Any]]:
    """Files in groups; the last two items of each are its size and what is there of it."""
    batch: list[Any] = []
    size = 0
    for each in lacking:
        if batch and (size > _BATCH or len(batch) >= _BATCH_FILES):
            yield batch
            batch, size = [], 0
        batch.append(each)
        size += each[-2] - each[-1]
    if batch:
        yield batch


class _Meter:
    """Counts what goes over, and how fast."""

    def __init__(self, total: int, told: Told) -> None:
        self._total, self._told, self._done = total, told, 0
        self._began = time.monotonic()
        self._last = 0.0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def counted(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            yield piece
            self._done += len(piece)
            now = time.monotonic()
            if self._done == self._total or now - self._last > _TELL_SECONDS:
                self._last = now
                self._told(self._done, self._total, _rate(self._done, self.seconds))


def _rate(size: int, seconds: float) -> str:
    return f"{units.size(size / max(seconds, 1e-3))}/s"
