"""What the unit tests share: a toolchain without packages, stages run by this very Python."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgekiln.errors import KilnError
from edgekiln.executors.base import Executor
from edgekiln.executors.native import NativeExecutor
from edgekiln.home import project
from edgekiln.pipeline import Input, Output, Pipeline, Stage
from edgekiln.plan import Planner
from edgekiln.runner import Done, Limits, Place, Runner
from edgekiln.store import Store


class Heard:
    """A reporter that keeps what it was told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.progress: list[tuple[str, float, float | None]] = []
        self.endings: list[tuple[str, str]] = []
        self.results: dict[str, Any] = {}
        self.error: KilnError | None = None

    def say(self, text: str) -> None:
        self.said.append(text)

    def started(self, task: str, what: str) -> None:
        self.said.append(f"{task}: {what}")

    def progressed(self, task: str, done: float, total: float | None, unit: str, what: str) -> None:
        self.progress.append((task, done, total))

    def ended(self, task: str, how: str, figures: Mapping[str, Any]) -> None:
        self.endings.append((task, how))

    def result(self, name: str, value: Any, text: str) -> None:
        self.results[name] = value

    def failed(self, error: KilnError) -> None:
        self.error = error

    def close(self) -> None:
        pass

    def how(self, task: str) -> list[str]:
        """How a task ended, each time it did."""
        return [how for name, how in self.endings if name == task]


class Bench:
    """A store, a scripts folder and a runner in one temporary folder."""

    def __init__(
        self,
        root: Path,
        toolchain: Any,
        *,
        memory: int = 1 << 30,
        executor: Callable[[], Executor] = lambda: NativeExecutor(lambda _: Path(sys.executable)),
    ) -> None:
        self.root = root
        self.executor = executor
        self.toolchains = {"plain": toolchain}
        self.scripts = root / "scripts"
        self.scripts.mkdir(exist_ok=True)
        source = project() / "scripts" / "stagekit.py"
        (self.scripts / "stagekit.py").write_text(source.read_text(encoding="utf-8"))
        self.limits = Limits(cpus=2, memory=memory)
        self.store = Store(root / "store")
        self.heard = Heard()

    def program(self, name: str, body: str) -> str:
        """Write a stage's program: `body` is the inside of run(stage)."""
        text = "import os, sys, time, json\nfrom pathlib import Path\nimport stagekit\n\n\n"
        text += "def run(stage):\n" + textwrap.indent(textwrap.dedent(body), "    ")
        text += "\n\nstagekit.main(run)\n"
        (self.scripts / name).write_text(text, encoding="utf-8")
        return name

    def run(
        self, pipeline: Pipeline, elsewhere: Mapping[str, Place] | None = None
    ) -> dict[str, Done]:
        """Plan and run a pipeline, some of its stages elsewhere."""
        planner = Planner(self.store, self.toolchains, self.heard, self.scripts)
        runner = Runner(
            store=self.store,
            executor=self.executor(),
            planner=planner,
            reporter=self.heard,
            limits=self.limits,
            logs=self.root / "logs",
            elsewhere=elsewhere,
        )
        return runner.run(pipeline, planner.plan(pipeline))


def stage(name: str, program: str, *, memory: int = 1 << 20, **inputs: Input) -> Stage:
    """A stage with one output, `made`."""
    return Stage(
        name=name,
        toolchain="plain",
        program=program,
        inputs=inputs,
        outputs=(Output(name="made"),),
        memory=memory,
    )


def write_json(path: Path, value: Any) -> Path:
    """JSON into a file, for tests that need one."""
    path.write_text(json.dumps(value), encoding="utf-8")
    return path
