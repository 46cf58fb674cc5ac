"""What the tests with real processes and containers share."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgekiln.home import project
from edgekiln.store import Store

NOBODY = 65534


def until(true: Callable[[], bool], what: str, seconds: float = 30) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"in {seconds:g} s it did not come to this: {what}"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether a process runs (one that only waits to be counted does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextmanager
def open_folder() -> Iterator[Path]:
    """A temporary folder that other users can reach: pytest's own are for one user only."""
    with tempfile.TemporaryDirectory(prefix="edgekiln-test-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def as_nobody() -> list[str]:
    """The words before a command that make it run as a user who owns nothing."""
    setpriv = shutil.which("setpriv")
    if os.getuid() != 0 or setpriv is None:
        pytest.skip("only root can become another user, with setpriv")
    return [setpriv, f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]


def python(*words: str, **env: str) -> tuple[list[str], dict[str, str]]:
    """A command of this Python, which finds edgekiln and the tests, and its environment."""
    path = os.pathsep.join([str(project() / "src"), str(project())])
    return [sys.executable, *words], {**os.environ, "PYTHONPATH": path, **env}


def nobodys_python(*words: str, **env: str) -> tuple[list[str], dict[str, str]]:
    """The same as a user who owns nothing: by a Python that this user may read."""
    (own, *rest), full = python(*words, **env)
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    full["PYTHONPATH"] += os.pathsep + packages
    for found in filter(None, (own, shutil.which("python3", path="/usr/bin:/usr/local/bin"))):
        probe = [*as_nobody(), "sh", "-c", '"$0" -c "import edgekiln.build, filelock"', found]
        if call(probe, full).returncode == 0:
            return [*as_nobody(), found, *rest], full
    pytest.skip("there is no Python that other users may run")


def call(
    command: list[str], env: Mapping[str, str], cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run to the end and keep what it says."""
    return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, check=False)


# A model of random weights answers nonsense at four bits as it does at thirty-two.
LENIENT = ("--min-cosine", "0", "--max-perplexity-ratio", "1000")


@dataclass(kw_only=True)
class Kiln:
    """The real command line, with a home of its own."""

    home: Path
    here: Path

    def begin(self, *words: str, **env: str) -> subprocess.Popen[str]:
        """Start a command."""
        command, full = self.command(*words, **env)
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, env=full, cwd=self.here, text=True, stdout=pipe, stderr=pipe
        )

    def __call__(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        command, full = self.command(*words, **env)
        return call(command, full, self.here)

    def command(self, *words: str, **env: str) -> tuple[list[str], dict[str, str]]:
        """A command line and its environment."""
        return python("-m", "edgekiln", *words, EDGEKILN_HOME=str(self.home), **env)

    def left(self) -> list[Path]:
        """Workspaces that nobody has cleared away."""
        return list(self.home.glob("store/v1/doing/*"))

    def finished(self) -> list[str]:
        """The names of the stages in the store, each of them whole."""
        store = Store(self.home / "store")
        try:
            entries = list(store.entries())
            assert all(store.find(entry.key) for entry in entries), "an entry is damaged"
            return sorted(str(entry.meta["stage"]) for entry in entries)
        finally:
            store.close()


def three_lines(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The error a command ended with: what, why, what to do; and no traceback."""
    assert "Traceback" not in done.stderr and "Traceback" not in done.stdout, done.stderr
    lines = done.stderr.strip().splitlines()
    first = max(i for i, line in enumerate(lines) if line.startswith("error: "))
    return lines[first:]
