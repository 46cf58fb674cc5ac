"""What a new lock has that the old one had not, package by package."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekiln.toolchain.lock import BaseLock, Deb, Lock, Wheel, normal


@dataclass(frozen=True, kw_only=True)
class Change:
    """One thing that is locked otherwise. A version is "" where there is none on that side.

    `digest` says whether the bytes are others: they are, except where a name alone was changed.
    """

    kind: str
    name: str
    before: str
    after: str
    digest: bool

    @property
    def real(self) -> bool:
        """Whether anything is otherwise: what was asked about is told though it stayed."""
        return self.digest or self.before != self.after

    @property
    def row(self) -> tuple[str, ...]:
        """As a line of a table."""
        same = self.before and self.before == self.after
        told = "another file" if same and self.digest else "yes" if self.digest else "no"
        return self.kind, self.name, self.before or "none", self.after or "none", told


HEAD = ("kind", "package", "from", "to", "digest changed")


@dataclass(frozen=True, kw_only=True)
class Relocked:
    """A lock that was made anew."""

    path: Path
    changes: tuple[Change, ...]


def changes_of(
    before: Lock | BaseLock | None, after: Lock | BaseLock, asked: Iterable[str] = ()
) -> Iterator[Change]:
    """What changed, by kind and name; all of it is new where there was no lock.

    What was `asked` about by name is told also where it stayed as it was.
    """
    names = frozenset(map(normal, asked))
    if isinstance(after, BaseLock):
        held = before if isinstance(before, BaseLock) else None
        yield from _image(held, after)
        yield from _packages("deb", held.debs if held else (), after.debs, names)
        return
    old = before if isinstance(before, Lock) else None
    if old is None or old.base_sha256 != after.base_sha256:
        name, was = after.definition.base, old.definition.base if old else ""
        yield Change(kind="base", name=name, before=was, after=name, digest=True)
    yield from _packages("uv", (old.uv,) if old else (), (after.uv,), names)
    yield from _packages("wheel", old.wheels if old else (), after.wheels, names)
    yield from _packages("deb", old.debs if old else (), after.debs, names)


def _image(before: BaseLock | None, after: BaseLock) -> Iterator[Change]:
    was, now = (lock.definition.image if lock else "" for lock in (before, after))
    if was != now:
        (old, _, a), (new, _, b) = was.partition("@"), now.partition("@")
        yield Change(kind="image", name=after.definition.name, before=old, after=new, digest=a != b)


def _packages(
    kind: str,
    before: Sequence[Wheel | Deb],
    after: Sequence[Wheel | Deb],
    asked: frozenset[str],
) -> Iterator[Change]:
    old, new = ({each.name: each for each in side} for side in (before, after))
    for name in sorted(old.keys() | new.keys()):
        a, b = old.get(name), new.get(name)
        same = a is not None and b is not None and (a.version, a.sha256) == (b.version, b.sha256)
        if same and normal(name) not in asked:
            continue
        yield Change(
            kind=kind,
            name=name,
            before=a.version if a else "",
            after=b.version if b else "",
            digest=a is None or b is None or a.sha256 != b.sha256,
        )
