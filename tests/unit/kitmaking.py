"""Archives, git repositories and kits made of them, for the tests about kits."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekiln.kits import Kit
from edgekiln.kits.definition import Archive, KitDefinition, Source, Submodule

NOBODY = {
    "GIT_AUTHOR_NAME": "t",
    "GIT_AUTHOR_EMAIL": "t@localhost",
    "GIT_COMMITTER_NAME": "t",
    "GIT_COMMITTER_EMAIL": "t@localhost",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_SYSTEM": os.devnull,
    "GIT_AUTHOR_DATE": "2026-01-01T00:00:00Z",
    "GIT_COMMITTER_DATE": "2026-01-01T00:00:00Z",
}


class Told:
    """A progress that keeps what it was told."""

    def __init__(self) -> None:
        self.updates: list[tuple[float, float | None, str]] = []
        self.notes: list[str] = []

    def update(self, done: float, total: float | None = None, what: str = "") -> None:
        self.updates.append((done, total, what))

    def note(self, text: str) -> None:
        self.notes.append(text)


def zipped(
    files: Mapping[str, bytes],
    *,
    links: Mapping[str, str] | None = None,
    programs: tuple[str, ...] = (),
) -> bytes:
    """A zip with these files, links, and files that may be executed."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (0o100755 if name in programs else 0o100644) << 16
            archive.writestr(info, body)
        for name, target in (links or {}).items():
            info = zipfile.ZipInfo(name)
            info.external_attr = 0o120777 << 16
            archive.writestr(info, target)
    return out.getvalue()


def tarred(
    files: Mapping[str, bytes],
    *,
    mode: str = "w:gz",
    links: Mapping[str, str] | None = None,
    same: Mapping[str, str] | None = None,
    programs: tuple[str, ...] = (),
    extra: tuple[tarfile.TarInfo, ...] = (),
) -> bytes:
    """A tar with these files, symbolic links, hard links and programs."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:  # type: ignore[call-overload]
        for name, body in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(body), 0o755 if name in programs else 0o644
            archive.addfile(info, io.BytesIO(body))
        for kind, pairs in ((tarfile.SYMTYPE, links), (tarfile.LNKTYPE, same)):
            for name, target in (pairs or {}).items():
                info = tarfile.TarInfo(name)
                info.type, info.linkname = kind, target
                archive.addfile(info)
        for info in extra:
            archive.addfile(info)
    return out.getvalue()


def sha256(body: bytes) -> str:
    """As a kit's YAML pins it."""
    return hashlib.sha256(body).hexdigest()


def archive_kit(*archives: Archive, name: str = "tools", **more: Any) -> Kit:
    """A kit of archives."""
    more.setdefault("family", name)
    return Kit(KitDefinition(name=name, summary="tools", archives=archives, **more))


def pinned(file: str, body: bytes, *places: str, **more: Any) -> Archive:
    """An archive pinned by its sha256."""
    return Archive(file=file, places=places, sha256=sha256(body), **more)


def source_kit(source: Source, **more: Any) -> Kit:
    """A kit of a git source."""
    return Kit(KitDefinition(name="code", family="code", summary="code", source=source, **more))


class Repo:
    """A git repository of this machine."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True)
        self.git("init", "--quiet", "--initial-branch=main")

    def git(self, *words: str) -> str:
        """Run git in it, without the user's own settings."""
        command = ["git", "-c", "protocol.file.allow=always", *words]
        env = {**os.environ, **NOBODY}
        done = subprocess.run(
            command, cwd=self.path, env=env, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    def commit(self, files: Mapping[str, bytes] | None = None) -> str:
        """Commit all there is, with further files; the commit's name."""
        for name, body in (files or {}).items():
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            (self.path / name).write_bytes(body)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", "more")
        return self.git("rev-parse", "HEAD")

    def add(self, other: Repo, path: str, address: str = "") -> None:
        """Put another repository into this one as a submodule."""
        self.git("submodule", "--quiet", "add", str(other.path), path)
        if address:
            self.git("config", "--file", ".gitmodules", f"submodule.{path}.url", address)

    def submodule(self, commit: str) -> Submodule:
        """This repository, as a kit's YAML names it inside another."""
        return Submodule(repository=str(self.path), commit=commit)
