"""What a job told, told again: to a terminal as if it ran there, or summed up in a line."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekiln.errors import JobError, KilnError
from edgekiln.jobs import STOPPED, Job, State
from edgekiln.report import BarReporter, JsonReporter, Reporter, amount

Event = Mapping[str, Any]
_LOOK_SECONDS = 0.2
_NEEDS = {"error": {"what", "kind", "exit_code"}, "result": {"name"}}
_FIGURES = ("seconds", "peak_memory", "size", "log")


def events(path: Path, goes_on: Callable[[], bool] = lambda: False) -> Iterator[Event]:
    """What stands in a file of events, and what is written to it for as long as it goes on."""
    with path.open("rb") as file:
        pending = b""
        while True:
            more = goes_on()  # asked first: what was written before the end is still read
            while block := file.read(1 << 16):
                *lines, pending = (pending + block).split(b"\n")
                yield from filter(None, map(_event, lines))
            if not more:
                return
            time.sleep(_LOOK_SECONDS)


def _event(line: bytes) -> Event | None:
    """An event out of a line; None for one that is damaged, or that a killed process left half."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    whole = isinstance(found, dict) and isinstance(found.get("event"), str)
    return found if whole and _NEEDS.get(found["event"], set()) <= found.keys() else None


def told(job: Job, *, follow: bool = False) -> Iterator[Event]:
    """A job's events; with `follow` until it ends."""
    return events(job.events, lambda: follow and job.state() is State.RUNNING)


def replay(seen: Iterable[Event], reporter: Reporter) -> KilnError | None:
    """Show events as the build itself would; returns the error they end with, where they do."""
    error: KilnError | None = None
    for event in seen:
        show(event, reporter)
        if event["event"] == "error":
            error = as_error(event)
    return error


def show(event: Event, reporter: Reporter) -> None:
    """Hand one event to a reporter; errors are left to whoever ends the command with them."""
    if isinstance(reporter, JsonReporter):
        reporter.again(event)
        return
    kind, task = event["event"], str(event.get("task", ""))
    if kind == "note":
        reporter.say(str(event.get("text", "")))
    elif kind == "started":
        reporter.started(task, str(event.get("what", "")))
        if isinstance(reporter, BarReporter):
            reporter.backdate(task, time.time() - float(event["time"]))
    elif kind == "progress":
        total, unit = event.get("total"), str(event.get("unit", ""))
        reporter.progressed(task, event.get("done", 0), total, unit, str(event.get("what", "")))
    elif kind == "ended":
        figures = {name: event[name] for name in _FIGURES if name in event}
        reporter.ended(task, str(event.get("how", "")), figures)
    elif kind == "result":
        reporter.result(str(event["name"]), event.get("value"), str(event.get("text", "")))


def as_error(event: Event) -> KilnError:
    """The error that an event tells of, with its own kind and exit code."""
    error = KilnError(str(event["what"]), why=event.get("why", ""), remedy=event.get("remedy", ""))
    error.kind, error.exit_code = str(event["kind"]), int(event["exit_code"])
    return error


def how_it_ended(job: Job, error: KilnError | None) -> KilnError | None:
    """What a job that is over ends a command with: its own error, or that it was killed."""
    state = job.state()
    if state is State.KILLED:
        return JobError(
            f"job {job.id} was killed",
            why="its process is gone and left no exit code: SIGKILL, the kernel for want of "
            "memory, or the machine went down",
            remedy="give the build again: finished stages are kept",
        )
    if error is None and state is State.FAILED:
        lines = job.output.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        error = KilnError(f"job {job.id} failed", why=lines[-1] if lines else "")
        error.remedy, error.exit_code = f"see {job.output}", job.exit_code or 1
    if state is State.STOPPED:
        error = KilnError(f"job {job.id} was stopped", remedy="finished stages are kept")
        error.kind, error.exit_code = "stopped", STOPPED
    return error


@dataclass
class Seen:
    """What a job's events come to so far."""

    stages: dict[str, str] = field(default_factory=dict)
    at: dict[str, str] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    last: str = ""

    @property
    def now(self) -> str:
        """What it does now, in a few words."""
        return ", ".join(f"{task} {far}".strip() for task, far in self.at.items()) or self.last


def sum_up(seen: Iterable[Event]) -> Seen:
    """Where a job is, by what it told."""
    found = Seen()
    for event in seen:
        kind, task = event["event"], str(event.get("task", ""))
        if kind == "started":
            found.stages[task], found.at[task] = "running", ""
        elif kind == "progress" and task:
            done, total = event.get("done", 0), event.get("total")
            found.at[task] = amount(done, total, str(event.get("unit", "")))
        elif kind == "ended":
            found.at.pop(task, None)
            found.stages[task] = found.last = str(event.get("how", ""))
            found.last = f"{task}: {found.last}"
        elif kind == "result":
            found.results[str(event["name"])] = event.get("value")
        elif kind == "error":
            found.last = f"error: {event['what']}"
    return found
