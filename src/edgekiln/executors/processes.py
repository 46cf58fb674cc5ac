"""What executors share that run stages as processes of this machine: native and rootfs.

A guard (guard.py) sees to it that nothing of a stage outlives it or this process; the network is
cut with a namespace of its own where the kernel lets it; memory is watched. How a stage is laid
out and started is each executor's own.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekiln.errors import EngineError
from edgekiln.executors.base import StageResult, StageRun, read_event
from edgekiln.executors.kills import Killed, kernel_kills, who
from edgekiln.executors.procwatch import tree_rss

if TYPE_CHECKING:
    from edgekiln.toolchain import Toolchain

_WATCH_SECONDS = 0.25
# How long the guard may take to end a stage before its whole group is killed.
_PATIENCE = 10.0
_GUARD = Path(__file__).with_name("guard.py")
# As in a container, whatever the caller's: tools write modes into archives.
_UMASK = 0o022


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A program with its arguments and its whole environment, ready to be started in `folder`."""

    words: Sequence[str]
    env: Mapping[str, str]
    folder: Path


class Processes:
    """Starts stages under a guard, watches and ends them; `_laid_out` is the executor's own."""

    def __init__(self) -> None:
        if sys.platform != "linux":
            raise EngineError(
                "stages cannot run as processes of this system",
                why="the toolchains' wheels are for Linux",
                remedy="start Docker Desktop and use --executor docker",
            )
        self._cut = network_cut()
        self._running: set[subprocess.Popen[str]] = set()
        self._guard = threading.Lock()
        self._cancelled = False

    def tidy(self) -> None:
        """Nothing to do: guards end the stages of a build that was killed."""

    def run(self, toolchain: Toolchain, run: StageRun) -> StageResult:
        """Run a stage's program and wait for it."""
        with self._laid_out(toolchain, run) as launch:
            return self._watched(launch, run)

    def cancel(self) -> None:
        """End every running stage."""
        self._cancelled = True
        with self._guard:
            running = list(self._running)
        for process in running:
            _let_go(process)

    def close(self) -> None:
        """Nothing is held."""

    def _laid_out(self, toolchain: Toolchain, run: StageRun) -> AbstractContextManager[Launch]:
        """Lay out a stage's inputs and places; the program and its environment."""
        raise NotImplementedError

    def _network(self) -> str:
        """What is said of a stage's network."""
        return "network cut" if self._cut else "network NOT cut: the kernel does not allow it"

    def _watched(self, launch: Launch, run: StageRun) -> StageResult:
        cut = [] if run.network else self._cut
        command = [*cut, *_guarded(bool(cut)), *launch.words]
        began, before = time.monotonic(), kernel_kills()
        with run.log.open("w", encoding="utf-8") as log:
            process = self._start(command, launch, log.fileno())
            watch = _MemoryWatch(process, run.memory)
            watch.start()
            try:
                _read_events(process, run)
                code = process.wait()
            finally:
                self._end(process)
                watch.stop()
        seconds = time.monotonic() - began
        killed = None
        if watch.tripped:
            killed = Killed.LIMIT
        elif code in (-signal.SIGKILL, 128 + signal.SIGKILL) and not self._cancelled:
            killed = who(before, kernel_kills())
        return StageResult(exit_code=code, seconds=seconds, killed=killed, held=watch.held)

    def _start(self, command: list[str], launch: Launch, log: int) -> subprocess.Popen[str]:
        with self._guard:
            if self._cancelled:
                raise KeyboardInterrupt
            process = subprocess.Popen(
                command,
                env=launch.env,
                cwd=launch.folder,
                stdin=subprocess.PIPE,  # the guard's lifeline
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
                umask=_UMASK,
            )
            self._running.add(process)
            return process

    def _end(self, process: subprocess.Popen[str]) -> None:
        """Whatever happened, nothing of the stage is left running."""
        _let_go(process)
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            _kill_group(process)
            process.wait()
        if process.stdout:
            process.stdout.close()
        with self._guard:
            self._running.discard(process)


def network_cut() -> list[str]:
    """The words to put before a command so that it has no network; empty where refused.

    Root may always make a namespace; others may where user namespaces are allowed. Inside an
    unprivileged container (a rented GPU box) neither works.
    """
    unshare = shutil.which("unshare")
    if unshare is None:
        return []
    for words in ([unshare, "--net"], [unshare, "--user", "--map-root-user", "--net"]):
        probe = subprocess.run([*words, "true"], capture_output=True, check=False)
        if probe.returncode == 0:
            return words
    return []


def _guarded(own_network: bool) -> list[str]:
    loopback = ["--loopback"] if own_network else []
    return [sys.executable, "-I", "-S", str(_GUARD), *loopback]


def _read_events(process: subprocess.Popen[str], run: StageRun) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if event := read_event(line):
            run.on_event(event)


def _let_go(process: subprocess.Popen[str]) -> None:
    """Close the guard's lifeline: it ends the stage, whatever processes that has become."""
    assert process.stdin is not None
    with contextlib.suppress(OSError, ValueError):
        process.stdin.close()


def _kill_group(process: subprocess.Popen[str]) -> None:
    # start_new_session made the guard the leader of a group of its own.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


class _MemoryWatch(threading.Thread):
    """Ends a stage that holds more than its limit, before the kernel ends something else."""

    def __init__(self, process: subprocess.Popen[str], limit: int) -> None:
        super().__init__(daemon=True)
        self._process, self._limit = process, limit
        self._over = threading.Event()
        self.tripped = False
        self.held: int | None = None

    def run(self) -> None:
        while not self._over.wait(_WATCH_SECONDS):
            # Once the guard is gone there is nothing to count: what was there before is told.
            self.held = tree_rss(self._process.pid) or self.held
            if (self.held or 0) > self._limit:
                self.tripped = True
                _let_go(self._process)
                return

    def stop(self) -> None:
        self._over.set()
        self.join()
