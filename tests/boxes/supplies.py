"""What a box without a network lives on: a vendor folder, filled once and kept."""

from __future__ import annotations

from pathlib import Path

from edgekiln.kits import ownpackages, vendor
from edgekiln.progress import Silent
from edgekiln.toolchain import load_toolchain


def fill(folder: Path, names: tuple[str, ...]) -> Path:
    """Have a folder hold edgekiln's own packages for a box, and these toolchains' wheels."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        vendor.fill(load_toolchain(name), folder, Silent())
    ownpackages.bring(folder, ("3.11",), Silent())
    return folder
