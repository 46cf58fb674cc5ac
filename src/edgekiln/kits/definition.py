"""What a kit's YAML says: archives by digest, or a source by commit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edgekiln.errors import ToolchainError
from edgekiln.toolchain.records import field, read_named
from edgekiln.transfer import Pin

FIRST_USE = "first-use"
_HEX = {"sha256": 64, "sha1": 40}
_ZIPS = (".zip", ".whl", ".jar", ".aar")
_TARS = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tar.zst")


@dataclass(frozen=True, kw_only=True)
class Archive:
    """One file of a kit: where it is to be had, what it must be, where its content goes."""

    file: str = field("the file's name, in a vendor folder as well")
    places: tuple[str, ...] = field("addresses that give it; tried in order")
    sha256: str = field("its sha256", default="")
    sha1: str = field("its sha1, where that is all its maker publishes", default="")
    trust: str = field("first-use, where nobody publishes a digest", default="")
    size: int = field("its size in bytes, where it is known", default=0)
    strip: int = field("how many leading folders are taken off each member", default=0)
    only: tuple[str, ...] = field("the folders (after strip) to keep; all without", default=())
    into: str = field("the folder below the kit that it goes into", default=".")

    @property
    def kind(self) -> str:
        """zip or tar by the file's name; file for what is no archive and stays as it is."""
        name = self.file.lower()
        return "zip" if name.endswith(_ZIPS) else "tar" if name.endswith(_TARS) else "file"

    @property
    def pin(self) -> Pin:
        """What the YAML knows of the file; for first use there may be more on record."""
        return Pin(sha256=self.sha256, sha1=self.sha1, size=self.size)

    @property
    def trusted_by(self) -> str:
        """sha256, sha1 or first-use."""
        return "sha256" if self.sha256 else "sha1" if self.sha1 else FIRST_USE


@dataclass(frozen=True, kw_only=True)
class Submodule:
    """A repository inside another. Without a commit, the one that the outer commit names."""

    repository: str = field("its address")
    commit: str = field("its commit, checked against the outer repository's tree", default="")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A git repository at one commit, with the repositories inside it.

    Those that are not listed come from where .gitmodules says, at the commit that the tree
    names: the outer commit covers them.
    """

    repository: str = field("its address")
    commit: str = field("the commit, 40 hex digits")
    submodules: Mapping[str, Submodule] = field("by path", default_factory=dict)
    without: tuple[str, ...] = field("paths of submodules that are left out", default=())


@dataclass(frozen=True, kw_only=True)
class KitDefinition:
    """toolchains/kits/NAME.yaml."""

    name: str = field("the file's own name")
    family: str = field("what it is a version of: its folder below kits/ in a stage")
    summary: str = field("one line for people")
    version: str = field("its maker's version", default="")
    licence: str = field("the licence to accept before it is fetched", default="")
    spdx: str = field("its licence as an SPDX expression, for bills of materials", default="")
    archives: tuple[Archive, ...] = field("files, unpacked one over the other", default=())
    source: Source | None = field(  # noqa: RUF009 - a field of records, not a value
        "a git repository at one commit", default=None
    )
    unpacked: int = field("bytes it takes on disk, where that was measured", default=0)
    holds: tuple[str, ...] = field("paths that are there when it is whole", default=())


def read_kit(path: Path) -> KitDefinition:
    """The kit in `path`, checked. Raises ToolchainError with the path of what is wrong."""
    found = read_named(KitDefinition, path)
    _check(found, path.name)
    return found


def _check(kit: KitDefinition, where: str) -> None:
    """Refuse what cannot be fetched safely: no trust said, half a digest, a path that climbs."""
    if bool(kit.archives) == bool(kit.source):
        raise ToolchainError(f"{where}: a kit has either archives or a source")
    for archive in kit.archives:
        told = [name for name in ("sha256", "sha1", "trust") if getattr(archive, name)]
        if len(told) != 1:
            raise ToolchainError(
                f"{where}: {archive.file} names {' and '.join(told) or 'no digest'}",
                remedy="give one of sha256, sha1, trust: first-use",
            )
        if archive.trust not in ("", FIRST_USE):
            raise ToolchainError(f"{where}: trust is {archive.trust}", remedy="trust: first-use")
        for name, length in _HEX.items():
            _hex(getattr(archive, name), length, f"{where}: {name} of {archive.file}")
        if Path(archive.file).name != archive.file or not archive.places:
            raise ToolchainError(f"{where}: {archive.file!r} needs a plain name and a place")
    for path in (*kit.holds, *(a.into for a in kit.archives)):
        if not inside(path):
            raise ToolchainError(f"{where}: {path} is not below the kit")
    if kit.source:
        _check_source(kit.source, where)


def _check_source(source: Source, where: str) -> None:
    if not source.commit:
        raise ToolchainError(f"{where}: the source has no commit")
    _hex(source.commit, 40, f"{where}: commit")
    for path, sub in source.submodules.items():
        _hex(sub.commit, 40, f"{where}: commit of {path}")
        if not inside(path):
            raise ToolchainError(f"{where}: {path} is not below the kit")


def _hex(text: str, length: int, where: str) -> None:
    if text and not re.fullmatch(rf"[0-9a-f]{{{length}}}", text):
        raise ToolchainError(f"{where} is {text!r}", remedy=f"give {length} hex digits")


def inside(path: str) -> bool:
    """Whether a relative path stays below where it starts."""
    parts = PurePosixPath(path)
    plain = "\\" not in path and "\0" not in path and ":" not in path
    return bool(path) and plain and not parts.is_absolute() and ".." not in parts.parts
