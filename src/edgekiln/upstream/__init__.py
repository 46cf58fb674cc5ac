"""What upstreams say of the things that locks pin: still there, still the same, anything newer.

Nothing is downloaded that could be large: a registry is asked for a manifest by digest, an index
for its page, a server for a file's size, apt for its own lists, a repository for one commit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

OK, GONE, CHANGED, NOT_REACHED = "ok", "gone", "changed", "not reached"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one place said: `state` is ok, gone, changed or not reached; `why` adds to it."""

    place: str
    state: str
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One thing that is pinned: `kind` is image, wheel, deb, archive or commit.

    `version` is for people, `digest` (as its kind has it) is what counts.
    """

    kind: str
    name: str
    version: str
    digest: str


@dataclass(frozen=True, kw_only=True)
class Found:
    """A thing, and what each of its places said."""

    thing: Thing
    answers: tuple[Answer, ...]

    @property
    def state(self) -> str:
        """ok where any place has it; gone only where every place said so."""
        return verdict([answer.state for answer in self.answers])


def verdict(states: Sequence[str]) -> str:
    """What the states of a thing's places come to: one good place is enough."""
    for state in (OK, CHANGED, NOT_REACHED, GONE):
        if state in states:
            return state
    return NOT_REACHED
