"""The stage that builds MNN's runtime, with real compilers, on sources that stand in for MNN's."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.stages import Ran, run_stage
from tests.unit import mnnsource

pytestmark = pytest.mark.skipif(
    bool(mnnsource.missing()), reason=f"without {mnnsource.missing()} nothing can be built"
)


def build(place: Path, env: dict[str, str], params: dict[str, Any], **inputs: Path) -> Ran:
    """Run the stage as an executor would."""
    return run_stage("mnn/runtime", place, inputs=inputs, params=params, env=env)


def told(ran: Ran) -> dict[str, Any]:
    """What the stage says of what it built."""
    return ran.made("runtime/runtime.json")


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """What the toolchain would set."""
    return {
        "MNN_SOURCE_DIR": str(mnnsource.source(tmp_path / "mnn")),
        "ANDROID_NDK": str(mnnsource.ndk(tmp_path / "ndk")),
    }


@pytest.fixture
def sdk(tmp_path: Path) -> Path:
    """As much of the vendor's SDK as the compiler looks at."""
    header = tmp_path / "sdk" / "include" / "QNN" / "QnnInterface.h"
    header.parent.mkdir(parents=True)
    header.write_text("/* stand-in */\n", encoding="utf-8")
    return tmp_path / "sdk"


def names(ran: Ran) -> list[str]:
    return [f["name"] for f in told(ran)["files"]]


def test_the_phones_runtime_is_one_library_and_two_programs(
    tmp_path: Path, env: dict[str, str]
) -> None:
    ran = build(tmp_path / "a", env, {"kind": "android"})
    assert ran.code == 0, ran.log
    assert names(ran) == ["libMNN.so", "llm_bench", "llm_demo"]
    found = told(ran)
    assert (found["mnn"], found["abi"], found["ndk"]) == ("3.6.1", "arm64-v8a", mnnsource.REVISION)
    assert found["backends"] == ["cpu", "opencl"]
    for file in found["files"]:
        assert file["align"] >= 16384
        assert (file["api"], file["ndk"], file["ndk_build"]) == (28, "r27c", "12479018")
    folder = ran.out / "runtime" / "arm64-v8a"
    assert os.access(folder / "llm_demo", os.X_OK)
    assert "--parallel 2" in ran.log


def test_two_builds_are_the_same_bytes_and_name_no_path(
    tmp_path: Path, env: dict[str, str]
) -> None:
    first, second = (build(tmp_path / n, env, {"kind": "android"}) for n in ("a", "b"))
    for file in (first.out / "runtime" / "arm64-v8a").iterdir():
        content = file.read_bytes()
        assert content == (second.out / "runtime" / "arm64-v8a" / file.name).read_bytes()
        assert b"/tmp/" not in content and str(tmp_path).encode() not in content
    library = (first.out / "runtime" / "arm64-v8a" / "libMNN.so").read_bytes()
    assert b"/mnn/mnn.c" in library


def test_parts_can_be_libraries_of_their_own(tmp_path: Path, env: dict[str, str]) -> None:
    ran = build(tmp_path / "a", env, {"kind": "android", "separate": True})
    assert ran.code == 0, ran.log
    assert {"libMNN.so", "libllm.so", "libMNN_Express.so"} <= set(names(ran))


def test_for_this_machine_the_converter_is_built_too(tmp_path: Path, env: dict[str, str]) -> None:
    ran = build(tmp_path / "a", env, {"kind": "host"})
    assert ran.code == 0, ran.log
    assert names(ran) == ["MNNConvert", "libMNN.so", "llm_bench", "llm_demo"]
    assert told(ran)["ndk"] is None
    run = subprocess.run(
        [ran.out / "runtime" / "x86_64" / "llm_demo"],
        env={"LD_LIBRARY_PATH": str(ran.out / "runtime" / "x86_64")},
        check=False,
    )
    assert run.returncode == 0


def test_the_npus_tools_come_with_mnns_own_scripts(
    tmp_path: Path, env: dict[str, str], sdk: Path
) -> None:
    ran = build(tmp_path / "a", env, {"kind": "convert"}, sdk=sdk)
    assert ran.code == 0, ran.log
    assert {"generateIO", "compilefornpu", "MNN2QNNModel"} <= set(names(ran))
    for script in (
        "transformers/llm/export/npu/generate_llm_qnn.py",
        "source/backend/qnn/npu_convert.py",
    ):
        assert (ran.out / "runtime" / script).is_file()


def test_with_an_sdk_the_phones_library_holds_the_npus_part(
    tmp_path: Path, env: dict[str, str], sdk: Path
) -> None:
    ran = build(tmp_path / "a", env, {"kind": "android"}, sdk=sdk)
    assert ran.code == 0, ran.log
    assert told(ran)["backends"] == ["cpu", "opencl", "qnn"]


def test_the_npus_tools_without_an_sdk_are_bad_input(tmp_path: Path, env: dict[str, str]) -> None:
    ran = build(tmp_path / "a", env, {"kind": "convert"})
    assert ran.code == 64
    assert "SDK" in ran.error


@pytest.mark.parametrize("variable", ["MNN_SOURCE_DIR", "ANDROID_NDK"])
def test_a_toolchain_without_its_kits_is_bad_input(
    tmp_path: Path, env: dict[str, str], variable: str
) -> None:
    ran = build(tmp_path / "a", {**env, variable: str(tmp_path / "nowhere")}, {"kind": "android"})
    assert ran.code == 64
    assert variable in ran.error


def change(env: dict[str, str], name: str, before: str, after: str) -> None:
    file = Path(env["MNN_SOURCE_DIR"]) / name
    text = file.read_text(encoding="utf-8")
    assert before in text
    file.write_text(text.replace(before, after), encoding="utf-8")


def test_a_library_without_the_language_model_is_found_out(
    tmp_path: Path, env: dict[str, str]
) -> None:
    change(env, "CMakeLists.txt", "target_sources(MNN PRIVATE llm.c)", "")
    ran = build(tmp_path / "a", env, {"kind": "android"})
    assert ran.code == 1
    assert "createLLM" in ran.error


def test_a_library_without_opencl_is_found_out(tmp_path: Path, env: dict[str, str]) -> None:
    change(env, "CMakeLists.txt", "add_definitions(-DOPENCL)", "")
    ran = build(tmp_path / "a", env, {"kind": "android"})
    assert ran.code == 1
    assert "OpenCL" in ran.error


def test_pages_of_4_kb_are_found_out(tmp_path: Path, env: dict[str, str]) -> None:
    line = "set(CMAKE_SHARED_LINKER_FLAGS -Wl,-z,max-page-size=4096)\nadd_library(MNN SHARED"
    change(env, "CMakeLists.txt", "add_library(MNN SHARED", line)
    ran = build(tmp_path / "a", env, {"kind": "android"})
    assert ran.code == 1
    assert "libMNN.so is aligned to 4096" in ran.error


def test_a_library_no_phone_has_is_found_out(tmp_path: Path, env: dict[str, str]) -> None:
    line = "add_library(c++_shared SHARED main.c)\nset_target_properties(c++_shared PROPERTIES "
    line += "LIBRARY_OUTPUT_DIRECTORY CMakeFiles)\ntarget_link_libraries(MNN -Wl,--no-as-needed "
    line += "c++_shared)\nset(programs"
    change(env, "CMakeLists.txt", "set(programs", line)
    ran = build(tmp_path / "a", env, {"kind": "android"})
    assert ran.code == 1
    assert "libc++_shared.so, which no phone has" in ran.error


@pytest.mark.parametrize(
    ("made", "what"),
    [({"note": False}, "no note of Android's"), ({"build": "11718014"}, "NDK build 11718014")],
)
def test_what_another_compiler_linked_is_found_out(
    tmp_path: Path, env: dict[str, str], made: dict[str, Any], what: str
) -> None:
    other = mnnsource.ndk(tmp_path / "other", **made)
    ran = build(tmp_path / "a", {**env, "ANDROID_NDK": str(other)}, {"kind": "android"})
    assert ran.code == 1
    assert what in ran.error


def test_sources_that_do_not_compile_are_a_fault_with_the_compilers_words(
    tmp_path: Path, env: dict[str, str]
) -> None:
    change(env, "llm.c", "(void *)config", "nothing")
    ran = build(tmp_path / "a", env, {"kind": "android"})
    assert ran.code == 1
    assert "nothing" in ran.log and "the build ended with" in ran.error
