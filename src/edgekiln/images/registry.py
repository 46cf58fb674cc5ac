"""Images of ours in a registry: pulled and pushed over plain HTTPS, without an engine.

All of them share one repository, as the tags NAME-AAAAAAAAAAAA-BBBBBBBB: many registries have room
for no more. What has arrived stays when the rest is cut off, and goes on at the byte; a digest
decides what it is. No kit is ever in an image, so none gets into a registry.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from edgekiln.digest import digest_file
from edgekiln.errors import ImageError
from edgekiln.images import exports
from edgekiln.images.layout import (
    INDEXES,
    MANIFEST,
    Blob,
    Image,
    Layout,
    blob_name,
    blob_of,
    chosen,
    image_of,
    parsed,
)
from edgekiln.images.repository import Repository, again, part_of
from edgekiln.room import refuse_full
from edgekiln.store import disk_error

if TYPE_CHECKING:
    from edgekiln.progress import Progress
    from edgekiln.toolchain import Toolchain

VARIABLE = "EDGEKILN_REGISTRY"


def named() -> str:
    """The repository that EDGEKILN_REGISTRY names: HOST/REPOSITORY, or "" for none."""
    return os.environ.get(VARIABLE, "").strip()


def tag_of(toolchain: Toolchain) -> str:
    """The tag that a toolchain's image has in a registry."""
    from edgekiln import images

    return images.file_name(toolchain).removeprefix("edgekiln-")


def pull(toolchain: Toolchain, place: str, progress: Progress) -> Layout:
    """Bring a toolchain's image out of a repository into exports.folder(); goes on after a cut.

    Raises ImageError where it has none or another one, FetchError, DigestError, DiskError.
    """
    from edgekiln import offline
    from edgekiln.locking import held

    offline.refuse(f"the image of {toolchain.name}", why=f"{place} was to give it")
    repository = Repository(place)
    target = exports.folder() / exports.export_name(toolchain)
    with held(target.with_name(f".{target.name}.lock")):
        image, manifest = _described(repository, toolchain, progress)
        exports.refuse_another(image, toolchain, repository.name)
        try:
            _fill(repository, image, manifest, target, progress)
        except OSError as error:
            raise disk_error(error, target) from error
    return Layout(target)


def _described(
    repository: Repository, toolchain: Toolchain, progress: Progress
) -> tuple[Image, bytes]:
    """What the repository has under the toolchain's tag: the image, and its manifest."""
    from edgekiln import images

    def manifest(reference: str) -> bytes | None:
        return again(lambda: repository.manifest(reference), repository.name, progress)

    body = manifest(tag_of(toolchain))
    if body is None:
        raise ImageError(
            f"{repository.name} has no {tag_of(toolchain)}",
            remedy=f"where an engine is: kiln images push {toolchain.name} --to {repository.name}",
        )
    found = parsed(body, repository.name)
    if found.get("mediaType") in INDEXES or "manifests" in found:
        entry = blob_of(chosen(found, repository.name))
        body = manifest(f"sha256:{entry.digest}") or b"{}"
        found = parsed(body, repository.name)
    media = str(found.get("mediaType") or MANIFEST)
    blob = Blob(digest=hashlib.sha256(body).hexdigest(), size=len(body), media=media)

    def config(small: Blob) -> bytes:
        return again(lambda: repository.small(small), repository.name, progress)

    return image_of(images.tag(toolchain), blob, found, config), body


def _fill(
    repository: Repository, image: Image, manifest: bytes, target: Path, progress: Progress
) -> None:
    """Bring what is not there yet; the index is written last, so that a layout is whole."""
    blobs = target / blob_name("x").rpartition("/")[0]
    blobs.mkdir(parents=True, exist_ok=True)
    (target / blob_name(image.manifest.digest)).write_bytes(manifest)
    wanted = [image.config_blob, *image.layers]
    missing = [blob for blob in wanted if not _there(target, blob)]
    refuse_full(
        target.parent, sum(blob.size for blob in missing), f"what is to come of {image.tag}"
    )
    total = sum(blob.size for blob in wanted)
    done = total - sum(blob.size for blob in missing)
    for blob in missing:
        share = _Share(progress=progress, before=done, total=total, what=f"pulling {image.tag}")
        path = target / blob_name(blob.digest)
        get = partial(repository.get_blob, blob, path, share)
        again(get, f"layer {path.name[:12]}", progress, partial(_arrived, path))
        done += blob.size
    exports.write_index(target, image)


def _arrived(path: Path) -> int:
    """How many bytes of a file are here that is not whole."""
    part = part_of(path)
    return part.stat().st_size if part.is_file() else 0


def _there(target: Path, blob: Blob) -> bool:
    path = target / blob_name(blob.digest)
    return path.is_file() and digest_file(path) == blob.digest


@dataclass(frozen=True, kw_only=True)
class _Share:
    """One file's progress, as a part of all that is pulled. In bytes."""

    progress: Progress
    before: int
    total: int
    what: str

    def update(self, done: float, total: float | None = None, what: str = "") -> None:
        self.progress.update(self.before + done, self.total, self.what)

    def note(self, text: str) -> None:
        self.progress.note(text)


def push(toolchain: Toolchain, source: Layout, place: str, progress: Progress) -> str:
    """Send an export to a repository; what is there already is not sent. Returns HOST/REPO:TAG.

    Raises ImageError for another image than the toolchain's, FetchError, DigestError for damage.
    """
    from edgekiln import offline

    offline.refuse(f"the way to {place}")
    repository = Repository(place)
    image = exports.require(source, toolchain)
    tag = tag_of(toolchain)
    done, total = 0, sum(blob.size for blob in (image.config_blob, *image.layers))
    for blob in (*image.layers, image.config_blob):
        progress.update(done, total, f"pushing {image.tag}")
        source.check(blob)
        again(partial(repository.put_blob, blob, source), f"layer {blob.digest[:12]}", progress)
        done += blob.size
    body = source.small(image.manifest)
    again(lambda: repository.put_manifest(tag, body), repository.name, progress)
    progress.update(total, total, f"pushing {image.tag}")
    return f"{repository.name}:{tag}"
