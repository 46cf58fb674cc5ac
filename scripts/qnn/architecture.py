"""What a checkpoint's config.json says of the decoder, and why some cannot be taken.

The families are those whose layer is: norm, grouped attention with rotary positions, norm, gated
SiLU. Field names and defaults are transformers' (LlamaConfig, MistralConfig, Qwen2Config,
Qwen3Config), both as version 4 writes them (`rope_theta`, `rope_scaling`) and as version 5 does
(`rope_parameters`). Every refusal is a BadInput with what, why and what to do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stagekit import BadInput

# model_type to what its layers have beside the plain Llama ones.
FAMILIES: dict[str, dict[str, bool]] = {
    "llama": {"qkv_bias": False, "qk_norm": False},
    "mistral": {"qkv_bias": False, "qk_norm": False},
    "qwen2": {"qkv_bias": True, "qk_norm": False},
    "qwen3": {"qkv_bias": False, "qk_norm": True},
}
# Keys that only models with several experts have.
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_intermediate_size")
# Numbers without which there is no decoder; transformers writes them always.
NEEDED = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
    "max_position_embeddings",
)
LLAMA3_KEYS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
DEFAULT_THETA = 10000.0
DEFAULT_NORM_EPS = 1e-6
QWEN3_HEAD_DIM = 128
OTHER_MODEL = f"choose a model of one of these families: {', '.join(FAMILIES)}"


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary positions: the base, and llama3's scaling of it where there is one."""

    theta: float
    scaling: Mapping[str, float] | None


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A decoder in numbers. `eos` holds every token that may end an answer."""

    family: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    norm_eps: float
    tied: bool
    qkv_bias: bool
    qk_norm: bool
    rope: Rope
    max_position: int
    window: int | None
    bos: int | None
    eos: tuple[int, ...]


def load(model: Path) -> Architecture:
    """Read a model folder's config.json (and generation_config.json for the last tokens)."""
    config = _json(model / "config.json")
    generation = model / "generation_config.json"
    return parse(config, _json(generation) if generation.is_file() else {})


def parse(config: Mapping[str, Any], generation: Mapping[str, Any] | None = None) -> Architecture:
    """The architecture a config describes; BadInput where it is none of ours."""
    family = _family(config)
    numbers = {key: _count(config, key) for key in NEEDED}
    heads, hidden = numbers["num_attention_heads"], numbers["hidden_size"]
    kv_heads = _count(config, "num_key_value_heads", heads)
    _refuse_variants(config)
    return Architecture(
        family=family,
        layers=numbers["num_hidden_layers"],
        hidden=hidden,
        intermediate=numbers["intermediate_size"],
        heads=_divided(heads, kv_heads),
        kv_heads=kv_heads,
        head_dim=_head_dim(config, family, hidden, heads),
        vocab=numbers["vocab_size"],
        norm_eps=_positive(config, "rms_norm_eps", DEFAULT_NORM_EPS),
        tied=bool(config.get("tie_word_embeddings", False)),
        rope=_rope(config),
        max_position=numbers["max_position_embeddings"],
        window=_window(config, family, numbers["num_hidden_layers"]),
        bos=next(iter(_tokens(config, generation, "bos_token_id")), None),
        eos=_tokens(config, generation, "eos_token_id"),
        **FAMILIES[family],
    )


def check_lengths(architecture: Architecture, context: int, prefill: int) -> None:
    """BadInput if this model cannot run at that context length (tokens) and prefill (tokens)."""
    if not 1 <= prefill < context:
        raise BadInput(
            f"a prefill of {prefill} tokens does not fit a context of {context}: "
            "the cache before it would hold nothing",
            remedy="let 1 ≤ prefill_length < context_length",
        )
    if context == 2 * prefill:
        raise BadInput(
            f"a context of {context} tokens is twice the prefill of {prefill}: the cache before a "
            "chunk and the chunk's own would have one shape, and Genie then takes one for the "
            "other and answers nonsense without a word",
            remedy=f"set context_length to {context + prefill}, or prefill_length to less",
        )
    if context > architecture.max_position:
        raise BadInput(
            f"a context of {context} tokens is longer than the model's "
            f"{architecture.max_position} (max_position_embeddings)",
            remedy=f"set context_length to {architecture.max_position} or less",
        )
    if architecture.window is not None and architecture.window < context:
        raise BadInput(
            f"the model attends through a sliding window of {architecture.window} tokens, "
            f"and a context of {context} would reach beyond it; this graph has no window",
            remedy=f"set context_length to {architecture.window} or less",
        )


def check_ends(architecture: Architecture) -> None:
    """BadInput where no answer could end, or begin: found on the phone it would be too late."""
    if not architecture.eos:
        raise BadInput(
            "the model does not say which token ends an answer",
            remedy="add eos_token_id to its generation_config.json",
        )
    begin = () if architecture.bos is None else (architecture.bos,)
    for token in (*begin, *architecture.eos):
        if not 0 <= token < architecture.vocab:
            raise BadInput(
                f"bos_token_id or eos_token_id is {token}, and the embedding has tokens 0 to "
                f"{architecture.vocab - 1}",
                remedy="take config.json and generation_config.json as the model's makers "
                "published them",
            )


def check_tokenizer(model: Path, vocab: int) -> None:
    """BadInput if tokenizer.json can give a token that the embedding has no row for."""
    file = model / "tokenizer.json"
    if not file.is_file():
        return
    content = _json(file)
    words = content.get("model", {}).get("vocab", {})
    # WordPiece and BPE: {token: id}; Unigram: [[token, score], …] in the order of ids.
    ids = list(words.values()) if isinstance(words, dict) else [len(words) - 1]
    ids += [added["id"] for added in content.get("added_tokens", [])]
    largest = max(ids, default=-1)
    if largest >= vocab:
        raise BadInput(
            f"the tokenizer has a token {largest}, but the vocabulary of config.json ends at "
            f"{vocab - 1}",
            remedy="take tokenizer.json and the weights from one release of the model",
        )


def _json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(
            f"there is no {file.name} in the model", remedy="give a Hugging Face model directory"
        ) from None
    except ValueError as error:
        raise BadInput(
            f"{file.name} is not JSON: {error}", remedy="fetch the model again"
        ) from None
    if not isinstance(value, dict):
        raise BadInput(f"{file.name} holds no JSON object", remedy="fetch the model again")
    return value


def _family(config: Mapping[str, Any]) -> str:
    family = config.get("model_type")
    experts = [key for key in EXPERTS if config.get(key)]
    if experts or "moe" in str(family) or family == "mixtral":
        raise BadInput(
            f"the model ({family}) is a mixture of experts; "
            "the NPU runs one fixed graph and cannot choose experts by token",
            remedy="choose a dense model of the same makers",
        )
    if not isinstance(family, str) or family not in FAMILIES:
        raise BadInput(
            f"model_type is {family!r}, a family whose layers are not known here",
            remedy=OTHER_MODEL,
        )
    return family


def _count(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BadInput(
            f"{key} in config.json is {value!r}, not a positive whole number",
            remedy="take config.json as the model's makers published it",
        )
    return value


def _positive(config: Mapping[str, Any], key: str, default: float) -> float:
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not value > 0:
        raise BadInput(
            f"{key} in config.json is {value!r}, not a positive number",
            remedy="take config.json as the model's makers published it",
        )
    return float(value)


def _divided(heads: int, kv_heads: int) -> int:
    if heads % kv_heads:
        raise BadInput(
            f"{heads} attention heads cannot share {kv_heads} key-value heads evenly",
            remedy="take config.json as the model's makers published it",
        )
    return heads


def _head_dim(config: Mapping[str, Any], family: str, hidden: int, heads: int) -> int:
    given = config.get("head_dim")
    if given is None and family == "qwen3":
        given = QWEN3_HEAD_DIM
    if given is None:
        if hidden % heads:
            raise BadInput(
                f"{heads} attention heads do not divide a hidden size of {hidden}, "
                "and config.json gives no head_dim",
                remedy="take config.json as the model's makers published it",
            )
        given = hidden // heads
    head_dim = _count({"head_dim": given}, "head_dim")
    if head_dim % 2:
        raise BadInput(
            f"head_dim is {head_dim}; rotary positions turn pairs and need an even number",
            remedy=OTHER_MODEL,
        )
    return head_dim


def _refuse_variants(config: Mapping[str, Any]) -> None:
    """Switches of config.json that change the layer into one the graph does not have."""
    act = config.get("hidden_act", "silu")
    if act not in ("silu", "swish"):
        raise BadInput(
            f"hidden_act is {act!r}; the layers written here have silu", remedy=OTHER_MODEL
        )
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key):
            raise BadInput(
                f"{key} is set; of biases only those of q, k and v in qwen2 are known here",
                remedy=OTHER_MODEL,
            )
    quantised = config.get("quantization_config")
    if quantised:
        method = quantised.get("quant_method", "") if isinstance(quantised, Mapping) else ""
        raise BadInput(
            f"the weights are already quantised ({method or 'quantization_config is set'}); "
            "quantising them again would lose more",
            remedy="give the model's float weights (float32, float16 or bfloat16)",
        )


def _rope(config: Mapping[str, Any]) -> Rope:
    parameters = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or {}
    if not isinstance(parameters, Mapping) or not isinstance(scaling, Mapping):
        raise BadInput(
            "rope_parameters or rope_scaling in config.json is not an object",
            remedy="take config.json as the model's makers published it",
        )
    merged = {**scaling, **parameters}
    theta = merged.get("rope_theta", config.get("rope_theta"))
    partial = merged.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if partial not in (None, 1, 1.0):
        raise BadInput(
            f"partial_rotary_factor is {partial}; the graph turns whole heads", remedy=OTHER_MODEL
        )
    return Rope(
        theta=_positive({"rope_theta": theta}, "rope_theta", DEFAULT_THETA),
        scaling=_scaling(merged),
    )


def _scaling(merged: Mapping[str, Any]) -> Mapping[str, float] | None:
    kind = merged.get("rope_type", merged.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise BadInput(
            f"the rotary positions are scaled by {kind!r}; Genie turns them on the phone "
            "and knows llama3's scaling only",
            remedy="take rope_scaling out of config.json to use the model at its own length "
            "where its makers allow that, or choose another model",
        )
    missing = [key for key in LLAMA3_KEYS if merged.get(key) is None]
    if missing:
        raise BadInput(
            f"the llama3 rope scaling in config.json has no {missing[0]}",
            remedy="take config.json as the model's makers published it",
        )
    scaling = {key: _positive(merged, key, 0) for key in LLAMA3_KEYS}
    if not scaling["low_freq_factor"] < scaling["high_freq_factor"]:
        raise BadInput(
            "high_freq_factor of the llama3 rope scaling is not above its low_freq_factor",
            remedy="take config.json as the model's makers published it",
        )
    return scaling


def _window(config: Mapping[str, Any], family: str, layers: int) -> int | None:
    """The sliding window in force in some layer, in tokens, or None.

    Mistral slides wherever `sliding_window` is set; Qwen's only with `use_sliding_window`, from
    layer `max_window_layers` on. Version 5 writes the outcome as `layer_types`.
    """
    window = config.get("sliding_window")
    if window is None or family == "llama":
        return None
    kinds = config.get("layer_types")
    if family == "mistral":
        slides = True
    elif not config.get("use_sliding_window", False):
        slides = False
    elif kinds is not None:
        slides = "sliding_attention" in kinds
    else:
        slides = config.get("max_window_layers", 0) < layers
    return _count(config, "sliding_window") if slides else None


def _tokens(
    config: Mapping[str, Any], generation: Mapping[str, Any] | None, key: str
) -> tuple[int, ...]:
    """A token, several or none: generation_config.json's first, then config.json's."""
    found: list[int] = []
    for source in (generation or {}, config):
        value = source.get(key)
        for token in value if isinstance(value, list) else [value]:
            if isinstance(token, int) and token not in found:
                found.append(token)
    return tuple(found)
