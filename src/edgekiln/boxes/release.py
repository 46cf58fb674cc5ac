"""Which distribution and C library this machine has."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_RELEASE = Path("/etc/os-release")


def distribution(path: Path = _RELEASE) -> tuple[str, str, str]:
    """(id, version, name) as os-release(5) says them, e.g. ("debian", "12", "Debian …")."""
    told: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition("=")
            told[key] = value.strip().strip("\"'")
    name = told.get("PRETTY_NAME") or "a Linux that does not say which"
    return told.get("ID", ""), told.get("VERSION_ID", ""), name


def glibc() -> tuple[int, int] | None:
    """The version of the C library this Python runs on; None where it is not the GNU one."""
    try:
        told = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, OSError, ValueError):
        return None
    return version(told.rpartition(" ")[2])


def version(text: str) -> tuple[int, int] | None:
    """The first two numbers of a version: "2.36" → (2, 36)."""
    parts = text.split(".")
    if len(parts) < 2 or not (parts[0].isdigit() and parts[1].isdigit()):
        return None
    return int(parts[0]), int(parts[1])
