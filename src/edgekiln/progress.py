"""How long work tells how far it is, without knowing who shows it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """One piece of work with a beginning, a size and an end."""

    def update(self, done: float, total: float | None = None, what: str = "") -> None:
        """Say how much is done, in the unit the bar was opened with."""

    def note(self, text: str) -> None:
        """Say something worth a line of its own."""


class Silent:
    """Tells nobody."""

    def update(self, done: float, total: float | None = None, what: str = "") -> None:
        pass

    def note(self, text: str) -> None:
        pass
