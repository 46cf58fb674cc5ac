"""Digests: what counts, what does not, and when bytes are read again."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from edgekiln.digest import FileIndex, digest_file, digest_json, walk
from edgekiln.errors import AccessError


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "sub").mkdir(parents=True)
    (root / "a.bin").write_bytes(b"a" * 3_000_000)
    (root / "sub" / "b.txt").write_text("b")
    for path in (root / "a.bin", root / "sub" / "b.txt"):
        os.utime(path, ns=(10**18, 10**18))
    return root


def read_sizes(index: FileIndex, root: Path) -> int:
    """Bytes the index had to read for a digest."""
    read = 0

    def told(done: int, total: int) -> None:
        nonlocal read
        read = done

    index.digest(root, told)
    return read


def test_digest_file_is_sha256(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(range(256)) * 10_000)
    assert digest_file(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_digest_json_does_not_depend_on_order() -> None:
    assert digest_json({"a": 1, "b": [1, 2]}) == digest_json({"b": [1, 2], "a": 1})
    assert digest_json({"a": [1, 2]}) != digest_json({"a": [2, 1]})


def test_unchanged_files_are_not_read_again(tree: Path, tmp_path: Path) -> None:
    index = FileIndex(tmp_path / "index.sqlite")
    assert read_sizes(index, tree) == 3_000_001
    assert read_sizes(index, tree) == 0


def test_a_new_index_on_the_same_file_remembers(tree: Path, tmp_path: Path) -> None:
    first = FileIndex(tmp_path / "index.sqlite")
    digest = first.digest(tree)
    first.close()
    second = FileIndex(tmp_path / "index.sqlite")
    assert read_sizes(second, tree) == 0
    assert second.digest(tree) == digest


def test_a_changed_byte_of_the_same_size_is_noticed(tree: Path, tmp_path: Path) -> None:
    index = FileIndex(tmp_path / "index.sqlite")
    before = index.digest(tree)
    with (tree / "a.bin").open("r+b") as file:
        file.write(b"z")
    assert index.digest(tree) != before


def test_a_touch_with_the_same_bytes_gives_the_same_digest(tree: Path, tmp_path: Path) -> None:
    index = FileIndex(tmp_path / "index.sqlite")
    before = index.digest(tree)
    os.utime(tree / "sub" / "b.txt", ns=(10**18 + 5, 10**18 + 5))
    assert index.digest(tree) == before


def test_a_file_written_this_moment_is_not_remembered(tmp_path: Path) -> None:
    index = FileIndex(tmp_path / "index.sqlite")
    path = tmp_path / "fresh"
    path.write_bytes(b"x" * 100)
    assert read_sizes(index, path) == 100
    assert read_sizes(index, path) == 100


def test_names_count_and_places_do_not(tree: Path, tmp_path: Path) -> None:
    index = FileIndex(tmp_path / "index.sqlite")
    before = index.digest(tree)
    moved = tree.rename(tmp_path / "elsewhere")
    assert index.digest(moved) == before
    (moved / "a.bin").rename(moved / "c.bin")
    assert index.digest(moved) != before


def test_hidden_files_do_not_count(tree: Path, tmp_path: Path) -> None:
    index = FileIndex(tmp_path / "index.sqlite")
    before = index.digest(tree)
    (tree / ".git").mkdir()
    (tree / ".git" / "HEAD").write_text("ref")
    (tree / ".DS_Store").write_text("x")
    assert index.digest(tree) == before


def test_a_dangling_link_is_named(tree: Path) -> None:
    (tree / "gone").symlink_to(tree / "nowhere")
    with pytest.raises(AccessError, match="gone"):
        list(walk(tree))
