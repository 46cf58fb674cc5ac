"""Rotary positions, against what the formulas say by hand."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path[:0] = [str(SCRIPTS), str(SCRIPTS / "qnn")]

import rope  # noqa: E402

LLAMA3 = {
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192.0,
}


def test_frequencies_fall_from_one_by_the_same_step() -> None:
    got = rope.inverse_frequencies(8, 10000.0, None)
    assert got == pytest.approx([1, 0.1, 0.01, 0.001], rel=1e-6)


def test_llama3_keeps_short_waves_slows_long_ones_and_blends_between() -> None:
    plain = rope.inverse_frequencies(64, 500000.0, None)
    scaled = rope.inverse_frequencies(64, 500000.0, LLAMA3)
    waves = 2 * math.pi / plain
    short, long = waves < 8192 / 4, waves > 8192
    between = ~short & ~long
    assert short.any() and long.any() and between.any()
    assert np.array_equal(scaled[short], plain[short])
    assert scaled[long] == pytest.approx(plain[long] / 32)
    share = (8192 / waves[between] - 1) / 3
    expected = plain[between] * (share + (1 - share) / 32)
    assert scaled[between] == pytest.approx(expected, rel=1e-5)


def test_rows_are_the_cosine_and_sine_of_position_times_frequency() -> None:
    frequencies = rope.inverse_frequencies(6, 100.0, None)
    cos, sin = rope.tables(np.array([0, 3, 511]), frequencies)
    assert cos.shape == sin.shape == (1, 1, 3, 3)
    assert cos.dtype == sin.dtype == np.float32
    assert cos[0, 0, 0].tolist() == [1, 1, 1]
    assert sin[0, 0, 0].tolist() == [0, 0, 0]
    assert cos[0, 0, 1, 0] == pytest.approx(math.cos(3))
    assert sin[0, 0, 2, 2] == pytest.approx(math.sin(511 * float(frequencies[2])), abs=1e-5)
