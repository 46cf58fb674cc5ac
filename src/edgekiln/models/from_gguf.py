"""A Llama-family GGUF turned back into an ordinary Hugging Face model directory.

Made for the example model; refuses whatever it has not been shown to get right. What llama.cpp's
converter did on the way in is undone: names are mapped back, quantised tensors are expanded, and
the rows of Q and K, which llama.cpp interleaves for its way of rotary embedding, are put back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekiln.errors import ModelError
from edgekiln.models import weights
from edgekiln.progress import Progress

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderTensor
    from numpy import float32
    from numpy.typing import NDArray

TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# How a text is cut before byte-pair merging, by llama.cpp's name for it.
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
PRE_TOKENIZERS: Mapping[str, Any] = {
    "smollm": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            {**BYTE_LEVEL, "use_regex": True},
        ],
    },
}
CONTROL = 3  # llama.cpp's token type for <|im_start|> and its like
_REMEDY = "take the model's original repository, with safetensors"


def convert(source: Path, target: Path, progress: Progress) -> None:
    """Read the GGUF `source` and write config, weights and tokenizer into the folder `target`."""
    from gguf import GGUFReader

    progress.update(0, what="reading")
    reader = GGUFReader(source)
    fields = Fields(reader)
    fields.must("general.architecture", "llama")
    fields.must("tokenizer.ggml.model", "gpt2")
    _write_json(target / "config.json", config(fields, tied=not _has_head(reader)))
    _write_json(target / "generation_config.json", generation_config(fields))
    _write_json(target / "tokenizer.json", tokenizer(fields))
    _write_json(target / "tokenizer_config.json", tokenizer_config(fields))
    _write_json(target / "special_tokens_map.json", special_tokens(fields))
    plans = list(_plans(reader, fields))
    total = sum(plan.size for plan in plans)
    told = partial(progress.update, total=total, what="expanding weights")
    weights.write(target / "model.safetensors", plans, told)


class Fields:
    """The metadata of a GGUF by key."""

    def __init__(self, reader: GGUFReader) -> None:
        self._fields = reader.fields

    def get(self, key: str, default: Any = None) -> Any:
        """The value of `key`, as plain Python."""
        field = self._fields.get(key)
        return default if field is None else field.contents()

    def need(self, key: str) -> Any:
        """The value of `key`, which has to be there."""
        value = self.get(key)
        if value is None:
            raise ModelError(f"the GGUF has no {key}", remedy=_REMEDY)
        return value

    def must(self, key: str, value: str) -> None:
        """Refuse a file whose `key` is anything but `value`."""
        found = self.need(key)
        if found != value:
            raise ModelError(
                f"cannot convert this GGUF: {key} is {found}, not {value}", remedy=_REMEDY
            )

    def tokens(self) -> dict[str, str]:
        """The special tokens by the role they play."""
        pieces = self.need("tokenizer.ggml.tokens")
        roles = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
        ids = {role: self.get(f"tokenizer.ggml.{key}_token_id") for role, key in roles.items()}
        return {f"{role}_token": pieces[i] for role, i in ids.items() if i is not None}


def config(fields: Fields, *, tied: bool) -> dict[str, Any]:
    """config.json, with the older spellings (rope_theta, torch_dtype) that every version reads."""
    heads, hidden = _heads(fields)[0], fields.need("llama.embedding_length")
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": fields.need("tokenizer.ggml.bos_token_id"),
        "eos_token_id": fields.need("tokenizer.ggml.eos_token_id"),
        "head_dim": fields.get("llama.rope.dimension_count", hidden // heads),
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": fields.need("llama.feed_forward_length"),
        "max_position_embeddings": fields.need("llama.context_length"),
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": fields.need("llama.block_count"),
        "num_key_value_heads": _heads(fields)[1],
        "pad_token_id": fields.get("tokenizer.ggml.padding_token_id"),
        # The GGUF holds a float32, whose nearest double is 9.999999747378752e-06.
        "rms_norm_eps": _short(fields.need("llama.attention.layer_norm_rms_epsilon")),
        "rope_scaling": None,
        "rope_theta": _short(fields.get("llama.rope.freq_base", 10000.0)),
        "tie_word_embeddings": tied,
        "torch_dtype": "float32",
        "use_cache": True,
        "vocab_size": len(fields.need("tokenizer.ggml.tokens")),
    }


def generation_config(fields: Fields) -> dict[str, Any]:
    """generation_config.json: only what the GGUF knows, greedy unless the user says otherwise."""
    roles = {"bos": "bos", "eos": "eos", "pad": "padding"}
    ids = {role: fields.get(f"tokenizer.ggml.{key}_token_id") for role, key in roles.items()}
    return {f"{role}_token_id": i for role, i in ids.items() if i is not None}


def tokenizer(fields: Fields) -> dict[str, Any]:
    """tokenizer.json of a byte-level BPE, as the tokenizers library reads it."""
    pre = fields.need("tokenizer.ggml.pre")
    if pre not in PRE_TOKENIZERS:
        raise ModelError(
            f"cannot convert this GGUF: tokenizer.ggml.pre {pre} is not known", remedy=_REMEDY
        )
    pieces = fields.need("tokenizer.ggml.tokens")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(i, pieces[i]) for i in _control(fields)],
        "normalizer": None,
        "pre_tokenizer": PRE_TOKENIZERS[pre],
        "post_processor": None,
        "decoder": {**BYTE_LEVEL, "add_prefix_space": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {piece: i for i, piece in enumerate(pieces)},
            # Written as strings: tokenizers before 0.20 does not read pairs.
            "merges": fields.need("tokenizer.ggml.merges"),
        },
    }


def tokenizer_config(fields: Fields) -> dict[str, Any]:
    """tokenizer_config.json with the chat template."""
    pieces = fields.need("tokenizer.ggml.tokens")
    return {
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(i): {k: v for k, v in _added(i, pieces[i]).items() if k != "id"}
            for i in _control(fields)
        },
        **fields.tokens(),
        "chat_template": fields.need("tokenizer.chat_template"),
        "clean_up_tokenization_spaces": False,
        "model_max_length": fields.need("llama.context_length"),
        # Not GPT2Tokenizer: that class brings a pre-tokenizer of its own, which leaves digits
        # together, and transformers 5 prefers it to the one in tokenizer.json.
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def special_tokens(fields: Fields) -> dict[str, Any]:
    """special_tokens_map.json."""
    return dict(fields.tokens())


def _added(index: int, content: str) -> dict[str, Any]:
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": index, "content": content, **plain, "special": True}


def _control(fields: Fields) -> list[int]:
    kinds = fields.need("tokenizer.ggml.token_type")
    return [i for i, kind in enumerate(kinds) if kind == CONTROL]


def _heads(fields: Fields) -> tuple[int, int]:
    heads = int(fields.need("llama.attention.head_count"))
    return heads, int(fields.get("llama.attention.head_count_kv", heads))


def _short(value: float) -> float:
    """The shortest decimal that is the same float32: 1e-05 rather than 9.999999747378752e-06."""
    import numpy

    return float(str(numpy.float32(value)))


def _has_head(reader: GGUFReader) -> bool:
    return any(tensor.name == "output.weight" for tensor in reader.tensors)


def _plans(reader: GGUFReader, fields: Fields) -> Iterator[weights.Plan]:
    """The tensors by their Hugging Face names, in the order of those names."""
    named = {_name(tensor.name): tensor for tensor in reader.tensors}
    for name, tensor in sorted(named.items()):
        shape = tuple(int(side) for side in reversed(tensor.shape))
        data = partial(_bytes, tensor, _rows(name, fields))
        yield weights.Plan(name=name, dtype="F32", shape=shape, data=data)


def _name(name: str) -> str:
    """blk.3.attn_q.weight is model.layers.3.self_attn.q_proj.weight."""
    if name in TOP:
        return TOP[name]
    layer = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
    if layer is None or layer[2] not in LAYER:
        raise ModelError(f"cannot convert this GGUF: it has a tensor {name}", remedy=_REMEDY)
    return f"model.layers.{layer[1]}.{LAYER[layer[2]]}.weight"


Rows = Callable[["NDArray[float32]"], "NDArray[float32]"]


def _rows(name: str, fields: Fields) -> Rows:
    """What puts the rows of a tensor back into the order they were trained in."""
    heads, kv_heads = _heads(fields)
    if name.endswith("q_proj.weight"):
        return partial(unpermute, heads=heads)
    if name.endswith("k_proj.weight"):
        return partial(unpermute, heads=kv_heads)
    return lambda matrix: matrix


def unpermute(matrix: NDArray[float32], *, heads: int) -> NDArray[float32]:
    """Undo llama.cpp's order of Q and K rows, [rows, columns] of `heads` heads.

    Rotary embedding turns pairs of rows. llama.cpp has the two of a pair beside each other,
    Hugging Face half a head apart.
    """
    pairs = matrix.reshape(heads, -1, 2, matrix.shape[1])
    restored: NDArray[float32] = pairs.swapaxes(1, 2).reshape(matrix.shape)
    return restored


def _bytes(tensor: ReaderTensor, rows: Rows) -> bytes:
    """The tensor expanded to little-endian float32.

    Not float16, although that is half the size: only float32 holds scale times integer plus
    offset exactly (41 % of SmolLM2's weights would change), and programs that compute in the
    type of the checkpoint would run 2.8 times slower on a CPU.
    """
    from gguf import dequantize

    return rows(dequantize(tensor.data, tensor.tensor_type)).astype("<f4").tobytes()


def _write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8", newline="\n")
