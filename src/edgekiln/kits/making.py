"""Kits made ready: licence, fetch, check, unpack, each whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from edgekiln.digest import digest_file
from edgekiln.errors import DigestError, FetchError, KilnError, ToolchainError
from edgekiln.fetch import RETRIES, differs, fetch
from edgekiln.home import home, mirrors_named, vendor_folder
from edgekiln.kits import (
    Kit,
    firstuse,
    git_folders,
    is_ready,
    licences,
    list_kits,
    load_kit,
    pin_of,
)
from edgekiln.kits.definition import Archive, Source
from edgekiln.kits.gitsource import Repository, lay_out, listed, obtain
from edgekiln.kits.tree import tree_id
from edgekiln.kits.unpack import test, unpack, unpacked_size
from edgekiln.locking import held
from edgekiln.progress import Progress
from edgekiln.room import refuse_full
from edgekiln.transfer import Pin


def make_all(kits: Sequence[Kit], progress: Progress) -> dict[str, Path]:
    """As `ready_all` says."""
    for kit in kits:
        licences.require([kit.licence], whose=kit.name)
    settle_all(kits, progress)
    wanted = [kit for kit in kits if not is_ready(kit)]
    _check_disk(wanted)
    if len(wanted) > 1:
        fetch_all(wanted, downloads(), progress)  # all that is missing is told at once
    for kit in wanted:
        _make(kit, progress)
    return {kit.family: kit.path for kit in kits}


def settle_all(kits: Sequence[Kit], progress: Progress) -> None:
    """As `settle` says; licences first, since something is fetched."""
    open_ones = [kit for kit in kits if not kit.settled]
    for kit in open_ones:
        licences.require([kit.licence], whose=kit.name)
    fetch_all(open_ones, downloads(), progress)


def downloads() -> Path:
    """Where archives lie until they are unpacked."""
    return home() / "downloads" / "kits"


def fetch_all(kits: Sequence[Kit], into: Path, progress: Progress) -> list[Path]:
    """Fetch every archive of the kits into a folder, and every repository that is known by name.

    Gives the archives. Raises FetchError that names all that could not be had: a machine without
    a network is told once what to bring.
    """
    found: list[Path] = []
    failures: list[tuple[str, KilnError]] = []
    for kit in kits:
        found += archives_of(kit, into, progress, failures)
        if kit.source:
            repositories_of(kit.source, git_folders(), git_folders()[-1], progress, failures)
    if failures:
        raise lacking(failures)
    return found


def archives_of(
    kit: Kit, into: Path, progress: Progress, failures: list[tuple[str, KilnError]]
) -> list[Path]:
    """A kit's archives; what could not be had is put to `failures`."""
    found = []
    for archive in kit.archives:
        # No network for the first is none for the others: they are not waited for as long.
        retries = () if failures else RETRIES
        try:
            found.append(fetch_archive(archive, into, progress, retries=retries))
        except FetchError as failure:
            failures.append((archive.file, failure))
            progress.note(f"{archive.file}: {failure.why or failure.what}")
    return found


def repositories_of(
    source: Source,
    folders: Sequence[Path],
    into: Path,
    progress: Progress,
    failures: list[tuple[str, KilnError]],
) -> None:
    """Have the repositories that a source's YAML pins; what could not be had goes to `failures`."""
    for each in listed(source):
        retries = () if failures else RETRIES
        if not each.commit or each.path in source.without:
            continue
        try:
            obtain(each, folders, into, progress, retries=retries)
        except FetchError as failure:
            failures.append((each.bare, failure))
            progress.note(f"{each.bare}: {failure.why or failure.what}")


def lacking(failures: Sequence[tuple[str, KilnError]]) -> KilnError:
    """One error for all the files that could not be had; the only one's own where it is one.

    Its cause is the first one's, which its `why` is made of.
    """
    first = failures[0][1]
    if len(failures) == 1:
        return first
    names = ", ".join(name for name, _ in failures)
    error = FetchError(
        f"{len(failures)} files could not be fetched: {names}",
        why=f"{first.what}: {first.why}" if first.why else first.what,
        remedy="check the network, or fill a folder on another machine with `kiln toolchains "
        "fetch NAME --to DIR` and name it by --vendor-dir",
    )
    error.__cause__ = first
    return error


def fetch_archive(
    archive: Archive, into: Path, progress: Progress, *, retries: Sequence[float] = RETRIES
) -> Path:
    """One archive, whole and of the right bytes: from the vendor folder, a mirror, its places.

    A file in the vendor folder is used where it lies. First use: it is tested, and its digest
    written down. Raises DigestError for bytes that are not those.
    """
    pin = pin_of(archive)
    path, place = _vendored(archive, pin), ""
    if path is None:
        places = [*mirrors(archive.file), *archive.places]
        try:
            got = fetch(places, into / archive.file, pin=pin, progress=progress, retries=retries)
        except DigestError as error:
            raise _changed(archive, error) from error
        path, place = got.path, got.place
    if archive.trust and firstuse.known(archive.file) is None:
        _first_use(archive, path, place or str(path))
    return path


def _vendored(archive: Archive, pin: Pin) -> Path | None:
    """The vendor folder's file, when its bytes are right."""
    folder = vendor_folder()
    path = folder / archive.file if folder else None
    return path if path and path.is_file() and not differs(path, pin) else None


def _first_use(archive: Archive, path: Path, place: str) -> None:
    """Write a digest down, once the file has shown that it can be read from end to end."""
    if archive.kind != "file":
        try:
            test(path)
        except DigestError:
            if path.parent == downloads():
                path.unlink(missing_ok=True)
            raise
    sha256 = digest_file(path)
    kept = firstuse.remember(archive.file, sha256=sha256, size=path.stat().st_size, place=place)
    if kept.sha256 != sha256:
        raise DigestError(f"{archive.file} is another one than another edgekiln fetched just now")


def _changed(archive: Archive, error: DigestError) -> DigestError:
    """Other bytes than the first time: said as what it is."""
    known = firstuse.known(archive.file) if archive.trust else None
    if known is None:
        return error
    return DigestError(
        f"{archive.file} is not the file that was first used here",
        why=f"on {known.when[:10]} its sha256 was {known.sha256[:16]}…; {error.why}",
        remedy=f"find out why it changed; to take the new one, remove {archive.file} from "
        f"{firstuse.record_file()}",
    )


def mirrors(file: str) -> list[str]:
    """The user's own mirrors: addresses or folders that hold files by their names."""
    return [f"{base.rstrip('/')}/{file}" for base in mirrors_named()]


def _check_disk(kits: Sequence[Kit]) -> None:
    """Refuse before the first byte what the disk has no room for. Raises DiskError."""
    need = sum(kit.room + kit.download for kit in kits)
    place = home()
    place.mkdir(parents=True, exist_ok=True)
    names = ", ".join(kit.name for kit in kits)
    refuse_full(place, need, f"{names}: about that much for the download and what it unpacks to")


def _make(kit: Kit, progress: Progress) -> None:
    """Unpack a kit beside its place and rename it there: half a kit is never seen."""
    lock = home() / "locks" / f"kit-{kit.path.name}.lock"
    with held(lock, lambda: progress.note(f"waiting: another edgekiln is unpacking {kit.name}")):
        if is_ready(kit):
            return
        fetched = fetch_all([kit], downloads(), progress)
        with _fresh(kit) as folder:
            record = _fill(kit, fetched, folder, progress)
            _check_holds(kit, folder)
            progress.update(0, None, f"checking {kit.name}")
            record["tree"] = tree_id(folder)
            firstuse.write_json(record_file(kit), record)
            if hasattr(os, "sync"):
                os.sync()  # a power cut must not leave empty files under the name of a whole kit
            folder.rename(kit.path)
        for path in fetched:
            if path.parent == downloads():
                path.unlink(missing_ok=True)


def record_file(kit: Kit) -> Path:
    """What a ready kit was made of: beside its folder."""
    return kit.path.with_name(f"{kit.path.name}.json")


@contextmanager
def _fresh(kit: Kit) -> Iterator[Path]:
    """A new folder beside the kit's place; gone afterwards, as what an earlier try left is."""
    kit.path.parent.mkdir(parents=True, exist_ok=True)
    for left in kit.path.parent.glob(f".{kit.path.name}-*"):
        shutil.rmtree(left, ignore_errors=True)
    scratch = tempfile.mkdtemp(prefix=f".{kit.path.name}-", dir=kit.path.parent)
    folder = Path(scratch, "kit")
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _fill(kit: Kit, fetched: Sequence[Path], folder: Path, progress: Progress) -> dict[str, object]:
    if kit.source:
        cache = git_folders()[-1]
        laid = lay_out(kit.source, git_folders(), cache, folder, progress, retries=RETRIES)
        return {"repositories": [asdict(each) for each in laid]}
    for archive, path in zip(kit.archives, fetched, strict=True):
        into = folder / archive.into
        into.mkdir(parents=True, exist_ok=True)
        if archive.kind == "file":
            shutil.copyfile(path, into / archive.file)
            (into / archive.file).chmod(0o755)
            continue
        refuse_full(kit.path.parent, unpacked_size(path), f"{archive.file}, unpacked")
        unpack(path, into, progress, strip=archive.strip, only=archive.only)
    return {"files": [path.name for path in fetched]}


def _check_holds(kit: Kit, folder: Path) -> None:
    for path in kit.definition.holds:
        if not (folder / path).exists():
            raise ToolchainError(
                f"{kit.name} holds no {path} when unpacked",
                why="its YAML says that it does",
                remedy="see whether `strip`, `only` and `into` fit the archive",
            )


def unused() -> list[Path]:
    """Kits that no YAML of this checkout comes to any more, and repositories fetched for kits."""
    wanted = {load_kit(name).path for name in list_kits()}
    every = (path for path in (home() / "kits").glob("*-*") if path.is_dir())
    old = (p for p in every if p not in wanted and not p.name.startswith("."))
    return [*sorted(old), *sorted((home() / "downloads" / "git").glob("*.git"))]


def remove(path: Path) -> None:
    """Take a kit away: first its name, so that half of it is never taken for whole."""
    gone = path.with_name(f".{path.name}-removed")
    path.rename(gone)
    path.with_name(f"{path.name}.json").unlink(missing_ok=True)
    shutil.rmtree(gone)


def verify(kit: Kit) -> None:
    """Compute a ready kit's tree again. Raises DigestError where it is another now."""
    told = firstuse.read_json(record_file(kit)).get("tree")
    found = tree_id(kit.path)
    if found != told:
        raise DigestError(
            f"{kit.path} is not what was unpacked there",
            why=f"its tree is {found}, it was {told}",
            remedy="remove the folder: it is made again",
        )


def repositories(kit: Kit) -> list[Repository]:
    """The repositories a ready source was made of, those that only its commits name too."""
    told = firstuse.read_json(record_file(kit)).get("repositories", [])
    return [Repository(**each) for each in told]
