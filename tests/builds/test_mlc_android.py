"""The last steps towards a phone, with the real tools: CMake's flags, an APK aligned and signed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from edgekiln.home import project

SCRIPTS = project() / "scripts"
sys.path[:0] = [str(SCRIPTS), str(SCRIPTS / "mlc")]

import apk as apkstage  # noqa: E402
import cmakeshim  # noqa: E402
import objfile  # noqa: E402

import apkfile  # noqa: E402
import apksign  # noqa: E402
from stagekit import BadInput, Stage  # noqa: E402

PAGE = 16384
FRAMEWORK = Path("/usr/share/android-framework-res/framework-res.apk")
# Debian's package of each tool.
TOOLS = {"apksigner": "apksigner", "zipalign": "zipalign", "aapt": "aapt", "keytool": "default-jre"}
MANIFEST = """<?xml version="1.0" encoding="utf-8"?>
<manifest xmlns:android="http://schemas.android.com/apk/res/android" package="edgekiln.trial"
    android:versionCode="1" android:versionName="1">
  <uses-sdk android:minSdkVersion="26" android:targetSdkVersion="29" />
  <application android:label="trial" android:hasCode="false" />
</manifest>
"""
# What an NDK's toolchain file does with these flags, before CMake reads the environment.
TOOLCHAIN = """set(CMAKE_SHARED_LINKER_FLAGS "" CACHE STRING "Flags used by the linker.")
set(CMAKE_SHARED_LINKER_FLAGS "-Wl,--build-id ${CMAKE_SHARED_LINKER_FLAGS}")
"""


@pytest.fixture(scope="module")
def android_tools() -> None:
    """Debian's builds of Android's tools; root may install them."""
    missing = [package for tool, package in TOOLS.items() if shutil.which(tool) is None]
    missing += [] if FRAMEWORK.is_file() else ["android-framework-res"]
    if not missing:
        return
    if os.getuid() != 0 or shutil.which("apt-get") is None:
        pytest.skip(f"{', '.join(missing)} are not here: apt install {' '.join(missing)}")
    command = ["apt-get", "install", "-y", "--no-install-recommends", *missing]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"apt cannot install {', '.join(missing)}")


@pytest.fixture
def raw(android_tools: None, tmp_path: Path) -> Path:
    """An APK as Gradle leaves it: not signed, libraries stored where they happen to lie."""
    (tmp_path / "AndroidManifest.xml").write_text(MANIFEST, encoding="utf-8")
    apk = tmp_path / "raw.apk"
    command = ["aapt", "package", "-f", "-M", str(tmp_path / "AndroidManifest.xml")]
    subprocess.run(
        [*command, "-I", str(FRAMEWORK), "-F", str(apk)], check=True, capture_output=True
    )
    with zipfile.ZipFile(apk, "a") as archive:
        for name, size in (("libtvm4j_runtime_packed.so", 50_001), ("libother.so", 7)):
            archive.writestr(zipfile.ZipInfo(f"lib/arm64-v8a/{name}"), os.urandom(size))
        packed = zipfile.ZipInfo("assets/mlc-app-config.json")
        packed.compress_type = zipfile.ZIP_DEFLATED
        archive.writestr(packed, '{"model_list": []}' * 100)
    return apk


def stage(place: Path, **inputs: Path) -> Stage:
    """What a program is handed."""
    (place / "in").mkdir(parents=True)
    for name, source in inputs.items():
        (place / "in" / name).symlink_to(source)
    return Stage(inputs=place / "in", outputs=place / "out", params={}, cpus=2, events=sys.stdout)


def finish(raw: Path, place: Path, **inputs: Path) -> tuple[Path, dict[str, object]]:
    """Align and sign, as the apk stage does after Gradle."""
    for folder in ("out", "work"):
        (place / folder).mkdir(parents=True)
    signed = place / "out" / "MLCChat.apk"
    told = apkstage.finish(stage(place, **inputs), raw, signed, place / "work", PAGE)
    return signed, told


def test_an_apk_is_aligned_signed_and_verified(raw: Path, tmp_path: Path) -> None:
    assert apkfile.misaligned(raw, PAGE)
    assert apkfile.schemes(raw) == []
    signed, told = finish(raw, tmp_path / "a")
    assert apkfile.misaligned(signed, PAGE) == []
    assert apkfile.schemes(signed) == told["schemes"]
    assert {"v2", "v3"} <= set(apkfile.schemes(signed))
    assert told["abis"] == ["arm64-v8a"]
    assert told["signed_by"] == "CN=Android Debug, O=Android, C=US"
    with zipfile.ZipFile(signed) as new, zipfile.ZipFile(raw) as old:
        assert new.testzip() is None
        wanted = {e.filename: old.read(e) for e in old.infolist()}
        assert {name: new.read(name) for name in wanted} == wanted
    badging = subprocess.run(
        ["aapt", "dump", "badging", str(signed)], capture_output=True, text=True, check=True
    )
    assert "name='edgekiln.trial'" in badging.stdout
    assert [f.name for f in signed.parent.iterdir()] == ["MLCChat.apk"]


def test_a_kept_debug_key_signs_every_build_alike(raw: Path, tmp_path: Path) -> None:
    kept = tmp_path / "key"
    kept.mkdir()
    apksign.make_debug_keystore(kept / "debug.keystore", tmp_path / "secrets")
    _, first = finish(raw, tmp_path / "a", debug_keystore=kept)
    # A second time over what is signed already, as Gradle's own debug builds are.
    again, second = finish(tmp_path / "a/out/MLCChat.apk", tmp_path / "b", debug_keystore=kept)
    _, other = finish(raw, tmp_path / "c")
    assert first["signer_sha256"] == second["signer_sha256"] != other["signer_sha256"]
    assert apkfile.misaligned(again, PAGE) == []


def test_the_users_key_and_a_wrong_password(
    raw: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    store, secret = tmp_path / "mine.p12", "correct horse"
    (tmp_path / "pass").write_text(f"{secret}\n", encoding="utf-8")
    words = ["keytool", "-genkeypair", "-noprompt", "-storetype", "PKCS12", "-keyalg", "RSA"]
    words += ["-keystore", str(store), "-alias", "release", "-dname", "CN=Someone"]
    words += ["-storepass:file", str(tmp_path / "pass")]
    subprocess.run(words, check=True, capture_output=True)
    signing = tmp_path / "keystore.properties"
    signing.write_text(f"# mine\nstorePassword={secret}\nkeyAlias=release\n", encoding="utf-8")
    _, told = finish(raw, tmp_path / "a", keystore=store, signing=signing)
    assert told["signed_by"] == "CN=Someone"
    assert secret not in "".join(capfd.readouterr())

    signing.write_text("storePassword=wrong one\nkeyAlias=release\n", encoding="utf-8")
    with pytest.raises(BadInput, match="keystore does not open") as caught:
        finish(raw, tmp_path / "b", keystore=store, signing=signing)
    assert "password" in caught.value.text
    signing.write_text("storePassword=wrong one\n", encoding="utf-8")
    with pytest.raises(BadInput, match="do not say keyAlias"):
        finish(raw, tmp_path / "c", keystore=store, signing=signing)


def test_a_changed_apk_does_not_verify(raw: Path, tmp_path: Path) -> None:
    signed, _ = finish(raw, tmp_path / "a")
    data = bytearray(signed.read_bytes())
    data[apkfile.libraries(signed)[0].offset + 5] ^= 1
    signed.write_bytes(data)
    with pytest.raises(RuntimeError, match="apksigner ended with 1"):
        apksign.verify(signed)


def test_cmake_links_for_16_kb_pages_with_as_many_jobs_as_given(tmp_path: Path) -> None:
    cmake = shutil.which("cmake")
    if cmake is None or shutil.which("cc") is None or shutil.which("make") is None:
        pytest.skip("CMake, make and a C compiler are not here")
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a.c").write_text("int a(void) { return 1; }\n")
    (tmp_path / "source" / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.18)\nproject(a C)\nadd_library(a SHARED a.c)\n"
    )
    (tmp_path / "ndk.cmake").write_text(TOOLCHAIN)
    shim = tmp_path / "bin" / "cmake"
    shim.parent.mkdir()
    shim.write_text(cmakeshim.script(sys.executable, cmake, 1, PAGE))
    shim.chmod(0o755)
    toolchain = f"-DCMAKE_TOOLCHAIN_FILE={tmp_path / 'ndk.cmake'}"

    def build(program: str, name: str, **more: str) -> list[int]:
        place = tmp_path / name
        env = {**os.environ, **more}
        for words in (
            ["-S", str(tmp_path / "source"), "-B", str(place), toolchain],
            ["--build", str(place), "--config", "release", "-j96"],
        ):
            done = subprocess.run(
                [program, *words], env=env, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
        assert program == cmake or done.stderr.splitlines()[0].endswith(" -j1")
        return objfile.load_alignments((place / "liba.so").read_bytes())

    flag = f"-Wl,-z,max-page-size={PAGE}"
    assert build(str(shim), "shim") == [PAGE]
    # Why LDFLAGS would not do.
    assert build(cmake, "plain", LDFLAGS=flag) != [PAGE]


def test_what_cmake_is_called_with() -> None:
    words = ["--build", ".", "--target", "install", "--config", "release", "-j96"]
    assert cmakeshim.rewrite(words, 2, PAGE) == [*words[:-1], "-j2"]
    configure = ["/src", "-DCMAKE_TOOLCHAIN_FILE=/ndk/x.cmake", "-DCMAKE_SHARED_LINKER_FLAGS=-s"]
    assert cmakeshim.rewrite(configure, 2, PAGE) == [
        *configure[:2],
        f"-DCMAKE_SHARED_LINKER_FLAGS=-s -Wl,-z,max-page-size={PAGE}",
        "-DANDROID_SUPPORT_FLEXIBLE_PAGE_SIZES=ON",
    ]
    copy = ["-E", "copy", "a", "b"]
    assert cmakeshim.rewrite(copy, 2, PAGE) == copy


def test_a_debug_key_is_a_stage(android_tools: None, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "mlc" / "debugkey.py")],
        env={
            **os.environ,
            "PYTHONPATH": str(SCRIPTS),
            "KILN_OUT": str(tmp_path),
            "KILN_PARAMS": str(tmp_path / "none"),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    events = [json.loads(line)["event"] for line in done.stdout.splitlines()]
    assert events == ["note", "usage"]
    assert (tmp_path / "key" / "debug.keystore").is_file()


# In place of Gradle, which wants Google's Maven: looks at what it was given, hands over an APK.
GRADLE = """#!/bin/sh
set -e
echo "$@" > "$TRIAL/words"
[ "$1" = --project-dir ] && cd "$2"
test -f dist/lib/mlc4j/build.gradle && test ! -e dist/old && test -w app
cat local.properties > "$TRIAL/properties"
echo "$GRADLE_USER_HOME" > "$TRIAL/home"
[ -e "$TRIAL/fail" ] && {
    printf '%s\\n' "FAILURE: Build failed with an exception." "" "* What went wrong:" \\
        "Could not determine java version from '21'." "" "BUILD FAILED in 3s"
    exit 1
}
mkdir -p app/build/outputs/apk/release
cp "$TRIAL/raw.apk" app/build/outputs/apk/release/app-release-unsigned.apk
"""


def test_the_apk_stage_around_gradle(raw: Path, tmp_path: Path) -> None:
    trial, package, sdk = tmp_path, tmp_path / "package", tmp_path / "sdk"
    app = tmp_path / "mlc-llm" / "android" / "MLCChat"
    for folder in (package / "mlc4j", sdk / "platforms", app / "app", app / "dist" / "old"):
        folder.mkdir(parents=True)
    (package / "mlc4j" / "build.gradle").write_text("plugins {}")
    (app / "settings.gradle").write_text("include ':app'")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gradle").write_text(GRADLE)
    (tmp_path / "bin" / "gradle").chmod(0o755)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "package").symlink_to(package)
    (tmp_path / "params.json").write_text(json.dumps({"build": "release"}))

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(SCRIPTS / "mlc" / "apk.py")],
            env={
                "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
                "PYTHONPATH": str(SCRIPTS),
                "ANDROID_HOME": str(sdk),
                "MLC_LLM_SOURCE_DIR": str(tmp_path / "mlc-llm"),
                "KILN_IN": str(tmp_path / "in"),
                "KILN_OUT": str(tmp_path / "out"),
                "KILN_PARAMS": str(tmp_path / "params.json"),
                "KILN_CPUS": "3",
                "TRIAL": str(trial),
            },
            capture_output=True,
            text=True,
            check=False,
        )

    (trial / "fail").write_text("")
    failed = run()
    assert failed.returncode == 1
    assert "gradle ended with 1: Could not determine java version" in failed.stdout
    shutil.rmtree(tmp_path / "out")
    (trial / "fail").unlink()

    done = run()
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "out" / "apk-report" / "apk.json").read_text())
    assert (told["build"], told["abis"], told["page_size"]) == ("release", ["arm64-v8a"], PAGE)
    assert apkfile.misaligned(tmp_path / "out" / "apk" / "MLCChat.apk", PAGE) == []
    words = (trial / "words").read_text().split()
    assert words[-1] == "assembleRelease"
    assert {"--no-daemon", "--max-workers=3"} <= set(words)
    assert (trial / "properties").read_text() == f"sdk.dir={sdk}\n"
    assert not Path((trial / "home").read_text().strip()).exists(), "all of it was scratch"
    assert sorted(f.name for f in app.iterdir()) == ["app", "dist", "settings.gradle"]
