"""Run in a box: what a stage finds in an unpacked image, and how it ends. Prints JSON.

    python rootfs_inside.py FOLDER

The image of mnn must be unpacked and proved in EDGEKILN_HOME.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgekiln.errors import KilnError
from edgekiln.executors.rootfs import RootfsExecutor
from edgekiln.pipeline import FromPath, Pipeline
from edgekiln.rootfs.confine import has_landlock
from edgekiln.toolchain import load_toolchain
from tests.builds.kit import alive
from tests.builds.test_docker_executor import LOOK
from tests.builds.test_native_executor import FAMILY
from tests.unit.kit import Bench, stage

WRITE_ALL = """
def tried(path):
    try:
        Path(path).write_text('x')
        return 'written'
    except OSError as error:
        return type(error).__name__
# With Landlock nothing of these can be written, whoever owns it.
stage.output('made').write_text(json.dumps({
    path: tried(path) for path in ('/opt/edgekiln/lock.json', '/new', '/in/model/config.json')
}))
"""


SEEN: list[int] = []


def one(bench: Bench, body: str, **inputs: Path) -> str:
    """The text that a stage of that body makes."""
    bench.program("one.py", body)
    sources: dict[str, Any] = {name: FromPath(path=path) for name, path in inputs.items()}
    made = bench.run(Pipeline(stages=(stage("one", "one.py", **sources),)))["one"]
    return made.entry.output("made").read_text()


def refused(bench: Bench, body: str) -> dict[str, Any]:
    """The error that a stage of that body ends with."""
    try:
        one(bench, body)
    except KilnError as error:
        return {"kind": error.kind, "text": " ".join(error.lines())}
    return {}


def family(bench: Bench, then: str, during: Callable[[RootfsExecutor], None]) -> list[int]:
    """Which processes of a stage with a family are alive afterwards."""
    executor = RootfsExecutor()
    bench.executor = lambda: executor
    threading.Thread(target=during, args=(executor,), daemon=True).start()
    # Their ids are written to a place of the stage's own.
    bench.program("family.py", FAMILY.format(pids="/scratch", then=then))
    with contextlib.suppress(KilnError, KeyboardInterrupt):
        bench.run(Pipeline(stages=(stage("family", "family.py"),)))
    return [pid for pid in processes() if alive(pid)]


def beside(bench: Bench, model: Path) -> str:
    """What a stage reads of its input after another one, in the same root, has come and gone."""
    read = "stage.output('made').write_text((stage.input('model') / 'config.json').read_text())"
    bench.program("slow.py", f"time.sleep(2)\n{read}")
    bench.program("quick.py", read)
    given = FromPath(path=model)
    names = ("slow", "quick", "quick2")
    programs = ("slow.py", "quick.py", "quick.py")
    stages = (stage(n, p, model=given) for n, p in zip(names, programs, strict=True))
    made = bench.run(Pipeline(stages=tuple(stages)))["slow"]
    return made.entry.output("made").read_text()


def processes() -> list[int]:
    """Every process of this box that would sleep for ten minutes."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if b"time.sleep(600)" in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def cancelled(executor: RootfsExecutor) -> None:
    """End the stage once its whole family runs."""
    while len(processes()) < 3:
        time.sleep(0.05)
    SEEN.append(len(processes()))
    executor.cancel()


def look(root: Path) -> dict[str, Any]:
    """All that is to be found out."""
    model = root / "a:model"  # a name that proot's own options could not hold
    model.mkdir(parents=True)
    (model / "config.json").write_text('{"a": 1}')
    blobs, snapshot = root / "blobs", root / "snapshots"
    for folder in (blobs, snapshot):
        folder.mkdir()
    (blobs / "0123").write_text("weights")
    (snapshot / "model.bin").symlink_to(Path("..", "blobs", "0123"))
    bench = Bench(root, load_toolchain("mnn"), executor=RootfsExecutor)
    found: dict[str, Any] = {"landlock": has_landlock(), "says": RootfsExecutor().describe()}
    if Path("/proc/self").exists() and "chroot" not in found["says"]:
        found["seen"] = json.loads(one(bench, LOOK, model=model))
    found["written"] = json.loads(one(bench, WRITE_ALL, model=model))
    found["beside"] = beside(bench, model)
    farm = "stage.output('made').write_text((stage.input('farm') / 'model.bin').read_text())"
    found["farm"] = one(bench, farm, farm=snapshot)
    found["killed"] = refused(bench, "os.kill(os.getpid(), 9)")
    found["failed"] = refused(bench, "raise stagekit.BadInput('the words of the stage')")
    bench.limits = type(bench.limits)(cpus=1, memory=150 << 20)
    found["memory"] = refused(bench, "x = bytearray(300 << 20); time.sleep(60)")
    bench.limits = type(bench.limits)(cpus=1, memory=1 << 30)
    found["left"] = family(bench, "stage.output('made').write_text('x')", lambda _: None)
    found["cancelled"] = family(bench, "time.sleep(600)", cancelled)
    found["were"] = SEEN
    found["workspaces"] = [str(path) for path in (root / "store").glob("v1/doing/*")]
    found["config"] = (model / "config.json").read_text()
    return found


if __name__ == "__main__":
    os.umask(0o022)
    json.dump(look(Path(sys.argv[1])), sys.stdout)
