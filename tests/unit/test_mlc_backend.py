"""The MLC backend: its stages, its verdict, its bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgekiln.backends.base import Finding, Outputs
from edgekiln.backends.mlc import BACKEND
from edgekiln.backends.mlc_options import MlcOptions
from edgekiln.backends.mlc_package import CONFIG
from edgekiln.build import Settings, build
from edgekiln.errors import LicenceError, QualityError, UsageError
from edgekiln.options import specs
from edgekiln.pipeline import FromPath, FromStage, Pipeline, Stage
from edgekiln.recipe import Recipe
from tests.unit import tinymodel
from tests.unit.kit import Heard
from tests.unit.test_mlc_options import checkout, options
from tests.unit.test_mnn_options import model

__all__ = ["checkout"]

DEEPSEEK: dict[str, Any] = {
    "name": "deepseek-r1-distill-qwen-1.5b",
    "family": "qwen2",
    "config": {"intermediate_size": 8960},
    "parameters": 1_777_088_000,
    "layers": 28,
    "hidden_size": 1536,
    "heads": 12,
    "kv_heads": 2,
    "head_dim": 128,
    "vocab_size": 151936,
    "context_length": 131072,
    "tied": False,
}
ID = "deepseek-r1-distill-qwen-1.5b-q4f16_1-MLC"
WRITE_UP = {"context_window_size": 2048, "prefill_chunk_size": 128}


def deepseek(**changed: Any) -> Any:
    return model(**{**DEEPSEEK, **changed})


def plan(given: MlcOptions | None = None, **models: Any) -> Pipeline:
    return BACKEND.plan(given or options(), models or {"model": deepseek()})


def names(pipeline: Pipeline) -> list[str]:
    return [s.name for s in pipeline.stages]


def test_a_phone_s_build_ends_with_a_package() -> None:
    found = plan()
    made = ["weights", "config", "library", "objects", "reference", "host", "prove", "package"]
    assert names(found) == made
    assert {s.toolchain for s in found.stages[:-1]} == {"mlc"}
    package = found.stage("package")
    assert package.toolchain == "mlc-android"
    assert package.network
    assert not any(s.network for s in found.stages[:-1])
    assert package.after() == {"weights", "config", "library"}


def test_what_is_not_wanted_is_not_made() -> None:
    assert names(plan(options(package=False)))[-1] == "prove"
    few = ["weights", "config", "library", "objects"]
    assert names(plan(options(package=False, prove="none"))) == few
    assert names(plan(options(target="vulkan", prove="none"))) == few[:-1]


def test_the_app_is_signed_with_a_key_that_is_kept_or_the_user_s(tmp_path: Path) -> None:
    found = plan(options(apk="debug"))
    assert names(found)[-3:] == ["package", "debugkey", "apk"]
    assert found.stage("debugkey").inputs == {}
    assert found.stage("apk").network
    properties, key = tmp_path / "keystore.properties", tmp_path / "release.jks"
    key.write_bytes(b"key")
    properties.write_text("storePassword=secret\nstoreFile=release.jks\nkeyAlias=me\n")
    signed = plan(options(apk="release", keystore=str(properties)))
    assert "debugkey" not in names(signed)
    apk = signed.stage("apk")
    assert apk.inputs["keystore"] == FromPath(path=key, secret=True)
    assert apk.inputs["signing"] == FromPath(path=properties, secret=True)
    assert "secret" not in json.dumps([dict(s.params) for s in signed.stages])


def test_a_keystore_that_is_not_there_is_refused(tmp_path: Path) -> None:
    properties = tmp_path / "keystore.properties"
    for written, said in (
        ("", "is no keystore.properties"),
        ("storeFile=none.jks\n#storePassword=x\n", "has no storePassword, keyAlias"),
        ("storeFile=none.jks\nstorePassword=x\nkeyAlias=me\n", "none.jks, where no file is"),
    ):
        properties.write_text(written)
        with pytest.raises(UsageError, match=said):
            plan(options(apk="release", keystore=str(properties)))


def test_a_checkout_runs_on_apache_tvm(checkout: str) -> None:
    found = plan(options(mlc_source=checkout))
    place = Path(checkout)
    assert {s.toolchain for s in found.stages} == {"tvm", "mlc-android"}
    for name in ("weights", "config", "library", "host"):
        assert found.stage(name).inputs["source"] == FromPath(path=place / "python")
    assert found.stage("package").inputs["source"] == FromPath(path=place)


def test_another_ndk_is_another_toolchain() -> None:
    found = plan(options(ndk="r27-beta1"))
    assert found.stage("package").toolchain == "mlc-android@ndk-r27-beta1"


def test_every_option_reaches_a_stage_or_the_verdict(tmp_path: Path) -> None:
    judged = {"min_cosine", "max_perplexity_ratio", "trust_remote_code"}
    chosen = {"mlc_source", "objects_only", "package", "also", "keystore", "ndk", "vram_safety"}
    renamed = {"bundle_weights": "bundle_weight", "hub": "hub", "apk": "build"}
    given = options(
        apk="debug",
        hub="HF://me/x",
        sliding_window_size=1024,
        attention_sink_size=4,
        max_batch_size=4,
    )
    wide = options(context_window_size=2048)
    stages: list[Stage] = [*plan(given).stages, *plan(wide).stages]
    sent = {name for stage in stages for name in stage.params}
    sent |= {k for s in stages for entry in _models(s) for k in entry}
    gpus = {"cuda_arch", "tensor_parallel_shards", "pipeline_parallel_stages"}
    for name in set(specs(MlcOptions)) - judged - chosen - gpus:
        assert renamed.get(name, name) in sent, name


def _models(stage: Stage) -> list[dict[str, Any]]:
    found: Any = stage.params.get("models", [])
    return list(found)


def test_floors_and_margins_leave_the_expensive_stages_alone() -> None:
    one, other = plan(), plan(options(vram_safety=2.0, min_cosine=0.5, conv_template="chatml"))
    for name in ("weights", "reference"):
        assert one.stage(name) == other.stage(name)
    assert one.stage("package") != other.stage("package")


def test_the_target_is_in_no_weights_and_no_configuration_of_a_phone() -> None:
    one, other = plan(), plan(options(target="android:adreno"))
    for name in ("weights", "config", "host", "reference"):
        assert one.stage(name) == other.stage(name)
    assert other.stage("library").params["system_lib_prefix"] == "qwen2_q4f16_1_"
    assert other.stage("library").params["target"] == "android:adreno"


@pytest.mark.parametrize(
    ("given", "file"),
    [
        ({}, "qwen2_q4f16_1.tar"),
        ({"system_lib_prefix": "my_model_q4_"}, "my_model_q4.tar"),
        ({"target": "vulkan"}, f"{ID}-vulkan.so"),
        ({"target": "cpu"}, f"{ID}-cpu.so"),
        ({"target": "webgpu", "objects_only": True}, f"{ID}-webgpu.tar"),
    ],
)
def test_the_library_is_called_by_its_prefix_or_its_device(
    given: dict[str, Any], file: str
) -> None:
    found = plan(options(**given)).stage("library")
    assert found.params["file"] == file
    assert found.outputs[0].files == (file,)


def test_several_models_get_stages_and_prefixes_of_their_own() -> None:
    models = {"model": deepseek(), "also-1": deepseek(name="qwen2.5-1.5b-instruct")}
    given = options(also="Qwen/Qwen2.5-1.5B-Instruct", prove="none")
    assert BACKEND.models(given) == {"also-1": "Qwen/Qwen2.5-1.5B-Instruct"}
    found = plan(given, **models)
    assert names(found) == [
        "weights", "config", "library", "objects",
        "weights-1", "config-1", "library-1", "objects-1", "package",
    ]  # fmt: skip
    first, second = _models(found.stage("package"))
    assert first["model_lib"] == "deepseek_r1_distill_qwen_1_5b_q4f16_1"
    assert second["model_lib"] == "qwen2_5_1_5b_instruct_q4f16_1"
    assert second["file"] == "qwen2_5_1_5b_instruct_q4f16_1.tar"
    inputs = found.stage("package").inputs
    assert inputs[first["weights"]] == FromStage(stage="weights", output="weights")
    assert inputs[second["library"]] == FromStage(stage="library-1", output="library")


def test_one_model_twice_in_a_package_is_told_as_that() -> None:
    with pytest.raises(UsageError, match="would be in the package twice"):
        plan(options(also="x", prove="none"), **{"model": deepseek(), "also-1": deepseek()})


def test_the_memory_of_the_write_up_s_model_is_what_its_log_says() -> None:
    found = plan(options(**WRITE_UP, vram_safety=1.0))
    (entry,) = _models(found.stage("package"))
    needed = 1039.0 * (1 << 20) + 28 * 1024 * 2048
    assert entry["estimated_vram_bytes"] == pytest.approx(needed, rel=0.01)
    assert entry["overrides"] == WRITE_UP


@pytest.mark.parametrize(
    ("given", "folder"),
    [
        ({}, "mlc"),
        ({"target": "android:adreno"}, "mlc-android-adreno"),
        ({"target": "vulkan"}, "mlc-vulkan"),
    ],
)
def test_the_bundle_of_each_device_lies_by_itself(given: dict[str, Any], folder: str) -> None:
    assert BACKEND.variant(options(**given)) == folder


@pytest.mark.parametrize(
    ("toolchain", "word"),
    [("mlc", "--mlc-source"), ("mlc-android", "--no-package"), ("mlc-android@ndk-r25c", "--no-")],
)
def test_there_is_a_way_without_what_cannot_be_had(toolchain: str, word: str) -> None:
    assert word in BACKEND.remedy(toolchain)


def test_the_way_out_is_told_before_anything_runs(tmp_path: Path, own_home: Path) -> None:
    place = tinymodel.make(tmp_path / "tiny", max_position_embeddings=512)
    recipe = Recipe(name="", backend="mlc", model=str(place), options={"prove": "none"})
    with pytest.raises(LicenceError) as caught:
        build(recipe, Settings(out=tmp_path / "out"), Heard())
    assert "--accept-licence android-sdk" in caught.value.remedy
    assert "--no-package" in caught.value.remedy
    assert "--mlc-source" not in caught.value.remedy, "it is no way around the licence"
    assert not (tmp_path / "out").exists()
    assert not (own_home / "logs").exists(), "no stage has started"


PROOF = {
    "answers": [{"prompt": "What is the capital of France?", "answer": "Paris."}],
    "cosine_mean": 0.996,
    "cosine_min": 0.99,
    "perplexity_float": 16.87,
    "perplexity_quantised": 18.0,
    "perplexity_ratio": 1.067,
    "prompts": [
        {"same_next_token": True, "same_tokens": True},
        {"same_next_token": False, "same_tokens": False},
    ],
}
# The write-up's log, as the stage reads it.
MEMORY = {
    "parameters_mb": 953.5,
    "temporary_mb": 85.5,
    "total_mb": 1039.0,
    "kv_mb_per_token": 0.027344,
    "total_4k_mb": 1151.0,
}
CHAT: dict[str, Any] = {
    "model_type": "qwen2",
    "quantization": "q4f16_1",
    "context_window_size": 2048,
    "sliding_window_size": -1,
    "prefill_chunk_size": 128,
    "model_config": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": False,
        "max_batch_size": 128,
    },
}


def outputs(place: Path, **library: Any) -> Outputs:
    """What the stages leave, small."""
    reports: dict[tuple[str, str], dict[str, Any]] = {
        ("prove", "prove"): {"prove.json": PROOF},
        ("weights", "weights"): {"tensor-cache.json": {}, "params_shard_0.bin": {}},
        ("weights", "weights-report"): {
            "weights.json": {"parameters": 1777088000, "bits_per_parameter": 4.501, "bytes": 10**9}
        },
        ("config", "config"): {"mlc-chat-config.json": CHAT, "tokenizer.json": {}},
        ("config", "config-report"): {
            "config.json": {
                "conv_template": "deepseek_r1_qwen",
                "guessed": True,
                "why": "its chat template has <｜User｜>",
                "templates": ["chatml"],
            }
        },
        ("library", "library"): {"qwen2_q4f16_1.tar": {}},
        ("library", "library-report"): {
            "library.json": {
                "file": "qwen2_q4f16_1.tar",
                "bytes": 5_600_000,
                "system_lib_prefix": "qwen2_q4f16_1_",
                "model_lib": "qwen2_q4f16_1",
                "memory": MEMORY,
                **library,
            }
        },
        ("objects", "objects"): {"objects.json": {"machine": "aarch64", "kernels": 75}},
        ("package", "package"): {"mlc-app-config.json": {}, "mlc4j/build.gradle": {}},
        ("package", "package-report"): {"package.json": {"libraries": [{}], "page_size": 16384}},
        ("apk", "apk"): {"MLCChat.apk": {}},
        ("apk", "apk-report"): {"apk.json": {"bytes": 30_000_000, "signed_by": "Android Debug"}},
    }
    for (stage, output), files in reports.items():
        for name, value in files.items():
            file = place / stage / output / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(value))
    return Outputs(paths={(s, o): place / s / o for s, o in reports})


def test_the_findings_say_what_was_made_and_how_near_it_is(tmp_path: Path) -> None:
    found = {f.name: f for f in BACKEND.findings(options(apk="debug"), outputs(tmp_path))}
    assert "Paris" in found["answer"].text
    assert "16.87 before, 18.00 after (1.067 times)" in found["perplexity_ratio"].text
    assert "next token for 1 of 2 prompts" in found["proof"].text
    assert "writes 1 of 2 prompts down in other tokens" in found["proof"].text
    assert "1,777,088,000 parameters, 4.501 bits" in found["weights"].text
    assert "deepseek_r1_qwen, guessed" in found["conv_template"].text
    assert "templates" not in found["conv_template"].value
    assert "model_lib qwen2_q4f16_1" in found["library"].text
    assert "aarch64, 75 kernels" in found["objects"].text
    assert "pages of 16384" in found["package"].text
    assert "Android Debug" in found["apk"].text


def test_the_log_s_memory_is_held_against_what_was_worked_out(tmp_path: Path) -> None:
    found = {f.name: f for f in BACKEND.findings(options(), outputs(tmp_path))}["memory"]
    assert found.value["total_mb"] == 1039.0
    assert abs(found.value["off"]) < 0.001
    assert found.value["needed"] <= found.value["estimated_vram_bytes"]
    assert "1039.00 MB (weights 953.50, temporary 85.50), 1039.00 worked out" in found.text


def test_a_log_that_needs_more_than_the_app_is_told_fails_the_build(tmp_path: Path) -> None:
    more = {**MEMORY, "total_mb": 2039.0}
    found = BACKEND.findings(options(), outputs(tmp_path, memory=more))
    with pytest.raises(QualityError, match="needs 2095 MB") as caught:
        BACKEND.judge(options(), found)
    assert "--vram-safety" in caught.value.remedy


def test_a_log_that_says_nothing_is_no_fault(tmp_path: Path) -> None:
    silent = dict.fromkeys(MEMORY)
    found = BACKEND.findings(options(), outputs(tmp_path, memory=silent))
    BACKEND.judge(options(), found)
    assert "does not say" in {f.name: f for f in found}["memory"].text


def test_without_a_proof_the_rest_is_still_found(tmp_path: Path) -> None:
    given = options(prove="none", package=False)
    found = BACKEND.findings(given, outputs(tmp_path))
    assert "answer" not in [f.name for f in found]
    BACKEND.judge(given, found)


@pytest.mark.parametrize(
    ("cosine", "ratio"), [(0.96, 1.0), (0.99, 1.6), (float("nan"), 1.0), (0.99, float("nan"))]
)
def test_figures_below_the_floors_leave_no_bundle(cosine: float, ratio: float) -> None:
    figures = {"memory": {}, "cosine_mean": cosine, "perplexity_ratio": ratio}
    with pytest.raises(QualityError, match="too far") as caught:
        BACKEND.judge(options(), [Finding(name=n, value=v, text="") for n, v in figures.items()])
    assert "precision" in caught.value.remedy


def test_the_bundle_holds_weights_library_configuration_package_and_app(tmp_path: Path) -> None:
    given = options(apk="debug", **WRITE_UP)
    found = BACKEND.contents(given, {"model": deepseek()}, outputs(tmp_path))
    assert set(found.files) == {
        f"{ID}/tensor-cache.json",
        f"{ID}/params_shard_0.bin",
        f"{ID}/mlc-chat-config.json",
        f"{ID}/tokenizer.json",
        "lib/qwen2_q4f16_1.tar",
        "mlc4j/build.gradle",
        "mlc-app-config.json",
        "MLCChat.apk",
    }
    config = json.loads(found.texts[CONFIG])
    entry = config["model_list"][0]
    assert entry["model"] == entry["model_id"] == ID
    assert config["model_lib_path_for_prepare_libs"] == {"qwen2_q4f16_1": "lib/qwen2_q4f16_1.tar"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"apk": "debug"}, ["adb install -r MLCChat.apk", f"adb push {ID}", "estimated_vram"]),
        ({}, ["settings.gradle", "`qwen2_q4f16_1`", "kiln package check"]),
        ({"package": False}, ["asked for no package", "MLC_JIT_POLICY=READONLY"]),
        ({"target": "vulkan"}, ["mlc_llm chat", "--model-lib lib/"]),
        ({"target": "webgpu", "objects_only": True}, ["The last step", "emcc", ".wasm"]),
    ],
)
def test_the_readme_says_what_to_do_with_it(
    tmp_path: Path, given: dict[str, Any], words: list[str]
) -> None:
    found = BACKEND.contents(options(**given), {"model": deepseek()}, outputs(tmp_path))
    for word in words:
        assert word in found.readme
