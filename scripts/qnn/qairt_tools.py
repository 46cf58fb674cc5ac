"""The vendor's command-line tools of the QAIRT SDK: their command lines, settings and environment.

The command lines are those of the vendor's notebooks for language models, as the AIMET-to-QNN
write-up ran them with QAIRT 2.36. Paths are relative to one working folder, in which all tools
run, so that nothing they write down names this machine.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HOST = "x86_64-linux-clang"
# Tensors keep the axes they have in the ONNX: Genie reads their shapes.
LAYOUT = "NONTRIVIAL"
_BUILD = re.compile(rb"v\d+\.\d+\.\d+\.\d{12}(?!\d)")
_LINES = 4  # of a failed tool's words, quoted in the error; the log has them all


class ToolError(RuntimeError):
    """A tool of the SDK ended badly, or did not write what it was asked for."""


@dataclass(frozen=True, kw_only=True)
class Tools:
    """The tools of one SDK, run in one working folder."""

    sdk: Path
    work: Path

    def path(self, name: str) -> Path:
        """Where a tool lies."""
        return self.sdk / "bin" / HOST / name

    def mha2sha(self) -> Path | None:
        """The converter of multi-head to single-head attention; not every SDK has it."""
        places = (self.path("mha2sha-onnx-converter"), *self._notebooks())
        return next((place for place in places if place.is_file()), None)

    def _notebooks(self) -> list[Path]:
        return sorted(self.sdk.glob("*/**/MHA2SHA/bin/mha2sha-onnx-converter"))

    def run(self, words: Sequence[str], wanted: Path) -> None:
        """Run a tool and look that it wrote `wanted`: some end well and write nothing.

        Raises ToolError with the tool's own last words.
        """
        print(f"$ {' '.join(words)}", file=sys.stderr, flush=True)
        done = subprocess.run(
            words,
            cwd=self.work,
            env=environment(self.sdk, os.environ, _modules_of(Path(words[0]))),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        sys.stderr.write(done.stdout)
        made = self.work / wanted
        if done.returncode == 0 and made.is_file() and made.stat().st_size > 0:
            return
        name = Path(words[0]).name
        how = f"ended with {done.returncode}" if done.returncode else f"wrote no {wanted.name}"
        last = " | ".join(done.stdout.strip().splitlines()[-_LINES:])
        raise ToolError(f"{name} {how}: {last or 'it said nothing'}")


def _modules_of(tool: Path) -> list[str]:
    """Where a tool that lies outside of the SDK's own folder of tools has its modules."""
    beside = tool.parents[1] / "src" / "python"
    return [str(beside)] if beside.is_dir() else []


def environment(sdk: Path, base: Mapping[str, str], modules: Sequence[str] = ()) -> dict[str, str]:
    """What bin/envsetup.sh sets, on top of `base`.

    PYTHONPATH is the SDK's alone, and `modules` that one of its tools brings beside itself: this
    house's modules are no business of them.
    """
    tools, libraries = str(sdk / "bin" / HOST), str(sdk / "lib" / HOST)
    return {
        **base,
        "QNN_SDK_ROOT": str(sdk),
        "QAIRT_SDK_ROOT": str(sdk),
        "PYTHONPATH": os.pathsep.join([*modules, f"{sdk}/lib/python", f"{sdk}/benchmarks/QNN/"]),
        "PATH": os.pathsep.join([tools, base.get("PATH", os.defpath)]),
        "LD_LIBRARY_PATH": os.pathsep.join(
            filter(None, (libraries, base.get("LD_LIBRARY_PATH", "")))
        ),
        "HEXAGON_TOOLS_DIR": tools,
    }


def mha2sha_words(tool: Path, name: str, onnx: str, encodings: str, folder: str) -> list[str]:
    """Attention of many heads into attentions of one head each, which HTP runs faster."""
    return [
        str(tool),
        *("--sha-export-path", folder),
        *("--model-name", name),
        *("--exported-model-encoding-path", encodings),
        *("--exported-model-path", onnx),
        *("--base-llm", "llama3"),
        "--mha-conv",
        "--nchw-aligned",
    ]


def converter_words(
    tool: Path, onnx: str, encodings: str, dlc: str, inputs: Sequence[str]
) -> list[str]:
    """ONNX and encodings into a DLC whose inputs keep their axes."""
    words = [str(tool), "--input_network", onnx, "--quantization_overrides", encodings, "-o", dlc]
    for name in inputs:
        words += ["--source_model_input_layout", name, LAYOUT]
        words += ["--desired_input_layout", name, LAYOUT]
    return words


def quantizer_words(tool: Path, dlc: str, inputs: str, quantized: str) -> list[str]:
    """A DLC into one whose weights and tensors are quantised, by the overrides it carries."""
    return [
        str(tool),
        *("--input_dlc", dlc),
        *("--input_list", inputs),
        *("--output_dlc", quantized),
        *("--act_bitwidth", "16"),
        *("--bias_bitwidth", "32"),
    ]


def generator_words(
    tool: Path, config: str, binary: str, folder: str, dlcs: Sequence[str]
) -> list[str]:
    """DLCs of the same weights into one context binary, `folder`/`binary`.bin."""
    return [
        str(tool),
        "--log_level=verbose",
        *("--backend", "libQnnHtp.so"),
        *("--model", "libQnnModelDlc.so"),
        *("--input_output_tensor_mem_type", "memhandle"),
        *("--output_dir", folder),
        *("--config_file", config),
        *("--binary_file", binary),
        *("--dlc_path", ",".join(dlcs)),
    ]


def extension_config(inner: str) -> dict[str, Any]:
    """What --config_file takes: which library reads the settings, and where they lie."""
    return {
        "backend_extensions": {
            "shared_library_path": "libQnnHtpNetRunExtensions.so",
            "config_file_path": inner,
        }
    }


def htp_config(
    graphs: Sequence[str], *, soc_model: int, arch: str, level: float, vtcm_mb: int, shared: bool
) -> dict[str, Any]:
    """Settings of the HTP: `graphs` must be called as the DLCs are, or they are not applied."""
    return {
        "graphs": [
            {
                "O": level,
                "vtcm_mb": vtcm_mb,
                "graph_names": list(graphs),
                "fp16_relaxed_precision": 0,
            }
        ],
        "devices": [
            {
                "soc_id": soc_model,
                "dsp_arch": arch,
                "cores": [{"perf_profile": "burst", "rpc_control_latency": 100}],
                "pd_session": "unsigned",
            }
        ],
        "context": {"weight_sharing_enabled": shared},
        "memory": {"mem_type": "shared_buffer"},
    }


def build_id(library: Path) -> str:
    """The build a library says it is of ("v2.36.0.250627101419"), "" where it says nothing."""
    if not library.is_file() or library.stat().st_size == 0:
        return ""
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as held:
        found = _BUILD.search(held)
        return found[0].decode() if found else ""


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """JSON as the vendor's scripts write it."""
    path.write_text(json.dumps(value, indent=4) + "\n", encoding="utf-8")
