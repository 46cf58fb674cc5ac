"""A bundle made again from its manifest alone, in a store of its own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgekiln.build import Job, Pinned, Settings, build_job, prepare
from edgekiln.bundle import MANIFEST, Bundle
from edgekiln.digest import FileIndex, digest_json
from edgekiln.errors import AccessError, DigestError, ModelError, ToolchainError
from edgekiln.home import home, project
from edgekiln.keys import program_files
from edgekiln.locking import held, is_held
from edgekiln.models.seal import refuse_other
from edgekiln.pipeline import FromPath
from edgekiln.recipe import Recipe
from edgekiln.report import Reporter
from edgekiln.store import Store
from edgekiln.verify.compare import Fact, different


@dataclass(frozen=True, kw_only=True)
class Rebuilt:
    """The bundle that was made, and the store with its stages; gone when the context ends."""

    bundle: Bundle
    store: Store


def drifted(manifest: Mapping[str, Any]) -> list[Fact]:
    """The toolchains and programs of this checkout that are not those of the manifest.

    A toolchain with a kit that was not fetched yet is left out: its digest is not known before.
    Manifests of older builds record no programs.
    """
    facts = []
    for name, recorded in manifest["toolchains"].items():
        here = _toolchain(name, manifest.get("base") or None)
        if here is not None and here != recorded:
            facts.append(Fact(name=f"toolchain {name}", left=recorded, right=here))
    seen: dict[str, Fact] = {}
    for stage in manifest["stages"].values():
        if "programs" in stage:
            now = _programs(stage["program"])
            for fact in different("scripts", stage["programs"], now):
                name = fact.name.replace(".", "/", 1)
                seen[name] = replace(fact, name=name)
    return [*facts, *(seen[name] for name in sorted(seen))]


def _toolchain(name: str, base: str | None) -> str | None:
    """A toolchain's digest in this checkout, in words where it cannot be had; None: not yet."""
    from edgekiln.toolchain import load_toolchain

    try:
        found = load_toolchain(name, base=base)
    except ToolchainError as error:
        return f"none ({error.what})"
    return found.digest if all(kit.settled for kit in found.kits) else None


def _programs(program: str) -> dict[str, str]:
    try:
        return program_files(project() / "scripts", program)
    except (AccessError, OSError):
        return {}


def refuse_drifted(bundle: Bundle, facts: list[Fact]) -> None:
    """Raise ToolchainError where this checkout would build something else."""
    if not facts:
        return
    first, rest = facts[0], [fact.name for fact in facts[1:]]
    more = f"; other than recorded are {', '.join(rest)} too" if rest else ""
    commit = bundle.manifest.get("checkout")
    made = f"commit {commit} of edgekiln" if commit else "the edgekiln that made it"
    raise ToolchainError(
        f"this checkout cannot tell whether {bundle.path} can be built again",
        why=f"{first.name} is {first.right} here, {MANIFEST} has {first.left}{more}",
        remedy=f"verify it with {made}; --anyway builds with what is here and shows what changes",
    )


@contextmanager
def rebuilt(
    bundle: Bundle, settings: Settings, reporter: Reporter, *, model: str = ""
) -> Iterator[Rebuilt]:
    """The bundle made again, with none of the user's finished stages.

    Raises DigestError, before anything is built, for a model or another file of the user's that
    is not what the manifest has; and whatever a build may raise.
    """
    manifest = bundle.manifest
    root = home() / "verify"
    scratch = root / digest_json(str(bundle.path.absolute()))[:16]
    waiting = f"{bundle.path} is being verified already; waiting"
    with held(scratch.with_suffix(".lock"), lambda: reporter.say(waiting)):
        _sweep(root, scratch)
        inner = replace(settings, out=scratch / "bundle", base=manifest.get("base") or None)
        job = prepare(_recipe(bundle), inner, reporter, pinned=_pinned(manifest, model))
        store = Store(scratch / "store")
        try:
            # A fresh index: every byte is read, whatever the files' times say.
            _refuse_other_inputs(bundle, job, store.index)
            made = build_job(job, inner, _WithoutResults(reporter), store)
            yield Rebuilt(bundle=made, store=store)
        finally:
            store.close()
            _remove(scratch)


def _recipe(bundle: Bundle) -> Recipe:
    """The manifest as a recipe: every option is in it, so that no preset has a say."""
    manifest = bundle.manifest
    return Recipe(
        name=str(manifest.get("recipe", "")),
        backend=manifest["backend"],
        model=str(manifest["model"]["source"]),
        options=manifest["options"],
        flags=frozenset(),
        where=f"{bundle.path / MANIFEST}: options",
    )


def _pinned(manifest: Mapping[str, Any], model: str) -> dict[str, Pinned]:
    """Each model at its revision; `model` is where the user says that the model lies."""
    models = manifest.get("models") or {"model": manifest["model"]}
    found = {role: Pinned(reference=_at(m), name=m["name"]) for role, m in models.items() if m}
    if model:
        found["model"] = Pinned(reference=model, name=manifest["model"]["name"])
    elif not found["model"].reference:
        raise ModelError(
            f"the bundle was made of the folder of a model {manifest['model']['name']}",
            why=f"{MANIFEST} does not say where it lies",
            remedy="name it: --model DIR",
        )
    return {role: pin for role, pin in found.items() if pin.reference}


def _at(model: Mapping[str, Any]) -> str:
    """What `resolve` takes for a recorded model; "" where nothing says where it lies."""
    source = str(model["source"])
    if source == "local":
        return str(model.get("place", ""))
    kind, _, rest = source.partition(":")
    if kind == "hub":
        return rest
    if kind == "modelscope":
        repo, _, listing = rest.partition("@")
        # Its client knows no commits: what is not here is asked for at the branch, and its
        # digests decide.
        here = home() / "models" / kind / repo.replace("/", "--") / listing
        return source if here.is_dir() else f"{kind}:{repo}"
    return source


def _refuse_other_inputs(bundle: Bundle, job: Job, index: FileIndex) -> None:
    """Raise DigestError for a model or a file of the user's that is not what was built from."""
    for role, known in (bundle.manifest.get("models") or {}).items():
        if role in job.models:
            refuse_other(job.models[role], known["files"], known["source"], index)
    model, recorded = bundle.manifest["model"], bundle.manifest["model"]["digest"]
    if (found := index.digest(job.model.path)) != recorded:
        raise DigestError(
            f"{job.model.path} is not the model that {bundle.path} was built from",
            why=f"its digest is {found}, recorded is {recorded} ({model['source']})",
            remedy="give the very model with --model DIR",
        )
    for stage in job.pipeline.stages:
        inputs = bundle.manifest["stages"].get(stage.name, {}).get("inputs", {})
        for name, source in stage.inputs.items():
            then = inputs.get(name, {}).get("digest")
            if not isinstance(source, FromPath) or then is None:
                continue
            if (now := index.digest(source.path)) != then:
                raise DigestError(
                    f"{source.path} is not the {name} that stage {stage.name} was given",
                    why=f"its digest is {now}, recorded in {MANIFEST} is {then}",
                    remedy="put the file there that the bundle was built with",
                )


class _WithoutResults:
    """A reporter that keeps a build's own findings to itself: those of the comparison count."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self.say, self.started = reporter.say, reporter.started
        self.progressed, self.ended = reporter.progressed, reporter.ended
        self.failed, self.close = reporter.failed, reporter.close

    def result(self, name: str, value: Any, text: str) -> None:
        """Not shown."""


def _sweep(root: Path, own: Path) -> None:
    """Remove what this very scratch folder, or one whose process is gone, was left with."""
    for left in root.iterdir() if root.is_dir() else ():
        if left.is_dir() and (left == own or not is_held(left.with_suffix(".lock"))):
            _remove(left)


def _remove(scratch: Path) -> None:
    """Remove a scratch folder; what a store has made read-only goes too."""
    for folder in (scratch, *scratch.rglob("*")):
        if folder.is_dir() and not folder.is_symlink():
            folder.chmod(0o700)
    shutil.rmtree(scratch, ignore_errors=True)
