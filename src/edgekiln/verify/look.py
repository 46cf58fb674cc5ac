"""The bytes in which two files differ, and diffoscope's view of them where it is installed."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

_CHUNK = 1 << 20
_AROUND = 8
# diffoscope unpacks and disassembles what it knows: of large files that takes hours.
_SECONDS = 120
_LARGEST = 256 << 20
_LINES = 60


@dataclass(frozen=True, kw_only=True)
class FirstByte:
    """Where two files begin to differ: bytes from the start, and what is there in hex."""

    offset: int
    left: str
    right: str

    @property
    def text(self) -> str:
        """The place, and a few bytes of each from there."""
        return (
            f"from byte {self.offset} (0x{self.offset:x}): {self.left}, in the second {self.right}"
        )


def first_byte(left: Path, right: Path) -> FirstByte | None:
    """The first byte in which two files differ; None where they are the same."""
    offset = 0
    with left.open("rb") as one, right.open("rb") as two:
        while True:
            a, b = one.read(_CHUNK), two.read(_CHUNK)
            if a != b:
                at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
                offset += min(len(a), len(b)) if at is None else at
                return FirstByte(
                    offset=offset, left=_some(left, offset), right=_some(right, offset)
                )
            if not a:
                return None
            offset += len(a)


def _some(path: Path, offset: int) -> str:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(_AROUND).hex(" ") or "its end"


def diffoscope(left: Path, right: Path) -> list[str]:
    """The first lines of what diffoscope says of two files, or one that says why there are none."""
    program = shutil.which("diffoscope")
    if program is None:
        return ["diffoscope is not installed here: it would show what is inside the files"]
    if max(left.stat().st_size, right.stat().st_size) > _LARGEST:
        return ["diffoscope was not asked: the files are larger than 256 MB"]
    command = [program, "--text", "-", "--no-progress", "--text-color", "never"]
    try:
        done = subprocess.run(
            [*command, "--", str(left), str(right)],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return [f"diffoscope was stopped: it took more than {_SECONDS} seconds"]
    # It leaves with 1 where files differ, and with 2 where it failed.
    if done.returncode not in (0, 1):
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        return [f"diffoscope ended with {done.returncode} and said: {said[:200]}"]
    lines = done.stdout.splitlines()
    more = [f"… and {len(lines) - _LINES} more lines"] if len(lines) > _LINES else []
    return [*lines[:_LINES], *more]
