"""`kiln verify bundle`: what was found, told; an error of its own where bundles differ."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from edgekiln.bundle import Bundle
from edgekiln.digest import digest_file
from edgekiln.errors import DifferenceError, UsageError
from edgekiln.report import Reporter
from edgekiln.store import Store
from edgekiln.verify.compare import Comparison, Fact, FileDifference, StageDifference, compare
from edgekiln.verify.files import origin, whole
from edgekiln.verify.look import diffoscope, first_byte

if TYPE_CHECKING:
    from edgekiln.build import Settings

_FILES = 20
_FACTS = 30


def against(place: Path, other: Path, reporter: Reporter) -> None:
    """Compare two bundles. Raises DigestError for a damaged one, DifferenceError for two."""
    left, right = whole(place), whole(other)
    told_whole(left, reporter)
    told_whole(right, reporter)
    found = compare(left, right, places=places(left))
    from edgekiln.build import open_store

    with open_store() as store:
        tell(found, left, right, [store], reporter)
    same = f"{place} and {other} are the same, and were made alike"
    conclude(found, f"{place} and {other}", same, reporter)


def again(
    place: Path, settings: Settings, reporter: Reporter, *, model: str = "", anyway: bool = False
) -> None:
    """Build a bundle once more and compare.

    Raises DigestError for a damaged bundle or another model, ToolchainError where this checkout is
    not the one that the manifest tells of (unless `anyway`), DifferenceError for other bytes.
    """
    from edgekiln.build import open_store
    from edgekiln.verify.rebuild import drifted, rebuilt, refuse_drifted

    bundle = whole(place)
    told_whole(bundle, reporter)
    facts = drifted(bundle.manifest)
    for fact in facts:
        text = f"not as recorded: {fact.name}: {fact.left}, here {fact.right}"
        reporter.result("drifted", asdict(fact), text)
    if not anyway:
        refuse_drifted(bundle, facts)
    with (
        rebuilt(bundle, settings, reporter, model=model) as made,
        open_store() as store,
    ):
        found = compare(bundle, made.bundle, places=places(bundle))
        tell(found, bundle, made.bundle, [made.store, store], reporter)
    count = len(bundle.manifest["files"])
    same = f"built again, from nothing: all {count} files are the same"
    conclude(found, f"{place} and what its manifest builds", same, reporter)


def told_whole(bundle: Bundle, reporter: Reporter) -> None:
    """Say that every file is as its manifest says."""
    count = len(bundle.manifest["files"])
    reporter.result(
        "whole", str(bundle.path), f"{bundle.path}: {count} files, each as its manifest says"
    )


def places(bundle: Bundle) -> frozenset[str]:
    """The options of the bundle's backend that name files of the user's."""
    from edgekiln.backends import list_backends, load_backend
    from edgekiln.options import specs

    name = bundle.manifest["backend"]
    if name not in list_backends():
        return frozenset()
    return frozenset(n for n, s in specs(load_backend(name).options).items() if s.path)


def tell(
    found: Comparison, left: Bundle, right: Bundle, stores: Sequence[Store], reporter: Reporter
) -> None:
    """Every difference, what may differ last."""
    for fact in found.facts:
        reporter.result("fact", asdict(fact), f"made otherwise: {fact.text}")
    if found.stages:
        _tell_stages(found.stages, reporter)
    for file in found.files[:_FILES]:
        made = origin(left.manifest, file.left or "") or origin(right.manifest, file.right or "")
        text = f"differs: {file.text}" + (f", from stage {made}" if made else "")
        reporter.result("file", asdict(file), text)
    if len(found.files) > _FILES:
        reporter.result("files", len(found.files), f"… and {len(found.files) - _FILES} more files")
    _tell_bytes(found, left, right, stores, reporter)
    if found.passing:
        reporter.result("may-differ", [asdict(f) for f in found.passing], _passing(found.passing))


def _tell_stages(stages: Sequence[StageDifference], reporter: Reporter) -> None:
    """The first stage in full; of the others only that they follow."""
    first, *rest = stages
    text = f"the first stage that differs: {first.name}"
    if first.causes:
        text += "".join(f"\n  {cause.text}" for cause in first.causes)
    else:
        text += ", though program, parameters, toolchain and inputs are the same"
    text += "".join(f"\n  made {file.text}" for file in first.files[:_FILES])
    reporter.result("first-stage", asdict(first), text)
    if rest:
        names = [stage.name for stage in rest]
        reporter.result("later-stages", names, f"then: {', '.join(names)}")


def _tell_bytes(
    found: Comparison, left: Bundle, right: Bundle, stores: Sequence[Store], reporter: Reporter
) -> None:
    """The first file's first byte: of the first stage where its files are here, else a bundle's."""
    for stage, file in _candidates(found):
        one = _locate(left, stage, file.name, file.left, stores)
        two = _locate(right, stage, file.name, file.right, stores)
        if one is None or two is None:
            continue
        byte = first_byte(one, two)
        assert byte is not None, "their digests differ"
        where = f"{stage}: {file.name}" if stage else file.name
        reporter.result("first-byte", {"file": where, **asdict(byte)}, f"{where} {byte.text}")
        lines = diffoscope(one, two)
        reporter.result("diffoscope", lines, "\n".join(lines))
        return


def _candidates(found: Comparison) -> list[tuple[str, FileDifference]]:
    """The first stage's files, then the bundle's own, that both sides have."""
    of_stage = [(s.name, f) for s in found.stages for f in s.files]
    first = [pair for pair in of_stage if pair[0] == of_stage[0][0]]
    return [p for p in (*first, *(("", f) for f in found.files)) if p[1].left and p[1].right]


def _locate(
    bundle: Bundle, stage: str, name: str, sha256: str | None, stores: Sequence[Store]
) -> Path | None:
    """These bytes: in the bundle, or in a store that still has the stage."""
    for file, known in bundle.manifest["files"].items():
        if known["sha256"] == sha256:
            return bundle.path / str(file)
    key = str(bundle.manifest["stages"].get(stage, {}).get("key", ""))
    # A manifest that somebody else wrote leads to nothing outside of the store.
    if not re.fullmatch(r"[0-9a-f]{64}", key) or not _inside(name):
        return None
    for store in stores:
        entry = store.find(key)
        path = entry.output(name) if entry else None
        if path and path.is_file() and digest_file(path) == sha256:
            return path
    return None


def _inside(name: str) -> bool:
    """Whether a relative path stays below the folder that it starts from."""
    path = PurePath(name)
    return not path.is_absolute() and ".." not in path.parts


def _passing(facts: Sequence[Fact]) -> str:
    lines = [f"  {fact.text}" for fact in facts[:_FACTS]]
    lines += [f"  … and {len(facts) - _FACTS} more (--json has all)"] if len(facts) > _FACTS else []
    return "\n".join(["these may differ between equal builds, and do:", *lines])


def conclude(found: Comparison, which: str, same: str, reporter: Reporter) -> None:
    """Say that all is the same, or raise DifferenceError."""
    if found.same:
        reporter.result("same", True, same)
        return
    first = found.stages[0].name if found.stages else ""
    why = (
        f"{len(found.files)} files differ" if found.files else "every file is the same, but not how"
    )
    if first:
        why += f"; the first stage that differs is {first}"
    elif found.facts:
        why += f"; {found.facts[0].text}"
    raise DifferenceError(f"{which} differ", why=why, remedy="the lines above say in what")


def refuse_both(other: str, model: str, anyway: bool) -> None:
    """Raise UsageError for flags of a rebuild beside --against."""
    given = [flag for flag, value in (("--model", model), ("--anyway", anyway)) if value]
    if other and given:
        raise UsageError(
            f"{given[0]} is for a build, and --against builds nothing", remedy="give one of them"
        )
