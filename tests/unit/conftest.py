"""Fixtures of the unit tests: each has its own cache and store."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgekiln import toolchain
from tests.unit.kit import Bench


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or writes the user's own cache."""
    home = tmp_path / "home"
    monkeypatch.setenv("EDGEKILN_HOME", str(home))
    # The stand-in for the vendor's SDK is under no licence; test_qairt_sdk.py has its refusal.
    monkeypatch.setenv("EDGEKILN_ACCEPT_LICENCES", "qairt")
    return home


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A store and a runner whose stages are run by this Python, from a toolchain of nothing."""
    return Bench(
        tmp_path,
        SimpleNamespace(
            name="plain", digest="0" * 64, installed="0" * 64, env={}, summary="", kits=()
        ),
    )


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The shipped toolchains, in a folder that a test may change."""
    target = tmp_path / "toolchains"
    shutil.copytree(toolchain.folder(), target)
    monkeypatch.setattr(toolchain, "folder", lambda: target)
    return target
