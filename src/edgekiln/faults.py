"""Known faults of the tools: recognised in a log, and told with what to do.

What is known lies in faults.yaml. A log may be gigabytes long: it is read once, in pieces, and
each piece is asked for a handful of byte strings; only lines that hold one are looked at.
"""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from edgekiln import yamls
from edgekiln.errors import DiskError, FetchError, KilnError, OutOfMemoryError, StageError

E = TypeVar("E", bound=KilnError)

_PIECE = 1 << 20
# A line longer than this is no message of a tool's: of it only the end that shares a piece is seen.
_LONGEST_LINE = 1 << 16
_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_KINDS: Mapping[str, type[KilnError]] = {
    "stage": StageError,
    "memory": OutOfMemoryError,
    "disk": DiskError,
    "fetch": FetchError,
}


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A fault as faults.yaml has it."""

    name: str
    says: bytes
    find: re.Pattern[str]
    also: tuple[re.Pattern[str], ...]
    what: str
    why: str
    do: str
    kind: str
    seen: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Found:
    """A fault in a log: its words with what the log says filled in, and the line itself."""

    fault: Fault
    what: str
    why: str
    do: str
    line: str

    @property
    def kind(self) -> type[KilnError]:
        """The class of error that a stage with this fault ends in."""
        return _KINDS[self.fault.kind]

    @property
    def threads(self) -> str:
        """Where it was seen, for people."""
        return ", ".join(self.fault.seen)


@lru_cache(maxsize=1)
def faults() -> tuple[Fault, ...]:
    """All that are known, those that say more first."""
    return tuple(_fault(entry) for entry in yamls.beside(__file__, "faults.yaml"))


def _fault(entry: Mapping[str, Any]) -> Fault:
    return Fault(
        name=entry["name"],
        says=entry["says"].encode(),
        find=re.compile(entry.get("find") or re.escape(entry["says"])),
        also=tuple(re.compile(text) for text in entry.get("also", ())),
        what=entry["what"],
        why=entry["why"],
        do=entry["do"],
        kind=entry.get("kind", "stage"),
        seen=tuple(entry["seen"]),
    )


def explain(log: Path) -> Found | None:
    """What a log tells of, if it is known; None also for a log that cannot be read."""
    found = explain_all(log)
    return found[0] if found else None


def explain_all(log: Path) -> list[Found]:
    """Every known fault in a log, those that say more first, each with its first line."""
    try:
        with log.open("rb") as file:
            # What PowerShell's `>` writes is UTF-16.
            if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
                return explain_texts(log.read_bytes().decode("utf-16", "replace"))
            file.seek(0)
            return _explain(file)
    except OSError:
        return []


def explain_text(text: str) -> Found | None:
    """The same for words that lie in no file."""
    found = explain_texts(text)
    return found[0] if found else None


def explain_texts(text: str) -> list[Found]:
    """Every known fault in words that lie in no file, those that say more first."""
    return _explain(io.BytesIO(text.encode("utf-8", "replace")))


def with_fault(error: E, log: Path) -> E:
    """The error with what its log tells of, if that is known; its own class and exit code."""
    found = explain(log)
    if found is None:
        return error
    why, remedy = (
        "; ".join(words for words in pair if words)
        for pair in ((found.why, error.why), (found.do, error.remedy))
    )
    return type(error)(f"{error.what}: {found.what}", why=why, remedy=remedy)


def _explain(file: BinaryIO) -> list[Found]:
    hits: dict[str, tuple[re.Match[str], str]] = {}
    more: dict[str, str] = {}
    for piece in _pieces(file):
        present = [fault for fault in faults() if fault.says in piece]
        for line in _lines(piece, {fault.says for fault in present}):
            _note(line, present, hits, more)
    return [_told(f, *hits[f.name], more) for f in faults() if f.name in hits]


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    """The file in pieces that end with a line each."""
    rest = b""
    while data := file.read(_PIECE):
        whole, end, after = (rest + data).rpartition(b"\n")
        if whole or end:
            yield whole
        rest = after[-_LONGEST_LINE:]
    if rest:
        yield rest


def _lines(piece: bytes, wanted: Iterable[bytes]) -> Iterator[str]:
    """The lines of a piece that hold one of these, in their order, without colours."""
    begins = {piece.rfind(b"\n", 0, at) + 1 for says in wanted for at in _places(piece, says)}
    for begin in sorted(begins):
        end = piece.find(b"\n", begin)
        line = piece[begin : end if end >= 0 else len(piece)]
        # A bar that is drawn over and over ends in carriage returns: the last one stands.
        text = line[-_LONGEST_LINE:].decode("utf-8", "replace").rstrip("\r").rpartition("\r")[2]
        yield _COLOURS.sub("", text)


def _places(piece: bytes, says: bytes) -> Iterator[int]:
    at = piece.find(says)
    while at >= 0:
        yield at
        at = piece.find(b"\n", at)  # the next line: one hit a line will do
        at = piece.find(says, at) if at >= 0 else -1


def _note(
    line: str,
    present: Iterable[Fault],
    hits: dict[str, tuple[re.Match[str], str]],
    more: dict[str, str],
) -> None:
    for fault in present:
        if fault.name not in hits and (match := fault.find.search(line)):
            hits[fault.name] = match, line
    for pattern in _side_lines():
        if match := pattern.search(line):
            more.update(match.groupdict(""))


@lru_cache(maxsize=1)
def _side_lines() -> tuple[re.Pattern[str], ...]:
    return tuple(pattern for fault in faults() for pattern in fault.also)


def _told(fault: Fault, match: re.Match[str], line: str, more: Mapping[str, str]) -> Found:
    words = _Words({name: "" for p in fault.also for name in p.groupindex})
    words.update(more)
    words.update(match.groupdict(""))
    return Found(
        fault=fault,
        what=fault.what.format_map(words),
        why=fault.why.format_map(words),
        do=fault.do.format_map(words),
        line=line.strip()[:300],
    )


class _Words(dict[str, str]):
    """Names and what the log says of them."""
