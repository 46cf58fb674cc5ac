"""AIMET's two flows on tiny decoders: their choices become the same kind of quantised model.

They need a toolchain that a test does not fetch: each is skipped where its prefix is not filled.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.builds.qnnstages import TEXTS, Stages, ready_python, tiny_graph

pytestmark = pytest.mark.slow

FAMILIES = ("llama", "qwen2", "qwen3")
FLOWS = {"aimet": "aimet_onnx_ptq", "aimet-1.34-cu121": "aimet_torch_ptq"}
LENGTHS = {"context_length": 96, "prefill_length": 32}
LAYERS = 2


@pytest.fixture(scope="module")
def graphs(
    mnn_python: Path, qnn_python: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Path]]:
    """A tiny model of each family and its decoder graph: the inputs all flows share."""
    stages = Stages(place=tmp_path_factory.mktemp("aimet"))
    found = {}
    for family in FAMILIES:
        model, graph = tiny_graph(stages, family, mnn_python, qnn_python, **LENGTHS)
        found[family] = {"model": model, "graph": graph, "texts": TEXTS}
    return found


@pytest.fixture
def stages(tmp_path: Path) -> Stages:
    return Stages(place=tmp_path)


def read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def entries(calibrated: Path) -> dict[str, dict[str, Any]]:
    found = read(calibrated / "encodings.json")
    assert found["version"] == "1.0.0"
    every = [*found["activation_encodings"], *found["param_encodings"]]
    return {entry["name"]: entry for entry in every}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("flow", FLOWS)
def test_its_choices_become_a_quantised_model(
    stages: Stages, graphs: dict[str, dict[str, Path]], qnn_python: Path, flow: str, family: str
) -> None:
    inputs = graphs[family]
    python = ready_python(flow)
    made = stages.done(
        python, FLOWS[flow], inputs, arch="v79", weight_bits=4, calibration_tokens=64
    )
    found = entries(made / "calibrated")
    for i in range(LAYERS):
        # The cache: eight bits around zero, the same in and joined.
        for past, joined in ((f"past_key_{i}_in", "keys"), (f"past_value_{i}_in", "values")):
            one, other = found[past], found[f"layers.{i}.{joined}"]
            assert one["bw"] == other["bw"] == 8 and one["is_sym"] and one["offset"] == [-128]
            assert one["scale"] == pytest.approx(other["scale"])
        weight = found[f"layers.{i}.down_proj.weight"]
        assert weight["bw"] == 4 and set(weight["offset"]) == {-8} and len(weight["scale"]) == 128
        assert found[f"layers.{i}.gated"]["bw"] == 16
    assert found["head.weight"]["bw"] == 8 and len(found["head.weight"]["scale"]) == 258
    out = stages.done(
        qnn_python,
        "aimet_qdq",
        {**inputs, "calibrated": made / "calibrated"},
        calibration_tokens=64,
    )
    quality = read(out / "quantized" / "quality.json")
    assert quality["quantizer"].startswith("aimet-")
    assert 0.9 < quality["perplexity_ratio"] < 1.1
    kept = {e["name"]: e for e in read(out / "quantized" / "encodings.json")["param_encodings"]}
    for name in ("layers.0.q_proj.weight", "head.weight"):
        assert kept[name]["scale"] == pytest.approx(found[name]["scale"], rel=1e-6)


@pytest.mark.parametrize("flow", FLOWS)
def test_two_runs_give_the_same_bytes(
    stages: Stages, graphs: dict[str, dict[str, Path]], flow: str
) -> None:
    python, inputs = ready_python(flow), graphs["llama"]
    first, second = (
        stages.done(python, FLOWS[flow], inputs, weight_bits=4, calibration_tokens=32)
        for _ in range(2)
    )
    for file in sorted((first / "calibrated").iterdir()):
        assert file.read_bytes() == (second / "calibrated" / file.name).read_bytes(), file.name


@pytest.mark.parametrize("flow", FLOWS)
def test_seq_mse_narrows_ranges_that_the_largest_weight_set(
    stages: Stages, graphs: dict[str, dict[str, Path]], flow: str
) -> None:
    python, inputs = ready_python(flow), graphs["llama"]
    scales = {}
    for seq_mse in (False, True):
        made = stages.done(
            python, FLOWS[flow], inputs, weight_bits=4, calibration_tokens=32, seq_mse=seq_mse
        )
        scales[seq_mse] = entries(made / "calibrated")["layers.1.up_proj.weight"]["scale"]
    pairs = list(zip(scales[True], scales[False], strict=True))
    # A channel whose farthest weight is negative has eight steps for it; SeqMSE counts seven.
    assert all(after <= before * 8 / 7 * 1.0001 for after, before in pairs)
    assert sum(after < before * 0.99 for after, before in pairs) > len(pairs) / 2


def test_the_write_ups_listing_is_written_where_it_is_asked_for(
    stages: Stages, graphs: dict[str, dict[str, Path]]
) -> None:
    python = ready_python("aimet-1.34-cu121")
    made = stages.done(
        python,
        "aimet_torch_ptq",
        graphs["qwen2"],
        calibration_tokens=32,
        seq_mse=False,
        export_onnx=True,
    )
    root = made / "calibrated"
    listing = {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}
    names = ("decoder.onnx", "decoder.encodings", "decoder.pth", "decoder_torch.encodings")
    assert {f"onnx/{name}" for name in names} <= listing
    vectors = ("fp_0.pkl", "qt_0.pkl", "layer_output_name_order.json")
    assert {f"test_vectors/{name}" for name in vectors} <= listing
    exported = read(root / "onnx/decoder.encodings")
    ours = entries(root)
    # AIMET's own file and ours say the same of what has the same name in both graphs.
    shared = exported["activation_encodings"].keys() & ours.keys()
    assert {"past_key_0_in", "attention_mask", "position_ids_cos"} <= shared and len(shared) > 6
    for name in shared:
        assert exported["activation_encodings"][name][0]["scale"] == pytest.approx(
            ours[name]["scale"][0], rel=1e-5
        ), name


def test_a_tokenizer_of_a_newer_release_is_read_as_well(
    graphs: dict[str, dict[str, Path]], tmp_path: Path
) -> None:
    """tokenizers 0.19, which goes with transformers 4.43, does not know merges in lists."""
    told = read(graphs["llama"]["model"] / "tokenizer.json")
    vocabulary = told["model"]["vocab"]
    vocabulary["th"] = vocabulary.pop("\u0120")  # the space's place, which this text has none of
    told["model"]["merges"] = [["t", "h"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(told), encoding="utf-8")
    program = (
        "import sys; from pathlib import Path; import calibrated, tokenizers\n"
        "try: tokenizers.Tokenizer.from_file(sys.argv[1] + '/tokenizer.json'); print('known')\n"
        "except Exception: print('unknown')\n"
        "print(calibrated.tokenizer(Path(sys.argv[1])).encode('paththat').tokens)"
    )
    scripts = TEXTS.parents[1]
    path = os.pathsep.join((str(scripts), str(scripts / "qnn")))
    done = subprocess.run(
        [str(ready_python("aimet-1.34-cu121")), "-c", program, str(tmp_path)],
        check=True,
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": path},
    )
    assert done.stdout.splitlines() == ["unknown", "['p', 'a', 'th', 'th', 'a', 't']"]


def test_what_aimet_cannot_do_is_refused(
    stages: Stages, graphs: dict[str, dict[str, Path]]
) -> None:
    python, inputs = ready_python("aimet"), graphs["llama"]
    ran = stages.run(python, "aimet_onnx_ptq", inputs, {}, weight_bits=4, weight_block=32)
    assert ran.code == 64 and "not in blocks" in ran.error
    ran = stages.run(python, "aimet_onnx_ptq", inputs, {}, arch="v12", calibration_tokens=32)
    assert ran.code == 64 and "v12" in ran.error


def test_a_gpu_that_is_not_there_is_said_so(
    stages: Stages, graphs: dict[str, dict[str, Path]]
) -> None:
    python = ready_python("aimet-1.34-cu121")
    hidden = {"CUDA_VISIBLE_DEVICES": ""}
    ran = stages.run(python, "aimet_torch_ptq", graphs["llama"], hidden, device="cuda")
    assert ran.code == 64 and "no CUDA device" in ran.error


# QUANTIZED PLACE: the graph for the vendor's tools, through AIMET's rules for the HTP.
FUSE = """
import json, sys
from collections import Counter
from pathlib import Path
import aimet_onnx, onnx, onnxfile, qairt_graph

quantized, place = map(Path, sys.argv[1:])
model = onnxfile.load(quantized / "model.onnx")
lowered = qairt_graph.lower(model, quantized, place / "model.data")
onnx.save(lowered.model, str(place / "lowered.onnx"))
sim = aimet_onnx.QuantizationSimModel(
    onnx.load(str(place / "lowered.onnx")), param_type="int4", activation_type="int16",
    config_file="htp_v79",
)
kinds = Counter(node.op_type for node in sim.model.model.graph.node)
(place / "told.json").write_text(json.dumps({"kinds": kinds, "on": list(sim.qc_quantize_op_dict)}))
"""


def test_the_vendors_fusion_finds_every_norm_that_is_spelled_out(
    stages: Stages, graphs: dict[str, dict[str, Path]], qnn_python: Path, tmp_path: Path
) -> None:
    """What is handed to the QAIRT tools; of those, AIMET's rules are the part that can run here."""
    python = ready_python("aimet")
    made = stages.done(qnn_python, "quantize", graphs["qwen3"], calibration_tokens=64)
    scripts = TEXTS.parents[1]
    path = os.pathsep.join((str(scripts), str(scripts / "qnn")))
    command = [str(python), "-c", FUSE, str(made / "quantized"), str(tmp_path)]
    subprocess.run(
        command,
        check=True,
        capture_output=True,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": path},
    )
    told = read(tmp_path / "told.json")
    assert told["kinds"]["RMSNormalization"] == 4 * LAYERS + 1  # two of each layer, q's and k's
    assert not {"Pow", "ReduceMean", "Sqrt"} & told["kinds"].keys()
    assert not [name for name in told["on"] if name.endswith((".mean", ".root", ".normed"))]
