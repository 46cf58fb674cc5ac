"""Two bundles side by side: files, then how each was made.

A proof runs the model on the machine at hand and says how long it took and what it needed. What
such a stage leaves is read by no other stage and goes into no bundle; it may differ, and so may the
figures out of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgekiln.bundle import Bundle

# What tells of the run, and of nothing that was made: it may differ between two equal builds.
_RUN = ("executor", "seconds", "peak_memory")
_NONE = "none"


@dataclass(frozen=True, kw_only=True)
class FileDifference:
    """A file that two bundles, or two runs of a stage, do not share; None where one has none."""

    name: str
    left: str | None
    right: str | None
    sizes: tuple[int | None, int | None] = (None, None)

    @property
    def text(self) -> str:
        """The name, and both digests or who lacks it."""
        if self.left is None:
            return f"{self.name}: only in the second, sha256 {self.right}"
        if self.right is None:
            return f"{self.name}: only in the first, sha256 {self.left}"
        return f"{self.name}: sha256 {self.left}, in the second {self.right}"


@dataclass(frozen=True, kw_only=True)
class Fact:
    """Something that two manifests say differently: options.quant_bit, stages.export.program."""

    name: str
    left: str
    right: str

    @property
    def text(self) -> str:
        """Both values."""
        return f"{self.name}: {self.left}, in the second {self.right}"


@dataclass(frozen=True, kw_only=True)
class StageDifference:
    """A stage that made other bytes: why, as far as the manifests tell, and which files.

    `causes` is empty where program, parameters, toolchain and inputs are the same: then the stage
    itself gives other bytes each time.
    """

    name: str
    causes: tuple[Fact, ...] = ()
    files: tuple[FileDifference, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What differs. `passing` may differ between equal builds: times, the machine, places."""

    files: tuple[FileDifference, ...] = ()
    facts: tuple[Fact, ...] = ()
    stages: tuple[StageDifference, ...] = ()
    passing: tuple[Fact, ...] = field(default=())

    @property
    def same(self) -> bool:
        """Whether files, inputs and stages are all the same."""
        return not (self.files or self.facts or self.stages)


def compare(left: Bundle, right: Bundle, *, places: frozenset[str] = frozenset()) -> Comparison:
    """What differs between two whole bundles.

    `places` are the options that name files of the user's: what is in these counts, as an input
    of the stages that read them; where they lie does not.
    """
    a, b = left.manifest, right.manifest
    facts, passing = _facts(a, b, places)
    return Comparison(
        files=tuple(different_files(a["files"], b["files"])),
        facts=tuple(facts),
        stages=tuple(_stages(a, b)),
        passing=tuple(passing),
    )


def different_files(
    left: Mapping[str, Mapping[str, Any]], right: Mapping[str, Mapping[str, Any]]
) -> Iterator[FileDifference]:
    """Files by name, as manifests describe them, of which the digests are not the same."""
    for name in sorted(left.keys() | right.keys()):
        a, b = left.get(name, {}), right.get(name, {})
        if a.get("sha256") != b.get("sha256"):
            yield FileDifference(
                name=name,
                left=a.get("sha256"),
                right=b.get("sha256"),
                sizes=(a.get("size"), b.get("size")),
            )


def _facts(
    a: Mapping[str, Any], b: Mapping[str, Any], places: frozenset[str]
) -> tuple[list[Fact], list[Fact]]:
    facts = [*_differ("backend", a["backend"], b["backend"])]
    passing: list[Fact] = []
    for fact in different("options", a["options"], b["options"]):
        (passing if fact.name.removeprefix("options.") in places else facts).append(fact)
    facts += different("toolchains", a["toolchains"], b["toolchains"])
    facts += different("bases", a.get("bases", {}), b.get("bases", {}))
    facts += different("models", _digests(a), _digests(b))
    passing += different("models", _sources(a), _sources(b))
    for name in ("edgekiln", "recipe"):
        passing += _differ(name, a.get(name), b.get(name))
    passing += _differ("drift", a.get("drift", []), b.get("drift", []))
    for stage in a["stages"].keys() & b["stages"].keys():
        runs = ({k: m["stages"][stage].get(k) for k in _RUN} for m in (a, b))
        passing += different(f"stages.{stage}", *runs)
        pair = (a["stages"][stage], b["stages"][stage])
        for file in _made(stage, *pair, _reports(a) & _reports(b), reported=True):
            name = f"stages.{stage}.{file.name}"
            passing += _differ(name, file.left or _NONE, file.right or _NONE)
    passing += different("figures", _leaves(a.get("figures", {})), _leaves(b.get("figures", {})))
    return facts, sorted(passing, key=lambda f: f.name)


def _digests(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Each model's digest by its role; older manifests know the one model only."""
    models = manifest.get("models") or {"model": manifest["model"]}
    return {role: model["digest"] for role, model in models.items()}


def _sources(manifest: Mapping[str, Any]) -> dict[str, str]:
    models = manifest.get("models") or {"model": manifest["model"]}
    return {f"{role}.source": model["source"] for role, model in models.items()}


def _leaves(value: Any, under: str = "") -> dict[str, Any]:
    """Every single value of a tree of mappings and lists, by its path."""
    if isinstance(value, Mapping):
        pairs = [(f"{under}.{key}", inner) for key, inner in value.items()]
    elif isinstance(value, list):
        pairs = [(f"{under}[{i}]", inner) for i, inner in enumerate(value)]
    else:
        return {under.removeprefix("."): value}
    return {name: leaf for path, inner in pairs for name, leaf in _leaves(inner, path).items()}


def _reports(manifest: Mapping[str, Any]) -> frozenset[tuple[str, str]]:
    """The outputs, as (stage, output), that no stage reads and of which the bundle has nothing."""
    stages = manifest["stages"]
    read = {
        (i["stage"], i["output"])
        for stage in stages.values()
        for i in stage.get("inputs", {}).values()
        if "stage" in i
    }
    bundled = {file["sha256"] for file in manifest["files"].values()}
    return frozenset(
        (name, output)
        for name, stage in stages.items()
        for output, made in stage.get("outputs", {}).items()
        if (name, output) not in read
        and bundled.isdisjoint(file["sha256"] for file in made["files"].values())
    )


def _stages(left: Mapping[str, Any], right: Mapping[str, Any]) -> Iterator[StageDifference]:
    """Stages that one has and the other has not, or that made other bytes, in building order.

    A stage whose causes differ and whose bytes do not is told too: it was made otherwise.
    """
    a, b = left["stages"], right["stages"]
    reports = _reports(left) & _reports(right)
    for name in dict.fromkeys([*a, *b]):
        if name not in a or name not in b:
            there, lacking = (_NONE, "made") if name not in a else ("made", _NONE)
            yield StageDifference(name=name, causes=(Fact(name=name, left=there, right=lacking),))
            continue
        causes = tuple(_causes(a[name], b[name]))
        files = tuple(_made(name, a[name], b[name], reports))
        if causes or files:
            yield StageDifference(name=name, causes=causes, files=files)


def _causes(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Fact]:
    """What went into a stage that is not the same."""
    known = "programs" in a and "programs" in b
    if not known:
        yield from _differ("key", a["key"], b["key"])
        return
    yield from _differ("program", a["program"], b["program"])
    yield from different("programs", a["programs"], b["programs"])
    yield from _differ("parameters", a["parameters"], b["parameters"])
    inputs = ({n: i.get("digest") for n, i in stage["inputs"].items()} for stage in (a, b))
    yield from different("inputs", *inputs)


def _made(
    name: str,
    a: Mapping[str, Any],
    b: Mapping[str, Any],
    reports: frozenset[tuple[str, str]],
    *,
    reported: bool = False,
) -> Iterator[FileDifference]:
    """The files that two runs of a stage made differently: those that count, or the reports."""
    yield from different_files(
        *(
            {f: k for (o, f), k in _flat(s).items() if ((name, o) in reports) is reported}
            for s in (a, b)
        )
    )


def _flat(stage: Mapping[str, Any]) -> dict[tuple[str, str], Any]:
    """Every file of all outputs, by output and OUTPUT/FILE (just OUTPUT where it is one file)."""
    return {
        (output, output if file == output else f"{output}/{file}"): known
        for output, made in stage.get("outputs", {}).items()
        for file, known in made["files"].items()
    }


def different(under: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Fact]:
    """The keys of two mappings that have not the same value, as UNDER.KEY."""
    for name in sorted(a.keys() | b.keys()):
        yield from _differ(f"{under}.{name}", a.get(name), b.get(name))


def _differ(name: str, a: Any, b: Any) -> Iterator[Fact]:
    if a != b:
        yield Fact(name=name, left=_word(a), right=_word(b))


def _word(value: Any) -> str:
    if value is None or value in ([], ""):
        return _NONE
    return "; ".join(map(str, value)) if isinstance(value, list) else str(value)
