"""`kiln doctor`: what this machine is, what a build needs of it, what is missing, what to do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgekiln import doctor as checks
from edgekiln import units
from edgekiln.boxes import box, disks, gate, gpu, limits, profiles, release
from edgekiln.doctor import Check
from edgekiln.home import home
from edgekiln.report import Reporter

if TYPE_CHECKING:
    from edgekiln.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Row:
    """One thing found out: `value` for machines, `text` for people."""

    name: str
    value: Any
    text: str


def doctor(
    reporter: Reporter,
    *,
    backend: str,
    model: str,
    recipe: str,
    preset: str,
    executor: str,
    options: Mapping[str, Any],
) -> None:
    """Tell of the machine, then hold a build against it.

    Raises the first error that the build would be refused with, when all has been told.
    """
    from edgekiln.executors.choose import check_executor
    from edgekiln.recipe import make_recipe

    check_executor(executor)
    what = make_recipe(recipe=recipe, backend=backend, model=model, preset=preset, options=options)
    for row in machine():
        reporter.result(row.name, row.value, f"{row.name:<13}{row.text}")
    _hold(what, executor, reporter)


def machine() -> Iterator[Row]:
    """What this machine is and has, with nothing asked of a network."""
    kind, profile = box.kind(), profiles.current()
    yield Row(name="machine", value=_plain(kind), text=kind.told())
    told = profiles.settled()
    text = f"{profile.name}: {profile.summary}"
    yield Row(name="profile", value=profile.name, text=text)
    for key, value in told.shown().items():
        yield Row(name="set by it", value={key: value}, text=f"{key}={value}")
    if profile.survives:
        yield Row(name="after a stop", value=profile.survives, text=profile.survives)
    if profile.proxy:
        text = f"{profile.proxy.script}: {profile.proxy.when_off}"
        yield Row(name="proxy", value=profile.proxy.script, text=text)
    yield from _system()
    yield from _resources()
    yield Row(name="cache", value=str(home()), text=str(home()))
    for disk in disks.disks(profile):
        yield Row(name="disk", value=_plain(disk), text=disk.told())
    yield _engine()


def _system() -> Iterator[Row]:
    name, libc = release.distribution(), release.glibc()
    text = f"{name[2]}, glibc {'.'.join(map(str, libc)) if libc else 'unknown'}"
    yield Row(name="distribution", value={"id": name[0], "version": name[1]}, text=text)
    found = gpu.gpus()
    for each in found:
        yield Row(name="GPU", value=_plain(each), text=each.told())
    if found:
        newest = gpu.cuda()
        text = f"{found[0].driver}, runs CUDA up to {newest or 'a version it does not tell'}"
        yield Row(name="driver", value={"driver": found[0].driver, "cuda": newest}, text=text)
    else:
        yield Row(name="GPU", value=None, text="none: nvidia-smi is missing or shows none")


def _resources() -> Iterator[Row]:
    usable, limit = checks.usable_memory(), limits.memory_limit()
    whose = f", the box is limited to {units.size(limit)}" if limit else ""
    about = {"usable": usable, "limit": limit}
    yield Row(name="memory", value=about, text=f"{units.size(usable)} usable{whose}")
    cores, quota = checks.usable_cpus(), limits.cpu_quota()
    whose = f", the box is limited to {quota:g}" if quota else ""
    yield Row(name="cores", value={"usable": cores, "limit": quota}, text=f"{cores}{whose}")


def _engine() -> Row:
    from edgekiln.engine import find_engine, why_not

    engine = find_engine()
    if engine is None:
        why = why_not().splitlines()
        return Row(name="engine", value=None, text=f"none ({why[0] if why else 'no socket'})")
    text = f"{engine.kind} {engine.version}"
    return Row(name="engine", value=text, text=text)


def _hold(what: Recipe, executor: str, reporter: Reporter) -> None:
    """The build against the machine: with the model's own figures where it is at hand."""
    from edgekiln.backends import load_backend
    from edgekiln.models import at_hand

    backend = load_backend(what.backend)
    options = what.parsed(backend)
    references = {"model": what.model, **backend.models(options)}
    absent = [ref for ref in references.values() if not at_hand(ref)]
    if absent:
        _, found = gate.of_any_model(backend, options, references, executor)
        note = f"{', '.join(absent)} is not here yet: these are the figures of the smallest model"
        reporter.say(f"{note}; `kiln models get` fetches it")
    else:
        found = _of_this_model(what, executor, reporter)
    _tell(found, reporter)
    for check in found:
        if check.error:
            raise check.error


def _of_this_model(what: Recipe, executor: str, reporter: Reporter) -> list[Check]:
    from edgekiln import build
    from edgekiln.plan import Planner
    from edgekiln.show import describe_plan

    found = gate.writable()
    if any(check.error for check in found):
        return found
    settings = build.Settings(executor=executor, force=True)
    job = build.prepare(what, settings, reporter)
    with build.open_store() as store:
        planned = Planner(store, job.toolchains, reporter).plan(job.pipeline)
    reporter.result("plan", [p.stage.name for p in planned], describe_plan(job, planned))
    name, taken = gate.taken(executor, job.toolchains.values())
    return [*found, *taken, *build.examine(job, planned, build.limits(settings), name)]


def _tell(found: Iterable[Check], reporter: Reporter) -> None:
    for check in found:
        value: dict[str, Any] = {"ok": check.ok, "found": check.found}
        text = f"{'ok' if check.ok else 'no':<13}{check.name}: {check.found}"
        if check.error:
            value |= {"kind": check.error.kind, "remedy": check.error.remedy}
            text += f"\n{'':<13}{check.error.remedy}"
        reporter.result(f"doctor.{check.name}", value, text)


def _plain(record: Any) -> dict[str, Any]:
    import dataclasses

    return dataclasses.asdict(record)
