"""Archives are laid out with modes and links, and never outside of their folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from edgekiln.errors import AccessError, DigestError, ToolchainError
from edgekiln.kits import places
from edgekiln.kits.tree import tree_id
from edgekiln.kits.unpack import test as read_through
from edgekiln.kits.unpack import unpack, unpacked_size
from edgekiln.progress import Silent
from tests.unit.kitmaking import NOBODY, Told, tarred, zipped

FILES = {"top/bin/tool": b"#!/bin/sh\n", "top/lib/data": b"x" * 5000, "top/README": b"read me\n"}
LINKS = {"top/bin/alias": "tool", "top/lib/up": "../bin/tool"}
PROGRAMS = ("top/bin/tool",)


def put(tmp_path: Path, name: str, body: bytes) -> Path:
    (tmp_path / name).write_bytes(body)
    return tmp_path / name


def archives(tmp_path: Path) -> list[Path]:
    """The same content in every form."""
    return [
        put(tmp_path, "a.zip", zipped(FILES, links=LINKS, programs=PROGRAMS)),
        *(
            put(tmp_path, name, tarred(FILES, mode=mode, links=LINKS, programs=PROGRAMS))
            for name, mode in (("a.tar.gz", "w:gz"), ("a.tar.xz", "w:xz"), ("a.tar", "w:"))
        ),
    ]


def test_every_form_gives_the_same_files_modes_and_links(tmp_path: Path) -> None:
    found = set()
    for number, archive in enumerate(archives(tmp_path)):
        into = tmp_path / f"out{number}"
        into.mkdir()
        told = Told()
        unpack(archive, into, told, strip=1)
        assert (into / "bin/tool").stat().st_mode & 0o777 == 0o755
        assert (into / "lib/data").stat().st_mode & 0o777 == 0o644
        assert os.readlink(into / "bin/alias") == "tool"  # noqa: PTH115
        assert (into / "lib/up").read_bytes() == b"#!/bin/sh\n"
        assert told.updates[-1][0] == sum(map(len, FILES.values()))
        found.add(tree_id(into))
    assert len(found) == 1


@pytest.mark.skipif(not shutil.which("zstd"), reason="the program zstd is not installed")
def test_zstd_is_taken_too(tmp_path: Path) -> None:
    plain = put(tmp_path, "a.tar", tarred(FILES, mode="w:"))
    subprocess.run(["zstd", "-q", str(plain)], check=True)
    plain.unlink()
    unpack(tmp_path / "a.tar.zst", tmp_path / "out", Silent(), strip=1)
    assert (tmp_path / "out/README").read_bytes() == b"read me\n"


def test_a_trees_name_is_the_one_git_gives_it(tmp_path: Path) -> None:
    unpack(archives(tmp_path)[0], tmp_path / "out", Silent(), strip=1)
    (tmp_path / "out/lib-x").write_bytes(b"")  # sorts before lib/
    (tmp_path / "out/empty").mkdir()
    env = {**os.environ, **NOBODY}
    for words in (["init", "--quiet"], ["add", "--all"]):
        subprocess.run(["git", *words], cwd=tmp_path / "out", env=env, check=True)
    command = ["git", "write-tree"]
    done = subprocess.run(command, cwd=tmp_path / "out", env=env, check=True, capture_output=True)
    shutil.rmtree(tmp_path / "out/.git")
    assert tree_id(tmp_path / "out") == done.stdout.decode().strip()


def test_strip_takes_leading_folders_off_and_only_keeps_what_is_named(tmp_path: Path) -> None:
    files = {"r-1/cargo/bin/cargo": b"c", "r-1/cargo/share/doc": b"d", "r-1/install.sh": b"i"}
    archive = put(tmp_path, "r.tar.xz", tarred(files, mode="w:xz"))
    unpack(archive, tmp_path / "out", Silent(), strip=2, only=["bin", "lib"])
    assert [p.name for p in (tmp_path / "out").rglob("*") if p.is_file()] == ["cargo"]


def test_archives_are_laid_over_each_other(tmp_path: Path) -> None:
    for number, files in enumerate(({"lib/a": b"1"}, {"lib/b": b"2", "lib/a": b"3"})):
        archive = put(tmp_path, f"{number}.zip", zipped(files))
        unpack(archive, tmp_path / "out", Silent())
    assert {p.name: p.read_bytes() for p in (tmp_path / "out/lib").iterdir()} == {
        "a": b"3",
        "b": b"2",
    }


def test_a_hard_link_becomes_a_file(tmp_path: Path) -> None:
    body = tarred({"t/a": b"same"}, same={"t/b": "t/a"})
    unpack(put(tmp_path, "a.tgz", body), tmp_path / "out", Silent(), strip=1)
    assert (tmp_path / "out/b").read_bytes() == b"same"


CLIMBING = [
    zipped({"../evil": b"x"}),
    zipped({"a/../../evil": b"x"}),
    zipped({"/evil": b"x"}),
    zipped({"..\\evil": b"x"}),
    zipped({"C:/evil": b"x"}),
    zipped({}, links={"out": "/etc"}),
    zipped({}, links={"out": "../.."}),
    zipped({"a/b": b"x"}, links={"a/out": "../../evil"}),
    zipped({}, links={"one": "two/../..", "two": "."}),
    tarred({"../evil": b"x"}),
    tarred({"/evil": b"x"}),
    tarred({}, links={"out": "/etc"}),
    tarred({}, links={"a/out": "../../evil"}),
    tarred({}, links={"a": ".", "b": "a/a/a/../.."}),
    tarred({}, same={"out": "../evil"}),
    tarred({}, same={"out": "/etc/passwd"}),
    tarred({}, links={"ring": "ring"}),
]


@pytest.mark.parametrize("body", CLIMBING, ids=range(len(CLIMBING)))
def test_what_climbs_out_is_refused(tmp_path: Path, body: bytes) -> None:
    name = "a.zip" if body[:2] == b"PK" else "a.tar.gz"
    archive = put(tmp_path, name, body)
    (tmp_path / "deep").mkdir()
    with pytest.raises(ToolchainError, match="outside of its folder"):
        unpack(archive, tmp_path / "deep" / "out", Silent())
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([name, "deep"])


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tarfile.TarInfo("d")
    link.type, link.linkname = tarfile.SYMTYPE, "."
    file = tarfile.TarInfo("d/f")
    body = tarred({}, extra=(link, file))
    with pytest.raises(ToolchainError, match="outside of its folder") as caught:
        unpack(put(tmp_path, "a.tar.gz", body), tmp_path / "out", Silent())
    assert "behind a link" in caught.value.why


def test_special_files_are_refused(tmp_path: Path) -> None:
    fifo = tarfile.TarInfo("t/pipe")
    fifo.type = tarfile.FIFOTYPE
    with pytest.raises(ToolchainError, match="special file"):
        unpack(put(tmp_path, "a.tar.gz", tarred({}, extra=(fifo,))), tmp_path / "o", Silent())


def test_names_that_differ_in_case_are_refused_where_they_are_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = zipped({"linux/xt_MARK.h": b"1", "linux/xt_mark.h": b"2"})
    archive = put(tmp_path, "a.zip", body)
    unpack(archive, tmp_path / "here", Silent())  # tests run where they are two
    assert len(list((tmp_path / "here/linux").iterdir())) == 2
    monkeypatch.setattr(places, "folds", lambda _: True)
    with pytest.raises(ToolchainError, match="are one file here") as caught:
        unpack(archive, tmp_path / "there", Silent())
    assert "WSL" in caught.value.remedy


def test_a_system_that_makes_no_links_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(1314, "A required privilege is not held by the client")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    with pytest.raises(AccessError, match="cannot be made a link"):
        unpack(archives(tmp_path)[0], tmp_path / "out", Silent())


def test_no_file_may_run_as_another_user(tmp_path: Path) -> None:
    out = tmp_path / "s.zip"
    with zipfile.ZipFile(out, "w") as archive:
        info = zipfile.ZipInfo("su")
        info.external_attr = 0o104777 << 16
        archive.writestr(info, "x")
    unpack(out, tmp_path / "o", Silent())
    assert (tmp_path / "o/su").stat().st_mode & 0o7777 == 0o755


def damaged(body: bytes) -> bytes:
    """One bit of the packed content is another."""
    middle = len(body) // 3
    return body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]


RANDOM = {"a": os.urandom(50_000)}


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("cut.zip", zipped(RANDOM)[:-400]),
        ("bit.zip", damaged(zipped(RANDOM))),
        ("cut.tar.gz", tarred(RANDOM)[:-400]),
        ("bit.tar.xz", damaged(tarred(RANDOM, mode="w:xz"))),
        ("page.zip", b"<html>Sign in</html>"),
        ("page.tar.gz", b"<html>Sign in</html>"),
        ("empty.tar.gz", b""),
    ],
)
def test_the_archive_test_finds_damage(tmp_path: Path, name: str, body: bytes) -> None:
    with pytest.raises(DigestError, match="damaged, or no archive"):
        read_through(put(tmp_path, name, body))
    with pytest.raises(DigestError):
        unpack(tmp_path / name, tmp_path / "out", Silent())


def test_what_is_no_archive_is_told_in_a_few_words(tmp_path: Path) -> None:
    with pytest.raises(DigestError) as caught:
        read_through(put(tmp_path, "page.zip", b"<html>Sign in</html>"))
    assert caught.value.why == "it is no zip and no tar"


def test_the_archive_test_passes_what_is_whole(tmp_path: Path) -> None:
    for archive in archives(tmp_path):
        read_through(archive)


def test_a_zip_tells_its_size(tmp_path: Path) -> None:
    assert unpacked_size(archives(tmp_path)[0]) >= sum(map(len, FILES.values()))
