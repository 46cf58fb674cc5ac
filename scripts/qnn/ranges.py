"""How far every activation reaches, and the second moments of what goes into each weight.

A ReduceMin and a ReduceMax stand behind each tensor of the float graph, over its rows (tokens):
what comes back is [.., channels], small, whatever the tensor's size. The channels are kept apart
because keys and queries are still scaled against each other (rotate.balance).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

Floats = NDArray[np.float32]

# These move values without changing them: what comes out has the range of what goes in.
MOVING = frozenset({"Reshape", "Transpose", "Split", "Slice", "Squeeze", "Unsqueeze", "Gather"})
# Known without looking: (low, high) of what comes out.
FIXED = {"Softmax": (0.0, 1.0), "Sigmoid": (0.0, 1.0)}
# Rows of a tile of a second-moments matrix; fixed, so that its sums are.
_TILE = 512

_LOW, _HIGH = ".least", ".greatest"


@dataclass(kw_only=True)
class Reach:
    """The least and greatest value of each tensor's channels, over all that was seen."""

    low: dict[str, Floats] = field(default_factory=dict)
    high: dict[str, Floats] = field(default_factory=dict)

    def take(self, results: Mapping[str, NDArray[Any]]) -> None:
        """Widen by a watched graph's outputs."""
        for name, value in results.items():
            if name.endswith(_LOW):
                self.widen(name.removesuffix(_LOW), value, results[_high(name)])

    def widen(self, name: str, low: Floats, high: Floats) -> None:
        """Widen one tensor's range."""
        known = name in self.low
        self.low[name] = np.minimum(self.low[name], low) if known else low
        self.high[name] = np.maximum(self.high[name], high) if known else high

    def add(self, other: Reach) -> None:
        """Widen by everything another has seen."""
        for name, low in other.low.items():
            self.widen(name, low, other.high[name])

    def of(self, *names: str) -> tuple[float, float]:
        """(low, high) over all channels of these tensors together."""
        low = min(float(self.low[name].min()) for name in names)
        return low, max(float(self.high[name].max()) for name in names)

    def scaled(self, name: str, factor: Floats) -> None:
        """Multiply a tensor's channels by something positive that fits its shape."""
        self.low[name], self.high[name] = self.low[name] * factor, self.high[name] * factor

    def broken(self) -> str | None:
        """A tensor that was seen with a value that is not finite."""
        for name, low in self.low.items():
            if not (np.isfinite(low).all() and np.isfinite(self.high[name]).all()):
                return name
        return None


def _high(low: str) -> str:
    return low.removesuffix(_LOW) + _HIGH


def made(part: onnx.ModelProto) -> list[str]:
    """The tensors of a part that have a range of their own, in order."""
    skipped = MOVING | FIXED.keys()
    nodes = [node for node in part.graph.node if node.op_type not in skipped]
    return [name for node in nodes for name in node.output]


def watched(part: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """A copy of a part that also gives each tensor's range, as NAME.least and NAME.greatest."""
    copy = onnx.ModelProto()
    copy.CopyFrom(part)
    graph = copy.graph
    axes = "watched.axes"
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([-2], np.int64), axes))
    for name in names:
        for kind, suffix in (("ReduceMin", _LOW), ("ReduceMax", _HIGH)):
            graph.node.append(
                helper.make_node(kind, [name, axes], [name + suffix], name + suffix, keepdims=0)
            )
            graph.output.append(_floats(name + suffix))
    return copy


def tapped(part: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """A copy of a part that also gives these tensors."""
    copy = onnx.ModelProto()
    copy.CopyFrom(part)
    there = {value.name for value in copy.graph.output}
    copy.graph.output.extend(_floats(name) for name in names if name not in there)
    return copy


def _floats(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)


def moments(rows: Floats, pool: Executor) -> Floats:
    """Σ x xᵀ of rows [n, in], [in, in]: in tiles, side by side, the lower ones mirrored."""
    size = rows.shape[1]
    whole = np.empty((size, size), np.float32)

    def tile(first: int) -> None:
        columns = slice(first, min(first + _TILE, size))
        whole[: columns.stop, columns] = rows[:, : columns.stop].T @ rows[:, columns]

    list(pool.map(tile, range(0, size, _TILE)))
    for first in range(0, size, _TILE):
        columns = slice(first, min(first + _TILE, size))
        whole[columns, : columns.start] = whole[: columns.start, columns].T
    return whole
