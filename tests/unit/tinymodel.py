"""A whole model directory of a few kilobytes: a Llama of one layer, written the ordinary way."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekiln.models import weights

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 1,
    "vocab_size": 16,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "torch_dtype": "float16",
}
SHAPES: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (16, 8),
    "model.layers.0.self_attn.q_proj.weight": (8, 8),
    "model.norm.weight": (8,),
}
POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
    "size 12345\n"
)


def write_weights(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """A safetensors file of float16 zeros."""
    plans = [_plan(name, shape) for name, shape in shapes.items()]
    weights.write(path, plans, lambda done: None)


def _plan(name: str, shape: tuple[int, ...]) -> weights.Plan:
    plan = weights.Plan(name=name, dtype="F16", shape=shape, data=lambda: b"")
    return weights.Plan(name=name, dtype="F16", shape=shape, data=lambda: bytes(plan.size))


def make(folder: Path, **config: Any) -> Path:
    """A model that passes every check; keywords change its config."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    (folder / "tokenizer.json").write_text('{"version": "1.0", "model": {}}\n')
    write_weights(folder / "model.safetensors", SHAPES)
    return folder


def make_sharded(folder: Path) -> Path:
    """The same model, with its weights in two files and an index."""
    make(folder)
    (folder / "model.safetensors").unlink()
    files = {name: f"model-0000{i}-of-00002.safetensors" for i in (1, 2) for name in _half(i)}
    for i in (1, 2):
        shapes = {name: SHAPES[name] for name in _half(i)}
        write_weights(folder / f"model-0000{i}-of-00002.safetensors", shapes)
    index = {"metadata": {"total_size": 400}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def _half(which: int) -> list[str]:
    return list(SHAPES)[:1] if which == 1 else list(SHAPES)[1:]


def raw_safetensors(header: Any, data: bytes) -> bytes:
    """A file with any header at all."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data
