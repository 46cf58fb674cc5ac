"""The memory that a model takes on the device, worked out from config.json alone.

    estimated_vram_bytes = (parameters + temporary buffer + cache a token * context) * safety

Parameters: a matrix whose rows are cut into groups keeps, for each group, its packed numbers and
one scale (mlc_llm/quantization). Norms and biases stay floats.

Temporary buffer: the largest of the model's functions, each with the buffers that TVM's
StaticPlanBlockMemory plans for it (src/relax/transform/static_plan_block_memory.cc); mlc_llm adds
them up in compiler_pass/estimate_memory_usage.py. A tensor takes a free buffer of its type at most
16 times its size, the smallest there is; else the largest that is smaller and no less than a
sixteenth, which then grows; else a new one. Sizes are those at the upper bounds: a whole prefill
chunk, a full batch. Logits are counted where the model's class in MLC has a vocabulary of fixed
size, because their shape is then known.

Cache: mlc_llm/cli/model_metadata.py: a key and a value for each layer and head, in the
quantisation's float type.

Checked against what mlc_llm's logs say: tests/unit/test_mlc_memory.py, test_mlc_measured.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

# How much larger or smaller than a tensor a buffer may be to be used for it.
_RANGE = 16
_BATCH = 128  # gen_config's --max-batch-size
_THREADS = 256


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """A quantisation: a group of `group` weights takes `packed` bytes and a scale."""

    group: int = 0
    packed: int = 0
    floats: int = 2
    ends: bool = True  # whether the embedding and the output layer are quantised

    def matrix(self, rows: int, width: int, *, end: bool = False) -> int:
        """Bytes of a matrix; `end` for the embedding and the output layer."""
        if not self.group or (end and not self.ends):
            return rows * width * self.floats
        return rows * math.ceil(width / self.group) * (self.packed + self.floats)


# mlc_llm/quantization/quantization.py; a group is a whole number of 32-bit words.
_INT3, _INT4 = Scheme(group=40, packed=16), Scheme(group=32, packed=16)
SCHEMES: Mapping[str, Scheme] = {
    "q0f16": Scheme(),
    "q0bf16": Scheme(),
    "q0f32": Scheme(floats=4),
    "q3f16_0": _INT3,
    "q3f16_1": _INT3,
    "q4f16_0": _INT4,
    "q4f16_1": _INT4,
    "q4bf16_0": _INT4,
    "q4bf16_1": _INT4,
    "q4f32_1": replace(_INT4, floats=4),
    "q4f16_2": replace(_INT4, ends=False),
}


@dataclass(frozen=True, kw_only=True)
class Family:
    """How MLC writes a family down, as far as memory goes."""

    gated: bool = True
    fixed_vocabulary: bool = True
    qk_norm: bool = False
    qkv_bias: bool = False
    biases: bool = False  # of every matrix in a layer, and of the norms
    mlp_floats: int | None = None  # bytes of the inner tensor's numbers, where they are its own
    cached: bool = True
    chunk: int = 2048  # prefill_chunk_size where nobody gives one, up to the context
    rms_norm: bool = True
    hidden_states: bool = False  # whether some functions give the last hidden states


_LLAMA = Family(fixed_vocabulary=False, hidden_states=True, chunk=8192)
FAMILIES: Mapping[str, Family] = {
    "llama": _LLAMA,
    "phi3": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": Family(qkv_bias=True, chunk=8192),
    "qwen3": Family(qk_norm=True),
    "gpt_neox": Family(
        gated=False, fixed_vocabulary=False, biases=True, mlp_floats=4, rms_norm=False
    ),
    "rwkv5": Family(gated=False, cached=False, rms_norm=False),
    "rwkv6": Family(gated=False, cached=False, rms_norm=False),
}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A decoder's sizes."""

    layers: int
    hidden: int
    inner: int
    queries: int
    keys: int
    head: int
    vocabulary: int
    tied: bool

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        """Out of config.json. Raises KeyError where it lacks one."""
        text = config.get("text_config")
        found = {**config, **text} if isinstance(text, Mapping) else config
        hidden = found["hidden_size"]
        heads = found.get("num_attention_heads") or max(hidden // 64, 1)
        head = found.get("head_dim") or hidden // heads
        kv = found.get("num_key_value_heads") or heads
        return cls(
            layers=found["num_hidden_layers"],
            hidden=hidden,
            inner=found.get("intermediate_size") or 4 * hidden,
            queries=heads * head,
            keys=kv * head,
            head=head,
            vocabulary=found["vocab_size"],
            tied=bool(found.get("tie_word_embeddings", False)),
        )


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on the device; `known` where the family's own rules were used, not general ones."""

    parameters: int
    temporary: int
    cache_per_token: int
    count: int
    known: bool

    @property
    def base(self) -> int:
        """Without a cache: the log's "Total memory usage without KV cache"."""
        return self.parameters + self.temporary

    def at(self, context: int) -> int:
        """With a cache of so many tokens."""
        return self.base + self.cache_per_token * context

    def estimate(self, context: int, safety: float) -> int:
        """estimated_vram_bytes."""
        return math.ceil(self.at(context) * safety)


def memory(
    config: Mapping[str, Any],
    quantization: str,
    *,
    chunk: int | None = None,
    batch: int | None = None,
    context: int = 0,
    parameters: int = 0,
    threads: int = 0,
) -> Memory:
    """What a model takes. `parameters` stands in where the family is not known.

    `chunk` and `batch` are prefill_chunk_size and max_batch_size; not given, MLC's defaults.
    `threads` are those of a block on the device: 256 on most.
    An unknown quantisation counts as 16-bit floats: too much rather than too little.
    """
    shape, scheme = Shape.of(config), SCHEMES.get(quantization, Scheme())
    name = str(config.get("model_type", ""))
    family = FAMILIES.get(name, Family())
    tokens = chunk or (min(context, family.chunk) if context else family.chunk)
    buffers = functions(
        config, quantization, chunk=tokens, batch=batch or _BATCH, threads=threads or _THREADS
    )
    count, size = _parameters(shape, family, scheme)
    if name not in FAMILIES and parameters:
        size, count = math.ceil(size * parameters / count), parameters
    return Memory(
        parameters=size,
        temporary=max(buffers.values()),
        cache_per_token=2 * shape.layers * shape.keys * scheme.floats * family.cached,
        count=count,
        known=name in FAMILIES and quantization in SCHEMES,
    )


def _parameters(s: Shape, family: Family, scheme: Scheme) -> tuple[int, int]:
    """How many numbers, and their bytes."""
    up = s.inner * (2 if family.gated else 1)
    matrices = [(s.queries + 2 * s.keys, s.hidden), (s.hidden, s.queries)]
    matrices += [(up, s.hidden), (s.hidden, s.inner)]
    ends = [(s.vocabulary, s.hidden)] * (1 if s.tied else 2)
    norms = (2 * s.layers + 1) * s.hidden * (2 if family.biases else 1)
    norms += 2 * s.head * s.layers * family.qk_norm
    attention = (s.queries + 2 * s.keys) * (family.qkv_bias or family.biases)
    attention += s.hidden * family.biases
    inner = (s.inner + s.hidden) * family.biases
    floats = norms + s.layers * attention
    count = s.layers * (sum(r * w for r, w in matrices) + inner) + floats
    count += sum(r * w for r, w in ends)
    size = s.layers * sum(scheme.matrix(r, w) for r, w in matrices)
    size += sum(scheme.matrix(r, w, end=True) for r, w in ends)
    size += floats * scheme.floats + s.layers * inner * (family.mlp_floats or scheme.floats)
    return count, size


def functions(
    config: Mapping[str, Any],
    quantization: str,
    *,
    chunk: int,
    batch: int = _BATCH,
    threads: int = _THREADS,
) -> dict[str, int]:
    """The bytes of each of a model's large functions, by its name in mlc_llm's log."""
    shape, scheme = Shape.of(config), SCHEMES.get(quantization, Scheme())
    family = FAMILIES.get(str(config.get("model_type", "")), Family())
    logits = 4 * shape.vocabulary * family.fixed_vocabulary
    row = shape.hidden * scheme.floats
    whole = _layers(shape, family, scheme, chunk, threads)
    found = {
        "batch_verify": whole.total + chunk * logits,
        "batch_decode": _layers(shape, family, scheme, batch, threads).total + batch * logits,
    }
    if family.hidden_states:
        found["batch_verify_to_last_hidden_states"] = whole.total + chunk * row
    whole.take(batch * row)
    return {**found, "batch_prefill": whole.total + batch * logits}


def _layers(s: Shape, family: Family, scheme: Scheme, tokens: int, threads: int) -> _Plan:
    """The tensors of all layers, in the order in which they come and go.

    Each of a layer's matrices makes one tensor. Adding a residual and the norm after it are one
    kernel with two, where the numbers are 16-bit floats and a block of threads divides the hidden
    size (compiler_pass/fuse_add_norm.py); else the matrix before it adds the residual.
    """
    plan = _Plan()
    row = tokens * scheme.floats
    together = family.rms_norm and s.hidden % threads == 0 and scheme.floats == 2
    wide = tokens * (family.mlp_floats or scheme.floats) * s.inner
    kind = "wider" if wide > row * s.inner else ""
    inner = [(2 * wide, kind), (wide, kind)] if family.gated else [(wide, kind)]
    normed, residual = plan.take(row * s.hidden), None
    for layer in range(s.layers):
        attended = _attention(plan, s, family, row, normed)
        # Behind the last layer nothing is added any more.
        left = layer < s.layers - 1
        normed, added = _add(plan, row * s.hidden, attended, residual, (together, True))
        active = _inner(plan, inner, normed)
        normed, residual = _add(plan, row * s.hidden, active, added, (together, left))
    return plan


def _attention(plan: _Plan, s: Shape, family: Family, row: int, normed: _Buffer) -> _Buffer:
    """Queries, keys and values in one tensor; what attention makes of them."""
    mixed = plan.take(row * (s.queries + 2 * s.keys))
    plan.give(normed)
    if family.qk_norm:
        mixed = _qk_norm(plan, s, row, mixed)
    attended = plan.take(row * s.queries)
    plan.give(mixed)
    return attended


def _add(
    plan: _Plan, size: int, given: _Buffer, residual: _Buffer | None, how: tuple[bool, bool]
) -> tuple[_Buffer, _Buffer | None]:
    """A matrix, the residual added to what it makes, and the norm of the sum.

    `how`: whether sum and norm are one kernel, and whether the sum is read again.
    """
    together, read = how
    made = plan.take(size)
    plan.give(given)
    if not together:
        plan.give(residual)
        return plan.take(size), made
    normed = plan.take(size)
    added = plan.take(size) if read else None
    plan.give(made)
    plan.give(residual)
    return normed, added


def _qk_norm(plan: _Plan, s: Shape, row: int, mixed: _Buffer) -> _Buffer:
    """Queries and keys are taken out, normed, and put together again."""
    query, key, value = (plan.take(row * width) for width in (s.queries, s.keys, s.keys))
    plan.give(mixed)
    normed_query = plan.take(row * s.queries)
    plan.give(query)
    normed_key = plan.take(row * s.keys)
    plan.give(key)
    together = plan.take(row * (s.queries + 2 * s.keys))
    for buffer in (normed_query, normed_key, value):
        plan.give(buffer)
    return together


def _inner(plan: _Plan, inner: list[tuple[int, str]], normed: _Buffer) -> _Buffer:
    """The inner tensors, by bytes and type, each made of the one before; the last of them."""
    last = normed
    for size, kind in inner:
        made = plan.take(size, kind)
        plan.give(last)
        last = made
    return last


@dataclass(eq=False)
class _Buffer:
    size: int
    kind: str


@dataclass
class _Plan:
    """TVM's TokenAllocator1D: buffers by the type of their numbers, used again when free."""

    made: list[_Buffer] = field(default_factory=list)
    free: list[_Buffer] = field(default_factory=list)

    def take(self, size: int, kind: str = "") -> _Buffer:
        """A buffer for a tensor of so many bytes."""
        near = [
            b for b in self.free if b.kind == kind and size // _RANGE <= b.size <= size * _RANGE
        ]
        larger = [b for b in near if b.size >= size]
        if near:
            found = min(larger, key=_size) if larger else max(near, key=_size)
            self.free.remove(found)
            found.size = max(found.size, size)
            return found
        fresh = _Buffer(size=size, kind=kind)
        self.made.append(fresh)
        return fresh

    def give(self, buffer: _Buffer | None) -> None:
        """Nothing reads the tensor any more."""
        if buffer is not None:
            self.free.append(buffer)

    @property
    def total(self) -> int:
        """Bytes of all buffers."""
        return sum(b.size for b in self.made)


def _size(buffer: _Buffer) -> int:
    return buffer.size
