"""What cannot be built with QNN, said before anything runs.

The stage `graph` looks at the same things again, and at more: it is the one that knows the
layers. Here they are looked at so that a wrong model costs no download of a toolchain.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekiln import yamls
from edgekiln.backends.qnn_options import TEXTS, QnnOptions
from edgekiln.backends.qnn_socs import find_soc
from edgekiln.errors import AccessError, ModelError, UsageError, nearest

if TYPE_CHECKING:
    from edgekiln.models import Model

# Keys that only models with several experts have.
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_intermediate_size")
_ROPE = ("default", "llama3")
# Blocks that are taken unasked. On the example, 64 has a perplexity as low as 32, but answers
# less like the float model does.
_BLOCKS = (32, 16)
_OWN = ("edgekiln", "ort")
# The QNN of the toolchain `qnn`, as its binaries say it; a phone's runtime may not be older.
QNN = "v2.51.0"


@lru_cache(maxsize=1)
def data() -> dict[str, Any]:
    """The families and presets of qnn.yaml."""
    found: dict[str, Any] = yamls.beside(__file__, "qnn.yaml")
    return found


def check_options(options: QnnOptions) -> None:
    """Options that do not go together, or a chip that there is not. Raises UsageError."""
    find_soc(options.soc)
    for name, what, remedy in _clashes(options):
        raise UsageError(f"{name} {what}", remedy=remedy)
    for name in TEXTS:
        path = getattr(options, name)
        if path is not None:
            _check_text(name, Path(path))
    sdk = options.qairt_sdk
    if sdk is not None and not Path(sdk).expanduser().exists():
        remedy = "give the vendor's zip, or the folder it was unpacked into"
        raise UsageError(f"qairt_sdk: there is no {sdk}", remedy=remedy)


def _check_text(name: str, path: Path) -> None:
    """How long it must be only the tokenizer can tell: the stage `quantize` says that."""
    remedy = "give a UTF-8 text file"
    if not path.is_file():
        raise UsageError(f"{name}: there is no file {path}", remedy=remedy)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        why = f"byte {error.start} begins no character"
        raise UsageError(f"{name}: {path} is not UTF-8", why=why, remedy=remedy) from error
    except OSError as error:
        why = error.strerror or str(error)
        raise AccessError(f"{name}: cannot read {path}", why=why, remedy=remedy) from error
    if not text.strip():
        raise UsageError(f"{name}: there is no text in {path}", remedy=remedy)


def _clashes(o: QnnOptions) -> Iterator[tuple[str, str, str]]:
    if 2 * o.prefill_length >= o.context_length:
        what = f"is too much for a context of {o.context_length}: Genie takes prompts up to"
        what += " the context less a prefill, and needs more than two"
        yield f"prefill_length {o.prefill_length}", what, f"more than {2 * o.prefill_length} tokens"
    if o.calibration is not None and o.calibration == o.evaluation:
        remedy = "give two texts: a perplexity on what calibration saw says too little"
        yield "calibration and evaluation", "are one file", remedy
    if o.weight_bits != 4 and o.weight_block:
        remedy = "weight_block 0, or weight_bits 4"
        yield "weight_block", f"is not for weights of {o.weight_bits} bits", remedy
    if o.calibration_tokens < o.prefill_length:
        what = f"is less than one chunk of {o.prefill_length} (prefill_length)"
        yield f"calibration_tokens {o.calibration_tokens}", what, f"{o.prefill_length} or more"
    if o.quantizer != "edgekiln" and o.weight_block:
        remedy = "take the quantizer edgekiln, or weight_block 0"
        yield "weight_block", f"is not for the quantizer {o.quantizer}", remedy
    if o.compiler == "qairt" and o.qairt_sdk is None:
        yield "compiler qairt", "needs qairt_sdk", "give the vendor's SDK, its zip or folder"
    if o.compiler == "qairt" and o.weight_block:
        remedy = "take the compiler ort, or weight_block 0"
        yield "weight_block", "is not for the compiler qairt", remedy
    if not re.fullmatch(r"0x[0-9a-fA-F]{1,16}", o.cpu_mask):
        yield f"cpu_mask {o.cpu_mask!r}", "is no mask", "hexadecimal digits, such as 0xe0"


def check_model(model: Model, options: QnnOptions) -> None:
    """A model that has no graph for the NPU. Raises ModelError or UsageError."""
    _check_experts(model)
    known = data()["families"]
    if model.family not in known:
        raise ModelError(
            f"{model.name}: the family {model.family} cannot be built for the NPU",
            why="its layers are not among those that are written as a graph",
            remedy=nearest(model.family, known),
        )
    _check_floats(model)
    _check_rope(model)
    _check_context(model, options)
    _check_window(model, options)
    _check_splits(model, options)
    block(model, options)
    _check_vocabulary(model)


def _check_experts(model: Model) -> None:
    experts = [key for key in _EXPERTS if model.config.get(key)]
    if experts or "moe" in model.family or model.family == "mixtral":
        raise ModelError(
            f"{model.name} is a mixture of experts ({', '.join(experts) or model.family})",
            why="the NPU runs one fixed graph and cannot choose experts by token",
            remedy="take a dense model",
        )


def _check_floats(model: Model) -> None:
    how = model.config.get("quantization_config")
    if how:
        method = how.get("quant_method", "") if isinstance(how, Mapping) else ""
        raise ModelError(
            f"{model.name}: its weights are quantised already" + (f" ({method})" if method else ""),
            why="quantising them again would lose more",
            remedy="give the model's float weights (float32, float16 or bfloat16)",
        )


def _check_rope(model: Model) -> None:
    scaling = model.config.get("rope_parameters") or model.config.get("rope_scaling") or {}
    if not isinstance(scaling, Mapping):
        raise ModelError(
            f"{model.name}: rope_scaling in its config.json is {scaling!r}, not an object",
            remedy="take config.json as the model's makers published it",
        )
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in _ROPE:
        raise ModelError(
            f"{model.name}: its rotary positions are scaled by {kind}",
            why="Genie turns them on the phone; of the scalings only llama3's is built here",
            remedy="take rope_scaling out of config.json, where the makers allow that for short "
            "contexts",
        )


def _check_context(model: Model, options: QnnOptions) -> None:
    if model.context_length and options.context_length > model.context_length:
        raise UsageError(
            f"context_length {options.context_length} is longer than {model.name} was made for",
            why=f"config.json says {model.context_length}",
            remedy=f"{model.context_length} or less",
        )


def _check_window(model: Model, options: QnnOptions) -> None:
    window = _window(model)
    if window is not None and window < options.context_length:
        raise ModelError(
            f"{model.name} attends through a sliding window of {window} tokens",
            why=f"the graph has none, and a context of {options.context_length} reaches beyond it",
            remedy=f"--context-length {window} or less, or another model",
        )


def _check_splits(model: Model, options: QnnOptions) -> None:
    if options.splits > model.layers:
        raise UsageError(
            f"splits is {options.splits}, and {model.name} has {model.layers} layers",
            why="each binary holds a layer at least",
            remedy=f"{model.layers} or fewer, or leave --splits away",
        )


def _window(model: Model) -> int | None:
    """The window in force: Mistral's wherever it is set, Qwen's with use_sliding_window only."""
    config = model.config
    window = config.get("sliding_window")
    if not isinstance(window, int) or model.family == "llama":
        return None
    if model.family == "mistral":
        return window
    slides = config.get("use_sliding_window", False)
    kinds = config.get("layer_types")
    if kinds is not None:
        slides = slides and "sliding_attention" in kinds
    else:
        slides = slides and config.get("max_window_layers", 0) < model.layers
    return window if slides else None


def block(model: Model, options: QnnOptions) -> int:
    """The weights that share a scale: those asked for, or what fits. Raises UsageError."""
    rows = _widths(model)
    if options.weight_block is None:
        blocked = options.weight_bits == 4 and (options.quantizer, options.compiler) == _OWN
        fitting = [b for b in _BLOCKS if not any(w % b for w in rows)] if blocked else []
        return fitting[0] if fitting else 0
    bad = [w for w in rows if options.weight_block and w % options.weight_block]
    if bad:
        raise UsageError(
            f"weight_block {options.weight_block} does not divide {model.name}'s widths "
            f"{', '.join(map(str, bad))}",
            remedy="a smaller one, or 0 for a whole row",
        )
    return options.weight_block


def _widths(model: Model) -> list[int]:
    """The row lengths of the layers' matrices."""
    inner = model.config.get("intermediate_size")
    rows = {model.hidden_size, model.heads * model.head_dim}
    return sorted(rows | ({inner} if isinstance(inner, int) else set()))


def _check_vocabulary(model: Model) -> None:
    """The tokenizer's largest token against the embedding's rows.

    tokenizer.json is many megabytes, and only its usual layout is looked at: the stage `graph`
    reads it whole.
    """
    largest = largest_token(model.path / "tokenizer.json")
    if largest is not None and largest >= model.vocab_size:
        raise ModelError(
            f"{model.name}: the tokenizer has a token {largest}, the embedding ends at "
            f"{model.vocab_size - 1}",
            why="tokenizer.json and the weights do not belong together",
            remedy="take both from one release of the model",
        )


def largest_token(file: Path) -> int | None:
    """The largest id in a tokenizer.json, from where it usually stands; None where it does not.

    The added tokens come first; a BPE vocabulary is written in the order of its ids and ends
    where the merges begin.
    """
    if not file.is_file():
        return None
    content = file.read_bytes()
    begin, merges = content.find(b'"model"'), content.rfind(b'"merges"')
    end = content.rfind(b"}", 0, merges)
    if min(begin, merges, end) < 0:
        return None
    last = re.search(rb":\s*(\d+)\s*$", content[max(begin, end - 32) : end])
    ids = re.findall(rb'"id"\s*:\s*(\d+)', content[:begin])
    return max((int(i) for i in ([last[1]] if last else []) + ids), default=None)


def remedies(options: QnnOptions, floor: str) -> str:
    """What may make the model better, of what is not in use yet; or how the floor gives way."""
    found = []
    if options.weight_bits == 4:
        if options.weight_block == 0 and (options.quantizer, options.compiler) == _OWN:
            found.append("--weight-block 32")
        found.append("the preset precision (8 bits)")
    if options.quantizer != "edgekiln":
        found.append("the quantizer edgekiln")
    elif not (options.gptq and options.rotate):
        found.append("--gptq and --rotate")
    found.append("a calibration text that is closer to what the model will read")
    return f"try {', or '.join(found)}; or {floor}"


def worst_layers(quality: Mapping[str, Any], count: int = 5) -> list[dict[str, Any]]:
    """The parts that added most of the noise, worst first.

    Not by the signal over noise behind each part: that falls from layer to layer by itself.
    """
    parts = [entry for entry in quality.get("layers", []) if entry.get("share", 0) > 0]
    return sorted(parts, key=lambda entry: -float(entry["share"]))[:count]


def losses(worst: Sequence[Mapping[str, Any]]) -> str:
    """For people: layer_29 (23 % of the loss), layer_26 (7 %)."""
    said = [f"{entry['name']} ({entry['share']:.0%})".replace("%", " %") for entry in worst]
    return ", ".join([said[0][:-1] + " of the loss)", *said[1:]]) if said else "none stands out"
