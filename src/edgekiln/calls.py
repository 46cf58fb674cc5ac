"""One way to call another program and hear what it said."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path


def call(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    input: str = "",
    timeout: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run to the end and return code, output and errors as text; never raises for the program.

    A program that is missing gives 127, one that takes too long is ended and gives 124, as in a
    shell.
    """
    try:
        return subprocess.run(
            command,
            env=env,
            input=input,
            timeout=timeout,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
    except OSError as error:
        return subprocess.CompletedProcess(command, 127, "", str(error))
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"no end after {timeout:g} s")


def call_logged(
    command: Sequence[str],
    log: Path,
    hear: Callable[[str], None],
    *,
    env: Mapping[str, str] | None = None,
) -> int:
    """Run to the end and return the code; each line goes to `log` and to `hear`.

    Whatever ends the wait, the program does not outlive it.
    """
    process = subprocess.Popen(
        command,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    assert process.stdout is not None
    try:
        with log.open("w", encoding="utf-8") as stream:
            for line in process.stdout:
                stream.write(line)
                hear(line)
        return process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


def last_words(done: subprocess.CompletedProcess[str]) -> str:
    """The line of its errors that says most: the last that names an error, else the last."""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith(("e:", "error", "fatal"))]
    return (errors or lines or [f"it ended with {done.returncode} and said nothing"])[-1][:300]
