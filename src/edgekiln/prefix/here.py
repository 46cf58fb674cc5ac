"""Whether this very process runs inside one of our images, whose stages then run right here.

An image says which toolchain it holds by a marker (`toolchain.marker`). What it holds is what a
prefix holds, and where a prefix has only the wheels, it has the distribution's packages, too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from edgekiln.calls import call
from edgekiln.toolchain import MARKER

if TYPE_CHECKING:
    from edgekiln.toolchain import Toolchain

ROOT = Path("/opt/edgekiln")


def is_here(toolchain: Toolchain) -> bool:
    """Whether this is an image of that very toolchain, by the digest of what is installed."""
    told = _marker()
    return (told.get("name"), told.get("installed")) == (toolchain.name, toolchain.installed)


def image_here() -> str:
    """The tag of the image of ours that this process runs in; "" elsewhere."""
    return _marker().get("tag", "")


def other_image(toolchain: Toolchain) -> str:
    """Inside the image of another toolchain: what to run the job in instead; "" elsewhere."""
    if not image_here() or is_here(toolchain):
        return ""
    from edgekiln.images import tag

    return f"this is the image {image_here()}: run the job in {tag(toolchain)}"


def drift(toolchain: Toolchain) -> list[str]:
    """The image's packages of the distribution that are not at their locked versions."""
    base = toolchain.base.lock.debs if toolchain.base.lock else ()
    locked = {deb.name: deb.version for deb in (*base, *toolchain.lock.debs)}
    said = call(["dpkg-query", "-W", "-f", "${Package} ${Version}\n"]).stdout
    found = dict(line.split(" ", 1) for line in said.splitlines())
    return [
        f"{name}: locked {version}, got {found.get(name, 'none')}"
        for name, version in sorted(locked.items())
        if found.get(name) != version
    ]


def _marker() -> dict[str, str]:
    """What the image says of itself; nothing where this is none."""
    try:
        told = json.loads((ROOT / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(k): str(v) for k, v in told.items()} if isinstance(told, dict) else {}
