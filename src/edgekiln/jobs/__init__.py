"""Builds that go on by themselves: a process each, which no lost terminal ends.

    jobs/ID/            in EDGEKILN_HOME
      job.json          the command line, where and when it was given
      process.json      host, process and when that began: whom to send a signal
      events.jsonl      what it tells, as --json does
      output.txt        whatever else it printed
      ended.json        its exit code; missing where it was killed outright
      lock              held for as long as the process lives

A job lives as long as its lock is held: that outlasts no process, and no number of a process that
is given to another one, and no restart of the machine. Nothing of the job's environment is
written down: a token in it stays there.
"""

from __future__ import annotations

import enum
import json
import shlex
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekiln.errors import UsageError, nearest
from edgekiln.home import home

STOPPED = 130


class State(enum.Enum):
    """How a job is."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    STOPPED = "stopped"
    KILLED = "killed"


@dataclass(frozen=True, kw_only=True)
class Job:
    """A build that was started to go on by itself; `began` in seconds since 1970."""

    id: str
    place: Path
    words: tuple[str, ...]
    folder: str
    began: float

    @property
    def title(self) -> str:
        """What was asked for, without what is the same for every job."""
        return shlex.join(word for word in self.words if word != "--json")

    @property
    def events(self) -> Path:
        """What it tells, one JSON object a line."""
        return self.place / "events.jsonl"

    @property
    def output(self) -> Path:
        """Whatever else it printed."""
        return self.place / "output.txt"

    @property
    def exit_code(self) -> int | None:
        """The build's own exit code; None while it runs, and where it was killed outright."""
        code = _read(self.place / "ended.json").get("exit_code")
        return int(code) if code is not None else None

    @property
    def ended(self) -> float | None:
        """When it ended, in seconds since 1970; None where that is not known."""
        when = _read(self.place / "ended.json").get("time")
        return float(when) if when is not None else None

    @property
    def process(self) -> str:
        """Host, process and when that began, as `owners` writes it; "" before it has begun."""
        return str(_read(self.place / "process.json").get("process", ""))

    def state(self) -> State:
        """How it is now."""
        from edgekiln.locking import is_held

        # The exit code is written before the lock is let go of.
        alive = is_held(self.place / "lock")
        code = self.exit_code
        if code is None:
            return State.RUNNING if alive else State.KILLED
        if code == STOPPED:
            return State.STOPPED
        return State.FAILED if code else State.DONE


def folder() -> Path:
    """Where the jobs are kept."""
    return home() / "jobs"


def all_jobs() -> list[Job]:
    """Every job that is remembered, the newest first."""
    found = [_load(path) for path in folder().glob("*/job.json")]
    return sorted(filter(None, found), key=lambda job: job.began, reverse=True)


def find(named: str = "") -> Job:
    """The job of that name, or whose name begins so; the newest where none is named.

    Raises UsageError where there is none, or more than one.
    """
    jobs = all_jobs()
    if not jobs:
        raise UsageError("there is no job", remedy="`kiln build … --detach` starts one")
    if not named:
        return jobs[0]
    fitting = [job for job in jobs if job.id.startswith(named)]
    exact = [job for job in fitting if job.id == named]
    if len(exact or fitting) == 1:
        return (exact or fitting)[0]
    if fitting:
        raise UsageError(f"{named} is the beginning of {len(fitting)} jobs", remedy=_ids(fitting))
    raise UsageError(f"there is no job {named}", remedy=nearest(named, (job.id for job in jobs)))


def find_running(named: str = "") -> Job:
    """As `find`; without a name, the one that runs. Raises UsageError where several do."""
    if named:
        return find(named)
    running = [job for job in all_jobs() if job.state() is State.RUNNING]
    if len(running) > 1:
        raise UsageError(f"{len(running)} jobs are running: which one?", remedy=_ids(running))
    if not running:
        raise UsageError("no job is running", remedy="`kiln status` lists those that were")
    return running[0]


def _ids(jobs: Iterable[Job]) -> str:
    return f"one of: {', '.join(job.id for job in jobs)}"


def write(path: Path, value: Mapping[str, Any]) -> None:
    """JSON that is whole whenever it is seen."""
    fresh = path.with_name(f".{path.name}")
    fresh.write_text(json.dumps(dict(value)) + "\n", encoding="utf-8")
    fresh.replace(path)


def _load(path: Path) -> Job | None:
    said = _read(path)
    if not said:
        return None
    return Job(
        id=path.parent.name,
        place=path.parent,
        words=tuple(map(str, said.get("words", ()))),
        folder=str(said.get("folder", "")),
        began=float(said.get("began", 0.0)),
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def seconds(job: Job) -> float | None:
    """How long it took, or runs already; None where it was killed and nobody saw when."""
    if (ended := job.ended) is not None:
        return ended - job.began
    return time.time() - job.began if job.state() is State.RUNNING else None
