"""Weights to integers, so that a linear layer's output changes least: GPTQ in numpy.

For inputs x with second moments H = Σ x xᵀ, one output channel's loss is e H eᵀ, where e is what
rounding changed in that channel's weights. With H = U D Uᵀ, U unit upper triangular,

    e H eᵀ = Σ_k D_k (e_k + Σ_{j<k} e_j U_jk)²

so weights are rounded one input after the other, each after being moved by what the earlier ones
got wrong. This is the procedure of GPTQ (Frantar et al., arXiv 2210.17323, algorithm 1) in the
form of QuIP's LDLQ (Chee et al., arXiv 2307.13304, theorem 6: both give the same integers), which
needs one Cholesky factor and no inverse. Blocks are as in GPTQ, section 3.3: few large matrix
products, some small ones, and one row at a time only within a small block.

All is symmetric: zero point 0, and for four bits the values −8 … 7.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from quantspec import Integers, limits

Floats = NDArray[np.float32]

# Inputs handled by one large product, and by one small one; a weight block (16, 32, 64) is a
# whole number of the small ones.
_WIDE = 128
_NARROW = 16
# Added to H's diagonal, as a part of its mean: at least GPTQ's own setting, and so much for each
# input a token. H of a few thousand tokens is not that of all text, and weights fitted to it too
# closely lose more elsewhere: on tokens held back, a down_proj of SmolLM2 with 1536 inputs and
# 2560 tokens loses 0.0178 of its output's power at 0.01, and 0.0105 from 0.4 to 1.6.
DAMPING = 0.01
_DAMPING_BY_SAMPLE = 0.75
# What a channel's largest weight may be cut to, each tried by rounding the whole weight, and a
# block's, tried on its own weights; eight bits are fine enough not to gain by it.
_CLIPS = (1.0, 0.9, 0.8, 0.7, 0.6)
_BLOCK_CLIPS = tuple(1.0 - 0.05 * i for i in range(9))
_TINY = 1e-12


@dataclass(frozen=True, kw_only=True)
class Factor:
    """H taken apart, for every weight that reads the same inputs.

    `order` says which input is rounded as the k-th; U and D are in that order.
    """

    order: NDArray[np.intp]
    unit: Floats  # U, [in, in]
    weight: Floats  # D, [in]


def damping(inputs: int, tokens: int) -> float:
    """How much to damp the second moments of so many inputs, seen over so many tokens."""
    return max(DAMPING, _DAMPING_BY_SAMPLE * inputs / max(tokens, 1))


def factor(moments: Floats, *, damped_by: float = DAMPING, sort: bool = True) -> Factor:
    """H = U D Uᵀ with damping; with `sort` the inputs come by falling second moment.

    Peak memory: two float64 matrices of H's size.
    """
    diagonal = moments.diagonal().astype(np.float64)
    mean = float(diagonal.mean()) or 1.0
    order = np.argsort(-diagonal, kind="stable") if sort else np.arange(len(diagonal))
    # Backwards, since Cholesky gives a lower factor and an upper one is wanted.
    back = order[::-1]
    damped = moments[np.ix_(back, back)].astype(np.float64)
    damped[np.diag_indices_from(damped)] += damped_by * mean
    lower = np.linalg.cholesky(damped)
    del damped
    upper = lower[::-1, ::-1]
    root = upper.diagonal().copy()
    unit = np.divide(upper, root).astype(np.float32)
    return Factor(order=order, unit=unit, weight=(root**2).astype(np.float32))


def nearest(weight: Floats, *, bits: int, block: int = 0) -> Integers:
    """Each weight's nearest integer, the largest of a channel or block at the end of the range."""
    least, most = limits(bits)
    shaped = weight.reshape(-1, block or len(weight), weight.shape[1])
    scales = np.maximum(abs(shaped).max(axis=1) / most, _TINY).astype(np.float32)
    values = np.clip(np.rint(shaped / scales[:, None]), least, most).astype(np.int8)
    return Integers(
        values=values.reshape(weight.shape),
        scales=scales if block else scales[0],
        bits=bits,
        block=block,
    )


def quantise(weight: Floats, known: Factor, *, bits: int, block: int = 0) -> Integers:
    """GPTQ on a weight [in, out]: for whole channels, or for blocks of `block` inputs.

    Channels: the clip that loses least is found by rounding with each of several, which is exact,
    since channels do not touch each other. Blocks: each takes the clip that its own weights lose
    least by when its turn comes, so `known` must be unsorted for them.
    """
    if block:
        if not np.array_equal(known.order, np.arange(len(weight))):
            raise ValueError("blocks are rounded in their own order")
        return _blocks(weight, known, bits, block)
    return _channels(weight, known, bits)


def _channels(weight: Floats, known: Factor, bits: int) -> Integers:
    """The best of several clips, channel by channel."""
    most = limits(bits)[1]
    ordered = np.ascontiguousarray(weight[known.order])
    top = np.maximum(abs(ordered).max(axis=0) / most, _TINY).astype(np.float32)
    values = np.empty(weight.shape, np.int8)
    scales, best = top.copy(), np.full(len(top), np.inf, np.float32)
    for clip in _CLIPS if bits == 4 else (1.0,):
        tried = top * np.float32(clip)
        rounded, loss = _round(ordered, known, bits, lambda *_, tried=tried: tried)
        better = loss < best
        values[:, better] = rounded[:, better]
        scales[better], best[better] = tried[better], loss[better]
    back = np.empty_like(values)
    back[known.order] = values
    return Integers(values=back, scales=scales, bits=bits)


def _blocks(weight: Floats, known: Factor, bits: int, block: int) -> Integers:
    """Each block's scale when its first input's turn comes."""
    scales = np.empty((len(weight) // block, weight.shape[1]), np.float32)

    def of(first: int, moved: Floats) -> Floats:
        here = _scale(moved, known.weight[first : first + block], bits)
        scales[first // block] = here
        return here

    values, _ = _round(weight, known, bits, of, block=block)
    return Integers(values=values, scales=scales, bits=bits, block=block)


def _scale(rows: Floats, importance: Floats, bits: int) -> Floats:
    """[out]: the scale of a block [block, out] whose weighted rounding error is least."""
    least, most = limits(bits)
    top = np.maximum(abs(rows).max(axis=0) / most, _TINY).astype(np.float32)
    scales: Floats = top.copy()
    best = np.full(len(top), np.inf, np.float32)
    for clip in _BLOCK_CLIPS if bits == 4 else (1.0,):
        tried = top * np.float32(clip)
        error = np.clip(np.rint(rows / tried), least, most) * tried - rows
        loss = importance @ np.square(error)
        better = loss < best
        scales[better], best[better] = tried[better], loss[better]
    return scales


# The scales [out] for the inputs from a given one on, and those rows as they now stand.
_Scales = Callable[[int, Floats], Floats]


def _round(
    weight: Floats, known: Factor, bits: int, scales_of: _Scales, *, block: int = _WIDE
) -> tuple[NDArray[np.int8], Floats]:
    """Integers of a weight in the factor's order, and what each channel loses.

    `scales_of` is asked at the first input of every `block`.
    """
    work = _Rounding(weight=weight, known=known, bits=bits)
    unit, errors = known.unit, work.errors
    for wide in range(0, len(weight), _WIDE):
        end = min(wide + _WIDE, len(weight))
        moved = weight[wide:end] + unit[:wide, wide:end].T @ errors[:wide]
        for first in range(wide, end, block):
            last = min(first + block, end)
            here = moved[first - wide : last - wide]
            here += unit[wide:first, first:last].T @ errors[wide:first]
            scales = scales_of(first, here)
            for low in range(first, last, _NARROW):
                rows = range(low, min(low + _NARROW, last))
                near = here[low - first : rows.stop - first]
                near += unit[first:low, low : rows.stop].T @ errors[first:low]
                work.rows(rows, near, scales)
    return work.values, work.loss


@dataclass(kw_only=True)
class _Rounding:
    """A weight being rounded: its integers so far, what that lost of each weight and channel."""

    weight: Floats
    known: Factor
    bits: int
    values: NDArray[np.int8] = field(init=False)
    errors: Floats = field(init=False)
    loss: Floats = field(init=False)

    def __post_init__(self) -> None:
        self.values = np.empty(self.weight.shape, np.int8)
        self.errors = np.zeros_like(self.weight)
        self.loss = np.zeros(self.weight.shape[1], np.float32)

    def rows(self, rows: range, moved: Floats, scales: Floats) -> None:
        """Round these rows one after the other; `moved` is where they stand, and is changed."""
        least, most = limits(self.bits)
        for k, wanted in zip(rows, moved, strict=True):
            whole = wanted / scales
            np.rint(whole, out=whole)
            np.clip(whole, least, most, out=whole)
            self.values[k] = whole
            whole *= scales
            np.subtract(self.weight[k], whole, out=self.errors[k])
            self.loss += self.known.weight[k] * np.square(wanted - whole)
            after = moved[k + 1 - rows.start :]
            after += self.known.unit[k, k + 1 : rows.stop, None] * self.errors[k]
