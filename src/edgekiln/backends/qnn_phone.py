"""The words that go with a QNN bundle: what it lacks, how to get it onto a phone and running."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgekiln.backends.qairt_sdk import device_files
from edgekiln.backends.qnn_options import QnnOptions
from edgekiln.backends.qnn_socs import find_soc
from edgekiln.device.payload import place

if TYPE_CHECKING:
    from edgekiln.models import Model


def readme(
    model: Model, options: QnnOptions, compiled: Mapping[str, Any], *, with_libraries: bool
) -> str:
    """The bundle's README.md."""
    build, soc = str(compiled["qnn_build"]), find_soc(options.soc)
    target = place(model.name, f"qnn-{soc.soc}")
    parts = [
        _head(model, options, build),
        _there(soc.arch) if with_libraries else _missing(soc.arch, build),
        _push(target, [] if with_libraries else [file.name for file in device_files(soc.arch)]),
        _run(target),
        _settings(options),
    ]
    return "\n\n".join(parts) + "\n"


def _head(model: Model, options: QnnOptions, build: str) -> str:
    soc = find_soc(options.soc)
    return (
        f"# {model.name} for the NPU of the {soc.title}\n\n"
        f"`models/` holds context binaries for soc_model {soc.soc_model}, Hexagon {soc.arch}, made "
        f"with QNN {build}. They run on that chip only. Context length {options.context_length}, "
        f"prompts are read {options.prefill_length} tokens at a time.\n"
        "`manifest.json` holds each file's sha256, the options and the measured figures."
    )


def _missing(arch: str, build: str) -> str:
    rows = "\n".join(f"| `{f.name}` | `{f.place}` |" for f in device_files(arch))
    return (
        "## What is not in here\n\n"
        "The runtime of the phone is Qualcomm's and may not be passed on by itself. Take these "
        "from the QAIRT SDK (Qualcomm AI Runtime, community edition), put them beside this file, "
        "and take all of them from one release: a Stub and a Skel of two builds refuse each "
        "other.\n\n"
        f"| file | in the SDK's folder |\n|---|---|\n{rows}\n\n"
        f"The release must be at least the one the binaries were made with, {build}. "
        "`libQnnHtpPrepare.so` is not needed. With `kiln build … --qairt-sdk PATH` the build "
        "copies them from there."
    )


def _there(arch: str) -> str:
    names = ", ".join(f"`{f.name}`" for f in device_files(arch))
    return (
        "## The phone's libraries\n\n"
        f"{names} are in here, from the SDK that was given, all of one build. They are "
        "Qualcomm's, under the SDK's licence: do not pass them on by themselves."
    )


def _push(target: str, missing: list[str]) -> str:
    more = f"adb push {' '.join(missing)} {target}/\n" if missing else ""
    return (
        "## Onto the phone\n\n"
        "Developer options and USB debugging must be on. `kiln device push --bundle .` does this "
        "and skips what is there already; by hand:\n\n"
        "```\n"
        f"adb shell mkdir -p {target}\n"
        "adb push models prompts tokenizer.json genie_config.json htp_backend_ext_config.json "
        f"run.sh {target}/\n"
        f"{more}"
        "```"
    )


def _run(target: str) -> str:
    return (
        "## Running it\n\n"
        "```\n"
        f"adb shell sh {target}/run.sh\n"
        f"adb shell sh {target}/run.sh prompts/long.txt --profile profile.json\n"
        "```\n\n"
        "The first asks what prompts/01.txt asks. The second gives genie-t2t-run a further "
        "argument: it writes the rates into profile.json, and refuses to if that file is there, "
        "so run.sh takes an old one away. `run.sh` sets LD_LIBRARY_PATH and ADSP_LIBRARY_PATH to "
        "its own folder. A prompt of your own goes into a file, with the chat template around it "
        "as in prompts/*.txt: in `-p` a \\n is two characters."
    )


def _settings(options: QnnOptions) -> str:
    how = "the likeliest token" if options.greedy else (
        f"temperature {options.temperature:g}, top-k {options.top_k}, top-p {options.top_p:g}"
    )  # fmt: skip
    return (
        "## Settings\n\n"
        f"`genie_config.json` is Genie's dialog configuration ({how}); Genie refuses a key that it "
        "does not know. Context length and chip are fixed in the binaries: build again for others. "
        "`kiln bundle lint .` looks a changed bundle through."
    )
