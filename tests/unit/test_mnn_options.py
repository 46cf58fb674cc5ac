"""The MNN backend: what its options are, what does not go together, what it plans."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgekiln.backends import list_backends, load_backend
from edgekiln.backends.base import Finding, Outputs
from edgekiln.backends.mnn import BACKEND
from edgekiln.backends.mnn_checks import block, data, lm_block
from edgekiln.backends.mnn_options import EXPORT, FILES, RUNTIME, SPECULATIVE, MnnOptions
from edgekiln.errors import ModelError, QualityError, UsageError
from edgekiln.models import Model
from edgekiln.options import parse, specs
from edgekiln.pipeline import FromPath, FromStage, Pipeline


def model(**changed: Any) -> Model:
    """SmolLM2-135M by its sizes."""
    values: dict[str, Any] = {
        "name": "smollm2",
        "path": Path("/models/smollm2"),
        "source": "local",
        "family": "llama",
        "config": {"hidden_size": 576, "intermediate_size": 1536},
        "parameters": 134_515_008,
        "weight_bytes": 269_030_016,
        "dtype": "float16",
        "layers": 30,
        "hidden_size": 576,
        "heads": 9,
        "kv_heads": 3,
        "head_dim": 64,
        "vocab_size": 49152,
        "context_length": 8192,
        "tied": True,
    }
    return Model(**{**values, **changed})


def options(**given: Any) -> MnnOptions:
    return parse(MnnOptions, given, where="options")


def plan(given: MnnOptions | None = None, **models: Model) -> Pipeline:
    return BACKEND.plan(given or MnnOptions(), {"model": model(), **models})


def test_importing_the_options_loads_nothing_heavy() -> None:
    code = (
        "import sys; import edgekiln.backends.mnn; "
        "print([m for m in ('yaml', 'numpy', 'torch', 'docker', 'requests') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_backend_gets_the_nearest_name() -> None:
    assert {"mnn", "qnn"} <= set(list_backends())
    assert load_backend("mnn") is BACKEND
    with pytest.raises(UsageError) as caught:
        load_backend("mnm")
    assert "mnn" in caught.value.remedy


def test_every_option_has_help_and_a_group() -> None:
    for spec in specs(MnnOptions).values():
        assert spec.help, spec.name
        groups = ("export", "sparsity", "runtime", "draft", "device", "quality")
        assert spec.group in groups, spec.name


def test_every_option_of_the_tools_reaches_a_stage() -> None:
    reached = {*EXPORT, *RUNTIME, *SPECULATIVE, *FILES, "max_quant_block", "trust_remote_code"}
    reached |= {"draft_model", "draft_quant_bit", "min_cosine", "max_perplexity_ratio"}
    reached |= {n for n, s in specs(MnnOptions).items() if s.group in ("sparsity", "device")}
    assert set(specs(MnnOptions)) == reached


@pytest.mark.parametrize("name", ["default", "precision", "memory", "extreme-speed"])
def test_each_preset_is_made_of_options_and_can_be_planned(name: str) -> None:
    given = parse(MnnOptions, BACKEND.presets()[name], where=name)
    assert plan(given).stages[-1].name == "prove"
    assert {"min_cosine", "max_perplexity_ratio"} <= set(BACKEND.presets()[name])


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"awq": True, "smooth": True, "calib_data": __file__}, "awq and smooth"),
        ({"awq": True}, "awq needs calib_data"),
        ({"smooth": True}, "smooth needs calib_data"),
        ({"omni": True}, "omni needs calib_data"),
        ({"calib_data": __file__}, "calib_data is read by"),
        ({"awq": True, "calib_data": __file__, "quant_bit": 16}, "nothing to do"),
        ({"act_bit": 8}, "are for smooth and omni"),
        ({"generate_for_npu": True}, "are for smooth and omni"),
        ({"lora_split": True}, "lora_split needs lora_path"),
        ({"lora_path": "/"}, "wants the package peft"),
        ({"backend_type": "opencl", "threads": 4}, "is no OpenCL mode"),
        ({"sampler_type": "mixed", "mixed_samplers": "topK,topQ"}, "topQ is no sampler"),
        ({"speculative": "eagle"}, "needs eagle_path"),
        ({"eagle_path": "/"}, "with speculative eagle only"),
        ({"speculative": "mtp", "draft_model": "m"}, "do not go together"),
        ({"speculative": "mtp"}, "no layers for speculative mtp"),
        ({"quant_config": "/no/such/file"}, "there is no /no/such/file"),
    ],
)
def test_options_that_do_not_go_together_are_refused(given: dict[str, Any], what: str) -> None:
    with pytest.raises(UsageError) as caught:
        plan(options(**given))
    assert what in caught.value.what
    assert caught.value.remedy


@pytest.mark.parametrize("threads", [None, 64, 68, 128])
def test_opencl_takes_modes_for_threads(threads: int | None) -> None:
    assert plan(options(backend_type="opencl", threads=threads))


def test_an_unknown_family_is_refused_with_the_nearest() -> None:
    with pytest.raises(ModelError) as caught:
        BACKEND.plan(MnnOptions(), {"model": model(family="qwen33")})
    assert "qwen3" in caught.value.remedy


def test_a_model_with_code_of_its_own_is_run_only_when_told_to() -> None:
    strange = model(config={"auto_map": {}, "intermediate_size": 1536})
    with pytest.raises(ModelError, match="Python of its own"):
        BACKEND.plan(MnnOptions(), {"model": strange})
    pipeline = BACKEND.plan(options(trust_remote_code=True), {"model": strange})
    assert pipeline.stage("reference").params == {"trust_remote_code": True}


def test_families_are_names_without_repeats() -> None:
    families = data()["families"]
    assert len(families) == len(set(families))
    assert {"llama", "qwen2", "qwen3"} <= set(families)


@pytest.mark.parametrize(
    ("given", "hidden", "inner", "size"),
    [
        ({}, 576, 1536, 64),
        ({"max_quant_block": 256}, 576, 1536, 64),
        ({"max_quant_block": 32}, 576, 1536, 32),
        ({"max_quant_block": 100}, 2048, 6144, 64),
        ({"max_quant_block": 256}, 2048, 6144, 256),
        ({"quant_block": 192}, 576, 1536, 192),
        ({"quant_block": 0}, 576, 1536, 0),
    ],
)
def test_the_block_divides_every_width(
    given: dict[str, Any], hidden: int, inner: int, size: int
) -> None:
    shaped = model(hidden_size=hidden, heads=hidden // 64, config={"intermediate_size": inner})
    assert block(shaped, options(**given)) == size


@pytest.mark.parametrize("given", [{"quant_block": 128}, {"lm_quant_block": 256}])
def test_a_block_that_does_not_divide_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        plan(options(**given))
    assert "576" in caught.value.what
    assert "64" in caught.value.remedy


def test_the_widths_of_a_model_that_also_sees_are_its_text_s() -> None:
    nested = model(hidden_size=2048, heads=16, config={"text_config": {"intermediate_size": 96}})
    assert block(nested, options(max_quant_block=256)) == 32


def test_the_output_layer_follows_the_block_unless_it_has_its_own() -> None:
    assert lm_block(model(), options(quant_block=32)) == 32
    assert lm_block(model(), options(quant_block=32, lm_quant_block=0)) == 0


def test_the_reference_runs_beside_the_export_and_knows_nothing_of_it() -> None:
    first = plan(options(quant_bit=4)).stage("reference")
    second = plan(options(quant_bit=8, backend_type="opencl")).stage("reference")
    assert first == second
    assert not first.after()


def test_runtime_options_leave_the_export_alone() -> None:
    first, second = plan(), plan(options(kv_quant=2, temperature=0.2, min_cosine=0.5))
    assert first.stage("export") == second.stage("export")
    assert first.stage("configure") != second.stage("configure")


def test_named_files_become_inputs_of_the_export(tmp_path: Path) -> None:
    text = tmp_path / "samples.txt"
    text.write_text("one\n", encoding="utf-8")
    stage = plan(options(awq=True, calib_data=str(text))).stage("export")
    assert stage.inputs["calib_data"] == FromPath(path=text)
    assert "calib_data" not in stage.params


def test_a_draft_is_exported_in_the_same_build_and_proved_beside_the_model() -> None:
    given = options(draft_model="small", draft_quant_bit=8, quant_bit=4)
    assert BACKEND.models(given) == {"draft": "small"}
    pipeline = plan(given, draft=model(name="small", path=Path("/models/small")))
    draft = pipeline.stage("draft")
    assert draft.program == pipeline.stage("export").program
    assert draft.params["quant_bit"] == 8
    for name in ("configure", "prove"):
        assert pipeline.stage(name).inputs["draft"] == FromStage(stage="draft", output="mnn")


def test_a_larger_model_is_expected_to_need_more() -> None:
    large = model(parameters=1_720_000_000, weight_bytes=4 << 30, hidden_size=2048, heads=16)
    small_stages, large_stages = plan().stages, BACKEND.plan(MnnOptions(), {"model": large}).stages
    for small_one, large_one in zip(small_stages, large_stages, strict=True):
        if small_one.name != "configure":
            assert large_one.memory > small_one.memory


def findings(cosine: float, ratio: float) -> list[Finding]:
    figures = {"cosine_mean": cosine, "perplexity_ratio": ratio}
    return [Finding(name=n, value=v, text="") for n, v in figures.items()]


def test_figures_above_the_floor_pass() -> None:
    BACKEND.judge(options(min_cosine=0.9, max_perplexity_ratio=2), findings(0.95, 1.5))


@pytest.mark.parametrize(
    ("cosine", "ratio"), [(0.89, 1.5), (0.95, 2.1), (float("nan"), 1.0), (0.95, float("nan"))]
)
def test_figures_below_the_floor_fail_and_are_named(cosine: float, ratio: float) -> None:
    with pytest.raises(QualityError) as caught:
        BACKEND.judge(options(min_cosine=0.9, max_perplexity_ratio=2), findings(cosine, ratio))
    assert f"{cosine:.4f}" in caught.value.what
    assert "0.9" in caught.value.why


def test_the_bundle_is_laid_out_as_the_phone_wants_it(tmp_path: Path) -> None:
    export, config = tmp_path / "mnn", tmp_path / "config"
    export.mkdir()
    config.mkdir()
    for name in ("llm.mnn", "llm.mnn.weight", "llm.mnn.json", "export_args.json", "config.json"):
        (export / name).write_text("x", encoding="utf-8")
    (config / "config.json").write_text("{}", encoding="utf-8")
    places = {("export", "mnn"): export, ("configure", "config"): config}
    given = options(backend_type="opencl", use_mmap=True, kv_quant=2)
    contents = BACKEND.contents(given, {"model": model()}, Outputs(paths=places))
    root = "mnn_models/smollm2"
    assert set(contents.files) == {
        f"{root}/{n}" for n in ("config.json", "llm.mnn", "llm.mnn.weight")
    }
    assert contents.files[f"{root}/config.json"] == config / "config.json"
    for words in ("adb push mnn_models/smollm2", "llm_demo", "OpenCL", "68", "attention_mode 10"):
        assert words in contents.readme
