"""The JSON schemas of the files under toolchains/, made from the dataclasses that read them.

`python -m edgekiln.toolchain.schemas` writes them; a test fails when they are out of date.
"""

from __future__ import annotations

import json
from pathlib import Path

from edgekiln.kits.definition import KitDefinition
from edgekiln.toolchain import folder
from edgekiln.toolchain.lock import BaseDefinition, BaseLock, Definition, Lock
from edgekiln.toolchain.records import schema

_SHIPPED = {
    "schema.json": (Definition, "A toolchain of edgekiln"),
    "schema.lock.json": (Lock, "The lock of a toolchain"),
    "bases/schema.json": (BaseDefinition, "A base of edgekiln's images"),
    "kits/schema.json": (KitDefinition, "A kit of edgekiln"),
    "bases/schema.lock.json": (BaseLock, "The lock of a base"),
}


def schemas() -> dict[Path, str]:
    """Each shipped schema's path and text."""
    return {
        folder() / name: json.dumps(schema(cls, title=title), indent=2) + "\n"
        for name, (cls, title) in _SHIPPED.items()
    }


def write() -> None:
    """Write every schema anew."""
    for path, text in schemas().items():
        path.write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    write()
