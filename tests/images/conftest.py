"""Fixtures of the container tests: an engine that answers, and the images, built if missing."""

from __future__ import annotations

import os

import pytest

from edgekiln import images
from edgekiln.engine import Engine, find_engine, why_not
from edgekiln.progress import Silent
from edgekiln.toolchain import load_toolchain


@pytest.fixture(scope="session")
def engine() -> Engine:
    """The engine of this machine; without one these tests have nothing to run in."""
    found = find_engine()
    if found is None:
        pytest.skip(f"no container engine answers: {why_not().splitlines()[0]}")
    # testcontainers' reaper is an image of its own, which only a registry has.
    os.environ["TESTCONTAINERS_RYUK_DISABLED"] = "true"
    os.environ["DOCKER_HOST"] = found.url
    return found


@pytest.fixture(scope="session")
def mnn(engine: Engine) -> str:
    """The mnn image's tag."""
    return images.build(engine, load_toolchain("mnn"), Silent())
