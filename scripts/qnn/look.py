"""Stage: what a context binary or an ONNX model says of itself.

Input: `file`, one file. Output: the folder `look` with look.json. As a program of its own,
`PYTHONPATH=scripts look.py FILE` prints the same.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import context_binary

from stagekit import BadInput, Stage, main

FORMAT = 1


def run(stage: Stage) -> None:
    """Look, and write it down."""
    found = look(stage.input("file"))
    out = stage.output("look")
    out.mkdir(parents=True)
    text = json.dumps(found, indent=1, ensure_ascii=False)
    (out / "look.json").write_text(text + "\n", encoding="utf-8", newline="\n")


def look(file: Path) -> dict[str, Any]:
    """What is known of a file. Raises BadInput for one of another kind, or a damaged one."""
    found = _onnx(file)
    return {"format": FORMAT, **(found or _context_binary(file))}


def _context_binary(file: Path) -> dict[str, Any]:
    said = context_binary.read(file)
    return {
        "kind": "context_binary",
        "qnn_build": said["qnn_build"],
        "soc_model": said["soc_model"],
        "arch": None,
        "shared_weights": None if len(said["graphs"]) > 1 else False,
        "bytes": said["bytes"],
        "graphs": said["graphs"],
    }


def _onnx(file: Path) -> dict[str, Any] | None:
    """An ONNX model's parts; None if the file is none."""
    import onnx

    try:
        model = onnx.load(str(file), load_external_data=False)
    except Exception:  # protobuf's own, which is not the same class in every version
        return None
    graph = model.graph
    if not (model.ir_version and model.opset_import and graph.node):
        return None
    count = sum(_elements(tensor.dims) for tensor in graph.initializer)
    return {
        "kind": "onnx",
        "ir_version": model.ir_version,
        "opset": {one.domain: one.version for one in model.opset_import},
        "producer": model.producer_name,
        "nodes": dict(sorted(Counter(node.op_type for node in graph.node).items())),
        "inputs": [_edge(value) for value in graph.input],
        "outputs": [_edge(value) for value in graph.output],
        "parameters": count,
        "external_data": _external(graph.initializer, file.resolve().parent),
    }


def _edge(value: Any) -> dict[str, Any]:
    """A name, a type and a shape; an unknown length is told by its name, or null."""
    from onnx import TensorProto

    tensor = value.type.tensor_type
    kind = TensorProto.DataType.Name(tensor.elem_type).lower()
    return {
        "name": value.name,
        "dtype": {"float": "float32", "double": "float64"}.get(kind, kind),
        "shape": [
            d.dim_value if d.HasField("dim_value") else d.dim_param or None
            for d in tensor.shape.dim
        ],
    }


def _external(tensors: Iterable[Any], folder: Path) -> list[dict[str, Any]]:
    """The files that weights lie in beside the model, and how much of each is used."""
    used: Counter[str] = Counter()
    for tensor in tensors:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if "location" in entries:
            used[entries["location"]] += int(entries.get("length", 0))
    return [
        {"file": name, "bytes": size, "there": (folder / name).is_file()}
        for name, size in sorted(used.items())
    ]


def _elements(dims: Iterable[int]) -> int:
    count = 1
    for length in dims:
        count *= length
    return count


def _alone(words: list[str]) -> int:
    if len(words) != 1:
        print("usage: look.py FILE", file=sys.stderr)
        return 2
    try:
        print(json.dumps(look(Path(words[0])), indent=1, ensure_ascii=False))
    except BadInput as bad:
        print(f"{bad.text}\n{bad.remedy}".strip(), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(_alone(sys.argv[1:]))
    main(run)
