"""What a stage's output depends on, as one digest."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from edgekiln.digest import digest_file, digest_json
from edgekiln.pipeline import Stage

# Raised when the meaning of a key changes, so that old entries are not taken for new ones.
_SCHEMA = 1
_IMPORT = re.compile(r"^\s*(?:from|import)\s+(\w+)", re.MULTILINE)


def stage_key(stage: Stage, scripts: Path, toolchain_digest: str, inputs: Mapping[str, str]) -> str:
    """The store key (sha256, hex) of a stage whose inputs have these content digests.

    Executors are not part of it: all of them install the same lock and run the same program.
    """
    return digest_json(
        {
            "schema": _SCHEMA,
            "toolchain": toolchain_digest,
            "program": program_digest(scripts, stage.program),
            "params": dict(stage.params),
            "inputs": dict(inputs),
            "outputs": [o.name for o in stage.outputs],
        }
    )


def program_digest(scripts: Path, program: str) -> str:
    """A digest of a stage's program and of every module of scripts/ it imports.

    A change in one program leaves the finished work of the others valid.
    """
    return digest_json(program_files(scripts, program))


def program_files(scripts: Path, program: str) -> dict[str, str]:
    """sha256 of a program and of every module of scripts/ it imports, by their paths in scripts/.

    Raises AccessError for a program that is not there.
    """
    return {name: digest_file(scripts / name) for name in _closure(scripts, program)}


@lru_cache(maxsize=64)
def _closure(scripts: Path, program: str) -> tuple[str, ...]:
    found: set[str] = set()
    waiting = [Path(program)]
    while waiting:
        name = waiting.pop()
        if name.as_posix() in found:
            continue
        found.add(name.as_posix())
        text = (scripts / name).read_text(encoding="utf-8")
        # A module lies beside the program or at the top of scripts/.
        for module in _IMPORT.findall(text):
            places = (name.parent / f"{module}.py", Path(f"{module}.py"))
            waiting += [p for p in places if (scripts / p).is_file()][:1]
    return tuple(sorted(found))
