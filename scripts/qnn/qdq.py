"""The quantised decoder as ONNX with QuantizeLinear and DequantizeLinear around every tensor.

`write` puts them into the float decoder, or into a part of it cut out at its boundaries, from two
mappings: a Grid for each activation, a stored weight for each initializer. Whoever found the
grids, the rules are the same:

- A tensor has one grid. What only moves values (Reshape, Transpose, Split) keeps its input's.
- What Concat joins shares one grid with what comes out.
- What is looked up in an 8-bit table is converted to 16 bits before anything is computed with it.
- The cache is 8 bits, in, out and joined, on one grid. The new keys and values come out of 16-bit
  arithmetic and are converted once, by an explicit DequantizeLinear → QuantizeLinear, at the
  tensor where they are computed. Nothing else becomes 8 bits by standing beside the cache.
- Weights are symmetric. HTP takes an asymmetric int4 weight and computes something else without
  a word; and one with a scale a channel and no zero point input as well, although ONNX says that
  none means 0. So channels have zeros written out. Blocks need none.
- RMSNormalization stays whole.

Inputs and outputs keep their names and float types; a quantise stands right behind each input and
a dequantise right before each output, so that the execution provider can take them off. The
hidden_i stay float tensors (between the layer's Add and its QuantizeLinear): the quantised model
is cut into parts where the float one is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import onnx
import onnxfile
from numpy.typing import NDArray
from onnx import TensorProto, helper
from quantspec import Grid, Integers, around, between, packed
from ranges import FIXED, MOVING, Reach

Floats = NDArray[np.float32]

# Known from what they are: the additive mask, and a circle's coordinates.
EDGES = {
    "attention_mask": between(-100.0, 0.0),
    "position_ids_cos": between(-1.0, 1.0),
    "position_ids_sin": between(-1.0, 1.0),
}
_TYPES = {
    "uint16": TensorProto.UINT16,
    "uint8": TensorProto.UINT8,
    "int8": TensorProto.INT8,
    "int4": TensorProto.INT4,
    "float32": TensorProto.FLOAT,
}
# What a spelled-out norm would be made of; at 16 bits each its perplexity is lost.
_PIECES_OF_A_NORM = frozenset({"Pow", "Sqrt", "ReduceMean", "Reciprocal"})
# The first opset with 16-bit QuantizeLinear and 4-bit weights.
_LEAST_OPSET = 21


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A parameter as it lies in the data file, and how it becomes floats again."""

    integers: onnx.TensorProto
    scale: onnx.TensorProto
    zero_point: onnx.TensorProto | None = None  # zeros for a weight; blocks have none
    axis: int | None = None
    block: int = 0
    grid: Grid | None = None  # of a parameter with one grid


class Store:
    """Writes quantised parameters one after the other into the model's data file."""

    def __init__(self, file: Path) -> None:
        self.name = file.name
        self._opened = file.open("wb")
        self._end = 0

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._opened.close()

    def weight(self, name: str, integers: Integers) -> Stored:
        """A linear layer's weight."""
        values = packed(integers.values) if integers.bits == 4 else integers.values
        shape = integers.values.shape
        return Stored(
            integers=self.tensor(name, integers.dtype, shape, [values]),
            scale=self.tensor(f"{name}.scale", "float32", integers.scales.shape, [integers.scales]),
            zero_point=None if integers.block else _zeros(name, integers),
            axis=0 if integers.block else 1,
            block=integers.block,
        )

    def table(self, name: str, grid: Grid, shape: Sequence[int], rows: Iterable[Floats]) -> Stored:
        """A parameter with one grid, from its rows in order: the embedding, a gain, a bias."""
        return Stored(
            integers=self.tensor(name, grid.dtype, shape, (grid.integers(r) for r in rows)),
            scale=_scalar(f"{name}.scale", np.float32(grid.scale)),
            zero_point=_scalar(f"{name}.zero_point", np.dtype(grid.dtype).type(grid.zero_point)),
            grid=grid,
        )

    def tensor(
        self, name: str, dtype: str, shape: Sequence[int], blocks: Iterable[NDArray[Any]]
    ) -> onnx.TensorProto:
        """An initializer from blocks of its bytes; they are on disk when this returns."""
        start = -(-self._end // onnxfile.ALIGNMENT) * onnxfile.ALIGNMENT
        self._opened.write(b"\0" * (start - self._end))
        length = 0
        for block in blocks:
            length += self._opened.write(
                np.ascontiguousarray(block).reshape(-1).view(np.uint8).data
            )
        self._opened.flush()
        self._end = start + length
        return onnxfile.external(
            name, _TYPES[dtype], shape, location=self.name, offset=start, length=length
        )


def _zeros(weight: str, integers: Integers) -> onnx.TensorProto:
    """A zero point of 0 for each channel of a weight."""
    count, kind = len(integers.scales), _TYPES[integers.dtype]
    zeros = bytes((count * integers.bits + 7) // 8)
    return helper.make_tensor(f"{weight}.zero_point", kind, [count], zeros, raw=True)


def _scalar(name: str, value: Any) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(np.asarray(value), name)


# -- grids


def ranged(part: onnx.ModelProto, reach: Reach, *, margin: float = 0.0) -> dict[str, Grid]:
    """A grid for every tensor of a decoder, or of a part of it, that computes something.

    From the ranges seen; `margin` widens the 16-bit ones by that part. Cache inputs get the 8-bit
    grid of the new keys or values they are joined with.
    """
    sources = _sources(part)
    found: dict[str, Grid] = {}

    def of(*names: str) -> Grid:
        low, high = reach.of(*names)
        return between(low * (1 + margin), high * (1 + margin))

    for value in part.graph.input:
        if value.name in EDGES:
            found[value.name] = EDGES[value.name]
        elif value.name in reach.low:
            found[value.name] = of(value.name)
    for node in part.graph.node:
        past, new = _joined(node, sources)
        if past:
            low, high = reach.of(*new)
            found |= dict.fromkeys(past, around(max(-low, high)))
        elif node.op_type == "Concat":
            found |= dict.fromkeys((*node.input, *node.output), of(*node.input))
        elif node.op_type in FIXED:
            found[node.output[0]] = between(*FIXED[node.op_type])
        elif node.op_type not in MOVING:
            found |= {name: of(name) for name in node.output}
    return found


def every(model: onnx.ModelProto, known: Mapping[str, Grid]) -> dict[str, Grid]:
    """The grid each activation is computed on: `known`, and what follows from it.

    Raises ValueError where a tensor has none, or where what is joined would not share one.
    """
    sources = _sources(model)
    eights = converted(model, known)
    found = {v.name: _known(known, v.name) for v in _float_inputs(model)}
    for node in model.graph.node:
        past, _ = _joined(node, sources)
        if past:
            made = found[past[0]]
        elif node.op_type in MOVING:
            root = sources.get(node.output[0], node.input[0])
            told = node.output[0] if node.output[0] in known else root
            made = eights.get(root) or found.get(root) or _known(known, told)
        else:
            made = _known(known, node.output[0])
        found |= dict.fromkeys(node.output, made)
        if node.op_type == "Concat":
            _check_joined(node, {name: eights.get(name, found[name]) for name in node.input}, made)
    return found


def converted(model: onnx.ModelProto, known: Mapping[str, Grid]) -> dict[str, Grid]:
    """The 8-bit grid of each tensor that is converted because the cache takes it, by its name."""
    sources = _sources(model)
    found: dict[str, Grid] = {}
    for node in model.graph.node:
        past, new = _joined(node, sources)
        if past:
            found |= {name: _known(known, past[0]) for name in new}
    return found


def _sources(model: onnx.ModelProto) -> dict[str, str]:
    """For what only moves values: the tensor whose values those are, as it was computed."""
    weights = {tensor.name for tensor in model.graph.initializer}
    found: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type in MOVING and node.input[0] not in weights:
            root = found.get(node.input[0], node.input[0])
            found |= dict.fromkeys(node.output, root)
    return found


def _joined(node: onnx.NodeProto, sources: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """For a Concat with the cache: its cache inputs, and where the other inputs were computed."""
    if node.op_type != "Concat":
        return [], []
    past = [name for name in node.input if name.startswith("past_") and name.endswith("_in")]
    new = [sources.get(name, name) for name in node.input if name not in past]
    return (past, new) if past else ([], [])


def _check_joined(node: onnx.NodeProto, inputs: Mapping[str, Grid], made: Grid) -> None:
    if any(grid != made for grid in inputs.values()):
        raise ValueError(f"{node.name} joins tensors of different grids: {dict(inputs)}")


def _known(known: Mapping[str, Grid], name: str) -> Grid:
    if name not in known:
        raise ValueError(f"there is no range for {name}")
    return known[name]


def _float_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    return [v for v in model.graph.input if v.type.tensor_type.elem_type == TensorProto.FLOAT]


# -- writing


def write(
    model: onnx.ModelProto, known: Mapping[str, Grid], stored: Mapping[str, Stored]
) -> onnx.ModelProto:
    """The float decoder (or a part) with every tensor on its grid and every parameter stored.

    Raises ValueError where a grid or a parameter is missing.
    """
    writer = _Writer(model, every(model, known), converted(model, known), stored)
    made = writer.model()
    check(made)
    return made


class _Writer:
    """Copies a graph node by node, with what has to stand around each."""

    def __init__(
        self,
        model: onnx.ModelProto,
        grids: Mapping[str, Grid],
        eights: Mapping[str, Grid],
        stored: Mapping[str, Stored],
    ) -> None:
        self.source, self.grids, self.eights, self.stored = model, grids, eights, stored
        self.outputs = {value.name for value in model.graph.output}
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.read: dict[str, str] = {}  # what is read instead of a tensor of the float graph

    def model(self) -> onnx.ModelProto:
        graph = self.source.graph
        for tensor in graph.initializer:
            self._parameter(tensor)
        for value in _float_inputs(self.source):
            self._quantised(value.name, value.name)
        for node in graph.node:
            self._node(node)
        made = helper.make_graph(
            self.nodes,
            graph.name,
            graph.input,
            graph.output,
            list(self.initializers.values()),
            value_info=[v for v in graph.value_info if v.name in self.grids],
        )
        whole = helper.make_model(made, opset_imports=self.source.opset_import)
        whole.ir_version = self.source.ir_version
        whole.producer_name = "edgekiln"
        return whole

    def _parameter(self, tensor: onnx.TensorProto) -> None:
        name = tensor.name
        if tensor.data_type != TensorProto.FLOAT:  # shapes
            self.initializers[name] = tensor
            return
        if name not in self.stored:
            raise ValueError(f"{name} was not quantised")
        kept = self.stored[name]
        inputs = [kept.integers, kept.scale, *([kept.zero_point] if kept.zero_point else [])]
        self.initializers |= {t.name: t for t in inputs}
        more: dict[str, int] = {}
        if kept.axis is not None:
            more = {"axis": kept.axis, **({"block_size": kept.block} if kept.block else {})}
        self._op("DequantizeLinear", [t.name for t in inputs], f"{name}.dq", **more)
        self.read[name] = f"{name}.dq"

    def _node(self, node: onnx.NodeProto) -> None:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        del copy.input[:]
        copy.input.extend(self.read.get(name, name) for name in node.input)
        for place, name in enumerate(node.output):
            if name in self.outputs:
                copy.output[place] = f"{name}.raw"
        self.nodes.append(copy)
        table = self.stored.get(node.input[0]) if node.op_type == "Gather" else None
        for name, raw in zip(node.output, list(copy.output), strict=True):
            if table and table.grid and table.grid != self.grids[name]:
                self._pair(name, raw, table.grid, f"{name}.table")
                integers = self._quantised(name, f"{name}.table.dq")
            else:
                integers = self._quantised(name, raw)
            if name in self.outputs:
                self._dequantise(integers, self._last_grid(name), name, name)

    def _last_grid(self, name: str) -> Grid:
        return self.eights.get(name, self.grids[name])

    def _quantised(self, name: str, raw: str) -> str:
        """Put a tensor on its grid, and on the cache's where that takes it; the integers' name."""
        integers = self._pair(name, raw, self.grids[name], name)
        if name in self.eights:
            integers = self._pair(name, f"{name}.dq", self.eights[name], f"{name}.cache")
        return integers

    def _pair(self, name: str, raw: str, grid: Grid, stem: str) -> str:
        scale, zero = self._constants(grid, stem)
        self._op("QuantizeLinear", [raw, scale, zero], f"{stem}.q")
        self._dequantise(f"{stem}.q", grid, stem, f"{stem}.dq")
        self.read[name] = f"{stem}.dq"
        return f"{stem}.q"

    def _dequantise(self, integers: str, grid: Grid, stem: str, to: str) -> None:
        if integers == f"{stem}.cache.q":
            stem = f"{stem}.cache"
        self._op("DequantizeLinear", [integers, *self._constants(grid, stem)], to)

    def _constants(self, grid: Grid, stem: str) -> tuple[str, str]:
        scale = _scalar(f"{stem}.scale", np.float32(grid.scale))
        zero = _scalar(f"{stem}.zero_point", np.dtype(grid.dtype).type(grid.zero_point))
        self.initializers |= {scale.name: scale, zero.name: zero}
        return scale.name, zero.name

    def _op(self, kind: str, inputs: Sequence[str], output: str, **attributes: int) -> None:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))


# -- checking


def check(model: onnx.ModelProto) -> None:
    """ValueError where a quantised graph has something in it that HTP is known to get wrong."""
    opset = next(o.version for o in model.opset_import if not o.domain)
    if opset < _LEAST_OPSET:
        raise ValueError(f"opset {opset} has no 16-bit QuantizeLinear; {_LEAST_OPSET} has")
    tensors = onnxfile.initializers(model)
    for node in model.graph.node:
        if node.op_type in _PIECES_OF_A_NORM:
            raise ValueError(f"{node.name} is a piece of a norm; norms stay whole")
        if node.op_type == "DequantizeLinear" and node.input[0] in tensors:
            _check_parameter(node, tensors)
    _check_cache(model, tensors)


def _check_parameter(node: onnx.NodeProto, tensors: Mapping[str, onnx.TensorProto]) -> None:
    """A weight has a scale for each channel or block, and a zero point of 0 written out."""
    weight = tensors[node.input[0]]
    if weight.data_type not in (TensorProto.INT4, TensorProto.INT8):
        return
    blocks = any(a.name == "block_size" and a.i for a in node.attribute)
    if len(node.input) > 2 and node.input[2]:
        if onnx.numpy_helper.to_array(tensors[node.input[2]]).astype(np.int8).any():
            raise ValueError(f"{weight.name} is not symmetric: it has a zero point other than 0")
    elif not blocks:
        raise ValueError(f"{weight.name} has no zero point; HTP does not take that for 0")
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
    size = next((a.i for a in node.attribute if a.name == "block_size"), 0)
    shape = [weight.dims[0] // size, weight.dims[1]] if size else [weight.dims[1]]
    if list(tensors[node.input[1]].dims) != shape or axis != (0 if size else 1):
        raise ValueError(f"{weight.name} does not have a scale for each output channel")


def _check_cache(model: onnx.ModelProto, tensors: Mapping[str, onnx.TensorProto]) -> None:
    """One 8-bit grid for a cache tensor's input and output; 16 bits for all that is no cache."""
    grids: dict[str, tuple[int, float, int]] = {}
    tables = set()
    for node in model.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        if not tensors[node.input[1]].dims:  # one grid; a weight has a scale a channel
            grid = _grid_of(node, tensors)
            grids[node.input[0]] = grids[node.output[0]] = grid
            if node.input[0] in tensors:
                tables.add(grid)
    cache = {}
    for name in (v.name for v in model.graph.input if v.name.startswith("past_")):
        cache[name], out = grids[name], name.removesuffix("_in") + "_out"
        if cache[name] != grids[out]:
            raise ValueError(f"{name} and {out} have different grids")
        if cache[name][0] != TensorProto.UINT8:
            raise ValueError(f"{name} is not 8 bits")
    allowed = tables.union(cache.values())
    for name, grid in grids.items():
        if grid[0] != TensorProto.UINT16 and grid not in allowed:
            raise ValueError(f"{name} is no cache and not 16 bits")


def _grid_of(
    node: onnx.NodeProto, tensors: Mapping[str, onnx.TensorProto]
) -> tuple[int, float, int]:
    scale, zero = (tensors[name] for name in node.input[1:3])
    value, point = onnx.numpy_helper.to_array(scale), onnx.numpy_helper.to_array(zero)
    return zero.data_type, float(value), int(point)
