"""JSON files that stages hand to each other: the same value gives the same bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write(file: Path, value: Any, *, indent: int = 1) -> None:
    """Write a value as people can read it, with a line end at the end."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    file.write_text(text + "\n", encoding="utf-8", newline="\n")


def read(file: Path) -> dict[str, Any]:
    """The object in a file that another stage wrote."""
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found
