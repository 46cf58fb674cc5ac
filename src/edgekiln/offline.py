"""Whether the network may be asked: --offline, or EDGEKILN_OFFLINE=1.

Whoever fetches asks here first, so that a machine without a way out is told at once what is
missing, and waits for nobody.
"""

from __future__ import annotations

import os

from edgekiln.errors import FetchError

VARIABLE = "EDGEKILN_OFFLINE"
_FILL = "on a machine with a network: kiln toolchains fetch NAME --to DIR; then --vendor-dir DIR"


def enabled() -> bool:
    """Whether this process is to ask nobody on a network."""
    return os.environ.get(VARIABLE, "").lower() in ("1", "true", "yes", "on")


def refuse(what: str, *, why: str = "", remedy: str = "") -> None:
    """Raise FetchError for something that only a network has, where none may be asked.

    `what` is what could not be had, in words: "the wheel torch-2.13.0…whl".
    """
    if enabled():
        raise missing(f"{what} is not here, and --offline asks nobody for it", why, remedy)


def missing(what: str, why: str = "", remedy: str = "") -> FetchError:
    """The error for what neither the vendor folder nor a cache has."""
    return FetchError(what, why=why, remedy=remedy or _FILL)
