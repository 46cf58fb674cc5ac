"""How the stages call mlc_llm, read what it says, and explain how it ends; on a stand-in for it."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from edgekiln.backends import mlc_targets
from tests.stages import SCRIPTS, Ran, run_stage
from tests.unit import mlc_standin

sys.path[:0] = [str(SCRIPTS), str(SCRIPTS / "mlc")]

import mlcpackage  # noqa: E402
import targets  # noqa: E402

import toolcall  # noqa: E402
from stagekit import BadInput  # noqa: E402


class Bench:
    """A model, a stand-in, and programs run on them as an executor does."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.source = mlc_standin.make(place / "checkout")
        self.model = place / "model"
        self.model.mkdir()
        rope = {"rope_theta": 1000000.0, "rope_type": "default"}
        self.write(model_type="qwen2", rope_parameters=rope)
        (self.model / "model.safetensors").write_bytes(b"")
        (self.model / "chat_template.jinja").write_text("<|im_start|>")

    def write(self, **config: Any) -> None:
        (self.model / "config.json").write_text(json.dumps(config))

    def run(self, program: str, env: dict[str, str] | None = None, **params: Any) -> Ran:
        for left in ("in", "out"):
            shutil.rmtree(self.place / left, ignore_errors=True)
        inputs = {"model": self.model, "source": self.source}
        # Another seed than the one that mlc_llm is to be given.
        own = {"KILN_CPUS": "3", "PYTHONHASHSEED": "7", "STANDIN": str(self.place)}
        env = {**own, **(env or {})}
        return run_stage(f"mlc/{program}", self.place, inputs=inputs, params=params, env=env)

    def made(self, name: str) -> dict[str, Any]:
        return dict(json.loads((self.place / "out" / name).read_text()))

    def called(self, command: str) -> dict[str, Any]:
        return dict(json.loads((self.place / f"{command}.json").read_text()))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_weights_are_converted_and_their_figures_kept(bench: Bench) -> None:
    ran = bench.run("weights", quantization="q4f16_1")
    assert ran.code == 0, ran.log
    report = bench.made("weights-report/weights.json")
    assert report["parameters"] == 3085938688
    assert (report["bits_per_parameter"], report["gb"]) == (4.501, 1.617)
    assert (report["bytes"], report["shards"], report["rope_theta"]) == (40, 1, 1000000.0)
    assert report["mlc_llm"] == "0.20.dev0"
    called = bench.called("convert_weight")
    assert called["words"][1:7] == [
        "--quantization",
        "q4f16_1",
        "--model-type",
        "qwen2",
        "--device",
        "cpu",
    ]
    assert called["env"] == {
        "PYTHONHASHSEED": "0",
        "MLC_JIT_POLICY": "READONLY",
        "MLC_DOWNLOAD_CACHE_POLICY": "READONLY",
        "TVM_NUM_THREADS": "3",
    }
    progress = [e for e in ran.events if e["event"] == "progress"]
    assert progress[-1] == {
        "event": "progress", "done": 2, "total": 2, "unit": "tensors", "what": "convert"
    }  # fmt: skip
    assert "\x1b" not in ran.log and "|###|" not in ran.log
    # What mlc_llm writes beside the weights never reaches the model itself.
    assert len(list(bench.model.iterdir())) == 3


def test_a_shard_cut_short_is_noticed(bench: Bench) -> None:
    ran = bench.run("weights", {"BYTES": "41"})
    assert ran.code == 1
    assert "params_shard_0.bin is not there, or not of 41 bytes" in ran.error


def test_what_mlc_llm_has_not_is_refused_by_name(bench: Bench) -> None:
    ran = bench.run("weights", quantization="q4f16_2")
    assert ran.code == 64
    assert "no quantization called 'q4f16_2'" in ran.error
    assert "did you mean q4f16_" in ran.remedy
    ran = bench.run("chatconfig", conv_template="vicuna_v1.1")
    assert ran.code == 64, "a name of its command line that no template is registered for"
    bench.write(model_type="mamba")
    assert "no model type called 'mamba'" in bench.run("weights").error


def test_how_it_fails_is_said_in_its_own_words(bench: Bench) -> None:
    (bench.place / "fail").write_text("ValueError: Parameter not found in source: lm_head.weight")
    ran = bench.run("weights")
    assert ran.code == 1
    assert ran.error.endswith("Parameter not found in source: lm_head.weight")
    assert "mlc_llm convert_weight ended with 1" in ran.error


def test_a_checkout_for_another_tvm_is_told(bench: Bench) -> None:
    (bench.source / "mlc_llm" / "model.py").write_text("from tvm.contrib import ndk")
    ran = bench.run("weights")
    assert ran.code == 64
    assert "wants another TVM than this toolchain's" in ran.error
    assert "No module named 'tvm'" in ran.error
    (bench.source / "mlc_llm" / "__main__.py").unlink()
    assert "holds no Python package mlc_llm" in bench.run("weights").error


def test_a_configuration_with_a_template_told(bench: Bench) -> None:
    ran = bench.run("chatconfig", context_window_size=2048, max_batch_size=1)
    assert ran.code == 0, ran.log
    report = bench.made("config-report/config.json")
    assert (report["conv_template"], report["guessed"]) == ("qwen2", True)
    assert report["templates"] == ["chatml", "qwen2"]
    assert report["overridden"] == {"context_window_size": ["131072", "2048"]}
    assert report["rope_theta_mended"] is True
    words = bench.called("gen_config")["words"]
    assert words[words.index("--context-window-size") + 1] == "2048"
    assert words[words.index("--max-batch-size") + 1] == "1"
    assert "--prefill-chunk-size" not in words


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"context_window_size": 0}, "context_window_size is 0"),
        ({"prefill_chunk_size": -1}, "prefill_chunk_size is -1"),
        ({"max_batch_size": "4"}, "max_batch_size is '4', not of type int"),
        ({"context_window_size": 9, "sliding_window_size": 9}, "exclude each other"),
    ],
)
def test_sizes_that_cannot_be(bench: Bench, params: dict[str, Any], said: str) -> None:
    ran = bench.run("chatconfig", **params)
    assert ran.code == 64
    assert said in ran.error


def test_exit_code_255_is_explained(bench: Bench) -> None:
    env = {
        **os.environ,
        "PYTHONPATH": str(bench.source),
        "STANDIN": str(bench.place),
    }
    command = [sys.executable, str(SCRIPTS / "mlc" / "mlcrun.py"), "package"]
    with pytest.raises(toolcall.ToolError) as caught:
        toolcall.call("mlc_llm package", command, env)
    assert caught.value.code == 255
    with pytest.raises(BadInput) as explained:
        mlcpackage._explain(caught.value)
    assert "refused wrong: the linked library has right, other" in explained.value.text
    assert explained.value.remedy == "model_lib must be one of right, other"


def test_a_crash_is_told_by_its_signal() -> None:
    kill = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    with pytest.raises(toolcall.ToolError, match=r"crashed \(SIGSEGV\)"):
        toolcall.call("it", [sys.executable, "-c", kill], os.environ)


def _model(place: Path, name: str, **more: Any) -> mlcpackage.Model:
    for part in ("config", "weights"):
        (place / name / part).mkdir(parents=True)
    (place / name / "config" / "mlc-chat-config.json").write_text("{}")
    (place / name / "weights" / "tensor-cache.json").write_text("{}")
    (place / name / f"{name}.tar").write_bytes(b"")
    known: dict[str, Any] = {"bundle_weight": False, "hub": "", "estimated_vram_bytes": 1}
    return mlcpackage.Model(
        model_id=f"{name}-MLC",
        model_lib=name,
        library=place / name / f"{name}.tar",
        config=place / name / "config",
        weights=place / name / "weights",
        **{**known, **more},
    )


def test_the_configuration_downloads_and_compiles_nothing(tmp_path: Path) -> None:
    models = [_model(tmp_path, "a"), _model(tmp_path, "b", hub="HF://someone/b-MLC")]
    (tmp_path / "work").mkdir()
    file = mlcpackage.lay_out(models, tmp_path / "work")
    config = json.loads(file.read_text())
    assert config["model_lib_path_for_prepare_libs"] == {
        "a": "libraries/a.tar",
        "b": "libraries/b.tar",
    }
    for entry in config["model_list"]:
        assert entry["bundle_weight"] is True
        assert (file.parent / entry["model"] / "tensor-cache.json").exists()
        assert (file.parent / entry["model"] / "mlc-chat-config.json").exists()
    # What mlc_llm makes of it names folders of this machine; the app gets addresses.
    app = {
        "model_list": [
            {"model_id": e["model_id"], "model_url": e["model"]} for e in config["model_list"]
        ]
    }
    told = json.loads(mlcpackage.app_config_text(app, models))
    assert [e["model_url"] for e in told["model_list"]] == [
        "a-MLC",
        "https://huggingface.co/someone/b-MLC",
    ]


def test_targets_that_want_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    every = ("opencl", "metal", "webgpu", "cuda", "vulkan", "llvm")
    cases = {
        ("iphone", "a.tar"): "xcrun must be there: Xcode",
        ("metal", "a.dylib"): "xcrun must be there: Xcode",
        ("cuda", "a.tar"): "nvcc must be there: NVIDIA",
        ("webgpu", "a.wasm"): "emcc must be there: Emscripten",
        ("windows", "a.dll"): "lld-link must be there: a Windows machine",
        ("android", "a.so"): r"for android it is \.tar",
    }
    for (name, file), said in cases.items():
        with pytest.raises(BadInput, match=said):
            targets.TARGETS[name].check(name, file, every)
    for name, file in (("android", "a.tar"), ("webgpu", "a.tar"), ("metal", "a.tar")):
        targets.TARGETS[name].check(name, file, every)
    with pytest.raises(BadInput, match="makes no code for vulkan"):
        targets.TARGETS["vulkan"].check("vulkan", "a.so", ("opencl",))


def test_the_stage_s_targets_are_the_host_s() -> None:
    assert set(targets.TARGETS) == set(mlc_targets.TARGETS)
    for name, stage in targets.TARGETS.items():
        host = mlc_targets.TARGETS[name]
        assert host.suffix in stage.suffixes, name
        assert list(stage.programs) == [host.program] * bool(host.program), name
        assert (stage.kernels, stage.phone) == (host.kernels, host.static), name


def test_the_host_is_a_kind_of_machine_not_this_one() -> None:
    words = targets.device_words("cpu", targets.TARGETS["cpu"], "")
    device = json.loads(words[1])
    assert device["kind"] == "llvm"
    assert device.get("mcpu", "") in ("x86-64-v2", "x86-64-v3", "")
    assert words == targets.device_words("cpu", targets.TARGETS["cpu"], "")
