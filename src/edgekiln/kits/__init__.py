"""Kits: what is in no package index, pinned in toolchains/kits/ and mounted, never installed.

An SDK's archives by digest, a git source by commit. A kit is fetched on this machine (the vendor
folder first), checked, unpacked once below home()/kits/, and seen read-only by stages; so nothing
of it is in an image's layer, and nothing that is under a licence can be pushed with one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from edgekiln.errors import ToolchainError, nearest
from edgekiln.home import home, vendor_folder
from edgekiln.kits import firstuse, gitsource
from edgekiln.kits.definition import Archive, KitDefinition, Source, read_kit
from edgekiln.transfer import Pin

if TYPE_CHECKING:
    from edgekiln.progress import Progress

__all__ = [
    "Kit",
    "Part",
    "is_ready",
    "list_kits",
    "load_kit",
    "missing",
    "parts",
    "ready",
    "ready_all",
    "settle",
]

# What is unpacked is as a rule no more than this many times as large as what was fetched.
_GROWS = 4


@dataclass(frozen=True)
class Kit:
    """A kit as its YAML has it. Its digest is what it was fetched by, not when or from where."""

    definition: KitDefinition

    @property
    def name(self) -> str:
        """The YAML's name."""
        return self.definition.name

    @property
    def family(self) -> str:
        """What it is a version of: its folder below kits/ in a stage."""
        return self.definition.family

    @property
    def summary(self) -> str:
        """One line for people."""
        return self.definition.summary

    @property
    def version(self) -> str:
        """Its maker's version, or the first digits of its commit."""
        source = self.definition.source
        return self.definition.version or (source.commit[:12] if source else "")

    @property
    def licence(self) -> str:
        """The licence to accept before it is fetched; "" where none asks for that."""
        return self.definition.licence

    @property
    def archives(self) -> tuple[Archive, ...]:
        """The files it is made of; none for a source."""
        return self.definition.archives

    @property
    def source(self) -> Source | None:
        """The repository it is made of; None for archives."""
        return self.definition.source

    @property
    def settled(self) -> bool:
        """Whether every first-use digest of it is on record: only then `digest` is its last."""
        return all(_sha256(archive) or archive.sha1 for archive in self.archives)

    @property
    def digest(self) -> str:
        """sha256 (hex) over the digests, commits and places within the kit."""
        kept = [_pinned(archive) for archive in self.archives]
        body = [self.family, kept, _pinned_source(self.source), list(self.definition.holds)]
        return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()

    @property
    def path(self) -> Path:
        """Where it lies once it is ready."""
        return home() / "kits" / f"{self.name}-{self.digest[:12]}"

    @cached_property
    def download(self) -> int:
        """Bytes to fetch, as far as they are known."""
        return sum(archive.size for archive in self.archives)

    @cached_property
    def room(self) -> int:
        """Bytes it takes unpacked: measured, or estimated from the download."""
        return self.definition.unpacked or self.download * _GROWS


@dataclass(frozen=True, kw_only=True)
class Part:
    """One thing a kit is fetched as. `where` is "" for what is not on this machine.

    `digest` is the pinned sha256 or sha1, a commit, or "" for a first use that is not on record;
    `trust` is sha256, sha1, first-use or commit.
    """

    kit: str
    file: str
    size: int
    digest: str
    trust: str
    places: tuple[str, ...]
    licence: str
    where: str


def list_kits() -> list[str]:
    """The names that `load_kit` takes."""
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def load_kit(name: str) -> Kit:
    """Read a kit's YAML. Raises ToolchainError for an unknown name or a key that is wrong."""
    path = _folder() / f"{name}.yaml"
    if Path(name).name != name or not path.is_file():
        raise ToolchainError(f"no kit {name}", remedy=nearest(name, list_kits()))
    return Kit(read_kit(path))


def is_ready(kit: Kit) -> bool:
    """Whether the kit is unpacked and whole: it gets its name only then."""
    return kit.path.is_dir()


def ready(kit: Kit, progress: Progress) -> Path:
    """Have the kit unpacked, fetching what is missing; returns its folder."""
    return ready_all([kit], progress)[kit.family]


def ready_all(kits: Iterable[Kit], progress: Progress) -> dict[str, Path]:
    """Have all of them unpacked; returns family → folder.

    Raises LicenceError for a licence nobody has accepted, FetchError that names every file that
    could not be had, DigestError for other bytes than the pinned ones, DiskError.
    """
    from edgekiln.kits.making import make_all

    return make_all(list(kits), progress)


def settle(kits: Iterable[Kit], progress: Progress) -> None:
    """Fetch what has no published digest, so that each kit's digest is its last one."""
    from edgekiln.kits.making import settle_all

    settle_all(list(kits), progress)


def parts(kits: Iterable[Kit]) -> list[Part]:
    """Everything the kits are fetched as, and where each lies on this machine already."""
    return [part for kit in kits for part in _parts(kit)]


def missing(kits: Iterable[Kit]) -> list[Part]:
    """What of them is neither unpacked nor at hand: what a network has to give."""
    return [part for part in parts(kits) if not part.where]


def _folder() -> Path:
    from edgekiln.toolchain import folder

    return folder() / "kits"


def _parts(kit: Kit) -> Iterable[Part]:
    unpacked = str(kit.path) if kit.settled and is_ready(kit) else ""
    for archive in kit.archives:
        lies = unpacked or str(find(archive) or "")
        yield Part(
            kit=kit.name,
            file=archive.file,
            size=archive.size or (known.size if (known := firstuse.known(archive.file)) else 0),
            digest=_sha256(archive) or archive.sha1,
            trust=archive.trusted_by,
            places=archive.places,
            licence=kit.licence,
            where=lies,
        )
    for each in gitsource.listed(kit.source) if kit.source else ():
        bare = next(filter(None, (gitsource.holds(f, each) for f in git_folders())), None)
        yield Part(
            kit=kit.name,
            file=each.bare,
            size=0,
            digest=each.commit,
            trust="commit",
            places=(each.repository,),
            licence=kit.licence,
            where=unpacked or str(bare or ""),
        )


def git_folders() -> list[Path]:
    """Where bare repositories are looked for: the vendor folder, then what was fetched here."""
    vendor = vendor_folder()
    return [*([vendor] if vendor else []), home() / "downloads" / "git"]


def pin_of(archive: Archive) -> Pin:
    """The YAML's pin; for first use what is on record here, or in the vendor folder's list."""
    known = firstuse.known(archive.file) if archive.trust else None
    if known:
        return Pin(sha256=known.sha256, size=known.size)
    vendor = vendor_folder()
    listed = firstuse.listed(vendor, archive.file) if archive.trust and vendor else ""
    return Pin(sha256=listed, size=archive.size) if listed else archive.pin


def find(archive: Archive) -> Path | None:
    """An archive's file on this machine, of the right bytes: in the vendor folder, or fetched."""
    from edgekiln.fetch import differs

    folders = (vendor_folder(), home() / "downloads" / "kits")
    paths = (folder / archive.file for folder in folders if folder)
    pin = pin_of(archive)
    return next((path for path in paths if path.is_file() and not differs(path, pin)), None)


def _sha256(archive: Archive) -> str:
    """The sha256 that is pinned, or on record; "" where neither is."""
    if archive.sha256 or archive.sha1:
        return archive.sha256
    known = firstuse.known(archive.file)
    return known.sha256 if known else ""


def _pinned(archive: Archive) -> list[object]:
    digest = _sha256(archive) or archive.sha1
    return [archive.file, digest, archive.strip, list(archive.only), archive.into]


def _pinned_source(source: Source | None) -> list[object]:
    """A commit covers the commits of the repositories inside it."""
    return [source.commit, sorted(source.without)] if source else []
