"""An image as files: an OCI image layout, in a folder or in one tar.

Format: github.com/opencontainers/image-spec, image-layout.md. Every blob is a file named by its
sha256, so a copy that was broken off goes on with what is missing, and nothing is believed that
does not have its digest. What is looked at here is layouts of ours and of others: layers that are
plain, gzip or zstd, and an index of several platforms.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from edgekiln.errors import DigestError, ImageError

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+zstd"
REF_NAME = "org.opencontainers.image.ref.name"
# Of a layer: how many bytes its tar has, so that the room it takes is known beforehand.
UNPACKED = "io.edgekiln.layer.unpacked"
INDEXES = (INDEX, "application/vnd.docker.distribution.manifest.list.v2+json")
MANIFESTS = (MANIFEST, "application/vnd.docker.distribution.manifest.v2+json")
# Names in a layer: .wh.NAME takes NAME of lower layers away, the other all that its folder had.
WHITEOUT, OPAQUE = ".wh.", ".wh..wh..opq"
CHUNK = 1 << 20
_SMALL = 16 << 20  # no manifest and no configuration is larger


@dataclass(frozen=True, kw_only=True)
class Blob:
    """One file of an image. `digest` is hex; `unpacked` bytes of a layer's tar, 0 if not told."""

    digest: str
    size: int
    media: str
    unpacked: int = 0


@dataclass(frozen=True, kw_only=True)
class Image:
    """What a layout holds. `tag` is its name, `layers` are in the order they are laid down."""

    tag: str
    manifest: Blob
    config_blob: Blob
    config: Mapping[str, Any]
    layers: tuple[Blob, ...]

    @property
    def labels(self) -> Mapping[str, str]:
        """The labels of its configuration."""
        return (self.config.get("config") or {}).get("Labels") or {}

    @property
    def diff_ids(self) -> tuple[str, ...]:
        """sha256 (hex) of each layer's tar, as it is unpacked."""
        return tuple(told.partition(":")[2] for told in self.config["rootfs"]["diff_ids"])

    @property
    def blobs(self) -> tuple[Blob, ...]:
        """All of its files."""
        return (self.manifest, self.config_blob, *self.layers)


class Layout:
    """A layout in a folder, or in a tar as it was written: not compressed as a whole."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self, name: str) -> IO[bytes]:
        """A file of the layout. Raises ImageError where it holds none of that name."""
        try:
            if self.path.is_dir():
                return (self.path / name).open("rb")
            return self._member(name)
        except (OSError, KeyError, tarfile.TarError) as error:
            raise ImageError(
                f"{self.path} is no whole image",
                why=f"{name} is missing" if isinstance(error, FileNotFoundError) else str(error),
                remedy="copy it again; what is there already need not be copied again",
            ) from None

    def _member(self, name: str) -> IO[bytes]:
        tar = tarfile.open(self.path, "r:")  # noqa: SIM115 - closed with the member
        stream = tar.extractfile(name)
        if stream is None:
            raise KeyError(f"{name} is no file")
        return cast("IO[bytes]", _Closing(stream, tar.close))

    def blob(self, blob: Blob) -> IO[bytes]:
        """A blob's bytes, as they lie there."""
        return self.open(blob_name(blob.digest))

    def small(self, blob: Blob) -> bytes:
        """A manifest or a configuration, of the right digest. Raises DigestError."""
        with self.blob(blob) as stream:
            body = stream.read(_SMALL)
        if hashlib.sha256(body).hexdigest() != blob.digest:
            raise damaged(f"{self.path}/{blob_name(blob.digest)}")
        return body

    def check(self, blob: Blob, heard: Callable[[int], None] = lambda _: None) -> None:
        """Raise DigestError unless a blob is what its name says; `heard` gets bytes as read."""
        digest = hashlib.sha256()
        with self.blob(blob) as stream:
            while piece := stream.read(CHUNK):
                digest.update(piece)
                heard(len(piece))
        if digest.hexdigest() != blob.digest:
            raise damaged(f"{self.path}/{blob_name(blob.digest)}")

    def image(self) -> Image:
        """The one image of the layout, for Linux on x86-64. Raises ImageError for another."""
        with self.open("index.json") as stream:
            index = parsed(stream.read(_SMALL), str(self.path))
        return self._image(index, "")

    def _image(self, listing: Mapping[str, Any], tag: str) -> Image:
        entry = chosen(listing, str(self.path))
        tag = (entry.get("annotations") or {}).get(REF_NAME, tag)
        blob = blob_of(entry)
        found = parsed(self.small(blob), str(self.path))
        if blob.media in INDEXES:
            return self._image(found, tag)
        return image_of(tag, blob, found, self.small)

    @contextmanager
    def layer(self, blob: Blob, diff_id: str) -> Iterator[IO[bytes]]:
        """A layer's tar as a stream, read to its end. Raises DigestError for other bytes."""
        with self.blob(blob) as raw:
            plain = Hashing(unpacking(raw, blob.media))
            try:
                yield cast("IO[bytes]", plain)
                while plain.read(CHUNK):
                    pass
            except _broken() as error:
                raise damaged(f"{self.path}/{blob_name(blob.digest)}", str(error)) from error
        if plain.digest.hexdigest() != diff_id:
            raise damaged(f"{self.path}/{blob_name(blob.digest)}", "its tar is another one")


class Hashing(io.RawIOBase):
    """A stream that digests what is read through it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.digest = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self.digest.update(data)
        return data


class _Closing(io.RawIOBase):
    """A member of a tar that closes the tar with itself."""

    def __init__(self, stream: IO[bytes], then: Callable[[], None]) -> None:
        self._stream, self._then = stream, then

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self._stream.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def close(self) -> None:
        if not self.closed:
            self._then()
        super().close()


def blob_name(digest: str) -> str:
    """Where a layout has a blob."""
    return f"blobs/sha256/{digest}"


def blob_of(entry: Mapping[str, Any]) -> Blob:
    """A descriptor as a Blob. Raises ImageError for a digest other than sha256."""
    algorithm, _, digest = str(entry.get("digest", "")).partition(":")
    if algorithm != "sha256" or len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
        raise ImageError("an image names a file by no sha256", why=str(entry.get("digest")))
    notes = entry.get("annotations") or {}
    return Blob(
        digest=digest,
        size=int(entry.get("size", 0)),
        media=str(entry.get("mediaType", "")),
        unpacked=int(notes.get(UNPACKED, 0)),
    )


def chosen(listing: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """The entry of an index for Linux on x86-64; one that names no platform is taken as such."""
    for entry in listing.get("manifests") or []:
        told = entry.get("platform") or {"os": "linux", "architecture": "amd64"}
        known = entry.get("mediaType") in (*MANIFESTS, *INDEXES)
        if known and (told.get("os"), told.get("architecture")) == ("linux", "amd64"):
            return cast("Mapping[str, Any]", entry)
    raise ImageError(f"{where} holds no image for Linux on x86-64")


def image_of(
    tag: str, blob: Blob, manifest: Mapping[str, Any], read: Callable[[Blob], bytes]
) -> Image:
    """An image out of its manifest; `read` gets the configuration."""
    told = blob_of(manifest["config"])
    config = parsed(read(told), tag)
    layers = tuple(blob_of(entry) for entry in manifest["layers"])
    if len(layers) != len(config.get("rootfs", {}).get("diff_ids", ())):
        raise ImageError(f"{tag} is no image", why="its layers are not those of its configuration")
    return Image(tag=tag, manifest=blob, config_blob=told, config=config, layers=layers)


def parsed(body: bytes, where: str) -> dict[str, Any]:
    """A JSON object of an image. Raises ImageError for anything else."""
    try:
        found = json.loads(body)
    except ValueError as error:
        raise ImageError(f"{where} is no image", why=str(error)) from None
    if not isinstance(found, dict):
        raise ImageError(f"{where} is no image", why="its index is no JSON object")
    return found


def unpacking(raw: IO[bytes], media: str) -> IO[bytes]:
    """A layer's tar out of its bytes. Raises ImageError for a kind that nobody uses."""
    if media.endswith(("+zstd", ".zstd")):
        import zstandard

        stream = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
        return cast("IO[bytes]", stream)
    if media.endswith(("+gzip", ".gzip")):
        return cast("IO[bytes]", gzip.GzipFile(fileobj=raw))
    if media.endswith(".tar"):
        return raw
    raise ImageError("a layer is of an unknown kind", why=media)


def _broken() -> tuple[type[Exception], ...]:
    """What is raised by a stream that is not what it should be."""
    import zstandard

    kinds = (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, zstandard.ZstdError)
    return cast("tuple[type[Exception], ...]", kinds)


def damaged(what: str, why: str = "") -> DigestError:
    """The error for bytes that do not have the digest they are named by."""
    return DigestError(
        f"{what} is damaged",
        why=why or "its sha256 is not the one it is named by",
        remedy="remove that one file and copy it again",
    )
