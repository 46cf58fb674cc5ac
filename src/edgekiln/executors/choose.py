"""Which executor runs a build, and why that one."""

from __future__ import annotations

from edgekiln.errors import EngineError, UsageError, nearest
from edgekiln.executors.base import Executor
from edgekiln.prefix.here import image_here

NAMES = ("auto", "docker", "native")


def choose_executor(wanted: str) -> tuple[Executor, str]:
    """The executor to use and the reason in a few words.

    `auto` is native inside an image of ours, whose own stages then run right there; else docker
    where an engine answers, else native. Raises EngineError when the one asked
    for cannot be had.
    """
    check_executor(wanted)
    if wanted == "native":
        return _native(), "asked for"
    # Before an engine is looked for: one whose socket is here does not see this container's paths.
    if wanted == "auto" and (image := image_here()):
        return _native(), f"this is the image {image}"
    from edgekiln.engine import find_engine, why_not

    engine = find_engine()
    if engine is not None:
        from edgekiln.executors.docker import DockerExecutor

        return DockerExecutor(engine), "asked for" if wanted == "docker" else "an engine answers"
    if wanted == "docker":
        raise EngineError(
            "no container engine answers",
            why=why_not().replace("\n", "; "),
            remedy="start Docker or Podman, run `kiln engine up`, or use --executor native",
        )
    return _native(), "no container engine answers (`kiln engine show` says why)"


def check_executor(wanted: str) -> None:
    """Raise UsageError for a name that no executor has."""
    if wanted not in NAMES:
        raise UsageError(f"there is no executor {wanted}", remedy=nearest(wanted, NAMES))


def _native() -> Executor:
    from edgekiln.executors.native import NativeExecutor

    return NativeExecutor()
