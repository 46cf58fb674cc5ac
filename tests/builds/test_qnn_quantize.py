"""The quantise stage on tiny decoders: exact where it must be, refusing what HTP gets wrong."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.builds.quantprograms import EMULATE, LOOK, TRAPS

pytestmark = pytest.mark.slow

SCRIPTS = Path(__file__).parents[2] / "scripts"
LENGTHS = {"context_length": 96, "prefill_length": 16}
FEW = {"calibration_tokens": 512}
COMMON: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "tie_word_embeddings": False,
}
OUTPUTS = {"graph": "graph", "quantize": "quantized", "compile": "twins"}
FAMILIES = ("llama", "qwen2", "qwen3")


def _write_model(place: Path, family: str) -> Path:
    """A random decoder with one massive channel, and a tokenizer of single bytes."""
    random = np.random.default_rng(len(family))
    place.mkdir(parents=True)
    config = {**COMMON, "model_type": family, "architectures": [f"{family}ForCausalLM"]}
    (place / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (place / "tokenizer.json").write_text(json.dumps(_tokenizer()), encoding="utf-8")
    tensors = {name: _values(random, name, shape) for name, shape in _shapes(family)}
    # A channel of the residual far beyond the others, as real models have.
    tensors["model.layers.0.mlp.down_proj.weight"][5] *= 40
    if family == "qwen2":
        tensors["model.layers.1.self_attn.k_proj.bias"][3] = 30
    _write_safetensors(place / "model.safetensors", tensors)
    return place


def _shapes(family: str) -> list[tuple[str, tuple[int, ...]]]:
    h, i, q, kv, d = 48, 96, 64, 32, 16
    found: list[tuple[str, tuple[int, ...]]] = [
        ("model.embed_tokens.weight", (256, h)),
        ("model.norm.weight", (h,)),
        ("lm_head.weight", (256, h)),
    ]
    for n in range(COMMON["num_hidden_layers"]):
        here = f"model.layers.{n}"
        found += [(f"{here}.{x}_layernorm.weight", (h,)) for x in ("input", "post_attention")]
        for name, rows in (("q", q), ("k", kv), ("v", kv)):
            found.append((f"{here}.self_attn.{name}_proj.weight", (rows, h)))
            if family == "qwen2":
                found.append((f"{here}.self_attn.{name}_proj.bias", (rows,)))
        if family == "qwen3":
            found += [(f"{here}.self_attn.{x}_norm.weight", (d,)) for x in "qk"]
        found.append((f"{here}.self_attn.o_proj.weight", (h, q)))
        found += [(f"{here}.mlp.{x}_proj.weight", (i, h)) for x in ("gate", "up")]
        found.append((f"{here}.mlp.down_proj.weight", (h, i)))
    return found


def _values(random: np.random.Generator, name: str, shape: tuple[int, ...]) -> Any:
    values = random.normal(size=shape) * (0.3 if len(shape) == 1 else 0.15)
    return (values + ("norm" in name)).astype(np.float32)


def _write_safetensors(file: Path, tensors: dict[str, Any]) -> None:
    header, at = {}, 0
    for name, values in tensors.items():
        header[name] = {
            "dtype": "F32",
            "shape": list(values.shape),
            "data_offsets": [at, at + values.nbytes],
        }
        at += values.nbytes
    head = json.dumps(header).encode()
    data = b"".join(values.tobytes() for values in tensors.values())
    file.write_bytes(struct.pack("<Q", len(head)) + head + data)


def _tokenizer() -> dict[str, Any]:
    """Byte by byte: GPT-2's printable stand-ins, no merges."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in shown]
    letters = {b: chr(b) for b in shown} | {b: chr(256 + n) for n, b in enumerate(hidden)}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {**level, "use_regex": False},
        "decoder": {**level, "use_regex": False},
        "model": {"type": "BPE", "vocab": {letters[b]: b for b in range(256)}, "merges": []},
    }


class Ran(NamedTuple):
    code: int
    events: list[dict[str, Any]]
    log: str
    folder: Path

    @property
    def error(self) -> str:
        return str(next((e["text"] for e in self.events if e["event"] == "error"), ""))

    def read(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text(encoding="utf-8"))


class Bench:
    """Tiny models, their graphs, and the quantise stage on them."""

    def __init__(self, python: Path, place: Path) -> None:
        self.python, self.place, self.count = str(python), place, 0
        self.graphs: dict[str, Path] = {}

    def model(self, family: str) -> Path:
        place = self.place / family
        return place if place.exists() else _write_model(place, family)

    def graph(self, model: Path) -> Path:
        if model.name not in self.graphs:
            ran = self.stage("graph", LENGTHS, model=model)
            assert ran.code == 0, ran.error + ran.log
            self.graphs[model.name] = ran.folder
        return self.graphs[model.name]

    def quantise(self, model: Path, *, cpus: int = 2, **params: Any) -> Ran:
        files = {k: params.pop(k) for k in ("calibration", "evaluation") if k in params}
        texts = SCRIPTS / "qnn" / "data"
        inputs = {"graph": self.graph(model), "model": model, "texts": texts, **files}
        return self.stage("quantize", {**FEW, **params}, cpus=cpus, **inputs)

    def made(self, family: str, **params: Any) -> Ran:
        ran = self.quantise(self.model(family), **params)
        assert ran.code == 0, ran.error + ran.log
        return ran

    def stage(self, name: str, params: dict[str, Any], *, cpus: int = 2, **inputs: Path) -> Ran:
        self.count += 1
        place = self.place / f"run-{self.count}"
        for folder in ("in", "out"):
            (place / folder).mkdir(parents=True)
        for key, path in inputs.items():
            (place / "in" / key).symlink_to(path)
        (place / "params.json").write_text(json.dumps(params), encoding="utf-8")
        more = {
            "KILN_IN": str(place / "in"),
            "KILN_OUT": str(place / "out"),
            "KILN_PARAMS": str(place / "params.json"),
            "KILN_CPUS": str(cpus),
        }
        done = self.call(str(SCRIPTS / "qnn" / f"{name}.py"), **more)
        events = [json.loads(line) for line in done.stdout.splitlines()]
        folder = place / "out" / OUTPUTS[name]
        return Ran(done.returncode, events, done.stderr, folder)

    def drive(self, program: str, *arguments: object) -> Any:
        done = self.call("-c", program, *map(str, arguments))
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    def call(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        path = f"{SCRIPTS}{os.pathsep}{SCRIPTS / 'qnn'}"
        return subprocess.run(
            [self.python, *arguments],
            capture_output=True,
            text=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONPATH": path, **more},
            check=False,
        )


@pytest.fixture(scope="module")
def bench(qnn_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(qnn_python, tmp_path_factory.mktemp("quantise"))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_turned_model_computes_what_the_graph_computes(bench: Bench, family: str) -> None:
    ran = bench.made(family)
    told = bench.drive(LOOK, bench.graph(bench.model(family)), ran.folder)
    # Rotation, folded gains and balanced keys change nothing in float but its rounding.
    assert told["float_differs"] < 1e-4 * told["largest"]
    # What was measured part by part is what the written model gives as a whole.
    assert told["whole_differs"] <= told["logit_step"]
    assert told["perplexity"] == pytest.approx(ran.read("quality.json")["perplexity_quantised"])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_quantised_model_says_nearly_the_same(bench: Bench, family: str) -> None:
    told = bench.made(family, weight_bits=8).read("quality.json")
    assert 0.98 < told["perplexity_ratio"] < 1.02
    assert told["perplexity_tokens"] >= 1400
    names = ["embed", "layer_0", "layer_1"]
    assert [row["name"] for row in told["layers"]] == names
    assert all(row["sqnr_db"] > 20 for row in told["layers"])
    assert sum(row["share"] for row in told["layers"]) == pytest.approx(1, abs=0.001)


def test_rotation_helps_where_one_channel_is_massive(bench: Bench) -> None:
    fine = {"weight_bits": 8, "embed_bits": 16}
    turned, plain = (
        bench.made("llama", rotate=r, **fine).read("quality.json") for r in (True, False)
    )
    assert turned["layers"][-1]["sqnr_db"] > plain["layers"][-1]["sqnr_db"]


def test_a_block_that_fits_is_the_default(bench: Bench) -> None:
    # 48 inputs are no whole number of 32s.
    assert bench.made("llama").read("quality.json")["weight_block"] == 16
    assert bench.made("llama", weight_bits=8).read("quality.json")["weight_block"] == 0


def test_gptq_loses_less_than_the_nearest_integers(bench: Bench) -> None:
    best, plain = (bench.made("llama", gptq=g).read("quality.json") for g in (True, False))
    assert best["layers"][-1]["sqnr_db"] > plain["layers"][-1]["sqnr_db"]


@pytest.mark.parametrize("params", [{}, {"weight_block": 0}, {"embed_bits": 16}])
def test_the_bytes_depend_on_neither_the_run_nor_the_cores(
    bench: Bench, params: dict[str, Any]
) -> None:
    runs = [bench.made("qwen2", cpus=cpus, **params).folder for cpus in (1, 3)]
    files = [{f.name: _sha256(f) for f in sorted(folder.iterdir())} for folder in runs]
    assert files[0] == files[1]
    assert {"model.onnx", "model.data", "encodings.json", "vectors.npz"} <= files[0].keys()


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize("family", FAMILIES)
def test_encodings_name_every_tensor_that_is_quantised(bench: Bench, family: str) -> None:
    ran = bench.made(family, weight_block=16)
    encodings = ran.read("encodings.json")
    activations = {entry["name"]: entry for entry in encodings["activation_encodings"]}
    told = bench.drive(LOOK, bench.graph(bench.model(family)), ran.folder)
    assert set(told["computed"]) == set(activations)
    for layer in range(2):
        for kind in ("key", "value"):
            grids = [activations[f"past_{kind}_{layer}_{side}"] for side in ("in", "out")]
            joined = activations[f"layers.{layer}.{kind}s"]
            assert [g["scale"] for g in grids] == [joined["scale"]] * 2
            assert {(g["bw"], g["is_sym"]) for g in (*grids, joined)} == {(8, True)}
            assert {tuple(g["offset"]) for g in grids} == {(-128,)}
    eights = {name for name, entry in activations.items() if entry["bw"] == 8}
    assert not [n for n in eights if "softmax" in n or ".q_" in n or "scores" in n]
    weights = {entry["name"]: entry for entry in encodings["param_encodings"]}
    assert set(weights) == set(told["parameters"])
    assert weights["layers.0.o_proj.weight"]["enc_type"] == "PER_BLOCK"
    assert weights["head.weight"]["enc_type"] == "PER_CHANNEL"


def test_what_htp_gets_wrong_is_refused(bench: Bench) -> None:
    ran = bench.made("llama", weight_block=0)
    refused = bench.drive(TRAPS, ran.folder)
    assert "not symmetric" in refused["zero point on int4"]
    assert "has no zero point" in refused["no zero point on int4"]
    assert "each output channel" in refused["one scale for a weight"]
    assert "different grids" in refused["cache in and out"]
    assert "not 8 bits" in refused["cache of 16 bits"]
    assert "no cache and not 16 bits" in refused["8-bit softmax"]
    assert "opset 20" in refused["opset"]
    assert "norms stay whole" in refused["a norm in pieces"]
    assert "no range for" in refused["a tensor without a grid"]
    assert "different grids" in refused["concat"]
    assert refused["as it was written"] == ""


@pytest.mark.parametrize(
    "params",
    [
        {"weight_bits": 8},
        {"weight_block": 0},
        {"weight_block": 16},
        {"embed_bits": 16, "weight_block": 16},
    ],
    ids=["int8", "int4", "blocks", "16-bit table"],
)
def test_the_emulated_chip_computes_what_the_cpu_computes(
    bench: Bench, params: dict[str, Any]
) -> None:
    ran = bench.made("qwen2", **params)
    chip = {"soc": "sm8750", "soc_model": 69, "arch": "v79", "vtcm_mb": 8, "weight_sharing": True}
    compiled = bench.stage("compile", {**chip, "splits": 1}, quantized=ran.folder)
    assert compiled.code == 0, compiled.error + compiled.log
    told = bench.drive(EMULATE, ran.folder, compiled.folder)
    # An int4 weight that HTP takes for another one gives less than 0.
    assert told["cosine"] > 0.99


def test_prompts_come_with_the_float_models_answers(bench: Bench) -> None:
    told = bench.made("llama").read("quality.json")["prompts"]
    assert told[0]["prompt"] == "What is the capital of France?"
    for row in told:
        assert len(row["float_answer_ids"]) == len(row["margins"]) and row["margin"] >= 0
        assert row["margin"] == min(row["margins"])


def test_a_text_of_the_users_own_is_used(bench: Bench, tmp_path: Path) -> None:
    text = tmp_path / "own.txt"
    text.write_text("The heron waits, and then it does not. " * 60, encoding="utf-8")
    ran = bench.quantise(bench.model("llama"), calibration=text, evaluation=text)
    assert ran.code == 0, ran.error
    first = bench.made("llama").read("quality.json")["perplexity_float"]
    assert ran.read("quality.json")["perplexity_float"] != first


@pytest.mark.parametrize(
    "params, said",
    [
        ({"weight_bits": 5}, "weight_bits is 5, not 4 or 8"),
        ({"weight_block": 64}, "no whole number of blocks of 64"),
        ({"weight_block": 16, "weight_bits": 8}, "blocks are for 4-bit weights"),
        ({"calibration_tokens": 3}, "less than one chunk"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(
    bench: Bench, params: dict[str, Any], said: str
) -> None:
    ran = bench.quantise(bench.model("llama"), **params)
    assert ran.code == 64 and said in ran.error


def test_a_short_text_is_refused_with_what_is_needed(bench: Bench, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("Too little to say anything by.", encoding="utf-8")
    ran = bench.quantise(bench.model("llama"), evaluation=short)
    assert ran.code == 64
    assert "the evaluation text has 30 tokens; at least 1400 are needed" in ran.error
    ran = bench.quantise(bench.model("llama"), calibration=short)
    assert ran.code == 64 and "calibration text has 30 tokens" in ran.error


def test_a_text_that_is_not_utf8_is_refused(bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "latin.txt"
    file.write_bytes("é".encode("latin-1") * 3000)
    ran = bench.quantise(bench.model("llama"), calibration=file)
    assert ran.code == 64 and "is not UTF-8" in ran.error


@pytest.mark.parametrize(
    "value, said",
    [
        (float("nan"), "holds numbers that are not finite"),
        (1e38, "computes numbers that are not finite"),
    ],
)
def test_weights_that_are_no_numbers_or_overflow_are_refused(
    bench: Bench, tmp_path: Path, value: float, said: str
) -> None:
    graph = tmp_path / "graph"
    shutil.copytree(bench.graph(bench.model("llama")), graph)
    data = bytearray((graph / "model.data").read_bytes())
    middle = len(data) // 2 // 64 * 64
    data[middle : middle + 64] = struct.pack("<f", value) * 16
    (graph / "model.data").write_bytes(data)
    texts = SCRIPTS / "qnn" / "data"
    ran = bench.stage("quantize", FEW, graph=graph, model=bench.model("llama"), texts=texts)
    assert ran.code == 64 and said in ran.error


def test_a_model_without_a_tokenizer_is_refused(bench: Bench, tmp_path: Path) -> None:
    bare = tmp_path / "llama"
    shutil.copytree(bench.model("llama"), bare)
    graph = bench.graph(bench.model("llama"))
    (bare / "tokenizer.json").unlink()
    texts = SCRIPTS / "qnn" / "data"
    ran = bench.stage("quantize", FEW, graph=graph, model=bare, texts=texts)
    assert ran.code == 64 and "no tokenizer.json" in ran.error
