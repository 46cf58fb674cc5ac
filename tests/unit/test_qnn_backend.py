"""The QNN backend: its stages, its verdict, its bundle; and what doctor makes of a GPU."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from edgekiln import doctor
from edgekiln.backends.base import Finding, Outputs
from edgekiln.backends.qairt_sdk import device_files
from edgekiln.backends.qnn import BACKEND
from edgekiln.backends.qnn_options import QnnOptions
from edgekiln.backends.qnn_sizes import vram
from edgekiln.build import Settings, prepare
from edgekiln.errors import OutOfMemoryError, QualityError
from edgekiln.options import specs
from edgekiln.pipeline import FromPath, FromStage, Pipeline
from edgekiln.recipe import Recipe
from tests.unit import tinymodel
from tests.unit.kit import Heard
from tests.unit.test_mnn_options import model
from tests.unit.test_qnn_options import options

LAYERS = [
    {"name": f"layer_{i}", "sqnr_db": 30.0 - i, "share": share}
    for i, share in enumerate((0.06, 0.0, 0.3, 0.05, 0.4, 0.09, 0.07, 0.03))
]
QUALITY = {
    "quantizer": "edgekiln",
    "perplexity_float": 16.87,
    "perplexity_quantised": 18.9,
    "perplexity_ratio": 1.12,
    "perplexity_tokens": 1408,
    "layers": LAYERS,
    "prompts": [{"prompt": "What is the capital of France?"}],
}
COMPILED = {
    "format": 1,
    "soc": "sm8750",
    "qnn_build": "v2.51.0.260929181845",
    "shared": True,
    "splits": 1,
    "nodes_on_cpu": 0,
    "binaries": [{"file": "weight_sharing_model_1_of_1.serialized.bin", "bytes": 145_300_000}],
}
PROOF = {
    "answers": [{"prompt": "What is the capital of France?", "answer": "Paris.", "agrees": True}],
    "cosine_mean": 0.996,
    "cosine_min": 0.99,
}


def plan(given: QnnOptions | None = None, **changed: Any) -> Pipeline:
    return BACKEND.plan(given or options(), {"model": model(**changed)})


def test_the_stages_go_from_the_model_to_the_proof() -> None:
    stages = plan().stages
    assert [s.name for s in stages] == ["graph", "quantize", "compile", "settings", "proof"]
    assert {s.toolchain for s in stages} == {"qnn"}
    assert stages[-1].after() == {"quantize", "compile", "settings"}


def test_without_a_proof_there_is_none() -> None:
    assert [s.name for s in plan(options(prove="none")).stages][-1] == "settings"


@pytest.mark.parametrize("quantizer", ["aimet", "aimet-1.34-cu121"])
def test_aimet_gives_its_ranges_in_a_stage_of_its_own(quantizer: str) -> None:
    pipeline = plan(options(quantizer=quantizer))
    calibrate, quantize = pipeline.stage("calibrate"), pipeline.stage("quantize")
    assert calibrate.toolchain == quantizer
    assert quantize.toolchain == "qnn"
    assert quantize.inputs["calibrated"] == FromStage(stage="calibrate", output="calibrated")
    assert calibrate.params["arch"] == "v79"
    assert "gptq" not in quantize.params


def test_every_option_reaches_a_stage_or_the_verdict() -> None:
    judged = {"max_perplexity_ratio", "min_cosine"}
    chosen = {"soc", "quantizer", "compiler", "qairt_sdk", "calibration", "evaluation"}
    stages = [*plan().stages, *plan(options(quantizer="aimet")).stages]
    sent = {name for stage in stages for name in stage.params}
    assert set(specs(QnnOptions)) == (sent & set(specs(QnnOptions))) | judged | chosen | {
        "prove_seconds"
    }
    assert plan(options(prove_seconds=99)).stage("proof").params["seconds"] == 99


def test_the_chip_is_part_of_the_key_of_what_depends_on_it() -> None:
    one, other = plan(options(soc="69")), plan(options(soc="8 Gen 3"))
    assert one.stage("graph") == other.stage("graph")
    assert one.stage("quantize") == other.stage("quantize")
    assert one.stage("compile").params["soc_model"] == 69
    assert other.stage("compile").params == {
        **one.stage("compile").params, "soc": "sm8650", "soc_model": 57, "arch": "v75"
    }  # fmt: skip
    assert plan(options(soc="sm8450")).stage("compile").params["weight_sharing"] is False


def test_ways_to_name_a_chip_are_one_build() -> None:
    named = [plan(options(soc=soc)) for soc in ("69", "sm8750", "SM8750", "8 Elite")]
    assert all(pipeline == named[0] for pipeline in named)


def test_the_dialog_leaves_the_expensive_stages_alone() -> None:
    one, other = plan(), plan(options(temperature=0.2, greedy=True, system_prompt="Be brief."))
    for name in ("graph", "quantize", "compile"):
        assert one.stage(name) == other.stage(name)
    assert one.stage("settings") != other.stage("settings")


def test_texts_become_inputs(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("words\n")
    stage = plan(options(evaluation=str(file))).stage("quantize")
    assert stage.inputs["evaluation"] == FromPath(path=file)
    assert "calibration" not in stage.inputs


def test_a_larger_model_is_expected_to_need_more() -> None:
    small = plan().stages
    large = plan(parameters=1_240_000_000, hidden_size=2048, heads=32, layers=16).stages
    for one, other in zip(small, large, strict=True):
        if one.name != "settings":
            assert other.memory > one.memory, one.name


def test_a_model_of_a_billion_is_expected_to_fit_into_16_gb() -> None:
    shaped = {"vocab_size": 128256, "hidden_size": 2048, "heads": 32, "head_dim": 64}
    config = {"intermediate_size": 8192}
    stages = plan(parameters=1_235_814_400, layers=16, config=config, **shaped).stages
    assert max(s.memory for s in stages) < 16 << 30


def test_the_bundle_of_each_chip_lies_by_itself(tmp_path: Path) -> None:
    place = tinymodel.make(tmp_path / "tiny", max_position_embeddings=512)
    for soc, folder in (("69", "qnn-sm8750"), ("8 Gen 3", "qnn-sm8650")):
        given = {"soc": soc, "context_length": 300, "prove": "none"}
        recipe = Recipe(name="", backend="qnn", model=str(place), options=given)
        job = prepare(recipe, Settings(), Heard())
        assert job.place.parts[-3:] == ("build", "tiny", folder)


def outputs(place: Path) -> Outputs:
    """What the stages leave, small."""
    quantized, binaries = place / "quantized", place / "binaries"
    settings, proof = place / "settings", place / "proof"
    for folder in (quantized, binaries, settings / "prompts", proof):
        folder.mkdir(parents=True)
    (quantized / "quality.json").write_text(json.dumps(QUALITY))
    (quantized / "tokenizer.json").write_text("{}")
    (binaries / "compile.json").write_text(json.dumps(COMPILED))
    for name in ("genie_config.json", "htp_backend_ext_config.json", "run.sh", "prompts/01.txt"):
        (settings / name).write_text("x")
    (proof / "proof.json").write_text(json.dumps(PROOF))
    return Outputs(
        paths={
            ("quantize", "quantized"): quantized,
            ("compile", "binaries"): binaries,
            ("settings", "settings"): settings,
            ("proof", "proof"): proof,
        }
    )


def test_the_findings_begin_with_the_answer_and_name_what_was_lost(tmp_path: Path) -> None:
    found = BACKEND.findings(options(), outputs(tmp_path))
    assert found[0].name == "answer" and "Paris" in found[0].text
    by_name = {f.name: f for f in found}
    assert by_name["perplexity_ratio"].value == 1.12
    assert "16.87 before, 18.90 after (1.120 times)" in by_name["perplexity_ratio"].text
    assert by_name["worst_layers"].value[0]["name"] == "layer_4"
    lost = by_name["worst_layers"].text
    assert "layer_4 (40 % of the loss), layer_2 (30 %), layer_5 (9 %)" in lost
    assert "layer_1" not in lost
    assert "145.3 MB" in by_name["binaries"].text
    assert "SM8750 (Snapdragon 8 Elite)" in by_name["binaries"].text


def test_without_a_proof_the_rest_is_still_found(tmp_path: Path) -> None:
    names = [f.name for f in BACKEND.findings(options(prove="none"), outputs(tmp_path))]
    assert "answer" not in names
    assert "perplexity_ratio" in names


def findings(ratio: float, cosine: float | None = 0.99) -> list[Finding]:
    figures = {"perplexity_ratio": ratio, "worst_layers": LAYERS[-1:], "cosine_mean": cosine}
    return [Finding(name=n, value=v, text="") for n, v in figures.items() if v is not None]


@pytest.mark.parametrize("cosine", [0.99, None])
def test_figures_within_the_floors_pass(cosine: float | None) -> None:
    BACKEND.judge(options(), findings(1.15, cosine))


@pytest.mark.parametrize(
    ("ratio", "cosine"),
    [(1.151, 0.99), (float("nan"), 0.99), (1.0, 0.5), (1.0, float("nan"))],
)
def test_figures_below_the_floors_name_the_layers_that_lost_most(
    ratio: float, cosine: float
) -> None:
    with pytest.raises(QualityError) as caught:
        BACKEND.judge(options(), findings(ratio, cosine))
    floor = "lower min_cosine" if ratio <= 1.15 else "raise max_perplexity_ratio"
    assert caught.value.remedy.endswith(f"or {floor}")
    assert "layer_7 (3 % of the loss)" in caught.value.why
    assert "the preset precision" in caught.value.remedy
    assert caught.value.exit_code == 13


def test_a_scale_for_each_row_is_told_what_does_better() -> None:
    with pytest.raises(QualityError, match="times the float") as caught:
        BACKEND.judge(options(weight_block=0), findings(2))
    assert "--weight-block 32" in caught.value.remedy


@pytest.mark.parametrize(
    ("given", "inner", "size"),
    [
        ({}, 1536, 32),
        ({}, 1568, 32),
        ({}, 1552, 16),
        ({}, 1500, 0),
        ({"weight_block": 0}, 1536, 0),
        ({"weight_block": 16}, 1552, 16),
        ({"weight_bits": 8}, 1536, 0),
        ({"quantizer": "aimet"}, 1536, 0),
        ({"quantizer": "aimet-1.34-cu121"}, 1536, 0),
    ],
)
def test_the_block_is_the_largest_that_fits_where_none_is_asked_for(
    given: dict[str, Any], inner: int, size: int
) -> None:
    made = plan(options(**given), config={"intermediate_size": inner})
    assert made.stage("quantize").params["weight_block"] == size


def test_the_remedy_is_not_what_is_in_use_already() -> None:
    given = options(weight_bits=8, gptq=False, rotate=False)
    with pytest.raises(QualityError) as caught:
        BACKEND.judge(given, findings(2))
    assert "--gptq and --rotate" in caught.value.remedy
    assert "precision" not in caught.value.remedy


def test_the_bundle_is_laid_out_as_genie_wants_it(tmp_path: Path) -> None:
    contents = BACKEND.contents(options(), {"model": model()}, outputs(tmp_path))
    assert set(contents.files) == {
        "models/weight_sharing_model_1_of_1.serialized.bin",
        "genie_config.json",
        "htp_backend_ext_config.json",
        "run.sh",
        "prompts/01.txt",
        "tokenizer.json",
    }


def test_the_readme_says_what_is_missing_and_from_where(tmp_path: Path) -> None:
    words = BACKEND.contents(options(), {"model": model()}, outputs(tmp_path)).readme
    for file in device_files("v79"):
        assert f"| `{file.name}` | `{file.place}` |" in words
    for more in ("v2.51.0.260929181845", "--qairt-sdk", "adb push", "kiln device push"):
        assert more in words


@pytest.mark.parametrize(
    ("quantizer", "parameters", "low", "high"),
    [
        ("edgekiln", 1_235_814_400, 0, 0),
        ("aimet", 1_235_814_400, 0, 0),
        ("aimet-1.34-cu121", 134_515_008, 0, 0),
        ("aimet-1.34-cu121", 1_235_814_400, 11e9, 13e9),
        ("aimet-1.34-cu121", 3_212_749_824, 24e9, 32e9),
    ],
)
def test_only_the_gpu_quantizer_wants_a_gpu(
    quantizer: str, parameters: int, low: float, high: float
) -> None:
    need = vram(model(parameters=parameters), options(quantizer=quantizer))
    assert low <= need <= high
    stages = plan(options(quantizer=quantizer), parameters=parameters).stages
    assert max(s.vram for s in stages) == need


def test_too_small_a_gpu_is_refused_with_the_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 8192\necho 4096\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert doctor.free_vram() == [8192 << 20, 4096 << 20]
    assert doctor.check_vram(8 << 30, "stage calibrate").ok
    check = doctor.check_vram(12 << 30, "stage calibrate")
    assert isinstance(check.error, OutOfMemoryError)
    assert "12.9 GB" in check.error.what and "8.6 GB" in check.error.what
    assert "--force" in check.error.remedy


def test_no_gpu_at_all_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    check = doctor.check_vram(12 << 30, "stage calibrate")
    assert check.error is not None
    assert "no GPU" in check.error.what
    assert "--quantizer edgekiln" in check.error.remedy


def test_no_model_is_needed_beside_the_build_s_own() -> None:
    assert BACKEND.models(options()) == {}
