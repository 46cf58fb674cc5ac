"""What cannot be built with MNN, said before anything runs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekiln import yamls
from edgekiln.backends.mnn_options import FILES, MnnOptions
from edgekiln.backends.ndks import OWN
from edgekiln.backends.qnn_socs import find_soc
from edgekiln.errors import ModelError, UsageError, nearest

if TYPE_CHECKING:
    from edgekiln.models import Model

# OpenCL's thread_num: buffers (64) or images (128), and at most one way of tuning.
_OPENCL_MODES = frozenset(kind | tune for kind in (64, 128) for tune in (0, 1, 2, 4, 8, 16))
_MIXABLE = ("penalty", "topK", "topP", "minP", "min_p", "tfs", "typical", "temperature")
_SMALLEST_BLOCK = 16
_SDK_REMEDY = "give the zip or the unpacked folder of the QAIRT SDK for Linux with --qairt-sdk"
# The NPU's blocks, as MNN's own command lines for it have them.
_NPU_BLOCK = 64
# Layers that MNN 3.6.1's QNN converter knows no operator for (FusedLinearAttention).
_NOT_FOR_THE_NPU = ("qwen3_5", "qwen3_5_moe")
# Experts lie in tensors of three axes, which are no linear layers.
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_intermediate_size")


@lru_cache(maxsize=1)
def data() -> dict[str, Any]:
    """The families and presets of mnn.yaml."""
    found: dict[str, Any] = yamls.beside(__file__, "mnn.yaml")
    return found


def check_options(options: MnnOptions) -> None:
    """Options that do not go together, or name what there is not. Raises UsageError."""
    if options.soc is not None:
        find_soc(options.soc)
    for name, what, remedy in _clashes(options):
        raise UsageError(f"{name} {what}", remedy=remedy)
    for name in (*FILES, "qairt_sdk"):
        path = getattr(options, name)
        if path is not None and not Path(path).expanduser().exists():
            raise UsageError(f"{name}: there is no {path}", remedy="give a file or folder")


def as_built(options: MnnOptions) -> MnnOptions:
    """The options with what the NPU wants of the export: MNN's own command line for it."""
    if not options.npu:
        return options
    return replace(
        options,
        generate_for_npu=True,
        seperate_embed=True,
        sym=True,
        smooth=not options.omni,
        max_quant_block=min(options.max_quant_block, _NPU_BLOCK),
        runtime="android",
    )


def _clashes(o: MnnOptions) -> Iterator[tuple[str, str, str]]:
    yield from _quantiser_clashes(o)
    yield from _adapter_clashes(o)
    yield from _sparsity_clashes(o)
    yield from _npu_clashes(o)
    yield from _device_clashes(o)
    yield from _runtime_clashes(o)
    yield from _draft_clashes(o)


def _quantiser_clashes(o: MnnOptions) -> Iterator[tuple[str, str, str]]:
    chosen = [n for n in ("awq", "smooth", "omni") if getattr(o, n)]
    activations = o.act_bit != 16 or o.act_sym or o.generate_for_npu
    if o.npu:  # smooth and a text are its defaults
        chosen, activations = chosen or ["smooth"], False
    if len(chosen) > 1:
        yield " and ".join(chosen), "do not go together", "choose one"
    if chosen and o.calib_data is None and not o.npu:
        yield chosen[0], "needs calib_data", "give a text file with one sample a line"
    if o.calib_data is not None and not chosen and not wanda(o):
        yield "calib_data", "is read by awq, smooth, omni and wanda only", "choose one of them"
    if chosen == ["awq"] and o.quant_bit == 16:
        yield "awq", "has nothing to do at quant_bit 16", "choose 4 or 8 bits"
    if activations and not (o.smooth or o.omni):
        what = "act_bit, act_sym and generate_for_npu"
        yield what, "are for smooth and omni", "set one of them, with calib_data"


def _adapter_clashes(o: MnnOptions) -> Iterator[tuple[str, str, str]]:
    if o.lora_split and o.lora_path is None:
        yield "lora_split", "needs lora_path", "give the adapter's folder"
    if o.lora_path is not None and not o.lora_split:
        why = "without lora_split wants the package peft, which the toolchain does not hold"
        yield "lora_path", why, "set lora_split, or merge the adapter into the model first"


def wanda(o: MnnOptions) -> bool:
    """Whether pruning looks at activations."""
    return o.sparsity != "none" and o.sparsity_method == "wanda"


def _sparsity_clashes(o: MnnOptions) -> Iterator[tuple[str, str, str]]:
    if o.sparsity == "none":
        return
    if o.gptq_path is not None:
        what = "do not go together: gptq_path puts other weights in place of the pruned ones"
        yield "sparsity and gptq_path", what, "prune the model before GPTQ quantises it"
    if o.lora_path is not None:
        what = "do not go together: the adapter was made for the dense weights"
        yield "sparsity and lora_path", what, "merge the adapter into the model first"
    if o.speculative in ("eagle", "mtp"):
        what = "do not go together: the draft head was trained on the dense layers"
        yield f"sparsity and speculative {o.speculative}", what, "take speculative lookahead"


def _npu_clashes(o: MnnOptions) -> Iterator[tuple[str, str, str]]:
    if not o.npu:
        given = [n for n in ("soc", "qairt_sdk") if getattr(o, n) is not None]
        if given:
            yield " and ".join(given), "are for npu (or the backend qnn)", "add --npu"
        return
    if o.soc is None:
        yield "npu", "needs soc: its binaries are for one chip", "--soc sm8750, say"
    if o.qairt_sdk is None:
        yield "npu", "needs qairt_sdk: the vendor's tools make the binaries", _SDK_REMEDY
    if o.awq:
        yield "npu and awq", "do not go together", "take smooth or omni"
    if o.quant_bit not in (4, 8):
        yield f"npu and quant_bit {o.quant_bit}", "do not go together", "choose 4 or 8 bits"
    if o.act_bit != 16:
        yield f"npu and act_bit {o.act_bit}", "do not go together", "leave act_bit at 16"
    if o.runtime == "host":
        yield "npu and runtime host", "do not go together", "leave runtime out: it is android"


def _device_clashes(o: MnnOptions) -> Iterator[tuple[str, str, str]]:
    if o.separate_libraries and not builds_runtime(o):
        yield "separate_libraries", "is about a runtime that is built", "add --runtime android"
    if o.ndk != OWN and not (o.runtime == "android" or o.npu):
        yield f"ndk {o.ndk}", "is about what is built for a phone", "add --runtime android"
    if o.app != "none" and (o.runtime != "android" and not o.npu):
        yield "app", "is built around the phone's runtime", "add --runtime android"
    if o.app != "none" and o.separate_libraries:
        what = "do not go together: the app links libMNN.so and nothing beside it"
        yield "app and separate_libraries", what, "leave separate_libraries out"
    if o.npu and o.separate_libraries:
        what = "do not go together: the NPU's part is linked into libMNN.so"
        yield "npu and separate_libraries", what, "leave separate_libraries out"


def builds_runtime(o: MnnOptions) -> bool:
    """Whether this build compiles MNN itself."""
    return o.runtime != "none" or o.npu


def _runtime_clashes(o: MnnOptions) -> Iterator[tuple[str, str, str]]:
    if o.backend_type == "opencl" and o.threads is not None and o.threads not in _OPENCL_MODES:
        remedy = "68 is buffers with wide tuning; leave threads out to get it"
        yield f"threads {o.threads}", "is no OpenCL mode", remedy
    if o.sampler_type == "mixed":
        for part in mixed(o):
            if part not in _MIXABLE:
                yield f"mixed_samplers: {part}", "is no sampler", nearest(part, _MIXABLE)


def _draft_clashes(o: MnnOptions) -> Iterator[tuple[str, str, str]]:
    if o.speculative == "eagle" and o.eagle_path is None:
        yield "speculative eagle", "needs eagle_path", "give the draft head's folder"
    if o.eagle_path is not None and o.speculative != "eagle":
        yield "eagle_path", "is read with speculative eagle only", "set speculative to eagle"
    if o.draft_model is not None and o.speculative in ("eagle", "mtp"):
        remedy = f"leave one of them out: {o.speculative} brings its own draft"
        yield f"draft_model and speculative {o.speculative}", "do not go together", remedy


def mixed(o: MnnOptions) -> list[str]:
    """The parts of the mixed sampler, in order."""
    return [part.strip() for part in o.mixed_samplers.split(",") if part.strip()]


def check_model(model: Model, options: MnnOptions) -> None:
    """A model that llmexport has no map for. Raises ModelError or UsageError."""
    known = data()["families"]
    if model.family not in known:
        raise ModelError(
            f"{model.name}: MNN's exporter does not know the family {model.family}",
            remedy=nearest(model.family, known),
        )
    if "auto_map" in model.config and not options.trust_remote_code:
        raise ModelError(
            f"{model.name} brings Python of its own (auto_map in config.json)",
            why="the exporter would run it",
            remedy="look at it, then set trust_remote_code",
        )
    _check_sparse(model, options)
    if options.npu and model.family in _NOT_FOR_THE_NPU:
        raise ModelError(
            f"{model.name}: MNN 3.6.1 has no NPU operators for the family {model.family}",
            why="its linear attention is left to the processor, and the compiler then fails",
            remedy="build it without --npu",
        )
    if options.speculative == "mtp" and model.family not in data()["mtp_families"]:
        raise UsageError(
            f"{model.family} has no layers for speculative mtp",
            remedy=f"families that do: {', '.join(data()['mtp_families'])}",
        )


def _check_sparse(model: Model, options: MnnOptions) -> None:
    if options.sparsity == "none":
        return
    if experts := [key for key in _EXPERTS if model.config.get(key)]:
        raise ModelError(
            f"{model.name} is a mixture of experts ({', '.join(experts)}), which is not pruned",
            why="its experts are no linear layers in the weights",
            remedy="build it without --sparsity",
        )
    if model.config.get("quantization_config"):
        raise ModelError(
            f"{model.name}: its weights are quantised already",
            why="pruning wants float weights",
            remedy="give the model's float weights, or build without --sparsity",
        )


def widths(model: Model) -> list[int]:
    """The row lengths of the model's linear layers: what a block must divide."""
    config = model.config
    text = config.get("text_config")
    config = {**config, **text} if isinstance(text, Mapping) else config
    names = ("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size")
    found = [model.hidden_size, model.heads * model.head_dim]
    found += [config[n] for n in names if isinstance(config.get(n), int)]
    return sorted({w for w in found if w > 0})


def block(model: Model, options: MnnOptions) -> int:
    """The block of weights that share a scale.

    llmexport halves a block that does not divide a width, writes the model as if it had not,
    and says nothing: such a model talks rubbish. So it is refused, or chosen to fit.
    """
    rows = widths(model)
    if options.quant_block is not None:
        _divides(model, "quant_block", options.quant_block, rows)
        return options.quant_block
    common = math.gcd(*rows)
    fitting = common & -common  # the largest power of two in it
    chosen = min(fitting, 1 << (options.max_quant_block.bit_length() - 1))
    if chosen < _SMALLEST_BLOCK:
        raise UsageError(
            f"{model.name}: no block of {_SMALLEST_BLOCK} or more divides its widths "
            f"({', '.join(map(str, rows))})",
            remedy="set quant_block to 0: one scale a row",
        )
    return chosen


def lm_block(model: Model, options: MnnOptions) -> int:
    """The output layer's block, whose rows are as long as the hidden state."""
    if options.lm_quant_block is None:
        return block(model, options)
    _divides(model, "lm_quant_block", options.lm_quant_block, [model.hidden_size])
    return options.lm_quant_block


def _divides(model: Model, name: str, size: int, rows: list[int]) -> None:
    bad = [w for w in rows if size and w % size]
    if bad:
        fitting = math.gcd(*rows)
        raise UsageError(
            f"{name} {size} does not divide {model.name}'s widths {', '.join(map(str, bad))}",
            remedy=f"{fitting & -fitting} or a smaller power of two does; so does 0, a whole row",
        )
