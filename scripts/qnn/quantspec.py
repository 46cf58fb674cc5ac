"""Grids of integers that stand for floats, and AIMET's way of writing them down.

A grid maps an integer q to scale * (q - zero_point), as ONNX's DequantizeLinear does. AIMET's
encodings say offset instead, with real = scale * (q + offset) for q counted from 0: the smallest
integer of a signed type is AIMET's 0, so offset = least - zero_point (AIMET user guide,
"Quantization Simulation Encoding Specification", format 1.0.0).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

AIMET_VERSION = "1.0.0"
# Ranges narrower than this are widened: float32 scales must not become denormal.
_NARROWEST = 1e-6
_BITS = {"uint16": 16, "uint8": 8, "int8": 8, "int4": 4}


@dataclass(frozen=True, kw_only=True)
class Grid:
    """One scale and zero point for a whole tensor of activations: uint16 or uint8."""

    dtype: str
    scale: float
    zero_point: int

    def __post_init__(self) -> None:
        if self.dtype not in ("uint16", "uint8"):
            raise ValueError(f"activations cannot be {self.dtype}")
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"a scale of {self.scale}")
        if not 0 <= self.zero_point <= self.most:
            raise ValueError(f"a zero point of {self.zero_point} in {self.dtype}")

    @property
    def bits(self) -> int:
        """16 or 8."""
        return _BITS[self.dtype]

    @property
    def most(self) -> int:
        """The greatest integer; the least is 0."""
        return int((1 << self.bits) - 1)

    @property
    def offset(self) -> int:
        """AIMET's and QNN's offset."""
        return -self.zero_point

    @property
    def symmetric(self) -> bool:
        """Whether 0 lies in the middle, as the cache's does."""
        return self.zero_point == 1 << (self.bits - 1)

    def integers(self, values: Floats) -> NDArray[Any]:
        """The nearest integers, half to even, as ONNX's QuantizeLinear rounds."""
        rounded = np.rint(values / np.float32(self.scale)) + np.float32(self.zero_point)
        whole: NDArray[Any] = np.clip(rounded, 0, self.most).astype(self.dtype)
        return whole

    def floats(self, integers: NDArray[Any]) -> Floats:
        """What those integers stand for, as ONNX's DequantizeLinear computes it."""
        moved = integers.astype(np.int32) - self.zero_point
        return np.asarray(moved.astype(np.float32) * np.float32(self.scale))


def between(low: float, high: float, *, bits: int = 16) -> Grid:
    """An asymmetric grid over [low, high], widened to hold 0 (Jacob et al., arXiv 1712.05877,
    section 3: 0 must be exact)."""
    if not (math.isfinite(low) and math.isfinite(high)) or low > high:
        raise ValueError(f"a range from {low} to {high}")
    low, high = min(low, 0.0), max(high, 0.0)
    if high - low < _NARROWEST:
        high = low + _NARROWEST
    most = (1 << bits) - 1
    scale = _single((high - low) / most)
    return Grid(dtype=f"uint{bits}", scale=scale, zero_point=min(max(round(-low / scale), 0), most))


def around(reach: float, *, bits: int = 8) -> Grid:
    """A symmetric grid over [-reach, reach] with its zero in the middle, as the cache has it."""
    if not math.isfinite(reach) or reach < 0:
        raise ValueError(f"a range of {reach} around 0")
    middle = 1 << (bits - 1)
    scale = _single(max(reach, _NARROWEST) / (middle - 1))
    return Grid(dtype=f"uint{bits}", scale=scale, zero_point=middle)


def _single(value: float) -> float:
    """As float32, which is what a model file holds."""
    return float(np.float32(value))


@dataclass(frozen=True, kw_only=True)
class Integers:
    """A quantised weight [in, out]: value ≈ values * scales, the zero point is 0.

    Int4 must be so: HTP takes an asymmetric int4 weight and computes something else, silently.
    """

    values: NDArray[np.int8]  # [in, out]
    scales: Floats  # [out] for whole channels, [in / block, out] for blocks
    bits: int  # 4 or 8
    block: int = 0  # 0: one scale for a whole output channel

    def __post_init__(self) -> None:
        least, most = limits(self.bits)
        if self.values.dtype != np.int8 or self.values.ndim != 2:
            raise ValueError("a weight's integers are int8 in two dimensions")
        if self.values.size and (self.values.min() < least or self.values.max() > most):
            raise ValueError(f"a weight's integers leave {least} … {most}")
        inputs, outputs = self.values.shape
        shape = (inputs // self.block, outputs) if self.block else (outputs,)
        if self.block and inputs % self.block:
            raise ValueError(f"{inputs} inputs are no whole number of blocks of {self.block}")
        if self.scales.shape != shape:
            raise ValueError(f"scales {self.scales.shape} where {shape} belong")
        if not (np.isfinite(self.scales).all() and (self.scales > 0).all()):
            raise ValueError("a weight's scale is not a positive number")

    @property
    def dtype(self) -> str:
        """int4 or int8."""
        return f"int{self.bits}"

    def floats(self) -> Floats:
        """The weight that these integers stand for, [in, out]."""
        scales = np.repeat(self.scales, self.block, axis=0) if self.block else self.scales
        return self.values * scales


def joined(pieces: Sequence[Integers]) -> Integers:
    """Pieces of a weight side by side: their output channels in order."""
    first = pieces[0]
    return Integers(
        values=np.concatenate([piece.values for piece in pieces], axis=1),
        scales=np.concatenate([piece.scales for piece in pieces], axis=-1),
        bits=first.bits,
        block=first.block,
    )


def limits(bits: int) -> tuple[int, int]:
    """The least and the greatest integer of a symmetric weight."""
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1


def packed(values: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Int4 two in a byte, the first in the low half (ONNX, "4 bit integer types")."""
    flat = values.reshape(-1).view(np.uint8) & 0x0F
    if len(flat) % 2:
        flat = np.append(flat, np.uint8(0))
    return np.asarray(flat[0::2] | (flat[1::2] << 4), np.uint8)


def unpacked(data: NDArray[np.uint8], shape: Sequence[int]) -> NDArray[np.int8]:
    """The int4 values that `packed` stored."""
    both = np.empty(2 * len(data), np.uint8)
    both[0::2], both[1::2] = data & 0x0F, data >> 4
    signed = both.astype(np.int8)
    signed[signed > 7] -= 16
    return signed[: math.prod(shape)].reshape(shape)


def activation_entry(name: str, grid: Grid) -> dict[str, Any]:
    """AIMET's entry of an activation, or of a parameter that has one grid."""
    return {
        "name": name,
        "bw": grid.bits,
        "dtype": "INT",
        "enc_type": "PER_TENSOR",
        "is_sym": grid.symmetric,
        "scale": [grid.scale],
        "offset": [grid.offset],
    }


def weight_entry(name: str, *, bits: int, block: int, scales: Floats) -> dict[str, Any]:
    """AIMET's entry of a symmetric weight; scales of blocks row by row, [in / block, out]."""
    entry = {
        "name": name,
        "bw": bits,
        "dtype": "INT",
        "enc_type": "PER_BLOCK" if block else "PER_CHANNEL",
        "is_sym": True,
        # Nine digits say a float32, and are half of what Python would write.
        "scale": [float(f"{scale:.9g}") for scale in scales.reshape(-1).tolist()],
        "offset": [limits(bits)[0]] * scales.size,
    }
    if block:
        entry["block_size"] = block
    return entry


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A parameter's encoding: a grid, or a symmetric weight's scales."""

    name: str
    grid: Grid | None = None
    scales: Floats | None = None
    bits: int = 0
    block: int = 0

    def entry(self) -> dict[str, Any]:
        """AIMET's entry."""
        if self.grid is not None:
            return activation_entry(self.name, self.grid)
        assert self.scales is not None
        return weight_entry(self.name, bits=self.bits, block=self.block, scales=self.scales)


def write_encodings(
    file: Path, activations: Mapping[str, Grid], parameters: Iterable[Parameter]
) -> None:
    """AIMET's encodings file, format 1.0.0, in the order of names, an entry a line.

    One entry at a time is in memory as text: blocks have a scale for each 16 to 64 weights.
    """
    lists: dict[str, Iterable[dict[str, Any]]] = {
        "activation_encodings": (activation_entry(n, activations[n]) for n in sorted(activations)),
        "param_encodings": (p.entry() for p in sorted(parameters, key=lambda p: p.name)),
    }
    with file.open("w", encoding="utf-8", newline="\n") as out:
        out.write(f'{{\n"version": "{AIMET_VERSION}"')
        for key, entries in lists.items():
            out.write(f',\n"{key}": [')
            for number, entry in enumerate(entries):
                out.write((",\n" if number else "\n") + json.dumps(entry, separators=(",", ":")))
            out.write("\n]")
        out.write("\n}\n")
