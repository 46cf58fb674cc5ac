"""Whole builds inside a box, in unpacked images: by root and by anybody, docker's bytes at home."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgekiln.engine import Engine
from edgekiln.errors import EngineError, ImageError
from edgekiln.progress import Silent
from edgekiln.rootfs.proot import FILES
from edgekiln.toolchain import load_toolchain
from tests.boxes import kit
from tests.boxes.bundles import MODEL, WORDS, sums
from tests.boxes.conftest import Rent
from tests.boxes.kit import Box
from tests.builds.kit import three_lines

pytestmark = [pytest.mark.engine, pytest.mark.slow]

IMAGES = "/media/images"


@pytest.fixture(scope="module")
def exported(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vendor folder with the images of mnn and qnn, as a web disk would hold them."""
    from edgekiln import images
    from edgekiln.images import exports

    folder = tmp_path_factory.mktemp("images")
    for name in ("mnn", "qnn"):
        toolchain = load_toolchain(name)
        images.build(engine, toolchain, Silent())
        exports.export(engine, toolchain, folder / exports.export_name(toolchain), Silent())
    for path in (folder, folder.parent):
        path.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def box(lease: Rent, tiny: Path, exported: Path) -> Box:
    """A box without a network, with a model on its data disk and the images in reach."""
    box = lease(network="none", volumes=(f"{exported}:{IMAGES}:ro",))
    box.copy_in(tiny, MODEL)
    return box


def build(box: Box, backend: str, user: str, place: str, **env: str) -> Any:
    """A build with the executor rootfs; each user has a home of his own on the data disk."""
    home = f"{kit.DATA}/rootfs-{user}"
    box.must("mkdir", "-p", home, user=user)
    words = ("--model", MODEL, "--executor", "rootfs", *WORDS[backend], "--out", place)
    own = {"EDGEKILN_VENDOR": IMAGES, **env}
    return box.kiln("build", "--backend", backend, *words, user=user, home=home, env=own)


@pytest.mark.parametrize("user", ["root", kit.RENTER])
@pytest.mark.parametrize("backend", ["mnn", "qnn"])
def test_a_build_in_an_unpacked_image_is_the_one_in_a_container(
    box: Box, at_home: Callable[[str], Path], tmp_path: Path, backend: str, user: str
) -> None:
    place = f"{kit.DATA}/unpacked-{user}/{backend}"
    done = build(box, backend, user, place)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "rootfs on this machine (by proot" in done.stderr
    assert "network NOT cut" in done.stderr
    assert box.must("stat", "--format=%U", place, user="root") == user
    bundle = box.copy_out(place, tmp_path / "bundle")
    assert sums(bundle) == sums(at_home(backend))
    stages = json.loads((bundle / "manifest.json").read_text())["stages"]
    assert {stage["executor"] for stage in stages.values()} == {"rootfs"}


def test_by_chroot_the_same_bundle_is_made(
    box: Box, at_home: Callable[[str], Path], tmp_path: Path
) -> None:
    place = f"{kit.DATA}/chroot/mnn"
    box.must("rm", "-rf", f"{kit.DATA}/rootfs-root/store")
    done = build(box, "mnn", "root", place, EDGEKILN_ROOTFS="chroot")
    assert done.returncode == 0, done.stderr + done.stdout
    assert "by chroot" in done.stderr
    assert sums(box.copy_out(place, tmp_path / "bundle")) == sums(at_home("mnn"))


@pytest.fixture(scope="module", params=["root", kit.RENTER])
def found(box: Box, request: pytest.FixtureRequest) -> dict[str, Any]:
    """What stages find in an unpacked image that proot enters, and how they end."""
    user = str(request.param)
    home = f"{kit.DATA}/rootfs-{user}"
    if box.run("test", "-d", f"{home}/rootfs").returncode:
        place = f"{kit.DATA}/first-{user}"
        assert build(box, "mnn", user, place).returncode == 0
    program = f"{kit.CHECKOUT}/tests/boxes/rootfs_inside.py"
    folder = f"{home}/inside"
    env = {"EDGEKILN_HOME": home, "EDGEKILN_ROOTFS": "proot"}
    env["PYTHONPATH"] = f"{kit.CHECKOUT}/src:{kit.CHECKOUT}"
    python = f"{kit.CHECKOUT}/.venv/bin/python"
    told: dict[str, Any] = json.loads(box.must(python, program, folder, user=user, env=env))
    return told


def test_a_stage_finds_the_places_of_a_container(found: dict[str, Any]) -> None:
    assert found["farm"] == "weights"
    seen = found["seen"]
    env = seen["environment"]
    assert env["HOME"] == env["TMPDIR"] == "/scratch"
    assert (env["HF_HUB_OFFLINE"], env["PYTHONHASHSEED"], env["KILN_CPUS"]) == ("1", "0", "2")
    assert not [name for name in env if name.startswith(("PROOT", "EDGEKILN"))]


def test_a_stage_has_no_capabilities_and_changes_nothing_of_others(found: dict[str, Any]) -> None:
    assert found["config"] == '{"a": 1}'
    assert found["seen"]["capabilities"][:3] == [0, 0, 0]
    assert found["seen"]["privileges"] == 1
    if not found["landlock"]:
        pytest.skip("this kernel has no Landlock: files keep their permissions, and that is all")
    assert set(found["written"].values()) == {"PermissionError"}
    assert "root NOT read only" not in found["says"]


def test_a_stage_keeps_its_inputs_when_another_one_ends(found: dict[str, Any]) -> None:
    assert found["beside"] == '{"a": 1}'


def test_how_a_stage_ends_is_told_as_natively(found: dict[str, Any]) -> None:
    assert "exit 137" in found["killed"]["text"]
    assert found["failed"] == {"kind": "usage", "text": "error: the words of the stage"}
    assert found["memory"]["kind"] == "memory"


def test_nothing_of_a_stage_stays(found: dict[str, Any]) -> None:
    assert found["were"][0] >= 3, "its family ran when it was cancelled"
    assert (found["left"], found["cancelled"], found["workspaces"]) == ([], [], [])


def test_an_image_that_is_not_to_be_had_is_named_with_the_way_to_it(box: Box) -> None:
    nowhere = {"EDGEKILN_HOME": f"{kit.DATA}/nowhere", "EDGEKILN_VENDOR": kit.VENDOR}
    done = build(box, "mnn", "root", f"{kit.DATA}/none", **nowhere)
    assert done.returncode == ImageError.exit_code
    assert "kiln images export mnn" in three_lines(done)[-1]


def test_without_proot_an_ordinary_user_is_told_of_both_packages(
    engine: Engine, lease: Rent, vendor: Path, tiny: Path, exported: Path
) -> None:
    packages = [name for name in kit.PACKAGES if name != "proot"]
    image = kit.ready_image(engine, kit.box_image(engine, packages), vendor)
    bare = lease(image=image, network="none", volumes=(f"{exported}:{IMAGES}:ro",))
    bare.copy_in(tiny, MODEL)
    done = build(bare, "mnn", kit.RENTER, f"{kit.DATA}/none")
    assert done.returncode == EngineError.exit_code, done.stderr
    assert all(name in three_lines(done)[-1] for name in FILES)
