"""The file that genie-t2t-run --profile writes: header, components, their events.

Format as seen in files of version 0.1.0: every figure is {"value": …, "unit": …}; times are in
us, rates in toks/sec; a dialog has events GenieDialog_create, GenieDialog_query, GenieDialog_free.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekiln.errors import ArtifactError

TYPE = "GENIE_PROFILE"
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "sec": 1.0}
_RATES = ("toks/sec", "tokens/sec", "toks/s")
_AGAIN = "profile again: kiln device profile --bundle DIR"
_OTHER = "take another release of the runtime; this one writes its profile in another way"


@dataclass(frozen=True, kw_only=True)
class Query:
    """The figures of one question; None where the file does not have one. Times in seconds."""

    prompt_tokens: int | None
    generated_tokens: int | None
    tokens_per_second: float | None
    prompt_tokens_per_second: float | None
    time_to_first_token_s: float | None
    generation_s: float | None
    whole_s: float | None


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A file's figures: seconds to make each dialog ready, and its questions."""

    version: str
    init_s: float | None
    queries: tuple[Query, ...]


def read_profile(path: Path) -> Profile:
    """A profile's figures. Raises ArtifactError for a damaged file or one of another kind."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{path} is no Genie profile", why=f"it cannot be read: {error}", remedy=_AGAIN
        ) from error
    return parse_profile(value, str(path))


def parse_profile(value: Any, where: str) -> Profile:
    """The same from a file's JSON; `where` stands in errors."""
    header = value.get("header") if isinstance(value, dict) else None
    kind = header.get("artifact_type") if isinstance(header, dict) else None
    if kind != TYPE:
        raise ArtifactError(
            f"{where} is no Genie profile",
            why=f"its artifact_type is {kind!r}, not {TYPE!r}" if kind else "it has no header",
            remedy=_AGAIN,
        )
    try:
        events = [e for part in value["components"] for e in part["events"]]
        queries = tuple(_query(e, where) for e in events if e["type"] == "GenieDialog_query")
        created = [e for e in events if e["type"] == "GenieDialog_create"]
        init = _seconds(created[0], "init-time", where) if created else None
    except (KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"{where} is damaged", why=f"an event has no {error}", remedy=_AGAIN
        ) from error
    if not queries:
        raise ArtifactError(
            f"{where} holds no question",
            why="it has no event GenieDialog_query: the program ended before it answered",
            remedy=_AGAIN,
        )
    return Profile(version=_version(header), init_s=init, queries=queries)


def _version(header: Mapping[str, Any] | None) -> str:
    parts = header.get("version") if header else None
    if not isinstance(parts, dict):
        return ""
    return ".".join(str(parts.get(name, 0)) for name in ("major", "minor", "patch"))


def _query(event: Mapping[str, Any], where: str) -> Query:
    duration = event.get("duration")
    return Query(
        prompt_tokens=_count(event, "num-prompt-tokens", where),
        generated_tokens=_count(event, "num-generated-tokens", where),
        tokens_per_second=_rate(event, "token-generation-rate", where),
        prompt_tokens_per_second=_rate(event, "prompt-processing-rate", where),
        time_to_first_token_s=_seconds(event, "time-to-first-token", where),
        generation_s=_seconds(event, "token-generation-time", where),
        # Events' own durations have no unit beside them; they are in us like their start.
        whole_s=None if duration is None else _number(duration, "duration", where) * 1e-6,
    )


def _figure(event: Mapping[str, Any], name: str, where: str) -> tuple[float, str] | None:
    if name not in event:
        return None
    return _number(event[name]["value"], name, where), str(event[name].get("unit", ""))


def _number(value: Any, name: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ArtifactError(f"{where} is damaged", why=f"{name} is {value!r}", remedy=_AGAIN)
    return float(value)


def _count(event: Mapping[str, Any], name: str, where: str) -> int | None:
    found = _figure(event, name, where)
    return None if found is None else int(found[0])


def _seconds(event: Mapping[str, Any], name: str, where: str) -> float | None:
    found = _figure(event, name, where)
    if found is None:
        return None
    if found[1] not in _SECONDS:
        raise ArtifactError(
            f"{where}: {name} is in {found[1]!r}", why="that is no unit of time", remedy=_OTHER
        )
    return found[0] * _SECONDS[found[1]]


def _rate(event: Mapping[str, Any], name: str, where: str) -> float | None:
    found = _figure(event, name, where)
    if found is None:
        return None
    if found[1] not in _RATES:
        raise ArtifactError(
            f"{where}: {name} is in {found[1]!r}", why="that is no rate", remedy=_OTHER
        )
    return found[0]
