"""Model directories: found on this machine or fetched, and looked into before use.

`resolve` takes what a user writes after --model:

    ./models/qwen3                  a directory
    Qwen/Qwen3-1.7B                 on the Hugging Face Hub, at its main branch
    Qwen/Qwen3-1.7B@REVISION        the same at a branch, tag or commit
    modelscope:Qwen/Qwen3-1.7B      on ModelScope
    smollm2-135m-instruct           the example
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from edgekiln.errors import ModelError, nearest
from edgekiln.models.model import Model, slug

if TYPE_CHECKING:
    from edgekiln.models.snapshots import Hub, Snapshot
    from edgekiln.progress import Progress

__all__ = ["Model", "example_names", "resolve"]

_REMOTE = re.compile(
    r"((?P<site>[a-z]+):)?(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?", re.ASCII
)


def resolve(
    ref: str, *, progress: Progress, trust_pickle: bool = False, refresh: bool = False
) -> Model:
    """The model that `ref` names, fetched if need be, and found whole.

    What was fetched once is used without asking the network again, unless `refresh` is set.
    """
    from edgekiln.models.inspect import inspect

    if _is_path(ref):
        return inspect(Path(ref).expanduser(), trust_pickle=trust_pickle)
    name, found = _fetched(ref, progress, trust_pickle=trust_pickle, refresh=refresh)
    return inspect(found.path, trust_pickle=trust_pickle, source=found.source, name=name)


def at_hand(ref: str) -> bool:
    """Whether `resolve` takes `ref` from this machine, without asking anybody.

    Raises ModelError where `ref` names nothing.
    """
    if _is_path(ref):
        return True
    if ref in example_names():
        from edgekiln.models.example import at_hand as made

        return made(ref)
    if ref.startswith("example:"):
        return False
    remote = _REMOTE.fullmatch(ref)
    if remote is None:
        raise _unknown(ref)
    from edgekiln.models.snapshots import at_hand as fetched

    return fetched(_hub(remote["site"] or "hub"), remote["repo"], remote["revision"])


def example_names() -> list[str]:
    """The plain names that stand for a model."""
    from edgekiln.models.example import EXAMPLES

    return sorted(EXAMPLES)


def _is_path(ref: str) -> bool:
    """Whether `ref` is a place on this machine: one that is there, or that can be no name."""
    if not ref.strip():
        raise ModelError("no model is named", remedy="pass --model with a folder or a Hub name")
    plainly = ref.startswith((".", "/", "~", "\\")) or re.match(r"[A-Za-z]:[\\/]", ref)
    return bool(plainly) or Path(ref).is_dir()


def _fetched(
    ref: str, progress: Progress, *, trust_pickle: bool, refresh: bool
) -> tuple[str, Snapshot]:
    """The name and folder of a model that is not a directory of the user's."""
    if ref in example_names():
        from edgekiln.models.example import example

        return ref, example(ref, progress=progress, refresh=refresh)
    if ref.startswith("example:"):
        from edgekiln.models.example import packaged

        return packaged(ref.partition(":")[2], progress=progress)
    remote = _REMOTE.fullmatch(ref)
    if remote is None:
        raise _unknown(ref)
    from edgekiln.models.snapshots import snapshot

    found = snapshot(
        _hub(remote["site"] or "hub"),
        remote["repo"],
        remote["revision"],
        progress=progress,
        trust_pickle=trust_pickle,
        refresh=refresh,
    )
    return slug(remote["repo"].split("/")[1]), found


def _hub(site: str) -> Hub:
    if site == "hub":
        from edgekiln.models.hub import HuggingFace

        return HuggingFace()
    if site == "modelscope":
        from edgekiln.models.modelscope import ModelScope

        return ModelScope()
    raise ModelError(f"no place called {site}", remedy=nearest(site, ("hub", "modelscope")))


def _unknown(ref: str) -> ModelError:
    """Neither a directory nor a name: what comes nearest."""
    path = Path(ref)
    if path.is_file():
        return ModelError(
            f"{ref} is a file", why="a model is a directory", remedy="name its folder"
        )
    places = [entry.name for entry in Path().iterdir() if entry.is_dir()]
    near = nearest(ref, [*example_names(), *places])
    return ModelError(
        f"no model called {ref}",
        why="no such directory, no example of that name, and a Hub name is org/name",
        remedy=near
        if near.startswith("did you")
        else "name a directory, org/name, or " + ", ".join(example_names()),
    )
