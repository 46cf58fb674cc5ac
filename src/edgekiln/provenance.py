"""What a bundle's provenance.json says: an in-toto Statement with SLSA v1 build provenance.

Formats: in-toto Attestation Framework, Statement v1; slsa.dev/provenance/v1. docs/provenance.md
describes the build type, field by field.

The same inputs give the same bytes, whatever machine, place, user or executor: no time, no path,
no figure that was measured. A time is in it only where SOURCE_DATE_EPOCH sets one.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekiln import __version__
from edgekiln.errors import UsageError
from edgekiln.pipeline import FromPath, FromStage, Pipeline

if TYPE_CHECKING:
    from edgekiln.digest import FileIndex
    from edgekiln.kits import Kit
    from edgekiln.models import Model
    from edgekiln.store import Entry
    from edgekiln.toolchain import Toolchain

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:edgekiln:build:v1"
BUILDER = "urn:edgekiln:kiln"
# Our own digest of a folder: see `digest.combine`. in-toto's predefined names mean other things.
TREE = "edgekilnTree"
_COMMIT = re.compile(r"(?P<kind>[a-z]+):(?P<repo>[^@]+)@(?P<commit>[0-9a-f]{40})")
_EXAMPLE = re.compile(r"example:(?P<name>[\w.-]+)==(?P<version>[\w.+-]+)")

Descriptor = dict[str, Any]


def statement(files: Mapping[str, Mapping[str, Any]], predicate: Mapping[str, Any]) -> Descriptor:
    """The statement about a bundle's files, {name: {"sha256": …}}."""
    return {
        "_type": STATEMENT,
        "subject": [
            {"name": name, "digest": {"sha256": files[name]["sha256"]}} for name in sorted(files)
        ],
        "predicateType": PREDICATE,
        "predicate": dict(predicate),
    }


def predicate(
    *,
    parameters: Mapping[str, Any],
    made: Mapping[str, Any],
    models: Mapping[str, Model],
    pipeline: Pipeline,
    toolchains: Mapping[str, Toolchain],
    entries: Mapping[str, Entry],
    bundled: Iterable[Path],
    drift: Iterable[str],
    index: FileIndex,
) -> Descriptor:
    """SLSA's predicate of a build whose stages are all done.

    `parameters` is what the user asked for; `made` what the manifest says of models and stages
    (record.py); `bundled` are the files of the store that the bundle
    holds; `drift` names what of the toolchains was newer than its lock.
    """
    dependencies = [
        *_models(made["models"]),
        *_inputs(pipeline, models, index),
        *_programs(made["stages"]),
        *_toolchains(toolchains.values()),
    ]
    details: Descriptor = {
        "builder": {"id": BUILDER, "version": {"edgekiln": __version__}},
        "byproducts": list(
            _byproducts(pipeline, made["stages"], _used(pipeline, entries, list(bundled)))
        ),
    }
    if moment := _moment():
        details["metadata"] = {"startedOn": moment, "finishedOn": moment}
    return {
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "externalParameters": dict(parameters),
            "internalParameters": _internal(pipeline, drift),
            "resolvedDependencies": dependencies,
        },
        "runDetails": details,
    }


def portable(options: Mapping[str, Any], paths: Iterable[str]) -> dict[str, Any]:
    """Options without this machine's folders: `paths` name those that are files, by their names.

    A path in any other option (a model's folder, say) is told by its last part as well.
    """
    named = set(paths)

    def told(name: str, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if name in named:
            return Path(value).name
        return ",".join(_last(part) for part in value.split(","))

    return {name: told(name, value) for name, value in options.items()}


def _last(text: str) -> str:
    """The last part of what is a path on this machine; any other text as it is."""
    try:
        there = ("/" in text or os.sep in text) and Path(text).expanduser().exists()
    except (OSError, RuntimeError, ValueError):
        return text
    return Path(text).name if there else text


def _internal(pipeline: Pipeline, drift: Iterable[str]) -> Descriptor:
    """How edgekiln went about it: every stage with its program, toolchain and parameters."""
    stages = {
        stage.name: {
            "program": f"scripts/{stage.program}",
            "toolchain": stage.toolchain,
            "parameters": dict(stage.params),
        }
        for stage in pipeline.stages
    }
    lines = list(drift)
    return {"stages": stages, **({"drift": lines} if lines else {})}


def _models(models: Mapping[str, Mapping[str, Any]]) -> Iterator[Descriptor]:
    """Each model as a whole, then file by file."""
    for role, model in models.items():
        uri, commit = origin(model["source"])
        digests = {TREE: model["digest"], **({"gitCommit": commit} if commit else {})}
        yield {
            "name": role,
            **({"uri": uri} if uri else {}),
            "digest": digests,
            "annotations": {"model": model["name"], "source": model["source"]},
        }
        for name, file in sorted(model["files"].items()):
            yield _file(f"{role}/{name}", file["sha256"])


def origin(source: str) -> tuple[str, str]:
    """The package URL and the commit that a model's source comes to; "" for what it has not."""
    from urllib.parse import quote

    if found := _COMMIT.fullmatch(source):
        repo, commit = found["repo"], found["commit"]
        if found["kind"] == "modelscope":
            return f"https://modelscope.cn/models/{quote(repo)}", commit
        return f"pkg:huggingface/{quote(repo)}@{commit}", commit
    if found := _EXAMPLE.fullmatch(source):
        return f"pkg:pypi/{found['name'].lower()}@{quote(found['version'])}", ""
    return "", ""


def _inputs(
    pipeline: Pipeline, models: Mapping[str, Model], index: FileIndex
) -> Iterator[Descriptor]:
    """What else of this machine the stages read: calibration texts, adapters, SDKs, sources."""
    seen = {model.path for model in models.values()}
    for stage in pipeline.stages:
        for name, source in stage.inputs.items():
            if not isinstance(source, FromPath) or source.path in seen:
                continue
            seen.add(source.path)
            told: Descriptor = {"name": f"input:{stage.name}/{name}"}
            if not source.secret:
                told["digest"] = _digest(source.path, index)
            yield {**told, "annotations": {"file": source.path.name}}


def _digest(path: Path, index: FileIndex) -> dict[str, str]:
    if path.is_file():
        return {"sha256": index.files(path)[path.name][1]}
    return {TREE: index.digest(path)}


def _programs(stages: Mapping[str, Mapping[str, Any]]) -> Iterator[Descriptor]:
    """The programs of the stages, with every module of scripts/ that they import."""
    found: dict[str, str] = {}
    for stage in stages.values():
        found |= stage["programs"]
    yield from (_file(f"scripts/{name}", found[name]) for name in sorted(found))


def _toolchains(toolchains: Iterable[Toolchain]) -> Iterator[Descriptor]:
    """Locks, what images and prefixes are made by, and kits: each once."""
    found: dict[str, Descriptor] = {}
    for toolchain in toolchains:
        for each in (*_lock(toolchain), *(d for kit in toolchain.kits for d in _kit(kit))):
            found.setdefault(each["name"], each)
    yield from (found[name] for name in sorted(found))


def _lock(toolchain: Toolchain) -> Iterator[Descriptor]:
    from edgekiln import images
    from edgekiln.home import project
    from edgekiln.toolchain import file_digest, folder

    lock = _file(
        f"toolchains/{toolchain.name}.lock.json",
        file_digest(folder() / f"{toolchain.name}.lock.json"),
    )
    # The names and digests that keys are made of and images are tagged with.
    about = {"toolchain": toolchain.digest, "image": images.tag(toolchain)}
    yield {**lock, "annotations": about}
    base = toolchain.base
    if base.lock:
        path = folder() / "bases" / f"{base.name}.lock.json"
        image = {"image": base.lock.definition.image}
        yield {**_file(f"toolchains/bases/{path.name}", file_digest(path)), "annotations": image}
    else:
        _, _, given = base.given.partition("@sha256:")
        digest = {"digest": {"sha256": given}} if given else {}
        yield {"name": f"base:{base.given}", **digest}
    for path in images.recipe_files(toolchain).values():
        yield _file(path.relative_to(project()).as_posix(), file_digest(path))


def _kit(kit: Kit) -> Iterator[Descriptor]:
    """A kit's archives by digest, its repositories by commit."""
    from edgekiln.kits import gitsource, pin_of

    for archive in kit.archives:
        pin = pin_of(archive)
        known = {"sha256": pin.sha256, "sha1": pin.sha1}
        digests = {name: value for name, value in known.items() if value}
        yield {
            "name": f"kit:{kit.name}/{archive.file}",
            "uri": archive.places[0],
            **({"digest": digests} if digests else {}),
            "annotations": {"trust": archive.trusted_by, "version": kit.version},
        }
    for each in gitsource.listed(kit.source) if kit.source else ():
        yield {
            "name": f"kit:{kit.name}/{each.path}",
            "uri": f"git+{each.repository}",
            **({"digest": {"gitCommit": each.commit}} if each.commit else {}),
            "annotations": {"trust": "commit", "version": kit.version},
        }


def _byproducts(
    pipeline: Pipeline, stages: Mapping[str, Mapping[str, Any]], wanted: set[tuple[str, str]]
) -> Iterator[Descriptor]:
    """The outputs that the bundle came out of (`wanted`) by their trees' digests, stage by stage.

    Reports that only people read are left out: they hold times, so no two runs' are alike.
    """
    for stage in pipeline.stages:
        for output in stage.outputs:
            if (stage.name, output.name) in wanted:
                made = stages[stage.name]
                yield {
                    "name": f"stage:{stage.name}/{output.name}",
                    "digest": {TREE: made["outputs"][output.name]["digest"]},
                    "annotations": {"key": made["key"]},
                }


def _used(
    pipeline: Pipeline, entries: Mapping[str, Entry], bundled: list[Path]
) -> set[tuple[str, str]]:
    """(stage, output) of all that is in the bundle, and of what that was made from."""
    used = set()
    for stage in pipeline.stages:
        for output in stage.outputs:
            place = entries[stage.name].output(output.name)
            if any(place == path or place in path.parents for path in bundled):
                used.add((stage.name, output.name))
    for stage in reversed(pipeline.stages):
        if any((stage.name, output.name) in used for output in stage.outputs):
            sources = stage.inputs.values()
            used |= {(s.stage, s.output) for s in sources if isinstance(s, FromStage)}
    return used


def _file(name: str, sha256: str) -> Descriptor:
    return {"name": name, "digest": {"sha256": sha256}}


def _moment() -> str:
    """SOURCE_DATE_EPOCH as a time (UTC, RFC 3339); "" where it is not set."""
    said = os.environ.get("SOURCE_DATE_EPOCH", "")
    if not said:
        return ""
    try:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(int(said)))
    except (ValueError, OverflowError, OSError):
        raise UsageError(
            f"SOURCE_DATE_EPOCH is {said!r}", remedy="give seconds since 1970, or unset it"
        ) from None
