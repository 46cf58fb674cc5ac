"""The far side: answers what home asks on standard input (`python -m edgekiln.remote.far`).

One process a channel. Work goes on without it: `begin` starts a process of its own (work.py),
`follow` tells how that goes, from any event on, as often as it is asked.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from edgekiln import __version__, doctor
from edgekiln.digest import digest_json
from edgekiln.errors import KilnError, RemoteError
from edgekiln.home import home, project
from edgekiln.locking import held, is_held
from edgekiln.remote.blobs import Blobs
from edgekiln.remote.wire import CHUNK, Cut, Wire, told
from edgekiln.store import Store
from edgekiln.toolchain import load_toolchain

_BEAT_SECONDS = 10.0
# Home says nothing while it waits for a stage; in the middle of a file silence is a lost line.
_SILENCE_SECONDS = 40.0
_LOOK_SECONDS = 0.1


def main() -> None:
    """Answer until home hangs up."""
    from edgekiln.boxes.profiles import settle

    wire = _wire()
    settle()
    threading.Thread(target=_beat, args=(wire,), daemon=True).start()
    far = _Far(wire)
    with contextlib.suppress(Cut, BrokenPipeError):
        wire.send({"edgekiln": __version__, "home": str(home())})
        while True:
            far.answer(wire.receive())


def _wire() -> Wire:
    """Standard input and output; whatever else is printed goes to standard error."""
    out = os.dup(1)
    os.dup2(2, 1)

    def read(size: int) -> bytes:
        return os.read(0, size)

    def write(data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(out, view) :]

    return Wire(read, write)


def _beat(wire: Wire) -> None:
    with contextlib.suppress(OSError):
        while True:
            time.sleep(_BEAT_SECONDS)
            wire.send({"beat": True})


class _Far:
    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._root = home() / "remote"
        self._store = Store(home() / "store")
        self._blobs = Blobs(self._root, self._store)
        self._answers: dict[str, Callable[[Mapping[str, Any]], None]] = {
            "look": self._look,
            "examine": self._examine,
            "have": self._have,
            "put": self._put,
            "begin": self._begin,
            "follow": self._follow,
            "outputs": self._outputs,
            "get": self._get,
            "log": self._log,
            "cancel": self._cancel,
        }

    def answer(self, asked: Mapping[str, Any]) -> None:
        try:
            self._answers[asked["do"]](asked)
        except KilnError as error:
            self._wire.send({"error": told(error)})

    def _look(self, asked: Mapping[str, Any]) -> None:
        """What this machine is, and where its stages would run; makes nothing."""
        from edgekiln.boxes.profiles import current
        from edgekiln.executors.choose import choose_executor

        self._blobs.sweep()
        toolchains = [load_toolchain(name) for name in asked["toolchains"]]
        executor, why = choose_executor(asked["executor"], toolchains)
        found = {
            "profile": current().name,
            "free": shutil.disk_usage(doctor.existing(home())).free,
            "cpus": doctor.usable_cpus(),
            "memory": doctor.usable_memory(),
            "vram": doctor.free_vram(),
            "executor": executor.name,
            "describe": executor.describe(),
            "why": why,
        }
        executor.close()
        self._wire.send(found)

    def _examine(self, asked: Mapping[str, Any]) -> None:
        """Each stage that is to run here against what is here; the first that cannot is told."""
        from edgekiln.boxes import gate

        have, executor = asked["memory"] or doctor.usable_memory(), asked["executor"]
        toolchains = [load_toolchain(name) for name in asked["toolchains"]]
        checks = [*gate.writable(), *gate.machine(executor), *gate.native(toolchains, executor)]
        for stage in asked["stages"]:
            what = f"stage {stage['name']}"
            checks.append(doctor.check_memory(stage["memory"], have, what))
            if stage["vram"]:
                checks.append(doctor.check_vram(stage["vram"], what))
        room = sum(int(stage["disk"]) for stage in asked["stages"]) + asked["bytes"]
        needs = [(home(), room, "inputs and outputs"), *gate.room(toolchains, executor)]
        checks += doctor.check_disk(needs)
        found = [
            {"name": c.name, "found": c.found, "error": told(c.error) if c.error else None}
            for c in checks
        ]
        self._wire.send({"checks": found})

    def _have(self, asked: Mapping[str, Any]) -> None:
        self._wire.send({"have": self._blobs.have(asked["files"])})

    def _put(self, asked: Mapping[str, Any]) -> None:
        """Take the bytes that follow: files one after another, each from an offset on."""
        failed: KilnError | None = None
        for sha, size, offset in asked["files"]:
            pieces = self._patiently(size - offset)
            try:
                if failed is None:
                    with held(self._root / "locks" / f"{sha}.lock"):
                        self._blobs.add(sha, offset, pieces)
            except KilnError as error:
                failed = error
            for _ in pieces:  # what is announced is read, else no more can be said
                pass
        if failed:
            raise failed
        self._wire.send({"stored": len(asked["files"])})

    def _patiently(self, size: int) -> Iterator[bytes]:
        """The bytes of a file; a line that is lost unnoticed must not keep the file's lock."""
        signal.signal(signal.SIGALRM, _too_silent)
        signal.setitimer(signal.ITIMER_REAL, _SILENCE_SECONDS)
        try:
            for piece in self._wire.body(size):
                signal.setitimer(signal.ITIMER_REAL, 0)
                yield piece
                signal.setitimer(signal.ITIMER_REAL, _SILENCE_SECONDS)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _begin(self, asked: Mapping[str, Any]) -> None:
        """Start a piece of work, unless it is being done or this very attempt has ended.

        `secrets` are put into the environment of that one process, and nowhere else.
        """
        job = asked["job"]
        folder = self._job(digest_json(job)[:32])
        folder.mkdir(parents=True, exist_ok=True)
        with held(folder / "begin.lock"):
            if not is_held(folder / "running.lock"):
                attempt = folder / "attempt"
                ended = (folder / "result.json").exists()
                if not (ended and _text(attempt) == asked["attempt"]):
                    self._start(folder, job, asked["attempt"], asked.get("secrets") or {})
        self._wire.send({"id": folder.name})

    def _start(
        self, folder: Path, job: Mapping[str, Any], attempt: str, secrets: Mapping[str, str]
    ) -> None:
        for old in ("result.json", "events.jsonl", "attempt"):
            (folder / old).unlink(missing_ok=True)
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        (folder / "attempt").write_text(attempt, encoding="utf-8")
        with (folder / "errors.log").open("wb") as errors:
            worker = subprocess.Popen(
                [sys.executable, "-m", "edgekiln.remote.work", str(folder)],
                cwd=project(),
                env={**os.environ, **secrets},
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                start_new_session=True,
                close_fds=True,
            )
        result = folder / "result.json"
        _until(lambda: is_held(folder / "running.lock") or result.exists() or bool(worker.poll()))

    def _follow(self, asked: Mapping[str, Any]) -> None:
        """Tell the events of a piece of work from `offset` on, and at the end its result."""
        folder, offset = self._job(asked["id"]), int(asked["offset"])
        while True:
            running = is_held(folder / "running.lock")  # before the events: none is missed
            offset, lines = _read_on(folder / "events.jsonl", offset)
            if lines:
                self._wire.send({"events": lines, "offset": offset})
            if not running:
                result = _json(folder / "result.json")
                self._wire.send({"ended": result, "last_words": _last_words(folder)})
                return
            if not lines:
                time.sleep(_LOOK_SECONDS)
                if _hung_up():
                    raise Cut("home has hung up")

    def _outputs(self, asked: Mapping[str, Any]) -> None:
        """The files of a finished stage; nothing where it is not finished here."""
        entry = self._store.find(asked["key"])
        if entry is None:
            self._wire.send({"outputs": None})
            return
        outputs = {}
        for name, output in entry.meta["outputs"].items():
            root = entry.output(name)
            files = {
                relative: (size, sha, _is_program(root / relative if output["folder"] else root))
                for relative, (size, _, sha) in output["files"].items()
            }
            outputs[name] = {**output, "files": files}
        kept = ("peak_memory", "seconds", "drift", "executor")
        meta = {name: entry.meta.get(name) for name in kept}
        self._wire.send({"outputs": outputs, "meta": meta})

    def _get(self, asked: Mapping[str, Any]) -> None:
        """The bytes of files of a finished stage, one after another, each from an offset on."""
        entry = self._store.find(asked["key"])
        if entry is None:
            raise RemoteError(f"the outputs of {asked['key'][:12]} are gone", remedy="build again")
        self._wire.send({}, self._bodies(entry.path / "out", asked["files"]))

    def _bodies(self, out: Path, files: list[tuple[str, int, int]]) -> Iterator[bytes]:
        for relative, size, offset in files:
            left = size - offset
            with (out / relative).open("rb") as file:
                file.seek(offset)
                while left and (piece := file.read(min(left, CHUNK))):
                    left -= len(piece)
                    yield piece
            if left:
                raise Cut(f"{relative} has become shorter")

    def _log(self, asked: Mapping[str, Any]) -> None:
        """What a stage's program said on its standard error."""
        path = Path(_text(self._job(asked["id"]) / "log"))
        data = path.read_bytes() if path.is_file() else b""
        self._wire.send({"bytes": len(data), "path": str(path)}, [data])

    def _cancel(self, asked: Mapping[str, Any]) -> None:
        folder = self._job(asked["id"])
        if is_held(folder / "running.lock"):
            with contextlib.suppress(OSError, ValueError):
                os.kill(int(_text(folder / "pid")), signal.SIGTERM)
        self._wire.send({})

    def _job(self, name: str) -> Path:
        return self._root / "jobs" / name


def _too_silent(*_: object) -> None:
    raise Cut("nothing has come for too long")


def _hung_up() -> bool:
    """Whether home has closed its end; it says nothing while it listens."""
    ready, _, _ = select.select([0], [], [], 0)
    return bool(ready)


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true() and time.monotonic() < deadline:
        time.sleep(0.02)


def _read_on(path: Path, offset: int) -> tuple[int, list[Any]]:
    """The whole lines of a file from `offset` on, and where they end."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(1 << 20)
    except FileNotFoundError:
        return offset, []
    end = data.rfind(b"\n") + 1
    return offset + end, [json.loads(line) for line in data[:end].splitlines()]


def _last_words(folder: Path) -> str:
    lines = [line.strip() for line in _text(folder / "errors.log").splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _is_program(path: Path) -> bool:
    return bool(path.stat().st_mode & 0o111)


if __name__ == "__main__":
    main()
