"""Stands over one native stage and ends all of it, however it ends.

    python -I -S guard.py [--loopback] PROGRAM ARGUMENT...

Runs the program and leaves with its exit code, 128 + N where signal N ended it. The guard's
standard input is its lifeline: it closes when the build lets go of it, and the kernel closes it
when the build is killed outright. Then, and whenever the program ends, every process the program
left is killed. Orphans become the guard's children (prctl(2), PR_SET_CHILD_SUBREAPER), so none
gets away by forking twice or by starting a session of its own.

A namespace for process ids would do the same, but an unprivileged container lets nobody make one.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
# Of a scale from -1000 to 1000: a machine out of memory ends the stage, not the user's desktop.
_EXPENDABLE = "500"
_AGAIN_SECONDS = 0.005


def main(arguments: Sequence[str]) -> int:
    """Run a program to its end, or to ours."""
    words = list(arguments)
    if words[0] == "--loopback":
        words.pop(0)
        _bring_loopback_up()
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    wake = _wake_on_signals()
    child = _spawn(words)
    status = _until_it_ends(child, wake)
    _end_all()
    return 128 + signal.SIGKILL if status is None else _shell_code(status)


def descendants(root: int) -> list[int]:
    """Every process that `root` started, and those they did (proc(5))."""
    children: dict[int, list[int]] = {}
    for pid, parent in _parents():
        children.setdefault(parent, []).append(pid)
    found = list(children.get(root, ()))
    for pid in found:
        found.extend(children.get(pid, ()))
    return found


def _parents() -> Iterator[tuple[int, int]]:
    for name in os.listdir("/proc"):  # noqa: PTH208 - every quarter of a second: names will do
        if name.isdigit():
            # A process may end between the listing and the reading.
            with contextlib.suppress(OSError, ValueError, IndexError):
                # The name in brackets may hold spaces: fields are counted from its end.
                stat = Path("/proc", name, "stat").read_text(errors="replace")
                yield int(name), int(stat.rpartition(")")[2].split()[1])


def _spawn(words: list[str]) -> int:
    child = os.fork()
    if child:
        return child
    try:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # the guard itself may be killed
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        # Python ignores SIGPIPE; programs expect it to end them.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(_EXPENDABLE)
        os.execvp(words[0], words)
    except OSError as error:
        print(f"{words[0]}: {error.strerror}", file=sys.stderr, flush=True)
    os._exit(127)


def _wake_on_signals() -> int:
    """A descriptor that can be read from when a child ended or this process is to end."""
    wake, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    for each in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(each, lambda *_: None)
    return wake


def _until_it_ends(child: int, wake: int) -> int | None:
    """The program's wait status; None when the lifeline was cut before it ended."""
    while True:
        ready, _, _ = select.select([0, wake], [], [])
        if wake in ready and signal.SIGTERM in os.read(wake, 64):
            return None
        while (found := _reaped()) is not None:
            if found[0] == child:
                return found[1]
        if 0 in ready and not os.read(0, 1):
            return None


def _reaped() -> tuple[int, int] | None:
    """The id and wait status of a child that ended, if there is one."""
    try:
        pid, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    return (pid, status) if pid else None


def _end_all() -> None:
    """Kill until none is left: one that forks meanwhile is caught by the next round."""
    while pids := descendants(os.getpid()):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        while _reaped() is not None:
            pass
        time.sleep(_AGAIN_SECONDS)


def _shell_code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _prctl(what: int, value: int) -> None:
    import ctypes

    ctypes.CDLL(None).prctl(what, value, 0, 0, 0)


def _bring_loopback_up() -> None:
    """A new network has its loopback down; in containers of `--network none` it is up."""
    import fcntl
    import socket
    import struct

    get_flags, set_flags, up = 0x8913, 0x8914, 0x1
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_:
        request = struct.pack("16sh", b"lo", 0).ljust(40, b"\0")
        (flags,) = struct.unpack_from("h", fcntl.ioctl(any_, get_flags, request), 16)
        request = struct.pack("16sh", b"lo", flags | up).ljust(40, b"\0")
        fcntl.ioctl(any_, set_flags, request)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
