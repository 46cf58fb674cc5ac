"""Figures as people read them, and as people write them."""

from __future__ import annotations

import re

from edgekiln.errors import UsageError

_STEPS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}


def size(count: float) -> str:
    """Bytes with a unit: 87.3 MB. Units are decimal, as disks and downloads count."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def seconds(count: float) -> str:
    """A time with a unit: 0.21 s, 12.5 s, 4 min 03 s, 2 h 07 min."""
    if count < 10:
        return f"{count:.2f} s"
    if count < 60:
        return f"{count:.1f} s"
    minutes, rest = divmod(round(count), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def parse_size(text: str, *, where: str) -> int:
    """Bytes, one at least, out of `12g`, `12GB`, `12GiB` or a plain number. Raises UsageError."""
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?i?)b?\s*", text.lower())
    units = {**_STEPS, **_BINARY}
    count = int(float(found[1]) * units[found[2]]) if found and found[2] in units else 0
    if count < 1:
        raise UsageError(f"{where} is {text!r}", remedy="give a size such as 12g or 12GiB")
    return count
