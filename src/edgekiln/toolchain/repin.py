"""A pin in a toolchain's YAML given another version, all else in the file as it was."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgekiln.errors import UsageError
from edgekiln.toolchain import changes, read_definition
from edgekiln.toolchain.lock import Definition

_PINS = ("requirements", "overrides")


@contextmanager
def repinned(path: Path, package: str, version: str) -> Iterator[None]:
    """Write `package==version` where the YAML pins the package; put it back if the block fails.

    Raises UsageError where the YAML does not pin it, or `version` is none.
    """
    if not re.fullmatch(r"[0-9A-Za-z.!+_-]+", version):
        raise UsageError(f"{version!r} is no version", remedy="give one, e.g. --to 2.4.7")
    before = path.read_bytes()
    was = read_definition(Definition, path)
    text = _with(before.decode("utf-8"), package, version)
    path.write_bytes(text.encode("utf-8"))
    try:
        now = read_definition(Definition, path)
        pin = re.compile(rf"{_pattern(package)}==.*", re.IGNORECASE)
        pinned = [line for key in _PINS for line in getattr(now, key) if pin.fullmatch(line)]
        if not pinned or set(changes(was, now)) - set(_PINS):
            raise UsageError(
                f"{path.name} has no pin of {package}",
                why="only what stands as NAME==VERSION in requirements or overrides can be moved",
                remedy=f"write it into {path.name}, then kiln toolchains lock {path.stem}",
            )
        yield
    except BaseException:
        path.write_bytes(before)
        raise


def _with(text: str, package: str, version: str) -> str:
    """The text with the version put in, comments left alone."""
    pin = re.compile(rf"(?<![\w.-])({_pattern(package)})==[^\s,;'\"\]#]+", re.IGNORECASE)
    lines = []
    for line in text.splitlines(keepends=True):
        code, hash_, comment = line.partition("#")
        lines.append(pin.sub(rf"\g<1>=={version}", code) + hash_ + comment)
    return "".join(lines)


def _pattern(package: str) -> str:
    """A regular expression of a name as YAMLs may write it, with its extras."""
    parts = (re.escape(part) for part in re.split(r"[-_.]+", package))
    return "[-_.]+".join(parts) + r"(?:\[[\w,. -]*\])?"
