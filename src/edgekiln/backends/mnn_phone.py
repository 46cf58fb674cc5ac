"""The words that go with an MNN bundle: how to get it onto a phone and running."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekiln.backends.mnn_options import MnnOptions

if TYPE_CHECKING:
    from edgekiln.models import Model

PLACE = "/data/local/tmp/mnn_models"

_HINTS = {
    "cpu": "config.json computes on {threads} threads; as many as the phone has large cores is a "
    "good number (thread_num). precision low means 16-bit floats, which want Armv8.2 or newer.",
    "opencl": "config.json computes on the GPU with OpenCL. thread_num {threads} is no count "
    "there: 64 says buffers, 4 more says wide tuning. The first start tunes its kernels and is "
    "slow; later ones read mnn_cachefile.bin from tmp/.",
    "metal": "config.json computes on the GPU with Metal, on iOS; thread_num is not read there.",
}


def readme(model: Model, options: MnnOptions, threads: int) -> str:
    """The bundle's README.md."""
    parts = [_head(model), _push(model, options), _run(model, options), _hints(options, threads)]
    if options.npu:
        parts.append(_npu(model))
    if options.sparsity != "none":
        parts.append(_sparse(options))
    if options.draft_model is not None:
        parts.append(_draft())
    return "\n\n".join(parts) + "\n"


def _head(model: Model) -> str:
    return (
        f"# {model.name} for MNN\n\n"
        f"`mnn_models/{model.name}/` is a model for MNN's language model runtime, version 3.6.1. "
        "Exporter and runtime go together: use an engine built from MNN's tag 3.6.1.\n"
        "`manifest.json` holds each file's sha256, the options and the measured figures."
    )


def _push(model: Model, options: MnnOptions) -> str:
    app = f"MNN's chat app (MnnLlmChat) finds models in {PLACE}."
    if options.app != "none":
        app += " It is here as well: `adb install MnnLlmChat.apk`."
    return (
        "## Onto an Android phone\n\n"
        "Developer options and USB debugging must be on.\n\n"
        "```\n"
        "adb devices\n"
        f"adb shell mkdir -p {PLACE}\n"
        f"adb push mnn_models/{model.name} {PLACE}/\n"
        "```\n\n"
        f"{app}"
    )


def _run(model: Model, options: MnnOptions) -> str:
    paths = "LD_LIBRARY_PATH=. ADSP_LIBRARY_PATH=$PWD" if options.npu else "LD_LIBRARY_PATH=."
    mapped = f"adb shell mkdir -p {PLACE}/tmp\n" if options.use_mmap else ""
    libraries = "libMNN.so libMNN_Express.so libllm.so"
    if _has_runtime(options):
        before = (
            "`kiln device push` and `kiln device run` do all of this. By hand:\n\n"
            f"```\nadb push arm64-v8a/. {PLACE}/\n"
        )
    else:
        before = (
            f"Push `llm_demo` and the libraries of your MNN build ({libraries}, as far as it "
            f"made them) to {PLACE}, then:\n\n```\n"
        )
    config = "config_qnn.json" if options.npu else "config.json"
    return (
        "## From the command line\n\n"
        f"{before}"
        f"{mapped}"
        "echo 'What is the capital of France?' > prompt.txt\n"
        f"adb push prompt.txt {PLACE}/\n"
        f"adb shell 'cd {PLACE} && chmod +x llm_demo && {paths} "
        f"./llm_demo {model.name}/{config} prompt.txt'\n"
        "```\n\n"
        "Without `prompt.txt` it is a chat."
    )


def _hints(options: MnnOptions, threads: int) -> str:
    lines = [_HINTS[options.backend_type].format(threads=threads)]
    if options.use_mmap:
        lines.append("use_mmap keeps the weights in files under tmp/: they need as much space.")
    if options.kv_quant:
        lines.append(
            f"attention_mode {8 * options.flash_attention + options.kv_quant} quantises the "
            "key-value cache. It takes the place of quant_qkv, whose numbers meant other things: "
            "quant_qkv 4 makes MNN 3.6.1 talk rubbish."
        )
    return "## Settings\n\n" + "\n\n".join(lines)


def _has_runtime(options: MnnOptions) -> bool:
    return options.npu or options.runtime == "android"


def _npu(model: Model) -> str:
    return (
        "## The NPU\n\n"
        f"`mnn_models/{model.name}/config_qnn.json` runs `qnn/llm.mnn`, whose parts were compiled "
        f"for one chip ({model.name} on another one falls back or fails: take config.json there). "
        "The vendor's libraries in `arm64-v8a/` are under the vendor's licence, which does not let "
        "you pass them on by themselves. The phone must let an unsigned process domain onto its "
        "DSP, as most phones from the shop do."
    )


def _sparse(options: MnnOptions) -> str:
    kept = (
        "Weights are symmetric, so a zero stays a zero."
        if options.sym or options.npu
        else "With a zero point for each block, as here, quantising makes small numbers of most "
        "zeros; `--sym` keeps them."
    )
    return (
        "## Sparsity\n\n"
        "Of every four weights of the decoder's linear layers two were made zero before "
        f"quantising. {kept} MNN 3.6.1 reads and multiplies these weights like any others: the "
        "bundle is no smaller and no faster for it. manifest.json holds what it cost."
    )


def _draft() -> str:
    return (
        "## The draft\n\n"
        "`draft/` holds a smaller model, whole, with a config.json of its own. MNN 3.6.1 does not "
        "decode with a draft model by itself (its loop knows lookahead, mtp, eagle and dflash); "
        "an app that does loads both and verifies what the draft proposes. The manifest says how "
        "often the two choose the same token."
    )
