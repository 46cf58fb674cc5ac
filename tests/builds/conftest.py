"""A bench for the tests with real programs; its store is its own, expensive things the user's."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from tests.unit.kit import Bench

if TYPE_CHECKING:
    from edgekiln.engine import Engine
    from edgekiln.toolchain import Toolchain


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """Stages are plain processes of this Python."""
    return Bench(tmp_path, SimpleNamespace(name="plain", digest="0" * 64, env={}, summary=""))


@pytest.fixture
def boat(tmp_path: Path, engine: Engine, mnn: Toolchain, image: str) -> Bench:
    """Stages run in containers of the mnn image."""
    from edgekiln.executors.docker import DockerExecutor

    return Bench(tmp_path, mnn, executor=lambda: DockerExecutor(engine))
