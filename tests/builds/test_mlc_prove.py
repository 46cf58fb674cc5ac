"""The mlc backend's prove stage: a library really compiled and run by TVM, held against torch."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from edgekiln.home import project
from tests.builds.kit import call
from tests.builds.qnnstages import Ran, Stages
from tests.builds.tinyhost import MAKE_HOST
from tests.builds.tinyllm import MAKE_MODEL

pytestmark = pytest.mark.slow

TEXTS = project() / "scripts" / "mnn" / "data"


@pytest.fixture(scope="module")
def model(tvm_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama."""
    place = tmp_path_factory.mktemp("model") / "llama"
    done = call([str(tvm_python), "-s", "-c", MAKE_MODEL, "llama", str(place)], os.environ)
    assert done.returncode == 0, done.stderr[-2000:]
    return place


@pytest.fixture(scope="module")
def host(tvm_python: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a library for this machine, with weights and config."""
    place = tmp_path_factory.mktemp("host")
    command = [str(tvm_python), "-s", "-c", MAKE_HOST, str(model), str(place)]
    done = call(command, {**os.environ, "PYTHONHASHSEED": "0"})
    assert done.returncode == 0, done.stderr[-2000:]
    return place


@pytest.fixture(scope="module")
def reference(tvm_python: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the float model says."""
    stages = Stages(place=tmp_path_factory.mktemp("reference"), folder="mnn")
    ran = stages.run(tvm_python, "reference", {"model": model, "texts": TEXTS}, {})
    assert ran.code == 0, ran.log
    return ran.out / "reference"


@pytest.fixture
def stages(tmp_path: Path) -> Stages:
    return Stages(place=tmp_path, folder="mlc")


def prove(stages: Stages, python: Path, host: Path, reference: Path, **params: Any) -> Ran:
    inputs = {name: host / name for name in ("library", "weights", "config")}
    inputs |= {"reference": reference, "texts": TEXTS}
    return stages.run(python, "proving", inputs, {}, **params)


def proof(ran: Ran) -> dict[str, Any]:
    assert ran.code == 0, ran.log
    found: dict[str, Any] = json.loads((ran.out / "prove" / "prove.json").read_text())
    return found


def changed(host: Path, place: Path, part: str) -> Path:
    """A copy of what `host` holds, of which `part` may be changed."""
    shutil.copytree(host, place, symlinks=True)
    assert (place / part).is_dir()
    return place


def test_a_compiled_model_says_what_the_float_model_says(
    stages: Stages, tvm_python: Path, host: Path, reference: Path
) -> None:
    ran = prove(stages, tvm_python, host, reference, prove="full")
    found = proof(ran)
    told = json.loads((reference / "reference.json").read_text())
    assert found["cosine_min"] > 0.99999
    assert found["perplexity_ratio"] == pytest.approx(1, abs=1e-3)
    assert found["perplexity_float"] == pytest.approx(told["perplexity"])
    assert found["perplexity_tokens"] == told["perplexity_tokens"]
    assert all(p["same_next_token"] and p["same_tokens"] for p in found["prompts"])
    assert [a["prompt"] for a in found["answers"]] == told["prompts"]
    assert not ran.notes()
    assert found["decode_tokens_per_second"] > 0
    assert found["prefill_tokens_per_second"] > 0


def test_quick_asks_less(stages: Stages, tvm_python: Path, host: Path, reference: Path) -> None:
    found = proof(prove(stages, tvm_python, host, reference))
    assert found["prove"] == "quick"
    assert found["perplexity_tokens"] == 255
    assert len(found["answers"]) == 3
    assert len(found["prompts"]) == 12
    assert found["perplexity_ratio"] == pytest.approx(1, abs=1e-3)


def test_weights_gone_wrong_show(
    stages: Stages, tvm_python: Path, host: Path, reference: Path, tmp_path: Path
) -> None:
    """The right shapes and the wrong numbers: two layers' weights exchanged."""
    other = changed(host, tmp_path / "wrong", "weights")
    file = other / "weights" / "tensor-cache.json"
    text = file.read_text()
    for name, new in (("layers.0.", "layers.X."), ("layers.1.", "layers.0."), ("X.", "1.")):
        text = text.replace(name, new)
    file.write_text(text)
    found = proof(prove(stages, tvm_python, other, reference))
    assert found["cosine_mean"] < 0.9


def test_a_template_that_asks_in_other_words(
    stages: Stages, tvm_python: Path, host: Path, reference: Path, tmp_path: Path
) -> None:
    other = changed(host, tmp_path / "other", "config")
    file = other / "config" / "mlc-chat-config.json"
    file.write_text(
        file.read_text().replace('"system_message": ""', '"system_message": "Be kind."')
    )
    ran = prove(stages, tvm_python, other, reference)
    assert not any(p["same_tokens"] for p in proof(ran)["prompts"])
    assert "chatml_nosystem makes other tokens" in ran.notes()
    assert "for 12 of 12 prompts" in ran.notes()
    assert proof(ran)["cosine_min"] > 0.99999, "the logits are asked for in the model's own words"


def test_weights_of_another_model(
    stages: Stages, tvm_python: Path, host: Path, reference: Path, tmp_path: Path
) -> None:
    other = changed(host, tmp_path / "other", "weights")
    file = other / "weights" / "tensor-cache.json"
    text = json.dumps(json.loads(file.read_text()), separators=(",", ":"))
    for before, after, said in (
        ("layers.1.down.weight", "layers.2.down.weight", "only one of them has layers.1.down"),
        ('"shape":[128]', '"shape":[64,2]', "in the weights and float32 (128,) in the library"),
    ):
        assert before in text
        file.write_text(text.replace(before, after))
        ran = prove(stages, tvm_python, other, reference)
        assert ran.code == 64
        assert said in ran.error


def test_what_cannot_be_proven(
    stages: Stages, tvm_python: Path, host: Path, reference: Path, tmp_path: Path
) -> None:
    ran = prove(stages, tvm_python, host, reference, file="other.so")
    assert ran.code == 64
    assert "there is no other.so in the library's folder" in ran.error
    ran = prove(stages, tvm_python, host, reference, prove="slow")
    assert "prove is one of quick, full" in ran.error
    other = changed(host, tmp_path / "other", "config")
    (other / "config" / "tokenizer.json").unlink()
    ran = prove(stages, tvm_python, other, reference)
    assert ran.code == 64
    assert "there is no tokenizer.json" in ran.error


def test_a_text_longer_than_the_library_keeps(
    stages: Stages, tvm_python: Path, host: Path, reference: Path, tmp_path: Path
) -> None:
    longer = tmp_path / "reference"
    shutil.copytree(reference, longer)
    told = json.loads((longer / "reference.json").read_text())
    told["prompt_ids"][0] *= 10
    (longer / "reference.json").write_text(json.dumps(told))
    ran = prove(stages, tvm_python, host, longer)
    assert ran.code == 64
    assert "the library keeps 320 tokens" in ran.error
