"""Stages as plain processes on this machine, from the toolchain's locked parts in a prefix.

For rented GPU boxes, where no container engine can run, and for machines without one. The
network is cut with a namespace of its own where the kernel lets it; memory is watched; a guard
(guard.py) sees to it that nothing of a stage outlives it or this process.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from edgekiln.errors import EngineError
from edgekiln.executors.base import StageResult, StageRun, environment, read_event
from edgekiln.executors.kills import Killed, kernel_kills, who
from edgekiln.executors.kitlinks import kits_ready, link_kits, make_kits
from edgekiln.executors.procwatch import tree_rss

if TYPE_CHECKING:
    from edgekiln.progress import Progress
    from edgekiln.toolchain import Toolchain

_WATCH_SECONDS = 0.25
# How long the guard may take to end a stage before its whole group is killed.
_PATIENCE = 10.0
_GUARD = Path(__file__).with_name("guard.py")


class NativeExecutor:
    """Runs stages in a toolchain's prefix."""

    name = "native"

    def __init__(self, python_of: Callable[[Toolchain], Path] | None = None) -> None:
        if sys.platform != "linux":
            raise EngineError(
                "stages cannot run natively on this system",
                why="the toolchains' wheels are for Linux",
                remedy="start Docker Desktop and use --executor docker",
            )
        self._python_of = python_of or _prefix_python
        self._cut = network_cut()
        self._running: set[subprocess.Popen[str]] = set()
        self._guard = threading.Lock()
        self._cancelled = False

    def describe(self) -> str:
        """Where stages will run, and whether their network is cut."""
        network = "network cut" if self._cut else "network NOT cut: the kernel does not allow it"
        return f"native on this machine ({network})"

    def ready(self, toolchain: Toolchain) -> bool:
        """Whether the prefix is filled and the kits are there."""
        from edgekiln.prefix import prefix_ready

        return kits_ready(toolchain) and prefix_ready(toolchain)

    def prepare(self, toolchain: Toolchain, progress: Progress) -> None:
        """Unpack the toolchain's kits and fill its prefix from its lock."""
        from edgekiln.prefix import build_prefix

        if toolchain.kits:
            make_kits([toolchain], progress)
        build_prefix(toolchain, progress)

    def tidy(self) -> None:
        """Nothing to do: guards end the stages of a build that was killed."""

    def drift(self, toolchain: Toolchain) -> list[str]:
        """Nothing: a prefix holds wheels only, and those are exact."""
        return []

    def run(self, toolchain: Toolchain, run: StageRun) -> StageResult:
        """Run a stage's program and wait for it."""
        python, cut = self._python_of(toolchain), [] if run.network else self._cut
        command = [*cut, *_guarded(bool(cut)), str(python), "-s", str(run.scripts / run.program)]
        began, before = time.monotonic(), kernel_kills()
        with run.log.open("w", encoding="utf-8") as log:
            process = self._start(command, _layout(toolchain, run, python), run, log.fileno())
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

    def cancel(self) -> None:
        """End every running stage."""
        self._cancelled = True
        with self._guard:
            running = list(self._running)
        for process in running:
            _let_go(process)

    def close(self) -> None:
        """Nothing is held."""

    def _start(
        self, command: list[str], env: dict[str, str], run: StageRun, log: int
    ) -> subprocess.Popen[str]:
        with self._guard:
            if self._cancelled:
                raise KeyboardInterrupt
            process = subprocess.Popen(
                command,
                env=env,
                cwd=run.work / "scratch",
                stdin=subprocess.PIPE,  # the guard's lifeline
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
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


def _prefix_python(toolchain: Toolchain) -> Path:
    from edgekiln.prefix import prefix_python

    return prefix_python(toolchain)


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


def _layout(toolchain: Toolchain, run: StageRun, python: Path) -> dict[str, str]:
    """Lay out in/ and scratch/ beside out/, and say so in the environment."""
    inputs, scratch = run.work / "in", run.work / "scratch"
    inputs.mkdir()
    scratch.mkdir()
    for name, path in run.inputs.items():
        (inputs / name).symlink_to(path.absolute())
    params = run.work / "params.json"
    params.write_text(json.dumps(run.params), encoding="utf-8")
    ways = f"{python.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    kits = str(link_kits(toolchain, python.parent.parent)) if toolchain.kits else ""
    return {
        **environment(toolchain, run, scripts=str(run.scripts), path=ways, kits=kits),
        "KILN_IN": str(inputs),
        "KILN_OUT": str(run.work / "out"),
        "KILN_PARAMS": str(params),
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
    }


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
