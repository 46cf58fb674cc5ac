"""Safetensors to an HTP binary: our graph and quantizer beside torch.onnx.export and AIMET.

Both ways end at 4-bit weights, 16-bit activations and an 8-bit cache, measured on the same text:
ours with rotation and GPTQ, theirs torch.onnx.export, then aimet-onnx 2.42 with SeqMSE. The float
graph that AIMET is given is ours, since it is the one the phone's runtime takes; torch's export
counts for its time and memory. Writing and measuring the integer graph is counted for ours only.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgekiln.bench import peers
from edgekiln.bench.kit import Context, Figure, results
from edgekiln.errors import StageError
from edgekiln.progress import Silent

_AIM_TIME, _AIM_MEMORY = 0.2, 0.5
_TOKENS, _CONTEXT = 128, 512
_BUILD = ["build", "--backend", "qnn", "--prove", "none", "--weight-bits", "4"]
_BUILD += ["--context-length", str(_CONTEXT), "--max-perplexity-ratio", "1000"]


def measure(context: Context) -> Iterator[Figure]:
    """Ours, then theirs, once each: a pair takes about ten minutes."""
    ours = build(context, "ours", [])
    yield from stages("qnn", ours)
    exported = _torch_export(context)
    yield Figure(name="torch.onnx.export", samples=(exported[0],), unit="s")
    yield Figure(name="torch.onnx.export, peak memory", samples=(exported[1] / 1e9,), unit="GB")
    theirs = build(context, "theirs", ["--quantizer", "aimet"])
    yield from stages("aimet", theirs, only=("calibrate",))
    yield from _compared(ours, theirs, exported)


def build(context: Context, name: str, more: list[str]) -> dict[str, Any]:
    """A build from an empty store: its stages' figures and what it found out."""
    words = [*_BUILD, *more, "--out", str(context.scratch / f"{name}-bundle")]
    return results(words, context.fresh_home(name), context.scratch)


def stages(name: str, found: dict[str, Any], only: tuple[str, ...] = ()) -> Iterator[Figure]:
    """Seconds and peak memory of each stage, and the perplexity ratio."""
    for stage, figures in found["stages"].items():
        if only and stage not in only:
            continue
        yield Figure(name=f"{name}, {stage}", samples=(figures["seconds"],), unit="s")
        peak = (figures["peak_memory"] or 0) / 1e9
        yield Figure(name=f"{name}, {stage}, peak memory", samples=(peak,), unit="GB")
    ratio = found["perplexity_ratio"]
    yield Figure(name=f"{name}, perplexity / the float model's", samples=(ratio,), unit="times")


def _compared(
    ours: dict[str, Any], theirs: dict[str, Any], exported: tuple[float, float]
) -> Iterator[Figure]:
    mine, other = ours["stages"], theirs["stages"]["calibrate"]
    spent = mine["graph"]["seconds"] + mine["quantize"]["seconds"]
    ratio = spent / (exported[0] + other["seconds"])
    name = "graph and quantize / torch.onnx.export and aimet-onnx"
    yield Figure(name=f"{name}, time", samples=(ratio,), unit="times", aim=_AIM_TIME)
    peak = max(mine[s]["peak_memory"] for s in ("graph", "quantize"))
    ratio = peak / max(exported[1], other["peak_memory"])
    yield Figure(name=f"{name}, peak memory", samples=(ratio,), unit="times", aim=_AIM_MEMORY)
    ratio = ours["perplexity_ratio"] / theirs["perplexity_ratio"]
    yield Figure(name=f"{name}, perplexity", samples=(ratio,), unit="times", aim=1.0)


def _torch_export(context: Context) -> tuple[float, float]:
    """Seconds and peak bytes of the example through torch.onnx.export."""
    from edgekiln.models import resolve
    from edgekiln.prefix import build_prefix
    from edgekiln.toolchain import load_toolchain

    python = build_prefix(load_toolchain("mnn"), Silent())
    model = resolve("smollm2-135m-instruct", progress=Silent()).path
    folder = context.scratch / "torch-export"
    folder.mkdir()
    program = Path(peers.__file__).with_name("torch_export.py")
    words = [str(python), "-s", str(program), str(model), str(folder), str(_TOKENS), str(_CONTEXT)]
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StageError("torch.onnx.export failed", why=done.stderr.strip()[-300:])
    seconds, peak = done.stdout.split()[-2:]
    return float(seconds), float(peak)
