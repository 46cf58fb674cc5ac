"""The action's own steps, run as a runner runs them: a real build, its page, its failures."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from edgekiln.home import project
from tests.builds.kit import LENIENT
from tests.unit.test_action import ACTION, SAID, steps

pytestmark = pytest.mark.slow


@dataclass(kw_only=True)
class Runner:
    """Runs steps that are shell, with what GitHub's runner puts into their environment."""

    root: Path
    given: dict[str, str]
    outputs: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def page(self) -> str:
        """The job's page."""
        path = self.root / "summary"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def run(self, name: str) -> subprocess.CompletedProcess[str]:
        """Run the step with that id, and keep its outputs."""
        (step,) = [step for step in steps() if step.get("id") == name]
        told = self.root / f"output-{name}"
        told.touch()
        env = {key: self._filled(str(value)) for key, value in step.get("env", {}).items()}
        own = {
            "GITHUB_ACTION_PATH": str(ACTION),
            "GITHUB_OUTPUT": str(told),
            "GITHUB_STEP_SUMMARY": str(self.root / "summary"),
            "RUNNER_OS": "Linux",
            "RUNNER_TEMP": str(self.root),
        }
        # GitHub's own words for `shell: bash`.
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
            env={**os.environ, **own, **env},
            cwd=self.root,
            capture_output=True,
            text=True,
            check=False,
        )
        pairs = (line.partition("=")[::2] for line in told.read_text().splitlines())
        self.outputs[name] = dict(pairs)
        return done

    def _filled(self, text: str) -> str:
        """An expression's value; those of `env:` name an input or an output, and no more."""

        def value(found: re.Match[str]) -> str:
            if found["input"]:
                default: Any = SAID["inputs"][found["input"]]["default"]
                return self.given.get(found["input"], str(default))
            return self.outputs[found["step"]][found["output"]]

        given, made = (
            r"inputs\.(?P<input>[\w-]+)",
            r"steps\.(?P<step>\w+)\.outputs\.(?P<output>\w+)",
        )
        pattern = rf"\$\{{\{{ (?:{given}|{made}) \}}\}}"
        return re.sub(pattern, value, text)


def test_a_build_leaves_its_bundle_and_its_page(
    own_store: Path, tmp_path: Path, tiny: Path
) -> None:
    given = {
        "backend": "mnn",
        "model": str(tiny),
        "executor": "native",
        "home": str(own_store),
        "options": f"{' '.join(LENIENT)}\n--system-prompt 'one; touch harm $(touch harm) `x`'\n",
    }
    runner = Runner(root=tmp_path, given=given)
    prepared = runner.run("prepare")
    assert prepared.returncode == 0, prepared.stderr
    assert runner.outputs["prepare"]["home"] == str(own_store)
    assert re.fullmatch(r"[0-9a-f]{16}", runner.outputs["prepare"]["locks"])
    built = runner.run("build")
    assert built.returncode == 0, built.stdout + built.stderr
    place = Path(runner.outputs["build"]["bundle"])
    assert place == tmp_path / "bundle" and (place / "manifest.json").is_file()
    assert "\x1b[" not in built.stdout and "% |" not in built.stdout, "a log has no bars"
    assert not list(tmp_path.rglob("harm"))
    assert f"### {tiny.name} for mnn" in runner.page
    assert "one; touch harm $(touch harm) 'x'" in runner.page, "the option, as code"
    assert re.search(r"^\| export \| mnn \| native \| ", runner.page, re.MULTILINE)
    digest = re.search(r"`mnn_models/\S+/llm\.mnn` \| \S+ \S+ \| `([0-9a-f]{64})`", runner.page)
    assert digest


def test_a_build_that_fails_says_so_on_the_page_with_its_own_code(tmp_path: Path) -> None:
    given = {"backend": "mnn", "options": "--quant-bit 5", "home": str(tmp_path / "home")}
    runner = Runner(root=tmp_path, given=given)
    runner.run("prepare")
    built = runner.run("build")
    assert built.returncode == 2
    assert "::error::" in built.stdout and "quant_bit" in built.stdout
    assert "### The build failed (exit code 2)" in runner.page
    assert "one of: 2, 4, 8, 16" in runner.page
    assert "bundle" not in runner.outputs["build"]


def test_other_systems_are_refused_at_once(tmp_path: Path) -> None:
    runner = Runner(root=tmp_path, given={})
    command = [str(ACTION / "prepare")]
    env = {**os.environ, "RUNNER_OS": "Windows", "HOME_WANTED": "", "RUNNER_TEMP": str(tmp_path)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, "::error::" in done.stderr) == (7, True)
    assert not runner.page


def test_the_locks_name_the_caches(tmp_path: Path) -> None:
    """Another lock is another cache: what is in it would not be taken."""
    copy = tmp_path / "copy"
    for name in ("toolchains", "images", "requirements.txt", ".github/actions/build"):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-r", str(project() / name), str(copy / name)], check=True)
    found = []
    for change in ("", "\n"):
        lock = copy / "toolchains" / "mnn.lock.json"
        lock.write_text(lock.read_text() + change)
        told = tmp_path / f"told{len(found)}"
        env = {
            "RUNNER_OS": "Linux",
            "HOME_WANTED": "",
            "RUNNER_TEMP": "/t",
            "GITHUB_OUTPUT": str(told),
        }
        program = copy / ".github/actions/build/prepare"
        subprocess.run([str(program)], env={**os.environ, **env}, check=True)
        found.append(dict(line.split("=", 1) for line in told.read_text().splitlines())["locks"])
    assert found[0] != found[1]
