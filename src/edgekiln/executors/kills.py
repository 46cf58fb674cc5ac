"""Who ended a program that was killed: the kernel for want of memory, or somebody else.

A SIGKILL says nothing of its sender. The kernel counts the processes it kills for memory, by
whatever limit (/proc/vmstat, oom_kill, Linux 4.13 and newer; the count is the machine's, and the
same in every container on it): a count that rose while a stage ran speaks for the kernel, one that
did not speaks against it.
"""

from __future__ import annotations

import contextlib
import enum
from pathlib import Path

_COUNTS = Path("/proc/vmstat")


class Killed(enum.Enum):
    """Who ended a stage's program with SIGKILL."""

    LIMIT = "the stage's own limit"
    KERNEL = "the kernel, for memory"
    SOMEBODY = "somebody else"
    UNKNOWN = "not to be told from here"


def kernel_kills() -> int | None:
    """How many processes this machine's kernel has killed for memory; None where it tells not."""
    with contextlib.suppress(OSError, ValueError):
        for line in _COUNTS.read_text(encoding="ascii").splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    return None


def who(before: int | None, after: int | None) -> Killed:
    """Who sent a SIGKILL, by `kernel_kills()` before and after the program ran."""
    if before is None or after is None:
        return Killed.UNKNOWN
    return Killed.KERNEL if after > before else Killed.SOMEBODY
