"""An Android app assembled by Gradle, whose own files go into the scratch folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import toolcall


def assemble(app: Path, task: str, work: Path, *, cpus: int) -> Path:
    """Run a task in the app's folder, and give the one APK it made.

    Raises RuntimeError where the toolchain has no Gradle or no Android SDK, where Gradle fails,
    and where it ends well without an APK.
    """
    gradle, sdk = shutil.which("gradle"), os.environ.get("ANDROID_HOME", "")
    if gradle is None or not (Path(sdk) / "platforms").is_dir():
        raise RuntimeError("the toolchain has no Gradle, or ANDROID_HOME is no Android SDK")
    (app / "local.properties").write_text(f"sdk.dir={sdk}\n", encoding="utf-8")
    words = [gradle, "--project-dir", str(app), "--no-daemon", "--console=plain"]
    words += [f"--max-workers={cpus}", "--stacktrace", task]
    homes = {"GRADLE_USER_HOME": str(work / "gradle"), "ANDROID_USER_HOME": str(work / "android")}
    toolcall.call("gradle", words, {**os.environ, **homes})
    made = sorted((app / "app/build/outputs/apk").rglob("*.apk"))
    if len(made) != 1:
        raise RuntimeError(f"Gradle ended well and made {len(made)} packages")
    return made[0]
