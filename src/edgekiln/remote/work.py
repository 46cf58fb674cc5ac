"""The far side: one piece of work, done to its end whatever becomes of the connection.

    python -m edgekiln.remote.work FOLDER

FOLDER/job.json says what to do. How it goes is told in events.jsonl, one event a line, as
`kiln build --json` tells it; result.json comes last. A stage is run as a build of one stage: its
key is made anew, out of what is here, and must be the one that home has.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekiln import doctor
from edgekiln.errors import KilnError, RemoteError
from edgekiln.executors.choose import choose_executor
from edgekiln.home import home
from edgekiln.locking import held
from edgekiln.pipeline import FromPath, Output, Pipeline, Stage
from edgekiln.remote.blobs import Blobs
from edgekiln.remote.wire import told
from edgekiln.report import JsonReporter, Task
from edgekiln.store import Store
from edgekiln.toolchain import Toolchain, load_toolchain


def main(folder: Path) -> None:
    """Do the work; leave a result whatever happens."""
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with held(folder / "running.lock"):
        (folder / "pid").write_text(str(os.getpid()), encoding="utf-8")
        with (folder / "events.jsonl").open("a", encoding="utf-8") as events:
            result = _result(folder, JsonReporter(events))
        fresh = folder / "result.json.new"
        fresh.write_text(json.dumps(result), encoding="utf-8")
        fresh.replace(folder / "result.json")


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


def _result(folder: Path, reporter: JsonReporter) -> dict[str, Any]:
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    kinds = {"prepare": _prepare, "stage": _stage, "model": _model}
    try:
        return kinds[job["kind"]](job, folder, reporter)
    except KilnError as error:
        return {"error": told(error)}
    except KeyboardInterrupt:
        return {"stopped": True}
    except Exception as error:
        import traceback

        traceback.print_exc()
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        fault = KilnError("edgekiln made a mistake", why=what, remedy=f"see {folder}/errors.log")
        return {"error": told(fault)}


def _toolchain(job: Mapping[str, Any]) -> Toolchain:
    """The toolchain as this machine's checkout has it: it must be the one that home has."""
    toolchain = load_toolchain(job["toolchain"], base=job["base"] or None)
    if toolchain.kits and toolchain.digest != job["digest"]:
        from edgekiln.executors.kitlinks import settle_kits
        from edgekiln.progress import Silent

        settle_kits([toolchain], Silent())
        toolchain = load_toolchain(job["toolchain"], base=job["base"] or None)
    if toolchain.digest != job["digest"]:
        raise RemoteError(
            f"the toolchain {toolchain.asked} is another one here than at home",
            why=f"{toolchain.digest[:12]} here, {job['digest'][:12]} at home",
            remedy="run `kiln toolchains lock --check` at home",
        )
    return toolchain


def _prepare(job: Mapping[str, Any], folder: Path, reporter: JsonReporter) -> dict[str, Any]:
    toolchain = _toolchain(job)
    executor, _ = choose_executor(job["executor"], [toolchain])
    try:
        executor.tidy()
        if not executor.ready(toolchain):
            executor.prepare(toolchain, Task(reporter, "prepare", "steps"))
        return {"drift": executor.drift(toolchain)}
    finally:
        executor.close()


def _model(job: Mapping[str, Any], folder: Path, reporter: JsonReporter) -> dict[str, Any]:
    """Fetch a model by its source, and keep its files as if they had been sent."""
    from edgekiln.models import resolve

    found = resolve(job["source"], progress=Task(reporter, "model"))
    store = Store(home() / "store")
    try:
        blobs, files = Blobs(home() / "remote", store), store.index.files(found.path)
        for name, (_, sha) in files.items():
            blobs.take(sha, found.path / name)
        return {"files": len(files)}
    finally:
        store.close()


def _stage(job: Mapping[str, Any], folder: Path, reporter: JsonReporter) -> dict[str, Any]:
    """Run one stage as a build of its own; its outputs end in this machine's store."""
    from edgekiln.plan import Planner
    from edgekiln.runner import Limits, Runner

    toolchain = _toolchain(job)
    store = Store(home() / "store")
    executor, _ = choose_executor(job["executor"], [toolchain])
    try:
        stage = _read_stage(job["stage"], Blobs(home() / "remote", store))
        planner = Planner(store, {stage.toolchain: toolchain}, reporter)
        key = planner.key(stage, {})
        if key is None or key != job["key"]:
            raise RemoteError(
                f"stage {stage.name} is another one here than at home",
                why=f"its key is {str(key)[:12]} here, {job['key'][:12]} at home",
                remedy="report it; until then, build that stage at home",
            )
        logs = home() / "logs"
        (folder / "log").write_text(str(logs / f"{stage.name}-{key[:12]}.log"), encoding="utf-8")
        pipeline = Pipeline(stages=(stage,))
        runner = Runner(
            store=store,
            executor=executor,
            planner=planner,
            reporter=reporter,
            limits=Limits(
                cpus=doctor.usable_cpus(), memory=job["memory"] or doctor.usable_memory()
            ),
            logs=logs,
        )
        runner.run(pipeline, planner.plan(pipeline))
        return {"key": key}
    finally:
        executor.close()
        store.close()


def _read_stage(told: Mapping[str, Any], blobs: Blobs) -> Stage:
    """The stage that home has, its inputs being trees of files on this machine."""
    inputs = {
        name: FromPath(path=blobs.tree(tree["name"], tree["files"], tree["folder"]))
        for name, tree in told["inputs"].items()
    }
    outputs = tuple(Output(name=o["name"], files=tuple(o["files"])) for o in told["outputs"])
    kept = ("name", "toolchain", "program", "params", "memory", "disk", "vram", "network")
    return Stage(inputs=inputs, outputs=outputs, **{name: told[name] for name in kept})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
