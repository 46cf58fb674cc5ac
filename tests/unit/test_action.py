"""The action for other people's workflows: what it names exists, what it runs can be run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from edgekiln.home import project

ACTION = project() / ".github" / "actions" / "build"
_TEXT = (ACTION / "action.yml").read_text(encoding="utf-8")
SAID: dict[str, Any] = yaml.safe_load(_TEXT)
_PROGRAMS = ("prepare", "build", "images")


def steps() -> list[dict[str, Any]]:
    """The action's steps."""
    found: list[dict[str, Any]] = SAID["runs"]["steps"]
    return found


def test_every_input_and_step_that_is_named_is_there() -> None:
    named = set(re.findall(r"\binputs\.([\w-]+)", _TEXT))
    assert named == set(SAID["inputs"])
    ids = {step["id"] for step in steps() if "id" in step}
    assert set(re.findall(r"\bsteps\.(\w+)", _TEXT)) <= ids


def test_a_step_is_named_after_it_only() -> None:
    met: set[str] = set()
    for step in steps():
        assert set(re.findall(r"\bsteps\.(\w+)", str(step))) <= met, step
        met.add(step.get("id", ""))


def test_outputs_that_are_read_are_written() -> None:
    """By our programs; those of the cache's action are its own."""
    own = {s["id"]: s["run"] for s in steps() if "run" in s and "id" in s}
    for step, output in set(re.findall(r"\bsteps\.(\w+)\.outputs\.([\w-]+)", _TEXT)):
        if step in own:
            (program,) = [name for name in _PROGRAMS if f"/{name}" in own[step]]
            assert f'"{output}=' in (ACTION / program).read_text(encoding="utf-8"), output


def test_nothing_that_a_workflow_gives_becomes_shell_text() -> None:
    for step in steps():
        assert "${{" not in step.get("run", ""), step
        assert step.get("shell") == ("bash" if "run" in step else None)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no bit for programs")
@pytest.mark.parametrize("name", _PROGRAMS)
def test_the_programs_can_be_run(name: str) -> None:
    assert os.access(ACTION / name, os.X_OK)
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash here")
    subprocess.run([bash, "-n", str(ACTION / name)], check=True)


def test_the_other_actions_are_pinned_to_a_version() -> None:
    workflows = Path(project() / ".github").rglob("*.yml")
    for path in workflows:
        for used in re.findall(r"uses: (\S+)", path.read_text(encoding="utf-8")):
            assert used.startswith("./") or re.fullmatch(r"actions/[\w/-]+@v\d+", used), used
