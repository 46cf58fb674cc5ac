"""Turning the decoder's inner spaces so that no single channel is large, at no cost on the phone.

A decoder computes the same when its residual stream h is turned by an orthogonal matrix, h R,
provided that the norms have no gain of their own: RMS(h R) = RMS(h) R. So the gains go into the
weights behind them, and every weight that reads the residual takes Rᵀ before it, every one that
writes it takes R after it (SliceGPT, arXiv 2401.15024, section 3; QuaRot, arXiv 2404.00456,
stages 1a and 1c, for V and O within each head). Massive activations, one channel of the residual
that is hundreds of times as large as the others, are spread over all channels; the 16-bit grid of
the residual, and the 4-bit grids of the weights' columns, then lose far less.

Keys are turned by the rotary positions, so no rotation passes them; but each pair of channels
that is turned together may be scaled, keys down and queries up (`Balance`): the 8-bit cache has
one grid for all channels of a layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

SEED = 7
# The largest Hadamard factor that is applied as one matrix.
_WIDEST = 64
# No pair of keys is enlarged by more than this against the farthest: one that never reaches
# anywhere in calibration may still do so.
_SMALLEST_PAIR = 16


@dataclass(frozen=True, kw_only=True)
class Rotation:
    """An orthogonal matrix R [n, n], kept as the Kronecker product of small ones, times signs.

    Applying it to a row costs n times the sum of the factors' sizes, not n².
    """

    factors: tuple[Floats, ...]
    signs: Floats  # [n]

    @property
    def size(self) -> int:
        """n."""
        return len(self.signs)

    def after(self, rows: Floats) -> Floats:
        """x R over the last axis."""
        turned = rows.reshape(-1, *(len(f) for f in self.factors))
        for axis, small in enumerate(self.factors, 1):
            turned = np.moveaxis(np.moveaxis(turned, axis, -1) @ small, -1, axis)
        return np.ascontiguousarray(turned).reshape(rows.shape) * self.signs

    def before(self, columns: Floats) -> Floats:
        """Rᵀ W for a weight W [n, out]."""
        return np.ascontiguousarray(self.after(np.ascontiguousarray(columns.T)).T)


def rotation(size: int, *, seed: int = SEED) -> Rotation:
    """A Hadamard matrix over the largest power of two in `size`, a random one over the rest."""
    power = size & -size
    rest = size // power
    random = np.random.default_rng(seed)
    factors = [_orthogonal(rest, random)] if rest > 1 else []
    while power > 1:
        step = min(power, _WIDEST)
        factors.append(hadamard(step))
        power //= step
    signs = random.choice(np.array([-1, 1], np.float32), size)
    return Rotation(factors=tuple(factors) or (np.ones((1, 1), np.float32),), signs=signs)


def still(size: int) -> Rotation:
    """The rotation that changes nothing."""
    return Rotation(factors=(np.ones((1, 1), np.float32),), signs=np.ones(size, np.float32))


def hadamard(size: int) -> Floats:
    """Sylvester's Hadamard matrix, orthogonal; `size` is a power of two."""
    made = np.ones((1, 1))
    while len(made) < size:
        made = np.block([[made, made], [made, -made]])
    return np.asarray(made / math.sqrt(size), np.float32)


def _orthogonal(size: int, random: np.random.Generator) -> Floats:
    """A random orthogonal matrix, evenly distributed (Mezzadri, arXiv math-ph/0609050)."""
    turned, upper = np.linalg.qr(random.normal(size=(size, size)))
    return np.asarray(turned * np.sign(upper.diagonal()), np.float32)


@dataclass(frozen=True, kw_only=True)
class Turns:
    """What a decoder's weights are turned by: the residual stream, and each head's values."""

    stream: Rotation
    head: Rotation

    @classmethod
    def of(cls, spec: Mapping[str, Any], *, rotate: bool) -> Turns:
        """For graph.json `spec`; without `rotate` nothing turns, but gains are still folded."""
        make = rotation if rotate else still
        return cls(stream=make(spec["hidden"]), head=make(spec["head_dim"]))

    def embedding(self, rows: Floats) -> Floats:
        """Rows of the embedding table, [.., hidden]."""
        return self.stream.after(rows)

    def reading(self, weight: Floats, gain: Floats) -> Floats:
        """A weight [hidden, out] behind a norm with that gain; the norm's own is 1 from now on."""
        return self.stream.before(gain[:, None] * weight)

    def values(self, weight: Floats) -> Floats:
        """v_proj's outputs, head by head: its weight [hidden, K * D] or its bias [K * D]."""
        heads = weight.reshape(-1, self.head.size)
        return self.head.after(heads).reshape(weight.shape)

    def output(self, weight: Floats) -> Floats:
        """o_proj's weight [H * D, hidden]: undoes the heads' turns, turns the stream."""
        heads = weight.reshape(-1, self.head.size, weight.shape[1])
        undone = np.concatenate([self.head.before(rows) for rows in heads])
        return self.stream.after(undone)

    def writing(self, weight: Floats) -> Floats:
        """A weight [in, hidden] whose output is added to the stream."""
        return self.stream.after(weight)


def layer(weights: Mapping[str, Floats], turns: Turns) -> dict[str, Floats]:
    """One layer's tensors, by their names without "layers.i.", turned.

    `weights` has input_norm.weight, post_norm.weight, {q,k,v,o,gate,up,down}_proj.weight [in, out]
    and perhaps q_proj.bias, k_proj.bias, v_proj.bias, q_norm.weight, k_norm.weight. The last four
    kinds lie behind the linear layers, inside the heads, and only v's is touched.
    """
    made = dict(weights)
    first, second = weights["input_norm.weight"], weights["post_norm.weight"]
    for role in ("q", "k", "v"):
        made[f"{role}_proj.weight"] = turns.reading(weights[f"{role}_proj.weight"], first)
    for role in ("gate", "up"):
        made[f"{role}_proj.weight"] = turns.reading(weights[f"{role}_proj.weight"], second)
    for name in ("v_proj.weight", "v_proj.bias"):
        if name in made:
            made[name] = turns.values(made[name])
    made["o_proj.weight"] = turns.output(weights["o_proj.weight"])
    made["down_proj.weight"] = turns.writing(weights["down_proj.weight"])
    made["input_norm.weight"] = np.ones_like(first)
    made["post_norm.weight"] = np.ones_like(second)
    return made


@dataclass(frozen=True, kw_only=True)
class Balance:
    """What a layer's keys are divided and its queries multiplied by, [K, D].

    The channels j and j + D / 2 are turned together and share a divisor. With it all pairs reach
    equally far, which for one grid over all keys of the layer makes the scores' rounding error
    least. The divisors' geometric mean is 1, so keys as a whole keep their size. Where q and k
    have norms of their own, it is those norms' gains that are changed, and all heads share one.
    """

    number: int
    divisor: Floats  # [K, D]
    heads: int
    norms: bool

    @classmethod
    def of(
        cls,
        number: int,
        low: Mapping[str, Floats],
        high: Mapping[str, Floats],
        spec: Mapping[str, Any],
    ) -> Balance:
        """From the ranges of layer `number`'s turned keys, [K, 1, D]."""
        name = f"layers.{number}.k_rotary"
        width = spec["head_dim"]
        reach = np.maximum(-low[name], high[name]).reshape(-1, width)
        if spec["qk_norm"]:
            reach = np.broadcast_to(reach.max(axis=0), reach.shape)
        pairs = reach.reshape(-1, 2, width // 2).max(axis=1)
        pairs = np.maximum(pairs, max(float(pairs.max()), 1e-6) / _SMALLEST_PAIR)
        divisor = np.tile(pairs / np.exp(np.log(pairs).mean()), (1, 2)).astype(np.float32)
        return cls(number=number, divisor=divisor, heads=spec["heads"], norms=spec["qk_norm"])

    @property
    def _keys(self) -> Floats:
        """What multiplies each key channel, [K, D]."""
        return np.asarray(1 / self.divisor, np.float32)

    @property
    def _queries(self) -> Floats:
        """What multiplies each query channel, [H, D]."""
        return np.repeat(self.divisor, self.heads // len(self.divisor), axis=0)

    def weights(self, weights: Mapping[str, Floats]) -> dict[str, Floats]:
        """The tensors of the layer, by full names, that change."""
        made = {}
        for role, factor in (("q", self._queries), ("k", self._keys)):
            norm = f"layers.{self.number}.{role}_norm.weight"
            for name in (f"{role}_proj.weight", f"{role}_proj.bias") if not self.norms else ():
                full = f"layers.{self.number}.{name}"
                if full in weights:
                    made[full] = weights[full] * factor.reshape(-1)
            if self.norms:
                made[norm] = weights[norm] * factor[0]
        return made

    def factors(self, names: Iterable[str]) -> dict[str, Floats]:
        """For each of these tensors that changes: what multiplies its range [.., channels]."""
        made = {}
        for role, factor in (("q", self._queries), ("k", self._keys)):
            here = f"layers.{self.number}.{role}_"
            half = factor[:, None, : factor.shape[1] // 2]
            for name in names:
                if name == f"{here}rotary":
                    made[name] = factor[:, None]
                elif name.startswith(f"{here}rotary."):
                    made[name] = half
                elif name == f"{here}norm":
                    made[name] = factor[0]
                elif name in (f"{here}proj", f"{here}proj.product") and not self.norms:
                    made[name] = factor.reshape(-1)
        return made
