"""Pruning to 2:4, on tiny models with random weights, with the toolchain's own torch."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.builds.kit import LENIENT, Kiln
from tests.builds.test_mnn_stages import SCRIPTS, Bench, digests, environment
from tests.builds.tinyllm import MAKE_MODEL

pytestmark = pytest.mark.slow

TEXT = SCRIPTS / "qnn" / "data" / "calibration.txt"
WANDA = {"method": "wanda", "tokens": 2048}
MAGNITUDE = {"method": "magnitude"}
# FOLDER [FOLDER]: of each tensor the name, its shape, how many groups of four along its rows hold
# more than two that are not zero, how many numbers are zero; and whether it is as in the second.
LOOK = """
import json, sys
from pathlib import Path
import torch
from safetensors import safe_open

def tensors(folder):
    for file in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():
                yield name, opened.get_tensor(name)

dense = dict(tensors(sys.argv[2]))
found = {}
for name, tensor in tensors(sys.argv[1]):
    groups = (tensor.reshape(-1, 4) != 0).sum(dim=1) if tensor.numel() % 4 == 0 else None
    kept = tensor != 0
    found[name] = {
        "dim": tensor.dim(),
        "too_many": int((groups > 2).sum()),
        "zeros": float((tensor == 0).float().mean()),
        "same": torch.equal(tensor, dense[name]),
        "kept_same": torch.equal(tensor[kept], dense[name][kept]),
        "smallest_kept": float(tensor[kept].abs().min()) if kept.any() else 0,
        "dtype": str(tensor.dtype),
    }
print(json.dumps(found))
"""


@pytest.fixture(scope="session")
def python(mnn_python: Path) -> str:
    return str(mnn_python)


@pytest.fixture(scope="session")
def model(python: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen3 in two files of weights, of 16 bits."""
    place = tmp_path_factory.mktemp("prune") / "qwen3"
    shards = "model.save_pretrained(place, max_shard_size='300KB')"
    make = MAKE_MODEL.replace("model.save_pretrained(place)", shards)
    command = [python, "-c", make, "qwen3", str(place)]
    subprocess.run(command, check=True, capture_output=True, env=environment(place.parent))
    assert len(list(place.glob("*.safetensors"))) > 1
    return place


@pytest.fixture
def bench(python: str, tmp_path: Path) -> Bench:
    return Bench(python, tmp_path)


def look(bench: Bench, sparse: Path, dense: Path) -> dict[str, dict[str, Any]]:
    done = subprocess.run(
        [bench.python, "-c", LOOK, str(sparse), str(dense)],
        capture_output=True, text=True, check=True, env=environment(bench.place),
    )  # fmt: skip
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return found


def inputs(model: Path, params: dict[str, Any]) -> dict[str, Path]:
    return {"model": model} | ({"calibration": TEXT} if params is WANDA else {})


@pytest.mark.parametrize("params", [MAGNITUDE, WANDA], ids=["magnitude", "wanda"])
def test_two_of_four_are_zero_in_linear_layers_and_nowhere_else(
    bench: Bench, model: Path, params: dict[str, Any]
) -> None:
    ran = bench.done("prune2to4", params, **inputs(model, params))
    found = look(bench, ran.out / "sparse", model)
    pruned = {name for name, told in found.items() if not told["same"]}
    linear = {n for n, t in found.items() if "layers." in n and t["dim"] == 2}
    assert pruned == linear and len(linear) == 14
    for name in linear:
        told = found[name]
        assert told["too_many"] == 0, name
        assert told["zeros"] == pytest.approx(0.5, abs=0.01), name
        assert told["kept_same"], name
        assert told["dtype"] == "torch.float16", name
    report = json.loads((ran.out / "pruned" / "pruned.json").read_text(encoding="utf-8"))
    assert (report["pattern"], report["tensors"]) == ("2:4", 14)
    assert report["groups_checked"] * 4 == report["weights"]


def test_by_magnitude_the_two_that_stay_are_the_two_largest(bench: Bench, model: Path) -> None:
    sparse = bench.done("prune2to4", MAGNITUDE, model=model).out / "sparse"
    code = """
import sys, torch
from pathlib import Path
from safetensors import safe_open
for file in sorted(Path(sys.argv[1]).glob("*.safetensors")):
    with safe_open(file, "pt") as a, safe_open(Path(sys.argv[2]) / file.name, "pt") as b:
        for name in a.keys():
            if ".layers." in name and a.get_slice(name).get_shape()[1:]:
                got, was = (t.get_tensor(name).float().reshape(-1, 4).abs() for t in (a, b))
                assert torch.equal(got.sum(1), was.sort(1).values[:, 2:].sum(1)), name
"""
    subprocess.run(
        [bench.python, "-c", code, str(sparse), str(model)],
        check=True, env=environment(bench.place),
    )  # fmt: skip


def test_everything_else_is_as_it_was(bench: Bench, model: Path) -> None:
    sparse = bench.done("prune2to4", MAGNITUDE, model=model).out / "sparse"
    before, after = digests(model), digests(sparse)
    assert set(before) == set(after)
    for name in before:
        assert (before[name] == after[name]) == (not name.endswith(".safetensors")), name


@pytest.mark.parametrize("params", [MAGNITUDE, WANDA], ids=["magnitude", "wanda"])
def test_two_runs_give_the_same_bytes(bench: Bench, model: Path, params: dict[str, Any]) -> None:
    runs = [bench.done("prune2to4", params, **inputs(model, params)).out for _ in range(2)]
    assert digests(runs[0] / "sparse") == digests(runs[1] / "sparse")
    reports = [(out / "pruned" / "pruned.json").read_bytes() for out in runs]
    assert reports[0] == reports[1]


def test_wanda_chooses_other_weights_than_magnitude(bench: Bench, model: Path) -> None:
    magnitude, wanda = (
        bench.done("prune2to4", params, **inputs(model, params)).out
        for params in (MAGNITUDE, WANDA)
    )
    assert digests(magnitude / "sparse") != digests(wanda / "sparse")


@pytest.mark.parametrize("params", [MAGNITUDE, WANDA], ids=["magnitude", "wanda"])
def test_a_pruned_model_is_exported_like_any_other(
    bench: Bench, model: Path, params: dict[str, Any]
) -> None:
    sparse = bench.done("prune2to4", params, **inputs(model, params)).out / "sparse"
    proof = bench.prove(sparse, quant_bit=8)
    assert proof["cosine_mean"] > 0.99


def test_norms_are_those_of_what_flows_through_the_pruned_layers(
    bench: Bench, model: Path, tmp_path: Path
) -> None:
    """The first layer's against a plain run; the last layer's against one of the pruned model."""
    sparse = bench.done("prune2to4", WANDA, model=model, calibration=TEXT).out / "sparse"
    code = """
import sys, torch
from pathlib import Path
import actnorms
from transformers import AutoModelForCausalLM
model, sparse, text = map(Path, sys.argv[1:])
cut = actnorms.windows(model, text.read_text(encoding="utf-8"), 2048, False)
found = actnorms.norms(model, cut, False, lambda *_: None)

def plain(folder, key):
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    seen = []
    def heard(_, args, __):
        seen.append(args[0].reshape(-1, args[0].shape[-1]).double().square().sum(0))
    whole.get_submodule(f"model.{key}").register_forward_hook(heard)
    with torch.inference_mode():
        for ids in cut:
            whole(torch.tensor([ids]), use_cache=False)
    return torch.stack(seen).sum(0).sqrt()

for folder, key in ((model, "layers.0.self_attn.q_proj"), (sparse, "layers.1.self_attn.q_proj")):
    error = (found[key] - plain(folder, key)).abs().max() / found[key].max()
    assert error < 1e-3, (key, float(error))
dense = (found["layers.1.self_attn.q_proj"] - plain(model, "layers.1.self_attn.q_proj")).abs()
assert dense.max() / found["layers.1.self_attn.q_proj"].max() > 1e-2
"""
    env = environment(tmp_path)
    env["PYTHONPATH"] += os.pathsep + str(SCRIPTS / "mnn")
    done = subprocess.run(
        [bench.python, "-c", code, str(model), str(sparse), str(TEXT)],
        capture_output=True, text=True, check=False, env=env,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


def changed(model: Path, place: Path, code: str, python: str) -> Path:
    """A copy of the model whose tensors (`t`, by name) a line of code has changed."""
    script = f"""
import shutil, sys, torch
from pathlib import Path
from safetensors.torch import load_file, save_file
shutil.copytree(sys.argv[1], sys.argv[2])
for file in Path(sys.argv[2]).glob("*.safetensors"):
    t = load_file(file)
    {code}
    save_file(t, file, metadata={{"format": "pt"}})
"""
    subprocess.run([python, "-c", script, str(model), str(place)], check=True)
    return place


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("t = {n: x.to(torch.float8_e4m3fn) for n, x in t.items()}", "packed already"),
        ("t = {n: x for n, x in t.items() if '.layers.' not in n}; t['x'] = torch.ones(1)",
         "no linear layer"),
        ("t = {n: x[:, :126].contiguous() if x.dim() == 2 else x for n, x in t.items()}",
         "no groups of 4"),
    ],
)  # fmt: skip
def test_weights_that_cannot_be_pruned_are_bad_input(
    bench: Bench, model: Path, tmp_path: Path, code: str, what: str
) -> None:
    strange = changed(model, tmp_path / "strange", code, bench.python)
    ran = bench.run("prune2to4", MAGNITUDE, model=strange)
    assert ran.code == 64
    assert what in ran.error


def test_a_damaged_file_is_bad_input(bench: Bench, model: Path, tmp_path: Path) -> None:
    place = tmp_path / "damaged"
    place.mkdir()
    for file in model.iterdir():
        content = file.read_bytes()
        weights = file.suffix == ".safetensors"
        (place / file.name).write_bytes(content[: len(content) // 2] if weights else content)
    ran = bench.run("prune2to4", MAGNITUDE, model=place)
    assert ran.code == 64
    assert "ends too early" in ran.error


@pytest.mark.parametrize(
    ("params", "what"), [({"method": "random"}, "no method"), (WANDA, "too few")]
)
def test_what_the_stage_cannot_use_is_bad_input(
    bench: Bench, model: Path, tmp_path: Path, params: dict[str, Any], what: str
) -> None:
    short = tmp_path / "short.txt"
    short.write_text("A few words.\n", encoding="utf-8")
    ran = bench.run("prune2to4", params, model=model, calibration=short)
    assert ran.code == 64
    assert what in ran.error


def test_a_sparse_build_tells_its_losses_apart(kiln: Kiln, tiny: Path) -> None:
    words = ("build", "--backend", "mnn", "--model", str(tiny), "--executor", "native")
    sparse = (*words, "--sparsity", "2:4", "--sparsity-tokens", "2048")
    done = kiln(*sparse, *LENIENT, "--max-sparsity-ratio", "1000")
    assert done.returncode == 0, done.stderr
    manifest = json.loads((kiln.here / "build/tiny-llama/mnn/manifest.json").read_text("utf-8"))
    told = manifest["figures"]["sparsity"]
    assert told["pattern"] == "2:4" and told["share_of_zeros"] == pytest.approx(0.5, abs=0.01)
    ratio = told["perplexity_sparse"] / told["perplexity_dense"]
    assert told["ratio"] == pytest.approx(ratio) and ratio != 1
    assert "2:4 sparse by wanda" in done.stdout
