"""Bundles: whole or not there, never somebody else's folder."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from edgekiln.bundle import ENVELOPES, SIGSTORE, find_bundle, write_bundle
from edgekiln.digest import FileIndex
from edgekiln.errors import UsageError

ABOUT = {
    "build_key": "k1",
    "backend": "mnn",
    "model": {"name": "m", "source": "local", "digest": "0" * 64},
    "options": {"quant_bit": 4},
    "toolchains": {"mnn": "1" * 64},
    "stages": {},
    "figures": {},
}


@pytest.fixture
def index(tmp_path: Path) -> FileIndex:
    return FileIndex(tmp_path / "index.sqlite")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "llm.mnn"
    path.write_bytes(b"graph")
    os.utime(path, ns=(10**18, 10**18))
    return path


def test_a_written_bundle_is_found_by_its_build(
    tmp_path: Path, source: Path, index: FileIndex
) -> None:
    place = tmp_path / "build" / "m" / "mnn"
    write_bundle(place, {"mnn_models/m/llm.mnn": source}, "# phone\n", ABOUT, index)
    assert find_bundle(place, "k1", index) is not None
    assert find_bundle(place, "k2", index) is None
    manifest = json.loads((place / "manifest.json").read_text())
    file = manifest["files"]["mnn_models/m/llm.mnn"]
    assert file == {"size": 5, "sha256": hashlib.sha256(b"graph").hexdigest()}
    assert set(manifest["files"]) == {"mnn_models/m/llm.mnn", "README.md"}


def test_small_texts_are_written_and_described_as_files_are(
    tmp_path: Path, source: Path, index: FileIndex
) -> None:
    place = tmp_path / "b"
    texts = {"mlc-package-config.json": "{}\n", "notes/one.txt": "eins\n"}
    write_bundle(place, {"lib/a.tar": source}, "# phone\n", ABOUT, index, texts=texts)
    manifest = json.loads((place / "manifest.json").read_text())
    assert set(manifest["files"]) == {"lib/a.tar", "README.md", *texts}
    assert (place / "notes" / "one.txt").read_bytes() == b"eins\n"
    assert find_bundle(place, "k1", index) is not None
    (place / "mlc-package-config.json").write_text("{ }")
    assert find_bundle(place, "k1", index) is None


def test_a_signature_beside_a_bundle_is_none_of_its_files(
    tmp_path: Path, source: Path, index: FileIndex
) -> None:
    place = tmp_path / "b"
    write_bundle(place, {"llm.mnn": source}, "# phone\n", ABOUT, index, predicate={"a": "b"})
    for name in (ENVELOPES, SIGSTORE):
        (place / name).write_text("{}")
    assert find_bundle(place, "k1", index) is not None
    statement = json.loads((place / "provenance.json").read_text())
    assert [s["name"] for s in statement["subject"]] == ["README.md", "llm.mnn"]


@pytest.mark.parametrize("harm", ["change", "remove", "add"])
def test_a_bundle_that_was_touched_is_not_up_to_date(
    tmp_path: Path, source: Path, index: FileIndex, harm: str
) -> None:
    place = tmp_path / "b"
    write_bundle(place, {"llm.mnn": source}, "# phone\n", ABOUT, index)
    if harm == "change":
        (place / "llm.mnn").write_bytes(b"grapH")
    elif harm == "remove":
        (place / "llm.mnn").unlink()
    else:
        (place / "more").write_text("x")
    assert find_bundle(place, "k1", index) is None


@pytest.mark.parametrize("harm", ["change", "remove", "link"])
def test_a_bundle_without_its_own_provenance_is_not_up_to_date(
    tmp_path: Path, source: Path, index: FileIndex, harm: str
) -> None:
    place = tmp_path / "b"
    made = write_bundle(place, {"llm.mnn": source}, "", ABOUT, index, predicate={"a": "b"})
    assert find_bundle(place, "k1", index) == made
    told = place / "provenance.json"
    if harm == "link":
        told.rename(tmp_path / "elsewhere.json")
        told.symlink_to(tmp_path / "elsewhere.json")
    elif harm == "remove":
        told.unlink()
    else:
        told.write_text(told.read_text().replace('"b"', '"c"'))
    assert find_bundle(place, "k1", index) is None


@pytest.mark.skipif(os.name != "posix", reason="modes are of POSIX systems")
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_modes_do_not_depend_on_the_umask(
    tmp_path: Path, source: Path, index: FileIndex, umask: int
) -> None:
    before = os.umask(umask)
    try:
        texts = {"notes/one.txt": "eins\n"}
        files = {"lib/a.tar": source}
        place = tmp_path / "b"
        write_bundle(place, files, "", ABOUT, index, texts=texts, predicate={"a": "b"})
    finally:
        os.umask(before)
    modes = {p.relative_to(place).as_posix(): p.stat().st_mode & 0o777 for p in place.rglob("*")}
    folders = {"lib", "notes"}
    assert {modes.pop(name) for name in folders} == {0o755}
    assert set(modes) == {"lib/a.tar", *texts, "README.md", "manifest.json", "provenance.json"}
    assert set(modes.values()) == {0o644}
    # What a private umask keeps to oneself stays so.
    assert place.stat().st_mode & 0o777 == 0o777 & ~umask


def test_changing_a_bundle_does_not_change_where_it_came_from(
    tmp_path: Path, source: Path, index: FileIndex
) -> None:
    write_bundle(tmp_path / "b", {"llm.mnn": source}, "", ABOUT, index)
    (tmp_path / "b" / "llm.mnn").write_bytes(b"other")
    assert source.read_bytes() == b"graph"


def test_a_new_bundle_replaces_the_old_one_whole(
    tmp_path: Path, source: Path, index: FileIndex
) -> None:
    place = tmp_path / "b"
    write_bundle(place, {"old": source}, "", ABOUT, index)
    write_bundle(place, {"new": source}, "", {**ABOUT, "build_key": "k2"}, index)
    assert not (place / "old").exists()
    assert find_bundle(place, "k2", index) is not None
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".b")] == []


def test_somebody_elses_folder_is_left_alone(
    tmp_path: Path, source: Path, index: FileIndex
) -> None:
    place = tmp_path / "thesis"
    place.mkdir()
    (place / "README.md").write_text("years of work")
    (place / "manifest.json").write_text("{}")
    with pytest.raises(UsageError, match="not a bundle"):
        write_bundle(place, {"llm.mnn": source}, "", ABOUT, index)
    assert (place / "README.md").read_text() == "years of work"


def test_a_bundle_cut_off_while_written_is_made_anew(
    tmp_path: Path, source: Path, index: FileIndex
) -> None:
    place = tmp_path / "b"
    place.mkdir()
    (place / "manifest.json").write_text('{"edgekiln": "0", "unfinished": true}')
    (place / "llm.mnn").write_bytes(b"gr")
    (tmp_path / ".b.123").mkdir()
    assert find_bundle(place, "k1", index) is None
    write_bundle(place, {"llm.mnn": source}, "", ABOUT, index)
    assert (place / "llm.mnn").read_bytes() == b"graph"
    assert not (tmp_path / ".b.123").exists()
