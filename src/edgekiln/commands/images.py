"""`kiln images export`, `load`, `pull`, `push`: images on their way from machine to machine."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from edgekiln import units
from edgekiln.commands import _engine, _task, images_sbom
from edgekiln.errors import ImageError, UsageError

if TYPE_CHECKING:
    from edgekiln.images.layout import Image, Layout
    from edgekiln.progress import Progress
    from edgekiln.toolchain import Toolchain


def images_export(name: str, to: Path) -> None:
    """Write an image to a folder of files, or to one file, and what is in it beside that."""
    from edgekiln.images import exports
    from edgekiln.toolchain import load_toolchain

    target = to.expanduser().absolute()
    with _task(f"export {name}") as task:
        image = exports.export(_engine(), load_toolchain(name), target, task)
    print(f"{to} ({_figures(image)})")
    images_sbom(name, to=target.with_name(f"{target.name}.cdx.json"), executor="docker")


def _figures(image: Image) -> str:
    size = units.size(sum(blob.size for blob in image.blobs))
    return f"{size} in {len(image.layers)} layers, sha256:{image.manifest.digest}"


def images_load(path: Path, *, rootfs: bool) -> None:
    """Put an export into the engine, or with `rootfs` lay it out as a folder; then it is proved."""
    from edgekiln.images.layout import Layout
    from edgekiln.toolchain import load_toolchain

    source = Layout(path.expanduser())
    if not source.path.exists():
        raise UsageError(f"{path} does not exist", remedy="name the folder or file of an export")
    name = source.image().labels.get("io.edgekiln.toolchain", "")
    if not name:
        raise ImageError(f"{path} is no image of edgekiln's", remedy="kiln images export makes one")
    with _task(f"load {name}") as task:
        done = _settle(load_toolchain(name), source, task, rootfs=rootfs)
    print(done)


def _settle(toolchain: Toolchain, source: Layout, progress: Progress, *, rootfs: bool) -> str:
    """Put an export where it is used; returns the image's tag, or the folder."""
    from edgekiln import images
    from edgekiln.images import exports
    from edgekiln.rootfs import unpack

    if rootfs:
        return str(unpack.from_export(toolchain, source, progress))
    exports.into_engine(_engine(), toolchain, source, progress)
    return images.tag(toolchain)


def images_pull(name: str, *, place: str, rootfs: bool) -> None:
    """Bring an image out of a registry, into the engine or as a folder."""
    from edgekiln.images import registry
    from edgekiln.toolchain import load_toolchain

    toolchain = load_toolchain(name)
    if not rootfs:
        _engine()  # without one nothing needs to be fetched
    with _task(f"pull {name}") as task:
        source = registry.pull(toolchain, _place(place), task)
        done = _settle(toolchain, source, task, rootfs=rootfs)
        shutil.rmtree(source.path)
    print(done)


def images_push(name: str, *, place: str) -> None:
    """Send an image to a registry; an export of it is made unless one lies here."""
    from edgekiln.images import exports, registry
    from edgekiln.images.layout import Layout
    from edgekiln.toolchain import load_toolchain

    toolchain = load_toolchain(name)
    with _task(f"push {name}") as task:
        source = exports.find(toolchain)
        made = source is None
        if source is None:
            source = Layout(exports.folder() / exports.export_name(toolchain))
            exports.export(_engine(), toolchain, source.path, task)
        told = registry.push(toolchain, source, _place(place), task)
        if made:  # kept only for a push that was broken off
            shutil.rmtree(source.path)
    print(told)


def _place(place: str) -> str:
    from edgekiln.images import registry

    found = place or registry.named()
    if not found:
        remedy = f"give it as registry.example/me/edgekiln, or by {registry.VARIABLE}"
        raise UsageError("which registry?", remedy=remedy)
    return found
