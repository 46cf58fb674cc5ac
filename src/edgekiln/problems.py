"""What a linter or a checker says of somebody's files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

Level = Literal["error", "warning", "note"]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something found: how bad, where, what, and what to do about it."""

    level: Level
    where: str
    what: str
    remedy: str = ""

    @property
    def text(self) -> str:
        """One line, or two."""
        line = f"{self.level + ':':<9}{self.where}: {self.what}"
        return f"{line}\n         do: {self.remedy}" if self.remedy else line


def worst_first(problems: Iterable[Problem]) -> list[Problem]:
    """Errors, then warnings, then notes, each once; otherwise in the order they were found."""
    order = get_args(Level)
    return sorted(dict.fromkeys(problems), key=lambda problem: order.index(problem.level))
