"""Model directories of billions of bytes with random weights, shaped like real ones."""

from __future__ import annotations

import json
import shutil
import zlib
from functools import partial
from pathlib import Path
from typing import Any

from edgekiln.bench.kit import Context
from edgekiln.progress import Silent

# 20 layers of 2048: 2.0 GB in float16 with the example's vocabulary of 49152.
_SHAPE = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 20,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
}
# Llama-3.2-1B's own shape, from its published config.json; the tokenizer stays the example's.
_LLAMA_1B = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128256,
    "tie_word_embeddings": True,
}
_SHARDS = 4


def two_gigabytes(context: Context) -> Path:
    """A Llama of 2.0 GB."""
    return _made(context.scratch / "random-2gb", _SHAPE)


def llama_1b(context: Context) -> Path:
    """A model of the shape of Llama-3.2-1B: 2.5 GB."""
    return _made(context.scratch / "random-1b", _LLAMA_1B)


def _made(place: Path, shape: dict[str, Any]) -> Path:
    """The directory; made once a run. Tokenizer and texts are the example's."""
    if (place / "config.json").is_file():
        return place
    from edgekiln.models import resolve

    example = resolve("smollm2-135m-instruct", progress=Silent()).path
    place.mkdir()
    for file in example.iterdir():
        if file.suffix in (".json", ".jinja") and "index" not in file.name:
            shutil.copyfile(file, place / file.name)
    config = {**json.loads((example / "config.json").read_text()), **shape}
    config["torch_dtype"] = config["dtype"] = "float16"
    _weights(place, config)
    (place / "config.json").write_text(json.dumps(config, indent=1))
    return place


def _weights(place: Path, config: dict[str, Any]) -> None:
    """Shards and their index."""
    from edgekiln.models.weights import Plan, write

    shapes = _tensors(config)
    names = sorted(shapes)
    where: dict[str, str] = {}
    for number in range(_SHARDS):
        file = f"model-{number + 1:05d}-of-{_SHARDS:05d}.safetensors"
        mine = names[number::_SHARDS]
        plans = [
            Plan(name=n, dtype="F16", shape=shapes[n], data=partial(_values, n, shapes[n]))
            for n in mine
        ]
        write(place / file, plans, lambda _: None)
        where |= dict.fromkeys(mine, file)
    index = {"metadata": {}, "weight_map": where}
    (place / "model.safetensors.index.json").write_text(json.dumps(index))


def _values(name: str, shape: tuple[int, ...]) -> bytes:
    """Gains of one, and weights as a freshly made model has them; the same on every run."""
    import numpy as np

    if "norm" in name:
        return bytes(np.ones(shape, np.float16).data)
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    drawn = rng.standard_normal(shape, dtype=np.float32) * np.float32(0.02)
    return bytes(drawn.astype(np.float16).data)


def _tensors(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    heads, kept, each = (
        config["num_attention_heads"],
        config["num_key_value_heads"],
        config["head_dim"],
    )
    layer = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (heads * each, hidden),
        "self_attn.k_proj.weight": (kept * each, hidden),
        "self_attn.v_proj.weight": (kept * each, hidden),
        "self_attn.o_proj.weight": (hidden, heads * each),
        "mlp.gate_proj.weight": (wide, hidden),
        "mlp.up_proj.weight": (wide, hidden),
        "mlp.down_proj.weight": (hidden, wide),
    }
    shapes = {
        f"model.layers.{i}.{name}": shape
        for i in range(config["num_hidden_layers"])
        for name, shape in layer.items()
    }
    embedding = (config["vocab_size"], hidden)
    return {**shapes, "model.embed_tokens.weight": embedding, "model.norm.weight": (hidden,)}
