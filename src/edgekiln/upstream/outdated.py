"""What the indexes, the archives and the registries have that is newer than what is pinned."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgekiln.errors import KilnError
from edgekiln.progress import Progress, Silent
from edgekiln.report import table
from edgekiln.toolchain import Base, Toolchain
from edgekiln.toolchain.lock import BaseLock, Wheel, name_of, normal
from edgekiln.toolchain.relock import GLIBC
from edgekiln.transfer import shown as place_shown
from edgekiln.upstream import debs as archive
from edgekiln.upstream.index import Index, Listed, indexes
from edgekiln.upstream.web import NotReachedError, manifest_digest, parse_reference
from edgekiln.user.pipconf import PipSettings

if TYPE_CHECKING:
    from packaging.tags import Tag
    from packaging.version import Version

_SIDE_BY_SIDE = 12


@dataclass(frozen=True, kw_only=True)
class Newer:
    """A version newer than the pinned one. `kind` is wheel, deb or image."""

    kind: str
    name: str
    before: str
    after: str
    toolchains: tuple[str, ...]


@dataclass(kw_only=True)
class Report:
    """What was found, and what could not be asked: one line each."""

    newer: list[Newer] = field(default_factory=list)
    not_reached: list[str] = field(default_factory=list)


def outdated(
    toolchains: Sequence[Toolchain], pip: PipSettings, progress: Progress, *, every: bool = False
) -> Report:
    """Newer versions of what the YAMLs pin; with `every` of all that the locks hold."""
    report, found = Report(), dict[tuple[str, str, str, str], list[str]]()
    known: dict[str, Index] = {}
    asked = [
        (toolchain, wheel, [known.setdefault(i.address, i) for i in there])
        for toolchain in toolchains
        for there in [indexes(pip, toolchain.places)]
        for wheel in _wanted(toolchain, every)
    ]
    bases = {toolchain.base.name: toolchain.base for toolchain in toolchains if toolchain.base.lock}
    total, done, guard = len(asked) + len(bases), 0, threading.Lock()

    def step(what: str) -> None:
        nonlocal done
        with guard:
            done += 1
            progress.update(done, total, what)

    def wheel_of(each: tuple[Toolchain, Wheel, list[Index]]) -> str:
        toolchain, wheel, there = each
        newest = newest_version(wheel, there, toolchain)
        step(wheel.name)
        return newest

    def base_of(base: Base) -> tuple[archive.View | None, str, list[str]]:
        told = _ask_base(base, toolchains, every)
        step(base.name)
        return told

    progress.update(0, total, "asking")
    with ThreadPoolExecutor(max_workers=_SIDE_BY_SIDE) as pool:
        views = pool.map(base_of, bases.values())
        newest = list(pool.map(wheel_of, asked))
        told = dict(zip(bases.values(), views, strict=True))
    for (toolchain, wheel, _), after in zip(asked, newest, strict=True):
        if after:
            key = ("wheel", wheel.name, wheel.version, after)
            found.setdefault(key, []).append(toolchain.name)
    for base, (view, digest, silent) in told.items():
        report.not_reached += silent
        on_it = [toolchain for toolchain in toolchains if toolchain.base.name == base.name]
        for key, names in _of_base(base, view, digest, on_it, every):
            found.setdefault(key, []).extend(names)
    report.not_reached += [f"{place_shown(i.address)}: {i.dead}" for i in known.values() if i.dead]
    report.newer = [
        Newer(kind=kind, name=name, before=before, after=after, toolchains=tuple(names))
        for (kind, name, before, after), names in found.items()
    ]
    return report


def _wanted(toolchain: Toolchain, every: bool) -> list[Wheel]:
    """The locked wheels of what the YAML asks for by name, or all of them."""
    if every:
        return list(toolchain.lock.wheels)
    definition = toolchain.lock.definition
    lines = (*definition.requirements, *definition.overrides)
    names = {normal(name_of(line)) for line in lines}
    return [wheel for wheel in toolchain.lock.wheels if normal(wheel.name) in names]


def newest_version(wheel: Wheel, places: Iterable[Index], toolchain: Toolchain) -> str:
    """The newest version with a wheel for the image; "" where that is no newer than the locked.

    Versions that were withdrawn do not count, nor do previews unless one is locked; a local
    version (+cpu) is followed by its own kind only.
    """
    from packaging.version import Version

    own = Version(wheel.version)
    fits = image_tags(toolchain)
    best = own
    for index in places:
        try:
            files = index.files(wheel.name)
        except NotReachedError:
            continue
        for each in files:
            version = _version(each, wheel.name, fits, toolchain.python)
            if version is None or version.local != own.local or version <= best:
                continue
            if not version.is_prerelease or own.is_prerelease:
                best = version
    return str(best) if best > own else ""


def image_tags(toolchain: Toolchain) -> frozenset[Tag]:
    """The tags of wheels that fit the image: its Python, and the glibc of its base."""
    from packaging import tags

    base = toolchain.base.lock
    release = base.definition.release if isinstance(base, BaseLock) else ""
    minor = int(GLIBC.get(release, "2_17").partition("_")[2])
    platforms = [f"manylinux_2_{n}_x86_64" for n in range(minor, 4, -1)]
    platforms += [f"manylinux{name}_x86_64" for name in ("2014", "2010", "1")] + ["linux_x86_64"]
    python = tuple(int(part) for part in toolchain.python.split("."))
    tag = f"cp{toolchain.python.replace('.', '')}"
    own = tags.cpython_tags(python, abis=[tag], platforms=platforms)
    return frozenset([*own, *tags.compatible_tags(python, interpreter=tag, platforms=platforms)])


def _version(each: Listed, name: str, fits: frozenset[Tag], python: str) -> Version | None:
    """The version of a listed wheel; None for what the image could not take."""
    from packaging.specifiers import InvalidSpecifier, SpecifierSet
    from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

    if each.yanked or not each.file.endswith(".whl"):
        return None
    try:
        project, version, _, tagged = parse_wheel_filename(each.file)
        wanted = SpecifierSet(each.requires_python)
    except (InvalidWheelFilename, InvalidSpecifier):
        return None
    other = project != canonicalize_name(name)  # a folder lists everything it has
    return None if other or not tagged & fits or f"{python}.99" not in wanted else version


def _ask_base(
    base: Base, toolchains: Sequence[Toolchain], every: bool
) -> tuple[archive.View | None, str, list[str]]:
    """apt's view of the locked packages, the digest of the image's tag, what was not reached."""
    assert base.lock is not None
    silent, digest, view = [], "", None
    image = parse_reference(base.lock.definition.image)
    try:
        digest = manifest_digest(image, image.tag) if image.tag else ""
    except NotReachedError as error:
        silent.append(f"{image.host}/{image.repository}: {error}")
    own = [toolchain for toolchain in toolchains if toolchain.base.name == base.name]
    names = {deb.name for toolchain in own for deb in toolchain.lock.debs}
    names |= {deb.name for deb in base.lock.debs} if every else set()
    if names:
        try:
            view = archive.view(base, names, Silent())
        except KilnError as error:
            silent.append(f"packages of {base.name}: {error.short}")
    return view, digest, silent


def _of_base(
    base: Base,
    view: archive.View | None,
    digest: str,
    toolchains: Sequence[Toolchain],
    every: bool,
) -> Iterator[tuple[tuple[str, str, str, str], list[str]]]:
    assert base.lock is not None
    held = base.lock.image_digest
    if digest and digest != held:
        name = base.lock.definition.image.partition("@")[0]
        yield ("image", name, held, digest), [base.name]
    if view is None:
        return
    locks = [(toolchain.name, toolchain.lock.debs) for toolchain in toolchains]
    locks += [(base.name, base.lock.debs)] if every else []
    for name, debs in locks:
        for deb in debs:
            now = view.newest.get(deb.name)
            if now is not None and compare(now.version, deb.version) > 0:
                yield ("deb", deb.name, deb.version, now.version), [name]


def compare(one: str, other: str) -> int:
    """Order of two versions of Debian packages: below, at or above 0 (deb-version(7))."""
    a, b = _split(one), _split(other)
    if a[0] != b[0]:
        return a[0] - b[0]
    return _order(a[1], b[1]) or _order(a[2], b[2])


def _split(version: str) -> tuple[int, str, str]:
    """Epoch, upstream's version, Debian's revision."""
    epoch, colon, rest = version.partition(":")
    if not colon:
        epoch, rest = "0", version
    upstream, dash, revision = rest.rpartition("-")
    return int(epoch), *((upstream, revision) if dash else (rest, ""))


def _order(one: str, other: str) -> int:
    """Letters and digits by turns; a tilde is before everything, even the end."""
    while one or other:
        (a, one), (b, other) = (_cut(text, r"\D*") for text in (one, other))
        for x, y in zip(a.ljust(len(b), "\0"), b.ljust(len(a), "\0"), strict=True):
            if x != y:
                return _weight(x) - _weight(y)
        (a, one), (b, other) = (_cut(text, r"\d*") for text in (one, other))
        if int(a or 0) != int(b or 0):
            return int(a or 0) - int(b or 0)
    return 0


def _cut(text: str, pattern: str) -> tuple[str, str]:
    found = re.match(pattern, text)
    end = found.end() if found else 0
    return text[:end], text[end:]


def _weight(letter: str) -> int:
    if letter == "~":
        return -1
    return 0 if letter == "\0" else ord(letter) if letter.isalpha() else ord(letter) + 256


HEAD = ("kind", "package", "pinned", "newest", "in")


def shown(report: Report) -> str:
    """A table of what is newer, then what could not be asked."""
    rows = [(n.kind, n.name, n.before, n.after, ", ".join(n.toolchains)) for n in report.newer]
    lines = [table(rows, HEAD) if rows else "nothing that could be asked has anything newer"]
    lines += [f"not reached: {line}" for line in report.not_reached]
    return "\n".join(lines)


def plain(report: Report) -> dict[str, Any]:
    """The same for machines, and the bumps that it comes to."""
    return {
        "newer": [vars(each) for each in report.newer],
        "not_reached": report.not_reached,
        "bumps": bumps(report),
    }


def bumps(report: Report) -> list[dict[str, Any]]:
    """One change each: a Python package wherever it is pinned; the debs of a toolchain.

    `only` and `to` are what `kiln toolchains lock NAME` is given; `to` is "" for debs.
    """
    wheels: dict[tuple[str, str], list[str]] = {}
    debs: dict[str, list[str]] = {}
    for each in report.newer:
        if each.kind == "wheel":
            wheels.setdefault((each.name, each.after), []).extend(each.toolchains)
        elif each.kind == "deb":
            for toolchain in each.toolchains:
                debs.setdefault(toolchain, []).append(each.name)
    found = [
        {"only": name, "to": to, "toolchains": sorted(names), "branch": _branch(name, to)}
        for (name, to), names in wheels.items()
    ]
    return found + [
        {"only": "debs", "to": "", "toolchains": [name], "branch": _branch("debs", name)}
        for name in debs
    ]


def _branch(*words: str) -> str:
    return "bump/" + "-".join(re.sub(r"[^\w.]+", "-", word) for word in words)
