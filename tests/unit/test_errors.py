"""Errors: each class has its own code, and the documentation knows them all."""

from __future__ import annotations

import re

from edgekiln import errors
from edgekiln.errors import KilnError, nearest
from edgekiln.home import project

CLASSES = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, KilnError)]


def test_each_class_has_a_code_of_its_own() -> None:
    codes = [c.exit_code for c in CLASSES]
    assert len(set(codes)) == len(codes)
    assert not {0, 130, 137} & set(codes)


def test_the_documentation_lists_every_code_and_kind() -> None:
    text = (project() / "docs" / "errors.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| (\d+) \| (\w+) \|", text, re.MULTILINE))
    assert listed == {str(c.exit_code): c.kind for c in CLASSES}


def test_three_lines() -> None:
    error = KilnError("it broke", why="too hot", remedy="wait")
    assert error.lines() == ["error: it broke", "why:   too hot", "do:    wait"]
    assert KilnError("it broke").lines() == ["error: it broke"]


def test_the_nearest_name() -> None:
    assert nearest("quant_bits", ["quant_bit", "hqq"]) == "did you mean quant_bit?"
    assert nearest("zzz", ["b", "a"]) == "one of: a, b"
