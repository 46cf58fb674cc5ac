"""Runs programs of scripts/ as an executor does, each by the Python of a toolchain."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.builds.tinyllm import MAKE_MODEL
from tests.stages import SCRIPTS, Ran, run_stage

TEXTS = SCRIPTS / "qnn" / "data"


@dataclass(kw_only=True)
class Stages:
    """A folder to run stages in."""

    place: Path
    folder: str = "qnn"
    count: int = field(default=0, init=False)

    def run(
        self,
        python: Path,
        program: str,
        inputs: dict[str, Path],
        env: dict[str, str],
        **params: Any,
    ) -> Ran:
        """Run a program; `env` is added to the environment."""
        self.count += 1
        place = self.place / f"{self.count}-{program}"
        wanted = f"{self.folder}/{program}"
        return run_stage(wanted, place, python=python, inputs=inputs, params=params, env=env)

    def done(self, python: Path, program: str, inputs: dict[str, Path], **params: Any) -> Path:
        """Run a program that ends well; its output folder."""
        ran = self.run(python, program, inputs, {}, **params)
        assert ran.code == 0, ran.error + ran.log[-3000:]
        return ran.out


def tiny_graph(
    stages: Stages, family: str, mnn_python: Path, qnn_python: Path, **lengths: int
) -> tuple[Path, Path]:
    """A tiny model of a family, made in the stages' folder, and its decoder graph."""
    model = stages.place / family
    command = [str(mnn_python), "-c", MAKE_MODEL, family, str(model)]
    subprocess.run(command, check=True, capture_output=True, env=os.environ)
    return model, stages.done(qnn_python, "graph", {"model": model}, **lengths) / "graph"


def ready_python(name: str) -> Path:
    """The Python of a toolchain's native prefix where it is filled already; skips the test else.

    AIMET's toolchains are large (5.7 GB for 1.34), so a test does not fetch them.
    """
    from edgekiln.prefix import prefix_python
    from edgekiln.toolchain import load_toolchain

    python = prefix_python(load_toolchain(name))
    if not python.is_file():
        pytest.skip(f"{name} has no prefix here; a build with --executor native fills it")
    return python
