"""Stage: mlc_llm package: models' libraries linked into mlc4j, the Android library of an app.

Inputs: for each model a library, a config and weights, under the names that `models` says;
`source`, a checkout of mlc-llm in place of the toolchain's. Parameters: models, device, page_size.
Outputs: `package` with mlc4j/, mlc-app-config.json and bundle/MODEL_ID/ of models that travel with
their weights; `package-report` with package.json.

The configuration is checked before a tool is started. Cargo writes a lock file into the source, so
the source is copied into the scratch folder; nothing is downloaded or compiled just in time.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cmakeshim
import mlclog
import mlctool
import objects
import objfile

import toolcall
from stagekit import BadInput, Stage, main

_RUST_TARGET = "aarch64-linux-android"
_LLVM_TOOLS = ("llvm-ar", "llvm-ranlib", "llvm-nm")
_PROGRAMS = ("cmake", "cargo", "rustc", "java", "javac")
_LIBRARY = "output/arm64-v8a/libtvm4j_runtime_packed.so"
_APP_CONFIG = "src/main/assets/mlc-app-config.json"
_EXPECTED = (
    "build.gradle",
    _LIBRARY,
    "output/tvm4j_core.jar",
    "src/cpp/tvm_runtime.h",
    "src/main/AndroidManifest.xml",
    _APP_CONFIG,
)
_NOT_COPIED = shutil.ignore_patterns(".git", "build", "dist", "target", "node_modules")
_HUB = ("HF://", "https://huggingface.co/")
# mlc_llm ends so when a model_lib is not in the library it has linked.
_VALIDATION_FAILED = 255
_RUSTUP = """#!/bin/sh
# prepare_libs.py adds the target on every run, over the network. It is there already.
sysroot=$(rustc --print sysroot) || exit 1
[ -d "$sysroot/lib/rustlib/{target}" ] && exit 0
echo "rustc in $sysroot has no standard library for {target}" >&2
exit 1
"""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model of the package: what the app calls it, where its parts lie, how it travels."""

    model_id: str
    model_lib: str
    library: Path
    config: Path
    weights: Path
    bundle_weight: bool
    hub: str
    estimated_vram_bytes: int


def run(stage: Stage) -> None:
    """Check, lay out, package, look at what came of it."""
    device = stage.param("device", str, "android")
    if device != "android":
        raise BadInput(
            f"no package for {device} here", remedy="iphone and macabi need Xcode on a Mac"
        )
    models = read_models(stage)
    check(models)
    tools = check_tools()
    page_size = stage.param("page_size", int, 16384)
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        source = _copy_source(stage, work / "mlc-llm")
        config = lay_out(models, work)
        _put_shims(work / "bin", tools, stage.cpus, page_size)
        dist = _package(stage, work, source, config)
        made = _collect(stage, dist, models)
    report = _report(made, models, page_size)
    place = stage.output("package-report")
    place.mkdir()
    text = json.dumps(report, indent=2)
    (place / "package.json").write_text(f"{text}\n", encoding="utf-8", newline="\n")
    stage.note(f"mlc4j with {len(models)} models, pages of {min(report['load_align']):,} bytes")


def read_models(stage: Stage) -> list[Model]:
    """The models that the parameters name, with their inputs."""
    entries = stage.param("models", list, [])
    if not entries:
        raise BadInput("the package has no model", remedy="name at least one")
    found = []
    for entry in entries:
        folder = stage.input(entry["library"])
        found.append(
            Model(
                model_id=entry["model_id"],
                model_lib=entry["model_lib"],
                library=folder / entry["file"],
                config=stage.input(entry["config"]),
                weights=stage.input(entry["weights"]),
                bundle_weight=bool(entry.get("bundle_weight")),
                hub=entry.get("hub") or "",
                estimated_vram_bytes=int(entry["estimated_vram_bytes"]),
            )
        )
    return found


def check(models: Sequence[Model]) -> None:
    """Hold every model's model_lib against the symbols of its library.

    Raises BadInput for the mistakes that mlc_llm would find after minutes, or an app when it runs.
    """
    for name in ("model_id", "model_lib"):
        named = [getattr(model, name) for model in models]
        for value in named:
            others = {m.library for m in models if getattr(m, name) == value}
            if named.count(value) > 1 and (name == "model_id" or len(others) > 1):
                raise BadInput(
                    f"two models of the package have the {name} {value}",
                    remedy="give each a --system-lib-prefix of its own"
                    if name == "model_lib"
                    else "give each a name of its own",
                )
    for model in models:
        check_library(model.model_lib, model.library)


def check_library(model_lib: str, library: Path) -> None:
    """Raise BadInput where a library is not one for Android that is called `model_lib`."""
    if not library.is_file():
        raise BadInput(
            f"the library {library.name} of {model_lib} is not there", remedy="compile it first"
        )
    # mlc_llm looks for a name that a symbol can have.
    objects.look(library, target="android", prefix=f"{model_lib.replace('-', '_')}_")


def check_tools() -> dict[str, str]:
    """Where CMake and the others lie. Raises RuntimeError where the toolchain is not whole."""
    ndk, compiler = os.environ.get("ANDROID_NDK", ""), os.environ.get("TVM_NDK_CC", "")
    if not (Path(ndk) / "build/cmake/android.toolchain.cmake").is_file():
        raise RuntimeError(f"ANDROID_NDK ({ndk or 'not set'}) is no NDK")
    beside = Path(compiler).parent
    wanted = [Path(compiler), *(beside / tool for tool in _LLVM_TOOLS)]
    missing = [str(tool) for tool in wanted if not os.access(tool, os.X_OK)]
    if missing or not compiler:
        raise RuntimeError(f"TVM_NDK_CC ({compiler or 'not set'}): no {', '.join(missing)}")
    found = {program: shutil.which(program) or "" for program in _PROGRAMS}
    missing = [program for program, place in found.items() if not place]
    if missing:
        raise RuntimeError(f"the toolchain has no {', '.join(missing)}")
    return found


def _copy_source(stage: Stage, folder: Path) -> Path:
    """mlc-llm's sources, where Cargo may write its lock file."""
    source = mlctool.sources(stage)
    wanted = ("android/mlc4j/prepare_libs.py", "3rdparty/tvm/jvm", "3rdparty/tokenizers-cpp/rust")
    missing = [name for name in wanted if not (source / name).exists()]
    if missing:
        raise BadInput(
            f"the mlc-llm source has no {', '.join(missing)}",
            remedy="give a whole checkout, with its submodules",
        )
    stage.note("copying mlc-llm's sources")
    shutil.copytree(source, folder, symlinks=True, ignore=_NOT_COPIED)
    for place in (folder, *folder.rglob("*")):
        if place.is_dir() and not place.is_symlink():
            place.chmod(place.stat().st_mode | stat.S_IWUSR)
    return folder


def lay_out(models: Sequence[Model], work: Path) -> Path:
    """Put models and libraries below `work` under their own names, and write the configuration.

    Every model is local and bundled for mlc_llm: so it downloads nothing.
    """
    entries, libraries = [], {}
    for model in models:
        folder = work / "models" / model.model_id
        folder.mkdir(parents=True)
        for part in (model.config, model.weights):
            for file in sorted(part.iterdir()):
                (folder / file.name).symlink_to(file.resolve())
        library = work / "libraries" / f"{model.model_lib}.tar"
        library.parent.mkdir(exist_ok=True)
        if not library.exists():
            library.symlink_to(model.library.resolve())
        libraries[model.model_lib] = f"libraries/{library.name}"
        entries.append(
            {
                "model": f"models/{model.model_id}",
                "model_id": model.model_id,
                "model_lib": model.model_lib,
                "estimated_vram_bytes": model.estimated_vram_bytes,
                "bundle_weight": True,
            }
        )
    config = {
        "device": "android",
        "model_list": entries,
        "model_lib_path_for_prepare_libs": libraries,
    }
    file = work / "mlc-package-config.json"
    file.write_text(f"{json.dumps(config, indent=2)}\n", encoding="utf-8", newline="\n")
    return file


def _put_shims(folder: Path, tools: Mapping[str, str], jobs: int, page_size: int) -> None:
    """Our cmake and rustup, to come first on PATH."""
    folder.mkdir()
    texts = {
        "cmake": cmakeshim.script(sys.executable, tools["cmake"], jobs, page_size),
        "rustup": _RUSTUP.format(target=_RUST_TARGET),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
        (folder / name).chmod(0o755)


def _package(stage: Stage, work: Path, source: Path, config: Path) -> Path:
    """Run mlc_llm package in `work`, where it leaves build/ and dist/."""
    # The image's own mlc_llm drives: prepare_libs.py imports it whole, its library with it, which
    # a checkout need not have.
    more = {
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        "MLC_LLM_SOURCE_DIR": str(source),
        "PATH": os.pathsep.join([str(work / "bin"), os.environ.get("PATH", os.defpath)]),
        "CARGO_HOME": str(work / "cargo"),
        "CARGO_BUILD_JOBS": str(stage.cpus),
        "CMAKE_BUILD_PARALLEL_LEVEL": str(stage.cpus),
    }
    if shutil.which("make") is None:
        more["CMAKE_GENERATOR"] = "Ninja"
    java = shutil.which("java")
    if "JAVA_HOME" not in os.environ and java:
        more["JAVA_HOME"] = str(Path(java).resolve().parents[1])
    words = ["package", "--package-config", config.name, "--output", "dist"]
    try:
        mlctool.run(stage, words, more=more, cwd=work, told=None)
    except toolcall.ToolError as error:
        _explain(error)
        raise
    return work / "dist"


def _explain(error: toolcall.ToolError) -> None:
    """Exit code 255, in words. Others pass: their own words are in the log."""
    refused = mlclog.refused(error.lines)
    if error.code != _VALIDATION_FAILED or refused is None:
        return
    there = ", ".join(refused.there)
    raise BadInput(
        f"mlc_llm package refused {', '.join(refused.asked)}: the linked library has "
        f"{there or 'no model it can find'}",
        remedy=f"model_lib must be one of {there}"
        if there
        else "another version of mlc_llm compiled the libraries: compile them with this one",
    )


def _collect(stage: Stage, dist: Path, models: Sequence[Model]) -> Path:
    """Move what is wanted into the output. Raises RuntimeError where something is missing."""
    mlc4j = dist / "lib" / "mlc4j"
    missing = [name for name in _EXPECTED if not (mlc4j / name).is_file()]
    if missing:
        raise RuntimeError(f"mlc_llm package ended well and wrote no {', '.join(missing)}")
    out = stage.output("package")
    out.mkdir(parents=True)
    app_config = mlc4j / _APP_CONFIG
    text = app_config_text(json.loads(app_config.read_text(encoding="utf-8")), models)
    app_config.write_text(text, encoding="utf-8", newline="\n")
    shutil.copytree(mlc4j, out / "mlc4j")
    shutil.copyfile(app_config, out / "mlc-app-config.json")
    for model in models:
        if model.bundle_weight:
            shutil.copytree(dist / "bundle" / model.model_id, out / "bundle" / model.model_id)
    return out


def app_config_text(config: dict[str, Any], models: Sequence[Model]) -> str:
    """mlc-app-config.json with each model's Hub address in place of a path of this machine.

    A model without one is found on the phone by its name; the app wants a text all the same.
    """
    addresses = {model.model_id: model.hub.replace(*_HUB) or model.model_id for model in models}
    for entry in config["model_list"]:
        entry["model_url"] = addresses[entry["model_id"]]
    return f"{json.dumps(config, indent=2)}\n"


def _report(made: Path, models: Sequence[Model], page_size: int) -> dict[str, Any]:
    library = made / "mlc4j" / _LIBRARY
    data = library.read_bytes()
    aligns = objfile.load_alignments(data)
    if not aligns or any(align % page_size for align in aligns):
        raise RuntimeError(
            f"{library.name} is aligned to {aligns} bytes, which pages of {page_size} cannot load"
        )
    head = objfile.read(library.name, data)
    if head.machine != "aarch64":
        raise RuntimeError(f"{library.name} is for {head.machine}, not for arm64-v8a")
    properties = Path(os.environ["ANDROID_NDK"]) / "source.properties"
    lines = properties.read_text(encoding="utf-8").splitlines() if properties.exists() else []
    return {
        "page_size": page_size,
        "load_align": aligns,
        "libraries": [{"model_id": m.model_id, "model_lib": m.model_lib} for m in models],
        "bundled": [m.model_id for m in models if m.bundle_weight],
        "ndk": next((ln.split("=")[1].strip() for ln in lines if "Pkg.Revision" in ln), ""),
        "bytes": sum(f.stat().st_size for f in made.rglob("*") if f.is_file()),
        "library_bytes": len(data),
    }


if __name__ == "__main__":
    main(run)
