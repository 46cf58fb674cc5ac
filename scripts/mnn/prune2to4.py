"""Stage: a model directory whose decoder is 2:4 sparse: of every four weights two are zero.

Inputs: `model`; with the method wanda also `calibration`, a text. Outputs: the folder `sparse`, a
model directory like the first, and the folder `pruned` with pruned.json, what pruning did.
Parameters: method (magnitude or wanda), tokens (most of the text that is looked at),
trust_remote_code.

Only the linear layers of the decoder's layers are pruned. Embedding, output layer, norms and
biases stay as they are, and so does every other file.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import actnorms
import pruning

from stagekit import BadInput, Stage, main

METHODS = ("magnitude", "wanda")
_WORST = 5


def run(stage: Stage) -> None:
    """Find what matters, prune a copy, and read the copy again."""
    import torch

    torch.set_num_threads(stage.cpus)
    method = stage.param("method", str, "wanda")
    if method not in METHODS:
        raise BadInput(f"there is no method {method}", remedy="one of: " + ", ".join(METHODS))
    source = stage.input("model")
    if not [entry for file in _weights(source) for entry in pruning.wanted(file)]:
        raise BadInput(
            "no linear layer of a decoder was found in the weights",
            remedy="build this model without --sparsity",
        )
    norms = _norms(stage, source) if method == "wanda" else None
    sparse = stage.output("sparse")
    copy(source, sparse)
    pruned, groups = _prune(stage, sparse, norms)
    _write(stage, pruned, groups, method)


def _weights(model: Path) -> list[Path]:
    found = sorted(model.glob("*.safetensors"))
    if not found:
        raise BadInput(
            "the model holds no safetensors files",
            remedy="take a release with safetensors, or convert the checkpoint",
        )
    return found


def _norms(stage: Stage, source: Path) -> dict[str, Any]:
    trusted = stage.param("trust_remote_code", bool, False)
    text = stage.input("calibration").read_text(encoding="utf-8")
    cut = actnorms.windows(source, text, stage.param("tokens", int, 8192), trusted)
    stage.note(f"looking at {len(cut) * actnorms.WINDOW} tokens, layer by layer")

    def told(done: int, total: int) -> None:
        stage.progress(done, total, unit="layers", what="activations")

    return actnorms.norms(source, cut, trusted, told)


def copy(source: Path, target: Path) -> None:
    """The model's files, each of them a file of its own that may be written to."""
    target.mkdir(parents=True)
    for file in sorted(source.rglob("*")):
        place = target / file.relative_to(source)
        if file.is_dir():
            place.mkdir(exist_ok=True)
        else:
            shutil.copyfile(file, place)


def _prune(stage: Stage, sparse: Path, norms: Any) -> tuple[list[pruning.Pruned], int]:
    files = _weights(sparse)
    total = sum(len(pruning.wanted(file)) for file in files)
    done: list[pruning.Pruned] = []
    groups = 0
    for file in files:
        for tensor in pruning.prune_file(file, norms):
            done.append(tensor)
            stage.progress(len(done), total, unit="tensors", what="prune")
        groups += pruning.check_file(file)
    return done, groups


def _write(stage: Stage, pruned: list[pruning.Pruned], groups: int, method: str) -> None:
    weights, zeros = sum(p.weights for p in pruned), sum(p.zeros for p in pruned)
    if groups * pruning.GROUP != weights:
        raise RuntimeError(f"{weights} weights were pruned, {groups} groups were found again")
    worst = sorted(pruned, key=lambda p: -p.lost)[:_WORST]
    told = {
        "pattern": f"{pruning.KEPT}:{pruning.GROUP}",
        "method": method,
        "tensors": len(pruned),
        "weights": weights,
        "zeros": zeros,
        "share_of_zeros": zeros / weights,
        "groups_checked": groups,
        "lost_most": [{"tensor": p.key, "share_of_squared_score": p.lost} for p in worst],
        "layers": {p.key: p.lost for p in sorted(pruned, key=lambda p: p.key)},
    }
    out = stage.output("pruned")
    out.mkdir(parents=True)
    text = json.dumps(told, indent=1, sort_keys=True, ensure_ascii=False)
    (out / "pruned.json").write_text(text + "\n", encoding="utf-8", newline="\n")
    stage.note(f"{zeros:,} of {weights:,} weights are zero, {groups:,} groups looked at again")


if __name__ == "__main__":
    main(run)
