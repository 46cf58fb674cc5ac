"""Where things are: the checkout edgekiln runs from, its cache, the user's vendor folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def project() -> Path:
    """The checkout: toolchains/, images/, scripts/ and recipes/ lie in it."""
    return Path(__file__).resolve().parents[2]


def home() -> Path:
    """The cache: store, models, downloads, native prefixes. EDGEKILN_HOME moves it."""
    chosen = os.environ.get("EDGEKILN_HOME")
    if chosen:
        return Path(chosen).expanduser().resolve()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "edgekiln"


def vendor_folder() -> Path | None:
    """The folder that EDGEKILN_VENDOR or --vendor-dir names; it need not be there."""
    named = os.environ.get("EDGEKILN_VENDOR")
    return Path(named).expanduser() if named else None


def mirrors_named() -> list[str]:
    """The addresses and folders that EDGEKILN_MIRRORS names, which have files by their names."""
    return os.environ.get("EDGEKILN_MIRRORS", "").split()
