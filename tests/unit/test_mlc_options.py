"""The MLC backend: what its options are, what does not go together, what wants another machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgekiln.backends import load_backend
from edgekiln.backends.mlc import BACKEND
from edgekiln.backends.mlc_checks import check_model, check_options, model_id, prefixes, sizes_of
from edgekiln.backends.mlc_options import SIZES, MlcOptions
from edgekiln.backends.mlc_targets import TARGETS
from edgekiln.backends.ndks import NDKS
from edgekiln.errors import ModelError, ToolchainError, UsageError
from edgekiln.home import project
from edgekiln.options import parse, specs
from tests.unit.test_mnn_options import model


def options(**given: Any) -> MlcOptions:
    return parse(MlcOptions, given, where="options")


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with no tool on its path; the folder may get some."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


@pytest.fixture
def checkout(tmp_path: Path) -> str:
    """As much of a checkout of mlc-llm as is looked at."""
    (tmp_path / "mlc-llm" / "python" / "mlc_llm").mkdir(parents=True)
    return str(tmp_path / "mlc-llm")


def test_importing_the_backend_loads_nothing_heavy() -> None:
    code = (
        "import sys; import edgekiln.backends.mlc; "
        "print([m for m in ('yaml', 'numpy', 'elftools', 'docker') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_backend_is_found_by_its_name() -> None:
    assert load_backend("mlc") is BACKEND


def test_every_option_has_help_and_a_group() -> None:
    for spec in specs(MlcOptions).values():
        assert spec.help, spec.name
        assert spec.group in ("model", "compile", "package", "quality"), spec.name


@pytest.mark.parametrize("name", ["default", "precision", "adreno"])
def test_each_preset_is_made_of_options_and_can_be_planned(name: str) -> None:
    preset = BACKEND.presets()[name]
    pipeline = BACKEND.plan(parse(MlcOptions, preset, where=name), {"model": model()})
    assert "prove" in [s.name for s in pipeline.stages]
    assert {"min_cosine", "max_perplexity_ratio"} <= set(preset)


def test_the_preset_for_adreno_has_the_layout_that_does_not_freeze_the_screen() -> None:
    preset = BACKEND.presets()["adreno"]
    assert (preset["target"], preset["quantization"]) == ("android:adreno", "q4f16_0")


def test_every_ndk_is_a_kit_there_is() -> None:
    there = {p.stem for p in (project() / "toolchains" / "kits").glob("ndk-*.yaml")}
    assert there == {f"ndk-{name}" for name in NDKS}


@pytest.mark.parametrize(
    ("given", "what", "remedy"),
    [
        ({"opt": "O4"}, "opt O4", "O0, O1"),
        ({"opt": "flashinfer=0;cudagraph"}, "opt flashinfer", "NAME=VALUE"),
        ({"system_lib_prefix": "qwen2_q4f16_1"}, "cannot begin a symbol", "last an underscore"),
        ({"system_lib_prefix": "qwen2.5_q4_"}, "cannot begin a symbol", "letters, digits"),
        ({"system_lib_prefix": "qwen_q_"}, "too short", "longer one"),
        ({"system_lib_prefix": "model_q4_", "target": "vulkan"}, "has none", "leave it out"),
        ({"objects_only": True}, "nothing is left", "leave it out"),
        ({"context_window_size": 2048, "sliding_window_size": 1024}, "do not go", "one of them"),
        ({"attention_sink_size": 4}, "needs sliding_window_size", "both"),
        ({"context_window_size": 512, "prefill_chunk_size": 1024}, "larger than", "at most 512"),
        ({"tensor_parallel_shards": 2}, "are for cuda", "leave them out"),
        ({"package": True, "target": "vulkan"}, "is for Android", "--target android"),
        ({"also": "a,b", "package": False}, "there is none", "leave --no-package out"),
        ({"apk": "debug", "target": "cuda"}, "apk is for Android, not for cuda", "--target out"),
        ({"opt": "flashinfer=0;foo=1"}, "nothing MLC knows", "cublas_gemm"),
        ({"sliding_window_size": 0}, "attend to nothing", "-1 for none"),
        ({"hub": "mlc-ai/model"}, "no address of the Hub", "HF://"),
        ({"hub": "HF://a/b", "also": "x"}, "1 addresses for 2 models", "in order"),
        ({"bundle_weights": False}, "where to fetch", "hub"),
        ({"apk": "debug", "package": False}, "needs the package", "--no-package"),
        ({"keystore": "x"}, "there is none", "--apk"),
        ({"keystore": "/none", "apk": "release"}, "there is no file", "keystore.properties"),
        ({"mlc_source": "/none"}, "no folder python/mlc_llm", "checkout"),
    ],
)
def test_what_does_not_go_together_is_refused(
    given: dict[str, Any], what: str, remedy: str
) -> None:
    with pytest.raises(UsageError) as caught:
        check_options(options(**given))
    assert what in caught.value.what
    assert remedy in caught.value.remedy


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"opt": "O3"},
        {"opt": "flashinfer=0;cudagraph=0;ipc_allreduce_strategy=NONE"},
        {"system_lib_prefix": "my_model_q4_", "target": "android:adreno"},
        {"sliding_window_size": 1024, "attention_sink_size": 4},
        {"bundle_weights": False, "hub": "HF://me/model-q4f16_1-MLC"},
        {"target": "vulkan"},
        {"target": "cpu"},
        {"quantization": "q8f16_9"},
    ],
)
def test_what_goes_together_passes(given: dict[str, Any]) -> None:
    check_options(options(**given))


@pytest.mark.parametrize(
    ("target", "program", "word"),
    [
        ("metal", "xcrun", "Xcode"),
        ("iphone", "xcrun", "Xcode"),
        ("webgpu", "emcc", "Emscripten"),
        ("windows", "lld-link", "Windows"),
    ],
)
def test_a_target_that_needs_another_machine_says_which(
    bare: Path, target: str, program: str, word: str
) -> None:
    with pytest.raises(ToolchainError) as caught:
        check_options(options(target=target))
    assert program in caught.value.what
    assert word in caught.value.why
    tool = bare / program
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    check_options(options(target=target))


@pytest.mark.parametrize("target", [t for t, about in TARGETS.items() if about.program])
def test_objects_can_be_made_here_where_only_linking_is_left(bare: Path, target: str) -> None:
    given = {"target": target, "objects_only": True}
    if target in ("metal", "webgpu", "windows"):
        check_options(options(**given))
    else:
        with pytest.raises(ToolchainError):
            check_options(options(**given))


def test_cuda_needs_nvidia_s_compiler_and_a_tvm_that_knows_it(bare: Path, checkout: str) -> None:
    with pytest.raises(ToolchainError, match="wheels for the CPU") as caught:
        check_options(options(target="cuda"))
    assert "--mlc-source" in caught.value.remedy
    with pytest.raises(ToolchainError, match="needs nvcc") as caught:
        check_options(options(target="cuda", mlc_source=checkout))
    assert "NVRTC" in caught.value.why
    (bare / "nvcc").write_text("#!/bin/sh\n")
    (bare / "nvcc").chmod(0o755)
    check_options(options(target="cuda", mlc_source=checkout, tensor_parallel_shards=2))
    with pytest.raises(UsageError, match="cannot be shared"):
        check_options(
            options(
                target="cuda",
                mlc_source=checkout,
                tensor_parallel_shards=2,
                quantization="q4f16_0",
            )
        )


@pytest.mark.parametrize("target", ["vulkan", "windows", "metal", "iphone"])
def test_apache_tvm_has_no_vulkan_and_crashes_on_metal(checkout: str, target: str) -> None:
    with pytest.raises(ToolchainError, match="Apache TVM") as caught:
        check_options(options(target=target, mlc_source=checkout))
    assert "leave --mlc-source out" in caught.value.remedy


def test_sources_for_an_older_tvm_are_told_so(checkout: str) -> None:
    file = Path(checkout) / "python" / "mlc_llm" / "support" / "auto_target.py"
    file.parent.mkdir()
    file.write_text("from tvm import IRModule, relax\nfrom tvm.contrib import ndk, tar, xcode\n")
    with pytest.raises(ToolchainError, match="older TVM") as caught:
        check_options(options(mlc_source=checkout))
    assert "tvm.support" in caught.value.remedy
    file.write_text("from tvm.support import ndk, tar, xcode\n")
    check_options(options(mlc_source=checkout))


def test_a_phone_s_context_and_chunk_are_small_unless_asked_for() -> None:
    assert sizes_of(model(), options()) == {"context_window_size": 4096, "prefill_chunk_size": 128}
    assert sizes_of(model(context_length=512), options())["context_window_size"] == 512
    assert sizes_of(model(), options(context_window_size=64))["prefill_chunk_size"] == 64
    assert sizes_of(model(), options(sliding_window_size=1024)) == {
        "sliding_window_size": 1024,
        "prefill_chunk_size": 128,
    }
    assert sizes_of(model(), options(target="vulkan")) == {}
    assert set(SIZES) <= set(specs(MlcOptions))


def test_a_context_the_model_was_not_made_for_is_refused() -> None:
    with pytest.raises(UsageError, match="longer than") as caught:
        check_model(model(context_length=2048), options(context_window_size=4096))
    assert caught.value.remedy == "at most 2048"


def test_a_model_that_brings_code_of_its_own_wants_a_word() -> None:
    own = model(config={"auto_map": {"AutoModel": "m.M"}})
    with pytest.raises(ModelError, match="auto_map"):
        check_model(own, options())
    check_model(own, options(trust_remote_code=True))
    check_model(own, options(prove="none"))


def test_the_prefix_is_upstream_s_own_and_model_lib_that_without_its_underscore() -> None:
    qwen = model(name="deepseek-r1-distill-qwen-1.5b", family="qwen2")
    assert prefixes({"model": qwen}, options()) == {"model": "qwen2_q4f16_1_"}
    assert prefixes({"model": qwen}, options(target="vulkan")) == {"model": ""}
    assert prefixes({"model": model(family="phi-msft")}, options()) == {
        "model": "phi_msft_q4f16_1_"
    }
    assert prefixes({"model": qwen}, options(model_type="qwen3")) == {"model": "qwen3_q4f16_1_"}
    assert model_id(qwen, options()) == "deepseek-r1-distill-qwen-1.5b-q4f16_1-MLC"


def test_two_models_of_one_kind_get_prefixes_of_their_own() -> None:
    two = {
        "model": model(name="deepseek-r1-distill-qwen-1.5b", family="qwen2"),
        "also-1": model(name="qwen2.5-1.5b-instruct", family="qwen2"),
        "also-2": model(name="smollm2", family="llama"),
    }
    assert prefixes(two, options()) == {
        "model": "deepseek_r1_distill_qwen_1_5b_q4f16_1_",
        "also-1": "qwen2_5_1_5b_instruct_q4f16_1_",
        "also-2": "llama_q4f16_1_",
    }
    given = options(system_lib_prefix="qwen2_q4f16_1_")
    assert prefixes(two, given) == {
        "model": "qwen2_q4f16_1_",
        "also-1": "qwen2_5_1_5b_instruct_q4f16_1_",
        "also-2": "llama_q4f16_1_",
    }


def test_two_models_that_could_not_be_told_apart_are_refused() -> None:
    with pytest.raises(UsageError, match="would have the prefix"):
        prefixes({"model": model(name="a.b"), "also-1": model(name="a-b")}, options())


def test_no_prefix_is_shorter_than_tvm_takes() -> None:
    short = prefixes({"model": model(family="a")}, options(quantization="q0"))["model"]
    assert len(short) >= 8 and short.endswith("_")
