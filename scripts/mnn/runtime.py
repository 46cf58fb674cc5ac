"""Stage: MNN's runtime, built out of its sources: for the phone, for this machine, or its tools.

Input: `sdk`, the vendor's QAIRT SDK, where the QNN backend goes in. Output: the folder `runtime`
with arm64-v8a/ (or x86_64/) and runtime.json. Parameters: kind ("android"; "host", with the
converter; "convert", the host tools that make NPU binaries), separate (a library for each part).
From the environment: MNN_SOURCE_DIR and, for the phone, ANDROID_NDK.

In one library (MNN_SEP_BUILD=OFF, as MNN's own Android script and its chat app have it) MNN's
CMake links the language model runtime into libMNN.so: there is no libllm.so then. With `separate`
there is, and libMNN_Express.so, libMNN_CL.so and others beside it.

The sources are copied into the scratch folder, since MNN's CMake writes into them, and paths are
mapped to fixed ones: nothing in what is built names this machine, and two builds are the same.
What came out is looked into before it is handed on.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import elfparts
import toolcall
from stagekit import BadInput, Stage, main

PAGE = 16384
API = 28
ABI = {"android": "arm64-v8a", "host": "x86_64", "convert": "x86_64"}
_MACHINE = {"arm64-v8a": elfparts.AARCH64, "x86_64": elfparts.X86_64}
# What language models need, on every machine (MNN 3.6.1's transformers/llm and its CMakeLists).
_LLM = {
    "CMAKE_BUILD_TYPE": "Release",
    "MNN_BUILD_LLM": "ON",
    "MNN_BUILD_LLM_OMNI": "ON",
    "MNN_LOW_MEMORY": "ON",
    "MNN_CPU_WEIGHT_DEQUANT_GEMM": "ON",
    "MNN_SUPPORT_TRANSFORMER_FUSE": "ON",
    "MNN_BUILD_TEST": "OFF",
    "MNN_BUILD_BENCHMARK": "OFF",
}
_PAGES = f"-Wl,-z,max-page-size={PAGE}"
_ANDROID = {
    "ANDROID_ABI": "arm64-v8a",
    "ANDROID_PLATFORM": f"android-{API}",
    "ANDROID_STL": "c++_static",
    # NDK r27's own switch for pages of 16 KB; the linker flags say it to older ones.
    "ANDROID_SUPPORT_FLEXIBLE_PAGE_SIZES": "ON",
    "CMAKE_SHARED_LINKER_FLAGS": _PAGES,
    "CMAKE_EXE_LINKER_FLAGS": _PAGES,
    "MNN_BUILD_FOR_ANDROID_COMMAND": "ON",
    "MNN_USE_LOGCAT": "OFF",
    "MNN_ARM82": "ON",
    "MNN_OPENCL": "ON",
    "MNN_BUILD_TOOLS": "OFF",
    "NATIVE_LIBRARY_OUTPUT": ".",
    "NATIVE_INCLUDE_OUTPUT": ".",
}
_HOST = {"MNN_BUILD_CONVERTER": "ON", "MNN_BUILD_TOOLS": "OFF"}
_CONVERT = {
    "MNN_BUILD_TOOLS": "ON",
    "MNN_QNN": "ON",
    "MNN_QNN_CONVERT_MODE": "ON",
    "MNN_QNN_ONLINE_FINALIZE": "ON",
    "MNN_WITH_PLUGIN": "OFF",
}
_PROGRAMS = {
    "android": ("llm_demo", "llm_bench"),
    "host": ("llm_demo", "llm_bench", "MNNConvert"),
    "convert": ("generateIO", "compilefornpu", "MNN2QNNModel"),
}
# Never read by a build for these targets, and half of the tree.
_LEFT_OUT = shutil.ignore_patterns(".git", "apps", "docs", "doc", "pymnn")
# In libMNN.so, or in libllm.so where parts are separate: who makes a language model.
_CREATE = "Transformer3Llm9createLLM"
_SYSTEMS = re.compile(r"lib(c|m|dl|log|android|z|pthread|rt|stdc\+\+|gcc_s)\.so|ld-linux|libmvec")
_STEP = re.compile(r"^\[(\d+)/(\d+)\] ")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One build: what for, from where, and in which folder."""

    kind: str
    separate: bool
    source: Path
    ndk: Path | None
    sdk: Path | None
    work: Path

    @property
    def abi(self) -> str:
        """The folder its files go into."""
        return ABI[self.kind]


def run(stage: Stage) -> None:
    """Configure, build, gather, look into what came out, and write it down."""
    kind = stage.param("kind", str, "android")
    if kind not in ABI:
        raise BadInput(f"there is no runtime {kind}", remedy="one of: " + ", ".join(ABI))
    sdk = stage.input("sdk") if stage.has("sdk") else None
    if kind == "convert" and sdk is None:
        raise BadInput("the tools for the NPU need the vendor's SDK", remedy="give --qairt-sdk")
    source, ndk = _folder("MNN_SOURCE_DIR", "CMakeLists.txt"), None
    if kind == "android":
        ndk = _folder("ANDROID_NDK", "build/cmake/android.toolchain.cmake")
    separate = stage.param("separate", bool, False)
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        shutil.copytree(source, work / "MNN", symlinks=True, ignore=_LEFT_OUT)
        job = Job(
            kind=kind, separate=separate, source=work / "MNN", ndk=ndk, sdk=sdk, work=work / "build"
        )
        toolcall.call("cmake", configure_words(job), os.environ)
        _build(stage, job)
        out = stage.output("runtime")
        gather(job, out / job.abi)
        if kind == "convert":
            _keep_scripts(job, out)
        told = describe(out / job.abi, job)
    text = json.dumps(told, indent=1, sort_keys=True)
    (out / "runtime.json").write_text(text + "\n", encoding="utf-8", newline="\n")
    stage.note(f"MNN {told['mnn']} for {job.abi}: " + ", ".join(f["name"] for f in told["files"]))


def _folder(variable: str, holds: str) -> Path:
    place = os.environ.get(variable, "")
    if not place or not (Path(place) / holds).is_file():
        raise BadInput(
            f"{variable} names no folder with {holds}",
            remedy="the toolchain mnn-android sets it; `kiln images build mnn-android` tells more",
        )
    return Path(place).resolve()


def configure_words(job: Job) -> list[str]:
    """CMake's command line."""
    options = _LLM | {"MNN_SEP_BUILD": "ON" if job.separate else "OFF"}
    options |= {"android": _ANDROID, "host": _HOST, "convert": _CONVERT}[job.kind]
    if job.ndk is not None:
        options["CMAKE_TOOLCHAIN_FILE"] = str(job.ndk / "build/cmake/android.toolchain.cmake")
    if job.sdk is not None:
        options["QNN_SDK_ROOT"] = str(job.sdk)
        # On the phone the graphs are prepared: a plugin runs them, and nothing is compiled there.
        options |= {"MNN_QNN": "ON"}
        if job.kind == "android":
            options |= {"MNN_WITH_PLUGIN": "ON"}
    flags = f"-ffile-prefix-map={job.source}=/mnn -ffile-prefix-map={job.work}=/build"
    if job.sdk is not None:
        flags += f" -ffile-prefix-map={job.sdk}=/qairt"
    options |= {"CMAKE_C_FLAGS": flags, "CMAKE_CXX_FLAGS": flags}
    options["CMAKE_SKIP_RPATH"] = "ON"
    words = ["cmake", "-S", str(job.source), "-B", str(job.work), "-G", "Ninja"]
    return [*words, *(f"-D{name}={value}" for name, value in sorted(options.items()))]


def _build(stage: Stage, job: Job) -> None:
    """Run ninja on as many cores as the stage may use, and tell how far it is."""
    wanted = ["MNN", *_PROGRAMS[job.kind], *(["llm"] if job.separate else [])]
    words = ["cmake", "--build", str(job.work), "--parallel", str(stage.cpus), "--target", *wanted]
    print(f"$ {' '.join(words)}", file=sys.stderr, flush=True)
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdout=pipe, stderr=subprocess.STDOUT, text=True) as building:
        assert building.stdout is not None
        for line in building.stdout:
            sys.stderr.write(line)
            if step := _STEP.match(line):
                stage.progress(int(step[1]), int(step[2]), unit="steps", what="compile")
    if building.returncode:
        raise RuntimeError(f"the build ended with {building.returncode}; the log has its words")


def gather(job: Job, out: Path) -> None:
    """What was built, flat: libraries and programs, stripped where the build did not."""
    out.mkdir(parents=True)
    libraries = [p for p in sorted(job.work.rglob("lib*.so")) if "CMakeFiles" not in p.parts]
    for file in [*libraries, *(_program(job.work, name) for name in _PROGRAMS[job.kind])]:
        shutil.copyfile(file, out / file.name)
        (out / file.name).chmod(0o755)
    missing = {"libMNN.so", *(["libllm.so"] if job.separate else [])} - {p.name for p in libraries}
    if missing:
        raise RuntimeError(f"the build made no {', '.join(sorted(missing))}")


def _program(work: Path, name: str) -> Path:
    for file in sorted(work.rglob(name)):
        if file.is_file() and os.access(file, os.X_OK):
            return file
    raise RuntimeError(f"the build made no {name}")


def _keep_scripts(job: Job, out: Path) -> None:
    """MNN's scripts that drive the tools, where they expect each other: of the same tag."""
    for place in ("transformers/llm/export/npu", "source/backend/qnn"):
        for file in sorted((job.source / place).glob("*.py")):
            target = out / place / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)


def describe(folder: Path, job: Job) -> dict[str, Any]:
    """Each file looked into; RuntimeError for one that would not run where it is meant to."""
    files = [_file(path, job) for path in sorted(folder.iterdir())]
    runtime = folder / ("libllm.so" if job.separate else "libMNN.so")
    # What the tools are made of hides its symbols, and is linked into each of them.
    if job.kind != "convert" and not any(_CREATE in n for n in elfparts.read(runtime).defined):
        raise RuntimeError(f"{runtime.name} has no Llm::createLLM: the language model part is out")
    content = (folder / "libMNN.so").read_bytes()
    parts = {"opencl": b"libOpenCL.so", "qnn": b"libQnnHtp.so"}
    found = {name: mark in content for name, mark in parts.items()}
    if job.sdk is not None and job.kind == "android" and not found["qnn"]:
        raise RuntimeError("libMNN.so does not load libQnnHtp.so: the QNN backend is out")
    if job.kind == "android" and not job.separate and not found["opencl"]:
        raise RuntimeError("libMNN.so does not load libOpenCL.so: the OpenCL backend is out")
    return {
        "mnn": _version(job.source),
        "abi": job.abi,
        "ndk": None if job.ndk is None else _revision(job.ndk),
        "page_size": PAGE if job.kind == "android" else None,
        "separate": job.separate,
        "backends": sorted(["cpu", *(name for name, there in found.items() if there)]),
        "files": files,
    }


def _file(path: Path, job: Job) -> dict[str, Any]:
    try:
        elf = elfparts.read(path)
    except elfparts.ElfError as error:
        raise RuntimeError(str(error)) from error
    if elf.machine != _MACHINE[job.abi]:
        raise RuntimeError(f"{path.name} is for machine {elf.machine}, not for {job.abi}")
    told = {"name": path.name, "bytes": path.stat().st_size, "align": elf.align}
    own = {p.name for p in path.parent.iterdir()}
    strange = [n for n in elf.needed if n not in own and not _SYSTEMS.match(n)]
    if strange:
        raise RuntimeError(f"{path.name} needs {', '.join(strange)}, which no phone has")
    if job.ndk is not None:
        told |= _phone(path, elf, job.ndk)
    return told


def _phone(path: Path, elf: elfparts.Elf, ndk: Path) -> dict[str, Any]:
    """What only a phone asks for: pages of 16 KB, and the mark of the NDK that was asked for."""
    if elf.align % PAGE:
        raise RuntimeError(
            f"{path.name} is aligned to {elf.align} bytes: phones with pages of 16 KB "
            "(Android 15 and newer) do not load it"
        )
    if elf.ident is None:
        raise RuntimeError(f"{path.name} has no note of Android's: no NDK linked it")
    revision = _revision(ndk)
    if elf.ident.build and not revision.endswith(f".{elf.ident.build}"):
        raise RuntimeError(f"{path.name} is of NDK build {elf.ident.build}, not of {revision}")
    return {"api": elf.ident.api, "ndk": elf.ident.ndk, "ndk_build": elf.ident.build}


def _revision(ndk: Path) -> str:
    text = (ndk / "source.properties").read_text(encoding="utf-8")
    found = re.search(r"^Pkg\.Revision\s*=\s*(\S+)", text, re.MULTILINE)
    if found is None:
        raise BadInput("the NDK's source.properties tells no Pkg.Revision")
    return found[1]


def _version(source: Path) -> str:
    """As MNN's CMakeLists reads it."""
    header = source / "include" / "MNN" / "MNNDefine.h"
    text = header.read_text(encoding="utf-8", errors="replace") if header.is_file() else ""
    parts = [re.search(rf"MNN_VERSION_{n}\s+(\d+)", text) for n in ("MAJOR", "MINOR", "PATCH")]
    return ".".join(found[1] for found in parts if found) or "unknown"


if __name__ == "__main__":
    main(run)
