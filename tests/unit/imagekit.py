"""Images made for a test: layers out of a few members, as an OCI layout in a folder."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

from edgekiln.images.layout import CONFIG, INDEX, LAYER, MANIFEST, REF_NAME, UNPACKED, Layout
from edgekiln.report import QuietReporter

GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"
PLAIN = "application/vnd.oci.image.layer.v1.tar"


@dataclass(frozen=True, kw_only=True)
class Member:
    """One member of a layer: a file unless `kind` says otherwise."""

    name: str
    body: bytes = b""
    kind: bytes = tarfile.REGTYPE
    target: str = ""
    mode: int = 0o644
    owner: int = 0


class Told(QuietReporter):
    """A reporter that keeps the findings it is told, in words."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def result(self, name: str, value: Any, text: str) -> None:
        self.lines.append(text)


def folder(name: str, mode: int = 0o755) -> Member:
    return Member(name=name, kind=tarfile.DIRTYPE, mode=mode)


def symlink(name: str, target: str) -> Member:
    return Member(name=name, kind=tarfile.SYMTYPE, target=target, mode=0o777)


def hardlink(name: str, target: str) -> Member:
    return Member(name=name, kind=tarfile.LNKTYPE, target=target)


def tar_of(members: Sequence[Member], *, mtime: int = 0) -> bytes:
    """A tar of these members, in their order."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for member in members:
            info = tarfile.TarInfo(member.name)
            info.type, info.linkname, info.mode = member.kind, member.target, member.mode
            info.uid = info.gid = member.owner
            info.size, info.mtime = len(member.body), mtime
            tar.addfile(info, io.BytesIO(member.body))
    return sink.getvalue()


def layout(
    path: Path,
    layers: Sequence[Sequence[Member]],
    *,
    media: str = LAYER,
    labels: dict[str, str] | None = None,
    tag: str = "edgekiln/test:1",
    told: int | None = None,
) -> Layout:
    """An image of these layers. `told` is what each layer says of its size, unpacked."""
    entries, diff_ids = [], []
    for members in layers:
        plain = tar_of(members)
        diff_ids.append(f"sha256:{hashlib.sha256(plain).hexdigest()}")
        entry = _put(path, _packed(plain, media), media)
        entries.append(entry | {"annotations": {UNPACKED: str(told or len(plain))}})
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Labels": labels or {}},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": _put(path, _json(config), CONFIG),
        "layers": entries,
    }
    entry = _put(path, _json(manifest), MANIFEST) | {"annotations": {REF_NAME: tag}}
    write_index(path, [entry])
    return Layout(path)


def write_index(path: Path, entries: list[dict[str, Any]]) -> None:
    """The index of a layout."""
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}
    (path / "index.json").write_bytes(_json(index))
    (path / "oci-layout").write_bytes(_json({"imageLayoutVersion": "1.0.0"}))


def put_index(path: Path, entries: list[dict[str, Any]]) -> dict[str, Any]:
    """An index as a blob of a layout; returns its descriptor."""
    return _put(path, _json({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}), INDEX)


def blobs(path: Path) -> set[str]:
    """The names of a layout's blobs."""
    return {each.name for each in (path / "blobs" / "sha256").iterdir()}


def _packed(plain: bytes, media: str) -> bytes:
    if media == GZIP:
        return gzip.compress(plain)
    return plain if media == PLAIN else zstandard.ZstdCompressor().compress(plain)


def _put(path: Path, body: bytes, media: str) -> dict[str, Any]:
    digest = hashlib.sha256(body).hexdigest()
    target = path / "blobs" / "sha256" / digest
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(body)
    return {"mediaType": media, "digest": f"sha256:{digest}", "size": len(body)}


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()
