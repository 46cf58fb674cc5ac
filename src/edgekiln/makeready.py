"""What a build's stages want before the first of them runs: kits, images or prefixes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from edgekiln.errors import KilnError
from edgekiln.executors.kitlinks import kits_ready, make_kits, settle_kits
from edgekiln.report import Reporter, Task
from edgekiln.toolchain import Toolchain, load_toolchain

if TYPE_CHECKING:
    from edgekiln.build import Job, Settings
    from edgekiln.executors.base import Executor
    from edgekiln.plan import Planned


def settled(job: Job, settings: Settings, reporter: Reporter) -> Job:
    """The job with the last digest of each of its toolchains.

    A kit that nobody publishes a digest of is fetched for that: what was found the first time is
    part of the keys.
    """
    if all(kit.settled for toolchain in job.toolchains.values() for kit in toolchain.kits):
        return job
    with _kits_fetched(job, job.toolchains.values(), reporter) as task:
        settle_kits(job.toolchains.values(), task)
    again = {name: load_toolchain(name, base=settings.base) for name in job.toolchains}
    return replace(job, toolchains=again)


@contextmanager
def _kits_fetched(job: Job, toolchains: Iterable[Toolchain], reporter: Reporter) -> Iterator[Task]:
    """Ask for the licences of what is about to be fetched, then show how it goes.

    Where a kit cannot be had, the backend may know of a build that does without its toolchain.
    """
    from edgekiln.kits import is_ready, licences

    lacking = {t.asked: [kit for kit in t.kits if not is_ready(kit)] for t in toolchains}
    kits = {kit.name: kit for found in lacking.values() for kit in found}
    # What does without the toolchains under a licence is another way than without all of them.
    gated = [name for name, found in lacking.items() if any(kit.licence for kit in found)]
    with _ways_out(job, gated):
        licences.settle_for(kits.values())
    with _ways_out(job, [name for name, found in lacking.items() if found]):
        reporter.started("kits", ", ".join(kits))
        try:
            yield Task(reporter, "kits")
        except KilnError:
            reporter.ended("kits", "failed", {})
            raise
        reporter.ended("kits", "done", {})


@contextmanager
def _ways_out(job: Job, toolchains: Iterable[str]) -> Iterator[None]:
    """An error about toolchains that cannot be had, with what the backend can do without them."""
    try:
        yield
    except KilnError as error:
        ways = dict.fromkeys(filter(None, map(job.backend.remedy, toolchains)))
        error.remedy = "; or ".join(filter(None, (error.remedy, ", and ".join(ways))))
        raise


def make_ready(job: Job, planned: list[Planned], executor: Executor, reporter: Reporter) -> None:
    """Every kit first: one that cannot be had ends the build before an image is built for it."""
    wanted = needed(planned)
    _refuse_offline(planned, executor)
    if not all(map(kits_ready, wanted)):
        with _kits_fetched(job, wanted, reporter) as fetching:
            make_kits(wanted, fetching)
    for name in sorted({p.stage.toolchain for p in planned if not p.entry}):
        toolchain = job.toolchains[name]
        if not executor.ready(toolchain):
            task = f"toolchain {name}"
            reporter.started(task, f"making it ready ({toolchain.summary})")
            try:
                executor.prepare(toolchain, Task(reporter, task, "steps"))
            except KilnError:
                reporter.ended(task, "failed", {})
                raise
            reporter.ended(task, "done", {})


def _refuse_offline(planned: list[Planned], executor: Executor) -> None:
    """Offline: say all that is missing before the first step. Raises FetchError, DigestError."""
    from edgekiln import offline
    from edgekiln.kits import absent

    if not offline.enabled():
        return
    for stage in [p.stage for p in planned if not p.entry and p.stage.network]:
        remedy = "build it on a machine with a network, and take the bundle along"
        offline.refuse(f"what the tools of stage {stage.name} fetch", remedy=remedy)
    absent.refuse_build(executor, needed(planned))


def needed(planned: list[Planned]) -> list[Toolchain]:
    """The toolchains of what is still to be run."""
    return list({p.toolchain.asked: p.toolchain for p in planned if not p.entry}.values())
