"""The configure stage, run as an executor runs it: what the phone's runtime will read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
EXPORTED = {
    "llm_model": "llm.mnn",
    "llm_weight": "llm.mnn.weight",
    "tokenizer_file": "tokenizer.mtok",
    "backend_type": "cpu",
    "sampler_type": "mixed",
    "temperature": 0.8,
}


class Stage:
    """A place with an export in it, and configure run on it."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.export = place / "in" / "mnn"
        self.write(self.export)

    def write(self, export: Path, **more: Any) -> None:
        export.mkdir(parents=True, exist_ok=True)
        (export / "config.json").write_text(json.dumps({**EXPORTED, **more}), encoding="utf-8")

    def run(self, **params: Any) -> tuple[int, list[dict[str, Any]]]:
        (self.place / "out").mkdir(exist_ok=True)
        (self.place / "params.json").write_text(json.dumps(params), encoding="utf-8")
        environment = {
            **os.environ,
            "PYTHONPATH": str(SCRIPTS),
            "KILN_IN": str(self.place / "in"),
            "KILN_OUT": str(self.place / "out"),
            "KILN_PARAMS": str(self.place / "params.json"),
        }
        done = subprocess.run(
            [sys.executable, str(SCRIPTS / "mnn" / "configure.py")],
            capture_output=True,
            text=True,
            encoding="utf-8",
            env=environment,
            check=False,
            timeout=60,
        )
        return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]

    def config(self, name: str = "config.json", **params: Any) -> dict[str, Any]:
        code, events = self.run(**params)
        assert code == 0, events
        text = (self.place / "out" / "config" / name).read_text(encoding="utf-8")
        found: dict[str, Any] = json.loads(text)
        return found


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def test_files_are_named_as_the_export_named_them(stage: Stage) -> None:
    config = stage.config(backend_type="cpu")
    assert config["llm_model"] == "llm.mnn"
    assert config["tokenizer_file"] == "tokenizer.mtok"


def test_an_embedding_file_is_named_only_where_there_is_one(stage: Stage) -> None:
    stage.write(stage.export, embedding_file="embeddings_int4.bin")
    assert "embedding_file" not in stage.config()


def test_an_embedding_file_that_is_there_is_named(stage: Stage) -> None:
    stage.write(stage.export, embedding_file="embeddings_int4.bin")
    (stage.export / "embeddings_int4.bin").write_bytes(b"x")
    assert stage.config()["embedding_file"] == "embeddings_int4.bin"


@pytest.mark.parametrize(
    ("params", "mode"),
    [
        ({}, 8),
        ({"kv_quant": 1}, 9),
        ({"kv_quant": 2}, 10),
        ({"flash_attention": False}, 0),
        ({"flash_attention": False, "kv_quant": 2}, 2),
    ],
)
def test_attention_mode_is_flash_attention_and_cache_bits(
    stage: Stage, params: dict[str, Any], mode: int
) -> None:
    config = stage.config(**params)
    assert config["attention_mode"] == mode
    assert "quant_qkv" not in config


@pytest.mark.parametrize(
    ("params", "threads"),
    [
        ({"backend_type": "cpu"}, 4),
        ({"backend_type": "opencl"}, 68),
        ({"backend_type": "metal"}, 4),
        ({"backend_type": "opencl", "threads": 64}, 64),
        ({"backend_type": "cpu", "threads": 6}, 6),
    ],
)
def test_threads_are_a_mode_under_opencl(
    stage: Stage, params: dict[str, Any], threads: int
) -> None:
    assert stage.config(**params)["thread_num"] == threads


def test_prefer_decode_is_eight_in_dynamic_option(stage: Stage) -> None:
    config = stage.config(prefer_decode=True, dynamic_option=2)
    assert config["dynamic_option"] == 10
    assert "prefer_decode" not in config


def test_mapped_weights_get_a_folder(stage: Stage) -> None:
    assert stage.config(use_mmap=True)["tmp_path"] == "tmp"


@pytest.mark.parametrize(
    ("sampler", "there", "gone"),
    [
        ("greedy", set(), {"temperature", "top_k", "repetition_penalty"}),
        ("topK", {"top_k"}, {"top_p", "repetition_penalty"}),
        ("topP", {"top_p", "temperature"}, {"top_k"}),
        ("penalty", {"repetition_penalty", "penalty_sampler"}, {"temperature", "top_k"}),
        ("mixed", {"mixed_samplers", "top_k", "temperature"}, {"repetition_penalty", "top_p"}),
    ],
)
def test_only_values_that_the_sampler_reads_are_written(
    stage: Stage, sampler: str, there: set[str], gone: set[str]
) -> None:
    config = stage.config(
        sampler_type=sampler,
        mixed_samplers=["topK", "temperature"],
        temperature=0.6,
        top_k=20,
        top_p=0.95,
        repetition_penalty=1.1,
        penalty_sampler="greedy",
    )
    assert there <= set(config)
    assert not gone & set(config)


def test_speculation_is_written_with_its_own_values(stage: Stage) -> None:
    config = stage.config(speculative="lookahead", draft_length=4, ngram_update=True)
    assert config["speculative_type"] == "lookahead"
    assert config["draft_predict_length"] == 4
    assert config["ngram_update"] is True


def test_no_speculation_leaves_nothing_of_it(stage: Stage) -> None:
    config = stage.config(speculative="none", draft_length=4, ngram_update=True)
    assert not {"speculative_type", "draft_predict_length", "ngram_update"} & set(config)


def test_a_draft_gets_a_config_of_its_own_and_a_word_about_it(stage: Stage) -> None:
    stage.write(stage.place / "in" / "draft", llm_model="draft.mnn")
    code, events = stage.run(backend_type="cpu")
    assert code == 0
    assert any("draft" in e.get("text", "") for e in events)
    place = stage.place / "out" / "config"
    assert json.loads((place / "draft" / "config.json").read_text())["llm_model"] == "draft.mnn"
    assert json.loads((place / "config.json").read_text())["llm_model"] == "llm.mnn"


@pytest.mark.parametrize(
    "params", [{"quant_qkv": 4}, {"kv_quant": "2"}, {"temperature": "hot", "sampler_type": "topP"}]
)
def test_what_the_runtime_would_pass_over_is_bad_input(
    stage: Stage, params: dict[str, Any]
) -> None:
    code, events = stage.run(**params)
    assert code == 64
    assert next(iter(params)) in events[0]["text"]
