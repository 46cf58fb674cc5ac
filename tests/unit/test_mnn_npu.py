"""The NPU's stage, with stand-ins for MNN's tools: what it gives them, and what it makes of what
they leave. Whether the real ones take a model only they, and the vendor's SDK, can show."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.stages import Ran, run_stage

CHIP = {"soc": "sm8750", "soc_model": 69, "arch": "v79", "vtcm_mb": 8, "weight_sharing": True}

# Takes the options of MNN's generate_llm_qnn.py, calls tools of its names, and leaves files where
# that one does. STANDIN says what goes wrong.
_DRIVER = """
import argparse, json, os, pathlib, subprocess, sys
parser = argparse.ArgumentParser()
for name in ("--model", "--soc_id", "--dsp_arch", "--mnn_path", "--cache_path", "--chunk_size",
             "--max_history_token"{more}):
    parser.add_argument(name, required=True)
args = parser.parse_args()
wrong = os.environ.get("STANDIN", "")
model, cache = pathlib.Path(args.model), pathlib.Path(args.cache_path)
(cache / "qnn").mkdir(parents=True)
log = {{**vars(args), "sdk": os.environ["QNN_SDK_ROOT"], "path": os.environ["PATH"]}}
pathlib.Path(os.environ["STANDIN_LOG"]).write_text(json.dumps(log))
steps = (("Make IO", "generateIO"), ("Seperate Model", "compilefornpu"))
for number, (what, tool) in enumerate(steps, 1):
    print(f"Step{{number}}: {{what}}")
    subprocess.run([os.path.join(args.mnn_path, tool)], check=True)
    if wrong == f"crash-{{tool}}":
        print("Segmentation fault (core dumped)")
        if "goes-on" not in os.environ.get("STANDIN_MORE", ""):
            sys.exit(1)
print("Step3: Compile to QNN")
if wrong == "compiler":
    print("[Retry 3/3] command failed: qnn-context-binary-generator --model x")
    print("RuntimeError: npu_convert.py failed")
    sys.exit(1)
print("Step4: Move result file to", args.model)
(model / "qnn").mkdir()
if not wrong.startswith("crash"):
    (model / "qnn" / "llm.mnn").write_bytes(b"\\0qnn/graph0.bin\\0qnn/graph1.bin\\0")
for name in ("graph0", "graph1"):
    content = b"" if wrong == "empty" else b"binary"
    if wrong != f"no-{{name}}" and wrong != "no-binaries":
        (model / "qnn" / f"{{name}}.bin").write_bytes(content)
config = json.loads((model / "config.json").read_text())
config["llm_model"] = "llm.mnn" if wrong == "config" else "qnn/llm.mnn"
config["chunk_limits"] = [int(args.chunk_size), 1]
(model / "config_qnn.json").write_text(json.dumps(config))
print("End")
"""


class Stand:
    """The stage's inputs, with stand-ins."""

    def __init__(self, place: Path, *, vtcm: bool = True) -> None:
        self.place = place
        tools = place / "tools"
        self._file("tools/source/backend/qnn/npu_convert.py", "# its place\n")
        more = ', "--vtcm_mb"' if vtcm else ""
        driver = textwrap.dedent(_DRIVER.format(more=more))
        self._file("tools/transformers/llm/export/npu/generate_llm_qnn.py", driver)
        for tool in ("generateIO", "compilefornpu", "MNN2QNNModel"):
            self._file(f"tools/x86_64/{tool}", "#!/bin/sh\nexit 0\n")
        for name in ("llm.mnn", "llm.mnn.weight", "llm_config.json", "config.json"):
            self._file(f"mnn/{name}", '{"from": "export"}\n')
        self._file("config/config.json", '{"from": "configure"}\n')
        (place / "sdk").mkdir()
        self.inputs = {n: place / n for n in ("mnn", "config", "sdk")} | {"tools": tools}

    def _file(self, name: str, text: str) -> None:
        file = self.place / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")

    def run(self, params: dict[str, Any] | None = None, **env: str) -> Ran:
        asked = {**CHIP, "chunk": 128, "history": 0, "family": "qwen3", **(params or {})}
        env = {"STANDIN_LOG": str(self.place / "log.json"), **env}
        return run_stage("mnn/npu", self.place, inputs=self.inputs, params=asked, env=env)

    @property
    def asked(self) -> dict[str, Any]:
        """What the stand-in for MNN's script was given."""
        return dict(json.loads((self.place / "log.json").read_text(encoding="utf-8")))


@pytest.fixture
def stand(tmp_path: Path) -> Stand:
    return Stand(tmp_path)


def test_the_script_is_told_chip_chunk_and_where_the_tools_lie(stand: Stand) -> None:
    ran = stand.run({"chunk": 64, "history": 512})
    assert ran.code == 0, ran.error
    said = {k: stand.asked[k] for k in ("soc_id", "dsp_arch", "chunk_size", "max_history_token")}
    assert list(said.values()) == ["69", "v79", "64", "512"]
    assert stand.asked["vtcm_mb"] == "8"
    assert stand.asked["sdk"] == str(stand.place / "sdk")
    assert stand.asked["path"].startswith(f"{stand.place}/sdk/bin/x86_64-linux-clang:")


def test_a_script_that_knows_no_vtcm_is_not_told_of_it(tmp_path: Path) -> None:
    stand = Stand(tmp_path, vtcm=False)
    ran = stand.run()
    assert ran.code == 0, ran.error
    assert "vtcm_mb" not in stand.asked


def test_the_phones_configuration_is_the_one_that_is_turned_to_the_npu(stand: Stand) -> None:
    ran = stand.run()
    assert ran.made("npu/config_qnn.json") == {
        "from": "configure", "llm_model": "qnn/llm.mnn", "chunk_limits": [128, 1],
    }  # fmt: skip
    assert [b["name"] for b in ran.made("npu/npu.json")["binaries"]] == ["graph0.bin", "graph1.bin"]
    assert sorted(f.name for f in (ran.out / "npu" / "qnn").iterdir()) == [
        "graph0.bin", "graph1.bin", "llm.mnn",
    ]  # fmt: skip


def test_the_inputs_stay_as_they_were(stand: Stand) -> None:
    assert stand.run().code == 0
    assert not (stand.place / "mnn" / "qnn").exists()
    assert (stand.place / "tools" / "x86_64").is_dir()


@pytest.mark.parametrize(
    ("wrong", "more", "what"),
    [
        ("crash-compilefornpu", "", "compilefornpu crashed: Segmentation fault"),
        ("crash-generateIO", "", "generateIO crashed: Segmentation fault"),
        # As older tags do: the script ends well, and something is missing.
        ("crash-compilefornpu", "goes-on", "there is no qnn/llm.mnn"),
        ("compiler", "", "the SDK's compiler failed"),
        ("no-graph1", "", "qnn/llm.mnn wants graph1.bin"),
        ("no-binaries", "", "no binary in qnn/"),
        ("empty", "", "empty binaries: graph0.bin, graph1.bin"),
        ("config", "", "does not name qnn/llm.mnn"),
    ],
)
def test_a_step_that_failed_is_a_fault_that_is_named(
    stand: Stand, wrong: str, more: str, what: str
) -> None:
    ran = stand.run(STANDIN=wrong, STANDIN_MORE=more)
    assert ran.code == 1
    assert what in ran.error


def test_tools_that_are_not_whole_are_bad_input(stand: Stand) -> None:
    (stand.place / "tools" / "x86_64" / "compilefornpu").unlink()
    ran = stand.run()
    assert ran.code == 64
    assert "x86_64/compilefornpu" in ran.error


def test_the_folder_tells_the_script_a_family_that_sees(stand: Stand) -> None:
    stand.run({"family": "qwen3_vl"})
    assert Path(stand.asked["model"]).name == "Qwen3-VL"


def test_a_chip_that_shares_no_weights_is_told(stand: Stand) -> None:
    ran = stand.run({"soc": "sm8450", "soc_model": 36, "arch": "v69", "weight_sharing": False})
    assert ran.code == 0
    assert "v69 does not share weights" in ran.notes()
