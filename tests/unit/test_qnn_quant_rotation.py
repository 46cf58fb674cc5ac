"""Rotations: orthogonal, exact, and good for what they are there for."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path[:0] = [str(SCRIPTS), str(SCRIPTS / "qnn")]

import rotate  # noqa: E402

SPEC = {"hidden": 24, "head_dim": 8, "heads": 4, "kv_heads": 2, "qk_norm": False}


def _matrix(turn: rotate.Rotation) -> Any:
    return turn.after(np.eye(turn.size, dtype=np.float32))


@pytest.mark.parametrize("size", [1, 2, 3, 20, 64, 96, 576, 896, 1536])
def test_a_rotation_of_any_size_is_orthogonal(size: int) -> None:
    matrix = _matrix(rotate.rotation(size)).astype(np.float64)
    assert abs(matrix @ matrix.T - np.eye(size)).max() < 1e-6


def test_before_is_the_transpose_of_after() -> None:
    turn = rotate.rotation(48)
    weight = np.random.default_rng(0).normal(size=(48, 10)).astype(np.float32)
    assert turn.before(weight) == pytest.approx(_matrix(turn).T @ weight, abs=1e-5)


def test_the_same_seed_gives_the_same_rotation() -> None:
    assert np.array_equal(_matrix(rotate.rotation(96)), _matrix(rotate.rotation(96)))
    assert not np.array_equal(_matrix(rotate.rotation(96)), _matrix(rotate.rotation(96, seed=8)))


def test_a_massive_activation_is_spread_over_all_channels() -> None:
    rows = np.random.default_rng(0).normal(size=(5, 576)).astype(np.float32)
    rows[:, 3] = 25_000
    turned = rotate.rotation(576).after(rows)
    assert abs(turned).max() < 25_000 / 5
    assert np.linalg.norm(turned, axis=1) == pytest.approx(np.linalg.norm(rows, axis=1))


def _layer(random: np.random.Generator, **more: Any) -> dict[str, Any]:
    def some(*shape: int) -> Any:
        return random.normal(size=shape).astype(np.float32)

    return {
        "input_norm.weight": some(24),
        "post_norm.weight": some(24),
        "q_proj.weight": some(24, 32),
        "k_proj.weight": some(24, 16),
        "v_proj.weight": some(24, 16),
        "o_proj.weight": some(32, 24),
        "gate_proj.weight": some(24, 40),
        "up_proj.weight": some(24, 40),
        "down_proj.weight": some(40, 24),
        **{name: some(*shape) for name, shape in more.items()},
    }


def _normed(x: Any, gain: Any) -> Any:
    return x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + 1e-6) * gain


def test_a_turned_layer_reads_and_writes_the_turned_stream() -> None:
    random = np.random.default_rng(4)
    weights = _layer(random, **{"v_proj.bias": (16,), "q_proj.bias": (32,)})
    turns = rotate.Turns.of(SPEC, rotate=True)
    made = rotate.layer(weights, turns)
    x = random.normal(size=(6, 24)).astype(np.float32)
    before = _normed(x, weights["input_norm.weight"])
    after = _normed(turns.stream.after(x), made["input_norm.weight"])
    for role in ("q", "k"):
        name = f"{role}_proj.weight"
        assert after @ made[name] == pytest.approx(before @ weights[name], abs=1e-4)
    # Four query heads share two value heads: a head's mix of values is undone by o_proj.
    values = before @ weights["v_proj.weight"] + weights["v_proj.bias"]
    turned = after @ made["v_proj.weight"] + made["v_proj.bias"]
    four = values.reshape(6, 2, 1, 8).repeat(2, axis=2).reshape(6, 32)
    turned_four = turned.reshape(6, 2, 1, 8).repeat(2, axis=2).reshape(6, 32)
    expected = turns.stream.after(four @ weights["o_proj.weight"])
    assert turned_four @ made["o_proj.weight"] == pytest.approx(expected, abs=1e-3)
    assert made["q_proj.bias"] is weights["q_proj.bias"]


def test_without_rotation_the_gains_are_folded_all_the_same() -> None:
    weights = _layer(np.random.default_rng(5))
    made = rotate.layer(weights, rotate.Turns.of(SPEC, rotate=False))
    folded = weights["input_norm.weight"][:, None] * weights["q_proj.weight"]
    assert made["q_proj.weight"] == pytest.approx(folded)
    assert (made["input_norm.weight"] == 1).all()
    assert made["down_proj.weight"] == pytest.approx(weights["down_proj.weight"])


def _balance(norms: bool) -> tuple[rotate.Balance, dict[str, Any]]:
    random = np.random.default_rng(6)
    reach = np.exp(random.normal(size=(2, 1, 8)) * 2).astype(np.float32)
    low, high = {"layers.3.k_rotary": -reach}, {"layers.3.k_rotary": reach / 2}
    return rotate.Balance.of(3, low, high, {**SPEC, "qk_norm": norms}), {"reach": reach}


@pytest.mark.parametrize("norms", [False, True])
def test_balanced_keys_and_queries_give_the_same_scores(norms: bool) -> None:
    scaling, _ = _balance(norms)
    random = np.random.default_rng(7)
    keys, queries = random.normal(size=(2, 8)), random.normal(size=(4, 8))
    names = [f"layers.3.{r}_rotary" for r in "qk"]
    factors = scaling.factors(names)
    new_keys = keys * factors["layers.3.k_rotary"][:, 0]
    new_queries = queries * factors["layers.3.q_rotary"][:, 0]
    for head in range(4):
        before = queries[head] @ keys[head // 2]
        assert new_queries[head] @ new_keys[head // 2] == pytest.approx(before, rel=1e-5)


def test_the_two_halves_of_a_turned_pair_share_a_divisor() -> None:
    scaling, _ = _balance(False)
    assert np.array_equal(scaling.divisor[:, :4], scaling.divisor[:, 4:])


def test_balanced_keys_reach_equally_far() -> None:
    scaling, seen = _balance(False)
    before = seen["reach"][:, 0]
    after = before * scaling.factors(["layers.3.k_rotary"])["layers.3.k_rotary"][:, 0]

    def spread(reach: Any) -> float:
        pairs = reach.reshape(2, 2, 4).max(axis=1)
        return float(pairs.max() / pairs.min())

    assert spread(after) < min(1.01, spread(before)) or spread(before) > 16


def test_balance_changes_projections_or_norms_never_both() -> None:
    weights = {
        f"layers.3.{name}": np.ones(shape, np.float32)
        for name, shape in {
            "q_proj.weight": (24, 32),
            "k_proj.weight": (24, 16),
            "q_proj.bias": (32,),
            "q_norm.weight": (8,),
            "k_norm.weight": (8,),
            "v_proj.weight": (24, 16),
        }.items()
    }
    plain, _ = _balance(False)
    normed, _ = _balance(True)
    assert set(normed.weights(weights)) == {"layers.3.q_norm.weight", "layers.3.k_norm.weight"}
    assert set(plain.weights({n: w for n, w in weights.items() if "norm" not in n})) == {
        "layers.3.q_proj.weight",
        "layers.3.k_proj.weight",
        "layers.3.q_proj.bias",
    }
