"""An export against its lock: the same content is the same image, whoever brought it."""

from __future__ import annotations

import dataclasses
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from edgekiln import images
from edgekiln.errors import DigestError
from edgekiln.images import content, held
from edgekiln.images.layout import Layout
from edgekiln.progress import Silent
from edgekiln.rootfs import unpack
from edgekiln.toolchain import Toolchain, load_toolchain
from edgekiln.toolchain.lock import ImageDigests
from tests.unit import imagekit
from tests.unit.imagekit import Member, folder, hardlink, symlink

BASE = "a base of the test"
BELOW = [
    folder("opt"),
    folder("opt/gone"),
    Member(name="opt/gone/file", body=b"1"),
    Member(name="opt/one", body=b"one"),
    symlink("opt/link", "one"),
]
ABOVE = [
    Member(name="opt/.wh.gone"),
    Member(name="opt/one", body=b"newer", mode=0o755),
    Member(name="opt/two", body=b"two"),
]


class Heard(Silent):
    """Keeps what was noted."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def toolchain() -> Toolchain:
    return load_toolchain("mnn")


def export(path: Path, layers: Sequence[Sequence[Member]], **labels: str) -> Layout:
    return imagekit.layout(path, layers, labels={"io.edgekiln.images.base": BASE, **labels})


def recorded(toolchain: Toolchain, digest: str) -> Toolchain:
    """The toolchain with a lock that has this content."""
    entry = ImageDigests(
        installed=toolchain.installed,
        recipe=images.recipe_digest(toolchain),
        base=BASE,
        content=digest,
    )
    return dataclasses.replace(toolchain, lock=dataclasses.replace(toolchain.lock, images=(entry,)))


def held_notes(source: Layout, toolchain: Toolchain) -> list[str]:
    heard = Heard()
    held.hold(source, source.image(), toolchain, heard)
    return heard.notes


@pytest.mark.skipif(sys.platform != "linux", reason="images are unpacked on Linux only")
def test_layers_are_read_as_they_are_laid_down(tmp_path: Path) -> None:
    source = export(tmp_path / "image", [BELOW, ABOVE])
    found = held.listing(source, source.image(), Silent())
    assert set(found) == {"opt", "opt/one", "opt/link", "opt/two"}
    root = unpack.unpack(source, tmp_path / "rootfs", Silent())
    assert found == content.of_folder(root, found)


def test_an_opaque_folder_is_read_as_one(tmp_path: Path) -> None:
    above = [folder("opt"), Member(name="opt/.wh..wh..opq"), Member(name="opt/two")]
    source = export(tmp_path / "image", [BELOW, above])
    assert set(held.listing(source, source.image(), Silent())) == {"opt", "opt/two"}


@pytest.mark.skipif(sys.platform != "linux", reason="images are unpacked on Linux only")
def test_a_layer_takes_nothing_of_its_own_away_wherever_it_says_so(tmp_path: Path) -> None:
    below = [
        *BELOW,
        folder("srv"),
        folder("srv/kept"),
        Member(name="srv/kept/old", body=b"old"),
        folder("var"),
        folder("var/kept"),
        Member(name="var/kept/old", body=b"old"),
    ]
    above = [
        folder("opt"),
        Member(name="opt/one", body=b"newer"),
        Member(name="opt/.wh.one"),
        Member(name="opt/.wh.gone"),
        folder("srv"),
        folder("srv/kept"),
        Member(name="srv/kept/new", body=b"new"),
        Member(name="srv/.wh.kept"),
        folder("var"),
        folder("var/kept"),
        Member(name="var/kept/new", body=b"new"),
        Member(name="var/.wh..wh..opq"),
    ]
    source = export(tmp_path / "image", [below, above])
    found = held.listing(source, source.image(), Silent())
    kept = {f"{top}{rest}" for top in ("srv", "var") for rest in ("", "/kept", "/kept/new")}
    assert set(found) == {"opt", "opt/one", "opt/link"} | kept
    root = unpack.unpack(source, tmp_path / "rootfs", Silent())
    assert found == content.of_folder(root, found)


def test_a_layer_that_begins_anew_takes_all_below_it_away(tmp_path: Path) -> None:
    source = export(tmp_path / "image", [BELOW, [Member(name=".wh..wh..opq"), Member(name="two")]])
    assert set(held.listing(source, source.image(), Silent())) == {"two"}


def test_a_link_out_of_its_layer_is_damage(tmp_path: Path) -> None:
    source = export(tmp_path / "image", [BELOW, [hardlink("opt/same", "opt/one")]])
    with pytest.raises(DigestError, match="is damaged") as caught:
        held.listing(source, source.image(), Silent())
    assert "opt/same is a link to opt/one" in caught.value.why


def test_the_content_that_is_recorded_is_taken(tmp_path: Path, toolchain: Toolchain) -> None:
    source = export(tmp_path / "a", [BELOW, ABOVE])
    digest = content.digest(held.listing(source, source.image(), Silent()))
    other = export(tmp_path / "b", [[*BELOW[:1], BELOW[4]], ABOVE[1:]])
    for each in (source, other):  # however its layers were cut
        assert held_notes(each, recorded(toolchain, digest)) == []


@pytest.mark.parametrize("how", ["byte", "mode", "owner", "more", "less", "kind"])
def test_any_other_content_is_refused(tmp_path: Path, toolchain: Toolchain, how: str) -> None:
    source = export(tmp_path / "a", [BELOW])
    wanted = recorded(toolchain, content.digest(held.listing(source, source.image(), Silent())))
    one = BELOW[3]
    ways = {
        "byte": dataclasses.replace(one, body=b"onf"),
        "mode": dataclasses.replace(one, mode=0o4755),
        "owner": dataclasses.replace(one, owner=1),
        "kind": dataclasses.replace(one, kind=tarfile.SYMTYPE, body=b"", target="two"),
    }
    changed = [*BELOW[:3], *([ways[how]] if how in ways else [one]), BELOW[4]]
    changed += [Member(name="opt/more")] if how == "more" else []
    changed = changed[:-1] if how == "less" else changed
    with pytest.raises(DigestError, match="is not the image") as caught:
        held_notes(export(tmp_path / "b", [changed]), wanted)
    assert wanted.lock.images[0].content in caught.value.why


def test_what_cannot_be_held_is_told(tmp_path: Path, toolchain: Toolchain) -> None:
    source = export(tmp_path / "a", [BELOW])
    nothing = dataclasses.replace(toolchain.lock, images=())
    (told,) = held_notes(source, dataclasses.replace(toolchain, lock=nothing))
    assert "no content digest" in told
    newer = export(tmp_path / "b", [BELOW], **{"io.edgekiln.drift": "zlib1g 1.3, locked 1.2"})
    (told,) = held_notes(newer, recorded(toolchain, "0" * 64))
    assert "zlib1g 1.3" in told
