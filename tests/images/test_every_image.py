"""Every toolchain's image: proved by its own verify, small, nobody's, and said to be what it is."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from edgekiln import images, sbom
from edgekiln.engine import Engine
from edgekiln.progress import Silent
from edgekiln.toolchain import list_toolchains, load_toolchain
from tests.images.content import called

pytestmark = pytest.mark.engine

GIGABYTE = 1_000_000_000
# What verify must have shown, beyond what it shows of every image, and how large one may be.
PROOFS = {
    "aimet": ("torch", "by the rules htp_v79"),
    "aimet-1.34-cu121": ("torch 2.1.2+cu121", "compiled part loads", "quantises with SeqMSE"),
    "mlc": ("torch 2.13.0+cpu", "tvm_ffi 0.1.11", "links a shared library", "without its kits"),
    "mlc-android": ("CMake 3.31.10", "Java 17", "without its kits"),
    "mnn": ("torch", "MNN converts", "llmexport 0.0.5", "LLM runtime"),
    "mnn-android": ("CMake 3.31.10", "Java 17", "without its kits"),
    "qairt": ("5 libraries that the SDK links to", "37 modules", "onnx 1.14.1"),
    "qnn": ("compiles for SoC 69, all of it on the HTP", "HTP emulation", "Genie 1.21"),
    "tvm": ("generates opencl, webgpu, metal, cuda, llvm", "OpenCL inside", "computes the same"),
}
SIZES = {
    "aimet": 1.8,
    "aimet-1.34-cu121": 6.3,
    "mlc": 1.4,
    "mlc-android": 1.9,
    "mnn": 1.3,
    "mnn-android": 1.25,
    "qairt": 0.8,
    "qnn": 0.65,
    "tvm": 1.7,
}


# 3 GB are fetched for that one.
NAMES = [
    pytest.param(name, marks=pytest.mark.slow) if name == "aimet-1.34-cu121" else name
    for name in list_toolchains()
]


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    """Each toolchain."""
    return str(request.param)


@pytest.fixture(scope="module")
def image(engine: Engine, name: str) -> str:
    """Its image's tag."""
    return images.build(engine, load_toolchain(name), Silent())


def test_verify_proves_the_image_in_a_container_without_a_network(name: str, image: str) -> None:
    from testcontainers.core.container import DockerContainer

    container = DockerContainer(image).with_command("sleep 300")
    with container.with_kwargs(network_mode="none", cap_drop=["ALL"]) as running:
        code, output = running.exec(["/opt/edgekiln/verify"])
    assert isinstance(output, bytes)
    said = output.decode()
    lines = [line for line in said.splitlines() if line.startswith("ok ")]
    assert code == 0, said
    for proof in ("locked versions", *PROOFS[name]):
        assert any(proof in line for line in lines), proof


def test_the_bill_of_materials_is_of_what_is_installed(name: str, image: str) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    toolchain = load_toolchain(name)
    text = sbom.of_toolchain(toolchain, executor="docker")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    assert sbom.of_toolchain(toolchain, executor="docker") == text
    parts = json.loads(text)["components"]
    python = [part for part in parts if part.get("purl", "").startswith("pkg:pypi/")]
    assert len(python) == len(toolchain.lock.wheels)
    assert all(part["hashes"] and part["licenses"] for part in python)
    debs = [part for part in parts if part.get("purl", "").startswith("pkg:deb/")]
    assert {deb.name for deb in toolchain.lock.debs} <= {part["name"] for part in debs}
    assert all(part["licenses"] for part in debs)


def test_a_vendor_folder_has_the_bill_beside_the_image(
    name: str, image: str, tmp_path: Path
) -> None:
    toolchain = load_toolchain(name)
    put = sbom.put_beside(toolchain, tmp_path / "edgekiln.image")
    assert put.read_text(encoding="utf-8") == sbom.of_toolchain(toolchain, executor="docker")
    said = subprocess.run(
        ["sha256sum", "-c", "SHA256SUMS"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert said.stdout == "edgekiln.image.cdx.json: OK\n"


def test_labels_say_what_the_image_is(engine: Engine, name: str, image: str) -> None:
    found = engine.image(image)
    assert found is not None
    labels, toolchain = found["Config"]["Labels"], load_toolchain(name)
    assert labels["io.edgekiln.toolchain"] == name
    assert labels["io.edgekiln.toolchain.lock"] == f"sha256:{toolchain.installed}"
    assert labels["org.opencontainers.image.description"] == toolchain.summary
    assert labels["org.opencontainers.image.base.digest"].startswith("sha256:")


def test_the_image_runs_as_nobody(engine: Engine, image: str) -> None:
    assert called(engine, ["run", "--rm", image, "id", "-u"]) == "65534"


def test_the_image_is_small(engine: Engine, name: str, image: str) -> None:
    found = engine.image(image)
    assert found is not None
    assert found["Size"] < SIZES[name] * GIGABYTE


def test_what_differs_from_the_lock_can_be_asked(engine: Engine, name: str, image: str) -> None:
    said = called(engine, ["run", "--rm", image, "/opt/edgekiln/verify", "--json"])
    inside = json.loads(said.splitlines()[-1])["drift"]
    assert set(inside) <= set(images.drift(engine, load_toolchain(name)))
