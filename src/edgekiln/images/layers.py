"""A root file system cut into layers: the same content gives the same files, byte for byte.

An engine streams a container's whole file system; what it puts there itself is left out, and so is
every trace of when the image was made. The cuts depend on the paths, not on where the last one
was: an image that differs in one package differs in a few layers, and only those are sent again.
"""

from __future__ import annotations

import copy
import hashlib
import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from edgekiln.digest import digest_file
from edgekiln.errors import ImageError
from edgekiln.images import EPOCH
from edgekiln.images.content import ENGINES_OWN, MOUNTED
from edgekiln.images.layout import LAYER, Blob, blob_name, unpacking

LEVEL = 9  # zstd's; higher ones take twice the time for 1 % less
SMALLEST, LARGEST = 64 << 20, 256 << 20  # bytes of a layer's files; a larger file is alone in one
_CUTS = 32  # of 256 folders so many may begin a new layer
_HOSTS = b"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
# Engines mount their own over these. A root file system without an engine needs the first.
_OVERLAID = {"etc/hosts": _HOSTS, "etc/hostname": b"edgekiln\n", "etc/resolv.conf": b""}
_LEFT_OUT = ENGINES_OWN - _OVERLAID.keys()
# Settled by provision.py, but for what the Dockerfile copies beside it.
_OURS = "opt/edgekiln/"


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer that was written: its blob, and the sha256 (hex) of its tar."""

    blob: Blob
    diff_id: str


def cut(stream: IO[bytes], layout: Path, smallest: int = SMALLEST) -> Iterator[Layer]:
    """Write the layers of a file system that comes as a tar into a layout's folder, one by one.

    Raises ImageError for a member that can be in no layer.
    """
    cutter = _Cutter(layout, smallest)
    with tarfile.open(fileobj=stream, mode="r|") as tar:
        for info in tar:
            if made := _settled(info):
                yield from cutter.add(made, _content(tar, info, made))
            tar.members = []  # type: ignore[attr-defined]  # tarfile keeps all of them
    yield from cutter.close()


def _content(
    tar: tarfile.TarFile, info: tarfile.TarInfo, made: tarfile.TarInfo
) -> IO[bytes] | None:
    """What a member holds: None for all but files."""
    if not made.isfile():
        return None
    ours = _OVERLAID.get(made.name)
    return tar.extractfile(info) if ours is None else io.BytesIO(ours)


def _settled(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """A member as a layer has it: its times fixed; None for what is the engine's own."""
    name = info.name.removeprefix("./").strip("/")
    if name in (*_LEFT_OUT, "", ".") or name.startswith(tuple(f"{n}/" for n in MOUNTED)):
        return None
    made = tarfile.TarInfo(name)
    made.type, made.mode, made.uid, made.gid = info.type, info.mode & 0o7777, info.uid, info.gid
    made.size, made.linkname = info.size, info.linkname
    made.devmajor, made.devminor = info.devmajor, info.devminor
    made.pax_headers = {k: v for k, v in info.pax_headers.items() if k.startswith("SCHILY.xattr.")}
    # A file has its package's date, which bytecode beside it may be held against; a hard link has
    # its file's, since some engines put it on both.
    dated = (info.isfile() or info.islnk()) and not name.startswith(_OURS)
    made.mtime = int(info.mtime) if dated else EPOCH
    if name in _OVERLAID and (info.isfile() or info.islnk()):
        made.type, made.size, made.mtime = tarfile.REGTYPE, len(_OVERLAID[name]), EPOCH
    if made.islnk():
        made.linkname = info.linkname.removeprefix("./").strip("/")
        made.size = 0
    return made


@dataclass(kw_only=True)
class _Open:
    """A layer that is being written."""

    raw: IO[bytes]
    packed: Any
    plain: _Digesting
    tar: tarfile.TarFile
    names: set[str] = field(default_factory=set)
    size: int = 0


class _Digesting(io.RawIOBase):
    """Digests and counts what is written through it."""

    def __init__(self, sink: Any) -> None:
        self._sink, self.digest, self.count = sink, hashlib.sha256(), 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.digest.update(data)
        self.count += len(data)
        self._sink.write(data)
        return len(data)


class _Cutter:
    """Takes the members of one file system in their order, and writes layers into a layout."""

    def __init__(self, layout: Path, smallest: int) -> None:
        self._layout, self._smallest = layout, smallest
        self._largest = smallest * LARGEST // SMALLEST
        self._part = layout / "blobs" / "sha256" / "layer.part"
        self._part.parent.mkdir(parents=True, exist_ok=True)
        self._folders: dict[str, tarfile.TarInfo] = {}
        self._written: dict[str, str] = {}  # a file's path → the layer that has it
        self._folder = ""
        self._open: _Open | None = None

    def add(self, info: tarfile.TarInfo, content: IO[bytes] | None) -> Iterator[Layer]:
        """Put one member behind the others; yields the layer that it closes, if it does."""
        folder = str(PurePosixPath(info.name).parent)
        if self._open and self._ends(self._open.size, info, folder):
            yield from self.close()
        self._folder = folder
        layer = self._open or self._begin()
        self._put_folders(layer, info.name)
        if info.isdir():
            self._folders[info.name] = info
        elif info.islnk() and info.linkname not in layer.names:
            info, content = self._copied(info)
        layer.names.add(info.name)
        layer.size += info.size
        layer.tar.addfile(info, content)

    def _ends(self, size: int, info: tarfile.TarInfo, folder: str) -> bool:
        """Whether a layer of that size ends before a member."""
        if size + info.size > self._largest:
            return True
        chosen = hashlib.sha256(folder.encode()).digest()[0] < _CUTS
        return size >= self._smallest and folder != self._folder and chosen

    def close(self) -> Iterator[Layer]:
        """End the layer that is open, if one is."""
        layer, self._open = self._open, None
        if layer is None:
            return
        layer.tar.close()
        layer.packed.close()
        layer.raw.close()
        digest, size = digest_file(self._part), self._part.stat().st_size
        self._part.replace(self._part.with_name(digest))
        self._written |= dict.fromkeys(layer.names, digest)
        blob = Blob(digest=digest, size=size, media=LAYER, unpacked=layer.plain.count)
        yield Layer(blob=blob, diff_id=layer.plain.digest.hexdigest())

    def _begin(self) -> _Open:
        import zstandard

        raw = self._part.open("wb")
        # With threads, however many, the bytes are the same; without any they are others.
        packed = zstandard.ZstdCompressor(level=LEVEL, threads=2).stream_writer(raw, closefd=False)
        plain = _Digesting(packed)
        tar = tarfile.open(  # noqa: SIM115 - closed with its layer
            fileobj=cast("IO[bytes]", plain), mode="w|", format=tarfile.PAX_FORMAT
        )
        self._open = _Open(raw=raw, packed=packed, plain=plain, tar=tar)
        return self._open

    def _put_folders(self, layer: _Open, name: str) -> None:
        """The folders around a member: engines give those they are not told of other modes."""
        for above in map(str, reversed(PurePosixPath(name).parents)):
            if above not in layer.names and above in self._folders:
                layer.names.add(above)
                layer.tar.addfile(self._folders[above])

    def _copied(self, info: tarfile.TarInfo) -> tuple[tarfile.TarInfo, IO[bytes]]:
        """A link to a file of an earlier layer, as a file: no layer can link into another."""
        if info.linkname not in self._written:
            raise ImageError(f"{info.name} is a link to {info.linkname}, which is nowhere")
        path = self._layout / blob_name(self._written[info.linkname])
        with path.open("rb") as raw, tarfile.open(fileobj=unpacking(raw, LAYER), mode="r|") as tar:
            for member in tar:
                if member.name == info.linkname and member.isfile():
                    stream = tar.extractfile(member)
                    assert stream is not None
                    made = copy.copy(member)
                    made.name = info.name
                    return made, io.BytesIO(stream.read())
        raise ImageError(f"{info.name} is a link to {info.linkname}, which is no file")
