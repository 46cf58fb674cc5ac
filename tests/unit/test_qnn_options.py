"""The QNN backend: what its options are, which chips there are, what cannot be built."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgekiln.backends import load_backend, option_specs, options_by_backend
from edgekiln.backends.qnn import BACKEND
from edgekiln.backends.qnn_checks import check_model, data, largest_token
from edgekiln.backends.qnn_options import TEXTS, QnnOptions
from edgekiln.backends.qnn_socs import find_soc, socs
from edgekiln.cli import option_help
from edgekiln.errors import KilnError, ModelError, UsageError
from edgekiln.home import project
from edgekiln.models import Model
from edgekiln.options import parse, specs
from edgekiln.recipe import Recipe, load_recipe, make_recipe
from tests.unit.test_mnn_options import model


def options(**given: Any) -> QnnOptions:
    return parse(QnnOptions, given, where="options")


def llama(**config: Any) -> Model:
    """SmolLM2-135M, with another config.json."""
    return model(config={"intermediate_size": 1536, **config})


def test_importing_the_backend_loads_nothing_heavy() -> None:
    code = (
        "import sys; import edgekiln.backends.qnn; "
        "print([m for m in ('yaml', 'numpy', 'onnx', 'docker', 'requests') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_backend_is_found_by_its_name() -> None:
    assert load_backend("qnn") is BACKEND


def test_every_option_has_help_and_a_group() -> None:
    for spec in specs(QnnOptions).values():
        assert spec.help, spec.name
        assert spec.group in ("target", "quantize", "compile", "dialog", "quality"), spec.name


@pytest.mark.parametrize("name", ["default", "precision", "small"])
def test_each_preset_is_made_of_options_and_can_be_planned(name: str) -> None:
    preset = BACKEND.presets()[name]
    pipeline = BACKEND.plan(parse(QnnOptions, preset, where=name), {"model": llama()})
    assert pipeline.stages[-1].name == "proof"
    assert {"min_cosine", "max_perplexity_ratio", "weight_bits"} <= set(preset)


def test_the_floors_are_those_that_were_promised() -> None:
    presets = BACKEND.presets()
    assert presets["default"]["weight_bits"] == 4
    assert presets["default"]["max_perplexity_ratio"] == 1.15
    assert presets["precision"]["weight_bits"] == 8
    assert presets["precision"]["max_perplexity_ratio"] == 1.02


@pytest.mark.parametrize(
    ("said", "soc"),
    [
        ("sm8750", "sm8750"),
        ("SM8750", "sm8750"),
        ("69", "sm8750"),
        ("8 Elite", "sm8750"),
        ("Snapdragon 8 Elite", "sm8750"),
        ("Qualcomm Snapdragon® 8 Elite", "sm8750"),
        ("8 gen 4", "sm8750"),
        ("8 Elite Gen 5", "sm8850"),
        ("8 Gen 3", "sm8650"),
        ("8gen3", "sm8650"),
        ("8-gen-2", "sm8550"),
        ("8+ Gen 1", "sm8475"),
        ("8 Gen 1", "sm8450"),
        ("36", "sm8450"),
        ("97", "sm8845"),
    ],
)
def test_a_chip_is_found_by_name_number_or_what_stands_on_the_box(said: str, soc: str) -> None:
    assert find_soc(said).soc == soc


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("sm8755", "did you mean sm8750?"),
        ("8 Gen 33", "did you mean 8gen3?"),
        ("Dimensity", "sm8650 (8 Gen 3, 57)"),
        ("7", "sm8550"),
    ],
)
def test_an_unknown_chip_is_refused_with_the_nearest_or_all(said: str, remedy: str) -> None:
    with pytest.raises(UsageError) as caught:
        BACKEND.models(options(soc=said))
    assert said in caught.value.what
    assert remedy in caught.value.remedy


def test_the_table_names_each_chip_once_and_shares_weights_from_v73_on() -> None:
    table = socs()
    for names in ([s.soc for s in table], [s.soc_model for s in table]):
        assert len(set(names)) == len(table)
    marketed = [name for soc in table for name in soc.names]
    assert len(set(marketed)) == len(marketed)
    for soc in table:
        assert soc.weight_sharing == (int(soc.arch[1:]) >= 73)
    numbers = {s.soc: (s.soc_model, s.arch) for s in table}
    assert numbers["sm8550"] == (43, "v73")
    assert numbers["sm8650"] == (57, "v75")
    assert numbers["sm8750"] == (69, "v79")
    assert numbers["sm8850"] == (87, "v81")


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"prefill_length": 128, "context_length": 256}, "more than 256 tokens"),
        ({"calibration": __file__, "evaluation": __file__}, "are one file"),
        ({"calibration": "/no/such/file"}, "there is no file /no/such/file"),
        ({"evaluation": "/"}, "there is no file /"),
        ({"weight_bits": 8, "weight_block": 32}, "is not for weights of 8 bits"),
        ({"calibration_tokens": 128, "prefill_length": 256}, "less than one chunk of 256"),
        ({"quantizer": "aimet", "weight_block": 32}, "is not for the quantizer aimet"),
        ({"compiler": "qairt"}, "needs qairt_sdk"),
        ({"compiler": "qairt", "qairt_sdk": "/", "weight_block": 32}, "not for the compiler"),
        ({"qairt_sdk": "/no/such/zip"}, "there is no /no/such/zip"),
        ({"cpu_mask": "e0"}, "is no mask"),
        ({"weight_block": 64, "soc": "sm8751"}, "sm8751"),
    ],
)
def test_options_that_cannot_be_are_refused_before_a_model_is_fetched(
    given: dict[str, Any], what: str
) -> None:
    with pytest.raises(UsageError) as caught:
        BACKEND.models(options(**given))
    assert what in f"{caught.value.what} {caught.value.remedy}"
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "there is no text in"),
        (b" \n\t\n", "there is no text in"),
        ("Größe".encode("latin-1"), "is not UTF-8"),
        ("words".encode("utf-16"), "is not UTF-8"),
    ],
)
@pytest.mark.parametrize("name", TEXTS)
def test_a_text_that_is_none_is_refused_before_a_model_is_fetched(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    file = tmp_path / "text.txt"
    file.write_bytes(content)
    with pytest.raises(UsageError, match=f"{name}: .*{said}") as caught:
        BACKEND.models(options(**{name: str(file)}))
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("config", "changed", "given", "error", "what"),
    [
        ({}, {"family": "gemma2"}, {}, ModelError, "gemma2"),
        ({}, {"family": "qwen2_moe"}, {}, ModelError, "mixture of experts"),
        ({"num_local_experts": 8}, {}, {}, ModelError, "num_local_experts"),
        ({"sliding_window": 512}, {"family": "mistral"}, {}, ModelError, "window of 512"),
        (
            {"sliding_window": 512, "use_sliding_window": True, "max_window_layers": 4},
            {"family": "qwen2"},
            {},
            ModelError,
            "window of 512",
        ),
        ({}, {"context_length": 512}, {}, UsageError, "longer than"),
        ({}, {"layers": 2}, {"splits": 3}, UsageError, "has 2 layers"),
        ({"rope_scaling": {"type": "yarn", "factor": 4}}, {}, {}, ModelError, "yarn"),
        ({"rope_scaling": "linear"}, {}, {}, ModelError, "not an object"),
        ({"quantization_config": {"quant_method": "awq"}}, {}, {}, ModelError, "already (awq)"),
        (
            {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}},
            {},
            {},
            ModelError,
            "longrope",
        ),
        ({"intermediate_size": 1500}, {}, {"weight_block": 32}, UsageError, "1500"),
    ],
)
def test_a_model_that_has_no_graph_is_refused(
    config: dict[str, Any],
    changed: dict[str, Any],
    given: dict[str, Any],
    error: type[KilnError],
    what: str,
) -> None:
    wrong = model(**{"config": {"intermediate_size": 1536, **config}, **changed})
    with pytest.raises(error) as caught:
        BACKEND.plan(options(**given), {"model": wrong})
    assert what in caught.value.what
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("config", "family", "context"),
    [
        ({"sliding_window": 4096, "use_sliding_window": False}, "qwen2", 1024),
        ({"sliding_window": 4096}, "mistral", 1024),
        ({"sliding_window": None}, "mistral", 4096),
        ({"sliding_window": 64, "use_sliding_window": True, "max_window_layers": 30}, "qwen2", 512),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 32.0}}, "llama", 4096),
        ({"rope_scaling": {"type": "default"}}, "qwen3", 512),
    ],
)
def test_a_window_that_is_not_in_force_is_no_reason(
    config: dict[str, Any], family: str, context: int
) -> None:
    check_model(model(config=config, family=family), options(context_length=context))


TOKENIZERS = {
    "added": ({"added_tokens": [{"id": 70, "content": "x"}], "model": {"vocab": {"a": 0}}}, 70),
    "vocabulary": ({"added_tokens": [{"id": 3}], "model": {"vocab": {"a": 0, "b": 64}}}, 64),
}


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("which", TOKENIZERS)
def test_a_vocabulary_that_does_not_match_is_refused(
    tmp_path: Path, which: str, indent: int | None
) -> None:
    content, largest = TOKENIZERS[which]
    written = {**content, "model": {"type": "BPE", **content["model"], "merges": ["a b"]}}
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(written, indent=indent), encoding="utf-8")
    assert largest_token(file) == largest
    small = model(path=tmp_path, vocab_size=64, config={"intermediate_size": 1536})
    with pytest.raises(ModelError, match=f"token {largest}"):
        BACKEND.plan(options(), {"model": small})
    check_model(model(path=tmp_path, vocab_size=71), options())


@pytest.mark.parametrize("content", ["", "{}", '{"model": {"type": "Unigram", "vocab": []}}'])
def test_a_tokenizer_of_another_layout_is_left_to_the_stage(tmp_path: Path, content: str) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text(content)
    assert largest_token(file) is None
    assert largest_token(tmp_path / "none.json") is None


def test_the_families_are_those_that_the_graph_knows() -> None:
    text = (project() / "scripts/qnn/architecture.py").read_text(encoding="utf-8")
    block = text[text.index("FAMILIES") :]
    known = re.findall(r'"(\w+)": \{', block[: block.index("\n}")])
    assert data()["families"] == known


def test_a_flag_of_two_backends_says_what_it_is_to_each() -> None:
    told = option_help(options_by_backend())
    ratio = told["max-perplexity-ratio"]
    assert "[mnn quality]" in ratio and "default 1.4" in ratio
    assert "[qnn quality]" in ratio and "default 1.15" in ratio
    assert "[qnn target]" in told["soc"] and "[mnn device]" in told["soc"]
    assert {s.name.replace("_", "-") for s in option_specs()} <= set(told)


def test_an_option_of_another_backend_is_called_that() -> None:
    recipe = Recipe(name="", backend="qnn", model="m", options={"quant_block": 32})
    with pytest.raises(UsageError) as caught:
        recipe.parsed(BACKEND)
    assert "is for mnn, not for qnn" in caught.value.what


@pytest.mark.parametrize(
    ("chosen", "given"),
    [("aimet", "rotate"), ("aimet-1.34-cu121", "gptq"), ("edgekiln", "seq_mse")],
)
@pytest.mark.parametrize("value", [True, False])
def test_another_quantizers_option_is_refused_when_it_is_given(
    chosen: str, given: str, value: bool
) -> None:
    asked = {"quantizer": chosen, given: value}
    recipe = make_recipe(recipe="", backend="qnn", model="", preset="", options=asked)
    with pytest.raises(UsageError, match=f"{given} is for quantizer .*, and quantizer is {chosen}"):
        recipe.parsed(BACKEND)


def test_a_presets_own_options_are_no_reason(tmp_path: Path) -> None:
    """The preset precision says something about gptq, which AIMET passes over."""
    asked = {"quantizer": "aimet"}
    recipe = make_recipe(recipe="", backend="qnn", model="", preset="precision", options=asked)
    assert recipe.parsed(BACKEND).quantizer == "aimet"
    file = tmp_path / "mine.yaml"
    text = "name: mine\nbackend: qnn\nmodel: smollm2-135m-instruct\noptions: {rotate: false}\n"
    file.write_text(text, encoding="utf-8")
    recipe = make_recipe(recipe=str(file), backend="", model="", preset="", options=asked)
    assert recipe.parsed(BACKEND).quantizer == "aimet"
    file.write_text(text.replace("{", "{quantizer: aimet, "), encoding="utf-8")
    with pytest.raises(UsageError, match="rotate is for quantizer edgekiln"):
        load_recipe(str(file))
