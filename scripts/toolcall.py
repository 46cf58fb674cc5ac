"""Any program run by a stage: its log passed on as it comes, its last words where it ends badly.

What mlc_llm, Gradle, apksigner and others say differs; colours and progress bars are taken out.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

_CHUNK = 1 << 16
_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
# What Python's logging puts before a line: [date] LEVEL file.py:LINE:
_HEAD = re.compile(r"^\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\] [A-Z]+ \S+\.py:\d+: ")
# tqdm's bar:  37%|███▋      | 112/305 [00:01<00:02, 88.0it/s]
_BAR = re.compile(r"\|\s*(\d+)/(\d+) \[")
_RAISED = re.compile(
    r"(?:\w+\.)*\w*(?:Error|Exception|Exit|Interrupt)\b|argument \S+: |unrecognized arguments: "
)
_GRADLE = "* What went wrong:"

Told = Callable[[int, int], None]


class ToolError(RuntimeError):
    """A program ended badly. `code` is its exit code (negative: the signal that ended it),
    `lines` all that it said."""

    def __init__(self, name: str, code: int, lines: Sequence[str]) -> None:
        if code < 0:
            super().__init__(f"{name} crashed ({signal.Signals(-code).name})")
        else:
            super().__init__(f"{name} ended with {code}: {last_words(lines)}")
        self.code = code
        self.lines = tuple(lines)


def plain(line: str) -> str:
    """A line without its colours."""
    return _COLOUR.sub("", line)


def bar(line: str) -> tuple[int, int] | None:
    """How far a progress bar is, and how far it goes; None for any other line."""
    found = _BAR.search(line)
    return (int(found[1]), int(found[2])) if found else None


def last_words(lines: Sequence[str]) -> str:
    """The line that tells best why a program ended: its last exception, else its last line.

    Gradle says it in the middle, under a heading.
    """
    said = [_HEAD.sub("", plain(line)).strip() for line in lines if bar(line) is None]
    said = [line for line in said if line]
    if _GRADLE in said[:-1]:
        return said[said.index(_GRADLE) + 1]
    raised = [line for line in said if _RAISED.match(line)]
    return (raised or said or ["it said nothing"])[-1]


def call(
    name: str,
    command: Sequence[str],
    env: Mapping[str, str],
    *,
    told: Told | None = None,
    cwd: Path | None = None,
    quiet: bool = False,
) -> list[str]:
    """Run any program, pass its log on, and give its lines without colours."""
    if not quiet:
        print(f"$ {' '.join(command)}", file=sys.stderr, flush=True)
    lines = []
    with subprocess.Popen(
        list(command),
        env=dict(env),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as child:
        assert child.stdout
        for line in _lines(child.stdout):
            lines.append(line)
            step = bar(line)
            if step and told:
                told(*step)
            if step is None and not quiet:
                print(line, file=sys.stderr, flush=True)
    if child.returncode != 0:
        if quiet:
            print("\n".join(lines), file=sys.stderr, flush=True)
        raise ToolError(name, child.returncode, lines)
    return lines


def _lines(pipe: IO[bytes]) -> Iterator[str]:
    """Lines as they come; a progress bar's states, which end in a carriage return, as well."""
    held = b""
    while chunk := os.read(pipe.fileno(), _CHUNK):
        *whole, held = re.split(rb"[\r\n]+", held + chunk)
        yield from (plain(part.decode("utf-8", "replace")) for part in whole if part)
    if held:
        yield plain(held.decode("utf-8", "replace"))
