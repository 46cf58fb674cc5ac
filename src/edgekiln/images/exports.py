"""Images as files that travel: written out of an engine, read into one.

An export is an OCI image layout (layout.py) whose layers hold the image's whole file system, cut
into files of a size that every way of copying takes (layers.py). Two builds of one lock give the
same files. No kit is ever in it, as none is in an image.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from edgekiln.errors import EngineError, ImageError, UsageError
from edgekiln.home import home, vendor_folder
from edgekiln.images import EPOCH
from edgekiln.images.layers import Layer, cut
from edgekiln.images.layout import (
    CONFIG,
    INDEX,
    MANIFEST,
    REF_NAME,
    UNPACKED,
    Blob,
    Image,
    Layout,
    blob_name,
    image_of,
)
from edgekiln.store import disk_error

if TYPE_CHECKING:
    from edgekiln.engine import Engine
    from edgekiln.progress import Progress
    from edgekiln.toolchain import Toolchain

_WHEN = "2025-01-01T00:00:00Z"  # EPOCH
_PLATFORM = {"architecture": "amd64", "os": "linux"}
_KEPT = ("User", "Env", "Entrypoint", "Cmd", "WorkingDir", "Labels")


def export_name(toolchain: Toolchain) -> str:
    """How an export is called where many lie: by the image's tag, so by all that is in it."""
    from edgekiln import images

    return f"{images.file_name(toolchain)}.image"


def folder() -> Path:
    """Where exports lie that this machine pulled."""
    return home() / "exports"


def unused(toolchains: Iterable[Toolchain]) -> list[Path]:
    """What was pulled of images that none of these toolchains is made into any more."""
    wanted = {export_name(toolchain) for toolchain in toolchains}
    return sorted(each for each in folder().glob("*.image") if each.name not in wanted)


def find(toolchain: Toolchain) -> Layout | None:
    """The toolchain's export on this machine: in the vendor folder, or pulled; folder or tar."""
    name = export_name(toolchain)
    for place in (vendor_folder(), folder()):
        for path in (place / name, place / f"{name}.tar") if place else ():
            if (path / "index.json").is_file() or path.is_file():
                return Layout(path)
    return None


def require(source: Layout, toolchain: Toolchain) -> Image:
    """What an export holds. Raises ImageError unless it is the toolchain's own image."""
    image = source.image()
    refuse_another(image, toolchain, str(source.path))
    return image


def refuse_another(image: Image, toolchain: Toolchain, where: str) -> None:
    """Raise ImageError for an image of another lock than the toolchain's."""
    from edgekiln import images

    if image.labels.get("io.edgekiln.toolchain.lock") != f"sha256:{toolchain.installed}":
        remedy = f"kiln images export {toolchain.name} --to NAME.image, with this checkout"
        why = f"it holds {image.tag or 'no name'}, not {images.tag(toolchain)} as it is locked"
        raise ImageError(f"{where} has another image", why=why, remedy=remedy)


def export(engine: Engine, toolchain: Toolchain, target: Path, progress: Progress) -> Image:
    """Write the toolchain's image as a layout: a folder, or one tar where `target` ends in .tar.

    Written whole or not at all. Raises ImageError for an image that is not built, UsageError for a
    target that is something else, DiskError.
    """
    from edgekiln import images

    name = images.tag(toolchain)
    found = engine.image(name)
    if found is None:
        raise ImageError(f"{name} is not built", remedy=f"kiln images build {toolchain.name}")
    _refuse_other(target)
    fresh = target.with_name(f".{target.name}.part-{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with streamed(engine, name) as stream:
            image = _write(stream, found, name, fresh, progress)
        if target.suffix == ".tar":
            _pack(fresh, image, progress)
            shutil.rmtree(fresh)
            fresh = fresh.with_name(f"{fresh.name}.tar")
        elif target.is_dir():
            shutil.rmtree(target)
        fresh.replace(target)
    except OSError as error:
        raise disk_error(error, target) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.with_name(f"{fresh.name}.tar").unlink(missing_ok=True)
    return image


def _refuse_other(target: Path) -> None:
    """Refuse to write over what is no export."""
    tar = target.suffix == ".tar"
    other = target.is_dir() if tar else target.is_file()
    if not other and target.is_dir():
        other = not (target / "oci-layout").is_file() and any(target.iterdir())
    if other:
        what = "a folder" if target.is_dir() else "a file"
        remedy = "give NAME.image for a folder, or NAME.image.tar for one file"
        raise UsageError(f"{target} is {what} of something else", remedy=remedy)


@contextmanager
def streamed(engine: Engine, name: str) -> Iterator[IO[bytes]]:
    """A container's whole file system, as a tar; the container never runs."""
    from edgekiln.calls import call, last_words
    from edgekiln.engine.buildcli import build_environment

    env = build_environment(engine.url)
    made = call([*engine.cli, "create", "--network", "none", name], env=env)
    if made.returncode:
        raise EngineError(f"no container can be made of {name}", why=last_words(made))
    container = made.stdout.strip().splitlines()[-1]
    process = subprocess.Popen(
        [*engine.cli, "export", container], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    try:
        yield process.stdout
        said = process.stderr.read().decode(errors="replace").strip()
        if process.wait():
            raise EngineError(f"{name} could not be exported", why=said)
    except (tarfile.TarError, EOFError) as error:
        raise EngineError(f"{name} could not be exported", why=str(error)) from error
    finally:
        process.kill()
        # In a session of its own: a second Ctrl-C, while this waits, does not leave the container.
        removal = subprocess.Popen(
            [*engine.cli, "rm", "--force", container],
            env=env,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        process.wait()
        process.stdout.close()
        process.stderr.close()
        removal.wait()


def _write(
    stream: IO[bytes], found: Mapping[str, Any], name: str, folder: Path, progress: Progress
) -> Image:
    """The whole layout in a folder."""
    folder.mkdir(parents=True)
    layers: list[Layer] = []
    done, total = 0, int(found.get("Size") or 0) or None
    progress.update(0, total, f"exporting {name}")
    for layer in cut(stream, folder):
        layers.append(layer)
        done += layer.blob.unpacked
        progress.update(done, max(done, total or 0), f"exporting {name}")
    config = _put(folder, _configuration(found, layers), CONFIG)
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": _entry(config),
        "layers": [_entry(layer.blob) for layer in layers],
    }
    blob = _put(folder, manifest, MANIFEST)
    image = image_of(name, blob, manifest, Layout(folder).small)
    write_index(folder, image)
    return image


def write_index(folder: Path, image: Image) -> None:
    """What makes a folder of blobs a layout; written last."""
    # containerd, and a Docker that keeps its images there, take names with their registry only.
    named = {REF_NAME: image.tag, "io.containerd.image.name": f"docker.io/{image.tag}"}
    entry = {**_entry(image.manifest), "platform": _PLATFORM, "annotations": named}
    _json(folder / "oci-layout", {"imageLayoutVersion": "1.0.0"})
    _json(folder / "index.json", {"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]})


def _configuration(found: Mapping[str, Any], layers: list[Layer]) -> dict[str, Any]:
    own = found.get("Config") or {}
    made = {"created": _WHEN, "created_by": "kiln images export"}
    return {
        **_PLATFORM,
        "created": _WHEN,
        "config": {key: own[key] for key in _KEPT if own.get(key)},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{each.diff_id}" for each in layers]},
        "history": [made for _ in layers],
    }


def _entry(blob: Blob) -> dict[str, Any]:
    """A blob's descriptor."""
    entry = {"mediaType": blob.media, "digest": f"sha256:{blob.digest}", "size": blob.size}
    return entry | ({"annotations": {UNPACKED: str(blob.unpacked)}} if blob.unpacked else {})


def _put(folder: Path, value: Mapping[str, Any], media: str) -> Blob:
    from edgekiln.digest import digest_file

    fresh = folder / "blobs" / "sha256" / "json.part"
    _json(fresh, value)
    digest, size = digest_file(fresh), fresh.stat().st_size
    fresh.replace(fresh.with_name(digest))
    return Blob(digest=digest, size=size, media=media)


def _json(path: Path, value: Mapping[str, Any]) -> None:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    path.write_text(text, encoding="utf-8", newline="\n")


def _pack(folder: Path, image: Image, progress: Progress) -> None:
    """The layout as one tar beside its folder: small files first, nothing in it that varies."""
    names = ["oci-layout", "index.json", *(blob_name(blob.digest) for blob in image.blobs)]
    with tarfile.open(
        folder.with_name(f"{folder.name}.tar"), "w", format=tarfile.PAX_FORMAT
    ) as tar:
        for name in names:
            progress.update(0, None, f"packing {name[-12:]}")
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.mode = (folder / name).stat().st_size, EPOCH, 0o644
            with (folder / name).open("rb") as stream:
                tar.addfile(info, stream)


def load(engine: Engine, source: Layout, progress: Progress) -> Image:
    """Put an image into the engine under its own tag, every file held against its digest.

    As `docker save` writes it, which every engine takes: Docker before 23 reads no layer packed
    with zstd. Raises DigestError for a file that was damaged, EngineError where the engine refuses.
    """
    from edgekiln.engine.buildcli import build_environment

    image = source.image()
    if not image.tag:
        raise ImageError(f"{source.path} does not say its name")
    process = subprocess.Popen(
        [*engine.cli, "load", "--quiet"],
        env=build_environment(engine.url),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        with suppress(BrokenPipeError):  # then it says why below
            _stream_into(process.stdin, source, image, progress)
        said = process.communicate()[0].decode(errors="replace").strip()
    finally:
        process.kill()
        process.wait()
    if process.returncode:
        raise EngineError(f"{engine.kind} could not load {image.tag}", why=said[-300:])
    return image


def _stream_into(sink: IO[bytes], source: Layout, image: Image, progress: Progress) -> None:
    """The image as an archive of `docker save`; one layer at a time lies on the disk unpacked."""
    total = sum(layer.size for layer in image.layers)
    done = 0
    config = f"{image.config_blob.digest}.json"
    with tarfile.open(fileobj=sink, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        _add(tar, config, source.small(image.config_blob))
        for layer, diff_id in zip(image.layers, image.diff_ids, strict=True):
            source.check(layer)
            with tempfile.TemporaryFile() as scratch, source.layer(layer, diff_id) as stream:
                shutil.copyfileobj(stream, scratch, 1 << 20)
                info = tarfile.TarInfo(f"{diff_id}/layer.tar")
                info.size = scratch.tell()
                scratch.seek(0)
                tar.addfile(info, scratch)
            done += layer.size
            progress.update(done, total, f"loading {image.tag}")
        layers = [f"{diff_id}/layer.tar" for diff_id in image.diff_ids]
        listing = [{"Config": config, "RepoTags": [image.tag], "Layers": layers}]
        _add(tar, "manifest.json", json.dumps(listing).encode())


def _add(tar: tarfile.TarFile, name: str, body: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(body)
    tar.addfile(info, io.BytesIO(body))


def loaded(engine: Engine, toolchain: Toolchain, progress: Progress) -> bool:
    """Whether an export of the image lies here, which is then loaded and verified.

    Raises ImageError for one that is not this toolchain's image, or fails its verify.
    """
    source = find(toolchain)
    if source is None:
        return False
    into_engine(engine, toolchain, source, progress)
    return True


def into_engine(engine: Engine, toolchain: Toolchain, source: Layout, progress: Progress) -> None:
    """Load an export and prove it; what fails its verify does not stay in the engine."""
    from edgekiln import images
    from edgekiln.images import held

    held.hold(source, require(source, toolchain), toolchain, progress)
    image = load(engine, source, progress)
    try:
        progress.update(0, None, "verify")
        images.verify(engine, image.tag)
    except ImageError:
        images.remove(engine, image.tag)
        raise
