"""A build's other machines: reached, looked at and made ready before anything is sent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekiln import units
from edgekiln.errors import KilnError
from edgekiln.pipeline import FromPath
from edgekiln.remote.executor import RemoteExecutor
from edgekiln.remote.wire import meant
from edgekiln.report import Reporter, Task
from edgekiln.runner import Limits, Place

if TYPE_CHECKING:
    from edgekiln.digest import FileIndex
    from edgekiln.models import Model
    from edgekiln.plan import Planned
    from edgekiln.remote.hosts import Host


class Elsewhere:
    """The machines that stages of one build are to run on."""

    def __init__(
        self,
        places: Mapping[str, Host],
        planned: Iterable[Planned],
        models: Iterable[Model],
        index: FileIndex,
        reporter: Reporter,
    ) -> None:
        self._reporter = reporter
        self._todo = [p for p in planned if not p.entry and p.stage.name in places]
        sources = {m.path: m.source for m in models if m.source != "local"}
        hosts = {places[p.stage.name].name: places[p.stage.name] for p in self._todo}
        self._executors = {
            name: RemoteExecutor(host, index, reporter.say, models=sources)
            for name, host in hosts.items()
        }
        self._of = {p.stage.name: places[p.stage.name].name for p in self._todo}

    def ready(self, *, force: bool) -> dict[str, Place]:
        """Each stage's place, its machine reached and its toolchains made ready.

        Raises what a machine's doctor refuses (but with `force`), or RemoteError.
        """
        try:
            for executor in self._executors.values():
                self._reach(executor)
                self._examine(executor, force)
            for executor in self._executors.values():
                self._prepare(executor)
        except BaseException:
            for executor in self._executors.values():
                executor.cancel()
            raise
        return {stage: self._place(self._executors[name]) for stage, name in self._of.items()}

    def tell(self) -> None:
        """Say what went over each line."""
        figures = {
            name: {"sent": e.link.sent, "received": e.link.received}
            for name, e in self._executors.items()
        }
        lines = [
            f"{name}: {units.size(f['sent'])} sent, {units.size(f['received'])} received"
            for name, f in figures.items()
        ]
        if figures:
            self._reporter.result("remote", figures, "\n" + "\n".join(lines))

    def close(self) -> None:
        """Hang up."""
        for executor in self._executors.values():
            executor.close()

    def _on(self, executor: RemoteExecutor) -> list[Planned]:
        return [p for p in self._todo if self._of[p.stage.name] == executor.host.name]

    def _reach(self, executor: RemoteExecutor) -> None:
        host = executor.host
        self._reporter.started(host.name, f"reaching {host.address}")
        try:
            asked = {p.toolchain.asked for p in self._on(executor)}
            executor.connect(Task(self._reporter, host.name), sorted(asked))
        except KilnError:
            self._reporter.ended(host.name, "failed", {})
            raise
        self._reporter.ended(host.name, "done", {})
        self._reporter.say(f"executor: {executor.describe()}: {executor.there['why']}")
        executor.tidy()

    def _examine(self, executor: RemoteExecutor, force: bool) -> None:
        stages = [p.stage for p in self._on(executor)]
        sources = [i for s in stages for i in s.inputs.values()]
        inputs: list[Path] = [i.path for i in sources if isinstance(i, FromPath)]
        checks: list[dict[str, Any]] = executor.examine(stages, list(dict.fromkeys(inputs)))
        for check in checks:
            if check["error"] and not force:
                raise meant(check["error"], executor.host.name)

    def _prepare(self, executor: RemoteExecutor) -> None:
        toolchains = {p.toolchain.digest: p.toolchain for p in self._on(executor)}
        for toolchain in toolchains.values():
            task = f"toolchain {toolchain.name}"
            self._reporter.started(task, f"on {executor.host.name} ({toolchain.summary})")
            try:
                executor.prepare(toolchain, Task(self._reporter, task, "steps"))
            except KilnError:
                self._reporter.ended(task, "failed", {})
                raise
            self._reporter.ended(task, "done", {})

    def _place(self, executor: RemoteExecutor) -> Place:
        limits = Limits(cpus=int(executor.there["cpus"]), memory=executor.memory)
        return Place(name=executor.host.name, executor=executor, limits=limits)
