"""Every option of an MNN build: llmexport 0.0.5's, MNN 3.6.1's runtime's, and the floors.

What is pruned before the export and built beside it is here as well.

Not offered, because the build sets them itself: llmexport's path, dst_path, tokenizer_path, type,
export, test, verbose, mnnconvert and skip_weight. Names, `seperate_embed` too, are the tools' own.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from edgekiln.backends.ndks import NDKS, OWN
from edgekiln.options import option

_BITS = (2, 4, 8, 16)
_SPARSE = ("sparsity", ("2:4",))
_NPU = ("npu", (True,))
_SAMPLERS = (
    "greedy",
    "temperature",
    "topK",
    "topP",
    "minP",
    "tfs",
    "typical",
    "penalty",
    "mixed",
)


@dataclass(frozen=True, kw_only=True)
class _Export:
    """What llmexport does."""

    quant_bit: int = option(4, "bits of a weight", choices=_BITS, group="export")
    quant_block: int | None = option(
        None,
        "weights that share a scale, exactly; 0 for a whole row; must divide the model's widths. "
        "Not given: the largest power of two up to max_quant_block that does",
        low=0,
        high=4096,
        group="export",
    )
    max_quant_block: int = option(
        64, "upper end for a block that is chosen to fit", low=16, high=4096, group="export"
    )
    lm_quant_bit: int | None = option(
        8, "bits of the output layer (and of a tied embedding)", choices=_BITS, group="export"
    )
    lm_quant_block: int | None = option(
        None, "block of the output layer; not given: as quant_block", low=0, group="export"
    )
    embed_bit: int = option(
        16, "bits of an embedding that is a file of its own", choices=(16, 8, 4), group="export"
    )
    seperate_embed: bool = option(
        False, "write a tied embedding to a file of its own, in embed_bit bits", group="export"
    )
    hqq: bool = option(True, "half-quadratic quantisation: slower, better 4 bits", group="export")
    awq: bool = option(False, "activation-aware scaling; needs calib_data", group="export")
    smooth: bool = option(False, "SmoothQuant activations; needs calib_data", group="export")
    omni: bool = option(False, "OmniQuant, trained; needs calib_data", group="export")
    omni_epochs: int = option(20, "OmniQuant: rounds", low=1, high=1000, group="export")
    omni_lr: float = option(5e-3, "OmniQuant: learning rate", low=0, high=1, group="export")
    omni_wd: float = option(1e-4, "OmniQuant: weight decay", low=0, high=1, group="export")
    calib_data: str | None = option(
        None, "calibration text, one sample a line, UTF-8", path=True, group="export"
    )
    act_bit: int = option(
        16, "bits of an activation with smooth or omni", choices=(8, 16), group="export"
    )
    act_sym: bool = option(False, "symmetric activations with smooth or omni", group="export")
    sym: bool = option(False, "symmetric weights: no zero point, faster", group="export")
    quant_config: str | None = option(
        None,
        "JSON file: bits, block_size, symmetric of single operators",
        path=True,
        group="export",
    )
    transformer_fuse: bool = option(False, "fuse the vision transformer", group="export")
    group_conv_native: bool = option(False, "keep grouped convolutions", group="export")
    onnx_slim: bool = option(False, "simplify the graph with onnxslim first", group="export")
    generate_for_npu: bool = option(
        False, "lay the graph out for an NPU; with smooth or omni", group="export"
    )
    ppl: bool = option(
        False, "llmexport's --ppl, which 0.0.5 reads and does not use", group="export"
    )
    lora_path: str | None = option(
        None, "LoRA adapter folder; with lora_split", path=True, group="export"
    )
    lora_split: bool = option(False, "export the adapter as a file of its own", group="export")
    gptq_path: str | None = option(
        None, "GPTQ checkpoint folder whose weights to use", path=True, group="export"
    )
    eagle_path: str | None = option(
        None, "EAGLE draft head folder; for speculative: eagle", path=True, group="draft"
    )
    visual_quant_bit: int | None = option(
        None, "bits of the vision part; not given: its family's", choices=_BITS, group="export"
    )
    visual_quant_block: int | None = option(
        None, "block of the vision part; not given: its family's", low=0, group="export"
    )
    visual_sym: bool = option(False, "symmetric weights in the vision part", group="export")
    trust_remote_code: bool = option(
        False, "let the model directory's own Python run in the stages", group="export"
    )


@dataclass(frozen=True, kw_only=True)
class _Sparsity:
    """Weights made zero before anything is quantised."""

    sparsity: str = option(
        "none",
        "2:4: of every four weights of the decoder's linear layers two become zero, ahead of the "
        "export",
        choices=("none", "2:4"),
        group="sparsity",
    )
    sparsity_method: str = option(
        "wanda",
        "which two: the smallest (magnitude), or those that add least to what the layer gives "
        "(wanda; reads calib_data, or edgekiln's own text)",
        choices=("wanda", "magnitude"),
        group="sparsity",
        needs=_SPARSE,
    )
    sparsity_tokens: int = option(
        8192,
        "wanda: as much of the text as is read",
        low=1024,
        high=1 << 20,
        group="sparsity",
        needs=_SPARSE,
    )
    max_sparsity_ratio: float = option(
        6.0, "most perplexity of the sparse float model, as a multiple of the dense one's", low=1,
        group="sparsity", needs=_SPARSE,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Runtime:
    """What is written into the phone's config.json."""

    backend_type: str = option(
        "cpu", "where the phone computes", choices=("cpu", "opencl", "metal"), group="runtime"
    )
    threads: int | None = option(
        None,
        "cpu: threads, 4 if not given. opencl: not threads but a mode, 68 if not given "
        "(64 buffers + 4 wide tuning). metal: not read",
        low=1,
        high=256,
        group="runtime",
    )
    precision: str = option(
        "low", "low: fp16 where the processor has it", choices=("low", "normal", "high"),
        group="runtime",
    )  # fmt: skip
    memory: str = option(
        "low", "low: weights stay quantised, activations are quantised as they come",
        choices=("low", "normal", "high"), group="runtime",
    )  # fmt: skip
    power: str = option("normal", "which cores", choices=("low", "normal", "high"), group="runtime")
    use_mmap: bool = option(False, "keep the weights in a mapped file", group="runtime")
    kv_quant: int = option(
        0, "key-value cache: 0 as it is, 1 int8 keys, 2 int8 keys and values (CPU attention)",
        choices=(0, 1, 2), group="runtime",
    )  # fmt: skip
    flash_attention: bool = option(True, "attention in tiles", group="runtime")
    chunk: int | None = option(
        None, "tokens of a prompt at a time; less memory", low=1, high=8192, group="runtime"
    )
    dynamic_option: int = option(
        0, "scales of activations: 0 a token, 1 a tensor, 2 a block (best)",
        choices=(0, 1, 2), group="runtime",
    )  # fmt: skip
    prefer_decode: bool = option(
        False, "more memory and slower short prompts for faster decoding (Arm CPUs)",
        group="runtime",
    )  # fmt: skip
    reuse_kv: bool = option(False, "keep the cache between turns of a chat", group="runtime")
    max_new_tokens: int = option(512, "longest answer", low=1, high=1 << 20, group="runtime")
    system_prompt: str | None = option(None, "what comes before each chat", group="runtime")
    sampler_type: str = option("penalty", "how to choose", choices=_SAMPLERS, group="runtime")
    mixed_samplers: str = option(
        "penalty,topK,topP,min_p,temperature", "sampler_type mixed: which, in order",
        group="runtime",
    )  # fmt: skip
    temperature: float = option(0.8, "of the softmax", low=0.01, high=100, group="runtime")
    top_k: int = option(40, "the best so many", low=1, high=1 << 20, group="runtime")
    top_p: float = option(0.9, "the best with this probability", low=0, high=1, group="runtime")
    min_p: float = option(0.05, "at least this probability", low=0, high=1, group="runtime")
    tfs_z: float = option(1.0, "tail-free cut", low=0, high=1, group="runtime")
    typical: float = option(0.95, "typical probability", low=0, high=1, group="runtime")
    repetition_penalty: float = option(1.1, "1 for none", low=1, high=10, group="runtime")
    presence_penalty: float = option(0.0, "once said", low=-2, high=2, group="runtime")
    frequency_penalty: float = option(0.0, "each time said", low=-2, high=2, group="runtime")
    penalty_window: int = option(0, "tokens looked back at; 0: all", low=0, group="runtime")
    n_gram: int = option(8, "longest repeat looked for", low=1, high=64, group="runtime")
    ngram_factor: float = option(1.0, "penalty for longer repeats", low=1, high=10, group="runtime")
    penalty_sampler: str = option(
        "greedy", "what chooses after the penalty", choices=("greedy", "temperature"),
        group="runtime",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Draft:
    """Guessing ahead."""

    speculative: str = option(
        "none", "guess tokens ahead and verify: from the text so far (lookahead), with a head "
        "(eagle) or the model's own extra layers (mtp)",
        choices=("none", "lookahead", "eagle", "mtp"), group="draft",
    )  # fmt: skip
    draft_length: int = option(3, "tokens guessed at a time", low=1, high=64, group="draft")
    draft_match_strictness: str = option(
        "low", "lookahead: how sure", choices=("low", "medium", "high"), group="draft"
    )
    draft_selection_rule: str = option(
        "freqxlen", "lookahead: which guess", choices=("freqxlen", "fcfs"), group="draft"
    )
    ngram_match_maxlen: int = option(4, "lookahead: tokens to match", low=1, high=32, group="draft")
    ngram_update: bool = option(False, "lookahead: learn from the answer", group="draft")
    draft_model: str | None = option(
        None, "a smaller model to put beside this one, in draft/ (MNN 3.6.1 does not drive it "
        "itself: for apps that do)", group="draft",
    )  # fmt: skip
    draft_quant_bit: int = option(4, "bits of the draft's weights", choices=_BITS, group="draft")


@dataclass(frozen=True, kw_only=True)
class _Device:
    """What is built beside the model: the runtime, the NPU's binaries, the app."""

    runtime: str = option(
        "none",
        "build MNN's runtime: for the phone, into the bundle (android), or for this kind of "
        "machine (host)",
        choices=("none", "android", "host"),
        group="device",
    )
    separate_libraries: bool = option(
        False, "runtime: libllm.so, libMNN_CL.so and others beside libMNN.so; not given: all in it",
        group="device",
    )  # fmt: skip
    ndk: str = option(OWN, "Android's native compilers", choices=NDKS, group="device")
    npu: bool = option(
        False, "for the NPU of a Snapdragon as well: config_qnn.json; with soc and qairt_sdk",
        group="device",
    )  # fmt: skip
    soc: str | None = option(
        None, "npu: the phone's chip: its name (sm8750), number (69) or marketing name (8 Elite)",
        group="device", needs=_NPU,
    )  # fmt: skip
    qairt_sdk: str | None = option(
        None, "npu: the vendor's SDK, as its zip or unpacked", path=True, group="device", needs=_NPU
    )
    npu_chunk: int = option(
        128,
        "npu: tokens of a prompt read at a time",
        choices=(32, 64, 128, 256),
        group="device",
        needs=_NPU,
    )
    npu_history: int = option(
        0,
        "npu: longest history in tokens; 0: no limit",
        low=0,
        high=1 << 20,
        group="device",
        needs=_NPU,
    )
    app: str = option(
        "none", "MNN's chat app, MnnLlmChat, with the built runtime; with runtime android",
        choices=("none", "debug"), group="device",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Quality:
    """Below these the build fails. The presets set them from measurements."""

    min_cosine: float = option(
        0.98, "least mean cosine of logits with the float model", low=0, high=1, group="quality"
    )
    max_perplexity_ratio: float = option(
        1.4, "most perplexity, as a multiple of the float model's", low=1, group="quality"
    )


@dataclass(frozen=True, kw_only=True)
class MnnOptions(_Quality, _Device, _Draft, _Runtime, _Sparsity, _Export):
    """All options of the MNN backend."""


EXPORT = tuple(
    f.name
    for f in fields(_Export)
    if not f.metadata["path"] and f.name not in ("max_quant_block", "trust_remote_code")
)
RUNTIME = tuple(f.name for f in fields(_Runtime))
SPECULATIVE = tuple(
    f.name for f in fields(_Draft) if f.name not in ("draft_model", "draft_quant_bit")
)
# Options of the export that name a file or folder, and the stage input each becomes.
FILES = {
    "calib_data": "calib_data",
    "quant_config": "quant_config",
    "lora_path": "lora",
    "gptq_path": "gptq",
    "eagle_path": "eagle",
}
