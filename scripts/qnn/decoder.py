"""The decoder as ONNX nodes: T new tokens against a cache of C - T, all shapes static.

Tensors carry their node's name. Their shapes (H heads, K key-value heads, G = H / K, D head_dim):

    input_ids [1, T] int32          attention_mask [1, 1, T, C], added to the scores
    position_ids_cos, _sin [1, 1, T, D / 2]
    past_key_i_in [K, 1, D, C - T], turned already      past_value_i_in [K, 1, C - T, D]
    logits [1, T, vocab]            past_key_i_out [K, 1, D, T]      past_value_i_out [K, 1, T, D]

Keys are kept transposed and outputs hold the new tokens only: what Genie expects. The G query
heads of one key-value head lie as rows of one matrix, so keys and values are never repeated.
The scores' 1 / sqrt(D) is folded into q_proj, or into q_norm where there is one.
No shape constant holds T (it is the -1 of each): a graph for another T differs in the shapes of
its inputs and outputs only (shapes.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import architecture
import checkpoint
import numpy as np
import onnx
import onnxfile
from onnx import TensorProto, helper

from stagekit import BadInput

GRAPH_NAME = "decoder"
# Turned for the writer: role in graph.json, module in the checkpoint.
LINEARS = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


@dataclass(frozen=True, kw_only=True)
class Part:
    """A stretch of the graph between tensors that can be run by itself."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def parts(layers: int) -> list[Part]:
    """The parts of a whole decoder in order: embed, layer_i, head."""
    shared = ("attention_mask", "position_ids_cos", "position_ids_sin")
    middle = [
        Part(
            name=f"layer_{i}",
            inputs=(f"hidden_{i}", *shared, f"past_key_{i}_in", f"past_value_{i}_in"),
            outputs=(f"hidden_{i + 1}", f"past_key_{i}_out", f"past_value_{i}_out"),
        )
        for i in range(layers)
    ]
    first = Part(name="embed", inputs=("input_ids",), outputs=("hidden_0",))
    last = Part(name="head", inputs=(f"hidden_{layers}",), outputs=("logits",))
    return [first, *middle, last]


def check_weights(arch: architecture.Architecture, weights: checkpoint.Checkpoint) -> None:
    """BadInput if a tensor is missing or misshaped, or one is there that the graph would lack."""
    wanted = dict(_tensors(arch))
    for name, shape in wanted.items():
        weights.expect(name, shape)
    inside = tuple(f"model.layers.{i}." for i in range(arch.layers))
    for name in sorted(weights.tensors):
        # Old checkpoints carry the rotary frequencies, which config.json gives as well.
        if name.startswith("model.layers.") and name not in wanted and "rotary_emb" not in name:
            lacking = f"which a {arch.family} layer does not have"
            if not name.startswith(inside):
                lacking = f"but config.json has num_hidden_layers {arch.layers}"
            raise BadInput(
                f"the weights hold {name}, {lacking}",
                remedy="take config.json and the weights from one release of the model",
            )


def _tensors(arch: architecture.Architecture) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every tensor of the checkpoint that the decoder is made of, with its shape."""
    a = arch
    q, kv = a.heads * a.head_dim, a.kv_heads * a.head_dim
    outs = {"q": q, "k": kv, "v": kv, "gate": a.intermediate, "up": a.intermediate}
    ins = {"o": q, "down": a.intermediate}
    yield "model.embed_tokens.weight", (a.vocab, a.hidden)
    for i in range(a.layers):
        here = f"model.layers.{i}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{here}.{norm}.weight", (a.hidden,)
        for norm in ("q_norm", "k_norm") if a.qk_norm else ():
            yield f"{here}.self_attn.{norm}.weight", (a.head_dim,)
        for role, module in LINEARS.items():
            shape = (outs.get(role, a.hidden), ins.get(role, a.hidden))
            yield f"{here}.{module}.weight", shape
        for role in ("q", "k", "v") if a.qkv_bias else ():
            yield f"{here}.{LINEARS[role]}.bias", (outs[role],)
    yield "model.norm.weight", (a.hidden,)
    if not a.tied:
        yield "lm_head.weight", (a.vocab, a.hidden)


class Decoder:
    """Writes one decoder's nodes and weights; `steps` does so a part at a time."""

    def __init__(
        self,
        arch: architecture.Architecture,
        weights: checkpoint.Checkpoint,
        data: onnxfile.DataWriter,
        *,
        tokens: int,
        context: int,
    ) -> None:
        self.arch, self.weights, self.data = arch, weights, data
        self.tokens, self.context = tokens, context
        self._wanted = dict(_tensors(arch))
        self.roles: dict[str, dict[str, Any]] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[onnx.TensorProto] = []

    def steps(self) -> Iterator[str]:
        """Write part after part; yields the name of each one written."""
        self._shapes()
        self._embed()
        yield "embed"
        for i in range(self.arch.layers):
            self._layer(i)
            yield f"layer_{i}"
        self._head()
        yield "head"

    def model(self) -> onnx.ModelProto:
        """The whole model; its weights are in the data file."""
        graph = helper.make_graph(
            self._nodes,
            GRAPH_NAME,
            list(self._inputs()),
            list(self._outputs()),
            self._initializers,
            value_info=[self._hidden(i) for i in range(self.arch.layers + 1)],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", onnxfile.OPSET)])
        model.ir_version = onnxfile.IR_VERSION
        model.producer_name = "edgekiln"
        return model

    # -- the graph's edges

    def _inputs(self) -> Iterator[onnx.ValueInfoProto]:
        tokens, a = self.tokens, self.arch
        past = self.context - tokens
        yield helper.make_tensor_value_info("input_ids", TensorProto.INT32, [1, tokens])
        yield _floats("attention_mask", [1, 1, tokens, self.context])
        for name in ("position_ids_cos", "position_ids_sin"):
            yield _floats(name, [1, 1, tokens, a.head_dim // 2])
        for i in range(a.layers):
            yield _floats(f"past_key_{i}_in", [a.kv_heads, 1, a.head_dim, past])
            yield _floats(f"past_value_{i}_in", [a.kv_heads, 1, past, a.head_dim])

    def _outputs(self) -> Iterator[onnx.ValueInfoProto]:
        tokens, a = self.tokens, self.arch
        yield _floats("logits", [1, tokens, a.vocab])
        for i in range(a.layers):
            yield _floats(f"past_key_{i}_out", [a.kv_heads, 1, a.head_dim, tokens])
            yield _floats(f"past_value_{i}_out", [a.kv_heads, 1, tokens, a.head_dim])

    def _hidden(self, i: int) -> onnx.ValueInfoProto:
        return _floats(f"hidden_{i}", [1, self.tokens, self.arch.hidden])

    # -- its parts

    def _shapes(self) -> None:
        a = self.arch
        shapes = {
            "query_heads": [1, -1, a.heads, a.head_dim],
            "kv_heads": [1, -1, a.kv_heads, a.head_dim],
            "query_groups": [a.kv_heads, 1, -1, a.head_dim],
            "score_heads": [a.kv_heads, a.heads // a.kv_heads, -1, self.context],
            "score_groups": [a.kv_heads, 1, -1, self.context],
            "mixed_heads": [a.heads, 1, -1, a.head_dim],
            "mixed": [1, -1, a.heads * a.head_dim],
        }
        for name, shape in shapes.items():
            values = np.array(shape, np.int64)
            self._initializers.append(onnx.numpy_helper.from_array(values, f"shape.{name}"))

    def _embed(self) -> None:
        source = "model.embed_tokens.weight"
        shape = self._wanted[source]
        tensor = self.data.rows("embed.weight", shape, self.weights.rows(source, shape))
        self._keep(tensor, None, "embed", "input_ids")
        self._op("Gather", "embed", ["embed.weight", "input_ids"], ["hidden_0"], axis=0)

    def _layer(self, i: int) -> None:
        here, there = f"layers.{i}", f"model.layers.{i}"
        # Where q has a norm of its own, a factor before it would be taken out again.
        fold = 1 / math.sqrt(self.arch.head_dim)
        x = self._norm(f"{here}.input_norm", f"hidden_{i}", f"{there}.input_layernorm", layer=i)
        q = self._linear(i, "q", x, 1.0 if self.arch.qk_norm else fold)
        k, v = self._linear(i, "k", x), self._linear(i, "v", x)
        o = self._linear(i, "o", self._attention(i, q, k, v, fold))
        middle = self._op("Add", f"{here}.attention_sum", [f"hidden_{i}", o])
        source = f"{there}.post_attention_layernorm"
        x = self._norm(f"{here}.post_norm", middle, source, layer=i)
        gate, up = self._linear(i, "gate", x), self._linear(i, "up", x)
        opened = self._op("Sigmoid", f"{here}.sigmoid", [gate])
        opened = self._op("Mul", f"{here}.silu", [gate, opened])
        gated = self._op("Mul", f"{here}.gated", [opened, up])
        down = self._linear(i, "down", gated)
        self._op("Add", f"{here}.mlp_sum", [middle, down], [f"hidden_{i + 1}"])

    def _attention(self, i: int, q: str, k: str, v: str, fold: float) -> str:
        """[1, T, H * D] of q and [1, T, K * D] of k and v to [1, T, H * D]."""
        here, a = f"layers.{i}", self.arch
        q = self._op("Reshape", f"{here}.q_heads", [q, "shape.query_heads"])
        k = self._op("Reshape", f"{here}.k_heads", [k, "shape.kv_heads"])
        v = self._op("Reshape", f"{here}.v_heads", [v, "shape.kv_heads"])
        if a.qk_norm:
            there = f"model.layers.{i}.self_attn"
            q = self._norm(f"{here}.q_norm", q, f"{there}.q_norm", layer=i, factor=fold)
            k = self._norm(f"{here}.k_norm", k, f"{there}.k_norm", layer=i)
        q = self._op("Transpose", f"{here}.q_turned", [q], perm=[2, 0, 1, 3])
        k = self._op("Transpose", f"{here}.k_turned", [k], perm=[2, 0, 1, 3])
        q, k = self._rotary(f"{here}.q_rotary", q), self._rotary(f"{here}.k_rotary", k)
        new_k, new_v = f"past_key_{i}_out", f"past_value_{i}_out"
        self._op("Transpose", f"{here}.k_new", [k], [new_k], perm=[0, 1, 3, 2])
        self._op("Transpose", f"{here}.v_new", [v], [new_v], perm=[2, 0, 1, 3])
        keys = self._op("Concat", f"{here}.keys", [f"past_key_{i}_in", new_k], axis=3)
        values = self._op("Concat", f"{here}.values", [f"past_value_{i}_in", new_v], axis=2)
        q = self._op("Reshape", f"{here}.q_groups", [q, "shape.query_groups"])
        scores = self._op("MatMul", f"{here}.scores", [q, keys])
        scores = self._op("Reshape", f"{here}.score_heads", [scores, "shape.score_heads"])
        scores = self._op("Add", f"{here}.masked", [scores, "attention_mask"])
        shares = self._op("Softmax", f"{here}.softmax", [scores], axis=-1)
        shares = self._op("Reshape", f"{here}.share_groups", [shares, "shape.score_groups"])
        mixed = self._op("MatMul", f"{here}.mixed", [shares, values])
        mixed = self._op("Reshape", f"{here}.mixed_heads", [mixed, "shape.mixed_heads"])
        mixed = self._op("Transpose", f"{here}.mixed_turned", [mixed], perm=[1, 2, 0, 3])
        return self._op("Reshape", f"{here}.attention", [mixed, "shape.mixed"])

    def _rotary(self, name: str, x: str) -> str:
        """transformers' rotation: dimension j turns with dimension j + D / 2. [.., T, D] stays."""
        cos, sin = "position_ids_cos", "position_ids_sin"
        halves = [f"{name}.low", f"{name}.high"]
        self._op("Split", f"{name}.split", [x], halves, axis=-1, num_outputs=2)
        low, high = halves
        low_cos = self._op("Mul", f"{name}.low_cos", [low, cos])
        high_sin = self._op("Mul", f"{name}.high_sin", [high, sin])
        high_cos = self._op("Mul", f"{name}.high_cos", [high, cos])
        low_sin = self._op("Mul", f"{name}.low_sin", [low, sin])
        first = self._op("Sub", f"{name}.first", [low_cos, high_sin])
        second = self._op("Add", f"{name}.second", [high_cos, low_sin])
        return self._op("Concat", name, [first, second], axis=-1)

    def _head(self) -> None:
        a = self.arch
        x = self._norm("norm", f"hidden_{a.layers}", "model.norm", layer=None)
        source = "model.embed_tokens.weight" if a.tied else "lm_head.weight"
        self._matrix("head.weight", source, None, ("head", x))
        self._op("MatMul", "head", [x, "head.weight"], ["logits"])

    # -- and their pieces

    def _norm(
        self, name: str, x: str, source: str, *, layer: int | None, factor: float = 1.0
    ) -> str:
        """x [.., n] over its root mean square, times the checkpoint's gain [n]."""
        self._small(f"{name}.weight", f"{source}.weight", layer, "norm", factor)
        inputs, eps = [x, f"{name}.weight"], self.arch.norm_eps
        return self._op("RMSNormalization", name, inputs, axis=-1, epsilon=eps)

    def _linear(self, layer: int, role: str, x: str, factor: float = 1.0) -> str:
        """x [.., in] times the checkpoint's [out, in] turned, plus its bias where it has one."""
        name, source = f"layers.{layer}.{role}_proj", f"model.layers.{layer}.{LINEARS[role]}"
        self._matrix(f"{name}.weight", f"{source}.weight", layer, (role, x), factor)
        inputs = [x, f"{name}.weight"]
        if f"{source}.bias" not in self._wanted:
            return self._op("MatMul", name, inputs)
        self._small(f"{name}.bias", f"{source}.bias", layer, f"{role}_bias", factor)
        product = self._op("MatMul", f"{name}.product", inputs)
        return self._op("Add", name, [product, f"{name}.bias"])

    def _matrix(
        self,
        name: str,
        source: str,
        layer: int | None,
        told: tuple[str, str],
        factor: float = 1.0,
    ) -> None:
        """A checkpoint's [out, in] as [in, out]; `told` is its role and what it multiplies."""
        width_out, width_in = self._wanted[source]
        blocks = self.weights.rows(source, (width_out, width_in))
        scaled = ((first, rows * np.float32(factor)) for first, rows in blocks)
        turned = blocks if factor == 1.0 else scaled
        self._keep(self.data.transposed(name, (width_in, width_out), turned), layer, *told)

    def _small(self, name: str, source: str, layer: int | None, role: str, factor: float) -> None:
        values = self.weights.whole(source, self._wanted[source]) * np.float32(factor)
        self._keep(self.data.rows(name, values.shape, [(0, values)]), layer, role, name)

    def _keep(self, tensor: onnx.TensorProto, layer: int | None, role: str, group: str) -> None:
        self._initializers.append(tensor)
        self.roles[tensor.name] = {"layer": layer, "role": role, "group": group}

    def _op(
        self,
        kind: str,
        name: str,
        inputs: Sequence[str],
        outputs: Sequence[str] = (),
        **attributes: Any,
    ) -> str:
        """A node; its first output's name, which is the node's own unless one is given."""
        outputs = list(outputs) or [name]
        self._nodes.append(helper.make_node(kind, inputs, outputs, name=name, **attributes))
        return outputs[0]


def _floats(name: str, shape: Sequence[int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
