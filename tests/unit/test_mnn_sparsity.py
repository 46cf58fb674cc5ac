"""2:4 sparsity in the plan of an MNN build: what is pruned, compared, judged and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgekiln.backends.base import Outputs
from edgekiln.backends.mnn import BACKEND
from edgekiln.errors import ModelError, QualityError, UsageError
from edgekiln.pipeline import FromPath, FromStage
from tests.unit.kit import write_json
from tests.unit.test_mnn_options import model, options, plan


def test_a_sparse_build_prunes_first_and_keeps_the_dense_reference() -> None:
    dense, sparse = plan(), plan(options(sparsity="2:4"))
    assert [s.name for s in sparse.stages] == [
        "reference", "prune", "sparse_reference", "export", "configure", "prove",
    ]  # fmt: skip
    assert sparse.stage("reference") == dense.stage("reference")
    pruned = FromStage(stage="prune", output="sparse")
    assert sparse.stage("export").inputs["model"] == pruned
    assert sparse.stage("sparse_reference").inputs["model"] == pruned
    proved = sparse.stage("prove").inputs["reference"]
    assert proved == FromStage(stage="sparse_reference", output="reference")


def test_a_build_that_is_not_sparse_is_as_it_was() -> None:
    assert [s.name for s in plan().stages] == ["reference", "export", "configure", "prove"]
    assert plan(options(sparsity_tokens=2048)) == plan()


def test_wanda_reads_the_users_text_and_magnitude_none(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("some text\n", encoding="utf-8")
    given = options(sparsity="2:4", calib_data=str(text))
    prune = plan(given).stage("prune")
    assert prune.inputs["calibration"] == FromPath(path=text)
    assert prune.params == {"method": "wanda", "tokens": 8192}
    assert "calib_data" not in plan(given).stage("export").inputs
    own = plan(options(sparsity="2:4")).stage("prune").inputs["calibration"]
    assert isinstance(own, FromPath) and own.path.is_file()
    plain = plan(options(sparsity="2:4", sparsity_method="magnitude")).stage("prune")
    assert set(plain.inputs) == {"model"} and plain.params == {"method": "magnitude"}


def test_one_text_serves_both_pruning_and_smoothing(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("some text\n", encoding="utf-8")
    pipeline = plan(options(sparsity="2:4", smooth=True, calib_data=str(text)))
    for stage, name in (("prune", "calibration"), ("export", "calib_data")):
        assert pipeline.stage(stage).inputs[name] == FromPath(path=text)


def test_wanda_is_expected_to_need_more_memory_than_magnitude() -> None:
    large = model(parameters=1_720_000_000, weight_bytes=4 << 30, hidden_size=2048, heads=16)
    needs = {
        method: BACKEND.plan(options(sparsity="2:4", sparsity_method=method), {"model": large})
        .stage("prune")
        .memory
        for method in ("wanda", "magnitude")
    }
    assert needs["wanda"] > large.weight_bytes > needs["magnitude"]


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"gptq_path": "/"}, "sparsity and gptq_path"),
        ({"lora_path": "/", "lora_split": True}, "sparsity and lora_path"),
        ({"speculative": "eagle", "eagle_path": "/"}, "sparsity and speculative eagle"),
        ({"sparsity_method": "magnitude", "calib_data": __file__}, "calib_data is read by"),
    ],
)
def test_what_does_not_go_with_pruning_is_refused(given: dict[str, Any], what: str) -> None:
    with pytest.raises(UsageError) as caught:
        plan(options(sparsity="2:4", **given))
    assert what in caught.value.what
    assert caught.value.remedy


@pytest.mark.parametrize("key", ["num_experts", "quantization_config"])
def test_weights_that_cannot_be_pruned_are_refused_before_anything_runs(key: str) -> None:
    strange = model(config={"intermediate_size": 1536, key: {"quant_method": "awq"}})
    with pytest.raises(ModelError) as caught:
        BACKEND.plan(options(sparsity="2:4"), {"model": strange})
    assert "--sparsity" in caught.value.remedy


def outputs(tmp_path: Path, *, dense: float, sparse: float, quantised: float) -> Outputs:
    """The reports of a finished sparse build."""
    proof = {
        "answers": [{"prompt": "p", "answer": "a"}],
        "cosine_mean": 0.99,
        "cosine_min": 0.98,
        "perplexity_float": sparse,
        "perplexity_quantised": quantised,
        "perplexity_ratio": quantised / sparse,
        "prefill_tokens_per_second": None,
        "decode_tokens_per_second": None,
        "prompts": [],
    }
    pruned = {"pattern": "2:4", "method": "wanda", "weights": 8, "share_of_zeros": 0.5}
    files: dict[tuple[str, str], tuple[str, Any]] = {
        ("prove", "prove"): ("prove.json", proof),
        ("reference", "reference"): ("reference.json", {"perplexity": dense}),
        ("prune", "pruned"): ("pruned.json", {**pruned, "lost_most": []}),
    }
    places = {}
    for (stage, output), (name, value) in files.items():
        folder = tmp_path / stage
        folder.mkdir()
        write_json(folder / name, value)
        places[stage, output] = folder
    return Outputs(paths=places)


def test_what_pruning_cost_is_told_apart_from_quantising(tmp_path: Path) -> None:
    made = outputs(tmp_path, dense=40.0, sparse=80.0, quantised=100.0)
    found = {f.name: f for f in BACKEND.findings(options(sparsity="2:4"), made)}
    value = found["sparsity"].value
    assert (value["ratio"], value["ratio_in_all"]) == (2.0, 2.5)
    assert "40.00 dense, 80.00 sparse (2.000 times), 100.00 sparse and quantised" in (
        found["sparsity"].text
    )
    assert found["perplexity_ratio"].value == 1.25
    assert "the sparse float model" in found["cosine_mean"].text
    json.dumps(value)
    BACKEND.judge(options(sparsity="2:4"), list(found.values()))


@pytest.mark.parametrize("sparse", [300.0, float("nan")])
def test_a_model_that_pruning_spoilt_fails_with_what_to_do(tmp_path: Path, sparse: float) -> None:
    given = options(sparsity="2:4", sparsity_method="magnitude", max_sparsity_ratio=6)
    made = outputs(tmp_path, dense=40.0, sparse=sparse, quantised=sparse)
    with pytest.raises(QualityError) as caught:
        BACKEND.judge(given, BACKEND.findings(given, made))
    assert "above 6" in caught.value.what
    assert "wanda" in caught.value.remedy
