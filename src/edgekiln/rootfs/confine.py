"""Runs a program inside an unpacked root without what a stage must not have.

    python -I -S confine.py [--writable PATH]... -- PROGRAM ARGUMENT...

Every capability is dropped and none can be gained, as in a container; and where the kernel has
Landlock (5.19 and newer), nothing outside of the `--writable` paths can be changed, whoever owns
it. What the kernel refuses is left out. Leaves with the program's exit code, 128 + N where signal
N ended it: proot tells nothing of signals. Ends with whoever started it.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import signal
import struct
import sys
from collections.abc import Sequence
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP = 1, 24
_PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 36, 38
_LAST_CAPABILITY = 63  # numbers beyond the kernel's last are refused, and that is all
# capset(2), version 3: two sets of 32 for each of effective, permitted, inheritable.
_CAPABILITIES_V3 = 0x20080522
# landlock(7). The numbers are the same on every architecture.
_CREATE, _ADD_RULE, _RESTRICT = 444, 445, 446
_VERSION_FLAG, _PATH_BENEATH = 1, 1
# Older ones refuse every rename from folder to folder, which tools do.
_REFER_ABI, _TRUNCATE_ABI = 2, 3
_WRITE_FILE, _REFER, _TRUNCATE = 1 << 1, 1 << 13, 1 << 14
# Removing and making of every kind: what only a folder can be given.
_IN_FOLDERS = sum(1 << bit for bit in range(4, 13))


def main(words: Sequence[str]) -> int:
    """Run the program to its end."""
    args = _arguments(words)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    child = os.fork()
    if child:
        code = _ended(child)
        _end_the_rest()
        return code if code >= 0 else 128 - code
    try:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        _confine(libc, args.writable)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it; programs expect it
        os.execvpe(args.program[0], args.program, _own_environment())
    except OSError as error:
        print(f"{args.program[0]}: {error.strerror}", file=sys.stderr, flush=True)
    os._exit(127)


def _ended(child: int) -> int:
    """The exit code of the program; orphans that end meanwhile are gathered up."""
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == child:
            return os.waitstatus_to_exitcode(status)


def _end_the_rest() -> None:
    """Kill what the program left running, for proot ends no sooner; each orphan is a child of ours.

    Without /proc (in a chroot) this is left to the guard outside.
    """
    while pids := _children():
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, 0)


def _children() -> list[int]:
    """The processes whose parent is this one (proc(5), stat: the parent follows the state)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            if int(path.read_text(errors="replace").rpartition(")")[2].split()[1]) == os.getpid():
                found.append(int(path.parent.name))
    return found


def _own_environment() -> dict[str, str]:
    """What the program is to have, without what was for proot."""
    return {key: value for key, value in os.environ.items() if not key.startswith("PROOT_")}


def _confine(libc: ctypes.CDLL, writable: Sequence[Path]) -> None:
    rules = _ruleset(libc, writable)
    _drop_capabilities(libc)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if rules is not None:
        libc.syscall(_RESTRICT, rules, 0)
        os.close(rules)


def has_landlock() -> bool:
    """Whether the kernel can keep a program from changing what is not its own."""
    return _abi(ctypes.CDLL(None, use_errno=True)) >= _REFER_ABI


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="see confine.py")
    parser.add_argument("--writable", type=Path, action="append", default=[])
    parser.add_argument("program", nargs="+")
    return parser.parse_args(words)


def _abi(libc: ctypes.CDLL) -> int:
    return int(libc.syscall(_CREATE, None, 0, _VERSION_FLAG))


def _ruleset(libc: ctypes.CDLL, writable: Sequence[Path]) -> int | None:
    """A descriptor of rules that let only these paths be changed; None where there is no way."""
    abi = _abi(libc)
    if abi < _REFER_ABI:
        return None
    in_files = _WRITE_FILE | (_TRUNCATE if abi >= _TRUNCATE_ABI else 0)
    everything = in_files | _IN_FOLDERS | _REFER
    attributes = struct.pack("Q", everything)
    rules = int(libc.syscall(_CREATE, attributes, len(attributes), 0))
    if rules < 0:
        return None
    for path in writable:
        _allow(libc, rules, path, everything if path.is_dir() else in_files)
    _allow(libc, rules, Path("/proc"), in_files)
    return rules


def _allow(libc: ctypes.CDLL, rules: int, path: Path, allowed: int) -> None:
    with contextlib.suppress(OSError):
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        libc.syscall(_ADD_RULE, rules, _PATH_BENEATH, struct.pack("=Qi", allowed, place), 0)
        os.close(place)


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    """All of them, for good: from the bounding set first, or root would have them again."""
    for number in range(_LAST_CAPABILITY + 1):
        libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)
    libc.capset(struct.pack("Ii", _CAPABILITIES_V3, 0), bytes(24))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
