"""A file system cut into layers: the same content, the same bytes; a change, few new ones."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from edgekiln.errors import ImageError
from edgekiln.images import layers
from edgekiln.images.layout import LAYER, blob_name, unpacking
from tests.unit.imagekit import Member, folder, hardlink, symlink, tar_of

SMALLEST = 4096


def cut(members: Sequence[Member], path: Path, *, mtime: int = 0) -> list[layers.Layer]:
    stream = io.BytesIO(tar_of(members, mtime=mtime))
    return list(layers.cut(stream, path, SMALLEST))


def members_of(path: Path, layer: layers.Layer) -> dict[str, tarfile.TarInfo]:
    """What a layer that was written holds, by name."""
    with (path / blob_name(layer.blob.digest)).open("rb") as raw:
        plain = unpacking(raw, LAYER).read()
    assert len(plain) == layer.blob.unpacked
    with tarfile.open(fileobj=io.BytesIO(plain)) as tar:
        return {info.name: info for info in tar}


def many(count: int = 120, *, changed: int = -1) -> list[Member]:
    """Folders with a file each; one of them other than usual."""
    found = [folder("opt", 0o751)]
    for n in range(count):
        body = bytes([n]) * 500 if n != changed else b"changed" * 100
        found += [folder(f"opt/{n:03}", 0o700), Member(name=f"opt/{n:03}/file", body=body)]
    return found


def test_the_same_content_gives_the_same_files(tmp_path: Path) -> None:
    first = cut(many(), tmp_path / "a")
    assert first == cut(many(), tmp_path / "b")
    assert len(first) > 3
    assert {layer.blob.size for layer in first} == {
        (tmp_path / "a" / blob_name(layer.blob.digest)).stat().st_size for layer in first
    }


def test_when_a_folder_was_made_is_not_in_it(tmp_path: Path) -> None:
    made = [folder("etc"), symlink("etc/rc", "init.d"), folder("opt/edgekiln")]
    made += [Member(name="opt/edgekiln/lock.json", body=b"{}")]
    assert cut(made, tmp_path / "a", mtime=1) == cut(made, tmp_path / "b", mtime=2)
    # A file of a package has its package's date, and so has a link to it.
    (layer,) = cut([Member(name="file", body=b"x"), hardlink("link", "file")], tmp_path, mtime=2)
    assert {info.mtime for info in members_of(tmp_path, layer).values()} == {2}


def test_what_an_engine_puts_there_is_left_out(tmp_path: Path) -> None:
    image = [folder("dev"), folder("proc"), folder("etc"), Member(name="etc/fstab", body=b"x")]
    engine = [
        Member(name=".dockerenv"),
        symlink("etc/mtab", "/proc/mounts"),
        folder("dev/pts"),
        Member(name="dev/console"),
        Member(name="etc/hosts", body=b"172.17.0.2 0123456789ab"),
        Member(name="etc/resolv.conf", body=b"nameserver 10.0.0.1"),
    ]
    (layer,) = cut([*image, *engine], tmp_path)
    found = members_of(tmp_path, layer)
    assert set(found) == {"dev", "proc", "etc", "etc/fstab", "etc/hosts", "etc/resolv.conf"}
    assert (layer,) == tuple(cut([*image, *engine[4:]], tmp_path / "b"))
    content = tar_content(tmp_path, layer, "etc/hosts")
    assert b"localhost" in content
    assert b"0123456789ab" not in content


def tar_content(path: Path, layer: layers.Layer, name: str) -> bytes:
    with (path / blob_name(layer.blob.digest)).open("rb") as raw:
        plain = io.BytesIO(unpacking(raw, LAYER).read())
    with tarfile.open(fileobj=plain) as tar:
        stream = tar.extractfile(name)
        assert stream is not None
        return stream.read()


def test_a_change_gives_few_new_files(tmp_path: Path) -> None:
    before = {layer.blob.digest for layer in cut(many(), tmp_path)}
    after = {layer.blob.digest for layer in cut(many(changed=40), tmp_path)}
    assert len(after - before) == 1
    more = {layer.blob.digest for layer in cut([*many(), *many(125)[241:]], tmp_path)}
    assert len(more - before) <= 2


def test_every_layer_has_the_folders_around_its_files_as_they_are(tmp_path: Path) -> None:
    for layer in cut(many(), tmp_path):
        found = members_of(tmp_path, layer)
        assert found["opt"].mode == 0o751
        for name in [name for name in found if name.endswith("/file")]:
            assert found[name.removesuffix("/file")].mode == 0o700


def test_a_large_file_is_alone_in_a_layer(tmp_path: Path) -> None:
    large = Member(name="opt/large", body=b"x" * SMALLEST * 5)
    small = [Member(name="opt/a", body=b"x" * 100), large, Member(name="opt/z", body=b"z" * 100)]
    found = [members_of(tmp_path, layer) for layer in cut([folder("opt"), *small], tmp_path)]
    assert [set(each) - {"opt"} for each in found] == [{"opt/a"}, {"opt/large"}, {"opt/z"}]


def test_a_link_into_another_layer_becomes_a_file(tmp_path: Path) -> None:
    members = [
        Member(name="first", body=b"first" * 10, mode=0o750, owner=7),
        hardlink("near", "first"),
        Member(name="large", body=b"x" * SMALLEST * 5),
        hardlink("far", "first"),
    ]
    made = cut(members, tmp_path)
    assert members_of(tmp_path, made[0])["near"].islnk()
    (far,) = [found for layer in made if (found := members_of(tmp_path, layer).get("far"))]
    assert (far.isfile(), far.mode, far.uid) == (True, 0o750, 7)
    assert tar_content(tmp_path, made[-1], "far") == b"first" * 10


def test_a_link_to_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="nowhere"):
        cut([hardlink("a", "b")], tmp_path)
