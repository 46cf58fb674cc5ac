"""Errors: each class has its own code, and the documentation knows them all."""

from __future__ import annotations

import ast
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


# What a user can cause by what is given; pipeline.py's are mistakes of a backend.
_USERS = {"AccessError", "ModelError", "UsageError"}
_FILES = [p for p in (project() / "src").rglob("*.py") if p.name != "pipeline.py"]


def _without_remedy(text: str) -> list[int]:
    """The lines of the calls of the users' errors that say nothing of what to do."""
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    made = [c for c in calls if isinstance(c.func, ast.Name) and c.func.id in _USERS]
    return [c.lineno for c in made if "remedy" not in {k.arg for k in c.keywords}]


def test_what_a_user_can_cause_comes_with_what_to_do() -> None:
    assert _without_remedy('raise UsageError("no", why="so")') == [1]
    found = {str(p): _without_remedy(p.read_text(encoding="utf-8")) for p in _FILES}
    assert not {name: lines for name, lines in found.items() if lines}
