"""Images proved together with kits: mounted as in a build, told to verify, and refused when wrong.

The real kits are an SDK, wheels and sources from elsewhere. Here kits of the tests' own stand in
for them, so what is shown is that verify sees a kit, and what it makes of a wrong one.
"""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from edgekiln import images
from edgekiln.engine import Engine
from edgekiln.errors import DigestError, ImageError
from edgekiln.kits import Kit, ready
from edgekiln.progress import Silent
from edgekiln.toolchain import load_toolchain
from tests.unit.kitmaking import archive_kit, pinned, zipped
from tests.unit.test_android_checks import CLANG, linked, note

pytestmark = pytest.mark.engine

STAND_IN = b"""#!/bin/sh
here=$(dirname "$0")/../../../../..
while [ "$1" != -o ]; do shift; done
cp "$here/made.so" "$2"
"""


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kits of the tests stay out of the user's."""
    monkeypatch.setenv("EDGEKILN_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def android(engine: Engine) -> str:
    """The mnn-android image's tag."""
    return images.build(engine, load_toolchain("mnn-android"), Silent())


@pytest.fixture(scope="module")
def mlc(engine: Engine) -> str:
    """The mlc image's tag."""
    return images.build(engine, load_toolchain("mlc"), Silent())


def made(folder: Path, family: str, version: str, files: dict[str, bytes]) -> Kit:
    """A kit of that family, unpacked."""
    body = zipped(files, programs=(CLANG,))
    file = folder / f"{secrets.token_hex(4)}.zip"
    file.write_bytes(body)
    archive = pinned(file.name, body, str(file))
    kit = archive_kit(archive, name=file.stem, family=family, version=version)
    ready(kit, Silent())
    return kit


def ndk(folder: Path, page: int) -> Kit:
    """What looks like an NDK, and gives a library whose segments are aligned so."""
    properties = b"Pkg.Desc = Android NDK\nPkg.Revision = 27.2.12479018\n"
    library = linked(folder, note(), page)
    files = {CLANG: STAND_IN, "made.so": library, "source.properties": properties}
    return made(folder, "ndk", "27.2.12479018", files)


def test_verify_sees_a_kit_and_says_what_it_proved(
    engine: Engine, android: str, tmp_path: Path
) -> None:
    proved = images.verify(engine, android, [ndk(tmp_path, 16384)])["proved"]
    assert "NDK 27.2.12479018 makes AArch64 libraries for API 24 with pages of 16 KB" in proved
    assert not any("without its kits" in line for line in proved)


def test_verify_refuses_a_kit_whose_compiler_makes_small_pages(
    engine: Engine, android: str, tmp_path: Path
) -> None:
    with pytest.raises(ImageError) as caught:
        images.verify(engine, android, [ndk(tmp_path, 4096)])
    assert "ndk: AssertionError: a segment is aligned to 4096 bytes" in caught.value.why


def test_without_kits_verify_says_that_they_were_not_looked_at(
    engine: Engine, android: str
) -> None:
    proved = images.verify(engine, android)["proved"]
    assert "without its kits: what they are for was not looked at" in proved


def test_wheels_in_a_kit_are_not_taken_for_the_images_own(
    engine: Engine, mlc: str, tmp_path: Path
) -> None:
    info = "mlc_llm_cpu-9.dist-info"
    metadata = b"Metadata-Version: 2.1\nName: mlc_llm_cpu\nVersion: 9\n"
    names = ("convert_weight", "gen_config", "compile", "package", "__init__")
    files = {f"mlc_llm/interface/{name}.py": b"" for name in names}
    files |= {"mlc_llm/__init__.py": b"__version__ = '9'\n", "tvm/__init__.py": b""}
    files[f"{info}/METADATA"] = metadata
    with pytest.raises(ImageError) as caught:
        images.verify(engine, mlc, [made(tmp_path, "mlc", "0.20.0", files)])
    assert "mlc_llm is 9, its kit 0.20.0" in caught.value.why


def test_a_kit_that_was_changed_is_not_proved(
    engine: Engine, android: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses

    kit = ndk(tmp_path, 16384)
    chain = dataclasses.replace(load_toolchain("mnn-android"), kits=(kit,))
    assert images.prove(engine, chain)["proved"]
    with (kit.path / "made.so").open("ab") as stream:
        stream.write(b"more")
    with pytest.raises(DigestError, match="is not what was unpacked there"):
        images.prove(engine, chain)
