"""Every option of an MLC build: weights, chat, compiler, package, app, proof and floors."""

from __future__ import annotations

from dataclasses import dataclass

from edgekiln.backends.mlc_targets import TARGETS
from edgekiln.backends.ndks import NDKS, OWN
from edgekiln.options import option


@dataclass(frozen=True, kw_only=True)
class _Model:
    """What the weights and the chat are made like."""

    quantization: str = option(
        "q4f16_1",
        "how weights are stored, by MLC's name: q4f16_1, q4f16_0, q4f32_1, q3f16_1, q0f16, … What "
        "there is, the toolchain's mlc_llm says",
        group="model",
    )
    model_type: str = option(
        "auto", "the architecture, by MLC's name; auto: config.json's model_type", group="model"
    )
    conv_template: str = option(
        "auto",
        "how a chat is written down, by MLC's name; auto: guessed from the model's chat template, "
        "family and name, and said",
        group="model",
    )
    trust_remote_code: bool = option(
        False, "let the model directory's own Python run in the stages", group="model"
    )
    mlc_source: str | None = option(
        None,
        "a checkout of mlc-llm whose Python tree runs in the place of the toolchain's wheels, on "
        "Apache TVM",
        path=True,
        group="model",
    )


@dataclass(frozen=True, kw_only=True)
class _Compile:
    """The model library."""

    target: str = option("android", "what to compile for", choices=tuple(TARGETS), group="compile")
    context_window_size: int | None = option(
        None,
        "tokens of prompt and answer together. Not given: the model's own, on Android and iPhone "
        "at most 4096",
        low=64,
        high=1 << 20,
        group="compile",
    )
    prefill_chunk_size: int | None = option(
        None,
        "tokens of a prompt at a time; the temporary buffer grows with it. Not given: 128 on "
        "Android and iPhone, else MLC's choice (2048 or 8192)",
        low=1,
        high=1 << 16,
        group="compile",
    )
    sliding_window_size: int | None = option(
        None,
        "attend to so many tokens back, in the place of a context window; -1 for none",
        low=-1,
        high=1 << 20,
        group="compile",
    )
    attention_sink_size: int | None = option(
        None, "first tokens that a sliding window keeps", low=-1, high=1 << 16, group="compile"
    )
    max_batch_size: int | None = option(
        None, "chats at a time; not given: MLC's 128", low=1, high=1024, group="compile"
    )
    tensor_parallel_shards: int | None = option(
        None, "GPUs that share each layer; cuda", low=1, high=64, group="compile"
    )
    pipeline_parallel_stages: int | None = option(
        None, "GPUs that share the layers among them; cuda", low=1, high=64, group="compile"
    )
    opt: str = option(
        "O2",
        "how hard the compiler tries: O0 to O3, or MLC's flags (flashinfer=0;cudagraph=0;…)",
        group="compile",
    )
    system_lib_prefix: str = option(
        "auto",
        "what a static library's symbols begin with; model_lib is this without its last "
        "underscore. auto: TYPE_QUANTIZATION_, and NAME_QUANTIZATION_ where two models of a "
        "package would have the same",
        group="compile",
    )
    cuda_arch: str = option("sm_80", "target cuda: the GPUs' architecture", group="compile")
    objects_only: bool = option(
        False,
        "make an archive of objects, to be linked on another machine (metal, webgpu, windows)",
        group="compile",
    )


@dataclass(frozen=True, kw_only=True)
class _Package:
    """mlc4j and the app."""

    package: bool | None = option(
        None,
        "make mlc4j, the library an Android app takes; not given: for android, yes",
        group="package",
    )
    also: str | None = option(
        None, "more models for the same package, as --model takes them; commas between",
        group="package",
    )  # fmt: skip
    bundle_weights: bool = option(
        True,
        "the weights are put onto the phone from the bundle; else the app fetches them from hub",
        group="package",
    )
    hub: str | None = option(
        None,
        "where the app may fetch the weights, HF://OWNER/NAME; with also, one for each model, in "
        "order, commas between",
        group="package",
    )
    vram_safety: float = option(
        1.15,
        "estimated_vram_bytes is weights, temporary buffer and cache at the context window, times "
        "this",
        low=1,
        high=4,
        group="package",
    )
    ndk: str = option(OWN, "Android's native compilers", choices=NDKS, group="package")
    apk: str = option(
        "none", "build MLCChat, too", choices=("none", "debug", "release"), group="package"
    )
    keystore: str | None = option(
        None,
        "the app's key: a keystore.properties as Gradle reads it (storeFile, storePassword, "
        "keyAlias, keyPassword); not given: a debug key, which is kept",
        path=True,
        group="package",
    )


@dataclass(frozen=True, kw_only=True)
class _Quality:
    """The proof, and below what the build fails. The presets set the floors."""

    prove: str = option(
        "quick",
        "compile the model for this machine, too, and compare it with the float model: some "
        "prompts (quick), all of them (full), or not at all",
        choices=("none", "quick", "full"),
        group="quality",
    )
    min_cosine: float = option(
        0.97, "least mean cosine of logits with the float model", low=0, high=1, group="quality"
    )
    max_perplexity_ratio: float = option(
        1.5, "most perplexity, as a multiple of the float model's", low=1, group="quality"
    )


@dataclass(frozen=True, kw_only=True)
class MlcOptions(_Quality, _Package, _Compile, _Model):
    """All options of the MLC backend."""


# Options that mlc-chat-config.json has under the same names, but for the phone's own defaults.
SIZES = (
    "context_window_size",
    "prefill_chunk_size",
    "sliding_window_size",
    "attention_sink_size",
    "max_batch_size",
    "tensor_parallel_shards",
    "pipeline_parallel_stages",
)
