"""What a root file system holds, and one digest of it: the same whichever engine built it.

Names, types, modes, owners, link targets and contents count. Times do not: engines differ in them,
and so does what an engine itself puts into a container. A hard link counts as the file it is.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from edgekiln.digest import cannot_read, digest_file
from edgekiln.errors import DigestError

# Below these an engine mounts or makes what it likes.
MOUNTED = ("dev", "proc", "sys")
# Engines make these for each container; older builders leave the last two, empty, where a build
# mounted its context and its secrets.
ENGINES_OWN = frozenset(
    [
        *(".dockerenv", "etc/hostname", "etc/hosts", "etc/mtab", "etc/resolv.conf"),
        *("run/.containerenv", "run/kiln", "run/secrets"),
    ]
)
_CHUNK = 1 << 20
_KINDS = {
    tarfile.REGTYPE: "file",
    tarfile.AREGTYPE: "file",
    tarfile.DIRTYPE: "folder",
    tarfile.SYMTYPE: "link",
    tarfile.CHRTYPE: "char",
    tarfile.BLKTYPE: "block",
    tarfile.FIFOTYPE: "fifo",
}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One name. `value` is a file's sha256 (hex), a link's target, a device's numbers, or ""."""

    kind: str
    mode: int
    owner: int
    group: int
    value: str = ""

    @property
    def text(self) -> str:
        """In words, for people."""
        told = f"{self.kind} {self.mode:04o} {self.owner}:{self.group}"
        return f"{told} {self.value}" if self.value else told


Listing = Mapping[str, Entry]


def of_tar(stream: IO[bytes]) -> dict[str, Entry]:
    """The listing of a root file system that comes as a tar, read once from front to end.

    Raises TarError for a tar that is none, and for a hard link to what is not in it.
    """
    found: dict[str, Entry] = {}
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        for member in archive:
            name = _plain(member.name)
            if not _counts(name):
                continue
            if member.islnk():
                if (target := _plain(member.linkname)) not in found:
                    raise tarfile.ReadError(f"{name} is a link to {target}, which is not before it")
                found[name] = found[target]
                continue
            found[name] = Entry(
                kind=_KINDS.get(member.type, "other"),
                mode=stat.S_IMODE(member.mode),
                owner=member.uid,
                group=member.gid,
                value=_value(archive, member),
            )
    return found


def of_folder(root: Path, owners: Listing | None = None) -> dict[str, Entry]:
    """The listing of an unpacked root file system.

    `owners` is a listing to take owner and group from where it has the name: what was unpacked by
    an ordinary user is all that user's. Raises AccessError for what cannot be read.
    """
    found: dict[str, Entry] = {}
    for name, path in _names(root):
        if _counts(name):
            entry = _on_disk(path)
            like = owners.get(name) if owners else None
            found[name] = replace(entry, owner=like.owner, group=like.group) if like else entry
    return found


def digest(listing: Listing) -> str:
    """sha256 (hex) over every entry; order does not matter."""
    return hashlib.sha256(to_text(listing)).hexdigest()


def to_text(listing: Listing) -> bytes:
    """One line an entry, by name. Its sha256 is the listing's digest."""
    lines = []
    for name in sorted(listing):
        e = listing[name]
        what = [e.kind, f"{e.mode:04o}", e.owner, e.group, e.value, name]
        lines.append(json.dumps(what, ensure_ascii=False, separators=(",", ":")) + "\n")
    return "".join(lines).encode("utf-8", "surrogateescape")


def write(listing: Listing, path: Path) -> None:
    """Write the listing, compressed, whole or not at all."""
    import zstandard

    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    fresh.write_bytes(zstandard.ZstdCompressor(level=12).compress(to_text(listing)))
    fresh.replace(path)


def read(path: Path, wanted: str) -> dict[str, Entry]:
    """The listing in `path`. Raises DigestError unless its digest is `wanted`."""
    import zstandard

    try:
        text = zstandard.ZstdDecompressor().decompressobj().decompress(path.read_bytes())
    except (OSError, zstandard.ZstdError) as error:
        raise DigestError(f"{path} cannot be read", why=str(error), remedy=_AGAIN) from error
    if (now := hashlib.sha256(text).hexdigest()) != wanted:
        why = f"its digest is {now}, wanted is {wanted}"
        raise DigestError(f"{path} is another listing", why=why, remedy=_AGAIN)
    return dict(map(_parsed, text.decode("utf-8", "surrogateescape").splitlines()))


_AGAIN = "remove it, and take it again from where the digest was recorded"


def _parsed(line: str) -> tuple[str, Entry]:
    kind, mode, owner, group, value, name = json.loads(line)
    return name, Entry(kind=kind, mode=int(mode, 8), owner=owner, group=group, value=value)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A name that two file systems do not share; None where one has none."""

    name: str
    left: Entry | None
    right: Entry | None

    @property
    def contents(self) -> bool:
        """Whether both are files, of other bytes."""
        both = self.left and self.right and self.left.kind == self.right.kind == "file"
        return bool(both) and self.left.value != self.right.value  # type: ignore[union-attr]

    @property
    def text(self) -> str:
        """What differs, in words."""
        if self.left is None or self.right is None:
            here, there = ("second", self.right) if self.left is None else ("first", self.left)
            return f"{self.name}: only in the {here}, {there.text if there else ''}"
        return f"{self.name}: {self.left.text}, in the second {self.right.text}"


def differences(left: Listing, right: Listing) -> list[Difference]:
    """Every name whose entries are not the same, by name."""
    names = sorted(left.keys() | right.keys())
    pairs = ((name, left.get(name), right.get(name)) for name in names)
    return [Difference(name=n, left=a, right=b) for n, a, b in pairs if a != b]


def take(stream: IO[bytes], names: Iterable[str], folder: Path) -> dict[str, Path]:
    """Write the named files of a tar into `folder`, numbered; returns where each one lies."""
    wanted = set(names)
    found: dict[str, Path] = {}
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        for member in archive:
            name = _plain(member.name)
            content = archive.extractfile(member) if name in wanted and member.isfile() else None
            if content is None:
                continue
            # The name's own end, for those who look by it what a file is.
            target = folder / f"{len(found)}-{Path(name).name}"
            with target.open("wb") as file:
                while piece := content.read(_CHUNK):
                    file.write(piece)
            found[name] = target
    return found


def _plain(name: str) -> str:
    """A member's name without ./ before it or / behind it."""
    return name.removeprefix("./").strip("/")


def _counts(name: str) -> bool:
    top = name.partition("/")[0]
    return top not in ("", ".", *MOUNTED) and name not in ENGINES_OWN


def _value(archive: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    if member.issym():
        return member.linkname
    if member.ischr() or member.isblk():
        return f"{member.devmajor}:{member.devminor}"
    content = archive.extractfile(member) if member.isfile() else None
    if content is None:
        return ""
    sha = hashlib.sha256()
    while piece := content.read(_CHUNK):
        sha.update(piece)
    return sha.hexdigest()


def _names(root: Path) -> Iterator[tuple[str, Path]]:
    """Every name below a folder with its path; links are not followed."""

    def unreadable(error: OSError) -> None:
        raise cannot_read(error.filename, error)

    for folder, folders, files in os.walk(root, onerror=unreadable):
        here = Path(folder)
        top = here.relative_to(root).as_posix()
        for name in (*folders, *files):
            yield (name if top == "." else f"{top}/{name}"), here / name
        if top == ".":
            folders[:] = [name for name in folders if name not in MOUNTED]


def _on_disk(path: Path) -> Entry:
    try:
        told = path.lstat()
        target = str(path.readlink()) if stat.S_ISLNK(told.st_mode) else ""
    except OSError as error:
        raise cannot_read(path, error) from error
    kind, value = "other", ""
    if stat.S_ISREG(told.st_mode):
        kind, value = "file", digest_file(path)
    elif stat.S_ISDIR(told.st_mode):
        kind = "folder"
    elif stat.S_ISLNK(told.st_mode):
        kind, value = "link", target
    elif stat.S_ISCHR(told.st_mode) or stat.S_ISBLK(told.st_mode):
        kind = "char" if stat.S_ISCHR(told.st_mode) else "block"
        value = f"{os.major(told.st_rdev)}:{os.minor(told.st_rdev)}"
    elif stat.S_ISFIFO(told.st_mode):
        kind = "fifo"
    mode = stat.S_IMODE(told.st_mode)
    return Entry(kind=kind, mode=mode, owner=told.st_uid, group=told.st_gid, value=value)
