"""The stage that assembles MnnLlmChat: a stand-in for Gradle, and Android's own tools after it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.stages import Ran, run_stage
from tests.unit import tinyapk

APP = "apps/Android/MnnLlmChat"
# Looks for what the app's CMakeLists would, and leaves a package where Gradle does.
_GRADLE = """#!/bin/sh
set -e
app="$2"
shift 2
echo "$@" >"$LOG"
cmp "$app/../../../project/android/build_64/lib/libMNN.so" "$LIBRARY"
grep -q "^sdk.dir=" "$app/local.properties"
case "$GRADLE_USER_HOME" in /*) ;; *) exit 9;; esac
[ -z "$FAILS" ] || { echo "Could not resolve com.android.tools.build:gradle:8.7.3"; exit 1; }
made="$app/app/build/outputs/apk/standard/debug"
mkdir -p "$made"
[ -n "$SILENT" ] || cp "$APK" "$made/app-standard-debug.apk"
"""


class Stand:
    """The stage's input and surroundings."""

    def __init__(self, place: Path) -> None:
        self.place = place
        library = place / "runtime" / "arm64-v8a" / "libMNN.so"
        library.parent.mkdir(parents=True)
        library.write_bytes(tinyapk.library(place, 16384))
        (place / "mnn" / APP).mkdir(parents=True)
        (place / "mnn" / APP / "settings.gradle").write_text("// stand-in\n", encoding="utf-8")
        (place / "bin").mkdir()
        (place / "sdk" / "platforms").mkdir(parents=True)
        (place / "bin" / "gradle").write_text(_GRADLE, encoding="utf-8")
        (place / "bin" / "gradle").chmod(0o755)
        libraries = {"lib/arm64-v8a/libMNN.so": library.read_bytes()}
        # As Gradle leaves it: the library stored where it happens to lie.
        raw = tinyapk.make(place / "raw.apk", key=None, libraries=libraries, boundary=4)
        self.env = {
            "PATH": f"{place / 'bin'}:{os.environ['PATH']}",
            "MNN_SOURCE_DIR": str(place / "mnn"),
            "ANDROID_HOME": str(place / "sdk"),
            "APK": str(raw),
            "LIBRARY": str(library),
            "LOG": str(place / "gradle.log"),
        }

    def run(self, params: dict[str, Any] | None = None, **env: str) -> Ran:
        inputs = {"runtime": self.place / "runtime"}
        env = {**self.env, **env}
        return run_stage("mnn/chatapp", self.place, inputs=inputs, params=params, env=env)


@pytest.fixture
def stand(tmp_path: Path) -> Stand:
    tinyapk.need_tools()
    return Stand(tmp_path)


def test_the_app_is_assembled_aligned_and_signed(stand: Stand) -> None:
    ran = stand.run()
    assert ran.code == 0, ran.log
    told = ran.made("app/app.json")
    assert told["abis"] == ["arm64-v8a"]
    assert "Android Debug" in told["signed_by"]
    assert sorted(f.name for f in (ran.out / "app").iterdir()) == ["MnnLlmChat.apk", "app.json"]
    apk = ran.out / "app" / "MnnLlmChat.apk"
    assert apk.stat().st_size == told["bytes"]
    subprocess.run(["apksigner", "verify", str(apk)], check=True, capture_output=True)
    words = (stand.place / "gradle.log").read_text(encoding="utf-8")
    assert "--no-daemon" in words and "--max-workers=2" in words
    assert words.split()[-1] == "assembleStandardDebug"


def test_gradle_that_cannot_fetch_is_a_fault_with_its_words(stand: Stand) -> None:
    ran = stand.run(FAILS="1")
    assert ran.code == 1
    assert "gradle ended with 1: Could not resolve com.android" in ran.error


def test_gradle_that_ends_well_and_makes_nothing_is_a_fault(stand: Stand) -> None:
    ran = stand.run(SILENT="1")
    assert ran.code == 1
    assert "made 0 packages" in ran.error


@pytest.mark.parametrize(
    ("params", "env", "what"),
    [
        ({"build": "release"}, {}, "no build 'release'"),
        ({}, {"MNN_SOURCE_DIR": "/nowhere"}, "MNN_SOURCE_DIR"),
    ],
)
def test_what_cannot_be_built_is_bad_input(
    stand: Stand, params: dict[str, Any], env: dict[str, str], what: str
) -> None:
    ran = stand.run(params, **env)
    assert ran.code == 64
    assert what in ran.error


def test_a_runtime_for_hosts_is_bad_input(stand: Stand) -> None:
    (stand.place / "runtime" / "arm64-v8a").rename(stand.place / "runtime" / "x86_64")
    ran = stand.run()
    assert ran.code == 64
    assert "libMNN.so for a phone" in ran.error
