"""Whole builds inside a box, natively: as root and as an ordinary user, docker's bytes at home."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from edgekiln.engine import Engine
from edgekiln.errors import ImageError
from tests.boxes import kit
from tests.boxes.conftest import Rent
from tests.boxes.kit import Box
from tests.builds.kit import LENIENT, Kiln, three_lines
from tests.conftest import USERS_HOME

pytestmark = [pytest.mark.engine, pytest.mark.slow]

MODEL = f"{kit.DATA}/tiny-llama"
# A model of random weights answers nonsense at four bits as it does at thirty-two.
WORDS = {
    "mnn": LENIENT,
    "qnn": (
        *("--context-length", "192", "--prefill-length", "32", "--calibration-tokens", "512"),
        *("--answer-tokens", "4", *LENIENT),
    ),
}
# Figures of speed and of the machine.
TOLD = ("manifest.json", "provenance.json")


@pytest.fixture(scope="module")
def box(lease: Rent, tiny: Path) -> Box:
    """A box without a network, with a model on its data disk."""
    box = lease(network="none")
    box.copy_in(tiny, MODEL)
    return box


@pytest.fixture(scope="module")
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


def sums(bundle: Path) -> dict[str, tuple[str, int]]:
    """sha256 and mode of each file but those that tell of times."""
    files = [path for path in bundle.rglob("*") if path.is_file() and path.name not in TOLD]
    return {
        path.relative_to(bundle).as_posix(): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            path.stat().st_mode & 0o777,
        )
        for path in files
    }


@pytest.mark.parametrize("user", ["root", kit.RENTER])
@pytest.mark.parametrize("backend", ["mnn", "qnn"])
def test_a_build_in_a_box_is_the_one_at_home(
    box: Box, at_home: Callable[[str], Path], tmp_path: Path, backend: str, user: str
) -> None:
    home, place = f"{kit.DATA}/{user}", f"{kit.DATA}/build-{user}/{backend}"
    box.must("mkdir", "-p", home, user=user)
    if user != "root":
        # Root has installed the toolchain by now; a second time would only take longer.
        box.must("ln", "-sfn", f"{kit.DATA}/root/prefixes", f"{home}/prefixes", user=user)
    words = ("--model", MODEL, "--executor", "native", *WORDS[backend], "--out", place)
    done = box.kiln("build", "--backend", backend, *words, user=user, home=home)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "native on this machine (network NOT cut" in done.stderr
    assert box.must("stat", "--format=%U", place, user="root") == user
    made = sums(box.copy_out(place, tmp_path / "bundle"))
    assert made == sums(at_home(backend))


def test_a_toolchain_without_its_library_fails_with_the_librarys_name(
    engine: Engine, plain_image: str, vendor: Path, tiny: Path
) -> None:
    packages = [name for name in kit.PACKAGES if name != "libatomic1"]
    image = kit.ready_image(engine, kit.box_image(engine, packages), vendor)
    with kit.rented(engine, image, kit.Wanted(vendor=vendor, network="none")) as bare:
        bare.copy_in(tiny, MODEL)
        words = ("--model", MODEL, "--executor", "native", *WORDS["qnn"])
        looked = bare.kiln("doctor", "--backend", "qnn", *words)
        done = bare.kiln("build", "--backend", "qnn", *words)
    assert "libatomic1 not installed" in looked.stdout
    *_, remedy = three_lines(done)
    assert done.returncode == ImageError.exit_code
    assert "installing libatomic1 with apt" in done.stderr
    assert "apt install libatomic1" in remedy
