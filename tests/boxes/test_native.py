"""Whole builds inside a box, natively: as root and as an ordinary user, docker's bytes at home."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edgekiln.engine import Engine
from edgekiln.errors import ImageError
from tests.boxes import kit
from tests.boxes.bundles import MODEL, WORDS, sums
from tests.boxes.conftest import Rent
from tests.boxes.kit import Box
from tests.builds.kit import three_lines

pytestmark = [pytest.mark.engine, pytest.mark.slow]


@pytest.fixture(scope="module")
def box(lease: Rent, tiny: Path) -> Box:
    """A box without a network, with a model on its data disk."""
    box = lease(network="none")
    box.copy_in(tiny, MODEL)
    return box


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
