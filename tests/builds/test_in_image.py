"""A CI job inside one of our images: its stages run right there, with the same bytes.

A real `docker run` of the image, as its own user, without a network and without an engine; the
checkout is mounted, and sets itself up from a vendor folder.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from edgekiln.home import project
from tests.boxes import supplies
from tests.builds.kit import LENIENT, NOBODY, Kiln, open_folder
from tests.builds.test_build import sums
from tests.conftest import USERS_HOME

if TYPE_CHECKING:
    from edgekiln.engine import Engine

pytestmark = [pytest.mark.engine, pytest.mark.slow]


class Inside:
    """A job's container: what it may write lies in one folder of this machine, at /job."""

    def __init__(self, engine: Engine, image: str, root: Path, vendor: Path) -> None:
        self._engine, self._image, self.root = engine, image, root
        self._mounts = ["--volume", f"{root}:/job", "--volume", f"{vendor}:/vendor:ro"]

    def kiln(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run `./kiln` of the mounted checkout in a container of its own."""
        told = {"HOME": "/job", "EDGEKILN_HOME": "/job/home", **env}
        given = [word for name, value in told.items() for word in ("--env", f"{name}={value}")]
        limits = ["--rm", "--network", "none", "--workdir", "/job"]
        command = ["run", *limits, *self._mounts, *given, self._image, "/job/checkout/kiln", *words]
        return subprocess.run(
            [*self._engine.cli, *command], capture_output=True, text=True, check=False
        )


def checkout(target: Path) -> None:
    """The files that git knows, as a job has them."""
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(words, cwd=project(), capture_output=True, check=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        if (project() / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(project() / name, target / name)


@pytest.fixture(scope="module")
def inside(engine: Engine, image: str, tiny: Path) -> Iterator[Inside]:
    """A job in mnn's image, with a checkout and a tiny model."""
    if os.getuid() != 0:
        pytest.skip("only root can give a folder to the image's user")
    vendor = supplies.fill(USERS_HOME / "tests" / "vendor", ("mnn", "qnn"))
    with open_folder() as root:
        checkout(root / "checkout")
        shutil.copytree(tiny, root / tiny.name)
        for path in [root, *root.rglob("*")]:
            os.chown(path, NOBODY, NOBODY)
        job = Inside(engine, image, root, vendor)
        made = job.kiln("--version", EDGEKILN_VENDOR="/vendor")
        assert made.returncode == 0, made.stderr
        yield job


def test_the_images_stages_run_right_there_with_the_same_bytes(
    inside: Inside, kiln: Kiln, tiny: Path
) -> None:
    words = ["build", "--backend", "mnn", *LENIENT]
    job = inside.kiln(*words, "--model", f"/job/{tiny.name}")
    assert job.returncode == 0, job.stderr
    assert "this is the image edgekiln/mnn:" in job.stderr
    assert not list((inside.root / "home").glob("prefixes/*")), "nothing was installed"
    home = kiln(*words, "--model", str(tiny), "--executor", "docker")
    assert home.returncode == 0, home.stderr
    places = (inside.root / "build" / tiny.name / "mnn", kiln.here / "build" / tiny.name / "mnn")
    found, wanted = map(sums, places)
    for each in (found, wanted):
        assert each.pop("manifest.json")  # times, and who ran the stages
    assert found == wanted and len(found) > 5


def test_another_toolchains_stages_name_the_image_for_them(inside: Inside, tiny: Path) -> None:
    job = inside.kiln(
        "build", "--backend", "qnn", "--model", f"/job/{tiny.name}", "--context-length", "512"
    )
    lines = [line for line in job.stderr.splitlines() if line.startswith("do: ")]
    assert job.returncode != 0 and "Traceback" not in job.stderr
    assert "this is the image edgekiln/mnn:" in lines[-1], job.stderr
    assert "run the job in edgekiln/qnn:" in lines[-1]
