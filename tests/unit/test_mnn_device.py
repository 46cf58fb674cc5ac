"""What an MNN build makes for the device: planned, checked first, bundled, pushed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgekiln.backends import qairt_sdk
from edgekiln.backends.base import Outputs
from edgekiln.backends.mnn import BACKEND
from edgekiln.build import open_store
from edgekiln.device.payload import Payload, read_payload
from edgekiln.device.programs import missing, parts
from edgekiln.device.run import _mnn_config
from edgekiln.errors import ModelError, ToolchainError, UsageError
from edgekiln.pipeline import FromPath, FromStage
from edgekiln.recipe import Recipe
from tests.unit.kit import write_json
from tests.unit.qairt_standin import folder
from tests.unit.test_mnn_options import model, options, plan


@pytest.fixture
def sdk(tmp_path: Path) -> Path:
    """A stand-in of the vendor's SDK with what MNN compiles with."""
    root = folder(tmp_path)
    for place in ("include/QNN/QnnInterface.h", f"bin/{qairt_sdk.HOST}/qnn-model-lib-generator"):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_text("stand-in\n", encoding="utf-8")
    return root


def npu(sdk: Path, **more: Any) -> dict[str, Any]:
    return {"npu": True, "soc": "8 Elite", "qairt_sdk": str(sdk), **more}


def test_nothing_is_built_for_the_device_unless_it_is_asked_for() -> None:
    assert {s.toolchain for s in plan().stages} == {"mnn"}


def test_the_runtime_depends_on_no_model_and_no_option_of_its_own() -> None:
    first = plan(options(runtime="android"))
    other = BACKEND.plan(
        options(runtime="android", quant_bit=8, threads=2), {"model": model(name="other")}
    )
    assert first.stage("runtime") == other.stage("runtime")
    assert not first.stage("runtime").inputs
    assert first.stage("runtime").toolchain == "mnn-android"


def test_the_ndk_is_the_toolchains_kit() -> None:
    stage = plan(options(runtime="android", ndk="r26d")).stage("runtime")
    assert stage.toolchain == "mnn-android@ndk-r26d"


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"runtime": "android"}, {"arm64-v8a/libMNN.so", "arm64-v8a/llm_demo"}),
        ({"runtime": "host"}, {"x86_64/libMNN.so", "x86_64/MNNConvert"}),
        (
            {"runtime": "android", "separate_libraries": True},
            {"arm64-v8a/libllm.so", "arm64-v8a/libMNN_Express.so"},
        ),
    ],
)
def test_the_runtime_must_hold_what_was_asked_for(given: dict[str, Any], wanted: set[str]) -> None:
    (output,) = plan(options(**given)).stage("runtime").outputs
    assert wanted <= set(output.files)


def test_for_the_npu_the_export_is_laid_out_as_mnn_says(sdk: Path) -> None:
    pipeline = plan(options(**npu(sdk)))
    params = pipeline.stage("export").params
    wanted = {
        "generate_for_npu": True, "seperate_embed": True, "sym": True, "smooth": True,
        "omni": False, "act_bit": 16, "quant_bit": 4, "quant_block": 64,
    }  # fmt: skip
    assert {k: params[k] for k in wanted} == wanted
    calibration = pipeline.stage("export").inputs["calib_data"]
    assert isinstance(calibration, FromPath) and calibration.path.is_file()
    assert (
        plan(options(**npu(sdk, omni=True, calib_data=__file__))).stage("export").params["smooth"]
        is False
    )


def test_the_npus_stages_get_sdk_tools_and_chip(sdk: Path) -> None:
    pipeline = plan(options(**npu(sdk, npu_chunk=64)))
    assert [s.name for s in pipeline.stages][-3:] == ["runtime", "tools", "npu"]
    for name in ("runtime", "tools", "npu"):
        assert pipeline.stage(name).inputs["sdk"] == FromPath(path=sdk)
    assert pipeline.stage("tools").params["kind"] == "convert"
    stage = pipeline.stage("npu")
    assert stage.inputs["tools"] == FromStage(stage="tools", output="runtime")
    chip = {k: stage.params[k] for k in ("soc", "soc_model", "arch", "vtcm_mb", "chunk")}
    assert chip == {"soc": "sm8750", "soc_model": 69, "arch": "v79", "vtcm_mb": 8, "chunk": 64}


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"npu": True, "qairt_sdk": "/"}, "npu needs soc"),
        ({"npu": True, "soc": "sm8750"}, "npu needs qairt_sdk"),
        ({"npu": True, "soc": "sm8750", "qairt_sdk": "/no/sdk"}, "there is no /no/sdk"),
        ({"npu": True, "soc": "sm1234", "qairt_sdk": "/"}, "no chip 'sm1234'"),
        ({"soc": "sm8750"}, "soc are for npu"),
        ({"npu": True, "soc": "sm8750", "qairt_sdk": "/", "awq": True}, "npu and awq"),
        ({"npu": True, "soc": "sm8750", "qairt_sdk": "/", "quant_bit": 2}, "npu and quant_bit 2"),
        ({"npu": True, "soc": "sm8750", "qairt_sdk": "/", "act_bit": 8}, "npu and act_bit 8"),
        ({"npu": True, "soc": "8 Elite", "qairt_sdk": "/", "runtime": "host"}, "runtime host"),
        ({"separate_libraries": True}, "separate_libraries is about a runtime"),
        ({"ndk": "r26d"}, "ndk r26d is about"),
        ({"app": "debug"}, "app is built around"),
        ({"app": "debug", "runtime": "android", "separate_libraries": True}, "app and separate"),
    ],
)
def test_what_does_not_go_together_is_refused(given: dict[str, Any], what: str) -> None:
    with pytest.raises(UsageError) as caught:
        plan(options(**given))
    assert what in caught.value.what
    assert caught.value.remedy


def test_a_bundle_for_one_chip_has_a_folder_of_its_own(sdk: Path) -> None:
    assert BACKEND.variant(options()) == "mnn"
    assert BACKEND.variant(options(runtime="android")) == "mnn"
    assert BACKEND.variant(options(**npu(sdk))) == "mnn-sm8750"


@pytest.mark.parametrize(
    "given", [{"soc": "sm8750"}, {"npu_chunk": 64}, {"sparsity_method": "wanda"}]
)
def test_what_would_be_passed_over_is_refused_where_it_was_given(given: dict[str, Any]) -> None:
    recipe = Recipe(name="", backend="mnn", model="m", options=given)
    with pytest.raises(UsageError) as caught:
        recipe.parsed(BACKEND)
    assert next(iter(given)) in caught.value.what


def test_a_hexagon_the_sdk_does_not_know_is_refused(sdk: Path) -> None:
    with pytest.raises(ToolchainError, match="knows no Hexagon v81"):
        plan(options(**npu(sdk, soc="sm8850")))


def test_an_sdk_without_headers_is_refused(sdk: Path) -> None:
    (sdk / "include/QNN/QnnInterface.h").unlink()
    with pytest.raises(ToolchainError, match=r"lacks include/QNN/QnnInterface\.h"):
        plan(options(**npu(sdk)))


def test_a_family_without_npu_operators_is_refused(sdk: Path) -> None:
    strange = model(family="qwen3_5", config={"intermediate_size": 1536})
    with pytest.raises(ModelError, match="no NPU operators"):
        BACKEND.plan(options(**npu(sdk)), {"model": strange})


def test_the_app_is_built_around_the_runtime_and_may_fetch() -> None:
    stage = plan(options(runtime="android", app="debug")).stage("app")
    assert stage.network
    assert stage.inputs == {"runtime": FromStage(stage="runtime", output="runtime")}
    assert not any(s.network for s in plan(options(runtime="android")).stages)


def made(place: Path, names: dict[str, Any]) -> Path:
    for name, value in names.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        write_json(place / name, value)
    return place


def outputs(tmp_path: Path) -> Outputs:
    """What the stages of a build for the NPU, with the app, would leave."""
    proof = {
        "answers": [{"prompt": "p", "answer": "a"}], "cosine_mean": 0.99, "cosine_min": 0.98,
        "perplexity_float": 2.0, "perplexity_quantised": 2.2, "perplexity_ratio": 1.1,
        "prefill_tokens_per_second": None, "decode_tokens_per_second": None, "prompts": [],
    }  # fmt: skip
    runtime = {
        "runtime.json": {
            "mnn": "3.6.1", "abi": "arm64-v8a", "ndk": "27.2.12479018",
            "files": [{"name": "libMNN.so", "bytes": 9}],
        },
        "arm64-v8a/libMNN.so": 1, "arm64-v8a/llm_demo": 1, "arm64-v8a/llm_bench": 1,
    }  # fmt: skip
    told = {"soc": "sm8750", "binaries": [{"name": "graph0.bin", "bytes": 5}]}
    compiled = {"config_qnn.json": 1, "qnn/llm.mnn": 1, "qnn/graph0.bin": 1, "npu.json": told}
    app = {"MnnLlmChat.apk": 1, "app.json": {"bytes": 7, "build": "debug"}}
    files: dict[tuple[str, str], dict[str, Any]] = {
        ("export", "mnn"): {"llm.mnn": 1, "llm.mnn.weight": 1},
        ("configure", "config"): {"config.json": {}},
        ("prove", "prove"): {"prove.json": proof},
        ("runtime", "runtime"): runtime,
        ("npu", "npu"): compiled,
        ("app", "app"): app,
    }
    return Outputs(paths={k: made(tmp_path / "made" / k[0], v) for k, v in files.items()})


def test_the_bundle_carries_runtime_npu_and_app(tmp_path: Path, sdk: Path) -> None:
    given = options(**npu(sdk, app="debug"))
    contents = BACKEND.contents(given, {"model": model()}, outputs(tmp_path))
    root = "mnn_models/smollm2"
    wanted = {f"{root}/{n}" for n in ("config_qnn.json", "qnn/llm.mnn", "qnn/graph0.bin")}
    wanted |= {f"arm64-v8a/{n}" for n in ("libMNN.so", "llm_demo", "llm_bench")}
    wanted |= {"arm64-v8a/libQnnHtp.so", "arm64-v8a/libQnnHtpV79Skel.so", "MnnLlmChat.apk"}
    assert wanted <= set(contents.files)
    assert not any("Genie" in name or "genie" in name for name in contents.files)
    for words in ("config_qnn.json", "adb push arm64-v8a/.", "adb install MnnLlmChat.apk"):
        assert words in contents.readme
    texts = [f.text for f in BACKEND.findings(given, outputs(tmp_path / "again"))]
    assert any("MNN 3.6.1 for arm64-v8a, NDK 27.2.12479018" in t for t in texts)
    assert any("NPU of sm8750: 1 binaries" in t for t in texts)


def pushed(tmp_path: Path, names: dict[str, str]) -> Payload:
    bundle = tmp_path / "bundle"
    for name, text in names.items():
        (bundle / name).parent.mkdir(parents=True, exist_ok=True)
        (bundle / name).write_text(text, encoding="utf-8")
    with open_store() as store:
        files = store.index.files(bundle)
    listed = {name: {"size": size, "sha256": sha} for name, (size, sha) in files.items()}
    about = {"backend": "mnn", "model": {"name": "tiny"}, "options": {}}
    manifest = {"edgekiln": "0", "files": listed, **about}
    (bundle / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with open_store() as store:
        return read_payload(bundle, store.index)


def test_on_the_phone_the_runtime_lies_beside_the_model(tmp_path: Path) -> None:
    payload = pushed(
        tmp_path,
        {
            "mnn_models/tiny/config.json": "{}",
            "mnn_models/tiny/config_qnn.json": "{}",
            "arm64-v8a/llm_demo": "program",
            "arm64-v8a/libMNN.so": "library",
            "x86_64/llm_demo": "for hosts",
            "MnnLlmChat.apk": "app",
            "README.md": "words",
        },
    )
    assert [i.name for i in payload.items] == [
        "libMNN.so", "llm_demo", "mnn_models/tiny/config.json", "mnn_models/tiny/config_qnn.json",
    ]  # fmt: skip
    assert not missing(payload, [i.name for i in payload.items])
    assert _mnn_config(payload) == "mnn_models/tiny/config_qnn.json"


def test_a_bundle_without_a_runtime_still_asks_for_one(tmp_path: Path) -> None:
    payload = pushed(tmp_path, {"mnn_models/tiny/config.json": "{}"})
    assert [p.name for p in missing(payload, [i.name for i in payload.items])] == [
        p.name for p in parts(payload) if not p.optional
    ]
    assert _mnn_config(payload) == "mnn_models/tiny/config.json"
