"""The protocol every executor keeps, and what goes in and out of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from edgekiln.progress import Progress
    from edgekiln.toolchain import Toolchain

Event = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class StageRun:
    """One stage, ready to go. Paths are this machine's; `memory` is the limit in bytes.

    `out` exists, is empty and belongs to the caller; `log` is where the program's own words go.
    """

    name: str
    program: str
    inputs: Mapping[str, Path]
    params: Mapping[str, Any]
    out: Path
    log: Path
    cpus: int
    memory: int
    beside_others: bool
    on_event: Callable[[Event], None]


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """How a program ended: exit code, seconds, peak resident bytes (None where unknown)."""

    exit_code: int
    seconds: float
    peak_memory: int | None
    killed_for_memory: bool = False


class Executor(Protocol):
    """Runs stages somewhere."""

    name: str

    def describe(self) -> str:
        """Where stages will run, in a few words for the user."""

    def ready(self, toolchain: Toolchain) -> bool:
        """Whether the toolchain is already there (no building, no fetching)."""

    def prepare(self, toolchain: Toolchain, progress: Progress) -> None:
        """Make the toolchain runnable: build or load the image, fill the prefix."""

    def run(self, toolchain: Toolchain, run: StageRun) -> StageResult:
        """Run one stage to its end. KeyboardInterrupt stops and removes it on the way out."""

    def close(self) -> None:
        """Let go of connections."""
