"""The runtime beside a bundle: which files, for which machine, found in which folder."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from edgekiln.backends import qnn_phone
from edgekiln.build import open_store
from edgekiln.device.payload import Payload, read_manifest, read_payload
from edgekiln.device.programs import libraries, missing, parts
from edgekiln.errors import UsageError
from tests.unit.kit import write_json
from tests.unit.test_mnn_options import model
from tests.unit.test_qnn_options import options

AARCH64, HEXAGON, X86_64 = 183, 164, 62


def elf(path: Path, machine: int) -> Path:
    """The head of an ELF file for a machine, with nothing in it."""
    ident = b"\x7fELF" + bytes([2 if machine != HEXAGON else 1, 1, 1]) + bytes(9)
    if machine == HEXAGON:
        head = struct.pack("<HHIIIIIHHHHHH", 3, machine, 1, 0, 0, 0, 0, 52, 0, 0, 0, 0, 0)
    else:
        head = struct.pack("<HHIQQQIHHHHHH", 3, machine, 1, 0, 0, 0, 0, 64, 0, 0, 0, 0, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(ident + head)
    return path


def payload(tmp_path: Path, *, soc: str = "sm8750", arch: str = "v79") -> Payload:
    """A qnn bundle without a runtime."""
    place = tmp_path / "bundle"
    place.mkdir()
    config = {"dialog": {"engine": {"backend": {"extensions": "htp.json"}}}}
    write_json(place / "genie_config.json", config)
    write_json(place / "htp.json", {"devices": [{"dsp_arch": arch}]})
    with open_store() as store:
        files = store.index.files(place)
    about = {"backend": "qnn", "model": {"name": "tiny"}, "options": {"soc": soc}}
    listed = {name: {"size": size, "sha256": sha} for name, (size, sha) in files.items()}
    write_json(place / "manifest.json", {"edgekiln": "0", "files": listed, **about})
    with open_store() as store:
        return read_payload(place, store.index)


def test_stub_and_skel_are_of_the_bundles_hexagon_version(tmp_path: Path) -> None:
    names = [part.name for part in parts(payload(tmp_path, arch="v75"))]
    assert "libQnnHtpV75Stub.so" in names and "libQnnHtpV75Skel.so" in names
    assert "genie-t2t-run" in names


def test_an_sdk_as_it_was_unpacked_gives_the_files_for_the_phone(tmp_path: Path) -> None:
    bundle = payload(tmp_path)
    sdk = tmp_path / "qairt" / "2.36.0.250627"
    for system, machine in (("x86_64-linux-clang", X86_64), ("aarch64-android", AARCH64)):
        for part in parts(bundle):
            folder = "bin" if part.name == "genie-t2t-run" else "lib"
            if "Skel" not in part.name:
                elf(sdk / folder / system / part.name, machine)
    # The same machine, another system.
    elf(sdk / "lib" / "aarch64-oe-linux-gcc11.2" / "libGenie.so", AARCH64)
    elf(sdk / "lib" / "hexagon-v79" / "unsigned" / "libQnnHtpV79Skel.so", HEXAGON)
    elf(sdk / "lib" / "hexagon-v75" / "unsigned" / "libQnnHtpV75Skel.so", HEXAGON)
    found = {item.name: item.source for item in libraries(bundle, sdk)}
    assert set(found) == {part.name for part in parts(bundle)}
    assert found["libGenie.so"].parent.name == "aarch64-android"
    assert found["libQnnHtpV79Skel.so"].parents[1].name == "hexagon-v79"
    assert not missing(bundle, list(found))


def test_files_for_another_machine_are_not_taken(tmp_path: Path) -> None:
    elf(tmp_path / "host" / "libGenie.so", X86_64)
    with pytest.raises(UsageError, match="holds nothing that this bundle needs") as caught:
        libraries(payload(tmp_path), tmp_path / "host")
    assert "libGenie.so" in caught.value.why


def test_what_is_missing_has_its_source(tmp_path: Path) -> None:
    lost = {p.name: p.source for p in missing(payload(tmp_path), ["libGenie.so"])}
    assert "libGenie.so" not in lost
    assert lost["libQnnHtpV79Skel.so"].startswith("lib/hexagon-v79/unsigned")


@pytest.mark.parametrize("said", ["sm8750", "8 Elite", "69", "SM8750"])
def test_a_bundle_lies_where_its_readme_says(tmp_path: Path, said: str) -> None:
    place = payload(tmp_path, soc=said).place
    compiled = {"qnn_build": "v2.51.0.260929181845"}
    given = options(soc=said)
    words = qnn_phone.readme(model(name="tiny"), given, compiled, with_libraries=True)
    assert place == "/data/local/tmp/edgekiln/tiny-qnn-sm8750"
    assert f"adb shell sh {place}/run.sh" in words


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        (None, "no bundle of edgekiln's"),
        ("{", "no bundle of edgekiln's"),
        ({"files": {}}, "no bundle of edgekiln's"),
        ({"files": {}, "model": {"name": "x"}}, "no bundle of edgekiln's"),
        ({"files": {"a": 1}, "model": {"name": "x"}, "backend": "mnn"}, "no bundle of edgekiln's"),
        ({"edgekiln": "0", "unfinished": True}, "not finished"),
        ({"files": {}, "model": {"name": "x"}, "backend": "mlc"}, "no way is known"),
    ],
)
def test_a_folder_that_is_no_bundle_is_refused(tmp_path: Path, manifest: Any, said: str) -> None:
    if manifest is not None:
        text = manifest if isinstance(manifest, str) else json.dumps(manifest)
        (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UsageError, match=said):
        read_manifest(tmp_path)


def test_a_bundle_with_an_app_is_sent_to_the_command_that_installs_it(tmp_path: Path) -> None:
    manifest = {"files": {}, "model": {"name": "x"}, "backend": "mlc"}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UsageError) as caught:
        read_manifest(tmp_path)
    assert "kiln device install" in caught.value.remedy
