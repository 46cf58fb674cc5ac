"""mlc-package-config.json: made right; what is wrong with one is found before a tool is started."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from edgekiln.backends.mlc_package import CONFIG, Packed, check_file, package_config
from edgekiln.commands.bundles import package_check
from edgekiln.errors import ArtifactError, BundleError
from edgekiln.problems import Problem
from tests.unit import tinyelf

PREFIX, LIB = "qwen2_q4f16_1_", "qwen2_q4f16_1"
PATHS = "model_lib_path_for_prepare_libs"


def packed(name: str = "deepseek", lib: str = LIB) -> Packed:
    return Packed(
        model_id=f"{name}-q4f16_1-MLC",
        model_lib=lib,
        hub=None,
        vram=1_320_000_000,
        sizes={"context_window_size": 2048, "prefill_chunk_size": 128},
    )


def place(folder: Path, *models: Packed) -> dict[str, Any]:
    """A folder as a build leaves it: weights, libraries, and the configuration; that again."""
    for model in models:
        (folder / model.model_id).mkdir(parents=True)
        (folder / model.model_id / "tensor-cache.json").write_text("{}")
        tinyelf.write_library(folder / model.library, f"{model.model_lib}_")
    config = package_config(models, bundle_weights=True)
    write(folder, config)
    return config


def write(folder: Path, config: Any) -> None:
    (folder / CONFIG).write_text(json.dumps(config))


def errors(folder: Path) -> list[Problem]:
    return [p for p in check_file(folder) if p.level == "error"]


def only(folder: Path) -> Problem:
    (problem,) = errors(folder)
    return problem


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place(tmp_path, packed())
    return tmp_path


def config(folder: Path) -> Any:
    return json.loads((folder / CONFIG).read_text())


def test_what_a_build_writes_is_in_order(folder: Path) -> None:
    assert check_file(folder) == []
    assert check_file(folder / CONFIG) == []


def test_the_configuration_is_the_write_up_s() -> None:
    found = package_config([packed()], bundle_weights=True)
    assert found == {
        "device": "android",
        "model_list": [
            {
                "model": "deepseek-q4f16_1-MLC",
                "model_id": "deepseek-q4f16_1-MLC",
                "estimated_vram_bytes": 1_320_000_000,
                "model_lib": "qwen2_q4f16_1",
                "bundle_weight": True,
                "overrides": {"context_window_size": 2048, "prefill_chunk_size": 128},
            }
        ],
        PATHS: {"qwen2_q4f16_1": "lib/qwen2_q4f16_1.tar"},
    }


def test_without_bundled_weights_the_address_is_the_hub_s() -> None:
    hub = "HF://someone/deepseek-q4f16_1-MLC"
    model = Packed(model_id="d", model_lib=LIB, hub=hub, vram=1, sizes={})
    entry = package_config([model], bundle_weights=False)["model_list"][0]
    assert (entry["model"], entry["bundle_weight"]) == (hub, False)


def test_several_models_are_in_order(tmp_path: Path) -> None:
    place(tmp_path, packed(), packed("qwen", "qwen_q4f16_1"))
    assert check_file(tmp_path) == []


def test_a_trailing_underscore_is_the_prefix_and_not_the_name(folder: Path) -> None:
    given = config(folder)
    given["model_list"][0]["model_lib"] = PREFIX
    write(folder, given)
    assert "without its last underscore" in only(folder).what
    assert only(folder).remedy == "write qwen2_q4f16_1"


def test_a_trailing_underscore_in_both_places_is_found_too(folder: Path) -> None:
    given = config(folder)
    given["model_list"][0]["model_lib"] = PREFIX
    given[PATHS] = {PREFIX: f"lib/{LIB}.tar"}
    write(folder, given)
    assert only(folder).remedy == "write qwen2_q4f16_1, here and in model_list"


def test_a_wrong_name_is_told_what_is_inside(folder: Path) -> None:
    wrong = "deepseek_r1_qwen1p5b_q4f16_1"
    given = config(folder)
    given["model_list"][0]["model_lib"] = wrong
    given[PATHS] = {wrong: f"lib/{LIB}.tar"}
    write(folder, given)
    assert f"holds {LIB}" in only(folder).what
    assert only(folder).remedy == f"write {LIB}, here and in model_list"


def test_a_name_that_no_path_is_given_for_is_found(folder: Path) -> None:
    given = config(folder)
    given["model_list"][0]["model_lib"] = "qwen2_q4f16_0"
    write(folder, given)
    assert only(folder).where == "model_list[0].model_lib"
    assert "would compile one" in only(folder).what
    assert only(folder).remedy == f"did you mean {LIB}?"


def test_a_missing_library_is_found(folder: Path) -> None:
    (folder / "lib" / f"{LIB}.tar").unlink()
    assert "there is no file" in only(folder).what


def test_a_library_of_nearly_that_name_is_pointed_at(folder: Path) -> None:
    (folder / "lib" / f"{LIB}.tar").rename(folder / "lib" / "qwen2_q4f16-1.tar")
    assert only(folder).remedy == "did you mean qwen2_q4f16-1.tar?"


def test_a_library_under_another_s_name_is_found(folder: Path) -> None:
    tinyelf.write_library(folder / "lib" / f"{LIB}.tar", "phi3_q4f16_0_")
    assert "holds phi3_q4f16_0: the file was renamed" in only(folder).what


def test_a_tar_under_another_suffix_is_found(folder: Path) -> None:
    shutil.move(folder / "lib" / f"{LIB}.tar", folder / "lib" / f"{LIB}.lib")
    given = config(folder)
    given[PATHS] = {LIB: f"lib/{LIB}.lib"}
    write(folder, given)
    assert "would pack it unopened" in only(folder).what
    assert only(folder).remedy == f"call it {LIB}.tar"


def test_what_is_no_archive_is_found_whatever_its_name(folder: Path) -> None:
    (folder / "lib" / f"{LIB}.tar").write_bytes(b"PK\x03\x04" + bytes(600))
    assert "is no .tar of objects" in only(folder).what


def test_a_damaged_archive_is_found(folder: Path) -> None:
    library = folder / "lib" / f"{LIB}.tar"
    library.write_bytes(library.read_bytes()[:200])
    assert "damaged" in only(folder).what


def test_two_libraries_of_one_prefix_are_found(tmp_path: Path) -> None:
    given = place(tmp_path, packed(), packed("qwen", "other_q4f16_1"))
    given[PATHS]["other_q4f16_1"] = "lib/other.tar"
    tinyelf.write_library(tmp_path / "lib" / "other.tar", PREFIX)
    write(tmp_path, given)
    problems = [p for p in errors(tmp_path) if p.where == PATHS]
    assert "have the same prefix qwen2_q4f16_1_" in problems[0].what
    assert "--system-lib-prefix" in problems[0].remedy


def test_one_library_for_two_models_is_no_collision(tmp_path: Path) -> None:
    given = place(tmp_path, packed(), packed("qwen", "other_q4f16_1"))
    given["model_list"][1]["model_lib"] = LIB
    del given[PATHS]["other_q4f16_1"]
    write(tmp_path, given)
    assert errors(tmp_path) == []


def test_a_library_for_another_machine_is_found(folder: Path) -> None:
    library = folder / "lib" / f"{LIB}.tar"
    tinyelf.write_library(library, PREFIX, machine=tinyelf.X86_64)
    assert "objects for x86-64" in only(folder).what
    assert only(folder).remedy == "compile it for --target android"


def test_android_s_library_in_an_iphone_s_package_is_found(folder: Path) -> None:
    write(folder, {**config(folder), "device": "iphone"})
    assert "not Apple's" in only(folder).what


def test_a_library_without_a_prefix_is_found(folder: Path) -> None:
    tinyelf.write_library(folder / "lib" / f"{LIB}.tar", "")
    assert "without a prefix" in only(folder).what
    assert "android:adreno" in only(folder).remedy


def test_an_archive_of_something_else_is_found(folder: Path) -> None:
    tinyelf.write_library(folder / "lib" / f"{LIB}.tar", None)
    assert "no symbol" in only(folder).what


def test_a_library_of_an_older_mlc_is_found(folder: Path) -> None:
    tinyelf.write_library(folder / "lib" / f"{LIB}.tar", PREFIX, suffix="__tvm_dev_mblob")
    assert "0.19 or older" in only(folder).what


def test_archives_need_not_be_compressed(folder: Path) -> None:
    tinyelf.write_library(folder / "lib" / f"{LIB}.tar", PREFIX, compressed=False)
    assert errors(folder) == []


def test_dashes_become_underscores_as_in_mlc_llm(folder: Path) -> None:
    tinyelf.write_library(folder / "lib" / "phi.tar", "phi_msft_q4f16_1_")
    given = config(folder)
    given["model_list"][0]["model_lib"] = "phi-msft_q4f16_1"
    given[PATHS] = {"phi-msft_q4f16_1": "lib/phi.tar"}
    write(folder, given)
    assert errors(folder) == []


@pytest.mark.parametrize(
    ("change", "where", "what"),
    [
        ({"bundle_weight": False}, "model_list[0].model", "bundle_weight is not set"),
        ({"model": "elsewhere"}, "model_list[0].model", "there is no folder"),
        ({"model": 7}, "model_list[0].model", "it is 7"),
        ({"estimated_vram_bytes": "1"}, "model_list[0].estimated_vram_bytes", 'it is "1"'),
        ({"estimated_vram_bytes": True}, "model_list[0].estimated_vram_bytes", "it is true"),
        ({"overrides": {"max_seq_len": 768}}, "model_list[0].overrides.max_seq_len", "no such"),
        ({"model_lib": "qwen2.5"}, "model_list[0].model_lib", "has no qwen2.5"),
    ],
)
def test_a_model_s_entry_is_held_against_what_mlc_llm_reads(
    folder: Path, change: dict[str, Any], where: str, what: str
) -> None:
    given = config(folder)
    given["model_list"][0] |= change
    write(folder, given)
    assert any(p.where == where and what in p.what for p in errors(folder)), errors(folder)


def test_what_is_missing_is_named(folder: Path) -> None:
    given = config(folder)
    del given["model_list"][0]["estimated_vram_bytes"]
    write(folder, given)
    assert only(folder).where == "model_list[0].estimated_vram_bytes"


def test_the_override_that_only_a_package_knows_is_taken(folder: Path) -> None:
    given = config(folder)
    given["model_list"][0]["overrides"] = {"opt": "O3"}
    write(folder, given)
    assert check_file(folder) == []


def test_a_key_that_nothing_reads_is_a_warning(folder: Path) -> None:
    given = config(folder)
    given["model_list"][0]["bundle_weights"] = True
    write(folder, given)
    (found,) = check_file(folder)
    assert (found.level, found.remedy) == ("warning", "did you mean bundle_weight?")


def test_a_model_without_a_library_is_noted(folder: Path) -> None:
    given = config(folder)
    del given["model_list"][0]["model_lib"]
    write(folder, given)
    (found,) = check_file(folder)
    assert found.level == "note"


@pytest.mark.parametrize(
    ("files", "what"),
    [((), "it holds no weights"), (("ndarray-cache.json",), "of MLC-LLM 0.19")],
)
def test_weights_that_are_not_there_are_found(
    folder: Path, files: tuple[str, ...], what: str
) -> None:
    weights = folder / "deepseek-q4f16_1-MLC"
    (weights / "tensor-cache.json").unlink()
    for name in files:
        (weights / name).write_text("{}")
    assert what in only(folder).what


def test_two_models_of_one_name_are_found(tmp_path: Path) -> None:
    given = place(tmp_path, packed())
    given["model_list"] *= 2
    write(tmp_path, given)
    assert "two models are called" in only(tmp_path).what


@pytest.mark.parametrize(
    ("given", "where"),
    [
        ({"device": "andriod"}, "device"),
        ({"device": "android"}, "model_list"),
        ({"device": "android", "model_list": [1]}, "model_list[0]"),
        ({"device": "android", "model_list": [{}], PATHS: []}, PATHS),
        ({"device": "android", "model_list": [{}], PATHS: {"a": 1}}, PATHS),
    ],
)
def test_what_is_no_configuration_is_told_where(
    tmp_path: Path, given: dict[str, Any], where: str
) -> None:
    write(tmp_path, given)
    assert errors(tmp_path)[0].where == where


@pytest.mark.parametrize(
    ("text", "said"),
    [("[]", "is no mlc-"), ("{", "is no JSON"), ("", "is no JSON"), (None, "cannot be read")],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / CONFIG).write_text(text)
    with pytest.raises(ArtifactError, match=f"{CONFIG} {said}") as caught:
        check_file(tmp_path)
    assert caught.value.remedy == f"give an {CONFIG}, or the folder it is in"


def test_the_command_leaves_with_16_and_prints_each(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package_check(str(folder))
    assert "every model has its library" in capsys.readouterr().out
    (folder / "lib" / f"{LIB}.tar").unlink()
    with pytest.raises(BundleError, match="1 error") as caught:
        package_check(str(folder))
    assert caught.value.exit_code == 16
    assert "there is no file" in capsys.readouterr().out
