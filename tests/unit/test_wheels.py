"""Wheels at hand: found by name, taken by digest."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

import pytest

from edgekiln.errors import DigestError, FetchError
from edgekiln.progress import Silent
from edgekiln.toolchain.lock import Wheel
from edgekiln.toolchain.uvtool import linux_uv
from edgekiln.toolchain.wheels import check_file, find_local, put
from edgekiln.user.pipconf import PipSettings

BYTES = b"the wheel's bytes"


def wheel(data: bytes = BYTES, name: str = "Some_Thing") -> Wheel:
    """A wheel of those bytes."""
    file = f"{name.lower()}-1.0+cpu-py3-none-any.whl"
    return Wheel(name=name, version="1.0+cpu", file=file, sha256=hashlib.sha256(data).hexdigest())


def test_a_wheel_in_a_find_links_folder_is_found(tmp_path: Path) -> None:
    (tmp_path / wheel().file).write_bytes(BYTES)
    pip = PipSettings(find_links=(str(tmp_path),))
    assert find_local([wheel()], pip) == {wheel().file: tmp_path / wheel().file}


def test_other_bytes_under_the_right_name_are_passed_over(tmp_path: Path) -> None:
    wrong, right = tmp_path / "wrong", tmp_path / "right"
    for folder, data in ((wrong, b"other"), (right, BYTES)):
        folder.mkdir()
        (folder / wheel().file).write_bytes(data)
    pip = PipSettings(find_links=(str(wrong), str(right)))
    assert find_local([wheel()], pip)[wheel().file].parent == right
    assert find_local([wheel()], PipSettings(find_links=(str(wrong),))) == {}


@pytest.mark.parametrize(
    "link",
    ["../../files/{quoted}#sha256=ab", "{uri}", "../../files/{quoted}"],
)
def test_a_file_index_is_read_like_pip_reads_it(tmp_path: Path, link: str) -> None:
    page, files = tmp_path / "simple" / "some-thing", tmp_path / "files"
    page.mkdir(parents=True)
    files.mkdir()
    path = files / wheel().file
    path.write_bytes(BYTES)
    quoted = wheel().file.replace("+", "%2B")
    href = link.format(quoted=quoted, uri=path.as_uri())
    (page / "index.html").write_text(f'<a class="x" href="{href}">a wheel</a><a>none</a>')
    pip = PipSettings(extra_index_urls=((tmp_path / "simple").as_uri(),))
    found = find_local([wheel()], pip)
    assert found[wheel().file].resolve() == path.resolve()


def test_a_file_gets_a_second_name_not_a_second_copy(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(BYTES)
    put(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == BYTES
    assert (tmp_path / "b").stat().st_ino == (tmp_path / "a").stat().st_ino


def test_a_file_with_other_bytes_than_pinned_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"other")
    with pytest.raises(DigestError, match="a is not the file that was pinned"):
        check_file(tmp_path / "a", wheel().sha256)


def test_uv_is_taken_out_of_its_wheel_and_kept(tmp_path: Path) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("uv-9.data/scripts/uv", "#!/bin/sh\necho uv 9\n")
    data = packed.getvalue()
    file = "uv-9-py3-none-any.whl"
    pinned = Wheel(name="uv", version="9", file=file, sha256=hashlib.sha256(data).hexdigest())
    (tmp_path / file).write_bytes(data)
    found = linux_uv(pinned, PipSettings(find_links=(str(tmp_path),)), Silent())
    assert found.read_text().endswith("echo uv 9\n")
    assert found.stat().st_mode & 0o111
    (tmp_path / file).unlink()
    assert linux_uv(pinned, PipSettings(), Silent()) == found


def test_a_uv_that_cannot_be_fetched_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    pinned = Wheel(name="uv", version="0.0.0", file="uv-0.0.0-none.whl", sha256="0" * 64)
    with pytest.raises(FetchError, match=r"uv 0\.0\.0 could not be fetched"):
        linux_uv(pinned, PipSettings(), Silent())
