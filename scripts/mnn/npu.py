"""Stage: an export cut into graphs and compiled for one Snapdragon's NPU, with MNN's own tools.

Inputs: `mnn` (an export made with generate_for_npu), `config` (what configure wrote), `tools` (the
host tools and scripts, built by runtime.py of the same tag), `sdk` (the vendor's QAIRT SDK).
Output: the folder `npu`: config_qnn.json, qnn/ and npu.json. Parameters: soc, soc_model, arch,
vtcm_mb, weight_sharing (the chip), chunk, history, family (the model's).

MNN's generate_llm_qnn.py does the work: generateIO writes samples of inputs and outputs,
compilefornpu cuts the graph, npu_convert.py lets the SDK compile the pieces. Tags differ in
whether a failed step ends it (alibaba/MNN#4212), and compilefornpu is known to crash (#4740,
#4716); so it is not believed: what each step must leave is looked for.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stagekit import BadInput, Stage, main

HOST = "x86_64-linux-clang"
SCRIPT = "transformers/llm/export/npu/generate_llm_qnn.py"
TOOLS = ("generateIO", "compilefornpu", "MNN2QNNModel")
# The script tells families apart by the folder's name; ours would otherwise tell it nothing.
_FOLDERS = {"qwen3_vl": "Qwen3-VL", "qwen2_5_vl": "Qwen2.5-VL", "qwen2_vl": "Qwen2-VL"}
_STEP = re.compile(r"^Step(\d): (.+)$")
_STEPS = 4
_CRASH = re.compile(r"Segmentation fault|core dumped|Aborted")
_FAILED = re.compile(
    r"^\[Retry 3/3\] command failed: (.+)$|^(?:RuntimeError|FileNotFoundError): (.+)$"
)
# Who leaves what, by the script's steps.
_WHO = {1: "generateIO", 2: "compilefornpu", 3: "the SDK's compiler", 4: "generate_llm_qnn.py"}


def run(stage: Stage) -> None:
    """Lay the model out, let MNN's script work on it, and look at what it left."""
    if not stage.param("weight_sharing", bool, True):
        stage.note(
            f"Hexagon {stage.params.get('arch')} does not share weights between graphs: MNN's "
            "table names such chips, but asks its compiler for sharing all the same"
        )
    tools = stage.input("tools")
    script = _whole(tools)
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        model = lay_out(stage, work)
        place = work / "MNN"
        shutil.copytree(tools, place)
        build = place / "build"
        (place / "x86_64").rename(build)
        for tool in TOOLS:
            (build / tool).chmod(0o755)
        said = _compile(stage, place / script, model, build)
        made = check(model, said)
        _write(stage, model, made)


def _whole(tools: Path) -> str:
    wanted = [SCRIPT, "source/backend/qnn/npu_convert.py", *(f"x86_64/{t}" for t in TOOLS)]
    missing = [place for place in wanted if not (tools / place).is_file()]
    if missing:
        raise BadInput(f"the host tools are not whole: no {', '.join(missing)}")
    return SCRIPT


def lay_out(stage: Stage, work: Path) -> Path:
    """The model's folder as the script wants it: the export, and the phone's config.json."""
    model = work / _FOLDERS.get(stage.param("family", str, ""), "model")
    model.mkdir()
    for file in sorted(stage.input("mnn").iterdir()):
        if file.name != "config.json":
            (model / file.name).symlink_to(file.resolve())
    shutil.copyfile(stage.input("config") / "config.json", model / "config.json")
    if not (model / "llm.mnn").exists() or not (model / "llm.mnn.weight").exists():
        raise BadInput("the export holds no llm.mnn with weights beside it")
    return model


def words(stage: Stage, script: Path, model: Path, build: Path) -> list[str]:
    """The script's command line; vtcm_mb where this tag's script takes it."""
    found = [
        sys.executable,
        str(script),
        *("--model", str(model)),
        *("--soc_id", str(stage.param("soc_model", int))),
        *("--dsp_arch", str(stage.param("arch", str))),
        *("--mnn_path", str(build)),
        *("--cache_path", str(model.with_name("cache"))),
        *("--chunk_size", str(stage.param("chunk", int, 128))),
        *("--max_history_token", str(stage.param("history", int, 0))),
    ]
    if "--vtcm_mb" in script.read_text(encoding="utf-8"):
        found += ["--vtcm_mb", str(stage.param("vtcm_mb", int, 8))]
    return found


def environment(sdk: Path, base: Mapping[str, str], build: Path) -> dict[str, str]:
    """What the SDK's bin/envsetup.sh sets, and where the tools' own libraries lie."""
    tools, libraries = str(sdk / "bin" / HOST), str(sdk / "lib" / HOST)
    loaded = (str(build), libraries, base.get("LD_LIBRARY_PATH", ""))
    return {
        **base,
        "QNN_SDK_ROOT": str(sdk),
        "QAIRT_SDK_ROOT": str(sdk),
        "PYTHONPATH": os.pathsep.join([f"{sdk}/lib/python", f"{sdk}/benchmarks/QNN/"]),
        "PATH": os.pathsep.join([tools, base.get("PATH", os.defpath)]),
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, loaded)),
        "HEXAGON_TOOLS_DIR": tools,
    }


def _compile(stage: Stage, script: Path, model: Path, build: Path) -> list[str]:
    """Run the script to its end; what it said, for the errors. Raises where it fails."""
    command = words(stage, script, model, build)
    print(f"$ {' '.join(command)}", file=sys.stderr, flush=True)
    said: list[str] = []
    with subprocess.Popen(
        command,
        cwd=model.parent,
        env=environment(stage.input("sdk").resolve(), os.environ, build),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as working:
        assert working.stdout is not None
        for line in working.stdout:
            sys.stderr.write(line)
            said.append(line.rstrip("\n"))
            if step := _STEP.match(line):
                stage.progress(int(step[1]) - 1, _STEPS, unit="steps", what=step[2].lower())
    if working.returncode:
        raise RuntimeError(f"{blame(said)} (generate_llm_qnn.py ended with {working.returncode})")
    return said


def blame(said: list[str]) -> str:
    """The step that failed, and its words."""
    step = 0
    for line in said:
        if found := _STEP.match(line):
            step = int(found[1])
        if _CRASH.search(line):
            return f"{_WHO.get(step, 'a tool')} crashed: {line.strip()}"
    words = [found[1] or found[2] for line in said if (found := _FAILED.match(line.strip()))]
    last = words[-1] if words else next((s for s in reversed(said) if s.strip()), "it said nothing")
    return f"{_WHO.get(step, 'generate_llm_qnn.py')} failed: {last}"


def check(model: Path, said: list[str]) -> list[dict[str, Any]]:
    """What the script must have left, whatever it ended with: the binaries it names.

    Raises RuntimeError with the step to blame: older tags go on after a failed one.
    """
    config, folder = model / "config_qnn.json", model / "qnn"
    for file in (folder / "llm.mnn", config):
        if not file.is_file() or file.stat().st_size == 0:
            raise RuntimeError(f"{blame(said)}; there is no {file.relative_to(model)}")
    told = json.loads(config.read_text(encoding="utf-8"))
    if told.get("llm_model") != "qnn/llm.mnn" or not told.get("chunk_limits"):
        raise RuntimeError("config_qnn.json does not name qnn/llm.mnn with its chunk_limits")
    made = [f for f in sorted(folder.iterdir()) if f.suffix == ".bin"]
    empty = [f.name for f in made if f.stat().st_size == 0]
    if not made or empty:
        what = f"empty binaries: {', '.join(empty)}" if empty else "no binary in qnn/"
        raise RuntimeError(f"{blame(said)}; {what}")
    named = _named((folder / "llm.mnn").read_bytes())
    if missing := sorted(named - {f.name for f in made}):
        raise RuntimeError(f"{blame(said)}; qnn/llm.mnn wants {', '.join(missing)}")
    return [{"name": f.name, "bytes": f.stat().st_size} for f in made]


def _named(graph: bytes) -> set[str]:
    """The binaries that the cut graph loads, as it spells them: qnn/graph3.bin."""
    found = re.findall(rb"(?<![\w.])(graph[\w-]*\.bin)(?![\w.])", graph)
    return {name.decode() for name in found}


def _write(stage: Stage, model: Path, made: list[dict[str, Any]]) -> None:
    out = stage.output("npu")
    out.mkdir(parents=True)
    shutil.copyfile(model / "config_qnn.json", out / "config_qnn.json")
    shutil.copytree(model / "qnn", out / "qnn")
    told = {
        "soc": stage.param("soc", str),
        "soc_model": stage.param("soc_model", int),
        "arch": stage.param("arch", str),
        "chunk": stage.param("chunk", int, 128),
        "history": stage.param("history", int, 0),
        "binaries": made,
    }
    text = json.dumps(told, indent=1, sort_keys=True)
    (out / "npu.json").write_text(text + "\n", encoding="utf-8", newline="\n")
    total = sum(int(b["bytes"]) for b in made)
    stage.note(f"{len(made)} binaries for {told['soc']}, {total:,} bytes")


if __name__ == "__main__":
    main(run)
