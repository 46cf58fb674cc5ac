"""The content digest of a root file system: what counts, what does not, and a listing kept."""

from __future__ import annotations

import io
import os
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from edgekiln.errors import DigestError
from edgekiln.images import content
from tests.unit.imagekit import Member, folder, hardlink, symlink, tar_of

# Elsewhere links have other modes, and files no owners.
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="images are unpacked on Linux only")
MEMBERS = [
    folder("opt"),
    Member(name="opt/tool", body=b"\x7fELF", mode=0o755),
    Member(name="opt/text", body=b"words\n"),
    symlink("opt/link", "tool"),
    Member(name="opt/own", body=b"mine", owner=65534, mode=0o600),
]
# What engines put into a container, and older builders leave in an image.
ENGINES = [
    Member(name=".dockerenv"),
    folder("dev"),
    Member(name="dev/console", kind=tarfile.CHRTYPE),
    folder("proc", 0o555),
    folder("sys"),
    folder("run/kiln"),
    folder("run/secrets"),
]


def listed(members: list[Member], mtime: int = 0) -> dict[str, content.Entry]:
    return content.of_tar(io.BytesIO(tar_of(members, mtime=mtime)))


def test_times_order_and_what_engines_add_do_not_count() -> None:
    plain = listed(MEMBERS)
    assert set(plain) == {"opt", "opt/tool", "opt/text", "opt/link", "opt/own"}
    other = [MEMBERS[0], *reversed(MEMBERS[1:]), *ENGINES]
    assert content.digest(listed(other, mtime=1_700_000_000)) == content.digest(plain)


def test_names_are_the_same_with_a_dot_before_them() -> None:
    dotted = [replace(member, name=f"./{member.name}") for member in MEMBERS]
    assert listed([folder("./"), *dotted]) == listed(MEMBERS)


def test_a_hard_link_counts_as_the_file_it_is() -> None:
    linked = listed([*MEMBERS, hardlink("opt/same", "opt/tool")])
    apart = listed([*MEMBERS, replace(MEMBERS[1], name="opt/same")])
    assert content.digest(linked) == content.digest(apart)


@pytest.mark.parametrize(
    "other",
    [
        replace(MEMBERS[1], body=b"\x7fELG"),
        replace(MEMBERS[1], mode=0o4755),
        replace(MEMBERS[1], owner=1),
        replace(MEMBERS[1], name="opt/tools"),
        symlink("opt/tool", "text"),
        folder("opt/tool"),
        Member(name="opt/tool", kind=tarfile.FIFOTYPE, mode=0o755),
    ],
    ids=["byte", "mode", "owner", "name", "link", "folder", "pipe"],
)
def test_everything_else_counts(other: Member) -> None:
    changed = listed([MEMBERS[0], other, *MEMBERS[2:]])
    assert content.digest(changed) != content.digest(listed(MEMBERS))
    names = {change.name for change in content.differences(listed(MEMBERS), changed)}
    assert names == {"opt/tool", other.name}


def test_where_a_link_leads_counts() -> None:
    one, two = (listed([symlink("a", target)]) for target in ("b", "c"))
    assert content.digest(one) != content.digest(two)


@on_linux
def test_a_folder_on_the_disk_is_read_like_a_tar_of_it(tmp_path: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(tar_of(MEMBERS))) as archive:
        for member in archive:
            archive.extract(member, tmp_path, filter="fully_trusted")
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "cpuinfo").touch()
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc").chmod(0o755)  # whatever the umask
    (tmp_path / "etc" / "resolv.conf").touch()
    known = listed([*MEMBERS, folder("etc")])
    assert content.digest(content.of_folder(tmp_path, known)) == content.digest(known)
    (tmp_path / "opt" / "text").write_text("word\n")
    changes = content.differences(known, content.of_folder(tmp_path, known))
    assert [change.name for change in changes] == ["opt/text"]
    assert changes[0].contents


@on_linux
def test_owners_are_those_on_the_disk_unless_a_listing_has_them(tmp_path: Path) -> None:
    (tmp_path / "mine").write_bytes(b"mine")
    (tmp_path / "mine").chmod(0o600)
    found = content.of_folder(tmp_path)["mine"]
    assert (found.owner, found.group) == (os.getuid(), os.getgid())
    known = {"mine": replace(found, owner=65534, group=7)}
    assert content.of_folder(tmp_path, known) == known


def test_a_listing_is_kept_and_known_by_its_digest(tmp_path: Path) -> None:
    odd = Member(name="opt/new\nline \udcff", body=b"odd")
    listing = listed([*MEMBERS, odd])
    assert "opt/new\nline \udcff" in listing
    path = tmp_path / "kept" / "x.list.zst"
    content.write(listing, path)
    assert content.read(path, content.digest(listing)) == listing
    with pytest.raises(DigestError, match="another listing"):
        content.read(path, "0" * 64)
    path.write_bytes(b"no such thing")
    with pytest.raises(DigestError, match="cannot be read"):
        content.read(path, content.digest(listing))


def test_differences_say_what_differs() -> None:
    left = listed(MEMBERS)
    right = listed([*MEMBERS[:2], replace(MEMBERS[2], mode=0o600), *MEMBERS[4:], folder("srv")])
    told = [change.text for change in content.differences(left, right)]
    assert told[0] == "opt/link: only in the first, link 0777 0:0 tool"
    assert told[1].startswith("opt/text: file 0644 0:0 ")
    assert ", in the second file 0600 0:0 " in told[1]
    assert told[2] == "srv: only in the second, folder 0755 0:0"


def test_files_are_taken_out_of_a_tar(tmp_path: Path) -> None:
    stream = io.BytesIO(tar_of(MEMBERS))
    found = content.take(stream, ["opt/tool", "opt/link", "opt/absent"], tmp_path)
    assert {name: path.read_bytes() for name, path in found.items()} == {"opt/tool": b"\x7fELF"}
