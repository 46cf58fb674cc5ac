"""Bills of materials: right by CycloneDX's own validator, and of what is really there."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import venv
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from cyclonedx.model.bom import Bom
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

from edgekiln import sbom
from edgekiln.errors import ImageError, UsageError
from edgekiln.home import project
from edgekiln.prefix import prefix_path
from edgekiln.toolchain import Toolchain, list_toolchains, load_toolchain
from tests.unit.test_cli import kiln

PROGRAM = project() / "images" / "inventory.py"
MACHINE_READABLE = """Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: tool

Files: *
Copyright: 2001 Somebody
License: GPL-2+

Files: lib/*
Copyright: 2002 Somebody
License: Expat or BSD-3-clause

License: Expat
 Permission is hereby granted, …
"""
PROSE = """This package was debianized by somebody.

License:

  See /usr/share/common-licenses/LGPL-2.1, and `/usr/share/common-licenses/GPL-2'.
"""


@pytest.fixture(scope="module")
def inventory() -> ModuleType:
    spec = importlib.util.spec_from_file_location("inventory", PROGRAM)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def found_here() -> dict[str, Any]:
    """What inventory.py says of this very environment."""
    report: dict[str, Any] = json.loads(_said_here())
    return report


@lru_cache(maxsize=1)
def _said_here() -> str:
    return subprocess.run(
        [sys.executable, "-I", "-"],
        input=PROGRAM.read_text(encoding="utf-8"),
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def in_image(toolchain: Toolchain) -> dict[str, Any]:
    """The same as an image of that toolchain would tell it: locked wheels, Debian's packages."""
    deb = toolchain.lock.debs[0] if toolchain.lock.debs else None
    debs = [
        {
            "name": "libtool+1",
            "version": "1:2.3-4+deb12u1",
            "architecture": "amd64",
            "source": "libtool",
            "source_version": "1:2.3-4",
            "mentioned": ["GPL-2"],
        }
    ]
    if deb:
        own = {"name": deb.name, "version": deb.version, "licences": ["Expat", "GPL-2+"]}
        debs.append({**debs[0], "mentioned": None, **own})
    system = {"ID": "debian", "VERSION_ID": "12", "PRETTY_NAME": "Debian GNU/Linux 12 (bookworm)"}
    wheels = [
        {"name": w.name, "version": w.version, "summary": "", "expression": "", "licences": ["MIT"]}
        for w in toolchain.lock.wheels
    ]
    return {**found_here(), "wheels": wheels, "debs": debs, "os": system}


def refusal(text: str) -> Any:
    return JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)


@pytest.mark.parametrize("name", list_toolchains())
def test_cyclonedx_takes_every_toolchains_bill(name: str) -> None:
    toolchain = load_toolchain(name)
    for where, found in (("image", in_image(toolchain)), ("prefix", found_here())):
        body = sbom.document(toolchain, where, found)
        assert refusal(sbom.text(body)) is None
        read = Bom.from_json(data=body)  # type: ignore[attr-defined]
        assert read.validate()
        assert len(read.components) == len(body["components"])


def test_cyclonedx_would_refuse_what_is_wrong() -> None:
    body = sbom.document(load_toolchain("mnn"), "prefix", found_here())
    body["components"][0]["licences"] = []
    assert refusal(sbom.text(body)) is not None


def test_two_runs_give_the_same_bytes() -> None:
    said = []
    for _ in range(2):
        _said_here.cache_clear()
        said.append(sbom.text(sbom.document(load_toolchain("mlc-android"), "prefix", found_here())))
    one, other = said
    assert one == other
    assert "urn:uuid:" in one and '"timestamp"' not in one


def test_another_content_has_another_serial_number() -> None:
    found = found_here()
    fewer = {**found, "wheels": found["wheels"][1:]}
    one, other = (sbom.document(load_toolchain("mnn"), "prefix", f) for f in (found, fewer))
    assert one["serialNumber"] != other["serialNumber"]


def parts(body: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in body["components"]}


def test_wheels_are_named_with_file_digest_and_package_url() -> None:
    toolchain = load_toolchain("mnn")
    named = parts(sbom.document(toolchain, "image", in_image(toolchain)))
    torch = next(w for w in toolchain.lock.wheels if w.name == "torch")
    assert named["torch"]["hashes"] == [{"alg": "SHA-256", "content": torch.sha256}]
    assert named["torch"]["properties"] == [{"name": "edgekiln:file", "value": torch.file}]
    url = PackageURL.from_string(named["torch"]["purl"])
    assert (url.type, url.name, url.version) == ("pypi", "torch", torch.version)


def test_a_package_that_is_not_the_locked_one_gets_no_digest_of_it() -> None:
    toolchain = load_toolchain("mnn")
    found = in_image(toolchain)
    found["wheels"][0]["version"] += ".post1"
    named = parts(sbom.document(toolchain, "image", found))
    assert "hashes" not in named[found["wheels"][0]["name"]]


def test_packages_of_the_distribution_are_named() -> None:
    toolchain = load_toolchain("mnn")
    named = parts(sbom.document(toolchain, "image", in_image(toolchain)))
    deb, other = toolchain.lock.debs[0], named["libtool+1"]
    assert named[deb.name]["hashes"] == [{"alg": "SHA-256", "content": deb.sha256}]
    names = [each["license"]["name"] for each in named[deb.name]["licenses"]]
    assert names == ["Expat", "GPL-2+"]
    url = PackageURL.from_string(other["purl"])
    assert (url.namespace, url.name, url.version) == ("debian", "libtool+1", "1:2.3-4+deb12u1")
    assert url.qualifiers == {"arch": "amd64", "distro": "debian-12"}
    assert other["licenses"][0]["license"]["name"] == "see /usr/share/doc/libtool+1/copyright"
    told = {each["name"]: each["value"] for each in other["properties"]}
    assert told["edgekiln:licences.mentioned"] == "GPL-2"
    assert named["debian"]["type"] == "operating-system"


def test_kits_are_named_with_digests_commits_and_licences() -> None:
    named = parts(sbom.document(load_toolchain("mlc-android"), "prefix", found_here()))
    (ndk,) = named["ndk-r27c"]["components"]
    assert ndk["hashes"][0]["alg"] == "SHA-256" and ndk["name"].endswith(".zip")
    licence = named["ndk-r27c"]["licenses"][0]["license"]["name"]
    assert licence == "Android Software Development Kit License Agreement"
    assert named["rust"]["licenses"][0]["expression"] == "MIT OR Apache-2.0"
    source = {each["name"]: each for each in named["mlc-llm-v0.20.0"]["components"]}
    assert len(source["mlc-llm-v0.20.0"]["version"]) == 40
    told = {each["name"]: each["value"] for each in named["gradle-8.5"]["properties"]}
    assert told["edgekiln:kit.mounted"] == "true"


def test_what_is_here_is_told_with_its_licence() -> None:
    found = {wheel["name"].lower(): wheel for wheel in found_here()["wheels"]}
    assert found["pytest"]["version"] == pytest.__version__
    assert found["pytest"]["expression"] == "MIT" or found["pytest"]["licences"]
    assert found["invoke"]["licences"] or found["invoke"]["expression"]


@pytest.mark.parametrize(
    ("text", "licences"),
    [
        (MACHINE_READABLE, {"licences": ["Expat", "Expat or BSD-3-clause", "GPL-2+"]}),
        (PROSE, {"mentioned": ["GPL-2", "LGPL-2.1"]}),
        ("All rights given away.\n", {"mentioned": []}),
    ],
)
def test_licences_of_debians_packages(
    tmp_path: Path, inventory: ModuleType, text: str, licences: dict[str, list[str]]
) -> None:
    (tmp_path / "copyright").write_text(text, encoding="utf-8")
    assert inventory.deb_licences(tmp_path / "copyright") == licences
    assert inventory.deb_licences(tmp_path / "none") == {}


@pytest.mark.skipif(sys.platform != "linux", reason="prefixes are for Linux")
def test_a_prefix_is_looked_into(tmp_path: Path) -> None:
    """A real environment in a prefix's place, with one package of the test's own."""
    toolchain = load_toolchain("qnn")
    place = prefix_path(toolchain)
    venv.create(place, symlinks=True)
    info = next(place.glob("lib/python3.*/site-packages")) / "tiny_tool-1.2.dist-info"
    info.mkdir()
    licence = "\nLicense: The Tiny Licence\n\n        You may.\n"
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: tiny-tool\nVersion: 1.2{licence}")
    with pytest.raises(ImageError, match="is not installed"):
        sbom.of_toolchain(toolchain, executor="native")
    (place / "complete").write_text("x")
    text = sbom.of_toolchain(toolchain, executor="native")
    assert refusal(text) is None
    named = parts(json.loads(text))
    assert named["tiny-tool"]["licenses"][0]["license"]["name"] == "The Tiny Licence"
    assert named["CPython"]["version"] == ".".join(map(str, sys.version_info[:3]))
    done = kiln("images", "sbom", "qnn", "--executor", "native", "--to", str(tmp_path / "q.json"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "q.json").read_text(encoding="utf-8") == text


def test_what_is_not_installed_has_no_bill() -> None:
    with pytest.raises(ImageError, match="is not installed") as caught:
        sbom.of_toolchain(load_toolchain("mnn"), executor="native")
    assert "kiln images build mnn" in caught.value.remedy
    with pytest.raises(UsageError, match="no executor"):
        sbom.of_toolchain(load_toolchain("mnn"), executor="dokcer")
