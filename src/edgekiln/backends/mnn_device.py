"""What an MNN build makes for the device beside the model: runtime, NPU binaries, chat app.

    runtime ──────────┬─ app       MNN 3.6.1 for arm64-v8a (or this machine), out of its sources
    tools ──┐         │            for an NPU: MNN's own host tools, linked to the vendor's SDK
    export ─┴─ npu    │            the graph cut and compiled: qnn/*.bin, config_qnn.json

The runtime depends on no model: built once, it lies in the store for every later build.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekiln import units
from edgekiln.backends.base import Finding, Outputs
from edgekiln.backends.mnn_checks import builds_runtime
from edgekiln.backends.mnn_options import MnnOptions
from edgekiln.backends.ndks import with_ndk
from edgekiln.backends.qnn_socs import find_soc
from edgekiln.errors import ToolchainError
from edgekiln.pipeline import JSON, FromPath, FromStage, Input, Output, Stage

if TYPE_CHECKING:
    from edgekiln.backends.qairt_sdk import Sdk
    from edgekiln.models import Model

ABI = "arm64-v8a"
# Below the runtime's output, by its kind.
FOLDERS = {"android": ABI, "host": "x86_64"}
PROGRAMS = ("llm_demo", "llm_bench")
TOOLS = ("generateIO", "compilefornpu", "MNN2QNNModel")
# Of the vendor's phone files: what libMNN.so loads. The rest belongs to Genie.
_GENIES = ("genie-t2t-run", "libGenie.so", "libQnnHtpNetRunExtensions.so")


def sdk_of(options: MnnOptions) -> Sdk | None:
    """The vendor's SDK, looked into: with the phone's Hexagon and the headers MNN compiles with."""
    if not options.npu or options.qairt_sdk is None or options.soc is None:
        return None
    from edgekiln.backends import qairt_sdk

    found = qairt_sdk.prepare(Path(options.qairt_sdk), arch=find_soc(options.soc).arch)
    wanted = ("include/QNN/QnnInterface.h", f"bin/{qairt_sdk.HOST}/qnn-model-lib-generator")
    if missing := [place for place in wanted if not (found.root / place).is_file()]:
        raise ToolchainError(
            f"QAIRT SDK {found.version} at {found.root} lacks {', '.join(missing)}",
            why="MNN's QNN backend is compiled with its headers, and its graphs with that tool",
            remedy="give the complete SDK for Linux; a folder that an older edgekiln unpacked may "
            "be deleted, and is then unpacked anew",
        )
    return found


def stages(options: MnnOptions, model: Model, sdk: Sdk | None) -> Iterator[Stage]:
    """The stages for the device; none unless they are asked for."""
    if not builds_runtime(options):
        return
    vendor: dict[str, Input] = {} if sdk is None else {"sdk": FromPath(path=sdk.root)}
    yield _runtime(options, vendor)
    if sdk is not None:
        yield _tools(options, vendor)
        yield _npu(options, vendor, model)
    if options.app != "none":
        yield _app(options)


def _runtime(options: MnnOptions, vendor: Mapping[str, Input]) -> Stage:
    kind = options.runtime
    names = ("libMNN.so", *PROGRAMS, *(("MNNConvert",) if kind == "host" else ()))
    if options.separate_libraries:
        names += ("libllm.so", "libMNN_Express.so")
    return Stage(
        name="runtime",
        toolchain=with_ndk("mnn-android", options.ndk),
        program="mnn/runtime.py",
        inputs=vendor,
        outputs=(
            Output(
                name="runtime",
                files=("runtime.json", *(f"{FOLDERS[kind]}/{name}" for name in names)),
            ),
        ),
        params={"kind": kind, "separate": options.separate_libraries},
        memory=3 << 30,
        disk=2 << 30,
    )


def _tools(options: MnnOptions, vendor: Mapping[str, Input]) -> Stage:
    files = ("runtime.json", *(f"x86_64/{name}" for name in TOOLS))
    return Stage(
        name="tools",
        toolchain=with_ndk("mnn-android", options.ndk),
        program="mnn/runtime.py",
        inputs=vendor,
        outputs=(Output(name="runtime", files=files),),
        params={"kind": "convert", "separate": False},
        memory=3 << 30,
        disk=2 << 30,
    )


def _npu(options: MnnOptions, vendor: Mapping[str, Input], model: Model) -> Stage:
    assert options.soc is not None
    params: dict[str, JSON] = {
        **find_soc(options.soc).params(),
        "chunk": options.npu_chunk,
        "history": options.npu_history,
        "family": model.family,
    }
    return Stage(
        name="npu",
        toolchain=with_ndk("mnn-android", options.ndk),
        program="mnn/npu.py",
        inputs={
            **vendor,
            "mnn": FromStage(stage="export", output="mnn"),
            "config": FromStage(stage="configure", output="config"),
            "tools": FromStage(stage="tools", output="runtime"),
        },
        outputs=(Output(name="npu", files=("config_qnn.json", "qnn/llm.mnn", "npu.json")),),
        params=params,
        memory=(2 << 30) + 6 * model.parameters,
        disk=6 * model.parameters,
    )


def _app(options: MnnOptions) -> Stage:
    return Stage(
        name="app",
        toolchain=with_ndk("mnn-android", options.ndk),
        program="mnn/chatapp.py",
        inputs={"runtime": FromStage(stage="runtime", output="runtime")},
        outputs=(Output(name="app", files=("MnnLlmChat.apk", "app.json")),),
        params={"build": options.app},
        memory=4 << 30,
        disk=4 << 30,
        network=True,
    )


def findings(options: MnnOptions, outputs: Outputs) -> Iterator[Finding]:
    """What was built, and what its files were seen to be."""
    if not builds_runtime(options):
        return
    told = outputs.json("runtime", "runtime", "runtime.json")
    yield Finding(name="runtime", value=told, text=_runtime_words(told))
    if options.npu:
        npu = outputs.json("npu", "npu", "npu.json")
        total = sum(b["bytes"] for b in npu["binaries"])
        text = f"for the NPU of {npu['soc']}: {len(npu['binaries'])} binaries, {units.size(total)}"
        yield Finding(name="npu", value=npu, text=f"{text}; not run here: that takes the phone")
    if options.app != "none":
        app = outputs.json("app", "app", "app.json")
        text = f"MnnLlmChat.apk {units.size(app['bytes'])}, {app['build']}"
        yield Finding(name="app", value=app, text=text)


def _runtime_words(told: Mapping[str, Any]) -> str:
    sizes = ", ".join(f"{f['name']} {units.size(f['bytes'])}" for f in told["files"])
    with_ndk = f", NDK {told['ndk']}" if told.get("ndk") else ""
    return f"MNN {told['mnn']} for {told['abi']}{with_ndk}: {sizes}"


def files(options: MnnOptions, name: str, outputs: Outputs) -> dict[str, Path]:
    """What of it goes into the bundle; `name` is the model's."""
    found: dict[str, Path] = {}
    if builds_runtime(options):
        folder = FOLDERS[options.runtime]
        for file in sorted((outputs("runtime", "runtime") / folder).iterdir()):
            found[f"{folder}/{file.name}"] = file
    if options.npu:
        found |= _npu_files(options, name, outputs("npu", "npu"))
    if options.app != "none":
        found["MnnLlmChat.apk"] = outputs("app", "app") / "MnnLlmChat.apk"
    return found


def _npu_files(options: MnnOptions, name: str, made: Path) -> dict[str, Path]:
    from edgekiln.backends.qairt_sdk import device_libraries

    root = f"mnn_models/{name}"
    found = {f"{root}/config_qnn.json": made / "config_qnn.json"}
    for file in sorted((made / "qnn").iterdir()):
        found[f"{root}/qnn/{file.name}"] = file
    sdk = sdk_of(options)
    if sdk is not None and options.soc is not None:
        libraries = device_libraries(sdk, find_soc(options.soc).arch)
        found |= {f"{ABI}/{n}": path for n, path in libraries.items() if n not in _GENIES}
    return found
