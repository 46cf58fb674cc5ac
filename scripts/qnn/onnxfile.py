"""ONNX models whose weights lie in a file beside them: written, read and cut without copies.

Weights go into one external file, each at a multiple of ALIGNMENT bytes. Nothing here holds more
than a block of a weight, and a loaded model holds no weights at all.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

Floats = NDArray[np.float32]

MODEL = "model.onnx"
DATA = "model.data"
OPSET = 23
# The first ONNX release with opset 23 has IR version 11.
IR_VERSION = 11
ALIGNMENT = 64


class DataWriter:
    """Writes weights one after the other into an external data file."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._end = 0
        self._opened = file.open("wb", buffering=0)

    def __enter__(self) -> DataWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._opened.close()

    def rows(
        self, name: str, shape: Sequence[int], blocks: Iterable[tuple[int, Floats]]
    ) -> onnx.TensorProto:
        """A tensor from its (first row, rows) in order, as it is."""
        tensor, at = self._placed(name, shape)
        for _, rows in blocks:
            at += _put(self._opened.fileno(), rows, at)
        return tensor

    def transposed(
        self, name: str, shape: Sequence[int], blocks: Iterable[tuple[int, Floats]]
    ) -> onnx.TensorProto:
        """A matrix from the (first row, rows) of its transpose; `shape` is what is written."""
        tensor, start = self._placed(name, shape)
        width = shape[1]
        for first, rows in blocks:
            turned = np.ascontiguousarray(rows.T)
            if turned.shape[1] == width:
                _put(self._opened.fileno(), turned, start)
                continue
            for line, values in enumerate(turned):
                _put(self._opened.fileno(), values, start + 4 * (line * width + first))
        return tensor

    def _placed(self, name: str, shape: Sequence[int]) -> tuple[onnx.TensorProto, int]:
        offset = -(-self._end // ALIGNMENT) * ALIGNMENT
        length = 4 * int(np.prod(shape, dtype=np.int64))
        self._end = offset + length
        tensor = external(
            name,
            onnx.TensorProto.FLOAT,
            shape,
            location=self.file.name,
            offset=offset,
            length=length,
        )
        return tensor, offset


def external(
    name: str, data_type: int, shape: Sequence[int], *, location: str, offset: int, length: int
) -> onnx.TensorProto:
    """An initializer whose bytes lie in `location`, beside the model."""
    tensor = onnx.TensorProto(name=name, data_type=data_type, dims=shape)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _put(descriptor: int, values: NDArray[Any], at: int) -> int:
    view = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
    written = 0
    while written < len(view):
        written += os.pwrite(descriptor, view[written:], at + written)
    return written


def save(model: onnx.ModelProto, file: Path) -> None:
    """Write the model itself; the same model gives the same bytes."""
    file.write_bytes(model.SerializeToString(deterministic=True))


def load(file: Path) -> onnx.ModelProto:
    """The model without the bytes of its external weights."""
    return onnx.load(str(file), load_external_data=False)


def values(tensor: onnx.TensorProto, folder: Path) -> NDArray[Any]:
    """An initializer's values; external ones are mapped from their file, read only.

    Types that numpy has no name for (int4) come as the bytes they are stored in.
    """
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return np.asarray(onnx.numpy_helper.to_array(tensor))
    place = {entry.key: entry.value for entry in tensor.external_data}
    length = int(place["length"])
    if tensor.data_type in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4):
        dtype, shape = np.dtype(np.uint8), (length,)
    else:
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        shape = tuple(tensor.dims)
    offset = int(place.get("offset", 0))
    return np.memmap(folder / place["location"], dtype, "r", offset, shape)


def initializers(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """The initializers by name."""
    return {tensor.name: tensor for tensor in model.graph.initializer}


def cut(model: onnx.ModelProto, inputs: Sequence[str], outputs: Sequence[str]) -> onnx.ModelProto:
    """The part of a model between tensors: its inputs and outputs in the given order.

    Only the initializers of that part come along, external ones still pointing to their file.
    The boundary tensors must have their types in the model: as inputs, outputs or value_info.
    """
    graph = model.graph
    known = {v.name: v for v in (*graph.value_info, *graph.input, *graph.output)}
    kept = _between(graph, set(inputs), outputs)
    used = {name for node in kept for name in node.input if name}
    made = {name for node in kept for name in node.output}
    weights = [tensor for tensor in graph.initializer if tensor.name in used]
    loose = used - made - set(inputs) - {tensor.name for tensor in weights}
    if loose:
        raise ValueError(f"the part also needs {', '.join(sorted(loose))}")
    part = helper.make_graph(
        kept, graph.name, [known[n] for n in inputs], [known[n] for n in outputs], weights
    )
    inner = [v for v in graph.value_info if v.name in made and v.name not in outputs]
    part.value_info.extend(inner)
    cut_out = helper.make_model(part, opset_imports=model.opset_import)
    cut_out.ir_version = model.ir_version
    return cut_out


def _between(
    graph: onnx.GraphProto, inputs: set[str], outputs: Sequence[str]
) -> list[onnx.NodeProto]:
    """The nodes that the outputs need and the inputs do not already give, in order."""
    wanted = set(outputs)
    needed: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        if wanted.intersection(node.output) - inputs:
            needed.append(node)
            wanted.update(name for name in node.input if name and name not in inputs)
    return needed[::-1]
