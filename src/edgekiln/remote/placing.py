"""Which stage runs where: `--on PATTERN=PLACE`, as often as wanted.

A stage goes where the pattern says that fits it most closely: the one with the most letters that
are no wildcards; of two alike the later one. What no pattern fits stays here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from edgekiln.errors import UsageError, nearest
from edgekiln.pipeline import FromPath, Pipeline, Stage
from edgekiln.remote.hosts import Host, find

_WILD = re.compile(r"\[[^\]]*\]|[*?]")


def places(pipeline: Pipeline, wanted: Sequence[str]) -> dict[str, Host]:
    """The host of each stage that is to run elsewhere.

    Raises UsageError for a pattern that fits no stage, a place that is not known, or a stage
    that may not leave this machine.
    """
    pairs = [_pair(text) for text in wanted]
    hosts = {place: find(place) for _, place in pairs}
    names = [stage.name for stage in pipeline.stages]
    for pattern, _ in pairs:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UsageError(f"--on: no stage is called {pattern}", remedy=nearest(pattern, names))
    found: dict[str, Host] = {}
    for stage in pipeline.stages:
        best = _best(stage.name, pairs)
        host = hosts[best[1]] if best else None
        if best and host and _may_leave(stage, best[0]):
            found[stage.name] = host
    return found


def check(wanted: Sequence[str]) -> None:
    """Raise UsageError for what no build's stages could make right: a form, a place."""
    for text in wanted:
        find(_pair(text)[1])


def _pair(text: str) -> tuple[str, str]:
    pattern, joined, place = text.partition("=")
    if not (pattern and joined and place):
        raise UsageError(f"--on {text!r} is no STAGE=PLACE", remedy="e.g. --on quantize=autodl")
    return pattern, place


def _best(name: str, pairs: Sequence[tuple[str, str]]) -> tuple[str, str] | None:
    fitting = [(len(_WILD.sub("", p)), i) for i, (p, _) in enumerate(pairs) if fnmatchcase(name, p)]
    return pairs[max(fitting)[1]] if fitting else None


def _may_leave(stage: Stage, pattern: str) -> bool:
    """Whether a stage may go elsewhere: one that reads a secret goes nowhere."""
    secrets = [n for n, i in stage.inputs.items() if isinstance(i, FromPath) and i.secret]
    if secrets and pattern == stage.name:
        raise UsageError(
            f"stage {stage.name} cannot run elsewhere",
            why=f"it reads a secret ({', '.join(secrets)}), and no secret is written there",
            remedy=f"--on {stage.name}=local",
        )
    return not secrets


def described(found: Mapping[str, Host], pipeline: Pipeline) -> str:
    """A line for each stage: where it runs."""
    width = max(len(stage.name) for stage in pipeline.stages)
    named = {stage.name: found.get(stage.name) for stage in pipeline.stages}
    return "\n".join(
        f"{name.ljust(width)}  {f'{host.name} ({host.address})' if host else 'here'}"
        for name, host in named.items()
    )
