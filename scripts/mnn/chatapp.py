"""Stage: MnnLlmChat, MNN's Android app, assembled around the runtime that was built.

Input: `runtime` (runtime.py's, for android, in one library: the app links libMNN.so and nothing
beside it). Output: the folder `app` with MnnLlmChat.apk and app.json. Parameter: build ("debug").
From the environment: MNN_SOURCE_DIR, ANDROID_HOME, ANDROID_NDK. Gradle fetches the app's
libraries, and a speech library from its makers' own address, so this stage has a network, and
what it makes is not the same byte for byte.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import apkfile
import apksign
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
        assembled = _assemble(stage, app, build, work)
        signer = _sign(assembled, apk, work)
    told = {
        "build": build,
        "bytes": apk.stat().st_size,
        "sha256": hashlib.sha256(apk.read_bytes()).hexdigest(),
        "abis": apkfile.abis(apk),
        "signed_by": signer,
    }
    if wrong := apkfile.misaligned(apk, PAGE):
        raise RuntimeError(f"{', '.join(wrong)} do not begin on a page of {PAGE} bytes")
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
    app = work / "MNN" / APP
    sdk = os.environ.get("ANDROID_HOME", "")
    (app / "local.properties").write_text(f"sdk.dir={sdk}\n", encoding="utf-8")
    return app


def _assemble(stage: Stage, app: Path, build: str, work: Path) -> Path:
    gradle = shutil.which("gradle")
    if gradle is None:
        raise RuntimeError("the toolchain has no Gradle")
    words = [gradle, "--project-dir", str(app), "--no-daemon", "--console=plain"]
    words += [f"--max-workers={stage.cpus}", "--stacktrace", TASKS[build]]
    homes = {"GRADLE_USER_HOME": str(work / "gradle"), "ANDROID_USER_HOME": str(work / "android")}
    print(f"$ {' '.join(words)}", file=sys.stderr, flush=True)
    done = subprocess.run(words, env={**os.environ, **homes}, stdout=sys.stderr, check=False)
    if done.returncode:
        raise RuntimeError(f"gradle ended with {done.returncode}; the log has its words")
    made = sorted((app / "app/build/outputs/apk").rglob("*.apk"))
    if len(made) != 1:
        raise RuntimeError(f"gradle ended well and made {len(made)} packages")
    return made[0]


def _sign(assembled: Path, apk: Path, work: Path) -> str:
    secrets = work / "secrets"
    secrets.mkdir()
    keystore, aligned = secrets / "debug.keystore", work / "aligned.apk"
    apksign.make_debug_keystore(keystore, secrets)
    apksign.align(assembled, aligned, PAGE)
    signed = apksign.sign(aligned, apk, apksign.debug_key(keystore, secrets))
    apk.with_name(f"{apk.name}.idsig").unlink(missing_ok=True)
    return str(signed.subject)


if __name__ == "__main__":
    main(run)
