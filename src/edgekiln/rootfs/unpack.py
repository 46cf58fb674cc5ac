"""An image laid out as a folder, by root or by anybody: what proot and chroot run in.

Layers come one after the other, each held against its digest before a byte of it is written, so
what was broken off goes on with the layer it was at. The folder gets its name when it is whole.
Owners are kept where root may give files away; elsewhere all is the user's. Device nodes are left
out: whoever runs something inside brings its own.
"""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

from edgekiln.errors import ImageError
from edgekiln.home import home
from edgekiln.images.layout import OPAQUE, WHITEOUT, Image, Layout
from edgekiln.room import refuse_full
from edgekiln.rootfs.inside import Inside
from edgekiln.store import disk_error

if TYPE_CHECKING:
    from edgekiln.progress import Progress
    from edgekiln.toolchain import Toolchain

_ROOT = "root"
_STATE = "unpacked.json"


def rootfs_path(toolchain: Toolchain) -> Path:
    """Where a toolchain's image is unpacked; `root` below it is its root folder."""
    from edgekiln import images

    return home() / "rootfs" / images.file_name(toolchain).removeprefix("edgekiln-")


def is_ready(toolchain: Toolchain) -> bool:
    """Whether the toolchain's image is unpacked here; one stat."""
    return (rootfs_path(toolchain) / _ROOT).is_dir()


def unused(toolchains: Iterable[Toolchain]) -> list[Path]:
    """Folders of images that none of these toolchains is made into any more."""
    wanted = {rootfs_path(toolchain) for toolchain in toolchains}
    return sorted(each for each in (home() / "rootfs").glob("*") if each not in wanted)


def ready(toolchain: Toolchain, progress: Progress) -> Path:
    """The root folder of the toolchain's image, unpacked if it is not yet.

    Out of an export in the vendor folder, or one that was pulled, else out of the registry that
    EDGEKILN_REGISTRY names. Raises ImageError where none has it, DigestError for damaged files,
    DiskError or AccessError for the folder.
    """
    from edgekiln.images import exports, registry

    if is_ready(toolchain):
        return rootfs_path(toolchain) / _ROOT
    source = exports.find(toolchain)
    if source is not None:
        return from_export(toolchain, source, progress)
    if not registry.named():
        name, folder = exports.export_name(toolchain), exports.folder()
        raise ImageError(
            f"the image of {toolchain.name} is not on this machine",
            why=f"no {name} lies in EDGEKILN_VENDOR or {folder}; EDGEKILN_REGISTRY names nothing",
            remedy=f"where an engine is: kiln images export {toolchain.name} --to {name}",
        )
    source = registry.pull(toolchain, registry.named(), progress)
    root = from_export(toolchain, source, progress)
    shutil.rmtree(source.path, ignore_errors=True)  # the data disk need not hold it twice
    return root


def from_export(toolchain: Toolchain, source: Layout, progress: Progress) -> Path:
    """The root folder of the toolchain's image out of an export. Raises as `ready` does."""
    from edgekiln.images import exports
    from edgekiln.images import held as held_images
    from edgekiln.locking import held

    path = rootfs_path(toolchain)
    lock = home() / "locks" / f"rootfs-{path.name}.lock"
    with held(lock, lambda: progress.note(f"waiting: another edgekiln is unpacking {path.name}")):
        if not is_ready(toolchain):
            held_images.hold(source, exports.require(source, toolchain), toolchain, progress)
            unpack(source, path, progress)
    return path / _ROOT


def unpack(source: Layout, path: Path, progress: Progress) -> Path:
    """Lay an image out in `path`/root and return that; goes on where it was broken off.

    Raises ImageError for a member that would land elsewhere, DigestError, DiskError, AccessError.
    """
    image = source.image()
    root, part = path / _ROOT, path / f"{_ROOT}.part"
    try:
        part.mkdir(parents=True, exist_ok=True)
        done = _state(path, image, part)
        _refuse_full(image, done, path)
        total = sum(layer.size for layer in image.layers)
        owners = may_give_away(path)
        for number, layer in enumerate(image.layers):
            if number >= done:
                told = f"unpacking {path.name}"
                progress.update(sum(each.size for each in image.layers[:number]), total, told)
                source.check(layer)
                with source.layer(layer, image.diff_ids[number]) as stream:
                    _Layer(inside=Inside(part), owners=owners).lay(stream)
                _write_state(path, image, number + 1)
        progress.update(total, total, f"unpacking {path.name}")
        part.rename(root)
    except OSError as error:
        raise disk_error(error, path) from error
    return root


def _state(path: Path, image: Image, part: Path) -> int:
    """How many layers lie there already; those of another image are cleared away."""
    try:
        told = json.loads((path / _STATE).read_bytes())
        if told["manifest"] == image.manifest.digest:
            return int(told["layers"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    remove_tree(part)
    part.mkdir()
    part.chmod(0o755)
    _write_state(path, image, 0)
    return 0


def _write_state(path: Path, image: Image, done: int) -> None:
    told = {"manifest": image.manifest.digest, "tag": image.tag, "layers": done}
    fresh = path / f"{_STATE}.part"
    fresh.write_text(json.dumps(told, sort_keys=True) + "\n", encoding="utf-8")
    fresh.replace(path / _STATE)


def _refuse_full(image: Image, done: int, path: Path) -> None:
    """Refuse before the first byte where the rest does not fit; untold sizes are not guessed."""
    needed = sum(layer.unpacked for layer in image.layers[done:])
    refuse_full(path, needed, f"{image.tag or 'the image'}, unpacked")


def may_give_away(folder: Path) -> bool:
    """Whether this user may give files to others: root, unless a namespace has taken that."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return False
    probe = folder / ".owner"
    probe.touch()
    try:
        os.chown(probe, 65534, 65534)
    except OSError:
        return False
    finally:
        probe.unlink()
    return True


def remove_tree(path: Path) -> None:
    """Remove a folder that may hold folders its own user may not write."""
    if not path.is_dir():
        return
    for folder, folders, _ in os.walk(path):
        for name in folders:
            inner = Path(folder, name)
            if not inner.is_symlink() and inner.stat().st_mode & 0o700 != 0o700:
                inner.chmod(0o700)
    shutil.rmtree(path)


@dataclass(kw_only=True)
class _Layer:
    """One layer being laid over what is there."""

    inside: Inside
    owners: bool
    own: set[str] = field(default_factory=set)  # what this very layer has made

    def lay(self, stream: IO[bytes]) -> None:
        """Every member in its order."""
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            for info in tar:
                self._lay(tar, info)
                tar.members = []  # type: ignore[attr-defined]  # tarfile keeps all of them

    def _lay(self, tar: tarfile.TarFile, info: tarfile.TarInfo) -> None:
        place = self.inside.place(info.name)
        if place is None:
            return
        if place.name == OPAQUE:
            return self._clear(place.parent)
        if place.name.startswith(WHITEOUT):
            return self._strip(place.with_name(place.name.removeprefix(WHITEOUT)))
        self._own(place)
        if info.ischr() or info.isblk():
            return
        self._put(tar, info, place)

    def _clear(self, folder: Path) -> None:
        """What earlier layers have in a folder goes."""
        for child in list(folder.iterdir()) if folder.is_dir() else ():
            self._strip(child)

    def _strip(self, place: Path) -> None:
        """What earlier layers have at a place goes; a layer takes nothing of its own away."""
        if str(place) not in self.own:
            self.inside.remove(place)
        elif not place.is_symlink():
            self._clear(place)

    def _own(self, place: Path) -> None:
        """Note what this layer has made, with the folders around it."""
        while str(place) not in self.own:
            self.own.add(str(place))
            place = place.parent

    def _put(self, tar: tarfile.TarFile, info: tarfile.TarInfo, place: Path) -> None:
        if info.isdir():
            self.inside.folder(place)
        else:
            self.inside.remove(place)
            if info.islnk():
                first = self.inside.place(info.linkname)
                if first is None or not (first.is_symlink() or first.is_file()):
                    raise ImageError(f"{info.name} is a link to {info.linkname}, which is no file")
                return os.link(first, place, follow_symlinks=False)
            if info.issym():
                place.symlink_to(info.linkname)
            elif info.isfifo():
                os.mkfifo(place)
            elif info.isfile():
                source = tar.extractfile(info)
                assert source is not None
                with place.open("xb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)
            else:
                raise ImageError(f"{info.name} is of a kind that no image holds")
        self._dress(info, place)

    def _dress(self, info: tarfile.TarInfo, place: Path) -> None:
        """Owner, mode, time: in this order, since a change of owner takes bits off the mode."""
        if self.owners:
            os.chown(place, info.uid, info.gid, follow_symlinks=False)
        if not info.issym():
            mode = info.mode & 0o7777
            place.chmod(mode if self.owners else mode | (0o700 if info.isdir() else 0o400))
        os.utime(place, (info.mtime, info.mtime), follow_symlinks=False)
