"""Into how many binaries a model goes, and the part of its graph that each one holds.

A split is a run of layers; the first also holds the embedding, the last the head. One process of
the phone's Hexagon addresses 4 GiB, and the compiler takes about ten times a split's weights, so
a split's weights stay below WEIGHTS_LIMIT.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import edges
import onnx
import onnxfile
import shapes

from stagekit import BadInput

# Bytes of quantised weights in one binary.
WEIGHTS_LIMIT = 1 << 30
_LAYER = re.compile(r"(?:^|\W)layers\.(\d+)\.")
_EMBED = re.compile(r"(?:^|\W)embed\.")
_SHARED = ("attention_mask", "position_ids_cos", "position_ids_sin")


@dataclass(frozen=True, kw_only=True)
class Split:
    """Layers `first` up to, not including, `end` of `layers`; the `number`th of `of`."""

    number: int
    of: int
    first: int
    end: int
    layers: int

    @property
    def inputs(self) -> list[str]:
        """The inputs of its graph that other splits do not give, in order."""
        past = [f"past_{kind}_{i}_in" for i in self.span for kind in ("key", "value")]
        return [self.enters, *_SHARED, *past]

    @property
    def outputs(self) -> list[str]:
        """The outputs of its graph, in order."""
        return [self.leaves, *(f"past_{k}_{i}_out" for i in self.span for k in ("key", "value"))]

    @property
    def span(self) -> range:
        """Its layers."""
        return range(self.first, self.end)

    @property
    def enters(self) -> str:
        """What comes from the split before it, or from outside."""
        return "input_ids" if self.first == 0 else f"hidden_{self.first}"

    @property
    def leaves(self) -> str:
        """What it hands on."""
        return "logits" if self.end == self.layers else f"hidden_{self.end}"


def plan(weights: Sequence[int], asked: int = 0) -> list[Split]:
    """The splits of a model whose embedding, layers and head weigh that many bytes, in order.

    `asked` is how many there are to be, 0 for as few as WEIGHTS_LIMIT allows. They are cut so
    that the heaviest is as light as can be.
    """
    layers = len(weights) - 2
    if asked > layers:
        raise BadInput(
            f"{asked} splits of a model with {layers} layers: each needs one at least",
            remedy=f"ask for {layers} or fewer, or leave --splits away",
        )
    least = max(1, math.ceil(sum(weights) / WEIGHTS_LIMIT))
    counts = [asked] if asked else range(least, layers + 1)
    for count in counts:
        cuts = _cuts(weights, count)
        heaviest = max(_weight(weights, a, b) for a, b in pairwise(cuts))
        if asked or heaviest <= WEIGHTS_LIMIT or count == layers:
            break
    return [
        Split(number=i, of=count, first=a, end=b, layers=layers)
        for i, (a, b) in enumerate(pairwise(cuts), 1)
    ]


def weigh(model: onnx.ModelProto, layers: int) -> list[int]:
    """Bytes of the weights of the embedding, of each layer, and of the head."""
    bytes_of = [0] * (layers + 2)
    for tensor in model.graph.initializer:
        layer = _LAYER.search(tensor.name)
        place = int(layer[1]) + 1 if layer else 0 if _EMBED.search(tensor.name) else layers + 1
        bytes_of[place] += _size(tensor)
    return bytes_of


def graph_of(model: onnx.ModelProto, split: Split, tokens: int, hidden: int) -> onnx.ModelProto:
    """A split's graph for `tokens` new tokens, with integer edges and without weights' bytes.

    One inner tensor is named after the number of tokens: two graphs whose tensors have the same
    names get the same name from the compiler's provider, and could not share a binary.
    """
    whole = shapes.retarget(model, tokens)
    edges.integer_edges(whole)
    for at in sorted({split.first, split.end} - {0, split.layers}):
        edges.integer_inside(whole, f"hidden_{at}", [1, tokens, hidden])
    part = onnxfile.cut(whole, split.inputs, split.outputs)
    _mark(part, f".ar{tokens}")
    return part


def _weight(weights: Sequence[int], first: int, end: int) -> int:
    layers = len(weights) - 2
    inner = sum(weights[first + 1 : end + 1])
    return inner + (weights[0] if first == 0 else 0) + (weights[-1] if end == layers else 0)


def _cuts(weights: Sequence[int], count: int) -> list[int]:
    """Layers where `count` splits begin and end: [0, …, layers], the heaviest one lightest."""
    layers = len(weights) - 2
    # best[end] = (weight of the heaviest split so far, cuts), splits of layers 0..end.
    best = {end: (_weight(weights, 0, end), [0, end]) for end in range(1, layers + 1)}
    for _ in range(count - 1):
        best = {
            end: min(
                (max(heavy, _weight(weights, start, end)), [*cuts, end])
                for start, (heavy, cuts) in best.items()
                if start < end
            )
            for end in range(min(best) + 1, layers + 1)
        }
    return best[layers][1]


def _mark(model: onnx.ModelProto, mark: str) -> None:
    """Append a mark to the name of the first tensor that only nodes know."""
    graph = model.graph
    known = {value.name for value in (*graph.input, *graph.output, *graph.value_info)}
    first = next(name for node in graph.node for name in node.output if name not in known)
    for node in graph.node:
        for listed in (node.input, node.output):
            for i, name in enumerate(list(listed)):
                if name == first:
                    listed[i] = first + mark


def _size(tensor: onnx.TensorProto) -> int:
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return next(int(e.value) for e in tensor.external_data if e.key == "length")
    return len(tensor.raw_data) or tensor.ByteSize()
