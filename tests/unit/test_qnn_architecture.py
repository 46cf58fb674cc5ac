"""What config.json says of a decoder, and every model that the NPU's graph cannot be made of."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path[:0] = [str(SCRIPTS), str(SCRIPTS / "qnn")]

import architecture  # noqa: E402

from stagekit import BadInput  # noqa: E402

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-05,
    "rope_theta": 100000.0,
    "rope_scaling": None,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def config(family: str = "llama", **more: Any) -> dict[str, Any]:
    return {**LLAMA, "model_type": family, **more}


def test_the_example_model_s_config() -> None:
    assert architecture.parse(config()) == architecture.Architecture(
        family="llama",
        layers=30,
        hidden=576,
        intermediate=1536,
        heads=9,
        kv_heads=3,
        head_dim=64,
        vocab=49152,
        norm_eps=1e-05,
        tied=True,
        qkv_bias=False,
        qk_norm=False,
        rope=architecture.Rope(theta=100000.0, scaling=None),
        max_position=8192,
        window=None,
        bos=1,
        eos=(2,),
    )


@pytest.mark.parametrize(
    ("family", "bias", "norm"),
    [("mistral", False, False), ("qwen2", True, False), ("qwen3", False, True)],
)
def test_families_differ_in_biases_and_norms(family: str, bias: bool, norm: bool) -> None:
    parsed = architecture.parse(config(family))
    assert (parsed.qkv_bias, parsed.qk_norm) == (bias, norm)


def test_both_forms_of_rotary_settings_say_the_same() -> None:
    old = config(rope_theta=5e5, rope_scaling={"rope_type": "llama3", **LLAMA3})
    older = config(rope_theta=5e5, rope_scaling={"type": "llama3", **LLAMA3})
    new = config(rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3})
    del new["rope_theta"]
    parsed = [architecture.parse(given).rope for given in (old, older, new)]
    assert parsed[0] == parsed[1] == parsed[2]
    assert parsed[0] == architecture.Rope(theta=5e5, scaling=LLAMA3)


def test_new_form_without_scaling() -> None:
    given = config(rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    assert architecture.parse(given).rope == architecture.Rope(theta=1e6, scaling=None)


def test_a_head_may_be_wider_than_its_share_of_the_hidden_size() -> None:
    assert architecture.parse(config(head_dim=80)).head_dim == 80


def test_qwen3_s_heads_have_128_dimensions_unless_said_otherwise() -> None:
    assert architecture.parse(config("qwen3")).head_dim == 128


def test_without_kv_heads_every_head_has_its_own() -> None:
    given = config()
    del given["num_key_value_heads"]
    assert architecture.parse(given).kv_heads == 9


def test_end_tokens_of_both_files_count() -> None:
    parsed = architecture.parse(config(eos_token_id=7), {"eos_token_id": [7, 9]})
    assert parsed.eos == (7, 9)
    assert architecture.parse(config(bos_token_id=None, eos_token_id=None)).bos is None


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (config("gemma2"), "gemma2"),
        (config("llama", model_type=None), "None"),
        (config("mixtral"), "experts"),
        (config("qwen3_moe"), "experts"),
        (config(num_local_experts=8), "experts"),
        (config(n_routed_experts=64), "experts"),
        (config(hidden_act="gelu"), "gelu"),
        (config(attention_bias=True), "attention_bias"),
        (config(mlp_bias=True), "mlp_bias"),
        (config(quantization_config={"quant_method": "gptq"}), "gptq"),
        (config(num_key_value_heads=2), "9 attention heads"),
        (config(num_attention_heads=7, num_key_value_heads=7), "head_dim"),
        (config(head_dim=63), "63"),
        (config(hidden_size=0), "hidden_size"),
        (config(vocab_size="many"), "vocab_size"),
        (config(num_hidden_layers=True), "num_hidden_layers"),
        (config(intermediate_size=None), "intermediate_size"),
        (config(rms_norm_eps=-1.0), "rms_norm_eps"),
        (config(rope_theta="far"), "rope_theta"),
        (config(rope_scaling={"type": "linear", "factor": 2.0}), "linear"),
        (config(rope_scaling={"type": "dynamic", "factor": 2.0}), "dynamic"),
        (config(rope_scaling={"rope_type": "yarn", "factor": 4.0}), "yarn"),
        (config(rope_parameters={"rope_type": "longrope", "factor": 4.0}), "longrope"),
        (config(rope_scaling={"rope_type": "llama3", "factor": 8.0}), "low_freq_factor"),
        (config(rope_scaling="llama3"), "object"),
        (config(partial_rotary_factor=0.5), "partial_rotary_factor"),
        (
            config(rope_scaling={"rope_type": "llama3", **LLAMA3, "high_freq_factor": 1.0}),
            "high_freq_factor",
        ),
    ],
)
def test_what_the_graph_cannot_be_is_refused(given: dict[str, Any], what: str) -> None:
    with pytest.raises(BadInput) as refused:
        architecture.parse(given)
    assert what in refused.value.text
    assert refused.value.remedy


def test_a_context_longer_than_the_model_s_is_refused() -> None:
    parsed = architecture.parse(config(max_position_embeddings=2048))
    architecture.check_lengths(parsed, 2048, 128)
    with pytest.raises(BadInput, match="2049") as refused:
        architecture.check_lengths(parsed, 2049, 128)
    assert "2048" in refused.value.remedy


@pytest.mark.parametrize(("context", "prefill"), [(512, 512), (128, 256), (512, 0), (0, 0)])
def test_a_prefill_must_leave_room_for_the_cache(context: int, prefill: int) -> None:
    with pytest.raises(BadInput, match=f"prefill of {prefill}"):
        architecture.check_lengths(architecture.parse(config()), context, prefill)


def test_a_context_of_twice_the_prefill_is_refused() -> None:
    parsed = architecture.parse(config())
    architecture.check_lengths(parsed, 257, 128)
    with pytest.raises(BadInput, match="twice the prefill of 128"):
        architecture.check_lengths(parsed, 256, 128)


@pytest.mark.parametrize(
    ("given", "window"),
    [
        (config("mistral", sliding_window=4096), 4096),
        (config("mistral", sliding_window=None), None),
        (config("qwen2", sliding_window=4096, use_sliding_window=False), None),
        (
            config("qwen2", sliding_window=4096, use_sliding_window=True, max_window_layers=30),
            None,
        ),
        (
            config("qwen2", sliding_window=4096, use_sliding_window=True, max_window_layers=21),
            4096,
        ),
        (
            config(
                "qwen3",
                sliding_window=4096,
                use_sliding_window=True,
                layer_types=["full_attention", "sliding_attention"],
            ),
            4096,
        ),
        (
            config(
                "qwen3",
                sliding_window=4096,
                use_sliding_window=True,
                layer_types=["full_attention"] * 30,
            ),
            None,
        ),
        (config("llama", sliding_window=4096), None),
    ],
)
def test_a_window_counts_only_where_it_slides(given: dict[str, Any], window: int | None) -> None:
    assert architecture.parse(given).window == window


def test_a_context_beyond_the_window_is_refused() -> None:
    parsed = architecture.parse(config("mistral", sliding_window=4096))
    architecture.check_lengths(parsed, 4096, 128)
    with pytest.raises(BadInput, match="sliding window of 4096") as refused:
        architecture.check_lengths(parsed, 4097, 128)
    assert "4096" in refused.value.remedy


def test_a_token_beyond_the_embedding_is_refused(tmp_path: Path) -> None:
    tokenizer = {"model": {"vocab": {"a": 0, "b": 99}}, "added_tokens": [{"id": 100}]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    architecture.check_tokenizer(tmp_path, 101)
    with pytest.raises(BadInput, match="token 100"):
        architecture.check_tokenizer(tmp_path, 100)


def test_a_unigram_vocabulary_is_counted_by_its_length(tmp_path: Path) -> None:
    tokenizer = {"model": {"type": "Unigram", "vocab": [["a", 0.0], ["b", -1.0], ["c", -2.0]]}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    architecture.check_tokenizer(tmp_path, 3)
    with pytest.raises(BadInput, match="token 2"):
        architecture.check_tokenizer(tmp_path, 2)


@pytest.mark.parametrize(
    ("content", "what"), [(None, "no config.json"), ("{", "not JSON"), ("[]", "no JSON object")]
)
def test_a_config_that_cannot_be_read_is_refused(
    tmp_path: Path, content: str | None, what: str
) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(BadInput, match=what):
        architecture.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"eos_token_id": None}, "which token ends an answer"),
        ({"eos_token_id": -1}, "eos_token_id is -1"),
        ({"eos_token_id": [2, 10**6]}, "eos_token_id is 1000000"),
        ({"bos_token_id": 10**6}, "bos_token_id or eos_token_id is 1000000"),
    ],
)
def test_an_answer_that_could_not_end_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        architecture.check_ends(architecture.parse(config(**changes)))
    architecture.check_ends(architecture.parse(config(bos_token_id=None)))
