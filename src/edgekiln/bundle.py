"""The bundle: what goes onto the phone, with a manifest that says what it is and where from.

    build/MODEL/BACKEND/            the files, README.md for the phone, manifest.json,
                                    provenance.json (in-toto, SLSA v1; see provenance.py)

A bundle is put together in a folder beside its place and renamed into it; its full manifest
comes last, so a bundle whose manifest names the build is whole.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekiln import __version__
from edgekiln.digest import FileIndex, cannot_read, digest_file
from edgekiln.errors import AccessError, UsageError
from edgekiln.store import disk_error

MANIFEST = "manifest.json"
PROVENANCE = "provenance.json"
README = "README.md"
# `kiln sign` puts these beside it: signed statements, one envelope a line; and Sigstore's bundle.
ENVELOPES = "provenance.intoto.jsonl"
SIGSTORE = "provenance.sigstore.json"
# What tells of a bundle's files and is none of them.
BESIDE = (MANIFEST, PROVENANCE, ENVELOPES, SIGSTORE)
# In the manifest: sha256 of provenance.json, "" where there is none.
_PROVENANCE = "provenance"
# The modes of what is in a bundle, whatever the user's umask: they come along in archives, and
# onto a phone. The bundle's own folder has what the umask gives: private stays private.
_FOLDER, _FILE = 0o755, 0o644


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A bundle that lies on disk."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(int(f["size"]) for f in self.manifest["files"].values())


def find_bundle(place: Path, build_key: str, index: FileIndex) -> Bundle | None:
    """The bundle at `place`, if it was made by that very build and is as it was written.

    Its provenance belongs to it: where that is gone or changed, the bundle is made anew.
    """
    try:
        manifest = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
        if manifest["build_key"] != build_key or manifest["files"] != _describe(place, index):
            return None
        if manifest[_PROVENANCE] != _provenance(place):
            return None
    except (OSError, ValueError, KeyError, AccessError):
        return None
    return Bundle(path=place, manifest=manifest)


def finished_manifest(bundle: Path) -> Mapping[str, Any]:
    """A finished bundle's manifest. Raises UsageError for a folder that is none."""
    try:
        manifest = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))
        if manifest.get("unfinished"):
            raise UsageError(
                f"{bundle} is not finished",
                why="the build that wrote it was stopped",
                remedy="repeat the build",
            )
        told = [manifest["model"]["name"], manifest["backend"]]
        told += [file["sha256"] for file in manifest["files"].values()]
        if not all(isinstance(word, str) and word for word in told):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{bundle} is no bundle of edgekiln's",
            why=f"it has no {MANIFEST} that can be read",
            remedy="give the folder that `kiln build` names at its end",
        ) from error
    found: Mapping[str, Any] = manifest
    return found


def write_bundle(
    place: Path,
    files: Mapping[str, Path],
    readme: str,
    about: Mapping[str, Any],
    index: FileIndex,
    *,
    texts: Mapping[str, str] | None = None,
    predicate: Mapping[str, Any] | None = None,
) -> Bundle:
    """Put a bundle together at `place`, in the stead of an older one.

    With `predicate` its provenance is written, too: a statement about every file.
    Raises UsageError when something else than a bundle lies there: it is not ours to remove.
    """
    if place.exists() and not _is_ours(place):
        raise UsageError(
            f"{place} holds something that is not a bundle",
            remedy="move it away, or give another place with --out",
        )
    fresh = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        _sweep(place)
        fresh.mkdir(parents=True)
        for name, source in files.items():
            _copy(source, fresh / name)
        for name, text in {**(texts or {}), README: readme}.items():
            (fresh / name).parent.mkdir(parents=True, exist_ok=True)
            (fresh / name).write_text(text, encoding="utf-8", newline="\n")
        write_json(fresh / MANIFEST, {"edgekiln": __version__, "unfinished": True})
        if place.exists():
            shutil.rmtree(place)
        fresh.rename(place)
        _settle_modes(place)
        # Described in its place, so that the index knows the files where they will be looked for.
        manifest = {**about, "edgekiln": __version__, "files": _describe(place, index)}
        if predicate is not None:
            from edgekiln.provenance import statement

            write_json(place / PROVENANCE, statement(manifest["files"], predicate))
            (place / PROVENANCE).chmod(_FILE)
        manifest[_PROVENANCE] = _provenance(place)
        write_json(place / f".{MANIFEST}", manifest)
        (place / f".{MANIFEST}").chmod(_FILE)
        (place / f".{MANIFEST}").replace(place / MANIFEST)
    except OSError as error:
        shutil.rmtree(fresh, ignore_errors=True)
        raise disk_error(error, place) from error
    return Bundle(path=place, manifest=manifest)


def everything(place: Path) -> Iterator[tuple[str, Path]]:
    """All that lies in a bundle, hidden files and links too, by its path in it; folders are not.

    What somebody else put together is looked through with this: no link is followed, nothing comes
    along unseen. Raises AccessError for a folder that cannot be read.
    """
    for folder, folders, names in os.walk(place, onerror=_unreadable):
        linked = [name for name in folders if Path(folder, name).is_symlink()]
        for name in sorted([*names, *linked]):
            path = Path(folder, name)
            yield path.relative_to(place).as_posix(), path


def is_plain(path: Path) -> bool:
    """Whether it is a file of its own, as `write_bundle` puts them down: no link, no pipe."""
    return path.is_file() and not path.is_symlink()


def _unreadable(error: OSError) -> None:
    raise cannot_read(error.filename, error) from error


def write_json(path: Path, value: Any) -> None:
    """JSON as people read it, with a line end at the end."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8", newline="\n")


def _provenance(place: Path) -> str:
    """sha256 (hex) of a bundle's provenance.json; "" where there is none, or a link."""
    path = place / PROVENANCE
    return digest_file(path) if is_plain(path) else ""


def _settle_modes(place: Path) -> None:
    # Before the index hears of the files: a change of mode is a change to it.
    for folder, folders, names in os.walk(place):
        for name in folders:
            Path(folder, name).chmod(_FOLDER)
        for name in names:
            Path(folder, name).chmod(_FILE)


def _copy(source: Path, target: Path) -> None:
    """A copy that shares its blocks with the store where the file system can.

    Never a hard link: what a user changes in a bundle must not change the store.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if not _clone(source, target):
        shutil.copyfile(source, target)
    # The time of making, so that `adb push --sync` sends only what is new.
    stat = source.stat()
    os.utime(target, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def _clone(source: Path, target: Path) -> bool:
    """Share the blocks (btrfs, xfs, bcachefs: ioctl FICLONE); False where it cannot be."""
    try:
        import fcntl
    except ImportError:
        return False
    ficlone = 0x40049409
    with source.open("rb") as have, target.open("wb") as want:
        try:
            fcntl.ioctl(want.fileno(), ficlone, have.fileno())
        except OSError:
            return False
    return True


def _describe(place: Path, index: FileIndex) -> dict[str, Any]:
    return {
        name: {"size": size, "sha256": sha}
        for name, (size, sha) in index.files(place).items()
        if name not in BESIDE
    }


def _is_ours(place: Path) -> bool:
    """An empty folder, or one whose manifest is edgekiln's."""
    try:
        if place.is_dir() and not any(place.iterdir()):
            return True
        return "edgekiln" in json.loads((place / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def _sweep(place: Path) -> None:
    """Remove what a killed build left beside the bundle (the caller holds the place's lock)."""
    if place.parent.is_dir():
        for left in place.parent.glob(f".{place.name}.*"):
            if left.is_dir():
                shutil.rmtree(left)
