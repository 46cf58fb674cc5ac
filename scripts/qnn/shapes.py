"""The same decoder for another number of new tokens.

decoder.py writes T into no constant, so only the shapes at the edges change. It is true of the
quantised graph as well: weights, scales and zero points are the same bytes by construction.
"""

from __future__ import annotations

import re

import onnx

# Tensors between the parts, which keep a shape so that the parts can be cut out.
_BOUNDARY = re.compile(r"hidden_\d+")
# The axis that is T.
_TOKENS_AT = {
    "input_ids": 1,
    "attention_mask": 2,
    "position_ids_cos": 2,
    "position_ids_sin": 2,
    "logits": 1,
}
_CACHE = re.compile(r"past_(key|value)_\d+_(in|out)")


def tokens_of(model: onnx.ModelProto) -> int:
    """T: how many new tokens the graph takes at once."""
    return int(_input(model, "input_ids").type.tensor_type.shape.dim[1].dim_value)


def context_of(model: onnx.ModelProto) -> int:
    """C: how many tokens, past and new, the graph attends to."""
    return int(_input(model, "attention_mask").type.tensor_type.shape.dim[3].dim_value)


def retarget(model: onnx.ModelProto, tokens: int) -> onnx.ModelProto:
    """A copy of the decoder that takes `tokens` new tokens against a cache of C - tokens."""
    context = context_of(model)
    if not 1 <= tokens < context:
        raise ValueError(f"{tokens} new tokens in a context of {context}")
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    inner = [value for value in graph.value_info if _BOUNDARY.fullmatch(value.name)]
    for value in (*graph.input, *graph.output, *inner):
        _set(value, tokens, context)
    # Other inner shapes were inferred for the old T and would be wrong now.
    for value in [v for v in graph.value_info if not _BOUNDARY.fullmatch(v.name)]:
        graph.value_info.remove(value)
    return copy


def _set(value: onnx.ValueInfoProto, tokens: int, context: int) -> None:
    dims = value.type.tensor_type.shape.dim
    cache = _CACHE.fullmatch(value.name)
    if cache:
        axis = 3 if cache[1] == "key" else 2
        dims[axis].dim_value = tokens if cache[2] == "out" else context - tokens
    elif value.name in _TOKENS_AT or _BOUNDARY.fullmatch(value.name):
        dims[_TOKENS_AT.get(value.name, 1)].dim_value = tokens
    else:
        raise ValueError(f"{value.name} is no input or output of a decoder")


def _input(model: onnx.ModelProto, name: str) -> onnx.ValueInfoProto:
    return next(value for value in model.graph.input if value.name == name)
