"""What the stage `compile` is told and leaves, whichever compiler runs: the chip, compile.json."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsons
import splits

from stagekit import BadInput, Stage

FORMAT = 1
_BLOCK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Chip:
    """What is compiled for: `soc_model` decides, `arch` ("v79") must fit it.

    `sharing`: whether graphs in one binary can share their weights there.
    """

    soc: str
    soc_model: int
    arch: str
    vtcm_mb: int
    sharing: bool = True

    @classmethod
    def of(cls, stage: Stage) -> Chip:
        """From a stage's parameters; a note where prefill and decode cannot share a binary."""
        chip = cls(
            soc=_needed(stage, "soc", str),
            soc_model=_needed(stage, "soc_model", int),
            arch=_needed(stage, "arch", str),
            vtcm_mb=stage.param("vtcm_mb", int, 8),
            sharing=stage.param("weight_sharing", bool, True),
        )
        if not chip.sharing:
            stage.note(
                f"{chip.soc} ({chip.arch}) cannot share weights between graphs: prefill and decode "
                "each get a binary of their own, and the weights lie in both"
            )
        return chip


def _needed(stage: Stage, name: str, kind: type) -> Any:
    value = stage.param(name, kind)
    if value is None:
        raise BadInput(f"parameter {name} is missing")
    return value


def write(
    stage: Stage,
    chip: Chip,
    cut: Sequence[splits.Split],
    *,
    qnn_build: str,
    nodes_on_cpu: int,
    binaries: Sequence[Mapping[str, Any]],
    twins: Sequence[Mapping[str, Any]],
) -> None:
    """Write compile.json into the output `binaries`."""
    found = {
        "format": FORMAT,
        "soc": chip.soc,
        "soc_model": chip.soc_model,
        "arch": chip.arch,
        "qnn_build": qnn_build,
        "shared": chip.sharing,
        "splits": len(cut),
        "layers": [[split.first, split.end] for split in cut],
        "nodes_on_cpu": nodes_on_cpu,
        "binaries": list(binaries),
        "twins": list(twins),
    }
    jsons.write(stage.output("binaries") / "compile.json", found)


def digest(file: Path) -> str:
    """A file's sha256."""
    found = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(_BLOCK):
            found.update(block)
    return found.hexdigest()
