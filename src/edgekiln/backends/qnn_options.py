"""Every option of a QNN build: chip, quantizer, compiler, Genie's dialog, proof and floors."""

from __future__ import annotations

from dataclasses import dataclass

from edgekiln.options import option

QUANTIZERS = ("edgekiln", "aimet", "aimet-1.34-cu121")
COMPILERS = ("ort", "qairt")
# What only edgekiln's own quantizer reads.
_OWN = ("quantizer", QUANTIZERS[:1])


@dataclass(frozen=True, kw_only=True)
class _Target:
    """What the binary is for."""

    soc: str = option(
        "sm8750",
        "the phone's chip: its name (sm8750), number (69) or marketing name (8 Elite, 8 Gen 3)",
        group="target",
    )
    context_length: int = option(
        1024,
        "tokens of prompt and answer together; fixed in the binary, and memory grows with it",
        low=64,
        high=32768,
        group="target",
    )
    prefill_length: int = option(
        128, "tokens of a prompt read at a time", choices=(32, 64, 128, 256), group="target"
    )


@dataclass(frozen=True, kw_only=True)
class _Quantize:
    """How weights and activations become integers."""

    quantizer: str = option(
        "edgekiln",
        "who quantises: edgekiln's own, AIMET 2.42 on the same graph, or AIMET 1.34.0 with torch",
        choices=QUANTIZERS,
        group="quantize",
    )
    weight_bits: int = option(
        4, "bits of a weight; symmetric, no zero point", choices=(4, 8), group="quantize"
    )
    weight_block: int | None = option(
        None,
        "weights of a row that share a scale; 0 for a whole row. Not given: 32 at 4 bits, or 16 "
        "where 32 does not divide the model's widths; 0 at 8 bits, with aimet and qairt",
        choices=(0, 16, 32, 64),
        group="quantize",
    )
    head_bits: int = option(8, "bits of the output layer", choices=(8,), group="quantize")
    embed_bits: int = option(8, "bits of the embedding table", choices=(8, 16), group="quantize")
    rotate: bool = option(
        True,
        "turn the residual stream and the heads by orthogonal matrices first, which takes outliers "
        "away and costs nothing on the phone; quantizer edgekiln",
        group="quantize",
        needs=_OWN,
    )
    gptq: bool = option(
        True,
        "round weights so that a layer's later weights make up for earlier ones; quantizer "
        "edgekiln",
        group="quantize",
        needs=_OWN,
    )
    seq_mse: bool = option(
        True,
        "AIMET's search for weight ranges; quantizers aimet",
        group="quantize",
        needs=("quantizer", QUANTIZERS[1:]),
    )
    calibration: str | None = option(
        None, "text to find ranges on, UTF-8; not given: edgekiln's own", path=True,
        group="quantize",
    )  # fmt: skip
    calibration_tokens: int = option(
        4096, "as much of it as is read", low=128, high=1 << 20, group="quantize"
    )
    evaluation: str | None = option(
        None, "text for the perplexity, UTF-8; not given: edgekiln's own", path=True,
        group="quantize",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Compile:
    """How the graph becomes a context binary."""

    compiler: str = option(
        "ort",
        "what compiles: onnxruntime's QNN provider, or the tools of the vendor's SDK (qairt, with "
        "qairt_sdk)",
        choices=COMPILERS,
        group="compile",
    )
    qairt_sdk: str | None = option(
        None,
        "the vendor's SDK, as its zip or unpacked: for compiler qairt, and to put the phone's "
        "libraries into the bundle",
        path=True,
        group="compile",
    )
    splits: int = option(
        0, "binaries the layers are spread over; 0: as many as the weights ask for", low=0,
        high=64, group="compile",
    )  # fmt: skip
    optimization: int = option(3, "how hard the compiler tries", choices=(1, 2, 3), group="compile")


@dataclass(frozen=True, kw_only=True)
class _Dialog:
    """What is written into Genie's configuration, and the prompts beside it."""

    system_prompt: str | None = option(
        None,
        "what the prompt files say before the question; not given: nothing, not the template's "
        "default either",
        group="dialog",
    )
    greedy: bool = option(False, "always the likeliest token", group="dialog")
    temperature: float = option(0.8, "of the softmax", low=0.01, high=100, group="dialog")
    top_k: int = option(40, "the best so many", low=1, high=1 << 20, group="dialog")
    top_p: float = option(0.95, "the best with this probability", low=0, high=1, group="dialog")
    sampler_seed: int = option(42, "seed of the sampler", low=0, high=(1 << 31) - 1, group="dialog")
    threads: int = option(3, "threads on the phone's processor", low=1, high=64, group="dialog")
    cpu_mask: str = option("0xe0", "which cores they run on, in hexadecimal", group="dialog")
    use_mmap: bool = option(True, "map the binary instead of reading it", group="dialog")
    poll: bool = option(True, "wait for the NPU awake: faster, and more power", group="dialog")


@dataclass(frozen=True, kw_only=True)
class _Quality:
    """The proof, and below what the build fails. The presets set the floors."""

    prove: str = option(
        "quick",
        "run the binaries on this machine: a prompt and a short answer (quick), more of both "
        "(full), or not at all",
        choices=("none", "quick", "full"),
        group="quality",
    )
    answer_tokens: int | None = option(
        None,
        "longest answer the proof waits for, seconds a token; not given: 16 (quick), 32 (full)",
        low=1,
        high=1024,
        group="quality",
    )
    prove_seconds: int | None = option(
        None,
        "for all answers of the proof; not given: 600 (quick), 3600 (full)",
        low=10,
        high=86400,
        group="quality",
    )
    max_perplexity_ratio: float = option(
        1.15, "most perplexity, as a multiple of the float model's", low=1, group="quality"
    )
    min_cosine: float = option(
        0.9, "least cosine of the proof's logits with the float model's", low=0, high=1,
        group="quality",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class QnnOptions(_Quality, _Dialog, _Compile, _Quantize, _Target):
    """All options of the QNN backend."""


# Options that name a file, and the stage input each becomes.
TEXTS = ("calibration", "evaluation")
