"""Images held against what their lock has of them; digests written there, and which are stale."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from edgekiln import images, toolchain
from edgekiln.errors import DifferenceError, ToolchainError, UsageError
from edgekiln.images import content, repro
from edgekiln.images.content import Entry
from edgekiln.images.repro import Found
from edgekiln.toolchain import Toolchain, load_toolchain
from edgekiln.toolchain import lock as toolchain_lock
from edgekiln.toolchain.lock import ImageDigests, carried, digest, read_lock
from tests.unit.imagekit import Told

BASE = "mmdebstrap bookworm 0123"
LISTING = {
    "opt": Entry(kind="folder", mode=0o755, owner=0, group=0),
    "opt/tool": Entry(kind="file", mode=0o755, owner=0, group=0, value="a" * 64),
}
OTHER = {**LISTING, "opt/tool": replace(LISTING["opt/tool"], value="b" * 64)}
MANIFEST = f"sha256:{'c' * 64}"


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture(autouse=True)
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """toolchains/ that a test may change, and a home of its own."""
    place = tmp_path / "toolchains"
    shutil.copytree(toolchain.folder(), place)
    monkeypatch.setattr(toolchain, "folder", lambda: place)
    monkeypatch.setattr(repro, "folder", lambda: place)
    monkeypatch.setenv("EDGEKILN_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("EDGEKILN_VENDOR", raising=False)
    blank("qnn")
    return place


def blank(name: str) -> None:
    """Take away what the shipped lock has of images."""
    path = toolchain.folder() / f"{name}.lock.json"
    toolchain_lock.write_lock(replace(load_toolchain(name).lock, images=()), path)


def found(
    qnn: Toolchain, listing: Mapping[str, Entry] = LISTING, manifest: str = "", base: str = BASE
) -> Found:
    """An image of the toolchain that holds this."""
    made = ImageDigests(
        installed=qnn.installed,
        recipe=images.recipe_digest(qnn),
        base=base,
        content=content.digest(listing),
        manifest=manifest,
    )
    return Found(digests=made, listing=listing)


def test_digests_are_written_into_the_lock_and_change_nothing_else(told: Told) -> None:
    before = load_toolchain("qnn")
    path = repro.record(before, found(before), ())
    after = load_toolchain("qnn")
    assert after.lock.images == (found(before).digests,)
    assert replace(after.lock, images=(), sha256=before.lock.sha256) == before.lock
    assert (after.digest, after.installed) == (before.digest, before.installed)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if found(before).digests.content in line] == [lines[-4]]
    repro.hold(after, found(after), told)
    assert told.lines == ["as the lock has it"]


def test_without_a_record_nothing_is_held_against_it(told: Told) -> None:
    qnn = load_toolchain("qnn")
    repro.hold(qnn, found(qnn), told)
    assert told.lines == ["qnn.lock.json has no digests of this image; --record writes them there"]


@pytest.mark.parametrize("key", ["installed", "recipe", "base"])
def test_a_record_of_something_else_is_stale_and_told(told: Told, key: str) -> None:
    qnn = load_toolchain("qnn")
    old = replace(found(qnn).digests, **{key: "0" * 64})
    stale = replace(qnn, lock=replace(qnn.lock, images=(old,)))
    assert repro.recorded(stale, found(qnn).digests) is None
    repro.hold(stale, found(qnn, OTHER), told)
    assert "1 of images of another base, or that older files of images/ made" in told.lines[0]


def test_another_content_names_the_files_that_differ(told: Told) -> None:
    qnn = load_toolchain("qnn")
    repro.record(qnn, found(qnn), ())
    with pytest.raises(DifferenceError, match="not the image that its lock") as caught:
        repro.hold(load_toolchain("qnn"), found(qnn, OTHER), told)
    assert content.digest(OTHER) in caught.value.why
    assert content.digest(LISTING) in caught.value.why
    assert "1 names differ, the first is opt/tool" in caught.value.why
    assert told.lines[0].startswith("differs: opt/tool: file 0755 0:0 aaaa")


def test_without_the_listing_it_is_said_where_to_get_it(told: Told, tmp_path: Path) -> None:
    qnn = load_toolchain("qnn")
    repro.record(qnn, found(qnn), ())
    kept = repro.listing_file(qnn, content.digest(LISTING))
    assert kept
    carried_by_hand = tmp_path / "vendor" / kept.name
    carried_by_hand.parent.mkdir()
    kept.rename(carried_by_hand)
    with pytest.raises(DifferenceError) as caught:
        repro.hold(load_toolchain("qnn"), found(qnn, OTHER), told)
    assert kept.name in caught.value.why
    assert str(kept.parent) in caught.value.remedy


def test_the_listing_is_found_in_a_vendor_folder(
    told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    qnn = load_toolchain("qnn")
    repro.record(qnn, found(qnn), ())
    shutil.move(tmp_path / "home" / "images", tmp_path / "vendor")
    monkeypatch.setenv("EDGEKILN_VENDOR", str(tmp_path / "vendor"))
    with pytest.raises(DifferenceError, match="not the image"):
        repro.hold(load_toolchain("qnn"), found(qnn, OTHER), told)
    assert told.lines[0].startswith("differs: opt/tool")


def test_a_manifest_counts_where_both_have_one(told: Told) -> None:
    qnn = load_toolchain("qnn")
    repro.record(qnn, found(qnn, manifest=MANIFEST), ())
    again = load_toolchain("qnn")
    repro.hold(again, found(qnn), told)
    repro.hold(again, found(qnn, manifest=MANIFEST), told)
    with pytest.raises(DifferenceError, match="another manifest"):
        repro.hold(again, found(qnn, manifest=f"sha256:{'d' * 64}"), told)


def test_an_older_builder_keeps_the_manifest_that_was_recorded() -> None:
    qnn = load_toolchain("qnn")
    repro.record(qnn, found(qnn, manifest=MANIFEST), ())
    repro.record(load_toolchain("qnn"), found(qnn), ())
    assert load_toolchain("qnn").lock.images[0].manifest == MANIFEST
    repro.record(load_toolchain("qnn"), found(qnn, OTHER), ())
    assert load_toolchain("qnn").lock.images == (found(qnn, OTHER).digests,)


def test_records_of_other_bases_stay_and_stale_ones_go() -> None:
    qnn = load_toolchain("qnn")
    path = toolchain.folder() / "qnn.lock.json"
    old = replace(found(qnn).digests, recipe="0" * 64, base="older")
    toolchain_lock.write_lock(replace(qnn.lock, images=(old,)), path)
    repro.record(load_toolchain("qnn"), found(qnn, base="another"), ())
    repro.record(load_toolchain("qnn"), found(qnn), ())
    assert [image.base for image in load_toolchain("qnn").lock.images] == ["another", BASE]


def test_what_is_not_as_locked_is_not_recorded() -> None:
    qnn = load_toolchain("qnn")
    with pytest.raises(UsageError, match="newer than its lock"):
        repro.record(qnn, found(qnn), ["python3: locked 3.11.2-1, got 3.11.2-2"])
    elsewhere = load_toolchain("qnn", base="debian:bookworm")
    with pytest.raises(UsageError, match="on debian:bookworm are not recorded"):
        repro.record(elsewhere, found(elsewhere), ())


def test_a_new_lock_of_the_same_things_keeps_what_is_known_of_images() -> None:
    qnn = load_toolchain("qnn")
    held = replace(qnn.lock, images=(replace(found(qnn).digests, installed=digest(qnn.lock)),))
    words = replace(held.definition, summary="other words")
    assert carried(held, replace(held, definition=words)) == held.images
    assert carried(held, replace(held, wheels=held.wheels[1:])) == ()
    assert carried(None, held) == ()


def test_a_digest_that_was_changed_in_the_lock_is_refused(copy: Path) -> None:
    qnn = load_toolchain("qnn")
    path = repro.record(qnn, found(qnn), ())
    text = path.read_text(encoding="utf-8").replace(content.digest(LISTING), "0" * 64)
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ToolchainError, match="was changed since it was made"):
        read_lock(toolchain_lock.Lock, copy / "qnn.lock.json", remedy="")
