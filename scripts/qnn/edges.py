"""Integer inputs and outputs for a quantised graph, under the names that they had as floats.

The quantised model keeps float edges, so that onnxruntime runs it beside the float model: an
input goes through a QuantizeLinear, an output comes out of a DequantizeLinear. On the phone the
values at the edges are integers with those scales and zero points; these pairs' outer halves go.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import TensorProto, helper

from stagekit import BadInput

# What a float tensor is called from here on, where its name goes to its integers.
REAL = ".real"
QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How a tensor's integers stand for real numbers: real = (integer - zero) * scale."""

    element: int
    scale: float
    zero: int


def integer_edges(model: onnx.ModelProto) -> None:
    """Turn every float input and output into integers, in place.

    Raises BadInput for an edge that is not quantised.
    """
    graph = model.graph
    for value in graph.input:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = _enter(graph, value.name)
    for value in graph.output:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = _leave(graph, value.name)


def integer_inside(model: onnx.ModelProto, name: str, shape: list[int]) -> None:
    """Give the name of an inner tensor to its integers, so that a graph can be cut there."""
    graph = model.graph
    quantize = _reader(graph, name)
    element = _encoding(graph, quantize).element
    _rename(graph, {name: name + REAL, quantize.output[0]: name})
    for known in [v for v in graph.value_info if v.name in (name, name + REAL)]:
        graph.value_info.remove(known)
    graph.value_info.append(helper.make_tensor_value_info(name, element, shape))


def encodings(model: onnx.ModelProto) -> dict[str, Encoding]:
    """How the integers at the edges are to be read; an edge without floats is left out."""
    graph = model.graph
    edges = {value.name for value in (*graph.input, *graph.output)}
    found = {}
    for node in graph.node:
        for name in (*node.input[:1], *node.output[:1]):
            integers = (node.op_type == QUANTIZE) == (name in node.output)
            if name in edges and integers and node.op_type in (QUANTIZE, DEQUANTIZE):
                found[name] = _encoding(graph, node)
    return found


def _enter(graph: onnx.GraphProto, name: str) -> int:
    """Take an input's QuantizeLinear away; the type of the integers that come in now."""
    quantize = _reader(graph, name)
    element = _encoding(graph, quantize).element
    _rename(graph, {quantize.output[0]: name}, but=quantize)
    graph.node.remove(quantize)
    return element


def _leave(graph: onnx.GraphProto, name: str) -> int:
    """Take an output's DequantizeLinear away, or keep it for readers inside."""
    makers = [n for n in graph.node if name in n.output]
    if not makers or makers[0].op_type != DEQUANTIZE:
        raise _unquantised(name)
    maker = makers[0]
    element = _encoding(graph, maker).element
    read = any(name in node.input for node in graph.node)
    _rename(graph, {name: name + REAL, maker.input[0]: name})
    if not read:
        graph.node.remove(maker)
    return element


def _reader(graph: onnx.GraphProto, name: str) -> onnx.NodeProto:
    """The QuantizeLinear that is a float tensor's only reader."""
    readers = [n for n in graph.node if name in n.input]
    if len(readers) != 1 or readers[0].op_type != QUANTIZE:
        raise _unquantised(name)
    return readers[0]


def _encoding(graph: onnx.GraphProto, node: onnx.NodeProto) -> Encoding:
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    scale, zero = (tensors[name] for name in node.input[1:3])
    return Encoding(
        element=zero.data_type,
        scale=float(_one(scale)),
        zero=int(_one(zero)),
    )


def _one(tensor: onnx.TensorProto) -> Any:
    """The value of a tensor that holds one."""
    if tensor.data_location == TensorProto.EXTERNAL:
        raise BadInput(f"{tensor.name} lies outside of the model, which no edge's scale may")
    return onnx.numpy_helper.to_array(tensor).reshape(-1)[0]


def _rename(
    graph: onnx.GraphProto, names: Mapping[str, str], but: onnx.NodeProto | None = None
) -> None:
    """Rename tensors wherever nodes make or read them."""
    for node in graph.node:
        if node is but:
            continue
        for listed in (node.input, node.output):
            for i, name in _listed(listed, names):
                listed[i] = names[name]


def _listed(listed: Any, names: Mapping[str, str]) -> Iterator[tuple[int, str]]:
    return ((i, name) for i, name in enumerate(list(listed)) if name in names)


def _unquantised(name: str) -> BadInput:
    return BadInput(
        f"{name} is not quantised: no QuantizeLinear and DequantizeLinear stand at that edge",
        remedy="quantise the model with edgekiln's own writer",
    )
