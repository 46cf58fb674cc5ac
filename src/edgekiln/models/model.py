"""What edgekiln knows of a model: where it lies, its family and its sizes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Names that no file may have on Windows, whatever its suffix.
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?")
_HUB_CACHE = re.compile(r"models--.+?--(?P<name>.+)")


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model directory that was looked into and found whole.

    `parameters` counts the numbers in the weights (a head that repeats the embedding once);
    packed 4-bit weights count as what they are packed into, pickles by their bytes.
    `context_length` is 0 where config.json does not say.
    """

    name: str
    path: Path
    source: str
    family: str
    config: Mapping[str, Any]
    parameters: int
    weight_bytes: int
    dtype: str
    layers: int
    hidden_size: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    tied: bool


def slug(text: str) -> str:
    """A name for folders on any system: lower case letters, digits, dots, dashes, underscores."""
    safe = re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-.")[:100].rstrip("-.")
    return f"model-{safe}".rstrip("-") if not safe or _RESERVED.fullmatch(safe) else safe


def name_of(path: Path) -> str:
    """What to call a local model: its folder's name, or the Hub's in the Hub's own cache."""
    path = path.resolve()
    cached = _HUB_CACHE.fullmatch(path.parent.parent.name)
    if path.parent.name == "snapshots" and cached:
        return slug(cached["name"])
    return slug(path.name)
