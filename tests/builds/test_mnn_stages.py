"""The MNN stages on tiny models with random weights, run as an executor runs them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.builds.tinyllm import MAKE_MODEL
from tests.stages import SCRIPTS, Ran, run_stage

pytestmark = pytest.mark.slow

FAMILIES = ("llama", "qwen2", "qwen3")


@pytest.fixture(scope="session")
def python(mnn_python: Path) -> str:
    """The toolchain's Python."""
    return str(mnn_python)


@pytest.fixture(scope="session")
def models(python: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model of each family."""
    place = tmp_path_factory.mktemp("models")
    for family in FAMILIES:
        command = [python, "-c", MAKE_MODEL, family, str(place / family)]
        subprocess.run(command, check=True, capture_output=True, env=environment(place))
    return {family: place / family for family in FAMILIES}


def environment(home: Path, **more: str) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "PIP_REQUIRE_VIRTUALENV": "1",
        "PIP_NO_INDEX": "1",
        "PYTHONHASHSEED": "0",
        "SOURCE_DATE_EPOCH": "0",
        "PYTHONPATH": str(SCRIPTS),
        **more,
    }


class Bench:
    """Runs stage programs in folders of one test's own."""

    def __init__(self, python: str, place: Path) -> None:
        self.python, self.place, self.count = python, place, 0

    def run(self, program: str, params: object = None, **inputs: Path) -> Ran:
        self.count += 1
        place = self.place / f"{self.count}-{program}"
        env = environment(place / "home")
        return run_stage(
            f"mnn/{program}", place, python=self.python, inputs=inputs, params=params, env=env
        )

    def done(self, program: str, params: object = None, **inputs: Path) -> Ran:
        ran = self.run(program, params, **inputs)
        assert ran.code == 0, ran.log[-3000:]
        return ran

    def prove(self, model: Path, **params: Any) -> dict[str, Any]:
        """The whole way from a model to its proof."""
        texts = SCRIPTS / "mnn" / "data"
        reference = self.done("reference", model=model, texts=texts).out / "reference"
        mnn = self.done("export", params, model=model).out / "mnn"
        config = self.done("configure", {"memory": "low"}, mnn=mnn).out / "config"
        ran = self.done("prove", mnn=mnn, config=config, reference=reference, texts=texts)
        found: dict[str, Any] = json.loads((ran.out / "prove" / "prove.json").read_text("utf-8"))
        return found


@pytest.fixture
def bench(python: str, tmp_path: Path) -> Bench:
    return Bench(python, tmp_path)


def digests(folder: Path) -> dict[str, str]:
    files = sorted(f for f in folder.iterdir() if f.is_file())
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


@pytest.mark.parametrize("family", FAMILIES)
def test_two_exports_are_the_same_bytes(bench: Bench, models: dict[str, Path], family: str) -> None:
    runs = [bench.done("export", {"hqq": True}, model=models[family]) for _ in range(2)]
    first, second = (digests(ran.out / "mnn") for ran in runs)
    assert first == second
    assert {"llm.mnn", "llm.mnn.weight", "tokenizer.mtok", "llm_config.json"} <= set(first)


def test_an_export_names_no_path_of_the_machine(bench: Bench, models: dict[str, Path]) -> None:
    out = bench.done("export", model=models["llama"]).out / "mnn"
    for file in out.iterdir():
        assert str(bench.place).encode() not in file.read_bytes(), file.name


def test_different_weights_get_different_ids(bench: Bench, models: dict[str, Path]) -> None:
    ids = set()
    for family in ("llama", "qwen3"):
        out = bench.done("export", model=models[family]).out / "mnn"
        ids.add(json.loads((out / "llm.mnn.json").read_text("utf-8"))["mnn_uuid"])
    assert len(ids) == 2


def test_the_converter_s_telemetry_stays_out(bench: Bench, models: dict[str, Path]) -> None:
    ran = bench.done("export", model=models["llama"])
    assert "aliyun" not in ran.log
    assert not list((ran.out.parent / "home").rglob("*aliyun*"))


def test_the_telemetry_would_be_seen_if_it_came_in(python: str, tmp_path: Path) -> None:
    """What the test above looks for is really what that module says when it is let in."""
    code = "import os; os.system = print; import MNN.tools.utils.log"
    done = subprocess.run(
        [python, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=environment(tmp_path),
    )
    assert "aliyun" in done.stdout


@pytest.mark.parametrize("family", FAMILIES)
def test_eight_bits_stay_close_to_the_float_model(
    bench: Bench, models: dict[str, Path], family: str
) -> None:
    proof = bench.prove(models[family], quant_bit=8)
    assert proof["cosine_mean"] > 0.99
    assert 0.9 < proof["perplexity_ratio"] < 1.1
    assert all(p["same_tokens"] for p in proof["prompts"])
    assert len(proof["answers"]) == len(proof["prompts"])


def test_four_bits_are_further_away_than_eight(bench: Bench, models: dict[str, Path]) -> None:
    eight = bench.prove(models["llama"], quant_bit=8)
    four = bench.prove(models["llama"], quant_bit=4, quant_block=128)
    assert four["cosine_mean"] < eight["cosine_mean"]


def test_an_embedding_of_its_own_is_written_and_read(bench: Bench, models: dict[str, Path]) -> None:
    proof = bench.prove(models["llama"], quant_bit=8, seperate_embed=True, embed_bit=8)
    assert proof["cosine_mean"] > 0.99


@pytest.mark.parametrize("how", ["smooth", "awq", "omni"])
def test_calibration_takes_its_samples_from_a_local_text(
    bench: Bench, models: dict[str, Path], tmp_path: Path, how: str
) -> None:
    samples = tmp_path / "samples.txt"
    samples.write_text("The kettle sang, and rain fell.\n" * 60, encoding="utf-8")
    params = {how: True, "omni_epochs": 1}
    ran = bench.done("export", params, model=models["llama"], calib_data=samples)
    assert (ran.out / "mnn" / "llm.mnn").stat().st_size > 0


def test_a_draft_of_the_same_weights_always_agrees(bench: Bench, models: dict[str, Path]) -> None:
    texts, model = SCRIPTS / "mnn" / "data", models["llama"]
    reference = bench.done("reference", model=model, texts=texts).out / "reference"
    mnn = bench.done("export", {"quant_bit": 8}, model=model).out / "mnn"
    config = bench.done("configure", mnn=mnn, draft=mnn).out / "config"
    inputs = {"mnn": mnn, "draft": mnn, "config": config, "reference": reference, "texts": texts}
    out = bench.done("prove", **inputs).out
    draft = json.loads((out / "prove" / "prove.json").read_text("utf-8"))["draft"]
    assert draft["agreement"] == 1.0
    assert draft["same_tokenizer"]


@pytest.mark.parametrize(
    ("params", "what"),
    [
        ({"quant_bits": 4}, "quant_bits"),
        ({"dst_path": "/"}, "dst_path"),
        ({"hqq": 3}, "hqq"),
        ({"embed_bit": 5}, "embed_bit"),
    ],
)
def test_parameters_that_llmexport_has_not_are_bad_input(
    bench: Bench, models: dict[str, Path], params: dict[str, Any], what: str
) -> None:
    ran = bench.run("export", params, model=models["llama"])
    assert ran.code == 64
    assert what in ran.error


def test_a_folder_without_a_model_is_bad_input(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert bench.run("export", model=tmp_path / "empty").code == 64


def test_a_damaged_model_ends_in_a_fault_and_not_in_an_export(
    bench: Bench, models: dict[str, Path], tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in models["llama"].iterdir():
        content = file.read_bytes()
        (damaged / file.name).write_bytes(
            content[: len(content) // 2] if file.suffix == ".safetensors" else content
        )
    ran = bench.run("export", model=damaged)
    assert ran.code not in (0, 64)
