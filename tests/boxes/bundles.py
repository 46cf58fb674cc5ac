"""The builds that boxes are tried with, and how their bundles are held against those at home."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tests.boxes import kit
from tests.builds.kit import LENIENT

MODEL = f"{kit.DATA}/tiny-llama"
# A model of random weights answers nonsense at four bits as it does at thirty-two.
WORDS = {
    "mnn": LENIENT,
    "qnn": (
        *("--context-length", "192", "--prefill-length", "32", "--calibration-tokens", "512"),
        *("--answer-tokens", "4", *LENIENT),
    ),
}
# Figures of speed and of the machine.
_TOLD = ("manifest.json", "provenance.json")


def sums(bundle: Path) -> dict[str, tuple[str, int]]:
    """sha256 and mode of each file but those that tell of times."""
    files = [path for path in bundle.rglob("*") if path.is_file() and path.name not in _TOLD]
    return {
        path.relative_to(bundle).as_posix(): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            path.stat().st_mode & 0o777,
        )
        for path in files
    }
