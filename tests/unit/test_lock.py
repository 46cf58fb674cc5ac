"""Locks: what they hold, what makes their digest, and how they are read."""

from __future__ import annotations

import json
import re
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from edgekiln import toolchain
from edgekiln.errors import ToolchainError
from edgekiln.images.base import drift_of, parse_records
from edgekiln.progress import Silent
from edgekiln.toolchain import list_toolchains, load_toolchain
from edgekiln.toolchain.inbase import _deb
from edgekiln.toolchain.lock import (
    BaseLock,
    Deb,
    Lock,
    Wheel,
    digest,
    installed_text,
    read_lock,
    seal,
    write_lock,
)
from edgekiln.toolchain.relock import _fitness, _wheel, resolve
from edgekiln.toolchain.uvtool import PINNED
from edgekiln.user.pipconf import PipSettings
from tests.conftest import USERS_HOME

LOCKS = sorted(toolchain.folder().rglob("*.lock.json"))
FILES = [path for path in LOCKS if not path.name.startswith("schema")]


def wheel_lock(name: str = "mnn") -> Lock:
    """A shipped lock."""
    return load_toolchain(name).lock


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_lock_names_an_address(path: Path) -> None:
    assert "://" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", list_toolchains())
def test_each_package_is_one_wheel_that_fits_the_image(name: str) -> None:
    found = load_toolchain(name)
    tag = "cp" + found.python.replace(".", "")
    names = [wheel.name for wheel in found.lock.wheels]
    assert len(names) == len(set(names))
    for wheel in found.lock.wheels:
        *_, python, abi, platform = wheel.file.removesuffix(".whl").split("-")
        assert re.fullmatch("[0-9a-f]{64}", wheel.sha256)
        assert "py3" in python or python == tag or abi == "abi3", wheel.file
        assert platform == "any" or platform.endswith("x86_64"), wheel.file


def test_torch_is_the_wheel_for_the_cpu() -> None:
    torch = next(wheel for wheel in wheel_lock().wheels if wheel.name == "torch")
    assert (torch.version, torch.local) == ("2.13.0+cpu", True)


def test_a_lock_survives_being_written_and_read(tmp_path: Path) -> None:
    lock = wheel_lock()
    write_lock(lock, tmp_path / "x.lock.json")
    assert read_lock(Lock, tmp_path / "x.lock.json", remedy="") == lock


def test_one_package_is_one_line(tmp_path: Path) -> None:
    lock = wheel_lock()
    write_lock(lock, tmp_path / "x.lock.json")
    lines = (tmp_path / "x.lock.json").read_text(encoding="utf-8").splitlines()
    for wheel in lock.wheels:
        assert len([line for line in lines if wheel.sha256 in line]) == 1


def test_the_digest_is_over_what_is_installed_not_over_words() -> None:
    lock = wheel_lock()
    words = replace(lock.definition, summary="other words")
    assert digest(replace(lock, definition=words, definition_sha256="0")) == digest(lock)
    assert digest(replace(lock, uv=replace(lock.uv, version="9"))) != digest(lock)
    assert digest(replace(lock, debs=lock.debs[1:])) != digest(lock)


def test_what_lies_in_an_image_is_what_the_digest_covers() -> None:
    lock = wheel_lock()
    words = replace(lock.definition, summary="other words", kits=("ndk-r27c",), checks="tvm")
    other = replace(lock, definition=words, definition_sha256="0", sha256="1")
    assert installed_text(other) == installed_text(lock)
    inside = json.loads(installed_text(lock))
    assert {"definition_sha256", "sha256"} & set(inside) == set()
    assert [wheel["sha256"] for wheel in inside["wheels"]] == [w.sha256 for w in lock.wheels]
    assert installed_text(replace(lock, wheels=lock.wheels[1:])) != installed_text(lock)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{", "cannot be read"),
        ('{"format": 99}', "cannot be read"),
        ('{"format": 1, "colour": 1}', "colour is not known"),
        ('{"format": 1}', "is missing"),
        ("[]", "is not a mapping"),
    ],
)
def test_a_damaged_lock_is_refused(tmp_path: Path, text: str, what: str) -> None:
    (tmp_path / "x.lock.json").write_text(text, encoding="utf-8")
    with pytest.raises(ToolchainError, match=what):
        read_lock(Lock, tmp_path / "x.lock.json", remedy="lock it")


def test_a_wheel_with_a_digit_missing_in_its_size_names_its_place(tmp_path: Path) -> None:
    write_lock(wheel_lock(), tmp_path / "x.lock.json")
    data = json.loads((tmp_path / "x.lock.json").read_bytes())
    data["wheels"][3]["size"] = "large"
    data["sha256"] = seal(data)
    (tmp_path / "x.lock.json").write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(ToolchainError, match=r"wheels\[3\].size is 'large'"):
        read_lock(Lock, tmp_path / "x.lock.json", remedy="")


def test_what_is_left_out_of_a_toolchain_is_not_in_its_lock() -> None:
    lock = wheel_lock("aimet")
    assert set(lock.definition.without) == {"onnx2torch", "hvplot", "osqp", "pybind11"}
    left_out = {"torchvision", "panel", *lock.definition.without}
    assert not left_out & {wheel.name for wheel in lock.wheels}


def test_a_base_lock_knows_the_registry_digest() -> None:
    path = toolchain.folder() / "bases" / "debian-12.lock.json"
    assert read_lock(BaseLock, path, remedy="").image_digest.startswith("sha256:")


def test_of_several_fitting_wheels_the_closest_is_locked() -> None:
    names = [
        "x-1-py3-none-any.whl",
        "x-1-cp38-abi3-manylinux_2_28_x86_64.whl",
        "x-1-cp311-cp311-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        "x-1-cp311-cp311-manylinux_2_28_x86_64.whl",
    ]
    assert sorted([names[i] for i in (2, 0, 3, 1)], key=_fitness) == names


def test_a_package_without_a_wheel_is_refused() -> None:
    with pytest.raises(ToolchainError, match="x 1 has no wheel"):
        _wheel({"name": "x", "version": "1", "sdist": {"url": "https://i.example/x-1.tar.gz"}})


def test_a_wheels_file_name_is_read_from_its_address() -> None:
    sha = "0" * 64
    file = {"url": "https://i.example/a%2Bb/x-1%2Bcpu-py3-none-any.whl", "hashes": {"sha256": sha}}
    found = _wheel({"name": "x", "version": "1+cpu", "wheels": [file]})
    assert found == Wheel(name="x", version="1+cpu", file="x-1+cpu-py3-none-any.whl", sha256=sha)


def test_apts_own_line_gives_a_package_with_its_epoch() -> None:
    line = "'http://a.example/x.deb' login_1%3a4.13+dfsg1-1_amd64.deb 42 SHA256:ab"
    assert _deb(line) == Deb(name="login", version="1:4.13+dfsg1-1", sha256="ab", size=42)


def test_apts_records_give_packages_by_name() -> None:
    text = "Package: b\nVersion: 2\nSize: 5\nSHA256: bb\nDescription: x\n and: more\n\n"
    text += "Package: a\nVersion: 1\nSize: 4\nSHA256: aa\n"
    assert [(d.name, d.version, d.size) for d in parse_records(text)] == [
        ("a", "1", 4),
        ("b", "2", 5),
    ]


def test_drift_tells_newer_missing_and_other_bytes() -> None:
    old = [Deb(name=n, version="1", sha256=n) for n in ("same", "newer", "gone", "bytes")]
    new = [
        Deb(name="same", version="1", sha256="same"),
        Deb(name="newer", version="2", sha256="n2"),
        Deb(name="bytes", version="1", sha256="b2"),
        Deb(name="added", version="1", sha256="a"),
    ]
    assert drift_of(tuple(old), tuple(new)) == [
        "added: locked none, got 1",
        "bytes: locked 1, got 1 (other bytes)",
        "gone: locked 1, got none",
        "newer: locked 1, got 2",
    ]


@pytest.fixture
def uv(own_home: Path) -> None:
    """The pinned uv, where the user has it already."""
    kept = USERS_HOME / "tools" / f"uv-{PINNED.version}-{PINNED.sha256[:12]}"
    if not (kept / "uv").is_file():
        pytest.skip("uv was not fetched yet: any `kiln toolchains lock` does")
    (own_home / "tools").mkdir(parents=True)
    (own_home / "tools" / kept.name).symlink_to(kept)


@pytest.fixture
def wheels(tmp_path: Path) -> PipSettings:
    """A folder of wheels: `tool` 1 wants an old `part` and an `extra` there is no wheel of."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    put_wheel(folder, "tool", "1", "part==1", "extra")
    put_wheel(folder, "part", "1")
    put_wheel(folder, "part", "2")
    put_wheel(folder, "part", "3", tag="py3-none-manylinux_2_36_x86_64")
    put_wheel(folder, "part", "4", tag="py3-none-manylinux_2_37_x86_64")
    return PipSettings(find_links=(str(folder),), no_index=True)


def put_wheel(
    folder: Path, name: str, version: str, *wants: str, tag: str = "py3-none-any"
) -> None:
    """A wheel of nothing, which asks for others."""
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {want}" for want in wants]
    told = f"Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: {tag}\n"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-{tag}.whl", "w") as archive:
        archive.writestr(f"{info}/METADATA", "\n".join(lines) + "\n")
        archive.writestr(f"{info}/WHEEL", told)
        archive.writestr(f"{info}/RECORD", "")


def resolved(
    wheels: PipSettings,
    *requirements: str,
    base: str = "debian-12",
    overrides: tuple[str, ...] = (),
    without: tuple[str, ...] = (),
) -> str:
    """What requirements come to, as words."""
    what = wheel_lock().definition
    what = replace(what, base=base, places=(), overrides=overrides, without=without)
    found = resolve(requirements, what, wheels, Silent())
    return " ".join(f"{wheel.name}=={wheel.version}" for wheel in found)


def test_overrides_hold_whatever_is_asked_for_and_without_leaves_out(
    uv: None, wheels: PipSettings
) -> None:
    with pytest.raises(ToolchainError, match="cannot be resolved"):
        resolved(wheels, "tool", "part==2", without=("extra",))
    with pytest.raises(ToolchainError, match="cannot be resolved"):
        resolved(wheels, "tool", overrides=("part==2",))
    found = resolved(wheels, "tool", overrides=("part==2",), without=("extra",))
    assert found == "part==2 tool==1"


@pytest.mark.parametrize(("base", "newest"), [("debian-12", "3"), ("ubuntu-22.04", "2")])
def test_wheels_are_for_the_glibc_of_the_base(
    uv: None, wheels: PipSettings, base: str, newest: str
) -> None:
    assert resolved(wheels, "part", base=base) == f"part=={newest}"
