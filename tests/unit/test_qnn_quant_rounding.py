"""GPTQ, and the grids of integers: numpy alone, against the formulas done the long way."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path[:0] = [str(SCRIPTS), str(SCRIPTS / "qnn")]

import gptq  # noqa: E402
import quantspec  # noqa: E402


def _inputs(size: int, *, rows: int = 600, seed: int = 1) -> Any:
    """Correlated inputs of very different size, [rows, size]."""
    random = np.random.default_rng(seed)
    mixing = random.normal(size=(size, size)) / np.sqrt(size)
    return (random.normal(size=(rows, size)) @ mixing * np.exp(random.normal(size=size))).astype(
        np.float32
    )


def _weight(inputs: int, outputs: int, *, seed: int = 2) -> Any:
    return np.random.default_rng(seed).normal(size=(inputs, outputs)).astype(np.float32)


def _loss(rows: Any, weight: Any, made: quantspec.Integers) -> float:
    return float(np.square(rows @ (weight - made.floats())).sum())


def _textbook(weight: Any, moments: Any, scales: Any) -> Any:
    """Algorithm 1 of the GPTQ paper, without its blocks: by the inverse's upper Cholesky factor."""
    damped = moments.astype(np.float64) + gptq.DAMPING * moments.diagonal().mean() * np.eye(
        len(moments)
    )
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    rest, made = weight.astype(np.float64), np.zeros(weight.shape, np.int8)
    for k in range(len(weight)):
        made[k] = np.clip(np.rint(rest[k] / scales), -8, 7)
        error = (rest[k] - made[k] * scales) / upper[k, k]
        rest[k:] -= np.outer(upper[k, k:], error)
    return made


def test_the_factor_is_of_the_damped_moments() -> None:
    rows = _inputs(200)
    moments = rows.T @ rows
    known = gptq.factor(moments)
    again = (known.unit * known.weight) @ known.unit.T
    damped = moments + gptq.DAMPING * moments.diagonal().mean() * np.eye(200)
    ordered = damped[np.ix_(known.order, known.order)]
    assert abs(again - ordered).max() < 1e-3 * float(moments.max())
    assert np.allclose(np.tril(known.unit, -1), 0) and np.allclose(known.unit.diagonal(), 1)
    assert (np.diff(moments.diagonal()[known.order]) <= 0).all()


def test_the_integers_are_those_of_the_papers_algorithm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gptq, "_CLIPS", (1.0,))
    rows, weight = _inputs(300), _weight(300, 40)
    moments = rows.T @ rows
    made = gptq.quantise(weight, gptq.factor(moments, sort=False), bits=4)
    same = made.values == _textbook(weight, moments, made.scales)
    # A number in the very middle between two integers may fall either way.
    assert same.mean() > 0.995


@pytest.mark.parametrize("block", [0, 16, 32, 64])
@pytest.mark.parametrize("bits", [4, 8])
def test_gptq_loses_less_than_the_nearest_integers(bits: int, block: int) -> None:
    rows, weight = _inputs(192), _weight(192, 50)
    known = gptq.factor(rows.T @ rows, sort=not block)
    plain = _loss(rows, weight, gptq.nearest(weight, bits=bits, block=block))
    assert _loss(rows, weight, gptq.quantise(weight, known, bits=bits, block=block)) < 0.6 * plain


def test_clips_lose_less_than_the_whole_range(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, weight = _inputs(192), _weight(192, 50)
    weight[7] *= 6
    known = gptq.factor(rows.T @ rows)
    clipped = _loss(rows, weight, gptq.quantise(weight, known, bits=4))
    monkeypatch.setattr(gptq, "_CLIPS", (1.0,))
    assert clipped < _loss(rows, weight, gptq.quantise(weight, known, bits=4))


def test_a_channel_is_rounded_the_same_whatever_stands_beside_it() -> None:
    rows, weight = _inputs(160), _weight(160, 96)
    known = gptq.factor(rows.T @ rows)
    whole = gptq.quantise(weight, known, bits=4)
    pieces = [gptq.quantise(weight[:, c : c + 32], known, bits=4) for c in (0, 32, 64)]
    joined = quantspec.joined(pieces)
    assert (whole.values == joined.values).mean() > 0.99
    assert whole.scales == pytest.approx(joined.scales, rel=0.06)


def test_a_small_block_beats_a_large_one_where_sizes_differ() -> None:
    rows, weight = _inputs(192), _weight(192, 50)
    weight[::16] *= 8
    known = gptq.factor(rows.T @ rows, sort=False)
    losses = [
        _loss(rows, weight, gptq.quantise(weight, known, bits=4, block=b)) for b in (16, 32, 64)
    ]
    assert losses == sorted(losses)


def test_inputs_that_are_never_seen_keep_their_nearest_integers() -> None:
    rows, weight = _inputs(64), _weight(64, 20)
    rows[:, 5] = 0
    made = gptq.quantise(weight, gptq.factor(rows.T @ rows), bits=8)
    assert abs(made.floats()[5] - weight[5]).max() <= made.scales.max() / 2 + 1e-6


def test_blocks_refuse_a_sorted_factor() -> None:
    rows, weight = _inputs(64), _weight(64, 8)
    with pytest.raises(ValueError, match="own order"):
        gptq.quantise(weight, gptq.factor(rows.T @ rows), bits=4, block=16)


def test_all_zeros_stay_zeros() -> None:
    rows = _inputs(64)
    made = gptq.quantise(np.zeros((64, 8), np.float32), gptq.factor(rows.T @ rows), bits=4)
    assert not made.values.any() and np.isfinite(made.scales).all()


@pytest.mark.parametrize("shape", [(2, 8), (3, 5), (64, 7)])
def test_int4_survives_packing(shape: tuple[int, int]) -> None:
    values = np.random.default_rng(3).integers(-8, 8, shape).astype(np.int8)
    data = quantspec.packed(values)
    assert data.nbytes == (values.size + 1) // 2
    assert np.array_equal(quantspec.unpacked(data, shape), values)


def test_the_first_of_two_int4_lies_in_the_low_half() -> None:
    assert quantspec.packed(np.array([[1, -2]], np.int8)).tolist() == [0xE1]


@pytest.mark.parametrize("low, high", [(-3.0, 5.0), (0.5, 4.0), (-9.0, -1.0), (0.0, 0.0)])
def test_zero_is_exact_on_every_grid(low: float, high: float) -> None:
    grid = quantspec.between(low, high)
    zero = np.zeros(1, np.float32)
    assert grid.floats(grid.integers(zero))[0] == 0
    ends = np.array([low, high], np.float32)
    assert grid.floats(grid.integers(ends)) == pytest.approx(ends, abs=grid.scale)


def test_the_caches_grid_has_its_zero_in_the_middle() -> None:
    grid = quantspec.around(12.7)
    assert (grid.dtype, grid.zero_point, grid.offset, grid.symmetric) == ("uint8", 128, -128, True)
    assert grid.scale == pytest.approx(0.1)
    assert grid.integers(np.array([-12.7, 12.7], np.float32)).tolist() == [1, 255]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_range_that_is_not_finite_makes_no_grid(value: float) -> None:
    with pytest.raises(ValueError, match="range"):
        quantspec.between(0.0, value)
    with pytest.raises(ValueError, match="range"):
        quantspec.around(value)


def test_integers_that_leave_their_range_are_refused() -> None:
    with pytest.raises(ValueError, match="leave -8 … 7"):
        quantspec.Integers(
            values=np.full((2, 2), 8, np.int8), scales=np.ones(2, np.float32), bits=4
        )


def test_encodings_are_aimets(tmp_path: Path) -> None:
    scales = np.array([[0.5, 0.25], [1.0, 2.0]], np.float32)
    weight = quantspec.weight_entry("w", bits=4, block=16, scales=scales)
    assert weight["enc_type"] == "PER_BLOCK" and weight["block_size"] == 16
    assert weight["scale"] == [0.5, 0.25, 1.0, 2.0] and weight["offset"] == [-8] * 4
    file = tmp_path / "encodings.json"
    parameter = quantspec.Parameter(name="w", bits=4, block=16, scales=scales)
    quantspec.write_encodings(file, {"x": quantspec.between(-1.0, 3.0)}, [parameter])
    made = json.loads(file.read_text(encoding="utf-8"))
    assert made["version"] == "1.0.0" and made["param_encodings"] == [weight]
    (entry,) = made["activation_encodings"]
    least = entry["scale"][0] * entry["offset"][0]
    assert least == pytest.approx(-1.0, abs=1e-4) and (entry["bw"], entry["is_sym"]) == (16, False)
