"""The executor whose stages run on another machine, over SSH.

A stage's inputs go over by their digests, the stage is run there as a build of its own under the
key it has here, and its outputs come back. What is done there does not need the connection: after
a cut, or when this build was killed, the next try finds how far it has come.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekiln.digest import FileIndex
from edgekiln.errors import KilnError, RemoteError, StageError
from edgekiln.executors.base import StageResult, StageRun
from edgekiln.home import home
from edgekiln.remote import moving
from edgekiln.remote.line import Line, again
from edgekiln.remote.link import Link
from edgekiln.remote.pack import pack
from edgekiln.remote.parts import forget_unused
from edgekiln.remote.setup import Far, set_up
from edgekiln.remote.wire import Cut, meant
from edgekiln.units import parse_size

if TYPE_CHECKING:
    from edgekiln.pipeline import Stage
    from edgekiln.progress import Progress
    from edgekiln.remote.hosts import Host
    from edgekiln.toolchain import Toolchain

# What a machine that fetches a model by itself may need; they go to that one process.
_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "MODELSCOPE_API_TOKEN")


class RemoteExecutor:
    """Runs stages on one other machine."""

    def __init__(
        self,
        host: Host,
        index: FileIndex,
        say: Callable[[str], None],
        *,
        models: Mapping[Path, str] | None = None,
        accept_new: bool = False,
    ) -> None:
        self.host, self._index, self._say = host, index, say
        self._models = dict(models or {}) if host.models == "fetch" else {}
        # What a manifest calls it: how stages run there, not which machine it is.
        self.name = "ssh"
        self.link = Link(host, accept_new=accept_new)
        self._far: Far | None = None
        self.there: dict[str, Any] = {}
        self._ready: dict[str, list[str]] = {}
        self._guard = threading.Lock()
        self._moving = threading.Lock()  # one transfer at a time: each has the whole line
        self._lines: dict[Line, str] = {}  # the work that each follows
        self._stop = threading.Event()
        self._incoming = home() / "incoming"

    def connect(self, progress: Progress, toolchains: Sequence[str] = ()) -> None:
        """Reach the machine, bring edgekiln's own files over, and ask what it has.

        Where stages run there may depend on the toolchains they want.
        """
        packed = pack()

        def work() -> Far:
            return set_up(self.link, packed, progress)

        self._far = again(work, self.link, self._say, self._stop)
        with self._line() as line:
            asked = {"executor": self.host.executor, "toolchains": sorted(toolchains)}
            self.there = line.again(lambda: line.ask(do="look", **asked))
        self.name = f"ssh:{self.there['executor']}"

    @property
    def home(self) -> str:
        """EDGEKILN_HOME there."""
        assert self._far is not None, "connect() comes first"
        return self._far.home

    @property
    def memory(self) -> int:
        """Bytes that a stage may use there."""
        given = self.host.memory
        return parse_size(given, where="memory") if given else int(self.there["memory"])

    def describe(self) -> str:
        """Where stages will run."""
        return f"{self.there['describe']}, on {self.host.name}"

    def examine(self, stages: Sequence[Stage], inputs: Sequence[Path]) -> list[dict[str, Any]]:
        """What that machine's doctor says of these stages: `name`, `found`, an `error` or none.

        `inputs` lie here and are counted as far as they are still to be sent.
        """
        files = [file for path in inputs for file in self._files(path).values()]
        wanted = {sha: size for size, sha in files}
        kept = ("name", "memory", "disk", "vram")
        told = [{name: getattr(stage, name) for name in kept} for stage in stages]
        with self._line() as line:

            def work() -> list[dict[str, Any]]:
                have = line.ask(do="have", files=wanted)["have"]
                lacking = sum(size - have[sha] for sha, size in wanted.items())
                asked = {
                    "stages": told,
                    "toolchains": sorted({stage.toolchain for stage in stages}),
                    "executor": self.there["executor"],
                    "bytes": max(lacking, 0),
                    "memory": self.memory if self.host.memory else None,
                }
                return list(line.ask(do="examine", **asked)["checks"])

            checks: list[dict[str, Any]] = line.again(work)
            return checks

    def ready(self, toolchain: Toolchain) -> bool:
        """Whether this build has seen it ready there."""
        return toolchain.digest in self._ready

    def prepare(self, toolchain: Toolchain, progress: Progress) -> None:
        """Make the toolchain ready there: its kits, then the image or the prefix."""

        def hear(event: Mapping[str, Any]) -> None:
            if event["event"] == "progress":
                progress.update(event["done"], event["total"], event["what"])
            elif event["event"] == "note":
                progress.note(event["text"].partition(": ")[2] or event["text"])

        job = {"kind": "prepare", **self._named(toolchain), "executor": self.host.executor}
        with self._line() as line:
            result = self._work(line, job, hear)
        self._ready[toolchain.digest] = result["drift"]

    def tidy(self) -> None:
        """Remove what was fetched for builds that never came to their end."""
        forget_unused(self._incoming.glob("*/*"))
        for place in self._incoming.glob("*"):
            with contextlib.suppress(OSError):
                place.rmdir()

    def drift(self, toolchain: Toolchain) -> list[str]:
        """What of the toolchain is newer there than its lock."""
        return self._ready.get(toolchain.digest, [])

    def run(self, toolchain: Toolchain, run: StageRun) -> StageResult:
        """Run a stage there, or find it finished there; its outputs are brought into run.work."""
        began = time.monotonic()
        stage = run.stage
        assert stage is not None and run.key
        run.log.touch()
        with self._line() as line:
            found = line.again(lambda: line.ask(do="outputs", key=run.key))
            if found["outputs"] is None:
                trees = self._sent(line, run)
                job = self._job(toolchain, stage, run, trees)
                self._work(line, job, _as_stage(run), log=run.log)
                found = line.again(lambda: line.ask(do="outputs", key=run.key))
            else:
                self._note(run, f"finished on {self.host.name} already")
            if found["outputs"] is None:
                raise RemoteError(
                    f"{self.host.name} has lost what {run.name} made",
                    remedy="run this again; where it comes back, look at that machine's disk",
                )
            self._fetched(line, found["outputs"], run)
        if peak := found["meta"]["peak_memory"]:
            run.on_event({"event": "usage", "peak_bytes": peak})
        return StageResult(exit_code=0, seconds=time.monotonic() - began)

    def cancel(self) -> None:
        """End what runs there for this build."""
        self._stop.set()
        with self._guard:
            followed = dict(self._lines)
        for line, job in followed.items():
            if job:
                with contextlib.suppress(Cut, KilnError, KeyboardInterrupt):
                    other = Line(self.link, self._command, self._say)
                    other.ask(do="cancel", id=job)
                    other.close()
            line.stop()

    def close(self) -> None:
        """Hang up."""
        self.link.drop()

    def _command(self) -> str:
        assert self._far is not None, "connect() comes first"
        return self._far.command

    @contextlib.contextmanager
    def _line(self) -> Iterator[Line]:
        line = Line(self.link, self._command, self._say)
        with self._guard:
            if self._stop.is_set():
                raise KeyboardInterrupt
            self._lines[line] = ""
        try:
            yield line
        finally:
            line.close()
            with self._guard:
                del self._lines[line]

    def _files(self, path: Path) -> dict[str, tuple[int, str]]:
        return self._index.files(path)

    def _named(self, toolchain: Toolchain) -> dict[str, str]:
        """A toolchain, so that it is found there and seen to be the same."""
        base = toolchain.base.given or toolchain.base.name
        return {"toolchain": toolchain.asked, "base": base, "digest": toolchain.digest}

    def _job(
        self, toolchain: Toolchain, stage: Stage, run: StageRun, trees: Mapping[str, Any]
    ) -> dict[str, Any]:
        kept = ("name", "program", "memory", "disk", "vram", "network", "toolchain")
        return {
            "kind": "stage",
            "key": run.key,
            **self._named(toolchain),
            "executor": self.host.executor,
            "memory": self.memory if self.host.memory else None,
            "stage": {
                **{name: getattr(stage, name) for name in kept},
                "params": dict(stage.params),
                "inputs": dict(trees),
                "outputs": [asdict(output) for output in stage.outputs],
            },
        }

    def _sent(self, line: Line, run: StageRun) -> dict[str, Any]:
        """See that all inputs are there; what they are, as trees of digests."""
        trees, files = {}, {}
        for name, path in run.inputs.items():
            self._model_there(line, path, run)
            folder, found = path.is_dir(), self._files(path)
            tree = {}
            for relative, (size, sha) in found.items():
                place = path / relative if folder else path
                tree[relative] = (size, sha, bool(place.stat().st_mode & 0o111))
                files[sha] = place
            trees[name] = {"name": path.name, "folder": folder, "files": tree}

        def told(done: int, total: int, rate: str) -> None:
            what = f"to {self.host.name}, {rate}"
            run.on_event(_progress(done, total, what))

        with self._moving:
            moved = line.again(lambda: moving.send(line, files, told))
        self._note(run, f"sent to {self.host.name}: {moved}")
        return trees

    def _model_there(self, line: Line, path: Path, run: StageRun) -> None:
        """Have the machine fetch a model by itself; where it cannot, the model is sent."""
        source = self._models.pop(path, None)
        if source is None:
            return
        tokens = {name: os.environ[name] for name in _TOKENS if name in os.environ}
        try:
            self._work(line, {"kind": "model", "source": source}, _as_stage(run), secrets=tokens)
        except KilnError as error:
            self._note(run, f"{error.short}; the model is sent from here")

    def _work(
        self,
        line: Line,
        job: Mapping[str, Any],
        hear: Callable[[Mapping[str, Any]], None],
        *,
        secrets: Mapping[str, str] | None = None,
        log: Path | None = None,
    ) -> dict[str, Any]:
        """Have a piece of work done there; follow it to its end, over however many connections.

        What a stage's program said there is put into `log`.
        """
        attempt, heard = uuid.uuid4().hex, 0
        asked = {"job": job, "attempt": attempt, "secrets": dict(secrets or {})}

        def begin() -> str:
            return str(line.ask(do="begin", **asked)["id"])

        def follow() -> dict[str, Any]:
            nonlocal heard
            told = line.ask(do="follow", id=name, offset=heard)
            while "ended" not in told:
                for event in told["events"]:
                    hear(event)
                heard = told["offset"]
                told = line.answer()
            return told

        name = line.again(begin)
        with self._guard:
            self._lines[line] = name
        told = line.again(follow)
        if told["ended"] is None and not self._stop.is_set():
            self._say(f"{self.host.name}: the work there was ended from outside; once more")
            heard = 0
            line.again(begin)
            told = line.again(follow)
        logged = line.again(lambda: _log(line, name, log)) if log else ""
        try:
            return self._ended(told)
        except KilnError as error:
            if logged:
                error.remedy = error.remedy.replace(logged, str(log))
            raise

    def _ended(self, told: Mapping[str, Any]) -> dict[str, Any]:
        result = told["ended"]
        if self._stop.is_set():
            raise KeyboardInterrupt
        if result is None or result.get("stopped"):
            raise StageError(
                f"the work on {self.host.name} was ended from outside",
                why=told["last_words"] or "it left no word; it was killed, or the machine stopped",
                remedy="run this again: what had arrived there is still there",
            )
        if "error" in result:
            raise meant(result["error"], self.host.name)
        return dict(result)

    def _fetched(self, line: Line, outputs: Mapping[str, Any], run: StageRun) -> None:
        incoming = self._incoming / run.key

        def told(done: int, total: int, rate: str) -> None:
            run.on_event(_progress(done, total, f"from {self.host.name}, {rate}"))

        with self._moving:
            moved = line.again(lambda: moving.fetch(line, run.key, outputs, incoming, told))
        moving.lay_out(outputs, incoming, run.work / "out")
        with contextlib.suppress(OSError):
            incoming.rmdir()
        self._note(run, f"back from {self.host.name}: {moved}")

    def _note(self, run: StageRun, text: str) -> None:
        run.on_event({"event": "note", "text": text})


def _progress(done: int, total: int, what: str) -> dict[str, Any]:
    return {"event": "progress", "done": done, "total": total, "unit": "B", "what": what}


def _as_stage(run: StageRun) -> Callable[[Mapping[str, Any]], None]:
    """What is told of a stage's build over there, as the stage's own events."""

    def hear(event: Mapping[str, Any]) -> None:
        if event["event"] == "progress":
            run.on_event({**event, "unit": event.get("unit", "")})
        elif event["event"] == "note":
            text = str(event["text"])
            run.on_event({"event": "note", "text": text.removeprefix(f"{run.name}: ")})

    return hear


def _log(line: Line, name: str, to: Path) -> str:
    """Bring a log here; where it lies there."""
    told = line.ask(do="log", id=name)
    with to.open("wb") as file:
        for piece in line.body(told["bytes"]):
            file.write(piece)
    return str(told["path"])
