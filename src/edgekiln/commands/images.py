"""`kiln images`: build, look at, prove and remove images; send them from machine to machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekiln import units
from edgekiln.commands.common import shown_task, the_engine
from edgekiln.errors import ImageError, UsageError
from edgekiln.home import project
from edgekiln.report import table

if TYPE_CHECKING:
    from edgekiln.engine import Engine
    from edgekiln.images.layout import Image, Layout
    from edgekiln.progress import Progress
    from edgekiln.toolchain import Toolchain


def images_list() -> None:
    """Print every toolchain's image."""
    from edgekiln import images
    from edgekiln.engine import find_engine
    from edgekiln.rootfs import unpack
    from edgekiln.toolchain import list_toolchains, load_toolchain

    engine = find_engine()
    rows = []
    for name in list_toolchains():
        toolchain = load_toolchain(name)
        there = "no engine" if engine is None else _state(engine, toolchain)
        there += ", laid out" if unpack.is_ready(toolchain) else ""
        rows.append((name, images.tag(toolchain), there, toolchain.summary))
    print(table(rows, ("name", "image", "", "what")))


def _state(engine: Engine, toolchain: Any) -> str:
    from edgekiln import images

    found = engine.image(images.tag(toolchain))
    return units.size(found["Size"]) if found else "not built"


def images_build(name: str, *, base: str | None, frozen: bool) -> None:
    """Build one image."""
    from edgekiln import images
    from edgekiln.toolchain import load_toolchain

    toolchain = load_toolchain(name, base=base)
    with shown_task(f"image {name}", "steps") as task:
        images.build(the_engine(), toolchain, task, frozen=frozen)
    print(images.tag(toolchain))
    if toolchain.kits:
        _tell_kits(toolchain)


def _tell_kits(toolchain: Toolchain) -> None:
    """Prove the image with its kits where they are here; else say what is missing."""
    from edgekiln import images
    from edgekiln.doctor import tell_kits

    if absent := tell_kits(toolchain.kits):
        print("proved without its kits, which are mounted and never part of it:")
        print("\n".join(f"  {check.name}: {check.found}" for check in absent))
        print(f"kiln toolchains fetch {toolchain.asked} gets them")
        return
    for line in images.prove(the_engine(), toolchain)["proved"]:
        print(f"ok     {line}")


def images_dry_run(name: str, *, base: str | None) -> None:
    """Print every address, digest and size that building an image would fetch; fetch nothing."""
    from edgekiln.engine import find_engine
    from edgekiln.kits import shown
    from edgekiln.toolchain import load_toolchain

    toolchain = load_toolchain(name, base=base)
    print(shown.text(toolchain, shown.needed(toolchain, find_engine())))


def images_verify(name: str) -> None:
    """Run an image's verify."""
    from edgekiln import images
    from edgekiln.toolchain import load_toolchain

    report = images.prove(the_engine(), load_toolchain(name))
    print("\n".join(f"ok     {line}" for line in report["proved"]))
    print("\n".join(f"newer  {line}" for line in report["drift"]), end="")


def images_gc(*, dry_run: bool) -> None:
    """Remove images, folders of images and kits that no toolchain of this checkout asks for."""
    from edgekiln import images
    from edgekiln.engine import find_engine
    from edgekiln.images import exports
    from edgekiln.kits import making
    from edgekiln.rootfs import unpack
    from edgekiln.toolchain import list_toolchains, load_toolchain

    for kit in making.unused():
        if not dry_run:
            making.remove(kit)
        print(kit)
    toolchains = [load_toolchain(name) for name in list_toolchains()]
    for folder in [*unpack.unused(toolchains), *exports.unused(toolchains)]:
        if not dry_run:
            unpack.remove_tree(folder)
        print(folder)
    engine = find_engine()
    wanted = {images.tag(toolchain) for toolchain in toolchains}
    ours = images.list_images(engine) if engine else []
    old = [
        image
        for image in ours
        if "edgekiln/" in image["tag"] and image["tag"].removeprefix("localhost/") not in wanted
    ]
    for image in old:
        if engine and not dry_run:
            images.remove(engine, image["tag"])
        print(f"{image['tag']}  {units.size(image['size'])}")
    print(f"{'would remove' if dry_run else 'removed'} {len(old)} images; layers are shared")


def images_sbom(name: str, *, to: Path | None, executor: str) -> None:
    """Write a toolchain's bill of materials to a file, or to standard output."""
    from edgekiln import sbom
    from edgekiln.store import disk_error
    from edgekiln.toolchain import load_toolchain

    text = sbom.of_toolchain(load_toolchain(name), executor=executor)
    if to is None:
        sys.stdout.write(text)
        return
    try:
        to.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise disk_error(error, to) from error
    print(f"{to} ({units.size(to.stat().st_size)})")


def images_shell(name: str, *, folder: str) -> None:
    """Hand the terminal to a shell in an image."""
    from edgekiln import images
    from edgekiln.toolchain import load_toolchain

    place = Path(folder).expanduser().resolve() if folder else project() / "scripts"
    command, env = images.shell_command(the_engine(), load_toolchain(name), place)
    code = subprocess.run(command, env={**os.environ, **env}, check=False).returncode
    if code:
        from invoke.exceptions import Exit

        raise Exit(code=code)


def images_export(name: str, to: Path) -> None:
    """Write an image to a folder of files, or to one file, and what is in it beside that."""
    from edgekiln.images import exports
    from edgekiln.toolchain import load_toolchain

    target = to.expanduser().absolute()
    with shown_task(f"export {name}") as task:
        image = exports.export(the_engine(), load_toolchain(name), target, task)
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
    with shown_task(f"load {name}") as task:
        done = _settle(load_toolchain(name), source, task, rootfs=rootfs)
    print(done)


def _settle(toolchain: Toolchain, source: Layout, progress: Progress, *, rootfs: bool) -> str:
    """Put an export where it is used; returns the image's tag, or the folder."""
    from edgekiln import images
    from edgekiln.images import exports
    from edgekiln.rootfs import unpack

    if rootfs:
        return str(unpack.from_export(toolchain, source, progress))
    exports.into_engine(the_engine(), toolchain, source, progress)
    return images.tag(toolchain)


def images_pull(name: str, *, place: str, rootfs: bool) -> None:
    """Bring an image out of a registry, into the engine or as a folder."""
    from edgekiln.images import registry
    from edgekiln.toolchain import load_toolchain

    toolchain, where = load_toolchain(name), _place(place)
    if not rootfs:
        the_engine()  # without one nothing needs to be fetched
    with shown_task(f"pull {name}") as task:
        source = registry.pull(toolchain, where, task)
        done = _settle(toolchain, source, task, rootfs=rootfs)
        shutil.rmtree(source.path)
    print(done)


def images_push(name: str, *, place: str) -> None:
    """Send an image to a registry; an export of it is made unless one lies here."""
    from edgekiln.images import exports, registry
    from edgekiln.images.layout import Layout
    from edgekiln.toolchain import load_toolchain

    toolchain, where = load_toolchain(name), _place(place)
    with shown_task(f"push {name}") as task:
        source = exports.find(toolchain)
        made = source is None
        if source is None:
            source = Layout(exports.folder() / exports.export_name(toolchain))
            exports.export(the_engine(), toolchain, source.path, task)
        told = registry.push(toolchain, source, where, task)
        if made:  # kept only for a push that was broken off
            shutil.rmtree(source.path)
    print(told)


def _place(place: str) -> str:
    """The repository that is meant. Raises UsageError for none, or for what names none."""
    from edgekiln.images import registry
    from edgekiln.images.repository import Repository

    found = place or registry.named()
    if not found:
        remedy = f"give it as registry.example/me/edgekiln, or by {registry.VARIABLE}"
        raise UsageError("which registry?", remedy=remedy)
    Repository(found)
    return found
