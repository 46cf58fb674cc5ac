"""The stage with the vendor's tools, on a tiny quantised model and a stand-in for the SDK.

The stand-in's tools are programs that check and record what they are given and compile nothing
(tests/unit/qairt_standin.py). What is shown here is that the graphs and encodings handed to them
are the quantised model's, and that they are called as the vendor's notebooks call them.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.builds.qnnstages import TEXTS, Ran, Stages, tiny_graph
from tests.unit import qairt_standin as standin

pytestmark = pytest.mark.slow

CHIP = {"soc": "sm8750", "soc_model": 69, "arch": "v79", "vtcm_mb": 8, "weight_sharing": True}
LENGTHS = {"context_length": 96, "prefill_length": 32}
FAMILIES = ("llama", "qwen2", "qwen3")

# QUANTIZED FOLDER: lowers the model, runs it beside the float graph with the same weights.
LOWER = """
import json, sys
from pathlib import Path
import numpy as np, onnx, onnxruntime
import chunks, onnxfile, qairt_graph, streams

quantized, graph, place = map(Path, sys.argv[1:])
model = onnxfile.load(quantized / "model.onnx")
lowered = qairt_graph.lower(model, quantized, place / "model.data")
onnx.save(lowered.model, str(place / "lowered.onnx"))
onnx.checker.check_model(str(place / "lowered.onnx"), full_check=True)
spec = chunks.read_spec(quantized)
(chunk,) = chunks.split([list(range(5, 5 + spec["prefill"]))], spec["prefill"], spec["context"])
feeds = chunks.edges(spec, chunk)
for i in range(spec["layers"]):
    feeds |= chunks.Cache.empty(spec).feeds(i, spec["context"] - spec["prefill"])
session = onnxruntime.InferenceSession(str(place / "lowered.onnx"))
names = [o.name for o in session.get_outputs()]
got = dict(zip(names, session.run(names, feeds)))
turned = {t.name: onnxfile.values(t, place) for t in lowered.model.graph.initializer}
floats = onnxfile.load(graph / "model.onnx")
weights = {}
for tensor in floats.graph.initializer:
    if tensor.data_type == onnx.TensorProto.FLOAT:
        values = np.array(turned[tensor.name])
        values = values[:, :, 0, 0].T if values.ndim == 4 else values
        weights[tensor.name] = np.ascontiguousarray(values)
session = streams.session(floats, graph, weights)
want = dict(zip(names, session.run(names, feeds)))
given = json.loads((quantized / "encodings.json").read_text())
overrides = qairt_graph.overrides(given, lowered)
inner = {n for node in lowered.model.graph.node for n in node.output}
covered = {e["name"] for e in overrides["activation_encodings"]}
print(json.dumps({
    "far": {name: float(np.abs(got[name] - want[name]).max()) for name in names},
    "largest": float(np.abs(want["logits"]).max()),
    "opset": lowered.model.opset_import[0].version,
    "kinds": sorted({node.op_type for node in lowered.model.graph.node}),
    "bare": sorted(inner - covered),
    "lost": sorted({e["name"] for e in given["activation_encodings"]} - covered),
}))
"""


@pytest.fixture(scope="module")
def quantised(
    mnn_python: Path, qnn_python: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Path]]:
    """Each family's graph and quantised model."""
    stages = Stages(place=tmp_path_factory.mktemp("qairt"))
    found = {}
    for family in FAMILIES:
        model, graph = tiny_graph(stages, family, mnn_python, qnn_python, **LENGTHS)
        inputs = {"graph": graph, "model": model, "texts": TEXTS}
        made = stages.done(qnn_python, "quantize", inputs, calibration_tokens=64)
        found[family] = {"graph": graph, "quantized": made / "quantized"}
    return found


@pytest.fixture
def sdk(tmp_path: Path) -> Path:
    return standin.folder(tmp_path)


@pytest.fixture
def stages(tmp_path: Path) -> Stages:
    return Stages(place=tmp_path)


def compiled(
    stages: Stages, python: Path, quantized: Path, sdk: Path, env: dict[str, str], **params: Any
) -> Ran:
    env = {"STANDIN_LOG": str(stages.place / "log"), **env}
    inputs = {"quantized": quantized, "sdk": sdk}
    return stages.run(python, "qairt_compile", inputs, env, **{**CHIP, **params})


def calls(stages: Stages) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (stages.place / "log").read_text().splitlines()]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_float_graph_is_the_quantised_model(
    qnn_python: Path, quantised: dict[str, dict[str, Path]], tmp_path: Path, family: str
) -> None:
    scripts = TEXTS.parents[1]
    path = os.pathsep.join((str(scripts), str(scripts / "qnn")))
    folders = quantised[family]
    command = [str(qnn_python), "-c", LOWER, folders["quantized"], folders["graph"], tmp_path]
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["largest"] > 1 and max(told["far"].values()) < 1e-4, told["far"]
    assert told["opset"] == 17 and "RMSNormalization" not in told["kinds"]
    assert "Conv" in told["kinds"] and "QuantizeLinear" not in told["kinds"]
    # Only a norm's insides have no encoding: the tools fuse them again.
    inside = (".square", ".mean", ".shift", ".root", ".normed")
    assert told["bare"] and all(name.endswith(inside) for name in told["bare"])
    assert told["lost"] == []


def test_both_graphs_of_each_split_go_into_one_binary(
    stages: Stages, qnn_python: Path, quantised: dict[str, dict[str, Path]], sdk: Path
) -> None:
    quantized = quantised["qwen2"]["quantized"]
    ran = compiled(stages, qnn_python, quantized, sdk, {}, splits=2)
    assert ran.code == 0, ran.error + ran.log
    told = json.loads((ran.out / "binaries" / "compile.json").read_text())
    assert [b["file"] for b in told["binaries"]] == [
        "weight_sharing_model_1_of_2.serialized.bin",
        "weight_sharing_model_2_of_2.serialized.bin",
    ]
    assert told["shared"] and told["splits"] == 2 and told["qnn_build"] == standin.BUILD
    names = [[g["name"] for g in b["graphs"]] for b in told["binaries"]]
    assert names == [[f"ar{t}-cl96_{i}_of_2" for t in (32, 1)] for i in (1, 2)]
    last = told["binaries"][1]["graphs"][1]
    assert last["inputs"][0]["name"] == "hidden_1" and last["inputs"][0]["shape"] == [1, 1, 128]
    assert last["outputs"][0]["name"] == "logits" and last["outputs"][0]["dtype"] == "uint16"
    cache = {t["name"]: t for t in (*last["inputs"], *last["outputs"])}
    one, other = cache["past_key_1_in"], cache["past_key_1_out"]
    assert (one["dtype"], one["offset"]) == ("uint8", -128)
    assert one["scale"] == other["scale"] and one["shape"] != other["shape"]
    twins = sorted(f.name for f in (ran.out / "twins").iterdir())
    assert twins == sorted(f"ar{t}_{i}_of_2.bin" for t in (1, 32) for i in (1, 2))
    _in_order(calls(stages))


def _in_order(told: list[dict[str, Any]]) -> None:
    """The tools as they were called for two graphs of two splits."""
    of_graph = ["mha2sha-onnx-converter", "qairt-converter", "qairt-quantizer"]
    alone = ["qnn-context-binary-generator", "settings"]
    assert [call["tool"] for call in told] == ([*of_graph, *alone] * 2 + alone) * 2
    shared = [call for call in told if call["tool"] == "settings"][2]
    assert shared["inner"]["context"] == {"weight_sharing_enabled": True}
    assert shared["inner"]["graphs"][0]["graph_names"] == [
        "ar32-cl96_1_of_2",
        "ar1-cl96_1_of_2",
    ]
    assert shared["inner"]["devices"][0]["soc_id"] == 69
    generator = [call for call in told if call["tool"] == "qnn-context-binary-generator"][2]
    assert generator["words"][-2:] == [
        "--dlc_path",
        "ar32-cl96_1_of_2_quantized.dlc,ar1-cl96_1_of_2_quantized.dlc",
    ]
    assert generator["env"]["QNN_SDK_ROOT"].endswith(standin.VERSION)
    assert "scripts" not in generator["env"]["PYTHONPATH"]


def test_two_builds_give_the_same_bytes_to_the_tools(
    stages: Stages, qnn_python: Path, quantised: dict[str, dict[str, Path]], sdk: Path
) -> None:
    quantized = quantised["llama"]["quantized"]
    first, second = (compiled(stages, qnn_python, quantized, sdk, {}) for _ in range(2))
    for side in ("binaries", "twins"):
        for file in sorted((first.out / side).iterdir()):
            assert file.read_bytes() == (second.out / side / file.name).read_bytes()


def test_a_chip_without_sharing_gets_a_binary_for_each_graph(
    stages: Stages, qnn_python: Path, quantised: dict[str, dict[str, Path]], sdk: Path
) -> None:
    quantized = quantised["llama"]["quantized"]
    chip = {"soc": "sm8450", "soc_model": 36, "arch": "v69", "weight_sharing": False}
    ran = compiled(stages, qnn_python, quantized, sdk, {}, **chip)
    assert ran.code == 0 and "cannot share weights" in ran.notes()
    told = json.loads((ran.out / "binaries" / "compile.json").read_text())
    files = [b["file"] for b in told["binaries"]]
    assert files == ["ar32_1_of_1.serialized.bin", "ar1_1_of_1.serialized.bin"]
    settings = [c["inner"] for c in calls(stages) if c["tool"] == "settings"]
    assert not any(s["context"]["weight_sharing_enabled"] for s in settings)


def test_an_sdk_without_the_head_splitter_or_one_that_refuses_still_compiles(
    stages: Stages, qnn_python: Path, quantised: dict[str, dict[str, Path]], tmp_path: Path
) -> None:
    quantized = quantised["llama"]["quantized"]
    without = standin.folder(tmp_path / "without", mha2sha=False)
    assert compiled(stages, qnn_python, quantized, without, {}).code == 0
    assert "mha2sha-onnx-converter" not in {call["tool"] for call in calls(stages)}
    fails = {"STANDIN_FAILS": "mha2sha-onnx-converter"}
    ran = compiled(stages, qnn_python, quantized, standin.folder(tmp_path / "with"), fails)
    assert ran.code == 0 and "keeps its attention in one piece" in ran.notes()


def test_a_tool_that_fails_is_named_with_its_words(
    stages: Stages, qnn_python: Path, quantised: dict[str, dict[str, Path]], sdk: Path
) -> None:
    quantized = quantised["llama"]["quantized"]
    fails = {"STANDIN_FAILS": "qairt-quantizer"}
    ran = compiled(stages, qnn_python, quantized, sdk, fails)
    assert ran.code == 1 and "qairt-quantizer ended with 3" in ran.error
    assert not list((ran.out / "binaries").iterdir())
