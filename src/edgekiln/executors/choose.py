"""Which executor runs a build, and why that one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from edgekiln.errors import EngineError, UsageError, nearest
from edgekiln.executors.base import Executor
from edgekiln.prefix.here import image_here

if TYPE_CHECKING:
    from edgekiln.toolchain import Toolchain

NAMES = ("auto", "docker", "native", "rootfs")
_NO_ENGINE = "no container engine answers (`kiln engine show` says why)"


def choose_executor(wanted: str, toolchains: Iterable[Toolchain] = ()) -> tuple[Executor, str]:
    """The executor to use and the reason in a few words.

    `auto` is native inside an image of ours, whose own stages then run right there; else docker
    where an engine answers; else native where the `toolchains` can be installed on this machine,
    and rootfs where they cannot but their images are to be had. Raises EngineError when the one
    asked for cannot be had.
    """
    check_executor(wanted)
    if wanted == "native":
        return _native(), "asked for"
    if wanted == "rootfs":
        return _rootfs(), "asked for"
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
    if why := _why_unpacked(list(toolchains)):
        return _rootfs(), f"{_NO_ENGINE}; {why}"
    return _native(), _NO_ENGINE


def check_executor(wanted: str) -> None:
    """Raise UsageError for a name that no executor has."""
    if wanted not in NAMES:
        raise UsageError(f"there is no executor {wanted}", remedy=nearest(wanted, NAMES))


def _why_unpacked(toolchains: list[Toolchain]) -> str:
    """Why the toolchains' images are run and no prefixes, in a few words; "" for prefixes."""
    from edgekiln.prefix import prefix_ready
    from edgekiln.rootfs.unpack import is_ready

    unfilled = [toolchain for toolchain in toolchains if not prefix_ready(toolchain)]
    if unfilled and all(map(is_ready, toolchains)):
        return "the images are unpacked here"
    from edgekiln.boxes.fits import why_not_native

    why = next(filter(None, map(why_not_native, unfilled)), "")
    return f"not natively: {why}" if why and all(map(_to_be_had, toolchains)) else ""


def _to_be_had(toolchain: Toolchain) -> bool:
    """Whether the toolchain's image is unpacked, lies here, or has a registry to come from."""
    from edgekiln.images import exports, registry
    from edgekiln.rootfs.unpack import is_ready

    return is_ready(toolchain) or bool(registry.named()) or exports.find(toolchain) is not None


def _rootfs() -> Executor:
    from edgekiln.executors.rootfs import RootfsExecutor

    return RootfsExecutor()


def _native() -> Executor:
    from edgekiln.executors.native import NativeExecutor

    return NativeExecutor()
