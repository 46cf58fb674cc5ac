"""What a manifest says of how its bundle was made: enough to make the bundle again, and to compare.

    models   each model by its role: where from, and every file's size and sha256
    stages   in the order they were made: the program with all its modules, the digest of the
             parameters, the inputs' (but a secret's) and the outputs' digests, every file of the
             outputs
    checkout the commit of edgekiln's own checkout; "" where it is none
    base     the base that was asked for with --base, "" for the toolchains' own

What a provenance statement says of models and stages is made out of this (provenance.py).

Manifests of older builds have the stages' keys, toolchains and times only; what reads a manifest
takes each of these as something that may be missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from edgekiln.calls import call
from edgekiln.digest import FileIndex, combine, digest_json
from edgekiln.home import project
from edgekiln.keys import program_files
from edgekiln.pipeline import FromPath, FromStage, Input

if TYPE_CHECKING:
    from edgekiln.models import Model
    from edgekiln.plan import Planned, Planner
    from edgekiln.store import Entry


def record(
    models: Mapping[str, Model],
    planned: Iterable[Planned],
    planner: Planner,
    index: FileIndex,
    *,
    base: str | None,
) -> dict[str, Any]:
    """The manifest's part on models and stages, all of which are finished."""
    planned = list(planned)
    entries = {p.stage.name: p.entry for p in planned if p.entry}
    return {
        "models": {role: _model(model, index) for role, model in models.items()},
        "base": base or "",
        "checkout": _commit(),
        "stages": {p.stage.name: _stage(p, entries, planner) for p in planned},
    }


def _commit() -> str:
    """The checkout's commit: a hint for people. What counts are the digests of its programs."""
    done = call(["git", "-C", str(project()), "rev-parse", "HEAD"])
    return done.stdout.strip() if done.returncode == 0 else ""


def _model(model: Model, index: FileIndex) -> dict[str, Any]:
    files = index.files(model.path)
    # A folder of the user's has no other name than its place.
    place = {"place": str(model.path.absolute())} if model.source == "local" else {}
    return {
        "name": model.name,
        "source": model.source,
        **place,
        "digest": combine((name, size, sha) for name, (size, sha) in files.items()),
        "files": {name: {"size": size, "sha256": sha} for name, (size, sha) in files.items()},
    }


def _stage(planned: Planned, entries: Mapping[str, Entry], planner: Planner) -> dict[str, Any]:
    stage, entry = planned.stage, entries[planned.stage.name]
    meta = entry.meta
    return {
        "key": entry.key,
        "toolchain": meta["toolchain"],
        "program": stage.program,
        "programs": program_files(planner.scripts, stage.program),
        "parameters": digest_json(dict(stage.params)),
        "inputs": {
            name: _named(source) | _digest(source, planner, entries)
            for name, source in stage.inputs.items()
        },
        "outputs": {name: _output(output) for name, output in meta["outputs"].items()},
        "executor": meta["executor"],
        "seconds": meta["seconds"],
        "peak_memory": meta["peak_memory"],
    }


def _named(source: Input) -> dict[str, str]:
    if isinstance(source, FromStage):
        return {"stage": source.stage, "output": source.output}
    return {"path": source.path.name}


def _digest(source: Input, planner: Planner, entries: Mapping[str, Entry]) -> dict[str, str]:
    if isinstance(source, FromPath) and source.secret:
        return {}
    digest = planner.input_digest(source, entries)
    assert digest is not None, "all stages are done"
    return {"digest": digest}


def _output(output: Mapping[str, Any]) -> dict[str, Any]:
    """An entry's words on an output, less the times, which are this machine's."""
    files = {n: {"size": size, "sha256": sha} for n, (size, _, sha) in output["files"].items()}
    return {"digest": output["digest"], "files": files}
