"""Whose a container is, so that those of builds that were killed can be told from living ones'."""

from __future__ import annotations

import os
import socket
from pathlib import Path

LABEL = "io.edgekiln.owner"


def this_process() -> str:
    """Host, process and when that process began."""
    return f"{socket.gethostname()}:{os.getpid()}:{_began(os.getpid())}"


def is_orphan(owner: str) -> bool:
    """Whether the owner was a process of this machine that lives no more (Linux can tell)."""
    host, _, rest = owner.rpartition(":")[0].rpartition(":")
    began = owner.rpartition(":")[2]
    if host != socket.gethostname() or not rest.isdigit() or not began.isdigit():
        return False
    return Path("/proc/self/stat").exists() and _began(int(rest)) != began


def here(owner: str) -> int | None:
    """The owner's number, where it is a living process of this machine; else None."""
    host, _, rest = owner.rpartition(":")[0].rpartition(":")
    if host != socket.gethostname() or not rest.isdigit() or is_orphan(owner):
        return None
    return int(rest)


def _began(pid: int) -> str:
    """When a process began (proc(5), field 22), so that a reused number is not mistaken for it."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        return text.rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
