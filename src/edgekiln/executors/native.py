"""Stages as plain processes on this machine, from the toolchain's locked parts in a prefix.

For rented GPU boxes, where no container engine can run, and for machines without one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from edgekiln.executors.base import StageRun, environment
from edgekiln.executors.kitlinks import kits_ready, link_kits, make_kits
from edgekiln.executors.processes import Launch, Processes

if TYPE_CHECKING:
    from edgekiln.progress import Progress
    from edgekiln.toolchain import Toolchain


class NativeExecutor(Processes):
    """Runs stages in a toolchain's prefix."""

    name = "native"

    def __init__(self, python_of: Callable[[Toolchain], Path] | None = None) -> None:
        super().__init__()
        self._python_of = python_of or _prefix_python

    def describe(self) -> str:
        """Where stages will run, and whether their network is cut."""
        return f"native on this machine ({self._network()})"

    def ready(self, toolchain: Toolchain) -> bool:
        """Whether the prefix is filled and the kits are there."""
        from edgekiln.prefix import prefix_ready

        return kits_ready(toolchain) and prefix_ready(toolchain)

    def prepare(self, toolchain: Toolchain, progress: Progress) -> None:
        """Unpack the toolchain's kits and fill its prefix from its lock."""
        from edgekiln.prefix import build_prefix

        if toolchain.kits:
            make_kits([toolchain], progress)
        build_prefix(toolchain, progress)

    def drift(self, toolchain: Toolchain) -> list[str]:
        """Nothing: a prefix holds wheels only, and those are exact. An image holds more."""
        from edgekiln.prefix import here

        return here.drift(toolchain) if here.is_here(toolchain) else []

    @contextmanager
    def _laid_out(self, toolchain: Toolchain, run: StageRun) -> Iterator[Launch]:
        """in/ and scratch/ beside out/, and the environment that says so."""
        python = self._python_of(toolchain)
        yield Launch(
            words=[str(python), "-s", str(run.scripts / run.program)],
            env=_layout(toolchain, run, python),
            folder=run.work / "scratch",
        )


def _prefix_python(toolchain: Toolchain) -> Path:
    from edgekiln.prefix import prefix_python

    return prefix_python(toolchain)


def _linked_in(toolchain: Toolchain, python: Path) -> Path:
    """Where the links to kits are made: the prefix, or our own folder where that is an image's."""
    from edgekiln.home import home
    from edgekiln.prefix import here

    if not here.is_here(toolchain):
        return python.parent.parent
    return home() / "prefixes" / f"{toolchain.name}-{toolchain.installed[:12]}-image"


def _layout(toolchain: Toolchain, run: StageRun, python: Path) -> dict[str, str]:
    """Lay out in/ and scratch/ beside out/, and say so in the environment."""
    inputs, scratch = run.work / "in", run.work / "scratch"
    inputs.mkdir()
    scratch.mkdir()
    for name, path in run.inputs.items():
        (inputs / name).symlink_to(path.absolute())
    params = run.work / "params.json"
    params.write_text(json.dumps(run.params), encoding="utf-8")
    ways = f"{python.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    kits = str(link_kits(toolchain, _linked_in(toolchain, python))) if toolchain.kits else ""
    return {
        **environment(toolchain, run, scripts=str(run.scripts), path=ways, kits=kits),
        "KILN_IN": str(inputs),
        "KILN_OUT": str(run.work / "out"),
        "KILN_PARAMS": str(params),
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
    }
