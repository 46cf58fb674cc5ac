"""A bundle's way onto a phone: only what changed, and never a file of somebody else's.

The folder on the phone holds a list of what was put there, .edgekiln.json. It is written before
the first byte is sent, so that a push that is interrupted knows its own when it is repeated.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from edgekiln import units
from edgekiln.device.adb import Phone
from edgekiln.device.payload import Item, Payload
from edgekiln.errors import DeviceError, DigestError, DiskError, UsageError

if TYPE_CHECKING:
    from edgekiln.progress import Progress

LIST = ".edgekiln.json"
# The order in which the phone's programs for digests are tried: Android 6 and newer have the
# first; older toyboxes only the last.
_SUMS = ("sha256sum", "toybox sha256sum", "md5sum", "toybox md5sum")
# A line of the shell may be some 128 kB long; adb's own requests were shorter once.
_LINE = 4000
_SMALL = 1 << 20
# Two gigabytes take a phone some ten seconds to digest.
_PATIENCE = 900.0
# What a phone should keep when a bundle has been put on it.
_SPARE = 64 << 20


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """What a push did: names from the bundle's folder `place` on the phone, `sent` in bytes."""

    place: str
    new: tuple[str, ...]
    same: tuple[str, ...]
    removed: tuple[str, ...]
    kept: tuple[str, ...]
    sent: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class _There:
    """A file as the phone's list has it.

    `extra`: it came beside the bundle (a library) and stays when the bundle changes. `found`: it
    was there already, byte for byte; it may be replaced, but is not ours to remove.
    """

    size: int
    sha256: str
    md5: str = ""
    extra: bool = False
    found: bool = False


def push(
    phone: Phone,
    payload: Payload,
    progress: Progress,
    *,
    place: str,
    extra: Sequence[Item] = (),
) -> Pushed:
    """Bring the bundle, and `extra` files beside it, onto the phone; idempotent.

    Files of an older version of the bundle go, if they are still as they were put there.
    Raises DiskError when the phone is full, UsageError where a file of somebody else's lies in
    the way, DigestError for one that did not arrive whole.
    """
    began = time.monotonic()
    items = {item.name: item for item in (*payload.items, *extra)}
    phone.must(f"mkdir -p {quote(place)}", f"making {place}")
    before = _read_list(phone, place)
    tool = _tool(phone)
    progress.update(0, what="asking the phone what it has")
    there = _digests(phone, place, tool, sorted({*items, *before}))
    same = {n for n, item in items.items() if there.get(n) == _digest(item, tool)}
    todo = [item for name, item in items.items() if name not in same]
    _refuse_strangers(place, todo, there, before)
    stale = {n for n, f in before.items() if n not in items and n in there and not f.extra}
    ours = {n for n in stale if not before[n].found and there[n] == _recorded(before[n], tool)}
    _refuse_full(phone, place, todo, before, ours)
    after = {n: f for n, f in before.items() if f.extra and n in there}
    beside = {item.name for item in extra}
    for name, item in items.items():
        found = name in same and (name not in before or before[name].found)
        after[name] = _record(item, tool, extra=name in beside, found=found)
    if {**before, **after} != before:
        _write_list(phone, payload, place, {**before, **after})
    _remove(phone, place, ours)
    _send(phone, place, todo, progress)
    _make_executable(phone, place, items.values())
    _verify(phone, place, tool, todo)
    if set(before) - set(after):
        _write_list(phone, payload, place, after)
    return Pushed(
        place=place,
        new=tuple(item.name for item in todo),
        same=tuple(sorted(same)),
        removed=tuple(sorted(ours)),
        kept=tuple(sorted(stale - ours)),
        sent=sum(item.size for item in todo),
        seconds=time.monotonic() - began,
    )


def pushed_files(phone: Phone, place: str) -> dict[str, str]:
    """The sha256 of each file that was pushed to `place`, by name; empty where nothing was."""
    return {name: file.sha256 for name, file in _read_list(phone, place).items()}


def _read_list(phone: Phone, place: str) -> dict[str, _There]:
    path = quote(posixpath.join(place, LIST))
    text = phone.must(f"if [ -e {path} ]; then cat {path}; fi", "reading its list of files")
    try:
        files = json.loads(text)["files"]
        return {str(name): _There(**file) for name, file in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        # Cut short when the phone lost power: everything is compared by its digest anyway.
        return {}


def _write_list(phone: Phone, payload: Payload, place: str, files: Mapping[str, Any]) -> None:
    value = {"format": 1, "model": payload.model, "backend": payload.backend}
    value["files"] = {
        name: {k: v for k, v in vars(file).items() if v} for name, file in sorted(files.items())
    }
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder, "list.json")
        local.write_text(json.dumps(value, indent=1), encoding="utf-8", newline="\n")
        target = posixpath.join(place, LIST)
        phone.push(local, f"{target}.new", lambda _: None)
        phone.must(f"mv -f {quote(f'{target}.new')} {quote(target)}", "writing the list of files")


def _tool(phone: Phone) -> str:
    """The phone's program for digests; it prints the digest first."""
    tries = " || ".join(f"(echo x | {t} >/dev/null 2>&1 && echo {quote(t)})" for t in _SUMS)
    done = phone.shell(tries)
    tool = done.stdout.strip()
    if tool not in _SUMS:
        raise DeviceError(
            "the phone cannot make digests",
            why="it has neither sha256sum nor md5sum",
            remedy="copy the bundle with adb push by hand",
        )
    return tool


def _digests(phone: Phone, place: str, tool: str, names: Sequence[str]) -> dict[str, str]:
    """The digest of each file that is there, asked for in lines the shell can take."""
    found: dict[str, str] = {}
    for batch in _batches(names):
        words = " ".join(quote(f"./{name}") for name in batch)
        # What is missing makes the tool end with 1; that is an answer too.
        script = f"cd {quote(place)} && {{ {tool} {words} 2>/dev/null; true; }}"
        text = phone.must(script, "comparing files", timeout=_PATIENCE)
        for line in text.splitlines():
            digest, _, name = line.strip().partition(" ")
            found[name.strip().lstrip("*").removeprefix("./")] = digest.lower()
    return found


def _batches(names: Sequence[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for name in names:
        if batch and sum(len(quote(n)) + 3 for n in (*batch, name)) > _LINE:
            yield batch
            batch = []
        batch.append(name)
    if batch:
        yield batch


def _digest(item: Item, tool: str) -> str:
    if "md5" not in tool:
        return item.sha256
    with item.source.open("rb") as file:
        md5 = hashlib.md5(usedforsecurity=False)
        while piece := file.read(1 << 20):
            md5.update(piece)
    return md5.hexdigest()


def _recorded(file: _There, tool: str) -> str:
    return file.md5 if "md5" in tool else file.sha256


def _record(item: Item, tool: str, *, extra: bool, found: bool) -> _There:
    md5 = _digest(item, tool) if "md5" in tool else ""
    return _There(size=item.size, sha256=item.sha256, md5=md5, extra=extra, found=found)


def _refuse_strangers(
    place: str, todo: Iterable[Item], there: Mapping[str, str], before: Mapping[str, _There]
) -> None:
    """A file that would be overwritten and was not put there by edgekiln stays."""
    theirs = [item.name for item in todo if item.name in there and item.name not in before]
    if theirs:
        raise UsageError(
            f"{place}/{theirs[0]} is on the phone already, and another",
            why=f"edgekiln did not put it there ({len(theirs)} files in all)",
            remedy="give another folder with --to, or remove it: adb shell rm "
            + quote(place)
            + "/"
            + quote(theirs[0]),
        )


def _refuse_full(
    phone: Phone,
    place: str,
    todo: Sequence[Item],
    before: Mapping[str, _There],
    removed: Iterable[str],
) -> None:
    """What is sent must fit beside what stays; adbd removes a file before it is replaced."""
    if not todo:
        return
    sizes = {name: file.size for name, file in before.items()}
    need = sum(max(0, item.size - sizes.get(item.name, 0)) for item in todo)
    need += _SPARE - sum(sizes[name] for name in removed)
    free = free_space(phone, place)
    if free < need:
        raise DiskError(
            f"the phone has {units.size(free)} free at {place}",
            why=f"the bundle needs {units.size(need)}",
            remedy="free some space on the phone, or give a folder on another volume with --to",
        )


def free_space(phone: Phone, place: str) -> int:
    """Bytes free where `place` lies, as df(1) of POSIX and of toybox tells it."""
    command = f"df -kP {quote(place)} || df -k {quote(place)}"
    said = phone.must(command, "asking for its space").strip().splitlines() or [""]
    words = said[-1].split()
    for word, after in pairwise(words):
        if after.endswith("%") and word.isdigit():
            return int(word) * 1024
    raise DeviceError(
        "how much space the phone has cannot be understood",
        why=f"its df says: {said[-1][:200]}",
        remedy="copy the bundle with adb push by hand",
    )


def _remove(phone: Phone, place: str, names: Iterable[str]) -> None:
    """Remove files of an older version, then the folders that are empty without them."""
    gone = sorted(names)
    for batch in _batches(gone):
        words = " ".join(quote(f"./{name}") for name in batch)
        phone.must(f"cd {quote(place)} && rm -f {words}", "removing an older version's files")
    folders = {f for name in gone for f in _parents(name)}
    for batch in _batches(sorted(folders, reverse=True)):
        words = " ".join(quote(f"./{name}") for name in batch)
        phone.shell(f"cd {quote(place)} && rmdir {words} 2>/dev/null")


def _parents(name: str) -> Iterator[str]:
    while name := posixpath.dirname(name):
        yield name


def _send(phone: Phone, place: str, todo: Sequence[Item], progress: Progress) -> None:
    total, done = sum(item.size for item in todo), 0
    folders = sorted({f for item in todo for f in _parents(item.name)})
    for batch in _batches(folders):
        words = " ".join(quote(f"./{name}") for name in batch)
        phone.must(f"cd {quote(place)} && mkdir -p {words}", f"making folders in {place}")
    for group in _groups(todo):
        progress.update(done, total, group[0].name)
        if len(group) > 1:
            folder = posixpath.join(place, posixpath.dirname(group[0].name)).rstrip("/")
            phone.push_into([item.source for item in group], folder)
        else:
            _send_one(phone, place, group[0], progress, done, total)
        done += sum(item.size for item in group)
    if todo:
        progress.update(done, total, "")


def _send_one(  # noqa: PLR0917
    phone: Phone, place: str, item: Item, progress: Progress, done: int, total: int
) -> None:
    def told(there: int) -> None:
        progress.update(done + min(there, item.size), total, item.name)

    phone.push(item.source, posixpath.join(place, item.name), told)


def _groups(todo: Sequence[Item]) -> Iterator[list[Item]]:
    """Small files first, those of one folder together: a call of adb takes longer than they do."""
    small: dict[str, list[Item]] = {}
    alone = []
    for item in todo:
        if item.size <= _SMALL and posixpath.basename(item.name) == item.source.name:
            small.setdefault(posixpath.dirname(item.name), []).append(item)
        else:
            alone.append([item])
    for items in small.values():
        for names in _batches([str(item.source) for item in items]):
            yield [item for item in items if str(item.source) in names]
    yield from alone


def _make_executable(phone: Phone, place: str, items: Iterable[Item]) -> None:
    """Programs may be run; a host without such modes (Windows) does not send them along."""
    programs = [i.name for i in items if is_program(i.name)]
    if programs:
        words = " ".join(quote(f"./{name}") for name in programs)
        phone.must(f"cd {quote(place)} && chmod 755 {words}", "making programs executable")


_PROGRAMS = ("genie-t2t-run", "llm_demo", "llm_bench")


def is_program(name: str) -> bool:
    """Whether a file is one that is started on the phone."""
    return posixpath.basename(name) in _PROGRAMS or name.endswith(".sh")


def _verify(phone: Phone, place: str, tool: str, sent: Sequence[Item]) -> None:
    arrived = _digests(phone, place, tool, [item.name for item in sent])
    broken = [i.name for i in sent if arrived.get(i.name) != _digest(i, tool)]
    if broken:
        raise DigestError(
            f"{broken[0]} did not arrive whole",
            why=f"the phone's {tool} says otherwise ({len(broken)} files)",
            remedy="push again; if it stays, try another cable",
        )
