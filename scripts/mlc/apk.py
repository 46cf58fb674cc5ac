"""Stage: MLCChat, upstream's Android app, with a package in it: assembled, aligned, signed.

Inputs: `package`; `keystore` with `signing` (a keystore.properties), else `debug_keystore`, else
a key made for this run alone; `source`, a checkout of mlc-llm. Parameters: build ("debug" or
"release"), page_size. Outputs: `apk` with MLCChat.apk, `apk-report` with apk.json.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import mlctool

import apksign
import gradlerun
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
    return apksign.finish(assembled, apk, work, _key(stage, work / "secrets"), page_size)


def _key(stage: Stage, folder: Path) -> apksign.Key:
    """The user's key, the debug key that is kept, or one for this run."""
    if stage.has("keystore"):
        signing = stage.input("signing") if stage.has("signing") else None
        return apksign.users_key(stage.input("keystore"), signing, folder)
    if stage.has("debug_keystore"):
        kept = stage.input("debug_keystore")
        return apksign.debug_key(kept / "debug.keystore" if kept.is_dir() else kept, folder)
    stage.note("signed with a key made for this build: an update will not install over it")
    return apksign.fresh_key(folder)


def _assemble(stage: Stage, build: str, package: Path, work: Path) -> Path:
    """Run Gradle on a copy of the app with the package in it; the APK it made."""
    app = work / _APP
    shutil.copytree(_app_source(stage), app, ignore=shutil.ignore_patterns("dist", "build"))
    shutil.copytree(package / "mlc4j", app / "dist" / "lib" / "mlc4j")
    return gradlerun.assemble(app, _BUILDS[build], work, cpus=stage.cpus)


def _app_source(stage: Stage) -> Path:
    app = mlctool.sources(stage) / "android" / _APP
    if not (app / "settings.gradle").is_file():
        raise BadInput(f"the mlc-llm source has no android/{_APP}", remedy="give a whole checkout")
    return app


if __name__ == "__main__":
    main(run)
