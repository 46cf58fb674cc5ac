"""Packages of the distribution that lie on this machine: by name, version and sha256.

The vendor folder is looked into first, then the folders that EDGEKILN_MIRRORS names, then what this
machine's own apt has kept. A file is known by its bytes; its name says only where to look.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from edgekiln.digest import digest_file
from edgekiln.errors import DigestError
from edgekiln.toolchain.lock import Deb
from edgekiln.toolchain.wheels import mirrored, vendor

_APT = Path("/var/cache/apt/archives")
_OURS = ("amd64", "all")


@dataclass(frozen=True, kw_only=True)
class Wrong:
    """A file that is called like a locked package, or holds it at another version."""

    deb: Deb
    path: Path
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Found:
    """Where debs lie; and files that were passed over, since they are others.

    A base and a toolchain may have two versions of one package: a name alone says too little.
    """

    here: dict[Deb, Path] = field(default_factory=dict)
    wrong: tuple[Wrong, ...] = ()

    def refuse(self, absent: Iterable[Deb]) -> None:
        """Raise DigestError for the first of `absent` that is here in other bytes only."""
        wanted = set(absent)
        for each in self.wrong:
            if each.deb in wanted:
                raise refusal(each.deb, found=each.sha256, place=str(each.path))


def refusal(deb: Deb, *, found: str, place: str) -> DigestError:
    """The error for a package that is not the one that was locked."""
    return DigestError(
        f"the package {deb.name} {deb.version} is not the one that was locked",
        why=f"sha256 is {found}, locked is {deb.sha256}; it came from {place}",
        remedy="take it from the distribution's archive, or from a vendor folder that "
        "`kiln toolchains fetch` has filled",
    )


def find_debs(debs: Iterable[Deb], folders: Sequence[Path] | None = None) -> Found:
    """Those of `debs` that lie in `folders` (left out: where this machine keeps such files).

    A file of the right name and other bytes is passed over: the next folder may have the right one.
    """
    places = looked_into() if folders is None else folders
    here: dict[Deb, Path] = {}
    wrong: list[Wrong] = []
    for deb in debs:
        for path in (path for folder in places for path in _called_like(deb, folder)):
            sha256 = digest_file(path)
            if sha256 == deb.sha256:
                here[deb] = path
                break
            wrong.append(Wrong(deb=deb, path=path, sha256=sha256))
    return Found(here=here, wrong=tuple(wrong))


def looked_into() -> list[Path]:
    """The folders in which packages may lie, the one that counts most first."""
    return [*vendor(), *mirrored(), *([_APT] if _APT.is_dir() else [])]


def file_name(deb: Deb, path: Path) -> str:
    """What apt calls the file: it takes none of another name for downloaded."""
    architecture = path.stem.rpartition("_")[2]
    return f"{deb.name}_{_escaped(deb.version)}_{architecture}.deb"


def names_of(deb: Deb) -> list[str]:
    """What its file may be called: as apt names it, and as archives do (no epoch)."""
    versions = dict.fromkeys((_escaped(deb.version), deb.version.partition(":")[2] or deb.version))
    return [f"{deb.name}_{v}_{architecture}.deb" for v in versions for architecture in _OURS]


def _called_like(deb: Deb, folder: Path) -> Iterator[Path]:
    """Files that may be the package."""
    return (path for name in names_of(deb) if (path := folder / name).is_file())


def _escaped(version: str) -> str:
    """A version as apt writes it into a file's name: 1:2.3 → 1%3a2.3."""
    return quote(version, safe="+~.-").replace("%3A", "%3a")
