"""The runtime a bundle needs on the phone beside its own files, and where each part comes from."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekiln.device.payload import Item, Payload
from edgekiln.digest import digest_file
from edgekiln.errors import UsageError

GENIE = "genie-t2t-run"
MNN = "llm_demo"
GENIE_CONFIG = "genie_config.json"
_AARCH64, _HEXAGON = "EM_AARCH64", "EM_QDSP6"


@dataclass(frozen=True, kw_only=True)
class Part:
    """A file of the runtime: `source` says in words where it is to be had."""

    name: str
    source: str
    machine: str = _AARCH64
    optional: bool = False


def parts(payload: Payload) -> tuple[Part, ...]:
    """What has to lie beside the bundle's files for them to run."""
    return _genie(hexagon(payload)) if payload.backend == "qnn" else _MNN_PARTS


def _genie(version: str) -> tuple[Part, ...]:
    """The device files of Qualcomm's QAIRT SDK, for a Hexagon version such as V79."""
    from edgekiln.backends.qairt_sdk import device_files

    return tuple(
        Part(
            name=file.name,
            source=f"{posixpath.dirname(file.place)} in the QAIRT SDK",
            machine=_HEXAGON if "hexagon" in file.place else _AARCH64,
        )
        for file in device_files(version.lower())
    )


_MNN_BUILD = "the build with --runtime android, or an Android build of MNN's tag 3.6.1"
_MNN_PARTS = (
    Part(name=MNN, source=_MNN_BUILD),
    Part(name="libMNN.so", source=_MNN_BUILD),
    # A build with MNN_SEP_BUILD=OFF has these inside libMNN.so.
    Part(name="libMNN_Express.so", source=_MNN_BUILD, optional=True),
    Part(name="libllm.so", source=_MNN_BUILD, optional=True),
)


def hexagon(payload: Payload) -> str:
    """The Hexagon version of a qnn bundle as library names spell it: V79.

    Raises UsageError where the bundle's Genie configuration does not tell.
    """
    config = genie_config(payload)
    try:
        name = config["dialog"]["engine"]["backend"]["extensions"]
        path = payload.bundle / GENIE_CONFIG
        extensions = json.loads((path.parent / name).read_text(encoding="utf-8"))
        return str(extensions["devices"][0]["dsp_arch"]).upper()
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UsageError(
            f"{payload.bundle} does not say which Hexagon version it is for",
            why="devices[0].dsp_arch of its backend extensions file cannot be read",
            remedy="repeat the build",
        ) from error


def genie_config(payload: Payload) -> Mapping[str, Any]:
    """The bundle's Genie dialog configuration."""
    path = payload.bundle / GENIE_CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path} cannot be read", why=str(error), remedy="build the bundle again"
        ) from error
    found: Mapping[str, Any] = config
    return found


def libraries(payload: Payload, folder: Path) -> tuple[Item, ...]:
    """The parts of the runtime that a folder holds: an SDK as it was unpacked, or a flat one.

    Only files for a phone are taken: an SDK has the same names for other systems too. Raises
    UsageError where none is found, naming what was looked for.
    """
    found: list[Item] = []
    inside = {item.name for item in payload.items}
    wanted = [part for part in parts(payload) if part.name not in inside]
    for part in wanted:
        if path := _find(folder, part):
            size = path.stat().st_size
            found.append(Item(name=part.name, source=path, size=size, sha256=digest_file(path)))
    if wanted and not found:
        raise UsageError(
            f"{folder} holds nothing that this bundle needs",
            why="looked for " + ", ".join(p.name for p in wanted) + ", built for Android",
            remedy="name the folder of the SDK, or one with these files",
        )
    return tuple(found)


def _find(folder: Path, part: Part) -> Path | None:
    """The file of that name for the right machine; one for Android before others."""
    from edgekiln.artifacts.elf import is_elf_for

    places = [p for p in sorted(folder.rglob(part.name)) if is_elf_for(p, part.machine)]
    places.sort(key=lambda p: "android" not in p.as_posix() and part.machine == _AARCH64)
    return places[0] if places else None


def missing(payload: Payload, names: Sequence[str]) -> list[Part]:
    """The parts that are not among the files `names` on the phone."""
    have = set(names)
    return [part for part in parts(payload) if part.name not in have and not part.optional]
