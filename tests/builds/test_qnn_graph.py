"""The graph stage on tiny decoders of every family, held against transformers in float32."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.builds.drivedecoder import BLOCKS, DRIVE, RETARGET
from tests.builds.tinydecoders import COMMON, DECODERS, MAKE_DECODERS, TOKENS

pytestmark = pytest.mark.slow

SCRIPTS = Path(__file__).parents[2] / "scripts"
LENGTHS = {"context_length": 96, "prefill_length": 16}
# One of each way a layer can look.
KINDS = ("llama3", "qwen2", "qwen3")


@pytest.fixture(scope="session")
def decoders(mnn_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every tiny decoder, and its reference beside it."""
    place = tmp_path_factory.mktemp("decoders")
    full = {name: (f, t, {**COMMON, **c}) for name, (f, t, c) in DECODERS.items()}
    command = [str(mnn_python), "-c", MAKE_DECODERS, str(place), json.dumps(full), str(TOKENS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return place


class Ran(NamedTuple):
    code: int
    events: list[dict[str, Any]]
    log: str
    graph: Path

    @property
    def error(self) -> str:
        return str(next((e["text"] for e in self.events if e["event"] == "error"), ""))


class Bench:
    """Runs the graph stage, and programs beside it, by the toolchain's Python."""

    def __init__(self, python: Path, place: Path) -> None:
        self.python, self.place, self.count = str(python), place, 0

    def graph(self, model: Path, **params: Any) -> Ran:
        self.count += 1
        place = self.place / f"run-{self.count}"
        for folder in ("in", "out"):
            (place / folder).mkdir(parents=True)
        (place / "in" / "model").symlink_to(model)
        (place / "params.json").write_text(json.dumps({**LENGTHS, **params}), encoding="utf-8")
        done = self.call(
            str(SCRIPTS / "qnn" / "graph.py"),
            KILN_IN=str(place / "in"),
            KILN_OUT=str(place / "out"),
            KILN_PARAMS=str(place / "params.json"),
        )
        events = [json.loads(line) for line in done.stdout.splitlines()]
        return Ran(done.returncode, events, done.stderr, place / "out" / "graph")

    def made(self, model: Path, **params: Any) -> Path:
        ran = self.graph(model, **params)
        assert ran.code == 0, ran.error + ran.log
        return ran.graph

    def drive(self, program: str, *arguments: object) -> dict[str, Any]:
        done = self.call("-c", program, *map(str, arguments))
        assert done.returncode == 0, done.stderr
        told: dict[str, Any] = json.loads(done.stdout)
        return told

    def call(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join((str(SCRIPTS), str(SCRIPTS / "qnn")))
        return subprocess.run(
            [self.python, *arguments],
            capture_output=True,
            text=True,
            check=False,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": path, **more},
        )


@pytest.fixture
def bench(qnn_python: Path, tmp_path: Path) -> Bench:
    return Bench(qnn_python, tmp_path)


def altered(model: Path, place: Path, **changes: Any) -> Path:
    """The same weights with another config.json; None takes a key out."""
    copy = place / "altered"
    copy.mkdir()
    for file in model.iterdir():
        (copy / file.name).symlink_to(file)
    config = json.loads((model / "config.json").read_text("utf-8")) | changes
    kept = {key: value for key, value in config.items() if value is not None}
    (copy / "config.json").unlink()
    (copy / "config.json").write_text(json.dumps(kept), encoding="utf-8")
    return copy


@pytest.mark.parametrize("name", DECODERS)
def test_it_says_what_transformers_says(bench: Bench, decoders: Path, name: str) -> None:
    told = bench.drive(DRIVE, bench.made(decoders / name), decoders / f"{name}.npz", 14)
    assert told["largest"] > 1, "logits near zero would agree with anything"
    for way in ("prefill", "decode", "left", "other_tokens", "cut", "cut_second"):
        assert told[way] < 1e-4, way
    assert told["parts"] == ["embed", "layer_0", "layer_1", "layer_2", "head"]
    assert told["answer"][0] == told["likeliest"]


def test_an_old_config_gives_the_same_bytes_as_a_new_one(
    bench: Bench, decoders: Path, tmp_path: Path
) -> None:
    model = decoders / "llama3"
    turn = json.loads((model / "config.json").read_text("utf-8"))["rope_parameters"]
    theta = turn.pop("rope_theta")
    old = altered(model, tmp_path, rope_parameters=None, rope_theta=theta, rope_scaling=turn)
    assert digests(bench.made(model)) == digests(bench.made(old))


def digests(folder: Path) -> dict[str, str]:
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(folder.iterdir())}


@pytest.mark.parametrize("name", KINDS)
def test_two_runs_give_the_same_bytes(bench: Bench, decoders: Path, name: str) -> None:
    first = digests(bench.made(decoders / name))
    assert list(first) == ["graph.json", "model.data", "model.onnx"]
    assert digests(bench.made(decoders / name)) == first


@pytest.mark.parametrize("name", KINDS)
def test_another_number_of_tokens_changes_shapes_at_the_edges_only(
    bench: Bench, decoders: Path, name: str
) -> None:
    told = bench.drive(RETARGET, bench.made(decoders / name), 1)
    assert told["tokens"] == 1
    assert told["back"], "the graph for one token, made wide again, is the first graph"
    assert told["same_constants"] and told["same_nodes"]
    assert told["inputs"]["past_key_2_in"][-1] == told["inputs"]["past_value_2_in"][2] == 95
    assert told["refused"] == [
        "0 new tokens in a context of 96",
        "96 new tokens in a context of 96",
    ]


def test_matrices_come_out_of_the_data_file_as_they_went_in(bench: Bench, tmp_path: Path) -> None:
    told = bench.drive(BLOCKS, tmp_path)
    assert told["same"] == [True] * 4
    assert told["aligned"] == told["inner_bytes"] == [0] * 4
    assert told["needed"] == "the part also needs y"


def test_graph_json_tells_what_the_graph_is(bench: Bench, decoders: Path) -> None:
    spec = json.loads((bench.made(decoders / "qwen2") / "graph.json").read_text("utf-8"))
    assert (spec["family"], spec["layers"], spec["context"], spec["prefill"]) == (
        "qwen2",
        3,
        96,
        16,
    )
    assert (spec["tied"], spec["qkv_bias"], spec["qk_norm"]) == (False, True, False)
    assert (spec["bos"], spec["eos"]) == (0, [1])
    roles = [weight["role"] for weight in spec["weights"].values()]
    linear = ["q", "k", "v", "o", "gate", "up", "down"]
    assert {role: roles.count(role) for role in linear} == dict.fromkeys(linear, 3)
    assert roles.count("norm") == 7
    assert roles.count("q_bias") == 3
    q, k = (spec["weights"][f"layers.1.{name}_proj.weight"] for name in "qk")
    assert q["group"] == k["group"]
    assert q["layer"] == 1


def test_progress_goes_to_the_end(bench: Bench, decoders: Path) -> None:
    ran = bench.graph(decoders / "llama")
    told = [event for event in ran.events if event["event"] == "progress"]
    assert (told[-1]["done"], told[-1]["total"], told[-1]["what"]) == (5, 5, "head")


class Refused(NamedTuple):
    """A decoder made unfit: its config's changes, the stage's parameters, what must be said."""

    name: str
    changes: dict[str, Any]
    params: dict[str, Any]
    what: str


@pytest.mark.parametrize(
    "case",
    [
        Refused("llama", {"vocab_size": 200}, {}, "embed_tokens.weight has shape [199, 64]"),
        Refused("llama", {}, {"context_length": 257}, "longer than the model's 256"),
        Refused("llama", {}, {"prefill_length": 96}, "prefill of 96"),
        Refused("llama", {}, {"context_length": "long"}, "context_length"),
        Refused("mistral-wide-window", {}, {"context_length": 129}, "sliding window of 128"),
        Refused("llama", {"num_local_experts": 4}, {}, "mixture of experts"),
        Refused("llama", {"model_type": "qwen2"}, {}, "layers.0.self_attn.q_proj.bias"),
        Refused("qwen2", {"model_type": "llama"}, {}, "which a llama layer does not have"),
        Refused("llama", {"num_hidden_layers": 2}, {}, "config.json has num_hidden_layers 2"),
        Refused("llama", {"num_hidden_layers": 4}, {}, "no tensor model.layers.3"),
        Refused("llama-tied", {"tie_word_embeddings": False}, {}, "no tensor lm_head.weight"),
        Refused("llama", {"num_key_value_heads": 1}, {}, "k_proj.weight has shape [32, 64]"),
    ],
    ids=lambda case: case.what,
)
def test_what_cannot_be_taken_is_refused_before_anything_is_written(
    bench: Bench, decoders: Path, tmp_path: Path, case: Refused
) -> None:
    ran = bench.graph(altered(decoders / case.name, tmp_path, **case.changes), **case.params)
    assert (ran.code, case.what in ran.error) == (64, True), ran.error + ran.log
    assert not ran.graph.exists()


def test_weights_that_are_not_finite_are_refused_by_name(
    bench: Bench, decoders: Path, tmp_path: Path
) -> None:
    model = altered(decoders / "llama", tmp_path)
    weights = model / "model.safetensors"
    whole = bytearray(weights.read_bytes())
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(bytes(whole[8 : 8 + length]))
    name = "model.layers.1.mlp.down_proj.weight"
    at = 8 + length + header[name]["data_offsets"][1] - 4
    whole[at : at + 4] = b"\x00\x00\xc0\x7f"
    weights.unlink()
    weights.write_bytes(whole)
    ran = bench.graph(model)
    assert ran.code == 64
    assert f"tensor {name} holds numbers that are not finite" in ran.error


def test_a_tokenizer_with_more_tokens_than_the_embedding_is_refused(
    bench: Bench, decoders: Path, tmp_path: Path
) -> None:
    model = altered(decoders / "llama", tmp_path)
    tokenizer = {"model": {"vocab": {"a": 0, "b": 199}}}
    (model / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    ran = bench.graph(model)
    assert ran.code == 64
    assert "token 199" in ran.error
