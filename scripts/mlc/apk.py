"""Stage: MLCChat, upstream's Android app, with a package in it: assembled, aligned, signed.

Inputs: `package`; `keystore` with `signing` (a keystore.properties), else `debug_keystore`, else
a key made for this run alone; `source`, a checkout of mlc-llm. Parameters: build ("debug" or
"release"), page_size. Outputs: `apk` with MLCChat.apk, `apk-report` with apk.json.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import mlctool

import apkfile
import apksign
from stagekit import BadInput, Stage, main

_APP = "MLCChat"
_BUILDS = {"debug": "assembleDebug", "release": "assembleRelease"}


def run(stage: Stage) -> None:
    """Assemble, align, sign, verify."""
    build = stage.param("build", str, "debug")
    if build not in _BUILDS:
        raise BadInput(f"there is no build {build!r}", remedy=f"there are {', '.join(_BUILDS)}")
    package = stage.input("package")
    if not (package / "mlc4j" / "build.gradle").is_file():
        raise BadInput("the package holds no mlc4j", remedy="package the models first")
    page_size = stage.param("page_size", int, 16384)
    out = stage.output("apk")
    out.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        assembled = _assemble(stage, build, package, work)
        report = finish(stage, assembled, out / f"{_APP}.apk", work, page_size)
    report = {"build": build, **report}
    place = stage.output("apk-report")
    place.mkdir()
    text = json.dumps(report, indent=2)
    (place / "apk.json").write_text(f"{text}\n", encoding="utf-8", newline="\n")
    stage.note(f"{_APP}.apk, {report['bytes']:,} bytes, signed by {report['signed_by']}")


def finish(
    stage: Stage, assembled: Path, apk: Path, work: Path, page_size: int
) -> dict[str, object]:
    """Align and sign what Gradle made, and tell what it is."""
    aligned = work / "aligned.apk"
    apksign.align(assembled, aligned, page_size)
    signed = apksign.sign(aligned, apk, _key(stage, work / "secrets"))
    wrong = apkfile.misaligned(apk, page_size)
    if wrong:
        raise RuntimeError(f"signing moved {', '.join(wrong)} away from its page")
    apk.with_name(f"{apk.name}.idsig").unlink(missing_ok=True)
    return {
        "signed_by": signed.subject,
        "signer_sha256": signed.digest,
        "schemes": list(signed.schemes),
        "abis": apkfile.abis(apk),
        "page_size": page_size,
        "bytes": apk.stat().st_size,
        "sha256": hashlib.sha256(apk.read_bytes()).hexdigest(),
    }


def _key(stage: Stage, folder: Path) -> apksign.Key:
    """The user's key, the debug key that is kept, or one for this run."""
    if stage.has("keystore"):
        signing = stage.input("signing") if stage.has("signing") else None
        return apksign.users_key(stage.input("keystore"), signing, folder)
    if stage.has("debug_keystore"):
        kept = stage.input("debug_keystore")
        return apksign.debug_key(kept / "debug.keystore" if kept.is_dir() else kept, folder)
    keystore = folder / "debug.keystore"
    folder.mkdir(parents=True)
    apksign.make_debug_keystore(keystore, folder)
    stage.note("signed with a key made for this build: an update will not install over it")
    return apksign.debug_key(keystore, folder)


def _assemble(stage: Stage, build: str, package: Path, work: Path) -> Path:
    """Run Gradle on a copy of the app with the package in it; the APK it made."""
    app = work / _APP
    shutil.copytree(_app_source(stage), app, ignore=shutil.ignore_patterns("dist", "build"))
    shutil.copytree(package / "mlc4j", app / "dist" / "lib" / "mlc4j")
    sdk = os.environ.get("ANDROID_HOME", "")
    (app / "local.properties").write_text(f"sdk.dir={sdk}\n", encoding="utf-8")
    gradle = shutil.which("gradle")
    if gradle is None or not (Path(sdk) / "platforms").is_dir():
        raise RuntimeError("the toolchain has no Gradle, or ANDROID_HOME is no Android SDK")
    words = [gradle, "--project-dir", str(app), "--no-daemon", "--console=plain"]
    words += [f"--max-workers={stage.cpus}", "--stacktrace", _BUILDS[build]]
    env = {
        **mlctool.environment(stage),
        "GRADLE_USER_HOME": str(work / "gradle"),
        "ANDROID_USER_HOME": str(work / "android"),
    }
    mlctool.call("gradle", words, env)
    made = sorted((app / "app/build/outputs/apk" / build).glob("*.apk"))
    if len(made) != 1:
        raise RuntimeError(f"Gradle ended well and made {len(made)} packages")
    return made[0]


def _app_source(stage: Stage) -> Path:
    if stage.has("source"):
        given = stage.input("source").resolve()
        source = given if (given / "android").is_dir() else given.parent
    else:
        source = Path(os.environ.get("MLC_LLM_SOURCE_DIR", ""))
    app = source / "android" / _APP
    if not (app / "settings.gradle").is_file():
        raise BadInput(f"the mlc-llm source has no android/{_APP}", remedy="give a whole checkout")
    return app


if __name__ == "__main__":
    main(run)
