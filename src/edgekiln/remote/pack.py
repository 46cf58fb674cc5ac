"""This checkout as one archive for other machines: the same bytes for the same files."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgekiln.digest import combine
from edgekiln.home import project

_FOLDERS = ("src/edgekiln", "toolchains", "images", "scripts", "recipes")
_FILES = ("kiln", "tasks.py", "requirements.txt", "pyproject.toml")
_PROGRAMS = ("kiln",)
_LEFT_OUT = ("__pycache__",)


@dataclass(frozen=True, kw_only=True)
class Packed:
    """An archive (tar, gzip): `digest` is of the files in it, `sha256` of the archive's bytes.

    `environment` is the digest of what the Python environment over there is made of.
    """

    digest: str
    sha256: str
    environment: str
    data: bytes


def pack() -> Packed:
    """Everything a stage may need of this checkout: sources, locks, scripts, and no more."""
    root = project()
    files = {path.relative_to(root).as_posix(): path.read_bytes() for path in _paths(root)}
    sums = [(name, len(data), _sha256(data)) for name, data in files.items()]
    made_of = [part for part in sums if part[0] in ("kiln", "requirements.txt")]
    data = _archive(files, root)
    return Packed(
        digest=combine(sums)[:32],
        sha256=_sha256(data),
        environment=combine(made_of)[:16],
        data=data,
    )


def _paths(root: Path) -> Iterator[Path]:
    for name in _FILES:
        yield root / name
    for folder in _FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            parts = path.relative_to(root).parts
            hidden = any(p.startswith(".") or p in _LEFT_OUT for p in parts)
            if path.is_file() and not hidden and path.suffix != ".pyc":
                yield path


def _archive(files: dict[str, bytes], root: Path) -> bytes:
    out = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=out, mode="wb", mtime=0, compresslevel=6) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name in sorted(files):
            entry = tarfile.TarInfo(name)
            entry.size = len(files[name])
            program = name in _PROGRAMS or bool((root / name).stat().st_mode & 0o111)
            entry.mode = 0o755 if program else 0o644
            tar.addfile(entry, io.BytesIO(files[name]))
    return out.getvalue()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
