"""What a build is made of: stages, what goes into them and what must come out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgekiln.errors import UsageError

JSON = bool | int | float | str | None | list["JSON"] | dict[str, "JSON"]


@dataclass(frozen=True, kw_only=True)
class FromPath:
    """An input that lies on this machine: a model directory, a text, an adapter.

    Of a `secret` one no bundle has a digest: from that a short password can be guessed.
    """

    path: Path
    secret: bool = False


@dataclass(frozen=True, kw_only=True)
class FromStage:
    """An input that another stage of the same pipeline makes: one of its outputs."""

    stage: str
    output: str


Input = FromPath | FromStage


@dataclass(frozen=True, kw_only=True)
class Output:
    """A file or folder a stage must leave under /out, and the files it must hold."""

    name: str
    files: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One program from scripts/ run in one image.

    `memory`, `disk` and `vram` (of a GPU) are estimates in bytes for doctor and for running stages
    side by side. `network` lets it out: for a tool that fetches what it builds with. None of them
    is part of the key.
    """

    name: str
    toolchain: str
    program: str
    inputs: Mapping[str, Input]
    outputs: tuple[Output, ...]
    params: Mapping[str, JSON] = field(default_factory=dict)
    memory: int = 1 << 30
    disk: int = 0
    vram: int = 0
    network: bool = False

    def after(self) -> frozenset[str]:
        """The stages whose outputs this one reads."""
        return frozenset(i.stage for i in self.inputs.values() if isinstance(i, FromStage))


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """Stages in an order in which each comes after those it reads from."""

    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        seen: dict[str, Stage] = {}
        for stage in self.stages:
            if stage.name in seen:
                raise UsageError(f"two stages are called {stage.name}")
            for name, source in stage.inputs.items():
                if isinstance(source, FromStage):
                    _check_source(stage, name, source, seen)
            seen[stage.name] = stage

    def stage(self, name: str) -> Stage:
        """The stage of that name."""
        return next(s for s in self.stages if s.name == name)


def _check_source(stage: Stage, name: str, source: FromStage, seen: Mapping[str, Stage]) -> None:
    before = seen.get(source.stage)
    if before is None:
        raise UsageError(f"stage {stage.name} reads {name} from {source.stage}, not made before it")
    if source.output not in [o.name for o in before.outputs]:
        raise UsageError(f"stage {source.stage} has no output {source.output} ({stage.name} reads)")
