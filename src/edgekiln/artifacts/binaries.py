"""Hexagon context binaries: what Qualcomm's own reader says of them, in the toolchain qnn.

The reader is a library of the vendor's that only the toolchain holds, so the looking is a stage
like any other (scripts/qnn/look.py): in a container or a native prefix, kept in the store.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekiln.artifacts import Facts, damaged
from edgekiln.artifacts.tensors import alike
from edgekiln.errors import UsageError
from edgekiln.report import table

if TYPE_CHECKING:
    from edgekiln.executors.base import Executor
    from edgekiln.plan import Planner
    from edgekiln.report import Reporter
    from edgekiln.store import Entry, Store

# The head's version (2) and the format's (3), big-endian, as QNN 2.36 to 2.51 write them.
_MAGIC = bytes.fromhex("0000000200000003")
_TOOLCHAIN = "qnn"
_SPARE = 512 << 20


def is_context_binary(start: bytes) -> bool:
    """Whether a file that begins so is a QNN context binary."""
    return start.startswith(_MAGIC)


def read(path: Path, reporter: Reporter, executor: str) -> Facts:
    """A context binary's build, chip, graphs and tensors.

    Raises ArtifactError for a damaged one; EngineError or ImageError where the toolchain cannot
    be had.
    """
    try:
        facts = _look(path.absolute(), reporter, executor)
    except UsageError as error:  # what the stage's program calls bad input
        raise damaged(path, "QNN context binary", error.what) from error
    del facts["format"]
    facts["soc"] = _soc(facts["soc_model"])
    graphs = "\n\n".join(_graph(graph) for graph in facts["graphs"])
    return Facts(kind="context_binary", facts=facts, rows=tuple(_rows(facts)), tail=graphs)


def _look(path: Path, reporter: Reporter, wanted: str) -> dict[str, Any]:
    from edgekiln.build import open_store
    from edgekiln.pipeline import FromPath, Output, Pipeline, Stage
    from edgekiln.plan import Planner
    from edgekiln.toolchain import load_toolchain

    stage = Stage(
        name="look",
        toolchain=_TOOLCHAIN,
        program="qnn/look.py",
        inputs={"file": FromPath(path=path)},
        outputs=(Output(name="look", files=("look.json",)),),
        memory=path.stat().st_size + _SPARE,
        disk=1 << 20,
    )
    pipeline = Pipeline(stages=(stage,))
    with open_store() as store:
        planner = Planner(store, {_TOOLCHAIN: load_toolchain(_TOOLCHAIN)}, reporter)
        entry = planner.plan(pipeline)[0].entry
        if entry is None:
            entry = _run(pipeline, planner, store, reporter, wanted)
        text = (entry.output("look") / "look.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def _run(pipeline: Any, planner: Planner, store: Store, reporter: Reporter, wanted: str) -> Entry:
    from edgekiln.build import Settings, limits
    from edgekiln.executors.choose import choose_executor
    from edgekiln.home import home
    from edgekiln.runner import Runner

    executor, _ = choose_executor(wanted)
    try:
        executor.tidy()
        _make_ready(executor, planner, reporter)
        runner = Runner(
            store=store,
            executor=executor,
            planner=planner,
            reporter=reporter,
            limits=limits(Settings()),
            logs=home() / "logs",
        )
        return runner.run(pipeline, planner.plan(pipeline))["look"].entry
    finally:
        executor.close()


def _make_ready(executor: Executor, planner: Planner, reporter: Reporter) -> None:
    from edgekiln.report import Task

    toolchain = planner.toolchains[_TOOLCHAIN]
    if not executor.ready(toolchain):
        task = f"toolchain {_TOOLCHAIN}"
        reporter.started(task, f"making it ready ({toolchain.summary})")
        executor.prepare(toolchain, Task(reporter, task, "steps"))
        reporter.ended(task, "done", {})


def _soc(number: int | None) -> str:
    from edgekiln.backends.qnn_socs import socs

    return next((soc.soc for soc in socs() if soc.soc_model == number), "")


def _rows(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    from edgekiln.backends.qnn_socs import socs

    yield "kind", "QNN context binary for Hexagon"
    yield "QNN build", facts["qnn_build"]
    chip = next((s for s in socs() if s.soc == facts["soc"]), None)
    number = facts["soc_model"]
    known = f"{chip.title}, soc_model {number}, Hexagon {chip.arch}" if chip else None
    yield "for", known or (f"soc_model {number}, of no chip in the table" if number else "not said")
    yield "graphs", ", ".join(graph["name"] for graph in facts["graphs"])


def _graph(graph: Mapping[str, Any]) -> str:
    rows = [
        (side, *row)
        for side, tensors in (("in", graph["inputs"]), ("out", graph["outputs"]))
        for row in alike(tensors)
    ]
    return f"{graph['name']}\n" + table(rows, ("", "tensor", "type", "shape", "scale", "offset"))
