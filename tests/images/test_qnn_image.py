"""The qnn image: its verify finds what would make binaries of the wrong kind, or none."""

from __future__ import annotations

import pytest

from edgekiln import images
from edgekiln.engine import Engine
from edgekiln.errors import ImageError
from edgekiln.progress import Silent
from edgekiln.toolchain import load_toolchain
from tests.images.content import changed

pytestmark = pytest.mark.engine

_LIBRARIES = "/opt/edgekiln/lib/python3.11/site-packages/onnxruntime_qnn"


@pytest.fixture(scope="module")
def qnn(engine: Engine) -> str:
    """The qnn image's tag."""
    return images.build(engine, load_toolchain("qnn"), Silent())


@pytest.mark.parametrize(
    ("library", "check"),
    [
        ("libQnnHtp.so", "compiler"),
        ("libQnnSystem.so", "compiler"),
        ("libGenie.so", "genie"),
    ],
)
def test_a_missing_library_is_found(engine: Engine, qnn: str, library: str, check: str) -> None:
    with (
        changed(engine, qnn, f"rm {_LIBRARIES}/{library}") as broken,
        pytest.raises(ImageError) as caught,
    ):
        images.verify(engine, broken)
    assert f"{check}: " in caught.value.why


def test_a_binary_for_another_chip_is_found(engine: Engine, qnn: str) -> None:
    script = """sed -i 's/str(SOC)/"57"/' /opt/edgekiln/checks.py"""
    with changed(engine, qnn, script) as broken, pytest.raises(ImageError) as caught:
        images.verify(engine, broken)
    assert "the binary is for SoC 57, asked was 69" in caught.value.why
