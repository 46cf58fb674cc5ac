"""Stage: MnnLlmChat, MNN's Android app, assembled around the runtime that was built.

Input: `runtime` (runtime.py's, for android, in one library: the app links libMNN.so and nothing
beside it). Output: the folder `app` with MnnLlmChat.apk and app.json. Parameter: build ("debug").
From the environment: MNN_SOURCE_DIR, ANDROID_HOME, ANDROID_NDK. Gradle fetches the app's
libraries, and a speech library from its makers' own address, so this stage has a network, and
what it makes is not the same byte for byte.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import apksign
import gradlerun
from stagekit import BadInput, Stage, main

PAGE = 16384
ABI = "arm64-v8a"
APP = "apps/Android/MnnLlmChat"
# Where the app's CMakeLists looks for what MNN's own script installs.
INSTALLED = "project/android/build_64/lib"
TASKS = {"debug": "assembleStandardDebug"}
_LEFT_OUT = shutil.ignore_patterns(".git", "docs", "doc", "pymnn", "build", ".gradle")


def run(stage: Stage) -> None:
    """Assemble, align, sign, look into it."""
    build = stage.param("build", str, "debug")
    if build not in TASKS:
        raise BadInput(f"there is no build {build!r}", remedy="one of: " + ", ".join(TASKS))
    library = stage.input("runtime") / ABI / "libMNN.so"
    if not library.is_file():
        raise BadInput("the runtime holds no libMNN.so for a phone", remedy="--runtime android")
    out = stage.output("app")
    out.mkdir(parents=True)
    apk = out / "MnnLlmChat.apk"
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        app = lay_out(library, work)
        assembled = gradlerun.assemble(app, TASKS[build], work, cpus=stage.cpus)
        key = apksign.fresh_key(work / "secrets")
        told = {"build": build, **apksign.finish(assembled, apk, work, key, PAGE)}
    text = json.dumps(told, indent=1, sort_keys=True)
    (out / "app.json").write_text(text + "\n", encoding="utf-8", newline="\n")
    stage.note(f"MnnLlmChat.apk, {told['bytes']:,} bytes, with a key made for this build")


def lay_out(library: Path, work: Path) -> Path:
    """The sources with the built library where the app looks for it; gives the app's folder."""
    source = Path(os.environ.get("MNN_SOURCE_DIR", ""))
    if not (source / APP / "settings.gradle").is_file():
        raise BadInput(f"MNN_SOURCE_DIR names no folder with {APP}")
    shutil.copytree(source, work / "MNN", symlinks=True, ignore=_LEFT_OUT)
    installed = work / "MNN" / INSTALLED
    installed.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(library, installed / library.name)
    return work / "MNN" / APP


if __name__ == "__main__":
    main(run)
