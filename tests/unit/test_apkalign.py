"""APKs written anew, each library at a page, without any of Android's tools."""

from __future__ import annotations

import os
import sys
import zipfile
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path[:0] = [str(SCRIPTS)]

import apkfile  # noqa: E402

SIZES = {"lib/arm64-v8a/liba.so": 50_001, "assets/a.bin": 13, "lib/arm64-v8a/libb.so": 1}


def archive(place: Path, **more: bytes) -> Path:
    """A zip with stored and packed entries, in an order that aligns nothing."""
    apk = place / "raw.apk"
    with zipfile.ZipFile(apk, "w") as file:
        for name, size in SIZES.items():
            file.writestr(zipfile.ZipInfo(name), os.urandom(size))
        packed = zipfile.ZipInfo("res/packed.xml")
        packed.compress_type = zipfile.ZIP_DEFLATED
        file.writestr(packed, b"x" * 5000)
        for name, data in more.items():
            file.writestr(zipfile.ZipInfo(name), data)
        file.comment = b""
    return apk


@pytest.mark.parametrize("page", [4096, 16384, 32768])
def test_libraries_lie_at_pages_and_nothing_else_changes(tmp_path: Path, page: int) -> None:
    raw, aligned = archive(tmp_path), tmp_path / "aligned.apk"
    assert apkfile.misaligned(raw, page)
    apkfile.align(raw, aligned, page)
    assert apkfile.misaligned(aligned, page) == []
    assert [lib.offset % page for lib in apkfile.libraries(aligned)] == [0, 0]
    with zipfile.ZipFile(raw) as old, zipfile.ZipFile(aligned) as new:
        assert new.testzip() is None
        assert new.namelist() == old.namelist()
        assert [new.read(n) for n in new.namelist()] == [old.read(n) for n in old.namelist()]


def test_aligning_twice_changes_no_more(tmp_path: Path) -> None:
    raw, once, twice = archive(tmp_path), tmp_path / "once.apk", tmp_path / "twice.apk"
    apkfile.align(raw, once, 16384)
    apkfile.align(once, twice, 16384)
    assert once.read_bytes() == twice.read_bytes()


def test_what_it_has_libraries_for(tmp_path: Path) -> None:
    apk = archive(tmp_path, **{"lib/x86_64/libc.so": b"c"})
    assert apkfile.abis(apk) == ["arm64-v8a", "x86_64"]
    assert apkfile.schemes(apk) == []


def test_a_zip_that_android_tools_do_not_make(tmp_path: Path) -> None:
    apk = archive(tmp_path)
    with zipfile.ZipFile(apk, "a") as file:
        file.comment = b"a comment"
    with pytest.raises(RuntimeError, match="no plain zip"):
        apkfile.align(apk, tmp_path / "aligned.apk", 16384)
