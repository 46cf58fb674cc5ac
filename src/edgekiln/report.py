"""What people see while a build runs: bars on a terminal, lines in a log, JSON for machines."""

from __future__ import annotations

import errno
import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TextIO

from edgekiln import units
from edgekiln.errors import KilnError

_LINE_EVERY = 10.0


class Reporter(Protocol):
    """Hears what happens, from several threads, and shows it."""

    def say(self, text: str) -> None:
        """A line about the build as a whole."""

    def started(self, task: str, what: str) -> None:
        """A stage, an image or a download began."""

    def progressed(self, task: str, done: float, total: float | None, unit: str, what: str) -> None:
        """How far it is."""

    def ended(self, task: str, how: str, figures: Mapping[str, Any]) -> None:
        """It ended: `how` is done, cached, failed or stopped."""

    def result(self, name: str, value: Any, text: str) -> None:
        """Something the build found out: `value` for machines, `text` for people."""

    def failed(self, error: KilnError) -> None:
        """The build ended with an error."""

    def close(self) -> None:
        """Nothing more comes."""


class Task:
    """One task of a reporter, as the `Progress` that downloads and image builds expect."""

    def __init__(self, reporter: Reporter, name: str, unit: str = "B") -> None:
        self._reporter, self._name, self._unit = reporter, name, unit

    def update(self, done: float, total: float | None = None, what: str = "") -> None:
        self._reporter.progressed(self._name, done, total, self._unit, what)

    def note(self, text: str) -> None:
        self._reporter.say(f"{self._name}: {text}")


def make_reporter(*, quiet: bool | None = None, as_json: bool | None = None) -> Reporter:
    """The reporter that fits the flags (left out: the command's own) and where the output goes."""
    way = _WAYS[-1]
    if way.as_json if as_json is None else as_json:
        return JsonReporter(way.out or sys.stdout)
    if way.quiet if quiet is None else quiet:
        return QuietReporter(sys.stdout, sys.stderr)
    if sys.stderr.isatty():
        return BarReporter(sys.stdout, sys.stderr)
    return LineReporter(sys.stdout, sys.stderr)


@dataclass(frozen=True, kw_only=True)
class _Way:
    """How a command is to show things; `out` is its standard output."""

    quiet: bool = False
    as_json: bool = False
    out: TextIO | None = None


_WAYS = [_Way()]


@contextmanager
def shown_as(*, quiet: bool, as_json: bool) -> Iterator[None]:
    """What is shown inside goes the way of the command's flags, whoever makes a reporter for it."""
    _WAYS.append(_Way(quiet=quiet, as_json=as_json, out=sys.stdout))
    try:
        yield
    finally:
        _WAYS.pop()


def may_ask() -> bool:
    """Whether somebody is at the terminal who can be asked: nobody is behind --json."""
    return sys.stdin.isatty() and sys.stderr.isatty() and not _WAYS[-1].as_json


class JsonReporter:
    """One JSON object a line."""

    def __init__(self, out: TextIO) -> None:
        self._out, self._guard = out, threading.Lock()

    def _write(self, event: str, **fields: Any) -> None:
        self.again({"event": event, "time": round(time.time(), 3), **fields})

    def again(self, event: Mapping[str, Any]) -> None:
        """Write an event that is one already."""
        with self._guard:
            self._out.write(json.dumps(event, default=str) + "\n")
            self._out.flush()

    def say(self, text: str) -> None:
        self._write("note", text=text)

    def started(self, task: str, what: str) -> None:
        self._write("started", task=task, what=what)

    def progressed(self, task: str, done: float, total: float | None, unit: str, what: str) -> None:
        self._write("progress", task=task, done=done, total=total, unit=unit, what=what)

    def ended(self, task: str, how: str, figures: Mapping[str, Any]) -> None:
        self._write("ended", task=task, how=how, **figures)

    def result(self, name: str, value: Any, text: str) -> None:
        self._write("result", name=name, value=value, text=text)

    def failed(self, error: KilnError) -> None:
        fields = {"kind": error.kind, "exit_code": error.exit_code, "what": error.what}
        self._write("error", **fields, why=error.why, remedy=error.remedy)

    def close(self) -> None:
        pass


class QuietReporter:
    """Results and errors only."""

    def __init__(self, out: TextIO, err: TextIO) -> None:
        self._out, self._err, self._guard = out, err, threading.Lock()

    def say(self, text: str) -> None:
        pass

    def started(self, task: str, what: str) -> None:
        pass

    def progressed(self, task: str, done: float, total: float | None, unit: str, what: str) -> None:
        pass

    def ended(self, task: str, how: str, figures: Mapping[str, Any]) -> None:
        pass

    def result(self, name: str, value: Any, text: str) -> None:
        if text:
            self._print(text, self._out)

    def failed(self, error: KilnError) -> None:
        for line in error.lines():
            self._print(line, self._err)

    def close(self) -> None:
        pass

    def _print(self, text: str, to: TextIO) -> None:
        with self._guard, unless_gone():
            print(text, file=to, flush=True)


class LineReporter(QuietReporter):
    """Lines: a stage's beginning, its end, and now and then how far it is."""

    def __init__(self, out: TextIO, err: TextIO) -> None:
        super().__init__(out, err)
        self._told: dict[str, float] = {}

    def say(self, text: str) -> None:
        self._print(text, self._err)

    def started(self, task: str, what: str) -> None:
        self._told[task] = time.monotonic()
        self.say(f"{task}: {what}")

    def progressed(self, task: str, done: float, total: float | None, unit: str, what: str) -> None:
        now = time.monotonic()
        if now - self._told.setdefault(task, now) >= _LINE_EVERY:
            self._told[task] = now
            words = (f"{task}:", amount(done, total, unit), what)
            self.say(" ".join(w for w in words if w))

    def ended(self, task: str, how: str, figures: Mapping[str, Any]) -> None:
        self.say(f"{task}: {how}{_brief(figures)}")


class BarReporter(LineReporter):
    """One bar a task on a terminal; lines go above the bars."""

    def __init__(self, out: TextIO, err: TextIO) -> None:
        super().__init__(out, err)
        self._bars: dict[str, Any] = {}

    def started(self, task: str, what: str) -> None:
        self.say(f"{paint(task, '1')}: {what}")
        with self._guard:
            self._open(task)

    def progressed(self, task: str, done: float, total: float | None, unit: str, what: str) -> None:
        with self._guard:
            # Not `or`: an empty bar counts as false.
            bar = self._bars[task] if task in self._bars else self._open(task)
            if unit == "B" and not bar.unit_scale:
                bar.unit, bar.unit_scale = "B", True
            elif unit != "B":
                bar.unit, bar.unit_scale = f" {unit}", False
            bar.total = total
            bar.n = done
            bar.set_postfix_str(what, refresh=False)
            bar.refresh()

    def ended(self, task: str, how: str, figures: Mapping[str, Any]) -> None:
        with self._guard:
            bar = self._bars.pop(task, None)
            if bar is not None:
                bar.close()
        colour = {"failed": "31", "stopped": "33", "cached": "36"}.get(how, "32")
        self.say(f"{paint(task, '1')}: {paint(how, colour)}{_brief(figures)}")

    def backdate(self, task: str, age: float) -> None:
        """Let a task's clock say that it began `age` seconds ago."""
        with self._guard:
            if task in self._bars:
                self._bars[task].start_t = self._bars[task]._time() - age

    def close(self) -> None:
        with self._guard:
            for bar in self._bars.values():
                bar.close()
            self._bars.clear()

    def _open(self, task: str) -> Any:
        from tqdm import tqdm

        shape = "{desc:<12} {percentage:3.0f}% |{bar:24}| {n_fmt}/{total_fmt} {elapsed} {postfix}"
        bar = tqdm(desc=task, file=self._err, leave=False, bar_format=shape, dynamic_ncols=True)
        self._bars[task] = bar
        return bar

    def _print(self, text: str, to: TextIO) -> None:
        with self._guard, unless_gone():
            if self._bars:
                from tqdm import tqdm

                tqdm.write(text, file=to)
            else:
                print(text, file=to, flush=True)


@contextmanager
def unless_gone() -> Iterator[None]:
    """Print to a terminal that may have been closed: what is cleared away then must still be."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EIO:
            raise


def paint(text: str, code: str) -> str:
    """`text` in an ANSI colour, unless the terminal or the user does not want it."""
    if not sys.stderr.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\x1b[{code}m{text}\x1b[0m"


def table(rows: Sequence[tuple[str, ...]], head: tuple[str, ...]) -> str:
    """Rows in columns, under a head."""
    widths = [max(len(r[i]) for r in [head, *rows]) for i in range(len(head))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) for r in [head, *rows]]
    return "\n".join(line.rstrip() for line in lines)


def amount(done: float, total: float | None, unit: str) -> str:
    """How far something is, in a few words; "" where it has only begun."""
    if not done and not total:
        return ""  # begun, and nobody knows how much there is
    if unit == "B":
        return units.size(done) + (f" of {units.size(total)}" if total else "")
    return f"{done:g}" + (f" of {total:g}" if total else "") + f" {unit}"


def _brief(figures: Mapping[str, Any]) -> str:
    parts = []
    if (time_taken := figures.get("seconds")) is not None:
        parts.append(units.seconds(time_taken))
    if peak := figures.get("peak_memory"):
        parts.append(f"peak {units.size(peak)}")
    if made := figures.get("size"):
        parts.append(f"made {units.size(made)}")
    if log := figures.get("log"):
        parts.append(f"log {log}")
    return f" ({', '.join(parts)})" if parts else ""
