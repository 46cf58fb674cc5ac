"""Android apps and libraries as files: made by Android's own tools, then broken."""

from __future__ import annotations

import json
import random
import struct
import zipfile
from pathlib import Path

import pytest

from edgekiln.artifacts import look
from edgekiln.artifacts.apk import Package, read_package
from edgekiln.errors import ArtifactError, KilnError
from tests.unit import tinyapk
from tests.unit.kit import Heard

LIBRARY = "lib/arm64-v8a/libtvm4j_runtime_packed.so"
MODEL = {"model_id": "Qwen3-0.6B-q4f16_1-MLC", "model_lib": "qwen3_q4f16_1"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[int, bytes]:
    """A library for each page size."""
    tinyapk.need_tools()
    folder = tmp_path_factory.mktemp("libraries")
    return {page: tinyapk.library(folder, page) for page in (4096, 16384)}


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tinyapk.need_tools()
    return tinyapk.keystore(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory, made: dict[int, bytes], key: Path) -> Path:
    """A whole app, as a phone wants it."""
    path = tmp_path_factory.mktemp("app") / "MLCChat.apk"
    return tinyapk.make(path, key=key, libraries={LIBRARY: made[16384]}, models=[MODEL])


def test_an_app_says_what_it_is(app: Path) -> None:
    found = read_package(app, whole=True)
    assert (found.kind, found.package, found.version, found.version_code) == (
        "apk",
        "ai.mlc.mlcchat",
        "1.1",
        1,
    )
    assert (found.min_sdk, found.target_sdk) == (26, 33)
    assert (found.extracted, found.debuggable, found.test_only) == (False, True, False)
    assert found.activity == "ai.mlc.mlcchat.MainActivity"
    assert {"v2", "v3"} <= set(found.signed)
    assert found.debug_key and len(found.certificates) == 1
    assert found.abis == ("arm64-v8a",) and found.models == (MODEL,)
    (library,) = found.libraries
    assert library.fits_16k and library.lies_at_16k and library.offset


def test_inspect_says_it_in_words(app: Path) -> None:
    rows = dict(look(app, Heard()).found.rows)
    assert rows["kind"] == "Android app (APK)"
    assert rows["package"] == "ai.mlc.mlcchat 1.1 (version code 1)"
    assert rows["Android"] == "API 26 or newer, made for 33"
    assert rows["build"].startswith("debug")
    assert "with a debug key" in rows["signed"]
    (library,) = read_package(app).libraries
    assert rows[library.name].endswith("fits 16 KB pages, stored at a 16 KB boundary")


def test_the_certificate_is_the_one_that_apksigner_sees(app: Path) -> None:
    import subprocess

    done = subprocess.run(
        ["apksigner", "verify", "--print-certs", str(app)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert read_package(app).certificates[0] in done.stdout


@pytest.mark.parametrize("scheme", [1, 2, 3])
def test_each_signature_scheme_is_seen_alone(tmp_path: Path, key: Path, scheme: int) -> None:
    schemes = {n: n == scheme for n in (1, 2, 3)}
    path = tinyapk.make(tmp_path / "app.apk", key=key, min_sdk=21, schemes=schemes)
    found = read_package(path)
    assert found.signed == (f"v{scheme}",)
    assert len(found.certificates) == (0 if scheme == 1 else 1)


def test_an_app_without_a_signature_is_told(tmp_path: Path, made: dict[int, bytes]) -> None:
    path = tinyapk.make(tmp_path / "bare.apk", key=None, libraries={LIBRARY: made[16384]})
    found = look(path, Heard())
    assert found.value()["signed"] == () and "no phone takes it" in found.text()


@pytest.mark.parametrize(
    ("page", "boundary", "compressed", "said"),
    [
        (16384, 16384, False, "fits 16 KB pages, stored at a 16 KB boundary"),
        (16384, 4096, False, "zipalign -P 16"),
        (4096, 16384, False, "aligned to 4096 bytes: does not fit 16 KB pages"),
        (16384, 4, True, "fits 16 KB pages, compressed"),
    ],
)
def test_how_libraries_lie_is_told(  # noqa: PLR0917
    tmp_path: Path,
    made: dict[int, bytes],
    page: int,
    boundary: int,
    compressed: bool,
    said: str,
) -> None:
    path = tinyapk.make(
        tmp_path / "app.apk",
        key=None,
        libraries={"lib/arm64-v8a/liba.so": b"not an ELF", LIBRARY: made[page]},
        boundary=boundary,
        compressed=compressed,
    )
    found = look(path, Heard())
    assert said in found.text() and "not an ELF of 64 bits" in found.text()
    listed = {x["name"]: x for x in found.value()["libraries"]}
    assert listed[LIBRARY]["pages_16k"] == said.startswith("fits 16 KB pages, ") * (
        "zipalign" not in said
    )
    json.dumps(found.value())


def test_a_library_for_apps_is_told_from_an_app(tmp_path: Path, made: dict[int, bytes]) -> None:
    path = tmp_path / "mlc4j.aar"
    manifest = (
        '<manifest xmlns:android="http://schemas.android.com/apk/res/android" '
        'package="ai.mlc.mlcllm"><uses-sdk android:minSdkVersion="22"/></manifest>'
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("AndroidManifest.xml", manifest)
        archive.writestr("classes.jar", b"PK\5\6" + bytes(18))
        archive.writestr("jni/arm64-v8a/libtvm4j_runtime_packed.so", made[4096])
    found = look(path, Heard())
    assert found.value()["kind"] == "aar" and found.value()["package"] == "ai.mlc.mlcllm"
    assert found.value()["min_sdk"] == 22 and "does not fit 16 KB pages" in found.text()


def test_another_zip_is_neither(tmp_path: Path) -> None:
    path = tmp_path / "some.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "a")
    with pytest.raises(ArtifactError, match="of no kind") as caught:
        look(path, Heard())
    assert "AndroidManifest.xml" in caught.value.why


def test_an_app_cut_anywhere_is_damaged(app: Path, tmp_path: Path) -> None:
    data = app.read_bytes()
    cut = tmp_path / "cut.apk"
    for keep in range(8, len(data), max(1, len(data) // 40)):
        cut.write_bytes(data[:keep])
        with pytest.raises(ArtifactError):
            read_package(cut)


def test_a_changed_byte_in_a_library_is_noticed(app: Path, tmp_path: Path) -> None:
    offset = read_package(app).libraries[0].offset
    assert offset
    data = bytearray(app.read_bytes())
    data[offset + 4000] ^= 1
    path = tmp_path / "changed.apk"
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match="damaged") as caught:
        read_package(path, whole=True)
    assert "checksum" in caught.value.why or "CRC" in caught.value.why


def test_fuzzed_apps_never_escape_as_faults(app: Path, tmp_path: Path) -> None:
    data = app.read_bytes()
    dice = random.Random(7)
    path = tmp_path / "fuzzed.apk"
    interesting = [0, data.find(b"APK Sig Block 42"), data.rfind(b"PK\1\2"), len(data) - 22]
    for round_ in range(300):
        changed = bytearray(data)
        for _ in range(dice.randint(1, 8)):
            near = dice.choice(interesting)
            at = (near + dice.randint(-64, 600)) % len(data) if round_ % 2 else near
            changed[(at + dice.randint(0, 60)) % len(data)] = dice.randrange(256)
        path.write_bytes(changed)
        try:
            assert isinstance(read_package(path), Package)
        except KilnError as error:
            assert isinstance(error, ArtifactError) and error.why


def test_fuzzed_manifests_never_escape_as_faults(app: Path) -> None:
    from edgekiln.artifacts.axml import elements

    with zipfile.ZipFile(app) as archive:
        data = archive.read("AndroidManifest.xml")
    assert elements(data)[0].name == "manifest"
    dice = random.Random(11)
    for _ in range(3000):
        changed = bytearray(data)
        for _ in range(dice.randint(1, 5)):
            changed[dice.randrange(len(data))] = dice.randrange(256)
        try:
            elements(bytes(changed[: dice.choice([len(data), dice.randrange(len(data))])]))
        except ValueError as error:
            assert str(error)


def test_a_pool_of_utf_8_is_read() -> None:
    """aapt2 writes its strings in UTF-8: a length may take two bytes."""
    from edgekiln.artifacts.axml import _pool

    long = "é" * 200
    body = bytes([2, 2]) + b"ab\0" + bytes([0x80, 200, 0x81, 0x90]) + long.encode() + b"\0"
    head = struct.pack("<HHIIIIII", 1, 28, 28 + 8 + len(body), 2, 0, 1 << 8, 36, 0)
    chunk = head + struct.pack("<II", 0, 5) + body
    assert _pool(chunk) == ["ab", long]
