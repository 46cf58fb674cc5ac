"""A GGUF becomes the model directory it was once made from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from edgekiln.errors import ModelError
from edgekiln.models.from_gguf import convert, unpermute
from edgekiln.models.inspect import inspect
from edgekiln.models.weights import read_header
from edgekiln.progress import Silent
from tests.unit import tinygguf

numpy = pytest.importorskip("numpy")
gguf = pytest.importorskip("gguf")
if TYPE_CHECKING:
    from numpy.typing import NDArray


def converted(tmp_path: Path, **changed: Any) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    convert(tinygguf.write(tmp_path / "x.gguf", **changed), folder, Silent())
    return folder


def load(path: Path) -> dict[str, NDArray[Any]]:
    """The tensors of a float32 file, read by its header."""
    raw = path.read_bytes()
    tensors = read_header(path)
    begin = len(raw) - max(tensor.end for tensor in tensors.values())
    return {
        name: numpy.frombuffer(raw[begin + t.begin : begin + t.end], "<f4").reshape(t.shape)
        for name, t in tensors.items()
    }


def test_weights_come_back_under_their_names_in_their_order(tmp_path: Path) -> None:
    found = load(converted(tmp_path) / "model.safetensors")
    assert len(found) == len(tinygguf.tensors())
    names = {
        "token_embd": "model.embed_tokens",
        "output_norm": "model.norm",
        "blk.1.attn_q": "model.layers.1.self_attn.q_proj",
        "blk.0.attn_k": "model.layers.0.self_attn.k_proj",
        "blk.1.ffn_down": "model.layers.1.mlp.down_proj",
        "blk.0.ffn_norm": "model.layers.0.post_attention_layernorm",
    }
    for theirs, ours in names.items():
        original = tinygguf.tensors()[f"{theirs}.weight"]
        # Q4_1 has 16 steps over each 32 weights, here of a standard normal: half a step at most.
        bound = 0.02 if "embd" in theirs else 0.0 if "norm" in theirs else 0.3
        assert numpy.abs(found[f"{ours}.weight"] - original).max() <= bound, ours


def test_expanded_weights_are_exactly_what_the_gguf_says(tmp_path: Path) -> None:
    found = load(converted(tmp_path) / "model.safetensors")
    q = tinygguf.interleave(tinygguf.tensors()["blk.0.attn_q.weight"], tinygguf.HEADS)
    kind = gguf.GGMLQuantizationType.Q4_1
    exact = gguf.dequantize(gguf.quantize(q, kind), kind)
    ours = tinygguf.interleave(found["model.layers.0.self_attn.q_proj.weight"], tinygguf.HEADS)
    assert (ours == exact).all()


def test_rows_of_q_and_k_are_put_back() -> None:
    rows = numpy.arange(24, dtype=numpy.float32).reshape(12, 2)
    assert (unpermute(tinygguf.interleave(rows, 3), heads=3) == rows).all()
    assert not (tinygguf.interleave(rows, 3) == rows).all()


def test_the_config_is_read_as_any_other(tmp_path: Path) -> None:
    model = inspect(converted(tmp_path))
    assert (model.family, model.layers, model.heads, model.kv_heads) == ("llama", 2, 4, 2)
    assert (model.hidden_size, model.head_dim, model.context_length) == (64, 16, 64)
    assert (model.vocab_size, model.tied, model.dtype) == (len(tinygguf.PIECES), True, "float32")
    assert model.config["rope_theta"] == 100000.0
    assert model.config["rms_norm_eps"] == 1e-05


def test_a_head_of_its_own_is_kept(tmp_path: Path) -> None:
    head = tinygguf.tensors()["token_embd.weight"] * 2
    assert not inspect(converted(tmp_path, tensors={"output.weight": head})).tied


def test_the_tokenizer_keeps_its_special_tokens_and_splits_digits(tmp_path: Path) -> None:
    folder = converted(tmp_path)
    made = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    assert [token["content"] for token in made["added_tokens"]] == tinygguf.SPECIAL
    assert made["model"]["merges"] == tinygguf.MERGES
    assert made["pre_tokenizer"]["pretokenizers"][0]["type"] == "Digits"
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["chat_template"] == tinygguf.TEMPLATE
    assert (config["bos_token"], config["eos_token"]) == ("<|im_start|>", "<|im_end|>")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"architecture": "gemma"}, "general.architecture is gemma"),
        ({"pre": "qwen2"}, "tokenizer.ggml.pre qwen2"),
        ({"tensors": {"blk.0.attn_qkv.weight": "q"}}, "blk.0.attn_qkv.weight"),
    ],
)
def test_what_was_not_shown_to_come_out_right_is_refused(
    tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    if "tensors" in changed:
        changed["tensors"] = dict.fromkeys(changed["tensors"], numpy.zeros((4, 32), "float32"))
    with pytest.raises(ModelError, match=said):
        converted(tmp_path, **changed)
