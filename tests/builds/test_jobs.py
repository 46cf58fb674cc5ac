"""Builds in the background with real stages: a terminal that is cut, a stop, a kill."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgekiln.executors.guard import descendants
from tests.builds.kit import LENIENT, Kiln, alive, python, until

pytestmark = pytest.mark.slow

TOKEN = "hf_NobodysTokenForATest"


def build(model: Path) -> list[str]:
    """A build that takes some seconds, with stages long enough to be met in their middle."""
    return ["build", "--backend", "mnn", "--executor", "native", "--model", str(model), *LENIENT]


def state(kiln: Kiln) -> dict[str, Any]:
    """The newest job, as `kiln status` knows it; nothing before there is one."""
    done = kiln("status", "--json")
    found: list[dict[str, Any]] = json.loads(done.stdout)["value"]
    return found[0] if found else {}


def pid_of(kiln: Kiln) -> int:
    """The job's process."""
    return int(state(kiln)["process"].split(":")[1])


def in_a_stage(kiln: Kiln) -> bool:
    """Whether a stage runs now: begun and not ended, and a program is there."""
    job = state(kiln)
    return "running" in job.get("stages", {}).values() and bool(descendants(pid_of(kiln)))


class Terminal:
    """A shell at a terminal of its own, which can be closed as a lost connection closes it."""

    def __init__(self, kiln: Kiln) -> None:
        command, env = kiln.command(HF_TOKEN=TOKEN, PS1="", NO_COLOR="1")
        self._kiln = command
        self.pid, self._master = pty.fork()
        if not self.pid:
            os.chdir(kiln.here)
            os.execvpe("sh", ["sh", "-i"], env)

    def type(self, *words: str) -> None:
        """Give a command line of ours."""
        line = " ".join(f"'{word}'" for word in (*self._kiln, *words))
        os.write(self._master, line.encode() + b"\n")

    def close(self) -> int:
        """Close it; returns how the shell ended. The kernel sends the session SIGHUP."""
        os.close(self._master)
        until(lambda: not alive(self.pid), "the shell ended with its terminal")
        return os.waitpid(self.pid, 0)[1]


@pytest.fixture
def terminal(kiln: Kiln) -> Iterator[Terminal]:
    """A terminal that is closed by the test."""
    made = Terminal(kiln)
    yield made
    if alive(made.pid):
        os.kill(made.pid, signal.SIGKILL)


@pytest.fixture
def running(kiln: Kiln, tiny: Path) -> Iterator[Kiln]:
    """A job in the middle of a stage."""
    started = kiln(*build(tiny), "--detach")
    assert started.returncode == 0, started.stderr
    until(lambda: in_a_stage(kiln), "a stage runs", 120)
    yield kiln
    kiln("cancel")


def test_a_terminal_that_is_cut_in_mid_stage_ends_no_job(
    kiln: Kiln, terminal: Terminal, tiny: Path
) -> None:
    terminal.type(*build(tiny), "--detach")
    until(lambda: in_a_stage(kiln), "a stage runs", 120)
    pid = pid_of(kiln)
    assert TOKEN.encode() in Path(f"/proc/{pid}/environ").read_bytes(), "it has what it needs"
    ended = terminal.close()
    assert os.WIFSIGNALED(ended) or os.WEXITSTATUS(ended) != 0, "the session was hung up"
    assert alive(pid) and state(kiln)["state"] == "running"
    waited = kiln("wait")
    place = kiln.here / "build" / tiny.name / "mnn"
    assert waited.returncode == 0, waited.stderr
    assert f"bundle: {place}" in waited.stdout
    assert (place / "manifest.json").is_file()
    assert state(kiln)["state"] == "done"
    shown = kiln("logs").stderr
    assert shown.count(": done (") == len(kiln.finished()) > 2
    for path in [path for path in kiln.home.glob("jobs/**/*") if path.is_file()]:
        assert TOKEN.encode() not in path.read_bytes(), path


def test_a_terminal_that_is_cut_ends_a_build_in_the_foreground(
    kiln: Kiln, terminal: Terminal, tiny: Path
) -> None:
    """What the job is spared: the cut reaches all that belongs to the terminal."""
    terminal.type(*build(tiny))
    until(lambda: bool(kiln.left()), "a stage runs", 120)
    of_it = descendants(terminal.pid)
    assert of_it
    terminal.close()
    until(lambda: not any(map(alive, of_it)), "the build ended")
    until(lambda: not kiln.left(), "and cleared away")


def test_one_that_is_killed_is_told_as_that(running: Kiln) -> None:
    pid = pid_of(running)
    stages = descendants(pid)
    with subprocess.Popen(
        python()[0] + ["-m", "edgekiln", "wait"],
        env=running.command()[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as waiting:
        os.kill(pid, signal.SIGKILL)
        _, said = waiting.communicate(timeout=60)
    assert waiting.returncode == 23
    assert "was killed" in said and "finished stages are kept" in said
    assert state(running)["state"] == "killed"
    until(lambda: not any(map(alive, stages)), "nothing of its stages goes on")


def test_one_that_is_cancelled_leaves_nothing(running: Kiln) -> None:
    done = running("cancel")
    assert done.returncode == 0, done.stderr
    assert "is stopped" in done.stdout
    assert running("wait").returncode == 130
    assert state(running)["state"] == "stopped"
    assert not running.left()
    assert "no job is running" in running("cancel").stderr


def test_a_terminal_shows_a_jobs_bars_and_leaves_it_alone(running: Kiln) -> None:
    """As at a build's own terminal: bars, in colour. Ctrl-C ends the looking only."""
    command, env = running.command("logs", "-f")
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    env = {**env, "TERM": "xterm"}
    env.pop("NO_COLOR", None)
    seen = b""

    def look() -> bool:
        nonlocal seen
        while select.select([master], [], [], 0)[0]:
            seen += os.read(master, 4096)
        return b"% |" in seen

    with subprocess.Popen(command, env=env, stdin=slave, stdout=slave, stderr=slave) as looking:
        until(look, "a bar is shown")
        looking.send_signal(signal.SIGINT)
    look()
    os.close(slave)
    os.close(master)
    assert b"% |" in seen and b"\x1b[1m" in seen
    assert (looking.returncode, b"goes on" in seen) == (130, True), seen
    assert state(running)["state"] == "running"
