"""Stage: a model's weights, quantised into the shards that MLC's runtime reads.

Inputs: `model`; `source` (a checkout of mlc-llm) where its mlc_llm is to be taken. Parameters:
quantization, and model_type ("auto": config.json's). Outputs: `weights` with params_shard_N.bin
and tensor-cache.json (ndarray-cache.json before TVM 0.21), `weights-report` with weights.json.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path

import hfmend
import mlclog
import mlctool

from stagekit import BadInput, Stage, main

_CACHES = ("tensor-cache.json", "ndarray-cache.json")


def run(stage: Stage) -> None:
    """Convert, look that all is there, and write down the figures."""
    quantization = stage.param("quantization", str, "q4f16_1")
    with tempfile.TemporaryDirectory() as scratch:
        offers = mlctool.offers(stage)
        offers.check_quantization(quantization)
        model = hfmend.lay_out(stage.input("model"), Path(scratch) / "model")
        kind = model.type(stage.param("model_type", str, "auto"))
        offers.check_model_type(kind)
        _check_weights(model.folder)
        out = stage.output("weights")
        out.mkdir(parents=True)
        words = ["convert_weight", str(model.folder), "--quantization", quantization]
        words += ["--model-type", kind, "--device", "cpu", "--output", str(out)]
        lines = mlctool.run(
            stage,
            words,
            told=lambda done, total: stage.progress(done, total, unit="tensors", what="convert"),
        )
    figures = mlclog.weights(lines)
    if figures is None:
        raise RuntimeError("convert_weight ended well, and its log has no figures")
    shards = check(out)
    report = {
        "quantization": quantization,
        "model_type": kind,
        **asdict(figures),
        "bytes": sum(shard.stat().st_size for shard in shards),
        "shards": len(shards),
        "rope_theta": model.rope_theta,
        "mended": list(model.mended),
        "mlc_llm": offers.version,
    }
    place = stage.output("weights-report")
    place.mkdir()
    text = json.dumps(report, indent=2)
    (place / "weights.json").write_text(f"{text}\n", encoding="utf-8", newline="\n")
    stage.note(
        f"{figures.parameters:,} parameters at {figures.bits_per_parameter:.3f} bits: "
        f"{figures.gb:.3f} GB in {len(shards)} shards"
    )


def _check_weights(folder: Path) -> None:
    """mlc_llm reads safetensors and PyTorch's files, each with or without an index."""
    names = ("model.safetensors", "pytorch_model.bin")
    if any((folder / n).exists() or (folder / f"{n}.index.json").exists() for n in names):
        return
    raise BadInput(
        "the model has no weights that mlc_llm reads",
        remedy=f"it reads {' and '.join(names)}, in one file or in several with an index",
    )


def check(out: Path) -> list[Path]:
    """The shards that the index names. Raises RuntimeError where one is missing or cut short."""
    index = next((out / name for name in _CACHES if (out / name).is_file()), None)
    if index is None:
        raise RuntimeError(f"convert_weight wrote no {_CACHES[0]}")
    shards = []
    for record in json.loads(index.read_text(encoding="utf-8"))["records"]:
        shard = out / record["dataPath"]
        if not shard.is_file() or shard.stat().st_size != record["nbytes"]:
            raise RuntimeError(f"{shard.name} is not there, or not of {record['nbytes']:,} bytes")
        shards.append(shard)
    return shards


if __name__ == "__main__":
    main(run)
