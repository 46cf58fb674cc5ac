"""Windows hosts drive Docker Desktop: nothing of POSIX is needed to import edgekiln."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from edgekiln.home import project

# What CPython on Windows does not have.
MODULES = ("fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty")
NAMES = ("fork", "getgid", "getuid", "geteuid", "killpg", "setsid", "mkfifo", "statvfs", "chown")
SIGNALS = ("SIGKILL", "SIGHUP", "SIGCHLD", "SIGUSR1", "SIGPIPE")

IMPORT = """
import os, signal, subprocess, sys
# The standard library's own uses of them come first: it has other ways on Windows.
import asyncio, concurrent.futures, http.client, multiprocessing, pathlib, shutil, sqlite3
import tempfile, threading, urllib.request, filelock, invoke.program
modules, names, signals, wanted = [a.split(',') for a in sys.argv[1:5]]
for name in modules:
    sys.modules[name] = None
for name in names:
    vars(os).pop(name, None)
for name in signals:
    vars(signal).pop(name, None)
import importlib
for name in wanted:
    importlib.import_module(name)
"""


def modules() -> list[str]:
    """Every module of edgekiln by its name."""
    source = project() / "src"
    files = sorted((source / "edgekiln").rglob("*.py"))
    names = [".".join(file.relative_to(source).with_suffix("").parts) for file in files]
    return [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]


def import_without_posix(wanted: list[str]) -> subprocess.CompletedProcess[str]:
    """Import modules in a Python from which POSIX has been taken."""
    lists = [",".join(names) for names in (MODULES, NAMES, SIGNALS, wanted)]
    command = [sys.executable, "-c", IMPORT, *lists]
    env = {"PYTHONPATH": os.pathsep.join([str(project() / "src"), str(project())])}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def test_every_module_is_imported_without_posix() -> None:
    wanted = modules()
    assert "edgekiln.executors.native" in wanted and len(wanted) > 40
    done = import_without_posix(wanted)
    assert done.returncode == 0, done.stderr


def test_the_test_can_fail() -> None:
    assert "fcntl" in import_without_posix(["fcntl"]).stderr
    assert import_without_posix(["pty"]).returncode != 0


def test_the_commands_are_imported_without_posix() -> None:
    done = import_without_posix(["tasks"])
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("name", "crlf"), [("kiln", False), ("kiln.cmd", True)])
def test_launchers_have_the_line_ends_their_shells_want(name: str, crlf: bool) -> None:
    text = (project() / name).read_bytes()
    assert text.count(b"\r\n") == (text.count(b"\n") if crlf else 0)


def test_a_checkout_anywhere_gets_those_line_ends() -> None:
    words = ["git", "check-attr", "eol", "text", "kiln", "kiln.cmd", "images/provision.py"]
    if not (project() / ".git").exists():
        pytest.skip("this is no git checkout")
    done = subprocess.run(words, cwd=project(), capture_output=True, text=True, check=True)
    said = done.stdout.splitlines()
    assert "kiln: eol: lf" in said and "images/provision.py: eol: lf" in said
    assert "kiln.cmd: eol: crlf" in said
