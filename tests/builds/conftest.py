"""A bench for the tests with real programs; its store is its own, expensive things the user's."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from tests.builds.kit import Kiln, call
from tests.builds.tinyllm import MAKE_MODEL
from tests.unit.kit import Bench

if TYPE_CHECKING:
    from edgekiln.engine import Engine
    from edgekiln.toolchain import Toolchain


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """Stages are plain processes of this Python."""
    return Bench(
        tmp_path,
        SimpleNamespace(
            name="plain", digest="0" * 64, installed="0" * 64, env={}, summary="", kits=()
        ),
    )


@pytest.fixture
def boat(tmp_path: Path, engine: Engine, mnn: Toolchain, image: str) -> Bench:
    """Stages run in containers of the mnn image."""
    from edgekiln.executors.docker import DockerExecutor

    return Bench(tmp_path, mnn, executor=lambda: DockerExecutor(engine))


@pytest.fixture(scope="session")
def tiny(mnn_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers with random weights."""
    place = tmp_path_factory.mktemp("tiny") / "tiny-llama"
    done = call([str(mnn_python), "-c", MAKE_MODEL, "llama", str(place)], os.environ)
    assert done.returncode == 0, done.stderr
    return place


@pytest.fixture(scope="session")
def tvm_python() -> Path:
    """The Python of tvm's native prefix, filled if it is not there yet."""
    from edgekiln.errors import EngineError
    from edgekiln.prefix import build_prefix
    from edgekiln.progress import Silent
    from edgekiln.toolchain import load_toolchain

    try:
        return build_prefix(load_toolchain("tvm"), Silent())
    except EngineError as error:
        pytest.skip(f"{error.what}: {error.why}")


@pytest.fixture
def kiln(own_store: Path, tmp_path: Path) -> Kiln:
    """The command line, with a store of its own, in an empty folder."""
    here = tmp_path / "here"
    here.mkdir()
    return Kiln(home=own_store, here=here)
