"""An image written out of the engine and read in again: as it was, and the same bytes twice."""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
import shlex
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekiln import images
from edgekiln.engine import Engine
from edgekiln.errors import DigestError, EngineError, ImageError, UsageError
from edgekiln.images import content, exports
from edgekiln.images.base import ensure_base
from edgekiln.images.layout import Layout, blob_name
from edgekiln.progress import Silent
from edgekiln.rootfs import unpack
from edgekiln.toolchain import Toolchain, load_toolchain
from tests.images.content import called, listing

pytestmark = pytest.mark.engine

REPORT = json.dumps({"proved": ["it is there"], "drift": []})
# A verify, a link, a closed folder, a file of another user: what an image may hold.
SCRIPT = f"""
set -e
mkdir -p /opt/edgekiln /srv/closed
printf '%s\\n' '#!/bin/sh' 'echo {json.dumps(REPORT)}' > /opt/edgekiln/verify
chmod 755 /opt/edgekiln/verify
ln -s verify /opt/edgekiln/link
ln /opt/edgekiln/verify /srv/closed/same
chmod 711 /srv/closed
chown 65534:65534 /srv/closed
touch -d @1735689600 /opt/edgekiln/verify  # as all that a build makes
"""


@pytest.fixture(scope="module")
def toolchain() -> Toolchain:
    """One whose image nobody has."""
    return dataclasses.replace(load_toolchain("mnn"), installed=secrets.token_hex(32))


@pytest.fixture(scope="module")
def cleared(engine: Engine, toolchain: Toolchain) -> Iterator[None]:
    """Takes its image away in the end."""
    yield
    remove(engine, toolchain)


@pytest.fixture
def image(engine: Engine, toolchain: Toolchain, cleared: None) -> str:
    """A small image of it; its tag."""
    found = images.exists(engine, toolchain)
    return images.tag(toolchain) if found else made(engine, toolchain)


@pytest.fixture(scope="module")
def exported(
    engine: Engine, toolchain: Toolchain, cleared: None, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Its export, which no test changes."""
    folder = tmp_path_factory.mktemp("exported") / "image"
    made(engine, toolchain)
    exports.export(engine, toolchain, folder, Silent())
    return folder


def made(engine: Engine, toolchain: Toolchain, more: str = "") -> str:
    base = ensure_base(engine, toolchain.base, Silent(), frozen=False).reference
    container = called(engine, ["create", "--user", "0", base, "sh", "-c", SCRIPT + more])
    said = f"io.edgekiln.toolchain=mnn io.edgekiln.toolchain.lock=sha256:{toolchain.installed}"
    change = ["--change", f"LABEL {said}", "--change", "ENV A=b", "--change", "USER 65534:65534"]
    try:
        called(engine, ["start", "--attach", container])
        called(engine, ["commit", *change, container, images.tag(toolchain)])
    finally:
        called(engine, ["rm", "--force", container])
    return images.tag(toolchain)


def remove(engine: Engine, toolchain: Toolchain) -> None:
    if images.exists(engine, toolchain):
        images.remove(engine, images.tag(toolchain))


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_two_builds_of_one_content_are_exported_to_the_same_bytes(
    engine: Engine, toolchain: Toolchain, image: str, exported: Path, tmp_path: Path
) -> None:
    remove(engine, toolchain)
    made(engine, toolchain)
    exports.export(engine, toolchain, tmp_path / "b", Silent())
    assert files(exported) == files(tmp_path / "b")


def test_it_is_loaded_as_it_was(
    engine: Engine, toolchain: Toolchain, image: str, exported: Path, tmp_path: Path
) -> None:
    before, told = listing(engine, image), engine.image(image)
    remove(engine, toolchain)
    exports.into_engine(engine, toolchain, Layout(exported), Silent())
    assert content.digest(listing(engine, image)) == content.digest(before)
    found = engine.image(image)
    assert told and found
    for key in ("Labels", "Env", "User", "Cmd", "WorkingDir"):
        assert (found["Config"].get(key) or None) == (told["Config"].get(key) or None), key
    assert images.verify(engine, image)["proved"] == ["it is there"]


def test_one_file_holds_what_the_folder_holds(
    engine: Engine, toolchain: Toolchain, image: str, exported: Path, tmp_path: Path
) -> None:
    exports.export(engine, toolchain, tmp_path / "a.tar", Silent())
    with tarfile.open(tmp_path / "a.tar") as tar:
        tar.extractall(tmp_path / "out", filter="data")
    assert files(tmp_path / "out") == files(exported)
    remove(engine, toolchain)
    exports.into_engine(engine, toolchain, Layout(tmp_path / "a.tar"), Silent())
    assert images.exists(engine, toolchain)
    assert {path.name for path in tmp_path.iterdir()} == {"a.tar", "out"}


def test_it_is_laid_out_as_it_was(
    engine: Engine, toolchain: Toolchain, image: str, exported: Path, tmp_path: Path
) -> None:
    root = unpack.unpack(Layout(exported), tmp_path / "rootfs", Silent())
    before = listing(engine, image)
    owners = None if unpack.may_give_away(tmp_path) else before
    assert content.digest(content.of_folder(root, owners)) == content.digest(before)


def test_a_vendor_folder_gives_it_to_the_engine_and_to_nobody_else(
    engine: Engine,
    toolchain: Toolchain,
    exported: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "vendor"
    shutil.copytree(exported, folder / exports.export_name(toolchain))
    remove(engine, toolchain)
    monkeypatch.setenv("EDGEKILN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("EDGEKILN_VENDOR", str(folder))
    root = unpack.ready(toolchain, Silent())
    assert (root / "opt/edgekiln/verify").is_file()
    assert unpack.is_ready(toolchain)
    assert images.build(engine, toolchain, Silent()) == images.tag(toolchain)
    other = dataclasses.replace(toolchain, installed=secrets.token_hex(32))
    with pytest.raises(ImageError, match="has another image"):
        exports.require(Layout(folder / exports.export_name(toolchain)), other)
    monkeypatch.delenv("EDGEKILN_VENDOR")
    with pytest.raises(ImageError, match="is not on this machine") as caught:
        unpack.ready(other, Silent())
    assert exports.export_name(other) in caught.value.why


def test_damage_is_named_and_nothing_is_loaded(
    engine: Engine, toolchain: Toolchain, image: str, exported: Path, tmp_path: Path
) -> None:
    source = Layout(tmp_path / "a")
    shutil.copytree(exported, source.path)
    layer = source.image().layers[0]
    remove(engine, toolchain)
    path = source.path / blob_name(layer.digest)
    with path.open("r+b") as file:
        file.seek(layer.size // 2)
        file.write(b"damage")
    with pytest.raises(DigestError, match=layer.digest):
        exports.load(engine, source, Silent())
    path.unlink()
    with pytest.raises(ImageError, match="no whole image"):
        exports.load(engine, source, Silent())
    assert not images.exists(engine, toolchain)


def test_what_is_something_else_is_not_written_over(
    engine: Engine, toolchain: Toolchain, image: str, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/kept").write_text("kept")
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder.tar").mkdir()
    for name in ("mine", "file", "folder.tar"):
        with pytest.raises(UsageError, match="of something else"):
            exports.export(engine, toolchain, tmp_path / name, Silent())
    assert (tmp_path / "mine/kept").read_text() == (tmp_path / "file").read_text() == "kept"
    exports.export(engine, toolchain, tmp_path / "a", Silent())
    before = files(tmp_path / "a")
    (tmp_path / "a/blobs/sha256/leftover").write_text("of an older image")
    exports.export(engine, toolchain, tmp_path / "a", Silent())
    assert files(tmp_path / "a") == before


def test_an_image_that_is_not_there_is_told(
    engine: Engine, toolchain: Toolchain, tmp_path: Path
) -> None:
    nobody = dataclasses.replace(toolchain, installed=secrets.token_hex(32))
    with pytest.raises(ImageError, match="is not built"):
        exports.export(engine, nobody, tmp_path / "a", Silent())
    with pytest.raises(EngineError), exports.streamed(engine, "edgekiln/none:none"):
        pass
    assert not list(tmp_path.iterdir())


def test_no_second_interrupt_reaches_the_removal_of_an_exports_container(
    engine: Engine, toolchain: Toolchain, exported: Path, tmp_path: Path
) -> None:
    seen = tmp_path / "session"
    wrapper = tmp_path / "engine"
    own = " ".join(map(shlex.quote, engine.cli))
    wrapper.write_text(
        f'#!/bin/sh\n[ "$1" = rm ] && cut -d" " -f6 /proc/$$/stat > {seen}\nexec {own} "$@"\n'
    )
    wrapper.chmod(0o755)
    watched = dataclasses.replace(engine)
    vars(watched)["cli"] = (str(wrapper),)
    with (
        pytest.raises(KeyboardInterrupt),
        exports.streamed(watched, images.tag(toolchain)),
    ):
        raise KeyboardInterrupt
    assert int(seen.read_text()) != os.getsid(0)


def test_an_engine_that_refuses_says_why(
    engine: Engine, toolchain: Toolchain, exported: Path, tmp_path: Path
) -> None:
    shutil.copytree(exported, tmp_path / "b")
    source = Layout(tmp_path / "b")
    bad = dataclasses.replace(source.image(), tag="Not A Name")
    exports.write_index(source.path, bad)
    with pytest.raises(EngineError, match="could not load") as caught:
        exports.load(engine, source, Silent())
    assert caught.value.why
