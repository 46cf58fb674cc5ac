"""What mlc_llm is handed of a model: its configuration mended, its conversation template told."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path[:0] = [str(SCRIPTS), str(SCRIPTS / "mlc")]

import hfmend  # noqa: E402
import mlcrun  # noqa: E402
import mlctool  # noqa: E402
import templates  # noqa: E402

from stagekit import BadInput  # noqa: E402

# Names that mlc_llm 0.20 has registered; a part of them.
OFFERED = (
    *("LM", "chatml", "deepseek_r1_llama", "deepseek_r1_qwen", "gemma3_instruction"),
    *("gemma_instruction", "llama-2", "llama-3", "llama-3_1", "mistral_default", "phi-3"),
    *("qwen2", "qwen3", "redpajama_chat", "rwkv_world", "tinyllama_v1_0"),
)
CHATML = "{{'<|im_start|>' + message['role']}}<|im_end|>"


def _model(place: Path, config: dict[str, Any], **texts: str) -> Path:
    place.mkdir()
    (place / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (place / "model.safetensors").write_bytes(b"weights")
    for name, text in texts.items():
        (place / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return place


def test_transformers_5_is_mended_in_a_copy(tmp_path: Path) -> None:
    config = {
        "model_type": "qwen2",
        "dtype": "bfloat16",
        "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
    }
    source = _model(tmp_path / "model", config)
    model = hfmend.lay_out(source, tmp_path / "laid")
    assert model.rope_theta == 1000000.0
    assert model.mended == ("rope_theta", "dtype")
    told = json.loads((model.folder / "config.json").read_text())
    assert told == {"model_type": "qwen2", "torch_dtype": "bfloat16", "rope_theta": 1000000.0}
    assert (model.folder / "model.safetensors").is_symlink()
    # mlc_llm writes an index beside the weights; the model itself stays as it is.
    (model.folder / "model.safetensors.index.json").write_text("{}")
    assert sorted(f.name for f in source.iterdir()) == ["config.json", "model.safetensors"]
    assert json.loads((source / "config.json").read_text()) == config


def test_an_older_configuration_is_linked_as_it_is(tmp_path: Path) -> None:
    source = _model(tmp_path / "model", {"model_type": "llama", "rope_theta": 10000.0})
    model = hfmend.lay_out(source, tmp_path / "laid")
    assert model.mended == ()
    assert (model.folder / "config.json").is_symlink()
    assert model.type("auto") == "llama"
    assert model.type("mistral") == "mistral"


def test_a_stretched_embedding_keeps_its_parameters() -> None:
    scaling = {"factor": 32.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192}
    rope = {"rope_theta": 500000.0, "rope_type": "llama3", **scaling}
    mended, changes = hfmend.mend({"model_type": "llama", "rope_parameters": rope})
    assert changes == ["rope_theta", "rope_scaling"]
    assert mended["rope_scaling"] == {"rope_type": "llama3", **scaling}
    assert "rope_parameters" not in mended


def test_two_kinds_of_attention_have_two_bases() -> None:
    rope = {
        "full_attention": {"rope_theta": 1000000.0, "rope_type": "linear", "factor": 8.0},
        "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
    }
    mended, _ = hfmend.mend({"text_config": {"rope_parameters": rope}})
    inner = mended["text_config"]
    assert inner["rope_theta"] == 1000000.0
    assert inner["rope_local_base_freq"] == 10000.0
    assert inner["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}


def test_what_cannot_be_mended_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no rope_theta"):
        hfmend.mend({"rope_parameters": {"rope_type": "default"}})
    with pytest.raises(BadInput, match=r"no config\.json"):
        hfmend.lay_out(tmp_path, tmp_path / "laid")
    source = _model(tmp_path / "model", {})
    with pytest.raises(BadInput, match="no model_type"):
        hfmend.lay_out(source, tmp_path / "laid").type("auto")


@pytest.mark.parametrize(
    ("family", "template", "name", "wanted"),
    [
        ("llama", CHATML, "SmolLM2-135M-Instruct", "chatml"),
        ("qwen2", CHATML, "Qwen2.5-3B-Instruct", "qwen2"),
        ("qwen3", CHATML, "Qwen3-0.6B", "qwen3"),
        ("qwen2", "{{'<｜User｜>'}}{{'<｜Assistant｜>'}}", "R1-Distill", "deepseek_r1_qwen"),
        ("llama", "{{'<｜User｜>'}}{{'<｜Assistant｜>'}}", "R1-Distill", "deepseek_r1_llama"),
        ("llama", "<|start_header_id|>ipython", "Llama-3.2-1B-Instruct", "llama-3_1"),
        ("llama", "<|start_header_id|>user", "Meta-Llama-3-8B-Instruct", "llama-3"),
        ("llama", "[INST] <<SYS>>", "Llama-2-7b-chat", "llama-2"),
        ("mistral", "[INST]", "Mistral-7B-Instruct-v0.3", "mistral_default"),
        ("gemma3_text", "<start_of_turn>", "gemma-3-1b-it", "gemma3_instruction"),
        ("gemma2", "<start_of_turn>", "gemma-2-2b-it", "gemma_instruction"),
        ("phi3", "<|user|><|end|>", "Phi-3.5-mini-instruct", "phi-3"),
        ("llama", "<|user|></s>", "TinyLlama-1.1B-Chat", "tinyllama_v1_0"),
        ("gpt_neox", "", "RedPajama-INCITE-Chat-3B-v1", "redpajama_chat"),
        ("rwkv6", "", "rwkv-6-world-1b6", "rwkv_world"),
    ],
)
def test_a_template_is_told_from_the_model(
    tmp_path: Path, family: str, template: str, name: str, wanted: str
) -> None:
    texts = {"chat_template__jinja": template} if template else {}
    model = _model(tmp_path / "model", {"model_type": family}, **texts)
    guess = templates.guess(model, family, OFFERED, name=name)
    assert guess.name == wanted
    assert guess.why


def test_wherever_the_chat_template_lies(tmp_path: Path) -> None:
    config = json.dumps({"chat_template": CHATML})
    plain = _model(tmp_path / "a", {}, tokenizer_config__json=config)
    several = json.dumps({"chat_template": [{"name": "default", "template": CHATML}]})
    named = _model(tmp_path / "b", {}, tokenizer_config__json=several)
    assert templates.chat_template(plain) == templates.chat_template(named) == CHATML
    assert templates.chat_template(_model(tmp_path / "c", {})) == ""


def test_hints_go_first_where_the_image_has_them(tmp_path: Path) -> None:
    model = _model(tmp_path / "model", {}, chat_template__jinja=CHATML)
    hints = ["vicuna_v1.1", "qwen2"]
    assert templates.guess(model, "llama", OFFERED, hints=hints).name == "qwen2"
    assert templates.guess(model, "llama", OFFERED, hints=hints[:1]).name == "chatml"


def test_a_model_that_says_nothing_is_refused_with_the_names(tmp_path: Path) -> None:
    model = _model(tmp_path / "model", {})
    with pytest.raises(BadInput) as caught:
        templates.guess(model, "mamba", OFFERED)
    assert "family is mamba" in caught.value.text
    assert "--conv-template" in caught.value.remedy
    assert "redpajama_chat" in caught.value.remedy


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    offers = mlctool.Offers(
        version="", quantizations=("q4f16_0", "q4f16_1"), templates=OFFERED, models=(), codegens=()
    )
    offers.check_quantization("q4f16_1")
    with pytest.raises(BadInput) as caught:
        offers.check_quantization("q4f16_2")
    assert "did you mean q4f16_" in caught.value.remedy
    with pytest.raises(BadInput) as caught:
        offers.check_template("qwen-2")
    assert "did you mean qwen2" in caught.value.remedy


def test_the_tokenizers_facts_by_upstreams_rules() -> None:
    llama2 = {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, {"type": "Replace"}],
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace"},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
    }
    assert mlcrun.tokenizer_info(llama2) == {
        "token_postproc_method": "byte_fallback",
        "prepend_space_in_encode": True,
        "strip_space_in_decode": True,
    }
    qwen = {"normalizer": {"type": "NFC"}, "decoder": {"type": "ByteLevel", "add_prefix_space": 1}}
    assert mlcrun.tokenizer_info(qwen) == {
        "token_postproc_method": "byte_level",
        "prepend_space_in_encode": False,
        "strip_space_in_decode": False,
    }
    assert mlcrun.tokenizer_info({})["token_postproc_method"] == "byte_fallback"
