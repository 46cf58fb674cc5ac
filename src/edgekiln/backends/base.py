"""What a backend is: typed options, a pipeline made of them, a verdict and a bundle.

A backend knows no executor: it says what is to be run, and reads what came out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgekiln.options import Value
from edgekiln.pipeline import Pipeline

if TYPE_CHECKING:
    from edgekiln.models import Model


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Where the outputs of finished stages lie."""

    paths: Mapping[tuple[str, str], Path]

    def __call__(self, stage: str, output: str) -> Path:
        return self.paths[stage, output]

    def json(self, stage: str, output: str, file: str) -> dict[str, Any]:
        """What a stage's report says: an object in a JSON file of that output."""
        found: dict[str, Any] = json.loads((self(stage, output) / file).read_text("utf-8"))
        return found


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something the build found out: `value` for manifests, `text` a line for people."""

    name: str
    value: Any
    text: str


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a bundle holds: files by their path in it, and the words that go with them.

    `texts` are small files that are written rather than copied.
    """

    files: Mapping[str, Path]
    readme: str
    texts: Mapping[str, str] = field(default_factory=dict)
    figures: Mapping[str, Any] = field(default_factory=dict)


class Backend(Protocol):
    """The way to one runtime."""

    name: str
    options: type

    def presets(self) -> Mapping[str, Mapping[str, Value]]:
        """Named sets of options; `default` is always there."""

    def variant(self, options: Any) -> str:
        """The bundle's folder in build/MODEL/: the backend, and the chip where it is for one."""

    def models(self, options: Any) -> Mapping[str, str]:
        """Models the build needs beside its own (a draft, say): role to reference."""

    def plan(self, options: Any, models: Mapping[str, Model]) -> Pipeline:
        """The stages. `models["model"]` is the build's own; the roles of `models()` follow.

        Raises UsageError or ModelError for what cannot be built, before anything runs.
        """

    def remedy(self, toolchain: str) -> str:
        """What a user can do where that toolchain cannot be had; nothing where there is no way."""

    def findings(self, options: Any, outputs: Outputs) -> list[Finding]:
        """Answers and figures of a finished pipeline, in the order to show them."""

    def judge(self, options: Any, findings: list[Finding]) -> None:
        """Raise QualityError when a figure is below what the preset allows."""

    def contents(self, options: Any, models: Mapping[str, Model], outputs: Outputs) -> Contents:
        """What the bundle holds."""
