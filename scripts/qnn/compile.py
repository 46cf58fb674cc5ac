"""Stage: the quantised model into context binaries for one Hexagon chip.

Input: `quantized`. Outputs: `binaries`, what the phone gets, with compile.json; and `twins`, the
same graphs one by one, because a binary with shared weights cannot be loaded on x86-64.

Parameters: soc, soc_model, arch, vtcm_mb, weight_sharing (the chip), splits (0 decides), and
optimization (the compiler's effort, 1 to 3).

What compile.json says of a binary is read back out of it. The build fails where that is not what
was asked for: another chip, other tensors, other encodings.
"""

from __future__ import annotations

import math
import mmap
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import compiled
import context_binary
import edges
import htp
import jsons
import onnx
import onnxfile
import shapes
import splits
from onnx import helper

from stagekit import Stage, main

# A binary of two graphs that share their weights is at most this much larger than one of them…
SHARED_FACTOR = 1.1
# …and this, which a tiny model's graphs take besides.
SHARED_BYTES = 8 << 20


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is compiled, and where to."""

    stage: Stage
    model: onnx.ModelProto
    data: Path
    chip: compiled.Chip
    tokens: tuple[int, ...]
    context: int
    hidden: int
    optimization: int
    scratch: Path


def run(stage: Stage) -> None:
    """Cut, compile, read back, and write it down."""
    source = stage.input("quantized")
    told = jsons.read(source / "graph.json")
    model = onnxfile.load(source / onnxfile.MODEL)
    for name in ("binaries", "twins"):
        stage.output(name).mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=stage.outputs) as scratch:
        work = Work(
            stage=stage,
            model=model,
            data=source.resolve(),
            chip=compiled.Chip.of(stage),
            tokens=(shapes.tokens_of(model), 1),
            context=shapes.context_of(model),
            hidden=int(told["hidden"]),
            optimization=stage.param("optimization", int, 3),
            scratch=Path(scratch),
        )
        weights = splits.weigh(model, int(told["layers"]))
        _compile_all(work, splits.plan(weights, stage.param("splits", int, 0)))


def _compile_all(work: Work, cut: list[splits.Split]) -> None:
    """Compile every split, and write compile.json."""
    chip, stage = work.chip, work.stage
    of_split = len(work.tokens) + chip.sharing
    steps = iter(range(1, len(cut) * of_split + 1))

    def told(what: str) -> None:
        stage.progress(next(steps), len(cut) * of_split, unit="binaries", what=what)

    binaries: list[dict[str, Any]] = []
    twins: list[dict[str, Any]] = []
    effort: list[htp.Compiled] = []
    for split in cut:
        for made in _compile_split(work, split, effort):
            (binaries if made.pop("ships") else twins).append(made)
            told(f"split {split.number} of {split.of}")
        if not chip.sharing:
            twins += [_copied(work, split, made) for made in binaries[-len(work.tokens) :]]
    stage.note(
        f"compiled for {chip.soc} in {math.fsum(e.seconds for e in effort):.0f} s, with at most "
        f"{max(e.peak_bytes for e in effort) / 1e9:.1f} GB of memory"
    )
    compiled.write(
        stage,
        chip,
        cut,
        qnn_build=binaries[0]["qnn_build"],
        nodes_on_cpu=sum(e.nodes_on_cpu for e in effort),
        binaries=[{k: v for k, v in b.items() if k != "qnn_build"} for b in binaries],
        twins=[{k: t[k] for k in ("file", "bytes", "tokens", "split")} for t in twins],
    )


def _compile_split(
    work: Work, split: splits.Split, effort: list[htp.Compiled]
) -> Iterator[dict[str, Any]]:
    """Compile a split's graphs one by one and, where the chip can, sharing their weights."""
    graphs = {
        tokens: splits.graph_of(work.model, split, tokens, work.hidden) for tokens in work.tokens
    }
    files = {}
    for tokens, graph in graphs.items():
        files[tokens] = work.scratch / f"ar{tokens}_{split.number}.onnx"
        onnxfile.save(graph, files[tokens])
    place = work.stage.output("twins" if work.chip.sharing else "binaries")
    largest = 0
    for tokens, graph in graphs.items():
        ending = ".bin" if work.chip.sharing else ".serialized.bin"
        output = place / f"ar{tokens}_{split.number}_of_{split.of}{ending}"
        made = _one(work, split, {files[tokens]: graph}, output, effort)
        largest = max(largest, made["bytes"])
        yield {**made, "ships": not work.chip.sharing, "tokens": tokens}
    if not work.chip.sharing:
        return
    name = f"weight_sharing_model_{split.number}_of_{split.of}.serialized.bin"
    together = {files[tokens]: graph for tokens, graph in graphs.items()}
    made = _one(work, split, together, work.stage.output("binaries") / name, effort)
    if made["bytes"] > SHARED_FACTOR * largest + SHARED_BYTES:
        raise RuntimeError(
            f"{name} takes {made['bytes']} bytes, and its larger graph alone {largest}: "
            "the graphs do not share their weights"
        )
    made["times_larger_alone"] = round(made["bytes"] / largest, 4)
    yield {**made, "ships": True}


def _one(
    work: Work,
    split: splits.Split,
    graphs: Mapping[Path, onnx.ModelProto],
    output: Path,
    effort: list[htp.Compiled],
) -> dict[str, Any]:
    """Compile graphs into one binary, and tell what is in it."""
    made = htp.compile_binary(
        list(graphs), work.data, output, work.chip, optimization=work.optimization
    )
    effort.append(made)
    took = f"{made.seconds:.1f} s, {made.peak_bytes / 1e9:.2f} GB at most"
    print(f"{output.name}: {took}", file=sys.stderr, flush=True)
    inside = context_binary.read(output)
    if split.of > 1:
        _name_graphs(output, inside, split)
        inside = context_binary.read(output)
    _check(output.name, inside, list(graphs.values()), work.chip)
    return {
        "file": output.name,
        "split": split.number,
        "bytes": inside["bytes"],
        "sha256": compiled.digest(output),
        "qnn_build": inside["qnn_build"],
        "graphs": [
            {"tokens": _tokens(graph), "context": work.context, **graph}
            for graph in inside["graphs"]
        ],
    }


def _copied(work: Work, split: splits.Split, made: Mapping[str, Any]) -> dict[str, Any]:
    """A binary that ships, for the proof under its twin's name."""
    file = f"ar{made['tokens']}_{split.number}_of_{split.of}.bin"
    shutil.copyfile(work.stage.output("binaries") / made["file"], work.stage.output("twins") / file)
    return {**made, "file": file}


def _tokens(graph: Mapping[str, Any]) -> int:
    """How many new tokens a graph takes: the mask's rows."""
    return int(next(t["shape"][2] for t in graph["inputs"] if t["name"] == "attention_mask"))


def _name_graphs(file: Path, inside: Mapping[str, Any], split: splits.Split) -> None:
    """Write names into a binary by which Genie puts the splits in order.

    The compiler's provider names a graph by a number and offers no other; Genie wants
    PREFIX_NUMBER_of_COUNT. The new name is as long as the old, which stands in the binary as a
    plain text in a few places, so nothing else of it changes.
    """
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as held:
        for graph in inside["graphs"]:
            old, tail = graph["name"].encode(), f"_{split.number}_of_{split.of}".encode()
            head = f"ar{_tokens(graph)}".encode()
            new = head + b"-" * (len(old) - len(head) - len(tail)) + tail
            at = held.find(old)
            while at >= 0:
                held[at : at + len(old)] = new
                at = held.find(old, at)


def _check(
    file: str, inside: Mapping[str, Any], graphs: list[onnx.ModelProto], chip: compiled.Chip
) -> None:
    """Hold what a binary says against what was asked for."""
    if inside["soc_model"] != chip.soc_model:
        raise RuntimeError(
            f"{file} was compiled for chip {inside['soc_model']}, not for {chip.soc_model}"
        )
    wanted = sorted(_described(graph) for graph in graphs)
    got = sorted(
        sorted((t["name"], t["dtype"], tuple(t["shape"])) for t in (*g["inputs"], *g["outputs"]))
        for g in inside["graphs"]
    )
    if wanted != got:
        raise RuntimeError(f"{file} has other inputs and outputs than the model it was made of")
    encoded = {name: how for graph in graphs for name, how in edges.encodings(graph).items()}
    for graph in inside["graphs"]:
        for tensor in (*graph["inputs"], *graph["outputs"]):
            _check_encoding(file, tensor, encoded.get(tensor["name"]))


def _described(graph: onnx.ModelProto) -> list[tuple[str, str, tuple[int, ...]]]:
    return sorted(
        (
            value.name,
            str(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)),
            tuple(d.dim_value for d in value.type.tensor_type.shape.dim),
        )
        for value in (*graph.graph.input, *graph.graph.output)
    )


def _check_encoding(file: str, tensor: Mapping[str, Any], how: edges.Encoding | None) -> None:
    """The binary's offset is what is added to an integer: the zero point, negated."""
    if how is None:
        same = tensor["scale"] is None
    else:
        same = tensor["scale"] == how.scale and tensor["offset"] == -how.zero
    if not same:
        raise RuntimeError(
            f"{file} reads {tensor['name']} with scale {tensor['scale']} and offset "
            f"{tensor['offset']}, not as the quantised model does"
        )


if __name__ == "__main__":
    main(run)
