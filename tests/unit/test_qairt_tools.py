"""The SDK's command lines and settings, word by word as the vendor's notebooks have them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.unit import qairt_standin as standin

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path[:0] = [str(SCRIPTS), str(SCRIPTS / "qnn")]

import qairt_tools as tools  # noqa: E402

BIN = Path("/sdk/bin/x86_64-linux-clang")


def test_the_command_lines_are_the_write_ups() -> None:
    assert (
        tools.mha2sha_words(BIN / "m", "N", "Y.onnx", "X.encodings", "D")
        == (
            f"{BIN}/m --sha-export-path D --model-name N "
            "--exported-model-encoding-path X.encodings --exported-model-path Y.onnx "
            "--base-llm llama3 --mha-conv --nchw-aligned"
        ).split()
    )
    words = tools.converter_words(BIN / "c", "X.onnx", "X.encodings", "X.dlc", ["n", "m"])
    assert (
        words
        == (
            f"{BIN}/c --input_network X.onnx --quantization_overrides X.encodings -o X.dlc "
            "--source_model_input_layout n NONTRIVIAL --desired_input_layout n NONTRIVIAL "
            "--source_model_input_layout m NONTRIVIAL --desired_input_layout m NONTRIVIAL"
        ).split()
    )
    assert (
        tools.quantizer_words(BIN / "q", "X.dlc", "L.txt", "X_quantized.dlc")
        == (
            f"{BIN}/q --input_dlc X.dlc --input_list L.txt --output_dlc X_quantized.dlc "
            "--act_bitwidth 16 --bias_bitwidth 32"
        ).split()
    )
    name = "weight_sharing_model_1_of_2.serialized"
    words = tools.generator_words(BIN / "g", "HtpConfigFile_API_1.json", name, "D", ["a", "b"])
    assert (
        words
        == (
            f"{BIN}/g --log_level=verbose --backend libQnnHtp.so --model libQnnModelDlc.so "
            "--input_output_tensor_mem_type memhandle --output_dir D "
            f"--config_file HtpConfigFile_API_1.json --binary_file {name} --dlc_path a,b"
        ).split()
    )


def test_the_settings_are_the_write_ups() -> None:
    assert tools.extension_config("PerfSetting_API_1.conf") == {
        "backend_extensions": {
            "shared_library_path": "libQnnHtpNetRunExtensions.so",
            "config_file_path": "PerfSetting_API_1.conf",
        }
    }
    graphs = ["ar128-cl4096_1_of_1", "ar1-cl4096_1_of_1"]
    found = tools.htp_config(graphs, soc_model=69, arch="v79", level=3.0, vtcm_mb=8, shared=True)
    assert found == {
        "graphs": [{"O": 3.0, "vtcm_mb": 8, "graph_names": graphs, "fp16_relaxed_precision": 0}],
        "devices": [
            {
                "soc_id": 69,
                "dsp_arch": "v79",
                "cores": [{"perf_profile": "burst", "rpc_control_latency": 100}],
                "pd_session": "unsigned",
            }
        ],
        "context": {"weight_sharing_enabled": True},
        "memory": {"mem_type": "shared_buffer"},
    }


def test_the_environment_is_that_of_envsetup() -> None:
    base = {"PATH": "/usr/bin", "PYTHONPATH": "/ours", "HOME": "/home/x"}
    assert tools.environment(Path("/sdk"), base) == {
        "HOME": "/home/x",
        "QNN_SDK_ROOT": "/sdk",
        "QAIRT_SDK_ROOT": "/sdk",
        "PYTHONPATH": "/sdk/lib/python:/sdk/benchmarks/QNN/",
        "PATH": f"{BIN}:/usr/bin",
        "LD_LIBRARY_PATH": "/sdk/lib/x86_64-linux-clang",
        "HEXAGON_TOOLS_DIR": str(BIN),
    }
    more = tools.environment(Path("/sdk"), {"LD_LIBRARY_PATH": "/conda/lib"})
    assert more["LD_LIBRARY_PATH"] == "/sdk/lib/x86_64-linux-clang:/conda/lib"


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tools.Tools:
    monkeypatch.setenv("STANDIN_LOG", str(tmp_path / "log"))
    work = tmp_path / "work"
    work.mkdir()
    (work / "x.onnx").write_text("onnx")
    (work / "x.encodings").write_text("{}")
    return tools.Tools(sdk=standin.folder(tmp_path), work=work)


def convert(made: tools.Tools) -> None:
    tool = made.path("qairt-converter")
    made.run(
        tools.converter_words(tool, "x.onnx", "x.encodings", "x.dlc", ["input_ids"]), Path("x.dlc")
    )


def test_a_tool_that_fails_is_quoted(made: tools.Tools, monkeypatch: pytest.MonkeyPatch) -> None:
    convert(made)
    assert (made.work / "x.dlc").is_file()
    monkeypatch.setenv("STANDIN_FAILS", "qairt-converter")
    with pytest.raises(tools.ToolError, match=r"ended with 3: ERROR - the stand-in was told"):
        convert(made)


def test_a_tool_that_ends_well_and_writes_nothing_is_found(
    made: tools.Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN_SILENT", "qairt-converter")
    with pytest.raises(tools.ToolError, match=r"wrote no x\.dlc: it said nothing"):
        convert(made)


def test_the_head_splitter_is_found_beside_the_tools_or_among_the_notebooks(
    tmp_path: Path,
) -> None:
    without = standin.folder(tmp_path / "a", mha2sha=False)
    work = tmp_path / "work"
    assert tools.Tools(sdk=without, work=work).mha2sha() is None
    beside = without / "examples/G2G/MHA2SHA/bin/mha2sha-onnx-converter"
    (beside.parents[1] / "src/python").mkdir(parents=True)
    beside.parent.mkdir()
    beside.write_text("#!/bin/sh\necho $PYTHONPATH >made\n")
    beside.chmod(0o755)
    found = tools.Tools(sdk=without, work=tmp_path)
    assert found.mha2sha() == beside
    found.run([str(beside)], Path("made"))
    first = (tmp_path / "made").read_text().split(os.pathsep)[0]
    assert first == str(beside.parents[1] / "src/python")


def test_the_build_id_is_read_out_of_a_library(tmp_path: Path) -> None:
    file = tmp_path / "lib.so"
    standin.library(file)
    assert tools.build_id(file) == standin.BUILD
    file.write_bytes(b"v2.36.0 alone is no build")
    assert tools.build_id(file) == "" == tools.build_id(tmp_path / "none")
