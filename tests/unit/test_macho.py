"""Apple's objects, written by hand after mach-o/loader.h and mach-o/nlist.h."""

from __future__ import annotations

import io
import struct
import tarfile
from pathlib import Path

import pytest

from edgekiln.artifacts import archives, macho
from edgekiln.errors import ArtifactError

NAMES = b"\0_qwen2_q4f16_1___tvm_ffi__library_bin\0_hidden\0_wanted\0"
# Offset of the name, n_type (external and in a section; its own; external and not here).
SYMBOLS = ((1, 0x0F), (39, 0x0E), (47, 0x01))


def apple_object() -> bytes:
    """One load command, the table of symbols."""
    head = macho.MAGIC + struct.pack("<IIIIIII", 0x0100000C, 0, 1, 1, 24, 0, 0)
    begin = len(head) + 24
    entries = b"".join(struct.pack("<IBBHQ", name, kind, 1, 0, 0) for name, kind in SYMBOLS)
    table = struct.pack("<IIIIII", 2, 24, begin, len(SYMBOLS), begin + len(entries), len(NAMES))
    return head + table + entries + NAMES


def library(place: Path, data: bytes) -> Path:
    path = place / "a.tar"
    with tarfile.open(path, "w:gz") as archive:
        entry = tarfile.TarInfo("lib0.o")
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
    return path


def test_the_names_it_defines_for_others_are_read() -> None:
    assert list(macho.defined(apple_object())) == ["qwen2_q4f16_1___tvm_ffi__library_bin"]
    assert macho.machine(apple_object()) == "arm64 (Apple)"


def test_a_library_of_such_objects_has_its_prefix(tmp_path: Path) -> None:
    facts = archives.read_tar(library(tmp_path, apple_object())).facts
    assert facts["tvm_prefixes"] == ["qwen2_q4f16_1_"]
    assert facts["abis"] == ["arm64 (Apple)"]


@pytest.mark.parametrize("length", [20, 40, 60, 90])
def test_one_that_is_cut_short_is_said_to_be_damaged(tmp_path: Path, length: int) -> None:
    with pytest.raises(ArtifactError):
        archives.read_tar(library(tmp_path, apple_object()[:length]))
