"""The protocol every executor keeps, and what goes in and out of it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgekiln.executors.kills import Killed
from edgekiln.toolchain import variables

if TYPE_CHECKING:
    from edgekiln.pipeline import Stage
    from edgekiln.progress import Progress
    from edgekiln.toolchain import Toolchain

Event = Mapping[str, Any]

BAD_INPUT = 64


@dataclass(frozen=True, kw_only=True)
class StageRun:
    """One stage, ready to go: `program` lies under `scripts`, `memory` is the limit in bytes.

    `work` belongs to this run alone and holds an empty folder out/; `log` is where the program's
    own words go; `on_event` is called from the thread that runs the stage. `network` lets it out.
    `key` and `stage` are for executors that hand the whole stage to another edgekiln.
    """

    name: str
    scripts: Path
    program: str
    inputs: Mapping[str, Path]
    params: Mapping[str, Any]
    work: Path
    log: Path
    cpus: int
    memory: int
    beside_others: bool
    on_event: Callable[[Event], None]
    network: bool = False
    key: str = ""
    stage: Stage | None = None


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """How a program ended: exit code (negative: the signal that ended it) and seconds.

    `killed` says by whom, where it was ended by SIGKILL and not by us; `held` is the memory in
    bytes that it was last seen to hold, where somebody looked.
    """

    exit_code: int
    seconds: float
    killed: Killed | None = None
    held: int | None = None


class Executor(Protocol):
    """Runs stages somewhere."""

    name: str

    def describe(self) -> str:
        """Where stages will run, in a few words for the user."""

    def ready(self, toolchain: Toolchain) -> bool:
        """Whether the toolchain is already there, its kits too (no building, no fetching)."""

    def prepare(self, toolchain: Toolchain, progress: Progress) -> None:
        """Make the toolchain runnable: its kits, then the image or the prefix."""

    def tidy(self) -> None:
        """Clear away what builds that were killed left running."""

    def drift(self, toolchain: Toolchain) -> list[str]:
        """What of the prepared toolchain is newer than its lock, a line each; for the manifest."""

    def run(self, toolchain: Toolchain, run: StageRun) -> StageResult:
        """Run one stage to its end. Called from several threads at once."""

    def cancel(self) -> None:
        """End every running stage; their `run` calls return soon after."""

    def close(self) -> None:
        """Let go of connections."""


def environment(
    toolchain: Toolchain, run: StageRun, *, scripts: str, path: str, kits: str = ""
) -> dict[str, str]:
    """What every stage's program finds in its environment, whatever the executor.

    `scripts` is where modules are looked for first; `path` and `kits` are put in for {path} and
    {kits} in the toolchain's own variables. Fixed seeds and dates make the same bytes on every
    run; the offline switches keep libraries from waiting for a network that is not there; OpenMP's
    threads sleep instead of spinning when another stage wants the cores.
    """
    threads = str(run.cpus)
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    own = variables(toolchain, path=path, kits=kits)
    modules = [scripts, own["PYTHONPATH"]] if "PYTHONPATH" in own else [scripts]
    return {
        "PATH": path,
        **own,
        **(ways_out() if run.network else {}),
        "PYTHONPATH": ":".join(modules),
        **dict.fromkeys(names, threads),
        "OMP_WAIT_POLICY": "PASSIVE" if run.beside_others else "ACTIVE",
        "KILN_CPUS": threads,
        "LANG": "C.UTF-8",
        "TZ": "UTC",
        "PYTHONHASHSEED": "0",
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "SOURCE_DATE_EPOCH": "315532800",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PIP_REQUIRE_VIRTUALENV": "1",
    }


def ways_out() -> dict[str, str]:
    """The user's proxies: a stage that may go out does so as everything else here."""
    names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
    return {n: os.environ[n] for name in names for n in (name, name.lower()) if n in os.environ}


def read_event(line: str) -> Event | None:
    """An event out of a line of a program's standard output; None for anything else."""
    if not line.startswith("{"):
        return None
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "event" in event else None
