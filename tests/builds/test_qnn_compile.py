"""Compiling for Hexagon and proving it, on a tiny decoder, with the vendor's own libraries."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.builds import htpprograms
from tests.builds.kit import alive, until
from tests.builds.qnnstages import SCRIPTS, TEXTS, Ran, Stages
from tests.builds.test_qnn_quantize import _write_model as write_model

pytestmark = pytest.mark.slow

ELITE = {"soc": "sm8750", "soc_model": 69, "arch": "v79", "vtcm_mb": 8, "weight_sharing": True}
GEN_1 = {"soc": "sm8450", "soc_model": 36, "arch": "v69", "vtcm_mb": 8, "weight_sharing": False}
PREFILL, CONTEXT = 16, 96
TEMPLATE = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
SHARED = "weight_sharing_model_{}_of_{}.serialized.bin"


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """A tiny model, quantised, compiled in one piece, with its settings; and what runs it."""

    python: Path
    stages: Stages
    quantized: Path
    compiled: Path
    settings: Path

    def compile(self, stages: Stages, quantized: Path | None = None, **params: Any) -> Ran:
        inputs = {"quantized": quantized or self.quantized}
        return stages.run(self.python, "compile", inputs, {}, **params)

    def prove(self, stages: Stages, twins: Path, **params: Any) -> Ran:
        inputs = {"quantized": self.quantized, "twins": twins, "settings": self.settings}
        return stages.run(self.python, "proof", inputs, {}, **params)

    def drive(self, program: str, *words: object) -> Any:
        """A program's answer, with scripts/qnn on its path."""
        libraries = subprocess.run(
            [str(self.python), "-c", "import onnxruntime_qnn as q; print(q.LIB_DIR_FULL_PATH)"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        done = subprocess.run(
            [str(self.python), "-c", program, *map(str, words)],
            capture_output=True,
            text=True,
            check=False,
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": f"{SCRIPTS}{os.pathsep}{SCRIPTS / 'qnn'}",
                "LD_LIBRARY_PATH": libraries,
            },
        )
        told = [line for line in done.stdout.splitlines() if line.startswith("TOLD")]
        assert told, done.stdout[-2000:] + done.stderr[-3000:]
        return json.loads(told[0].removeprefix("TOLD"))


@pytest.fixture(scope="module")
def tiny(qnn_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    place = tmp_path_factory.mktemp("htp")
    stages = Stages(place=place)
    model = write_model(place / "model", "llama")
    (model / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    lengths = {"context_length": CONTEXT, "prefill_length": PREFILL}
    graph = stages.done(qnn_python, "graph", {"model": model}, **lengths) / "graph"
    inputs = {"graph": graph, "model": model, "texts": TEXTS}
    few = {"weight_bits": 8, "calibration_tokens": 256}
    quantized = stages.done(qnn_python, "quantize", inputs, **few) / "quantized"
    compiled = stages.done(qnn_python, "compile", {"quantized": quantized}, **ELITE)
    inputs = {"model": model, "texts": TEXTS, "quantized": quantized}
    inputs["binaries"] = compiled / "binaries"
    settings = stages.done(qnn_python, "settings", inputs, **ELITE) / "settings"
    return Tiny(
        python=qnn_python,
        stages=stages,
        quantized=quantized,
        compiled=compiled,
        settings=settings,
    )


@pytest.fixture
def stages(tmp_path: Path) -> Stages:
    return Stages(place=tmp_path)


def told_of(compiled: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((compiled / "binaries" / "compile.json").read_text("utf-8"))
    return found


def digests(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def edges(graph: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {tensor["name"]: tensor for tensor in (*graph["inputs"], *graph["outputs"])}


def test_both_graphs_lie_in_one_binary_for_the_chip_asked_for(tiny: Tiny) -> None:
    told = told_of(tiny.compiled)
    assert (told["soc"], told["soc_model"], told["arch"]) == ("sm8750", 69, "v79")
    assert told["qnn_build"].startswith("v2.51.")
    assert told["shared"] and told["splits"] == 1 and told["nodes_on_cpu"] == 0
    (binary,) = told["binaries"]
    assert binary["file"] == SHARED.format(1, 1)
    held = (tiny.compiled / "binaries" / binary["file"]).read_bytes()
    assert len(held) == binary["bytes"]
    assert hashlib.sha256(held).hexdigest() == binary["sha256"]
    assert sorted(graph["tokens"] for graph in binary["graphs"]) == [1, PREFILL]
    assert {graph["context"] for graph in binary["graphs"]} == {CONTEXT}
    assert sorted(path.name for path in (tiny.compiled / "twins").iterdir()) == [
        "ar16_1_of_1.bin",
        "ar1_1_of_1.bin",
    ]


def test_edges_are_integers_with_the_encodings_of_the_model(tiny: Tiny) -> None:
    for graph in told_of(tiny.compiled)["binaries"][0]["graphs"]:
        tokens, found = graph["tokens"], edges(graph)
        assert found["input_ids"]["dtype"] == "int32"
        assert found["attention_mask"]["shape"] == [1, 1, tokens, CONTEXT]
        for name in ("attention_mask", "position_ids_cos", "position_ids_sin", "logits"):
            assert found[name]["dtype"] == "uint16" and found[name]["scale"] > 0
        assert found["logits"]["shape"] == [1, tokens, 256]
        for kind in ("key", "value"):
            old, new = found[f"past_{kind}_1_in"], found[f"past_{kind}_1_out"]
            assert old["dtype"] == new["dtype"] == "uint8"
            assert old["offset"] == new["offset"] == -128
            assert old["scale"] == new["scale"] > 0
        assert found["past_key_1_in"]["shape"] == [2, 1, 16, CONTEXT - tokens]
        assert found["past_value_1_out"]["shape"] == [2, 1, tokens, 16]


def test_another_run_in_another_folder_gives_the_same_bytes(
    tiny: Tiny, tmp_path: Path, stages: Stages
) -> None:
    elsewhere = tmp_path / "a-much-longer-name-for-the-same-thing" / "quantized"
    shutil.copytree(tiny.quantized, elsewhere)
    ran = tiny.compile(stages, elsewhere, **ELITE)
    assert ran.code == 0, ran.log
    assert digests(ran.out) == digests(tiny.compiled)
    for file in (ran.out / "binaries").glob("*.bin"):
        assert str(tmp_path).encode() not in file.read_bytes()


def test_a_chip_that_cannot_share_gets_a_binary_for_each_graph(tiny: Tiny, stages: Stages) -> None:
    ran = tiny.compile(stages, **GEN_1)
    assert ran.code == 0, ran.log
    assert "cannot share weights" in ran.notes()
    told = told_of(ran.out)
    assert told["soc_model"] == 36 and not told["shared"]
    names = [binary["file"] for binary in told["binaries"]]
    assert names == ["ar16_1_of_1.serialized.bin", "ar1_1_of_1.serialized.bin"]
    for binary in told["binaries"]:
        twin = binary["file"].replace(".serialized", "")
        one, other = ran.out / "binaries" / binary["file"], ran.out / "twins" / twin
        assert one.read_bytes() == other.read_bytes()


def test_genie_says_the_same_of_one_piece_and_of_two(tiny: Tiny, stages: Stages) -> None:
    ran = tiny.compile(stages, splits=2, **ELITE)
    assert ran.code == 0, ran.log
    told = told_of(ran.out)
    assert [b["file"] for b in told["binaries"]] == [SHARED.format(1, 2), SHARED.format(2, 2)]
    for number, binary in enumerate(told["binaries"], 1):
        for graph in binary["graphs"]:
            assert graph["name"].endswith(f"_{number}_of_2")
    first, second = (edges(binary["graphs"][0]) for binary in told["binaries"])
    assert first["hidden_1"] == second["hidden_1"]
    assert "logits" not in first and "input_ids" not in second
    whole, cut = (genie_said(tiny, folder / "twins") for folder in (tiny.compiled, ran.out))
    assert whole == cut


def test_genie_puts_the_first_token_of_texts_before_a_prompt(tiny: Tiny) -> None:
    twins = tiny.compiled / "twins"
    assert genie_said(tiny, twins, bos=0) != genie_said(tiny, twins)


def genie_said(tiny: Tiny, twins: Path, bos: int = -1) -> list[list[int]]:
    """Genie's tokens, which must be those that the graph gives without Genie, but for ties."""
    words = (tiny.quantized, tiny.settings, twins, 6, bos)
    said = tiny.drive(htpprograms.TOKENS, *words)
    assert [behind for _, _, behind in said] == pytest.approx([0] * len(said), abs=0.02)
    assert sum(by_genie == by_twins for by_genie, by_twins, _ in said) >= 2
    found = [by_genie for by_genie, _, _ in said]
    assert len({token for answer in found for token in answer}) >= 3, "too dull to show anything"
    return found


def test_the_proof_compares_and_talks(tiny: Tiny, stages: Stages) -> None:
    ran = tiny.prove(stages, tiny.compiled / "twins", prove="full", answer_tokens=3, seconds=60)
    assert ran.code == 0, ran.log[-3000:]
    proof = json.loads((ran.out / "proof" / "proof.json").read_text("utf-8"))
    assert proof["emulation"]["cosine_min"] > 0.999
    assert proof["emulation"]["same_next_token_or_tied"] > 0.9
    assert proof["cosine_mean"] > 0.98
    assert 0 < proof["cosine_min"] <= proof["cosine_mean"] < 1
    assert proof["rows"] == PREFILL and proof["decode_rows"] == 8
    assert proof["genie_version"].count(".") == 2
    assert "says nothing of the phone's speed" in proof["ran_on"]
    asked = [answer["prompt"] for answer in proof["answers"]]
    assert asked == json.loads((TEXTS / "prompts.json").read_text("utf-8"))
    for answer in proof["answers"]:
        assert answer["same_prompt_tokens"] and 0 < answer["tokens"] <= 3
        assert answer["text"].count(answer["prompt"]) == 1
    told = [event for event in ran.events if event["event"] == "progress"]
    assert told[0]["done"] == 1 and told[-1]["done"] <= told[-1]["total"]


def test_a_quick_proof_asks_one_question(tiny: Tiny, stages: Stages) -> None:
    ran = tiny.prove(stages, tiny.compiled / "twins", prove="quick", answer_tokens=2)
    assert ran.code == 0, ran.log[-3000:]
    proof = json.loads((ran.out / "proof" / "proof.json").read_text("utf-8"))
    assert len(proof["answers"]) == 1 and proof["answers"][0]["tokens"] <= 2


def test_a_dialog_ends_when_its_time_is_up(tiny: Tiny, stages: Stages) -> None:
    ran = tiny.prove(stages, tiny.compiled / "twins", prove="full", answer_tokens=60, seconds=0)
    assert ran.code == 0, ran.log[-3000:]
    proof = json.loads((ran.out / "proof" / "proof.json").read_text("utf-8"))
    assert len(proof["answers"]) == 1 and proof["answers"][0]["ended"] == "seconds"
    assert "time was up after 1 of 8 prompts" in ran.notes()


def test_a_crash_inside_genie_ends_in_words(tiny: Tiny, stages: Stages, tmp_path: Path) -> None:
    """On x86-64 the vendor's library crashes on weights that graphs share."""
    shared = tiny.compiled / "binaries" / SHARED.format(1, 1)
    said = tiny.drive(htpprograms.CRASH, tiny.quantized, tiny.settings, shared)
    assert said.startswith("it crashed (SIG"), said
    assert "Shared weights buffer isn't supported" in said
    twins = tmp_path / "twins"
    twins.mkdir()
    for name in ("ar16_1_of_1.bin", "ar1_1_of_1.bin"):
        (twins / name).symlink_to(shared)
    ran = tiny.prove(stages, twins, prove="quick", answer_tokens=2)
    assert ran.code == 64 and "holds 2 graphs" in ran.error


def test_a_damaged_twin_is_named(tiny: Tiny, stages: Stages, tmp_path: Path) -> None:
    twins = tmp_path / "twins"
    shutil.copytree(tiny.compiled / "twins", twins)
    held = (twins / "ar16_1_of_1.bin").read_bytes()
    (twins / "ar16_1_of_1.bin").write_bytes(held[: len(held) // 2])
    ran = tiny.prove(stages, twins, prove="quick", answer_tokens=2)
    assert ran.code == 64
    assert "ar16_1_of_1.bin is not a whole QNN context binary" in ran.error


def test_more_splits_than_layers_are_refused(tiny: Tiny, stages: Stages) -> None:
    ran = tiny.compile(stages, splits=3, **ELITE)
    assert ran.code == 64 and "3 splits of a model with 2 layers" in ran.error


def test_a_node_that_hexagon_has_not_is_named(tiny: Tiny, stages: Stages, tmp_path: Path) -> None:
    strange = tmp_path / "strange"
    tiny.drive(htpprograms.STRANGE, tiny.quantized, strange)
    ran = tiny.compile(stages, strange, **ELITE)
    assert ran.code == 64
    assert "leaves" in ran.error and "layers.1.strange (Sinh)" in ran.error


@pytest.mark.parametrize("changed", [{"arch": "79"}, {"soc_model": 0}, {"soc_model": None}])
def test_no_chip_no_binary(tiny: Tiny, stages: Stages, changed: dict[str, Any]) -> None:
    ran = tiny.compile(stages, **{**ELITE, **changed})
    assert ran.code == 64 and ran.error


def test_a_killed_compiler_is_no_fault_of_its_input(tiny: Tiny, stages: Stages) -> None:
    with ThreadPoolExecutor() as pool:
        ran = pool.submit(tiny.compile, stages, **ELITE)
        os.kill(compiler_of(stages), signal.SIGKILL)
    assert ran.result().code == 1
    assert ran.result().error.startswith("CompilerFailed: the compiler for sm8750 was killed")


def compiler_of(stages: Stages) -> int:
    """The process id of the compiler that works for these stages, once it is there."""
    ours = str(stages.place).encode()
    given_up = time.monotonic() + 60
    while time.monotonic() < given_up:
        for process in Path("/proc").glob("[0-9]*"):
            try:
                command = (process / "cmdline").read_bytes()
                if b"qnn/htp.py" in command and ours in (process / "environ").read_bytes():
                    return int(process.name)
            except OSError:  # it has ended
                continue
        time.sleep(0.01)
    raise AssertionError("no compiler was started")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("config['dialog']['hat'] = 1", "hat"),
        ("config['dialog']['context']['size'] = 128", "context"),
        ("config['dialog']['tokenizer']['path'] = 'nowhere.json'", "nowhere.json"),
    ],
)
def test_genie_refuses_in_its_own_words(tiny: Tiny, change: str, words: str) -> None:
    twins = tiny.compiled / "twins"
    said = tiny.drive(htpprograms.REFUSED, tiny.settings, tiny.quantized, twins, change)
    assert said.startswith("Genie") and words in said.lower()


def test_damaged_binaries_are_refused_and_crash_nobody(tiny: Tiny, tmp_path: Path) -> None:
    whole = (tiny.compiled / "twins" / "ar1_1_of_1.bin").read_bytes()
    cases: list[bytes] = [whole[:size] for size in (0, 1, 40, 500, 4200, len(whole) - 1)]
    cases += [b"junk" * 1000, bytes(reversed(whole[:9000]))]
    for place in range(0, 2000, 131):
        flipped = bytearray(whole)
        flipped[place] ^= 0xFF
        cases.append(bytes(flipped))
    files = []
    for number, held in enumerate(cases):
        files.append(tmp_path / f"{number}.bin")
        files[-1].write_bytes(held)
    files.append(tmp_path / "nowhere.bin")
    said = tiny.drive(htpprograms.READ, *files)
    assert all("is not a whole QNN context binary" in text for text in said[:8])
    # A flipped byte may lie where nothing is read; where it does, it is refused in words.
    assert all(text == 1 or "not a whole QNN context binary" in str(text) for text in said[8:-1])
    assert any(isinstance(text, str) for text in said[8:-1])
    assert said[-1] == "nowhere.bin is no file"


def test_a_look_tells_what_a_binary_holds(tiny: Tiny, stages: Stages) -> None:
    shared = tiny.compiled / "binaries" / SHARED.format(1, 1)
    out = stages.done(tiny.python, "look", {"file": shared})
    said = json.loads((out / "look" / "look.json").read_text("utf-8"))
    assert (said["soc_model"], said["bytes"]) == (69, shared.stat().st_size)
    graphs = told_of(tiny.compiled)["binaries"][0]["graphs"]
    assert [graph["name"] for graph in said["graphs"]] == [graph["name"] for graph in graphs]
    for other in (tiny.quantized / "model.onnx", Path(__file__)):
        ran = stages.run(tiny.python, "look", {"file": other}, {})
        assert ran.code == 64 and "is not a whole QNN context binary" in ran.error


def test_splits_are_cut_evenly_and_only_where_weights_ask_for_it(tiny: Tiny) -> None:
    said = tiny.drive(htpprograms.PLAN)
    assert said["small"] == [[0, 3, "input_ids", "logits"]]
    assert said["two"] == [[0, 1, "input_ids", "hidden_1"], [1, 3, "hidden_1", "logits"]]
    assert [cut[:2] for cut in said["heavy_head"]] == [[0, 3], [3, 4]]
    assert said["large"] == 5 and said["all_below"]
    assert said["too_many"] == "3 splits of a model with 2 layers: each needs one at least"


def test_a_child_may_crash_hang_or_leave(tiny: Tiny, tmp_path: Path) -> None:
    child = tmp_path / "child.py"
    child.write_text(htpprograms.CHILD, encoding="utf-8")

    def parent(how: str, seconds: float = 30) -> list[Any]:
        said: list[Any] = tiny.drive(htpprograms.PARENT, child, how, seconds)
        return said

    assert parent("work")[:2] == ["well", 1]
    crashed = parent("crash")
    assert crashed[0] == "it crashed (SIGSEGV): the last thing I said" and crashed[1] == 1
    begun = time.monotonic()
    assert "it was stopped after 0.5 s" in parent("hang", 0.5)[0]
    assert time.monotonic() - begun < 20
    assert "exit code 3" in parent("leave")[0]
    assert parent("raise")[0] == "ValueError: no good"


def test_a_child_does_not_outlive_its_stage(tiny: Tiny, tmp_path: Path) -> None:
    child = tmp_path / "child.py"
    child.write_text(htpprograms.CHILD, encoding="utf-8")
    parent = subprocess.Popen(
        [str(tiny.python), "-c", htpprograms.WAIT, str(child)],
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": f"{SCRIPTS}{os.pathsep}{SCRIPTS / 'qnn'}"},
    )
    assert parent.stdout
    number = int(parent.stdout.readline())
    assert alive(number)
    parent.kill()
    parent.wait()
    until(lambda: not alive(number), "the child is gone")
    parent.stdout.close()
