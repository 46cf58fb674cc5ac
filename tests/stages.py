"""One program of scripts/ run as an executor runs it: by some Python, in folders of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekiln.home import project

SCRIPTS = project() / "scripts"


@dataclass(frozen=True, kw_only=True)
class Ran:
    """How a stage ended, what it said and where it left its outputs."""

    code: int
    events: list[dict[str, Any]]
    log: str
    out: Path

    @property
    def error(self) -> str:
        """The error's line, or nothing."""
        return self._told("text")

    @property
    def remedy(self) -> str:
        """What the error says that can be done, or nothing."""
        return self._told("remedy")

    def notes(self) -> str:
        """All notes together."""
        return "\n".join(e["text"] for e in self.events if e["event"] == "note")

    def _told(self, what: str) -> str:
        return str(next((e.get(what, "") for e in self.events if e["event"] == "error"), ""))

    def made(self, name: str) -> dict[str, Any]:
        """A JSON file among the outputs."""
        return dict(json.loads((self.out / name).read_text(encoding="utf-8")))


def run_stage(
    program: str,
    place: Path,
    *,
    python: str | Path = sys.executable,
    inputs: Mapping[str, Path] | None = None,
    params: object = None,
    env: Mapping[str, str] | None = None,
) -> Ran:
    """Run a program (FOLDER/NAME below scripts/) in a folder; `env` is added to its environment."""
    for folder in ("in", "out", "home"):
        (place / folder).mkdir(parents=True, exist_ok=True)
    for name, source in (inputs or {}).items():
        (place / "in" / name).symlink_to(source)
    (place / "params.json").write_text(json.dumps(params or {}), encoding="utf-8")
    done = subprocess.run(
        [str(python), str(SCRIPTS / f"{program}.py")],
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        check=False,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(place / "home"),
            "PYTHONHASHSEED": "0",
            "SOURCE_DATE_EPOCH": "0",
            "PYTHONPATH": str(SCRIPTS),
            "KILN_IN": str(place / "in"),
            "KILN_OUT": str(place / "out"),
            "KILN_PARAMS": str(place / "params.json"),
            "KILN_CPUS": "2",
            **(env or {}),
        },
    )
    events = [json.loads(line) for line in done.stdout.splitlines()]
    return Ran(code=done.returncode, events=events, log=done.stderr, out=place / "out")
