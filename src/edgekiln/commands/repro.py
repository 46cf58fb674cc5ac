"""`kiln images build --repro` and `kiln verify images`: whether an image is the same anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from edgekiln.commands.common import the_engine
from edgekiln.errors import DifferenceError
from edgekiln.report import Reporter, Task, make_reporter
from edgekiln.toolchain import Toolchain, load_toolchain

if TYPE_CHECKING:
    from edgekiln.images.repro import Found

_SHOWN = 5


def images_repro(name: str, *, base: str | None, frozen: bool, record: bool) -> None:
    """Build an image where it is not there, and hold it against its lock; or record it there."""
    from edgekiln import images
    from edgekiln.images import repro

    reporter = make_reporter()
    try:
        toolchain, engine = load_toolchain(name, base=base), the_engine()
        if record:
            repro.refuse_unlocked(toolchain, ())
        task = Task(reporter, f"image {name}", "steps")
        tag = images.build(engine, toolchain, task, frozen=frozen)
        task.update(0, None, "reading")
        origin = images.origin(engine, tag)
        found = repro.look(engine, toolchain, tag, origin)
        reporter.result("image", tag, tag)
        _tell(found, reporter)
        drift = images.drift(engine, toolchain)
        if drift and not record:
            raise DifferenceError(
                f"{tag} cannot be held against its lock: it is newer",
                why=_brief(drift),
                remedy="build it from what was locked: from a folder of `kiln toolchains fetch`, "
                f"or a snapshot; or kiln toolchains lock {name}",
            )
        _conclude(toolchain, found, drift, reporter, record=record)
    finally:
        reporter.close()


def verify_images(
    name: str, reporter: Reporter, *, base: str | None, frozen: bool, record: bool
) -> None:
    """Build an image twice from nothing, compare the two, and hold them against the lock."""
    from edgekiln.images import repro

    toolchain, engine = load_toolchain(name, base=base), the_engine()
    if record:
        repro.refuse_unlocked(toolchain, ())
    done = repro.twice(engine, toolchain, reporter, frozen=frozen)
    count = len(done.found.listing)
    reporter.result("same", True, f"built twice, from nothing: all {count} names are the same")
    _tell(done.found, reporter)
    if done.drift and not record:
        text = f"not held against the lock, which is older: {_brief(done.drift)}"
        reporter.result("drift", list(done.drift), text)
        return
    _conclude(toolchain, done.found, done.drift, reporter, record=record)


def _conclude(
    toolchain: Toolchain, found: Found, drift: Sequence[str], reporter: Reporter, *, record: bool
) -> None:
    from edgekiln.images import repro

    if record:
        path = repro.record(toolchain, found, drift)
        reporter.result("recorded", asdict(found.digests), f"recorded in {path}")
        return
    repro.hold(toolchain, found, reporter)


def _tell(found: Found, reporter: Reporter) -> None:
    """Both digests, or why there is but one."""
    digests = found.digests
    reporter.result("content", digests.content, f"content   sha256:{digests.content}")
    text = f"manifest  {digests.manifest or f'none: {found.why}'}"
    reporter.result("manifest", digests.manifest or None, text)


def _brief(drift: Sequence[str]) -> str:
    more = f"; and {len(drift) - _SHOWN} more" if len(drift) > _SHOWN else ""
    return "; ".join(drift[:_SHOWN]) + more
