"""The quantised decoder as the vendor's converter wants it: a float ONNX and AIMET's encodings.

The AIMET-to-QNN write-up feeds qairt-converter a float graph beside a file of encodings. Both are
made here from the quantised model, so that it is the same model whichever compiler takes it:

- Quantise and dequantise nodes go; the weights become floats again, each on its integer grid.
- The opset goes down to 17, which the onnx of the SDK's Python tools knows. RMSNormalization is
  spelled out in the form that torch writes and the tools fuse again.
- Projections become 1x1 convolutions on [1, in, 1, T], the form that the write-up's models have
  and that HTP has kernels for, 4-bit ones included.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxfile
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from quantspec import unpacked

OPSET = 17
IR_VERSION = 8
Q, DQ = "QuantizeLinear", "DequantizeLinear"
# What opset 17 has as opset 23 has it, for the shapes in question.
SAME = frozenset(
    (
        "Add",
        "Concat",
        "Gather",
        "MatMul",
        "Mul",
        "Reshape",
        "Sigmoid",
        "Softmax",
        "Sub",
        "Transpose",
    )
)
# ONNX's number of that type; the onnx of the SDK's tools has no name for it.
_INT4 = 22
_TYPES = {
    TensorProto.FLOAT: np.float32,
    TensorProto.INT8: np.int8,
    TensorProto.UINT8: np.uint8,
    TensorProto.UINT16: np.uint16,
    TensorProto.INT16: np.int16,
    TensorProto.INT32: np.int32,
    TensorProto.INT64: np.int64,
}


class LoweringError(ValueError):
    """The graph holds something that has no form in opset 17 here."""


@dataclass(kw_only=True)
class Lowered:
    """A float model whose weights lie in a file, and which tensors mean the same as others."""

    model: onnx.ModelProto
    same: dict[str, str]  # a new tensor: the tensor of the quantised model whose encoding it has


def lower(model: onnx.ModelProto, folder: Path, data: Path) -> Lowered:
    """Write the float weights to `data` and give the model that reads them.

    `folder` holds the quantised model's own data file. One weight at a time is in memory.
    """
    with data.open("wb") as file:
        return _Lowering(source=model, folder=folder, file=file, name=data.name).run()


@dataclass(kw_only=True)
class _Lowering:
    source: onnx.ModelProto
    folder: Path
    file: Any
    name: str
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: dict[str, onnx.TensorProto] = field(default_factory=dict)
    same: dict[str, str] = field(default_factory=dict)
    alias: dict[str, str] = field(default_factory=dict)  # what a tensor is called now
    end: int = 0

    def __post_init__(self) -> None:
        graph = self.source.graph
        self.tensors = {tensor.name: tensor for tensor in graph.initializer}
        self.outputs = {value.name for value in graph.output}
        self.parameters = {
            node.output[0]: node
            for node in graph.node
            if node.op_type == DQ and node.input[0] in self.tensors
        }

    def run(self) -> Lowered:
        graph = self.source.graph
        self._follow()
        for node in graph.node:
            if node.op_type not in (Q, DQ):
                self._node(node)
        made = helper.make_graph(
            self.nodes,
            graph.name,
            list(graph.input),
            list(graph.output),
            list(self.initializers.values()),
            value_info=[v for v in graph.value_info if v.name.startswith("hidden_")],
        )
        whole = helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)])
        whole.ir_version, whole.producer_name = IR_VERSION, "edgekiln"
        return Lowered(model=whole, same=self.same)

    def _follow(self) -> None:
        """Who is read where quantise and dequantise nodes stood; outputs keep their names."""
        for node in self.source.graph.node:
            if node.op_type in (Q, DQ) and node.output[0] not in self.parameters:
                self.alias[node.output[0]] = self.alias.get(node.input[0], node.input[0])
        for name in self.outputs & self.alias.keys():
            root = self.alias.pop(name)
            self.alias = {k: name if v == root else v for k, v in self.alias.items()}
            self.alias[root] = name

    def _now(self, name: str) -> str:
        return self.alias.get(name, name)

    def _node(self, node: onnx.NodeProto) -> None:
        inputs = [self._now(name) for name in node.input]
        outputs = [self._now(name) for name in node.output]
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "MatMul" and inputs[1] in self.parameters:
            self._convolution(node.name, inputs, outputs[0])
        elif node.op_type == "RMSNormalization":
            self._norm(node.name, inputs, outputs[0], attributes["epsilon"])
        elif node.op_type == "Split":
            self._halves(node.name, inputs[0], outputs, attributes["axis"])
        elif node.op_type in SAME:
            inputs = [self._parameter(name) for name in inputs]
            self._op(node.op_type, node.name, inputs, outputs, **attributes)
        else:
            raise LoweringError(f"{node.name}: no form for {node.op_type} in opset {OPSET}")

    def _convolution(self, name: str, inputs: Sequence[str], output: str) -> None:
        """x [1, T, in] @ w [in, out] as Conv on [1, in, 1, T]; T stands in no constant."""
        x, read = inputs
        node = self.parameters[read]
        weight = self._values(node)
        turned = np.ascontiguousarray(weight.T)[:, :, None, None]
        parameter = node.input[0]
        self._external(parameter, turned)
        axis = self._constant("axis.one", np.array([1], np.int64))
        rows, image = f"{name}.rows", f"{name}.image"
        self._op("Unsqueeze", rows, [x, axis], [rows])
        self._op("Transpose", image, [rows], [image], perm=[0, 3, 1, 2])
        made, back = f"{name}.conv", f"{name}.back"
        self._op("Conv", made, [image, parameter], [made], kernel_shape=[1, 1])
        self._op("Transpose", back, [made], [back], perm=[0, 2, 3, 1])
        self._op("Squeeze", name, [back, axis], [output])
        self.same |= dict.fromkeys((rows, image), x) | dict.fromkeys((made, back), output)

    def _norm(self, name: str, inputs: Sequence[str], output: str, epsilon: float) -> None:
        """x / sqrt(mean(x²) + ε) times the gain, in the nodes that torch writes for it."""
        x, gain = inputs[0], self._parameter(inputs[1])
        steps = {step: f"{name}.{step}" for step in ("square", "mean", "shift", "root", "normed")}
        two = self._constant("two", np.array(2, np.float32))
        least = self._constant(f"{name}.epsilon", np.array(epsilon, np.float32))
        self._op("Pow", steps["square"], [x, two], [steps["square"]])
        mean = [steps["mean"]]
        self._op("ReduceMean", mean[0], [steps["square"]], mean, axes=[-1], keepdims=1)
        self._op("Add", steps["shift"], [mean[0], least], [steps["shift"]])
        self._op("Sqrt", steps["root"], [steps["shift"]], [steps["root"]])
        self._op("Div", steps["normed"], [x, steps["root"]], [steps["normed"]])
        self._op("Mul", name, [steps["normed"], gain], [output])

    def _halves(self, name: str, x: str, outputs: Sequence[str], axis: int) -> None:
        """Split in two equal parts, whose size opset 17 wants to be told."""
        half = next(
            value.type.tensor_type.shape.dim[3].dim_value
            for value in self.source.graph.input
            if value.name == "position_ids_cos"
        )
        if len(outputs) != 2:
            raise LoweringError(f"{name} splits in {len(outputs)}, not in two halves")
        sizes = self._constant("halves", np.array([half, half], np.int64))
        self._op("Split", name, [x, sizes], outputs, axis=axis)

    def _op(
        self, kind: str, name: str, inputs: Sequence[str], outputs: Sequence[str], **more: Any
    ) -> None:
        self.nodes.append(helper.make_node(kind, inputs, outputs, name=name, **more))

    # -- parameters

    def _parameter(self, read: str) -> str:
        """The initializer behind a name, written if it is not yet."""
        if read in self.parameters:
            name = self.parameters[read].input[0]
            if name not in self.initializers:
                self._external(name, self._values(self.parameters[read]))
            return str(name)
        if read in self.tensors:
            self.initializers[read] = self.tensors[read]
        return read

    def _constant(self, name: str, value: NDArray[Any]) -> str:
        self.initializers[name] = numpy_helper.from_array(value, name)
        return name

    def _values(self, node: onnx.NodeProto) -> NDArray[np.float32]:
        """What a DequantizeLinear makes of an initializer."""
        tensors = [self.tensors[name] for name in node.input if name]
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        integers = _array(tensors[0], self.folder).astype(np.float32)
        scale = _array(tensors[1], self.folder).astype(np.float32)
        if len(tensors) > 2:
            integers = integers - _array(tensors[2], self.folder).astype(np.float32)
        if block := attributes.get("block_size", 0):
            scale = np.repeat(scale, block, axis=attributes["axis"])
        elif scale.ndim:
            scale = scale.reshape(
                [-1 if i == attributes["axis"] else 1 for i in range(integers.ndim)]
            )
        made: NDArray[np.float32] = integers * scale
        return made

    def _external(self, name: str, values: NDArray[np.float32]) -> None:
        start = -(-self.end // onnxfile.ALIGNMENT) * onnxfile.ALIGNMENT
        self.file.write(b"\0" * (start - self.end))
        self.file.write(np.ascontiguousarray(values, np.float32).data.cast("B"))
        self.end = start + values.nbytes
        self.initializers[name] = onnxfile.external(
            name,
            TensorProto.FLOAT,
            values.shape,
            location=self.name,
            offset=start,
            length=values.nbytes,
        )


def _array(tensor: onnx.TensorProto, folder: Path) -> NDArray[Any]:
    """An initializer's values; 4-bit ones, stored two in a byte, come as int8."""
    shape = tuple(tensor.dims)
    if tensor.data_location == TensorProto.EXTERNAL:
        place = {entry.key: entry.value for entry in tensor.external_data}
        raw = np.fromfile(
            folder / place["location"],
            np.uint8,
            int(place["length"]),
            offset=int(place.get("offset", 0)),
        )
    elif tensor.raw_data:
        raw = np.frombuffer(tensor.raw_data, np.uint8)
    else:
        return np.asarray(numpy_helper.to_array(tensor))
    if tensor.data_type == _INT4:
        return unpacked(raw, shape)
    return raw.view(_TYPES[tensor.data_type]).reshape(shape)


def overrides(encodings: Mapping[str, Any], lowered: Lowered) -> dict[str, Any]:
    """AIMET's encodings of the quantised model for the tensors of the float one."""
    known = {entry["name"]: entry for entry in encodings["activation_encodings"]}
    there = set(_tensor_names(lowered.model))
    activations = [entry for entry in known.values() if entry["name"] in there]
    activations += [
        {**known[old], "name": new} for new, old in lowered.same.items() if old in known
    ]
    parameters = [e for e in encodings["param_encodings"] if e["name"] in there]
    missing = sorted(e["name"] for e in encodings["param_encodings"] if e["name"] not in there)
    if missing:
        raise LoweringError(f"encodings of weights that the graph does not have: {missing[:5]}")
    return {
        "version": encodings["version"],
        "activation_encodings": sorted(activations, key=_name),
        "param_encodings": sorted(parameters, key=_name),
    }


def _tensor_names(model: onnx.ModelProto) -> Iterator[str]:
    graph = model.graph
    yield from (value.name for value in (*graph.input, *graph.initializer))
    for node in graph.node:
        yield from node.output


def _name(entry: Mapping[str, Any]) -> str:
    return str(entry["name"])
