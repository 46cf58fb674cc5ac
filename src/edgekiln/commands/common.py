"""What all commands share: a task shown at the terminal, the engine that answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekiln.errors import EngineError
from edgekiln.report import Reporter, Task, make_reporter

if TYPE_CHECKING:
    from edgekiln.engine import Engine


class shown_task:  # noqa: N801 - used as a function: with shown_task("image mnn") as task
    """A task shown on the terminal for the length of a with block."""

    def __init__(self, name: str, unit: str = "B") -> None:
        self._name, self._unit = name, unit
        self._reporter: Reporter = make_reporter()

    def __enter__(self) -> Task:
        return Task(self._reporter, self._name, self._unit)

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            self._reporter.ended(self._name, "done", {})
        self._reporter.close()


def the_engine() -> Engine:
    """The engine that answers. Raises EngineError where none does."""
    from edgekiln.engine import find_engine

    found = find_engine()
    if found is None:
        raise EngineError(
            "no container engine answers",
            why=why_no_engine(),
            remedy="start Docker or Podman, or run `kiln engine up`",
        )
    return found


def engine_name(engine: Engine) -> str:
    """An engine in words."""
    return f"{engine.kind} {engine.version}{' rootless' if engine.rootless else ''}"


def why_no_engine() -> str:
    """Why none answers, in one line."""
    from edgekiln.engine import why_not

    return why_not().replace("\n", "; ")
