"""An image laid out as a folder: layers over layers, nothing outside, gone on with after a kill."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import stat
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from edgekiln.errors import DigestError, DiskError, ImageError
from edgekiln.images import exports
from edgekiln.images.layout import LAYER, Layout
from edgekiln.progress import Silent
from edgekiln.rootfs import unpack
from edgekiln.toolchain import load_toolchain
from tests.unit import imagekit
from tests.unit.imagekit import Member, folder, hardlink, symlink

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a root file system is Linux's")

NOBODY = 65534
BELOW = [
    folder("usr"),
    folder("usr/lib"),
    symlink("lib", "usr/lib"),
    folder("root", 0o700),
    folder("tmp", 0o1777),
    Member(name="usr/lib/one", body=b"one", mode=0o755),
    Member(name="usr/lib/two", body=b"two", owner=NOBODY),
    hardlink("usr/lib/same", "usr/lib/one"),
]


def laid(tmp_path: Path, layers: Sequence[Sequence[Member]], *, media: str = LAYER) -> Path:
    """The root folder of an image of these layers."""
    source = imagekit.layout(tmp_path / "image", layers, media=media)
    return unpack.unpack(source, tmp_path / "rootfs", Silent())


def tree(root: Path) -> dict[str, tuple[int, str]]:
    """path → (mode, what a file holds or a link names)."""
    found = {}
    for path in sorted(root.rglob("*")):
        mode = path.lstat().st_mode
        held = str(path.readlink()) if stat.S_ISLNK(mode) else ""
        held = path.read_text() if stat.S_ISREG(mode) else held
        found[path.relative_to(root).as_posix()] = (mode, held)
    return found


def test_files_links_and_modes_are_as_in_the_image(tmp_path: Path) -> None:
    root = laid(tmp_path, [BELOW])
    assert (root / "usr/lib/one").stat().st_mode & 0o777 == 0o755
    assert (root / "tmp").stat().st_mode & 0o7777 == 0o1777
    assert (root / "root").stat().st_mode & 0o777 == 0o700
    assert (root / "lib").readlink() == Path("usr/lib")
    assert (root / "usr/lib/same").stat().st_ino == (root / "usr/lib/one").stat().st_ino
    assert (root / "usr/lib/one").stat().st_mtime == 0
    if os.geteuid() == 0:
        assert (root / "usr/lib/two").stat().st_uid == NOBODY


@pytest.mark.parametrize("media", [LAYER, imagekit.GZIP, imagekit.PLAIN])
def test_layers_of_any_packing_are_read(tmp_path: Path, media: str) -> None:
    assert (laid(tmp_path, [BELOW], media=media) / "lib/one").read_bytes() == b"one"


def test_later_layers_win(tmp_path: Path) -> None:
    above = [
        Member(name="lib/one", body=b"newer"),  # by way of the link
        Member(name="lib/.wh.two"),
        Member(name="usr/lib/same/inner", body=b"a file became a folder"),
    ]
    with pytest.raises(ImageError, match="leads through same, which is no folder"):
        laid(tmp_path, [BELOW, above])
    shutil.rmtree(tmp_path / "image")
    above[2:] = [folder("usr/lib/same"), Member(name="usr/lib/same/inner", body=b"a folder now")]
    root = laid(tmp_path, [BELOW, above])
    assert (root / "usr/lib/one").read_bytes() == b"newer"
    assert not (root / "usr/lib/two").exists()
    assert (root / "usr/lib/same/inner").read_bytes() == b"a folder now"
    assert (root / "lib").is_symlink()


def test_an_opaque_folder_hides_what_is_below_it_and_nothing_of_its_own(tmp_path: Path) -> None:
    above = [
        folder("usr/lib"),
        Member(name="usr/lib/three", body=b"3"),
        Member(name="usr/lib/.wh..wh..opq"),
        Member(name="usr/lib/four", body=b"4"),
    ]
    root = laid(tmp_path, [BELOW, above])
    assert {path.name for path in (root / "usr/lib").iterdir()} == {"three", "four"}


@pytest.mark.parametrize(
    "name", ["../evil", "usr/../../evil", "/../evil", "usr/lib/../../../evil", ".."]
)
def test_no_name_leads_out(tmp_path: Path, name: str) -> None:
    with pytest.raises(ImageError, match="leads out of it"):
        laid(tmp_path, [[*BELOW, Member(name=name, body=b"evil")]])
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize("how", ["absolute", "climbing", "twice"])
def test_no_link_leads_out(tmp_path: Path, how: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    up = "../" * 40
    ways = {
        "absolute": [symlink("way", str(outside))],
        "climbing": [symlink("way", f"{up}{outside}")],
        "twice": [symlink("first", "/"), symlink("way", f"first/{outside}")],
    }
    members = [*ways[how], Member(name="way/evil", body=b"evil"), Member(name="way/.wh.kept")]
    root = laid(tmp_path, [BELOW, members])
    assert {path.name for path in outside.iterdir()} == {"kept"}
    # As a process in the image would see it: below the image's own root.
    assert (root / str(outside).strip("/") / "evil").read_bytes() == b"evil"


def test_a_file_is_never_written_through_a_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("kept")
    members = [symlink("way", str(outside)), Member(name="way", body=b"evil")]
    root = laid(tmp_path, [members])
    assert outside.read_text() == "kept"
    assert (root / "way").read_bytes() == b"evil"


@pytest.mark.parametrize("target", ["../../../etc/passwd", "way/passwd", "usr/lib/none"])
def test_a_hard_link_names_a_file_of_the_image(tmp_path: Path, target: str) -> None:
    members = [symlink("way", "/etc"), hardlink("usr/lib/stolen", target)]
    with pytest.raises(ImageError):
        laid(tmp_path, [[*BELOW, *members]])


def test_a_ring_of_links_is_told(tmp_path: Path) -> None:
    members = [symlink("a", "b"), symlink("b", "a"), Member(name="a/x")]
    with pytest.raises(ImageError, match="ring of links"):
        laid(tmp_path, [members])


def test_device_nodes_are_left_out(tmp_path: Path) -> None:
    root = laid(tmp_path, [[folder("dev"), Member(name="dev/sda", kind=tarfile.BLKTYPE)]])
    assert not any((root / "dev").iterdir())


def test_a_damaged_layer_is_refused_before_a_byte_of_it_is_written(tmp_path: Path) -> None:
    above = [Member(name="above", body=b"above")]
    source = imagekit.layout(tmp_path / "image", [BELOW, above])
    blob = source.path / "blobs/sha256" / source.image().layers[1].digest
    whole = blob.read_bytes()
    blob.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DigestError, match="is damaged") as caught:
        unpack.unpack(source, tmp_path / "rootfs", Silent())
    assert blob.name in caught.value.what
    assert not (tmp_path / "rootfs/root").exists()
    assert not (tmp_path / "rootfs/root.part/above").exists()
    # Once the file is whole, what was laid down before is kept.
    kept = (tmp_path / "rootfs/root.part/usr/lib/one").stat().st_ino
    blob.write_bytes(whole)
    root = unpack.unpack(source, tmp_path / "rootfs", Silent())
    assert (root / "usr/lib/one").stat().st_ino == kept
    assert (root / "above").read_bytes() == b"above"


def test_a_missing_layer_is_named(tmp_path: Path) -> None:
    source = imagekit.layout(tmp_path / "image", [BELOW])
    blob = source.image().layers[0].digest
    (source.path / "blobs/sha256" / blob).unlink()
    with pytest.raises(ImageError, match="no whole image") as caught:
        unpack.unpack(source, tmp_path / "rootfs", Silent())
    assert blob in caught.value.why


def test_an_image_that_does_not_fit_is_refused_at_once(tmp_path: Path) -> None:
    source = imagekit.layout(tmp_path / "image", [BELOW], told=1 << 60)
    with pytest.raises(DiskError, match=f"are needed at {tmp_path}") as caught:
        unpack.unpack(source, tmp_path / "rootfs", Silent())
    assert caught.value.why == "for edgekiln/test:1, unpacked"


class Deadly(Silent):
    """Kills its process where a layer begins."""

    def __init__(self, at: int) -> None:
        self._left = at

    def update(self, done: float, total: float | None = None, what: str = "") -> None:
        self._left -= 1
        if self._left < 0:
            os.kill(os.getpid(), signal.SIGKILL)


def killed(source: Path, target: Path, at: int) -> None:
    """Unpack in a process of its own that is killed at its `at`-th layer."""
    context = multiprocessing.get_context("fork")
    process = context.Process(
        target=unpack.unpack, args=(Layout(source), target, Deadly(at)), daemon=True
    )
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL


def test_it_goes_on_after_a_kill(tmp_path: Path) -> None:
    layers = [BELOW, *([Member(name=f"f{n}", body=b"x" * n)] for n in range(1, 6))]
    source = imagekit.layout(tmp_path / "image", layers)
    target = tmp_path / "rootfs"
    for at in (1, 1, 2):
        killed(source.path, target, at)
        assert not (target / "root").exists()
    done = json.loads((target / "unpacked.json").read_bytes())["layers"]
    assert done == 4
    unpack.unpack(source, target, Silent())
    other = unpack.unpack(source, tmp_path / "other", Silent())
    assert tree(target / "root") == tree(other)


def test_what_was_begun_of_another_image_is_cleared_away(tmp_path: Path) -> None:
    first = imagekit.layout(tmp_path / "first", [[Member(name="old")], BELOW])
    killed(first.path, tmp_path / "rootfs", 1)
    second = imagekit.layout(tmp_path / "second", [BELOW])
    assert not (unpack.unpack(second, tmp_path / "rootfs", Silent()) / "old").exists()


def _as_nobody(source: Path, target: Path) -> None:
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    unpack.unpack(Layout(source), target, Silent())


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="changes its user")
def test_anybody_can_unpack_and_all_is_theirs(tmp_path: Path) -> None:
    closed = [*BELOW, folder("closed", 0o555), Member(name="closed/file", mode=0o000)]
    source = imagekit.layout(tmp_path / "image", [closed, [Member(name="closed/more")]])
    assert unpack.may_give_away(tmp_path)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    os.chown(theirs, NOBODY, NOBODY)
    for above in (tmp_path, *tmp_path.parents[:3]):
        above.chmod(above.stat().st_mode | 0o755)
    process = multiprocessing.get_context("fork").Process(
        target=_as_nobody, args=(source.path, theirs / "rootfs")
    )
    process.start()
    process.join(30)
    assert process.exitcode == 0
    root = theirs / "rootfs/root"
    assert {path.lstat().st_uid for path in root.rglob("*")} == {NOBODY}
    assert (root / "closed/more").exists()
    assert (root / "closed/file").stat().st_mode & 0o777 == 0o400


def test_one_of_several_platforms_is_taken(tmp_path: Path) -> None:
    source = imagekit.layout(tmp_path / "image", [BELOW])
    entry = json.loads((source.path / "index.json").read_bytes())["manifests"][0]
    arm = {**entry, "digest": f"sha256:{'0' * 64}", "platform": {"os": "linux"}}
    arm["platform"] = {"os": "linux", "architecture": "arm64"}
    ours = {**entry, "platform": {"os": "linux", "architecture": "amd64"}}
    inner = imagekit.put_index(source.path, [arm, ours])
    imagekit.write_index(source.path, [inner])
    assert len(source.image().layers) == 1
    imagekit.write_index(source.path, [arm])
    with pytest.raises(ImageError, match="no image for Linux on x86-64"):
        source.image()


def test_one_tar_is_read_as_the_folder_is(tmp_path: Path) -> None:
    source = imagekit.layout(tmp_path / "image", [BELOW])
    with tarfile.open(tmp_path / "image.tar", "w") as tar:
        for path in sorted(source.path.rglob("*")):
            if path.is_file():
                tar.add(path, path.relative_to(source.path).as_posix())
    root = unpack.unpack(Layout(tmp_path / "image.tar"), tmp_path / "one", Silent())
    assert tree(root) == tree(unpack.unpack(source, tmp_path / "other", Silent()))


def test_what_no_toolchain_asks_for_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEKILN_HOME", str(tmp_path))
    toolchain = load_toolchain("mnn")
    assert unpack.unused([toolchain]) == exports.unused([toolchain]) == []
    old = [tmp_path / "rootfs/mnn-0-0", tmp_path / "exports/edgekiln-mnn-0-0.image"]
    now = [unpack.rootfs_path(toolchain), exports.folder() / exports.export_name(toolchain)]
    for place in (*old, *now):
        (place / "closed").mkdir(parents=True, mode=0o500)
    assert unpack.unused([toolchain]) == old[:1]
    assert exports.unused([toolchain]) == old[1:]
    unpack.remove_tree(old[0])
    assert not old[0].exists()
