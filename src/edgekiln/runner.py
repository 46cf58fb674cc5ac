"""Plans a pipeline against the store, then runs what is missing, side by side where it may."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekiln.executors.base import Event, Executor, StageResult, StageRun
from edgekiln.pipeline import FromPath, Input, Pipeline, Stage
from edgekiln.plan import Planned, Planner
from edgekiln.report import Reporter
from edgekiln.store import Entry, Store, disk_error
from edgekiln.verdict import check_outputs, judge

_TAIL = 12
_FULL = 64 << 20


@dataclass(frozen=True, kw_only=True)
class Done:
    """A stage that is finished: its entry, and whether it ran now. Times in seconds."""

    entry: Entry
    ran: bool
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a build may use of the machine: cores, and bytes of memory."""

    cpus: int
    memory: int


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where stages run, and what they may use there; "" is this machine."""

    name: str
    executor: Executor
    limits: Limits


class Runner:
    """Runs the stages of a pipeline that are not finished yet."""

    def __init__(
        self,
        *,
        store: Store,
        executor: Executor | None,
        planner: Planner,
        reporter: Reporter,
        limits: Limits,
        logs: Path,
        elsewhere: Mapping[str, Place] | None = None,
    ) -> None:
        """`elsewhere` has the places of stages, by their names, that do not run on this machine.

        `executor` is for the others; None where there are none.
        """
        self._store, self._planner = store, planner
        self._toolchains, self._reporter = planner.toolchains, reporter
        self._here = Place(name="", executor=executor, limits=limits) if executor else None
        self._elsewhere, self._logs = dict(elsewhere or {}), logs
        self._stopping = False

    def run(self, pipeline: Pipeline, planned: list[Planned]) -> dict[str, Done]:
        """Run to the end. What finished before a failure stays in the store.

        Raises the first KilnError of a stage once the stages beside it have been stopped.
        """
        finished = {
            p.stage.name: Done(entry=p.entry, ran=False, seconds=0.0) for p in planned if p.entry
        }
        for name in finished:
            self._reporter.ended(name, "cached", {})
        running: dict[Future[Done], Stage] = {}
        with ThreadPoolExecutor(max_workers=len(pipeline.stages)) as pool:
            try:
                while len(finished) < len(pipeline.stages):
                    for stage, cpus, beside in self._startable(pipeline, finished, running):
                        job = pool.submit(self._stage, stage, dict(finished), cpus, beside)
                        running[job] = stage
                    ended, _ = wait(running, timeout=1.0, return_when=FIRST_COMPLETED)
                    for job in ended:
                        finished[running.pop(job).name] = job.result()
            except BaseException:
                self._stopping = True
                self._cancel()
                raise
        return {s.name: finished[s.name] for s in pipeline.stages}

    def _startable(
        self,
        pipeline: Pipeline,
        finished: Mapping[str, Done],
        running: Mapping[Future[Done], Stage],
    ) -> list[tuple[Stage, int, bool]]:
        """Stages whose inputs are there and whose memory still fits beside those running there.

        The cores are shared out among all that run now, other builds' stages too: threads that
        spin for a core somebody else has made an export twice as long.
        """
        busy = {s.name for s in running.values()}
        chosen: list[Stage] = []
        for stage in pipeline.stages:
            if stage.name in busy or stage.name in finished or stage.after() - set(finished):
                continue
            place = self._place(stage)
            beside = [s for s in (*running.values(), *chosen) if self._place(s) is place]
            free = place.limits.memory - sum(s.memory for s in beside)
            if stage.memory <= free or not beside:
                chosen.append(stage)
        return [(s, *self._share(s, [*running.values(), *chosen])) for s in chosen]

    def _share(self, stage: Stage, together: list[Stage]) -> tuple[int, bool]:
        """How many cores a stage gets, and whether it has others beside it."""
        place = self._place(stage)
        count = sum(1 for s in together if self._place(s) is place)
        if place is self._here:
            count += self._store.running_elsewhere()
        return max(1, place.limits.cpus // count), count > 1

    def _place(self, stage: Stage) -> Place:
        place = self._elsewhere.get(stage.name, self._here)
        assert place is not None, f"{stage.name} has no place to run"
        return place

    def _cancel(self) -> None:
        places = [*([self._here] if self._here else []), *self._elsewhere.values()]
        for executor in {id(p.executor): p.executor for p in places}.values():
            executor.cancel()

    def _stage(self, stage: Stage, finished: Mapping[str, Done], cpus: int, beside: bool) -> Done:
        entries = {name: done.entry for name, done in finished.items()}
        key = self._planner.key(stage, entries)
        assert key is not None, f"{stage.name} started before what it reads"

        def on_wait() -> None:
            self._reporter.say(f"{stage.name}: another build is making this; waiting for it")

        with self._store.building(key, on_wait):
            if found := self._store.find(key):
                self._reporter.ended(stage.name, "cached", {})
                return Done(entry=found, ran=False, seconds=0.0)
            return self._make(stage, key, entries, cpus, beside)

    def _make(
        self, stage: Stage, key: str, entries: Mapping[str, Entry], cpus: int, beside: bool
    ) -> Done:
        began, place = time.monotonic(), self._place(stage)
        work = self._workspace(key)
        seen = _Seen(stage.name, self._reporter.progressed, self._reporter.say)
        log = self._logs / f"{stage.name}-{key[:12]}.log"
        run = StageRun(
            name=stage.name,
            scripts=self._planner.scripts,
            program=stage.program,
            inputs={name: _locate(source, entries) for name, source in stage.inputs.items()},
            params=stage.params,
            work=work,
            log=log,
            cpus=cpus,
            memory=place.limits.memory,
            beside_others=beside,
            on_event=seen,
            network=stage.network,
            key=key,
            stage=stage,
        )
        where = f" on {place.name}" if place.name else f", {cpus} threads"
        self._reporter.started(stage.name, f"{stage.program} in {stage.toolchain}{where}")
        try:
            result = place.executor.run(self._toolchains[stage.toolchain], run)
            judge(stage, result, run, seen.error, seen.remedy)
            check_outputs(stage, work / "out", log)
            entry = self._store.commit(key, work, self._meta(stage, key, entries, result, seen))
        except OSError as error:
            self._failed(stage, work, log)
            raise disk_error(error, work) from error
        except BaseException:
            self._failed(stage, work, log)
            raise
        spent = time.monotonic() - began
        figures = {"seconds": spent, "peak_memory": seen.peak, "size": entry.size, "log": str(log)}
        self._reporter.ended(stage.name, "done", figures)
        return Done(entry=entry, ran=True, seconds=spent)

    def _workspace(self, key: str) -> Path:
        try:
            self._logs.mkdir(parents=True, exist_ok=True)
            return self._store.workspace(key)
        except OSError as error:
            raise disk_error(error, self._store.root) from error

    def _failed(self, stage: Stage, work: Path, log: Path) -> None:
        # Beside one that failed, or when the user stops the build, a stage did nothing wrong.
        how = "stopped" if self._stopping else "failed"
        self._reporter.ended(stage.name, how, {"log": str(log)})
        self._store.discard(work)

    def _meta(
        self,
        stage: Stage,
        key: str,
        entries: Mapping[str, Entry],
        result: StageResult,
        seen: _Seen,
    ) -> dict[str, Any]:
        executor = self._place(stage).executor
        return {
            "stage": stage.name,
            "toolchain": stage.toolchain,
            "toolchain_digest": self._toolchains[stage.toolchain].digest,
            "program": stage.program,
            "params": dict(stage.params),
            "inputs": {n: _say(s, entries) for n, s in stage.inputs.items()},
            "executor": executor.name,
            "drift": executor.drift(self._toolchains[stage.toolchain]),
            "seconds": round(result.seconds, 3),
            "peak_memory": seen.peak,
        }


class _Seen:
    """Hears a stage's events: shows progress, keeps the peak and the program's last word."""

    def __init__(self, name: str, show: Callable[..., None], say: Callable[[str], None]) -> None:
        self._name, self._show, self._say = name, show, say
        self.peak: int | None = None
        self.error = ""
        self.remedy = ""

    def __call__(self, event: Event) -> None:
        kind = event["event"]
        if kind == "progress":
            done, total = event.get("done", 0), event.get("total")
            self._show(self._name, done, total, event.get("unit", ""), event.get("what", ""))
        elif kind == "note":
            self._say(f"{self._name}: {event.get('text', '')}")
        elif kind == "usage":
            self.peak = int(event.get("peak_bytes", 0)) or None
        elif kind == "error":
            self.error, self.remedy = str(event.get("text", "")), str(event.get("remedy", ""))


def _locate(source: Input, entries: Mapping[str, Entry]) -> Path:
    if isinstance(source, FromPath):
        return source.path
    return entries[source.stage].output(source.output)


def _say(source: Input, entries: Mapping[str, Entry]) -> dict[str, str]:
    if isinstance(source, FromPath):
        return {"path": source.path.name}
    digest = entries[source.stage].output_digest(source.output)
    return {"stage": source.stage, "output": source.output, "digest": digest}
