"""One build, start to end: check the recipe, plan, look at the machine, run, judge, bundle."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekiln import doctor, units
from edgekiln.backends import load_backend
from edgekiln.backends.base import Backend, Finding, Outputs
from edgekiln.boxes.profiles import builds
from edgekiln.bundle import Bundle, find_bundle, write_bundle
from edgekiln.digest import digest_json
from edgekiln.executors.base import Executor
from edgekiln.executors.choose import check_executor, choose_executor
from edgekiln.home import home
from edgekiln.locking import held
from edgekiln.makeready import make_ready, needed, settled
from edgekiln.models.seal import refuse_changed
from edgekiln.pipeline import Pipeline
from edgekiln.plan import Planned, Planner
from edgekiln.record import record
from edgekiln.report import Reporter, Task
from edgekiln.runner import Done, Limits, Runner
from edgekiln.show import describe_plan, stage_figures, summary
from edgekiln.store import Store
from edgekiln.toolchain import Toolchain, load_toolchain

if TYPE_CHECKING:
    from edgekiln.models import Model
    from edgekiln.recipe import Recipe
    from edgekiln.remote.elsewhere import Elsewhere
    from edgekiln.remote.hosts import Host

_BUNDLE_SCHEMA = 2


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to build, as against what: nothing here changes the bundle's bytes but `base`."""

    executor: str = "auto"
    memory: int | None = None
    out: Path | None = None
    base: str | None = None
    force: bool = False
    refresh: bool = False
    trust_pickle: bool = False
    on: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Pinned:
    """One very model: what `resolve` takes for it, and the name it is to have ("": its own)."""

    reference: str
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A recipe whose every part has been looked at: ready to be run or only shown.

    `places` has the machines of the stages that are not to run on this one.
    """

    recipe: Recipe
    backend: Backend
    options: Any
    models: Mapping[str, Model]
    pipeline: Pipeline
    toolchains: Mapping[str, Toolchain]
    place: Path
    places: Mapping[str, Host] = field(default_factory=dict)

    @property
    def model(self) -> Model:
        """The model that is built."""
        return self.models["model"]


def prepare(
    recipe: Recipe,
    settings: Settings,
    reporter: Reporter,
    *,
    pinned: Mapping[str, Pinned] | None = None,
) -> Job:
    """Check everything that can be checked before the first byte is made.

    `pinned` says which models, by their roles, are meant by what recipe and options name.
    """
    check_executor(settings.executor)
    check_places(settings.on)
    backend = load_backend(recipe.backend)
    options = recipe.parsed(backend)
    references = {"model": recipe.model, **backend.models(options)}
    wanted = {role: Pinned(reference=ref) for role, ref in references.items()} | dict(pinned or {})
    _refuse_box(backend, options, wanted, settings)
    models = {role: _model(wanted[role], settings, reporter) for role in references}
    pipeline = backend.plan(options, models)
    names = {s.toolchain for s in pipeline.stages}
    toolchains = {n: load_toolchain(n, base=settings.base) for n in sorted(names)}
    place = settings.out or builds() / models["model"].name / backend.variant(options)
    return Job(
        recipe=recipe,
        backend=backend,
        options=options,
        models=models,
        pipeline=pipeline,
        toolchains=toolchains,
        place=place.absolute(),
        places=_places(pipeline, settings.on),
    )


def _refuse_box(
    backend: Backend, options: Any, wanted: Mapping[str, Pinned], settings: Settings
) -> None:
    """Raise what this machine lacks for any model, where one would have to be fetched first."""
    from edgekiln.models import at_hand

    doctor.refuse_unwritable_home()
    if settings.force or settings.on or all(at_hand(one.reference) for one in wanted.values()):
        return
    from edgekiln.boxes.gate import refuse_before_fetching

    refuse_before_fetching(backend, options, wanted, settings.executor, settings.memory)


def check_places(on: tuple[str, ...]) -> None:
    """Raise UsageError for what --on cannot mean, before anything is fetched for the build."""
    if on:
        from edgekiln.remote.placing import check

        check(on)


def _places(pipeline: Pipeline, on: tuple[str, ...]) -> dict[str, Host]:
    """The machines of the stages that are to run elsewhere."""
    if not on:
        return {}
    from edgekiln.remote.placing import places

    return places(pipeline, on)


def _model(wanted: Pinned, settings: Settings, reporter: Reporter) -> Model:
    from edgekiln.models import resolve

    found = resolve(
        wanted.reference,
        progress=Task(reporter, "model"),
        trust_pickle=settings.trust_pickle,
        refresh=settings.refresh,
    )
    return replace(found, name=wanted.name or found.name)


def build(recipe: Recipe, settings: Settings, reporter: Reporter) -> Bundle:
    """Build a recipe's bundle, or find that it is there already."""
    job = prepare(recipe, settings, reporter)
    with open_store() as store:
        return build_job(job, settings, reporter, store)


def build_job(job: Job, settings: Settings, reporter: Reporter, store: Store) -> Bundle:
    """Build what was prepared; `store` keeps its stages."""
    doctor.refuse_unwritable(job.place)
    job = settled(job, settings, reporter)
    lock = store.root / "locks" / f"place-{digest_json(str(job.place))[:32]}.lock"
    waiting = f"another build writes {job.place}; waiting for it"
    with held(lock, lambda: reporter.say(waiting)):
        return _Build(job, settings, reporter, store).run()


def dry_run(recipe: Recipe, settings: Settings, reporter: Reporter) -> None:
    """Show the plan and what doctor thinks of it; make nothing."""
    job = prepare(recipe, settings, reporter)
    with open_store() as store:
        planned = Planner(store, job.toolchains, reporter).plan(job.pipeline)
    reporter.result("plan", [p.stage.name for p in planned], describe_plan(job, planned))
    if job.places:
        _show_places(job, reporter)
    from edgekiln.boxes.gate import taken

    name, _ = taken(settings.executor, job.toolchains.values())
    for check in examine(job, planned, limits(settings), name):
        text = f"{'ok     ' if check.ok else 'too low'}  {check.name}: {check.found}"
        reporter.result(f"doctor.{check.name}", check.ok, text)


def _show_places(job: Job, reporter: Reporter) -> None:
    from edgekiln.remote.placing import described

    named = {stage: host.name for stage, host in job.places.items()}
    reporter.result("places", named, f"\n{described(job.places, job.pipeline)}\n")


class _Build:
    """A job on its way through plan, run, judgement and bundle; it holds the place's lock."""

    def __init__(self, job: Job, settings: Settings, reporter: Reporter, store: Store) -> None:
        self._job, self._settings, self._reporter, self._store = job, settings, reporter, store
        self._planner = Planner(store, job.toolchains, reporter)

    def run(self) -> Bundle:
        job, reporter = self._job, self._reporter
        planned = self._planner.plan(job.pipeline)
        refuse_changed(job.models, self._store.index)
        key = _build_key(job, planned)
        if key and (bundle := find_bundle(job.place, key, self._store.index)):
            _show(bundle, reporter)
            reporter.result("bundle", str(job.place), f"nothing to do: {job.place} is up to date")
            return bundle
        done = self._make(planned)
        bundle = self._bundle(done)
        _show(bundle, reporter)
        reporter.result("stages", stage_figures(done), "\n" + summary(done))
        text = f"\nbundle: {job.place} ({units.size(bundle.size)})"
        reporter.result("bundle", str(job.place), text)
        return bundle

    def _make(self, planned: list[Planned]) -> dict[str, Done]:
        """Every stage finished: found in the store, or run now."""
        if all(p.entry for p in planned):
            return {
                p.stage.name: Done(entry=p.entry, ran=False, seconds=0) for p in planned if p.entry
            }
        allowed = limits(self._settings)
        here = [p for p in planned if p.stage.name not in self._job.places]
        executor = self._executor() if any(not p.entry for p in here) else None
        elsewhere = self._elsewhere(planned)
        try:
            self._store.sweep()
            if not self._settings.force:
                name = executor.name if executor else ""
                _refuse_early(examine(self._job, planned, allowed, name))
            places = elsewhere.ready(force=self._settings.force) if elsewhere else {}
            if executor:
                executor.tidy()
                make_ready(self._job, here, executor, self._reporter)
            runner = Runner(
                store=self._store,
                executor=executor,
                planner=self._planner,
                reporter=self._reporter,
                limits=allowed,
                logs=home() / "logs",
                elsewhere=places,
            )
            done = runner.run(self._job.pipeline, planned)
            if elsewhere:
                elsewhere.tell()
            return done
        finally:
            if elsewhere:
                elsewhere.close()
            if executor:
                executor.close()

    def _executor(self) -> Executor:
        executor, why = choose_executor(self._settings.executor, self._job.toolchains.values())
        self._reporter.say(f"executor: {executor.describe()}: {why}")
        return executor

    def _elsewhere(self, planned: list[Planned]) -> Elsewhere | None:
        if not self._job.places:
            return None
        from edgekiln.remote.elsewhere import Elsewhere

        models = self._job.models.values()
        return Elsewhere(self._job.places, planned, models, self._store.index, self._reporter)

    def _bundle(self, done: Mapping[str, Done]) -> Bundle:
        """Judge the findings and write the bundle; a build below its floor leaves none."""
        job = self._job
        outputs = _outputs(job, done)
        findings = job.backend.findings(job.options, outputs)
        job.backend.judge(job.options, findings)
        planned = self._planner.plan(job.pipeline, {name: d.entry for name, d in done.items()})
        key = _build_key(job, planned)
        assert key is not None, "all stages are done"
        contents = job.backend.contents(job.options, job.models, outputs)
        about = _about(job, key, done, findings, self._store)
        base, index = self._settings.base, self._store.index
        made = record(job.models, planned, self._planner, index, base=base)
        about |= made
        return write_bundle(
            job.place,
            contents.files,
            contents.readme,
            about,
            self._store.index,
            texts=contents.texts,
            predicate=self._predicate(made, done, contents.files.values(), about["drift"]),
        )

    def _predicate(
        self,
        made: Mapping[str, Any],
        done: Mapping[str, Done],
        bundled: Iterable[Path],
        drift: list[str],
    ) -> dict[str, Any]:
        """What the bundle's provenance says of this build."""
        from edgekiln.provenance import predicate

        job = self._job
        return predicate(
            parameters=_parameters(job),
            made=made,
            models=job.models,
            pipeline=job.pipeline,
            toolchains=job.toolchains,
            entries={name: d.entry for name, d in done.items()},
            bundled=bundled,
            drift=drift,
            index=self._store.index,
        )


def limits(settings: Settings) -> Limits:
    """What this build may use of the machine."""
    memory = settings.memory or doctor.usable_memory()
    return Limits(cpus=doctor.usable_cpus(), memory=memory)


def examine(job: Job, planned: list[Planned], limits: Limits, executor: str) -> list[doctor.Check]:
    """What is still to be run, against what this machine has. All outputs come back to it.

    `executor` names the one that would run it here.
    """
    from edgekiln.boxes import gate

    todo = [p.stage for p in planned if not p.entry]
    if not todo:
        return []
    store = sum(s.disk for s in todo)
    needs = [(home(), store, "the store"), (job.place, store, "the bundle")]
    run_here = [p for p in planned if p.stage.name not in job.places]
    toolchains = needed(run_here)
    kits = [kit for toolchain in toolchains for kit in toolchain.kits]
    needs += [*doctor.room_for_kits(kits), *gate.room(toolchains, executor)]
    here = sorted((s for s in todo if s.name not in job.places), key=lambda s: -s.memory)
    memory = [doctor.check_memory(s.memory, limits.memory, f"stage {s.name}") for s in here[:1]]
    gpus = [doctor.check_vram(s.vram, f"stage {s.name}") for s in here if s.vram]
    box = [*gate.machine(executor), *gate.native(toolchains, executor)] if run_here else []
    return [*box, *memory, *gpus, *doctor.check_disk(needs), *doctor.tell_kits(kits)]


def _refuse_early(checks: list[doctor.Check]) -> None:
    for check in checks:
        if check.error:
            raise check.error


def _outputs(job: Job, done: Mapping[str, Done]) -> Outputs:
    return Outputs(
        paths={
            (stage.name, output.name): done[stage.name].entry.output(output.name)
            for stage in job.pipeline.stages
            for output in stage.outputs
        }
    )


def _build_key(job: Job, planned: list[Planned]) -> str | None:
    """One digest for all stages of a build; None while a stage's key cannot be known."""
    keys = {p.stage.name: p.key for p in planned}
    if None in keys.values() or not all(p.entry for p in planned):
        return None
    return digest_json({"schema": _BUNDLE_SCHEMA, "stages": keys, "options": _plain(job.options)})


def _about(
    job: Job, key: str, done: Mapping[str, Done], findings: list[Finding], store: Store
) -> dict[str, Any]:
    model = job.model
    return {
        "build_key": key,
        "backend": job.backend.name,
        "recipe": job.recipe.name,
        "model": {
            "name": model.name,
            "source": model.source,
            "family": model.family,
            "parameters": model.parameters,
            "digest": store.index.digest(model.path),
        },
        "options": _plain(job.options),
        "toolchains": {name: t.digest for name, t in job.toolchains.items()},
        "bases": {name: t.base.name for name, t in job.toolchains.items()},
        "drift": sorted({line for d in done.values() for line in d.entry.meta.get("drift", [])}),
        "figures": {f.name: f.value for f in findings},
        "shown": [f.text for f in findings],
    }


def _parameters(job: Job) -> dict[str, Any]:
    """The recipe as it was asked for, without this machine's paths."""
    from edgekiln.options import specs
    from edgekiln.provenance import portable

    paths = [spec.name for spec in specs(job.backend.options).values() if spec.path]
    asked = {"name": job.recipe.name} if job.recipe.name else {}
    return {
        "recipe": {
            **asked,
            "backend": job.backend.name,
            "model": job.model.name if job.model.source == "local" else job.model.source,
            "preset": job.recipe.preset,
            "options": portable(_plain(job.options), paths),
        }
    }


def _plain(options: Any) -> dict[str, Any]:
    import dataclasses

    return dataclasses.asdict(options)


def _show(bundle: Bundle, reporter: Reporter) -> None:
    figures = bundle.manifest["figures"]
    for (name, value), text in zip(figures.items(), bundle.manifest["shown"], strict=True):
        reporter.result(name, value, text)


@contextmanager
def open_store() -> Iterator[Store]:
    """The store of this user."""
    store = Store(home() / "store")
    try:
        yield store
    finally:
        store.close()
