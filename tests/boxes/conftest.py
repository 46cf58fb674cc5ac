"""Fixtures of the tests in rented boxes: their image, what they live on, and boxes by wish."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from edgekiln.engine import Engine
from tests.boxes import kit, supplies
from tests.boxes.bundles import WORDS
from tests.boxes.kit import Box, Wanted
from tests.builds.kit import Kiln, call
from tests.builds.tinyllm import MAKE_MODEL
from tests.conftest import USERS_HOME

Rent = Callable[..., Box]


@pytest.fixture(scope="session")
def vendor() -> Path:
    """A vendor folder with edgekiln's own packages and the wheels of mnn and qnn; kept."""
    return supplies.fill(USERS_HOME / "tests" / "vendor", ("mnn", "qnn"))


@pytest.fixture(scope="session")
def plain_image(engine: Engine) -> str:
    """The image of a box in which edgekiln was never set up."""
    return kit.box_image(engine)


@pytest.fixture(scope="session")
def ready_image(engine: Engine, plain_image: str, vendor: Path) -> str:
    """The same, in which `./kiln` has made its environment."""
    return kit.ready_image(engine, plain_image, vendor)


def _renting(engine: Engine, image: str, vendor: Path) -> Iterator[Rent]:
    with ExitStack() as stack:

        def rent(**wanted: Any) -> Box:
            """A box that is as `kit.Wanted` says, till the end of the test (or session)."""
            return stack.enter_context(
                kit.rented(engine, wanted.pop("image", image), Wanted(vendor=vendor, **wanted))
            )

        yield rent


@pytest.fixture
def rent(engine: Engine, ready_image: str, vendor: Path) -> Iterator[Rent]:
    """Gives boxes in which edgekiln is set up; they end with the test."""
    yield from _renting(engine, ready_image, vendor)


@pytest.fixture(scope="session")
def lease(engine: Engine, ready_image: str, vendor: Path) -> Iterator[Rent]:
    """Gives boxes that last as long as the session."""
    yield from _renting(engine, ready_image, vendor)


@pytest.fixture(scope="session")
def tiny(mnn_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers with random weights, on this machine; `Box.copy_in` brings it."""
    place = tmp_path_factory.mktemp("tiny") / "tiny-llama"
    done = call([str(mnn_python), "-c", MAKE_MODEL, "llama", str(place)], os.environ)
    assert done.returncode == 0, done.stderr
    return place


@pytest.fixture(scope="session")
def at_home(
    engine: Engine, tiny: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Gives the bundle of a backend made in containers on this machine."""
    made: dict[str, Path] = {}

    def bundle(backend: str) -> Path:
        if backend not in made:
            here = tmp_path_factory.mktemp(f"home-{backend}")
            home = here / "kiln"
            home.mkdir()
            for name in ("bases", "locks", "tools", "uv"):
                (USERS_HOME / name).mkdir(parents=True, exist_ok=True)
                (home / name).symlink_to(USERS_HOME / name)
            kiln = Kiln(home=home, here=here)
            words = ("--model", str(tiny), "--executor", "docker", *WORDS[backend])
            done = kiln("build", "--backend", backend, *words, "--out", str(here / "bundle"))
            assert done.returncode == 0, done.stderr
            made[backend] = here / "bundle"
        return made[backend]

    return bundle
