"""`kiln engine`: the container engine of this machine."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from edgekiln.errors import KilnError

if TYPE_CHECKING:
    pass
from edgekiln.commands.common import engine_name, shown_task, the_engine


def engine_up() -> None:
    """Bring an engine up."""
    from edgekiln import engine

    with shown_task("engine") as task:
        found = engine.up(task)
    print(f"{engine_name(found)} answers at {found.url}")


def engine_show() -> None:
    """Print which engine answers."""
    found = the_engine()
    print(f"{engine_name(found)} answers at {found.url}")
    try:
        print(f"builds with: {shlex.join(found.cli)}")
    except KilnError as error:
        print(f"cannot build images: {error.what}; {error.remedy}")


def engine_down() -> None:
    """Stop the engine that was brought up."""
    from edgekiln import engine

    with shown_task("engine") as task:
        engine.down(task)
