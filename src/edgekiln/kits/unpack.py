"""Archives laid out in a folder: zip and tar, with modes and links, and nothing outside of it.

What comes from the network may be made to harm: every member's path and every link's target is
looked at before a byte is written, links are made last so that nothing is written through one,
and special files are refused. A zip's checksums are checked as it is read, each member's.
"""

from __future__ import annotations

import gzip
import lzma
import shutil
import stat
import subprocess
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from edgekiln.errors import DigestError, ToolchainError
from edgekiln.kits.places import Names, link
from edgekiln.progress import Progress

_CHUNK = 1 << 20
_BROKEN = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    gzip.BadGzipFile,
    EOFError,
    ValueError,
)


@dataclass(frozen=True, kw_only=True)
class Member:
    """One thing in an archive. `open` gives a file's bytes; `link` is a link's target."""

    path: str
    size: int = 0
    executable: bool = False
    folder: bool = False
    link: str = ""  # a symbolic link's target, as it stands in the archive
    same: str = ""  # the member this one is a hard link to
    open: Callable[[], IO[bytes]] | None = None


def unpack(
    archive: Path,
    into: Path,
    progress: Progress,
    *,
    strip: int = 0,
    only: Sequence[str] = (),
) -> None:
    """Lay an archive's members out below `into`, over what is there.

    `strip` takes leading folders off, `only` keeps what lies in these folders (after strip).
    Raises ToolchainError for a member that would land elsewhere, DigestError for damage.
    """
    with _damage_told(archive), _opened(archive) as (members, total):
        done, links, names = 0, {}, Names(into)
        for member in members:
            path = _stripped(member.path, strip, archive)
            if path is None or not _wanted(path, only):
                continue
            if not member.folder:
                names.check(path)
            if member.link:
                links[path] = _checked_link(path, member.link, archive)
                continue
            _put(member, into, path, links, (archive, strip))
            done += member.size
            progress.update(done, total or None, f"unpacking {archive.name}")
        _make_links(into, links, archive)


def test(archive: Path) -> None:
    """Read an archive from one end to the other. Raises DigestError where that is not possible.

    For a file that no digest is known of: a page with an excuse is no archive.
    """
    with _damage_told(archive), _opened(archive) as (members, _):
        for member in members:
            if member.open:
                with member.open() as stream:
                    while stream.read(_CHUNK):
                        pass


def unpacked_size(archive: Path) -> int:
    """Bytes of its files when unpacked: told by a zip; estimated for a tar, which does not tell."""
    if zipfile.is_zipfile(archive):
        with _damage_told(archive), zipfile.ZipFile(archive) as opened:
            return sum(info.file_size for info in opened.infolist())
    return archive.stat().st_size * 6  # .tar.xz of Rust comes to five times its size


@contextmanager
def _damage_told(archive: Path) -> Iterator[None]:
    try:
        yield
    except _BROKEN as error:
        raise DigestError(
            f"{archive.name} is damaged, or no archive",
            why=_reason(error),
            remedy=f"remove {archive} and fetch it again",
        ) from error


def _reason(error: BaseException) -> str:
    """Why it cannot be read; tarfile lists what each of its formats made of it."""
    if isinstance(error, tarfile.ReadError) and "- method" in str(error):
        return "it is no zip and no tar"
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def _opened(archive: Path) -> Iterator[tuple[Iterator[Member], int]]:
    """An archive's members, and the bytes of all files in it (0 where it does not tell)."""
    if archive.name.lower().endswith(".zst"):
        with _unzstd(archive) as plain, tarfile.open(plain, "r:") as tar:
            yield _of_tar(tar), 0
    elif zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            yield _of_zip(opened), sum(info.file_size for info in opened.infolist())
    else:
        with tarfile.open(archive, "r:*") as tar:
            yield _of_tar(tar), 0


def _of_zip(opened: zipfile.ZipFile) -> Iterator[Member]:
    for info in opened.infolist():
        mode = info.external_attr >> 16
        if stat.S_ISLNK(mode):
            yield Member(path=info.filename, link=opened.read(info).decode())
        elif mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise ToolchainError(f"{info.filename} in {opened.filename} is a special file")
        else:
            yield Member(
                path=info.filename,
                size=info.file_size,
                executable=bool(mode & 0o111),
                folder=info.is_dir(),
                open=None if info.is_dir() else _opener(opened, info),
            )


def _opener(opened: zipfile.ZipFile, info: zipfile.ZipInfo) -> Callable[[], IO[bytes]]:
    return lambda: opened.open(info)


def _of_tar(tar: tarfile.TarFile) -> Iterator[Member]:
    for info in tar:
        if info.isdir():
            yield Member(path=info.name, folder=True)
        elif info.issym():
            yield Member(path=info.name, link=info.linkname)
        elif info.islnk():
            yield Member(path=info.name, same=info.linkname)
        elif info.isfile():
            executable = bool(info.mode & 0o111)
            yield Member(
                path=info.name, size=info.size, executable=executable, open=_reader(tar, info)
            )
        else:
            raise ToolchainError(f"{info.name} in {tar.name!r} is a special file")


def _reader(tar: tarfile.TarFile, info: tarfile.TarInfo) -> Callable[[], IO[bytes]]:
    def read() -> IO[bytes]:
        stream = tar.extractfile(info)
        assert stream is not None
        return stream

    return read


def _stripped(path: str, strip: int, archive: Path) -> str | None:
    """A member's path without its leading folders; None for one that is no more than those.

    Raises ToolchainError for a path that leaves the folder it is unpacked into.
    """
    parts = PurePosixPath(path)
    climbs = ".." in parts.parts or parts.is_absolute() or "\\" in path or "\0" in path
    if climbs or any(":" in part for part in parts.parts[:1]):
        raise _climbs(archive, path)
    rest = parts.parts[strip:]
    return "/".join(rest) if rest else None


def _wanted(path: str, only: Sequence[str]) -> bool:
    return not only or any(path == folder or path.startswith(f"{folder}/") for folder in only)


def _checked_link(path: str, target: str, archive: Path) -> str:
    """A symbolic link's target, when it stays below the folder that is unpacked into."""
    if not target or target.startswith("/") or "\\" in target or "\0" in target:
        raise _climbs(archive, f"{path} -> {target}")
    depth = len(PurePosixPath(path).parts) - 1
    for part in PurePosixPath(target).parts:
        depth += -1 if part == ".." else 1
        if depth < 0:
            raise _climbs(archive, f"{path} -> {target}")
    return target


def _put(
    member: Member, into: Path, path: str, links: dict[str, str], where: tuple[Path, int]
) -> None:
    archive, strip = where
    if any(str(above) in links for above in (PurePosixPath(path), *PurePosixPath(path).parents)):
        raise _climbs(archive, f"{path}, which lies behind a link")
    place = into / path
    if member.folder:
        place.mkdir(parents=True, exist_ok=True)
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    if member.same:
        first = _stripped(member.same, strip, archive)
        if first is None or first in links or not (into / first).is_file():
            raise _climbs(archive, f"{path} -> {member.same}")
        shutil.copy(into / first, place)
        return
    assert member.open is not None
    with member.open() as source, place.open("wb") as sink:
        shutil.copyfileobj(source, sink, _CHUNK)
    place.chmod(0o755 if member.executable else 0o644)


def _make_links(into: Path, links: dict[str, str], archive: Path) -> None:
    """Make the links, each with its target inside also by way of the other links."""
    for path, target in links.items():
        link(into / path, target)
    root = into.resolve()
    for path, target in links.items():
        try:
            ends = (into / path).resolve()
        except (OSError, RuntimeError):  # a ring of links
            raise _climbs(archive, f"{path} -> {target}") from None
        if not ends.is_relative_to(root):
            raise _climbs(archive, f"{path} -> {target}")


def _climbs(archive: Path, what: str) -> ToolchainError:
    return ToolchainError(
        f"{archive.name} would write outside of its folder",
        why=f"it holds {what}",
        remedy="do not use it: no honest archive holds such a path",
    )


@contextmanager
def _unzstd(archive: Path) -> Iterator[Path]:
    """The tar inside a .tar.zst, by the program zstd: Python has it from 3.14 on only."""
    with tempfile.TemporaryDirectory(dir=archive.parent, prefix=".zst-") as scratch:
        plain = Path(scratch, "plain.tar")
        command = ["zstd", "--decompress", "--quiet", "-o", str(plain), str(archive)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise ToolchainError(
                f"{archive.name} cannot be unpacked", why="there is no zstd", remedy="install zstd"
            ) from None
        if done.returncode:
            raise ValueError(done.stderr)
        yield plain
