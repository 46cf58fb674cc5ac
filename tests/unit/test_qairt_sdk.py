"""The user's QAIRT SDK: what is taken, what is refused and why, and what goes onto the phone."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import pytest

from edgekiln.backends import qairt_sdk
from edgekiln.errors import DigestError, LicenceError, ToolchainError
from tests.unit import qairt_standin as standin


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return standin.folder(tmp_path / "made")


@pytest.fixture
def archive(root: Path, tmp_path: Path) -> Path:
    return standin.zipped(root, tmp_path / "v2.36.0.250627.zip")


def test_a_zip_is_unpacked_once_without_what_no_build_reads(
    archive: Path, root: Path, own_home: Path
) -> None:
    sdk = qairt_sdk.prepare(archive, arch="v79")
    assert sdk.version == standin.VERSION
    assert sdk.root.parent == own_home / "sdks"
    tool = sdk.root / "bin" / standin.HOST / "qairt-converter"
    assert os.access(tool, os.X_OK)
    assert tool.read_bytes() == (root / "bin" / standin.HOST / tool.name).read_bytes()
    assert (sdk.root / "lib/hexagon-v79/unsigned/libQnnHtpV79Skel.so").is_file()
    assert (sdk.root / "sdk.yaml").is_file() and (sdk.root / "bin/envsetup.sh").is_file()
    assert not (sdk.root / "docs").exists()
    before = tool.stat().st_mtime_ns
    assert qairt_sdk.prepare(archive) == sdk
    assert tool.stat().st_mtime_ns == before


def test_the_vendors_licence_is_asked_for_once(
    root: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EDGEKILN_ACCEPT_LICENCES")
    with pytest.raises(LicenceError, match="Qualcomm AI Runtime SDK") as caught:
        qairt_sdk.prepare(root)
    assert "--accept-licence qairt" in caught.value.remedy
    monkeypatch.setenv("EDGEKILN_ACCEPT_LICENCES", "qairt")
    qairt_sdk.prepare(root)
    monkeypatch.delenv("EDGEKILN_ACCEPT_LICENCES")
    assert qairt_sdk.prepare(root).version == standin.VERSION
    assert "qairt" in json.loads((own_home / "licences.json").read_bytes())


def test_the_digest_is_written_down_at_first_use_and_held_from_then_on(
    archive: Path, root: Path, tmp_path: Path, own_home: Path
) -> None:
    sdk = qairt_sdk.prepare(archive)
    record = own_home / "sdks" / f"qairt-{standin.VERSION}.json"
    assert json.loads(record.read_text())["sha256"] == sdk.sha256
    (root / "sdk.yaml").write_text(f"version: {standin.VERSION}\n# another build of it\n")
    other = standin.zipped(root, tmp_path / "other.zip")
    with pytest.raises(DigestError) as refused:
        qairt_sdk.prepare(other)
    assert sdk.sha256 in refused.value.why and str(record) in refused.value.remedy
    record.unlink()
    assert qairt_sdk.prepare(other).sha256 != sdk.sha256


@pytest.mark.parametrize("where", ["lib/aarch64-android/libGenie.so", "docs/not-needed.html"])
def test_one_changed_byte_anywhere_in_a_zip_is_found(
    archive: Path, root: Path, tmp_path: Path, own_home: Path, where: str
) -> None:
    with zipfile.ZipFile(archive) as opened:
        member = opened.getinfo(f"qairt/{standin.VERSION}/{where}")
    content = bytearray(archive.read_bytes())
    at = member.header_offset + 30 + len(member.filename) + member.compress_size // 2
    content[at] ^= 0x20
    archive.write_bytes(content)
    with pytest.raises(DigestError) as refused:
        qairt_sdk.prepare(archive)
    assert where in refused.value.what and "damaged" in refused.value.what
    assert not [p for p in (own_home / "sdks").iterdir() if p.is_dir() and "part" not in p.name]


def test_a_cut_download_and_a_sign_in_page_are_no_zips(archive: Path, tmp_path: Path) -> None:
    half = tmp_path / "half.zip"
    half.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    page = tmp_path / "page.zip"
    page.write_text("<html>Sign in</html>")
    for file in (half, page):
        with pytest.raises(DigestError) as refused:
            qairt_sdk.prepare(file)
        assert "no whole zip" in refused.value.what and "again" in refused.value.remedy


def test_another_zip_is_no_sdk(tmp_path: Path) -> None:
    other = tmp_path / "android-ndk-r27c-linux.zip"
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("android-ndk-r27c/source.properties", "Pkg.Revision = 27.2.12479018\n")
    with pytest.raises(ToolchainError) as refused:
        qairt_sdk.prepare(other)
    assert "no QAIRT SDK" in refused.value.what and "android-ndk" in refused.value.why


def test_a_zip_that_writes_outside_of_its_folder_is_refused(archive: Path, own_home: Path) -> None:
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr(f"qairt/{standin.VERSION}/../../../../evil", "x")
    with pytest.raises(ToolchainError, match="points out"):
        qairt_sdk.prepare(archive)
    assert not (own_home.parent / "evil").exists()


@pytest.mark.parametrize("form", ["folder", "above", "zip"])
def test_a_folder_the_one_above_it_and_the_zip_tell_the_version(
    archive: Path, root: Path, form: str
) -> None:
    given = {"folder": root, "above": root.parents[1], "zip": archive}[form]
    assert qairt_sdk.prepare(given).version == standin.VERSION


def test_the_folders_name_tells_the_version_where_no_file_does(root: Path, tmp_path: Path) -> None:
    (root / "sdk.yaml").unlink()
    assert qairt_sdk.prepare(root).version == standin.VERSION
    assert qairt_sdk.prepare(standin.zipped(root, tmp_path / "a.zip")).version == standin.VERSION
    with pytest.raises(ToolchainError, match="does not say"):
        qairt_sdk.prepare(standin.zipped(root, tmp_path / "b.zip", inside="sdk"))


@pytest.mark.parametrize(
    "lost",
    [
        "bin/x86_64-linux-clang/qairt-quantizer",
        "lib/x86_64-linux-clang/libQnnModelDlc.so",
    ],
)
def test_an_sdk_without_a_tool_is_refused_by_its_name(root: Path, lost: str) -> None:
    (root / lost).unlink()
    with pytest.raises(ToolchainError) as refused:
        qairt_sdk.prepare(root)
    assert lost in refused.value.what


def test_a_hexagon_that_the_sdk_does_not_know_is_refused(root: Path) -> None:
    with pytest.raises(ToolchainError) as refused:
        qairt_sdk.prepare(root, arch="v81")
    assert "v81" in refused.value.what and "v73, v75, v79" in refused.value.why


def test_nothing_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match="there is no QAIRT SDK"):
        qairt_sdk.prepare(tmp_path / "v2.36.zip")
    with pytest.raises(ToolchainError, match="no QAIRT SDK for Linux"):
        qairt_sdk.prepare(tmp_path)


def test_the_phones_files_are_those_of_its_hexagon(root: Path) -> None:
    found = qairt_sdk.device_libraries(qairt_sdk.prepare(root), "v79")
    assert sorted(found) == [
        "genie-t2t-run",
        "libGenie.so",
        "libQnnHtp.so",
        "libQnnHtpNetRunExtensions.so",
        "libQnnHtpV79Skel.so",
        "libQnnHtpV79Stub.so",
        "libQnnSystem.so",
    ]
    assert found["libQnnHtpV79Skel.so"].parts[-3:-1] == ("hexagon-v79", "unsigned")
    assert all(path.is_file() for path in found.values())


def test_phone_files_of_two_builds_are_refused(root: Path) -> None:
    skel = root / "lib/hexagon-v79/unsigned/libQnnHtpV79Skel.so"
    standin.library(skel, "v2.36.0.250701000000")
    with pytest.raises(ToolchainError) as refused:
        qairt_sdk.device_libraries(qairt_sdk.prepare(root), "v79")
    assert "not of one build" in refused.value.what and "Skel.so 2.36.0.250701" in refused.value.why
    skel.unlink()
    with pytest.raises(ToolchainError, match="lacks libQnnHtpV79Skel"):
        qairt_sdk.device_libraries(qairt_sdk.prepare(root), "v79")


def test_a_runtime_older_than_the_binaries_is_refused(root: Path) -> None:
    sdk = qairt_sdk.prepare(root)
    qairt_sdk.check_runtime(sdk, "v2.36.0.250627101419")
    qairt_sdk.check_runtime(sdk, "v2.31.0.250101000000")
    with pytest.raises(ToolchainError) as refused:
        qairt_sdk.check_runtime(sdk, "v2.51.0.260929181845")
    assert "2.51" in refused.value.remedy
