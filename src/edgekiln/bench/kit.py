"""What the measurements share: figures, a scratch place, and edgekiln run as users run it."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekiln.errors import StageError
from edgekiln.home import home, project


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One median with the samples behind it. `aim` is the most it should be, if there is one."""

    name: str
    samples: tuple[float, ...]
    unit: str
    aim: float | None = None
    note: str = ""

    @property
    def median(self) -> float:
        """The middle sample."""
        return statistics.median(self.samples)

    def shown(self) -> str:
        """The median with its unit, and how far the samples lie apart."""
        low, high = min(self.samples), max(self.samples)
        spread = f" ({low:.3g} to {high:.3g})" if len(self.samples) > 1 else ""
        return f"{self.median:.3g} {self.unit}{spread}"

    def aim_shown(self) -> str:
        """The aim, if there is one."""
        return "" if self.aim is None else f"at most {self.aim:g}"

    def verdict(self) -> str:
        """Whether the aim is met."""
        if self.aim is None:
            return ""
        return "met" if self.median <= self.aim else "MISSED"

    def line(self) -> str:
        """The figure in one line."""
        parts = (f"{self.name}: {self.shown()}", self.aim_shown(), self.verdict(), self.note)
        return "; ".join(p for p in parts if p)

    def plain(self) -> dict[str, Any]:
        """The figure for machines."""
        return {**dataclasses.asdict(self), "median": self.median}


@dataclass(frozen=True, kw_only=True)
class Context:
    """Where measurements are taken and how often."""

    scratch: Path
    repeat: int

    @classmethod
    @contextmanager
    def make(cls, repeat: int) -> Iterator[Context]:
        """A scratch folder beside the cache (the same disk), removed at the end."""
        home().mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix="bench-", dir=home()))
        try:
            yield cls(scratch=scratch, repeat=repeat)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def fresh_home(self, name: str) -> Path:
        """A cache with an empty store that shares models, prefixes and bases with the user's."""
        place = self.scratch / name
        place.mkdir()
        for part in home().iterdir():
            if part.is_dir() and part.name not in ("store", "logs") and part != self.scratch:
                (place / part.name).symlink_to(part)
        return place


def kiln(arguments: list[str], cache: Path, cwd: Path) -> float:
    """Run a command line in a process of its own; seconds. Raises StageError if it fails."""
    return _finished(arguments, cache, cwd)[0]


def results(arguments: list[str], cache: Path, cwd: Path) -> dict[str, Any]:
    """What a build found out, by name. Raises StageError if it fails."""
    _, said = _finished([*arguments, "--json"], cache, cwd)
    events = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    return {e["name"]: e["value"] for e in events if e["event"] == "result"}


def _finished(arguments: list[str], cache: Path, cwd: Path) -> tuple[float, str]:
    """Seconds, and everything that was printed."""
    with start(arguments, cache, cwd) as process:
        began = process.began
        said, _ = process.communicate()
        spent = time.perf_counter() - began
    if process.returncode:
        raise StageError(f"kiln {' '.join(arguments)} failed", why=said.strip()[-300:])
    return spent, said


class Started(subprocess.Popen[str]):
    """A process that knows when it was started."""

    began: float


def start(arguments: list[str], cache: Path, cwd: Path) -> Started:
    """Start a command line without waiting for it."""
    env = {**os.environ, "EDGEKILN_HOME": str(cache), "PYTHONPATH": str(project() / "src")}
    began = time.perf_counter()
    process = Started(
        [sys.executable, "-m", "edgekiln", *arguments],
        env=env,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    process.began = began
    return process
