"""The Snapdragon chips a binary can be made for: scripts/qnn/data/socs.json.

A context binary is for one chip. Its number (soc_model) and Hexagon version are those of
Qualcomm's SDK; the marketing names are what stands on a phone's box. "8 Gen 4" never became a
product's name, but the vendor's notebooks and the AIMET-to-QNN write-up call the 8 Elite so.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from edgekiln.errors import UsageError, nearest
from edgekiln.home import project
from edgekiln.pipeline import JSON

DATA = Path("scripts/qnn/data")


@dataclass(frozen=True, kw_only=True)
class Soc:
    """A chip: `arch` is its Hexagon version, `vtcm_mb` its tightly coupled memory in MB."""

    soc: str
    soc_model: int
    arch: str
    names: tuple[str, ...]
    vtcm_mb: int
    weight_sharing: bool

    @property
    def title(self) -> str:
        """For people: SM8750 (Snapdragon 8 Elite)."""
        return f"{self.soc.upper()} (Snapdragon {self.names[0]})"

    def params(self) -> dict[str, JSON]:
        """What stages know of the chip: they do not read the table, so that it is in their keys."""
        names = ("soc", "soc_model", "arch", "vtcm_mb", "weight_sharing")
        return {name: getattr(self, name) for name in names}


@lru_cache(maxsize=1)
def socs() -> tuple[Soc, ...]:
    """Every chip of the table."""
    rows = json.loads((project() / DATA / "socs.json").read_text(encoding="utf-8"))
    return tuple(Soc(**{**row, "names": tuple(row["names"])}) for row in rows)


def find_soc(said: str) -> Soc:
    """A chip by its name, its number or its marketing name, however that is spelt.

    Raises UsageError with the nearest names for one that is not in the table.
    """
    wanted = _plain(said)
    for soc in socs():
        if wanted in {_plain(n) for n in (soc.soc, str(soc.soc_model), *soc.names)}:
            return soc
    known = {name: soc for soc in socs() for name in (soc.soc, _plain(soc.names[0]))}
    close = nearest(wanted, known)
    if not close.startswith("did you mean"):
        close = "one of: " + ", ".join(_choice(soc) for soc in socs())
    raise UsageError(f"there is no chip {said!r} in the table", remedy=close)


def _plain(name: str) -> str:
    """sm8750 for "SM8750", 8gen3 for "Snapdragon 8 Gen 3", 8+gen1 for "8+ Gen1"."""
    return re.sub(r"[\s_®-]|qualcomm|snapdragon", "", name.lower())


def _choice(soc: Soc) -> str:
    return f"{soc.soc} ({soc.names[0]}, {soc.soc_model})"
