"""Builders that give an image and all its files the one moment, so that its manifest is the same.

BuildKit does from 0.13 on (Docker has it from 26 on), and keeps to it only where Docker stores
images in containerd: the older store ignores it without a word. Layers are left uncompressed, since
compressors differ from version to version; the manifest's digest is over contents alone.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from edgekiln.calls import call
from edgekiln.engine.buildcli import build_environment

if TYPE_CHECKING:
    from edgekiln.engine import Engine

_DOCKER = (26, 0)
_BUILDX = (0, 10)
_CONTAINERD = ["driver-type", "io.containerd.snapshotter.v1"]


def why_not(engine: Engine) -> str:
    """Why this engine's builds cannot have one manifest digest; "" where they can."""
    if engine.kind != "docker":
        return f"{engine.kind} builds without BuildKit"
    if _numbers(engine.version) < _DOCKER:
        return f"docker {engine.version} has a BuildKit older than 0.13 (docker 26 has that)"
    told = engine.get("/info") or {}
    if _CONTAINERD not in (told.get("DriverStatus") or []):
        return f"docker {engine.version} does not keep its images in containerd's store"
    done = call([*engine.cli, "buildx", "version"], env=build_environment(engine.url))
    if done.returncode or _numbers(done.stdout) < _BUILDX:
        return f"{engine.cli[0]} has no buildx 0.10 or newer"
    return ""


def build_words(name: str, archive: Path, epoch: int) -> list[str]:
    """What such a builder is told: fixed times, no attestations, and an archive to load.

    BuildKit 0.13 cannot rewrite times and unpack into the store at once, so it writes a file.
    """
    output = {
        "type": "docker",
        "dest": str(archive),
        "name": name,
        "rewrite-timestamp": "true",
        "compression": "uncompressed",
        "force-compression": "true",
        "oci-mediatypes": "true",
    }
    told = ",".join(f"{key}={value}" for key, value in output.items())
    epoch_word = f"SOURCE_DATE_EPOCH={epoch}"
    return ["--provenance=false", "--sbom=false", "--build-arg", epoch_word, "--output", told]


def _numbers(text: str) -> tuple[int, int]:
    """The first two numbers of a version."""
    found = re.search(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)
