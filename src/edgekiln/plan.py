"""A pipeline against the store: each stage's key, and the finished work there is of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgekiln import units
from edgekiln.home import project
from edgekiln.keys import stage_key
from edgekiln.pipeline import FromStage, Pipeline, Stage
from edgekiln.report import Reporter
from edgekiln.store import Entry, Store
from edgekiln.toolchain import Toolchain

# Hashing less than this is not worth a bar.
_WORTH_A_BAR = 64 << 20


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A stage, its key where that can be known yet, and its finished work where there is some."""

    stage: Stage
    toolchain: Toolchain
    key: str | None
    entry: Entry | None


class Planner:
    """Knows the digests of everything that goes into a pipeline's stages."""

    def __init__(
        self,
        store: Store,
        toolchains: Mapping[str, Toolchain],
        reporter: Reporter,
        scripts: Path | None = None,
    ) -> None:
        self._store, self.toolchains, self._reporter = store, toolchains, reporter
        self.scripts = scripts or project() / "scripts"
        self._paths: dict[Path, str] = {}

    def plan(self, pipeline: Pipeline, done: Mapping[str, Entry] | None = None) -> list[Planned]:
        """Every stage with what the store has of it."""
        entries: dict[str, Entry] = dict(done or {})
        planned = []
        for stage in pipeline.stages:
            key = self.key(stage, entries)
            entry = entries.get(stage.name) or (self._store.find(key) if key else None)
            if entry:
                entries[stage.name] = entry
            toolchain = self.toolchains[stage.toolchain]
            planned.append(Planned(stage=stage, toolchain=toolchain, key=key, entry=entry))
        return planned

    def key(self, stage: Stage, entries: Mapping[str, Entry]) -> str | None:
        """The stage's key, or None while something it reads has not been made."""
        inputs = {}
        for name, source in stage.inputs.items():
            if isinstance(source, FromStage):
                if source.stage not in entries:
                    return None
                inputs[name] = entries[source.stage].output_digest(source.output)
            else:
                inputs[name] = self._path_digest(source.path)
        return stage_key(stage, self.scripts, self.toolchains[stage.toolchain].digest, inputs)

    def _path_digest(self, path: Path) -> str:
        if path not in self._paths:
            task = "digests"
            told = False

            def tell(done: int, total: int) -> None:
                nonlocal told
                if not told and total > _WORTH_A_BAR:
                    told = True  # first: several threads hash
                    self._reporter.started(task, f"{units.size(total)} of {path} to hash, once")
                if told:
                    self._reporter.progressed(task, done, total, "B", "")

            self._paths[path] = self._store.index.digest(path, tell)
            if told:
                self._reporter.ended(task, "done", {})
        return self._paths[path]
