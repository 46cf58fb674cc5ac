"""Options: one dataclass is the schema of flags, recipes and defaults."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from edgekiln.backends import options_by_backend
from edgekiln.errors import UsageError
from edgekiln.options import option, parse, refuse_idle, specs


@dataclass(frozen=True, kw_only=True)
class Oven:
    """A little of everything."""

    bits: int = option(4, "bits a weight", choices=(4, 8))
    block: int = option(64, "group size", low=0, high=512)
    fast: bool = option(True, "hurry")
    clip: float = option(0.5, "how much", low=0, high=1)
    data: str | None = option(None, "a file", path=True)


def test_defaults_need_nothing() -> None:
    assert parse(Oven, {}, where="x") == Oven()


@pytest.mark.parametrize(
    ("name", "given", "meant"),
    [
        ("bits", "8", 8),
        ("bits", 8, 8),
        ("fast", "no", False),
        ("fast", True, True),
        ("clip", "0.25", 0.25),
        ("clip", 1, 1.0),
        ("data", "a.txt", "a.txt"),
        ("data", None, None),
    ],
)
def test_values_become_the_options_type(name: str, given: object, meant: object) -> None:
    assert getattr(parse(Oven, {name: given}, where="x"), name) == meant


@pytest.mark.parametrize(
    ("name", "given", "remedy"),
    [
        ("bits", 5, "one of: 4, 8"),
        ("bits", "four", "whole number"),
        ("bits", 4.5, "whole number"),
        ("bits", True, "whole number"),
        ("bits", None, "whole number"),
        ("block", 513, "from 0 to 512"),
        ("block", -1, "from 0 to 512"),
        ("fast", "perhaps", "true or false"),
        ("clip", "nan", "from 0 to 1"),
        ("data", 7, "text"),
    ],
)
def test_wrong_values_are_refused_by_path(name: str, given: object, remedy: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(Oven, {name: given}, where="r.yaml: options")
    assert caught.value.what.startswith(f"r.yaml: options.{name} ")
    assert remedy in caught.value.remedy


def test_an_unknown_option_gets_the_nearest_name() -> None:
    with pytest.raises(UsageError) as caught:
        parse(Oven, {"blocks": 1}, where="x")
    assert caught.value.remedy == "did you mean block?"


def test_specs_keep_the_order_and_the_types() -> None:
    found = specs(Oven)
    assert list(found) == ["bits", "block", "fast", "clip", "data"]
    assert [s.type for s in found.values()] == [int, int, bool, float, str]
    assert found["data"].optional and not found["bits"].optional


@dataclass(frozen=True, kw_only=True)
class Pair:
    """An option that does something with some values of another only."""

    tool: str = option("own", "which", choices=("own", "other"))
    turn: bool = option(True, "what own does", needs=("tool", ("own",)))


@pytest.mark.parametrize("turn", [True, False])
def test_an_option_that_would_be_passed_over_is_refused(turn: bool) -> None:
    chosen = parse(Pair, {"tool": "other", "turn": turn}, where="options")
    with pytest.raises(UsageError, match="turn is for tool own, and tool is other") as caught:
        refuse_idle(chosen, {"tool", "turn"}, where="options")
    assert caught.value.remedy == "leave turn out, or take tool own"
    refuse_idle(chosen, {"tool"}, where="options")
    refuse_idle(Pair(), {"turn"}, where="options")


@dataclass(frozen=True, kw_only=True)
class Switch:
    """An option that does something beside a switch that is on."""

    npu: bool = option(False, "whether")
    chip: str = option("a", "which", needs=("npu", (True,)))


def test_an_option_beside_a_switch_is_refused_in_words() -> None:
    with pytest.raises(UsageError, match="chip is for npu, and npu is off") as caught:
        refuse_idle(Switch(chip="b"), {"chip"}, where="options")
    assert caught.value.remedy == "leave chip out, or add npu"
    refuse_idle(Switch(npu=True, chip="b"), {"chip"}, where="options")


def test_what_an_option_needs_is_another_option_and_values_it_can_have() -> None:
    for own in options_by_backend().values():
        by_name = {spec.name: spec for spec in own}
        for spec in (spec for spec in own if spec.needs):
            other, values = spec.needs or ("", ())
            assert values and set(values) <= set(by_name[other].choices) | {True, False}
