"""The decoder as a torch module in the form AIMET and HTP want: the AIMET-to-QNN write-up's.

Projections are 1x1 convolutions; attention gives the new keys and values only; mask and rotary
cos, sin are inputs; every operation that HTP would quantise is a module of its own. Modules are
called like the nodes of the decoder graph (decoder.py), inputs and outputs too, and weights come
from that graph, so whatever AIMET finds here can be put back there by name.

Shapes as in decoder.py: T new tokens, C context, H heads, K key-value heads, G = H / K, D head_dim.
Runs under Python 3.10 with torch 2.1.2 and onnx 1.14.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from aimet_torch.nn.modules.custom import Add, Concat, MatMul, Multiply, Subtract
from torch import Tensor, nn

Weights = Mapping[str, Tensor]


class RmsNorm(nn.Module):  # type: ignore[misc]
    """x / sqrt(mean(x²) + eps) times a gain, as one module: its insides stay in floats."""

    def __init__(self, gain: Tensor, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(gain)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[.., width] to the same."""
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class Rotary(nn.Module):  # type: ignore[misc]
    """Turns dimension j with dimension j + D / 2; [.., T, D] stays."""

    def __init__(self) -> None:
        super().__init__()
        self.low_cos, self.high_sin = Multiply(), Multiply()
        self.high_cos, self.low_sin = Multiply(), Multiply()
        self.first, self.second = Subtract(), Add()
        self.joined = Concat(-1)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """cos and sin are [1, 1, T, D / 2]."""
        half = x.shape[-1] // 2
        low, high = x[..., :half], x[..., half:]
        first = self.first(self.low_cos(low, cos), self.high_sin(high, sin))
        second = self.second(self.high_cos(high, cos), self.low_sin(low, sin))
        turned: Tensor = self.joined(first, second)
        return turned


class Layer(nn.Module):  # type: ignore[misc]
    """One decoder layer; returns the hidden rows and the new keys and values."""

    def __init__(self, spec: Mapping[str, Any], weights: Weights, number: int) -> None:
        super().__init__()
        here = f"layers.{number}"
        self.heads, self.kv_heads = spec["heads"], spec["kv_heads"]
        self.width, self.eps = spec["head_dim"], spec["norm_eps"]
        self.input_norm = self._norm(weights, f"{here}.input_norm")
        self.post_norm = self._norm(weights, f"{here}.post_norm")
        for role in ("q", "k", "v", "o", "gate", "up", "down"):
            setattr(self, f"{role}_proj", projection(weights, f"{here}.{role}_proj"))
        self.qk_norm = spec["qk_norm"]
        if self.qk_norm:
            self.q_norm = self._norm(weights, f"{here}.q_norm")
            self.k_norm = self._norm(weights, f"{here}.k_norm")
        self.q_rotary, self.k_rotary = Rotary(), Rotary()
        self.keys, self.values = Concat(3), Concat(2)
        self.scores, self.mixed = MatMul(), MatMul()
        self.masked, self.softmax = Add(), nn.Softmax(dim=-1)
        self.attention_sum, self.mlp_sum = Add(), Add()
        self.sigmoid, self.silu, self.gated = nn.Sigmoid(), Multiply(), Multiply()

    def _norm(self, weights: Weights, name: str) -> RmsNorm:
        return RmsNorm(weights[f"{name}.weight"], self.eps)

    def forward(
        self, hidden: Tensor, edges: tuple[Tensor, ...], key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """hidden [1, T, width]; key [K, 1, D, C - T] and value [K, 1, C - T, D] of the past."""
        mask, cos, sin = edges
        x = self.input_norm(hidden)
        q = self._split(project(self.q_proj, x), self.heads)
        k = self._split(project(self.k_proj, x), self.kv_heads)
        v = self._split(project(self.v_proj, x), self.kv_heads).permute(2, 0, 1, 3)
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q = self.q_rotary(q.permute(2, 0, 1, 3), cos, sin)
        k = self.k_rotary(k.permute(2, 0, 1, 3), cos, sin).permute(0, 1, 3, 2)
        mixed = self._attend(q, self.keys(key, k), self.values(value, v), mask)
        middle = self.attention_sum(hidden, project(self.o_proj, mixed))
        x = self.post_norm(middle)
        gate = project(self.gate_proj, x)
        x = self.gated(self.silu(gate, self.sigmoid(gate)), project(self.up_proj, x))
        return self.mlp_sum(middle, project(self.down_proj, x)), k, v

    def _split(self, x: Tensor, heads: int) -> Tensor:
        """[1, T, heads * D] to [1, T, heads, D]."""
        return x.reshape(1, -1, heads, self.width)

    def _attend(self, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """q [H, 1, T, D], keys [K, 1, D, C], values [K, 1, C, D] to [1, T, H * D].

        The G query heads of one key-value head are rows of one matrix. 1 / sqrt(D) is in q_proj.
        """
        groups = self.heads // self.kv_heads
        context = keys.shape[-1]
        scores = self.scores(q.reshape(self.kv_heads, 1, -1, self.width), keys)
        scores = scores.reshape(self.kv_heads, groups, -1, context)
        shares = self.softmax(self.masked(scores, mask))
        mixed = self.mixed(shares.reshape(self.kv_heads, 1, -1, context), values)
        mixed = mixed.reshape(self.heads, 1, -1, self.width).permute(1, 2, 0, 3)
        return mixed.reshape(1, -1, self.heads * self.width)


class Decoder(nn.Module):  # type: ignore[misc]
    """The whole decoder of graph.json's `spec`; inputs and outputs in the graph's order."""

    def __init__(self, spec: Mapping[str, Any], weights: Weights) -> None:
        super().__init__()
        self.embed = nn.Embedding.from_pretrained(weights["embed.weight"], freeze=False)
        self.layers = nn.ModuleList(Layer(spec, weights, i) for i in range(spec["layers"]))
        self.norm = RmsNorm(weights["norm.weight"], spec["norm_eps"])
        self.head = projection(weights, "head")

    def forward(
        self, input_ids: Tensor, mask: Tensor, cos: Tensor, sin: Tensor, *past: Tensor
    ) -> tuple[Tensor, ...]:
        """past: key_0, value_0, key_1, …; returns logits [1, T, vocab], key_0, value_0, …"""
        hidden, new = self.embed(input_ids), []
        for i, layer in enumerate(self.layers):
            key, value = past[2 * i], past[2 * i + 1]
            hidden, k, v = layer(hidden, (mask, cos, sin), key, value)
            new += [k, v]
        return (project(self.head, self.norm(hidden)), *new)


def input_names(layers: int) -> list[str]:
    """The names of `Decoder.forward`'s inputs in the graph."""
    past = [f"past_{kind}_{i}_in" for i in range(layers) for kind in ("key", "value")]
    return ["input_ids", "attention_mask", "position_ids_cos", "position_ids_sin", *past]


def output_names(layers: int) -> list[str]:
    """The names of its outputs."""
    new = [f"past_{kind}_{i}_out" for i in range(layers) for kind in ("key", "value")]
    return ["logits", *new]


def graph_name(module: str) -> str:
    """The graph's tensor that is the output of a module (by its name in `Decoder`)."""
    if module == "embed":
        return "hidden_0"
    if module == "head":
        return "logits"
    if found := re.fullmatch(r"layers\.(\d+)\.mlp_sum", module):
        return f"hidden_{int(found[1]) + 1}"
    return module.removesuffix(".joined")


def projection(weights: Weights, name: str) -> nn.Conv2d:
    """A weight [in, out] of the graph, and its bias where it has one, as a 1x1 convolution."""
    weight, bias = weights[f"{name}.weight"], weights.get(f"{name}.bias")
    conv = nn.Conv2d(weight.shape[0], weight.shape[1], 1, bias=bias is not None)
    conv.weight = nn.Parameter(weight.T.contiguous()[:, :, None, None])
    if bias is not None:
        conv.bias = nn.Parameter(bias)
    return conv


def project(conv: Any, x: Tensor) -> Tensor:
    """[1, T, in] through a 1x1 convolution to [1, T, out]."""
    made: Tensor = conv(x[:, None].permute(0, 3, 1, 2))
    return made.permute(0, 2, 3, 1)[:, 0]


def load_weights(folder: Path) -> dict[str, Tensor]:
    """The float weights of a graph folder by name; shape constants are left out.

    onnx 1.14 reads this opset's files as long as it is not asked to check them.
    """
    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    return dict(_weights(model, folder))


def _weights(model: onnx.ModelProto, folder: Path) -> Iterator[tuple[str, Tensor]]:
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        place = {entry.key: entry.value for entry in tensor.external_data}
        count = int(np.prod(tensor.dims, dtype=np.int64))
        values = np.fromfile(
            folder / place["location"], np.float32, count, offset=int(place.get("offset", 0))
        )
        yield tensor.name, torch.from_numpy(values.reshape(tuple(tensor.dims)))
