"""Rotary positions: inverse frequencies, and the cos and sin rows that the graph takes as inputs.

The arithmetic is transformers' (modeling_rope_utils.py), in float32 as there, so that both sides
round alike at far positions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def inverse_frequencies(head_dim: int, theta: float, scaling: Mapping[str, float] | None) -> Floats:
    """theta^(-2i / head_dim) for each pair i; [head_dim / 2], in radians a position."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    plain = (1.0 / np.power(np.float32(theta), exponents)).astype(np.float32)
    return plain if scaling is None else _llama3(plain, scaling)


def _llama3(plain: Floats, scaling: Mapping[str, float]) -> Floats:
    """Llama 3.1's scaling (transformers, `_compute_llama3_parameters`).

    Waves longer than original / low are slowed by `factor`, those shorter than original / high
    kept; in between the two are blended linearly in original / wavelength.
    """
    factor, original = scaling["factor"], scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    wavelength = 2 * math.pi / plain
    slowed = np.where(wavelength > original / low, plain / factor, plain)
    blend = (original / wavelength - low) / (high - low)
    blended = (1 - blend) * slowed / factor + blend * slowed
    between = (wavelength >= original / high) & (wavelength <= original / low)
    return np.where(between, blended, slowed).astype(np.float32)


def tables(positions: NDArray[np.int64], frequencies: Floats) -> tuple[Floats, Floats]:
    """cos and sin for `positions` [T]; each [1, 1, T, head_dim / 2]."""
    angles = positions.astype(np.float32)[:, None] * frequencies[None, :]
    return np.cos(angles)[None, None], np.sin(angles)[None, None]
