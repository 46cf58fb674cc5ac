"""ELF files as stages read them: objects by hand, linked files by this machine's compiler."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.tinyelf import X86_64, write_object

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path[:0] = [str(SCRIPTS), str(SCRIPTS / "mlc")]

import objfile  # noqa: E402

import elfparts  # noqa: E402


def test_an_object_tells_its_machine_and_its_symbols() -> None:
    data = write_object(["one", "two"], X86_64)
    assert elfparts.head(data) == (1, elfparts.X86_64)
    assert elfparts.symbols(data) == ["one", "two"]
    assert elfparts.segments(data) == []
    assert objfile.read("a.o", data).defined == ("one", "two")


def test_an_object_that_is_cut_short_anywhere_is_told_as_that() -> None:
    data = write_object(["one", "two"])
    for length in range(6, len(data)):
        with pytest.raises(objfile.Damaged, match=r"a\.o is cut short"):
            objfile.read("a.o", data[:length])


def test_other_files_are_no_elf_of_64_bits() -> None:
    data = write_object(["one"])
    with pytest.raises(elfparts.ElfError, match="is no ELF file"):
        elfparts.head(b"MZ" + data)
    with pytest.raises(objfile.Damaged, match=r"a\.o is not of 64 bits"):
        objfile.read("a.o", data[:4] + b"\1" + data[5:])


@pytest.mark.skipif(not shutil.which("gcc"), reason="no compiler")
def test_a_library_tells_what_it_defines_and_how_it_is_aligned(tmp_path: Path) -> None:
    source, library = tmp_path / "a.c", tmp_path / "liba.so"
    source.write_text("int shown(void) { return 1; }\nstatic int kept = 2;\n", encoding="utf-8")
    words = ["gcc", "-shared", "-fPIC", "-Wl,-z,max-page-size=16384", "-Wl,-soname,liba.so.1"]
    subprocess.run([*words, "-o", str(library), str(source)], check=True)
    elf = elfparts.read(library)
    assert elf.soname == "liba.so.1"
    assert elf.align == 16384
    assert "shown" in elf.defined and "kept" not in elf.defined
    assert elf.defined <= set(elfparts.symbols(library.read_bytes()))
    whole = library.read_bytes()
    library.write_bytes(whole[: len(whole) // 4])
    with pytest.raises(elfparts.ElfError, match=r"liba\.so is cut short"):
        elfparts.read(library)
