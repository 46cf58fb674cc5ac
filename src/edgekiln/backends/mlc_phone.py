"""The words that go with an MLC bundle: what is in it, and how it gets onto a device."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from edgekiln.backends.mlc_options import MlcOptions
from edgekiln.backends.mlc_package import Packed
from edgekiln.backends.mlc_targets import TARGETS

_APP = "ai.mlc.mlcchat"
_FILES = f"/storage/emulated/0/Android/data/{_APP}/files"


def readme(models: Sequence[Packed], options: MlcOptions, files: Collection[str]) -> str:
    """The bundle's README.md."""
    target = TARGETS[options.target]
    parts = [_head(models, options)]
    if target.android:
        parts += [_android(models, files), _own(models), _memory(models, options)]
    elif options.objects_only:
        parts.append(_link(models, options))
    else:
        parts.append(_run(models, options, files))
    return "\n\n".join(parts) + "\n"


def _head(models: Sequence[Packed], options: MlcOptions) -> str:
    names = ", ".join(f"`{m.model_id}/`" for m in models)
    age = "the checkout it was compiled with" if options.mlc_source else "MLC-LLM 0.20"
    return (
        f"# {models[0].model_id} for {TARGETS[options.target].title}\n\n"
        f"{names}: weights, tokenizer and `mlc-chat-config.json`, to be put onto a Hub as they "
        "are. The weights are the same for every device.\n"
        f"`lib/`: the model library, for {options.target} only. It belongs to {age}; another "
        "age's runtime may not find its symbols.\n"
        "`manifest.json` holds each file's sha256, the options and the measured figures."
    )


def _android(models: Sequence[Packed], files: Collection[str]) -> str:
    if "MLCChat.apk" not in files:
        if "mlc-app-config.json" not in files:
            return (
                "## What is not in here\n\n"
                "The build was asked for no package. `mlc-package-config.json` is ready for "
                "`mlc_llm package` on another machine; run it from this folder, with "
                "`MLC_JIT_POLICY=READONLY`, so that nothing is compiled or fetched."
            )
        return (
            "## The app\n\n"
            "`mlc4j/` is a library for Gradle: name its folder in your app's `settings.gradle`, "
            "as MLCChat of github.com/mlc-ai/mlc-llm does, and build with Gradle 8.5. "
            "`kiln build … --apk debug` builds MLCChat itself."
        )
    lines = "".join(
        f"adb push {m.model_id} /data/local/tmp/{m.model_id}\n"
        f"adb shell mkdir -p {_FILES}\n"
        f"adb shell mv /data/local/tmp/{m.model_id} {_FILES}/\n"
        for m in models
    )
    return (
        "## Onto an Android phone\n\n"
        "Developer options and USB debugging must be on. Install the app, start it once so that "
        "its folder is there, then put the weights into it:\n\n"
        f"```\nadb install -r MLCChat.apk\n{lines}```\n\n"
        "`kiln device install` with this folder does the same."
    )


def _own(models: Sequence[Packed]) -> str:
    libs = ", ".join(f"`{m.model_lib}`" for m in models)
    return (
        "## In a package of your own\n\n"
        f"`model_lib` is {libs}: the prefix of the library's symbols without its last underscore. "
        "The name of the file does not matter to mlc_llm, but leave it as it is: it says what is "
        "inside. Two libraries of one prefix cannot be in one app. "
        "`kiln package check mlc-package-config.json` looks a configuration through before "
        "anything is built."
    )


def _memory(models: Sequence[Packed], options: MlcOptions) -> str:
    rows = "\n".join(
        f"| `{m.model_id}` | {m.vram} | {m.sizes.get('context_window_size', '')} | "
        f"{m.sizes.get('prefill_chunk_size', '')} |"
        for m in models
    )
    return (
        "## Memory\n\n"
        "| model | estimated_vram_bytes | context window | prefill chunk |\n|---|---|---|---|\n"
        f"{rows}\n\n"
        "Weights, temporary buffer and the cache of a full context window, times "
        f"{options.vram_safety:g}. Smaller windows and chunks need less: `--context-window-size`, "
        "`--prefill-chunk-size`."
    )


def _link(models: Sequence[Packed], options: MlcOptions) -> str:
    target = TARGETS[options.target]
    name = f"{models[0].model_lib}{target.suffix}"
    return (
        "## The last step\n\n"
        f"`lib/{models[0].model_lib}.tar` holds the objects of `{name}`. Linking them needs "
        f"{target.program}: {target.whence}."
    )


def _run(models: Sequence[Packed], options: MlcOptions, files: Collection[str]) -> str:
    library = next(name for name in files if name.startswith("lib/"))
    return (
        "## Running it\n\n"
        "With MLC-LLM 0.20 for your device installed:\n\n"
        f"```\nmlc_llm chat {models[0].model_id} --model-lib {library}\n```"
    )
