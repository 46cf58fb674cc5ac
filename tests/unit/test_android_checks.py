"""The checks of the Android images: what they find in libraries, and what they refuse.

The libraries are real ones for arm64, made by binutils. The NDK cannot be part of the tests: where
its compiler is asked for, a script that calls binutils stands in for it.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from edgekiln.home import project
from edgekiln.toolchain import load_toolchain

NOTE = """
    .text
    .global answer
answer: ret
    .data
    .quad 1
    .section .note.android.ident, "a", %note
    .balign 4
    .4byte 8, 132, 1
    .asciz "Android"
    .4byte LEVEL
    .asciz "r27c"
    .zero 59
    .asciz "BUILD"
    .zero 55
"""
BARE = ".text\n.global answer\nanswer: ret\n.data\n.quad 1\n"
PAGE = 16384
CLANG = "toolchains/llvm/prebuilt/linux-x86_64/bin/aarch64-linux-android24-clang"
Told = Callable[[dict[str, str]], ModuleType]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Told:
    """The checks as verify has them, with some kits at hand (or none)."""

    def load(kits: dict[str, str]) -> ModuleType:
        monkeypatch.setenv("KILN_KITS", json.dumps(kits))
        monkeypatch.setenv("KILN_KITS_AT", str(tmp_path / "kits"))
        path = project() / "images" / "android" / "checks.py"
        spec = importlib.util.spec_from_file_location("android_checks", path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


def linked(folder: Path, text: str, page: int = PAGE) -> bytes:
    """A shared library for arm64 out of assembler text."""
    if shutil.which("aarch64-linux-gnu-as") is None:
        pytest.skip("no assembler for arm64 (Debian: apt install binutils-aarch64-linux-gnu)")
    source, thing, library = (folder / name for name in ("a.s", "a.o", "a.so"))
    source.write_text(text, encoding="utf-8")
    subprocess.run(["aarch64-linux-gnu-as", "-o", thing, source], check=True)
    how = ("-shared", "-z", f"max-page-size={page}")
    subprocess.run(["aarch64-linux-gnu-ld", *how, "-o", library, thing], check=True)
    return library.read_bytes()


def note(build: str = "12479018", level: int = 24) -> str:
    """Assembler text of a library that the NDK's start files would mark so."""
    return NOTE.replace("BUILD", build).replace("LEVEL", str(level))


def test_the_ndks_note_is_read_out_of_a_library(told: Told, tmp_path: Path) -> None:
    assert told({}).look(linked(tmp_path, note())) == ("12479018", 24)


def test_pages_of_4_kb_are_refused(told: Told, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="aligned to 4096 bytes, 16384 are needed"):
        told({}).look(linked(tmp_path, note(), page=4096))


def test_a_library_without_the_note_is_refused(told: Told, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="no note of the NDK"):
        told({}).look(linked(tmp_path, BARE))


def test_a_library_of_this_machine_is_refused(told: Told, tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("no compiler for this machine")
    library = tmp_path / "own.so"
    words = ["gcc", "-shared", "-fPIC", "-x", "c", "-o", str(library), "-"]
    subprocess.run(words, input=b"int answer(void) { return 42; }", check=True)
    with pytest.raises(AssertionError, match="ELF type 3 for machine"):
        told({}).look(library.read_bytes())


def ndk(folder: Path, text: str, revision: str, page: int = PAGE) -> None:
    """A kit laid out as the NDK, whose compiler gives the same library whatever is asked."""
    root = folder / "kits" / "ndk"
    compiler = root / CLANG
    compiler.parent.mkdir(parents=True)
    (root / "made.so").write_bytes(linked(folder, text, page))
    # The last but two of its words: -o LIBRARY SOURCE.
    compiler.write_text(
        f'#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\ncp {root}/made.so "$2"\n'
    )
    compiler.chmod(0o755)
    (root / "source.properties").write_text(f"Pkg.Desc = NDK\nPkg.Revision = {revision}\n")


def test_an_ndk_of_the_right_revision_is_proved(told: Told, tmp_path: Path) -> None:
    ndk(tmp_path, note(), "27.2.12479018")
    said = told({"ndk": "27.2.12479018"}).ndk({})
    assert said == "NDK 27.2.12479018 makes AArch64 libraries for API 24 with pages of 16 KB"


def test_a_beta_of_the_ndk_is_known_by_its_build(told: Told, tmp_path: Path) -> None:
    ndk(tmp_path, note(build="11718014"), "27.0.11718014-beta1")
    assert "NDK 27.0.11718014-beta1" in told({"ndk": "27.0.11718014"}).ndk({})


@pytest.mark.parametrize(
    ("asked", "text", "wrong"),
    [
        ("28.2.13676358", note(), "not 28.2.13676358"),
        ("27.2.12479018", note(build="13676358"), "made by build 13676358"),
        ("27.2.12479018", note(level=35), "made for API level 35"),
    ],
)
def test_another_ndk_is_refused(
    told: Told, tmp_path: Path, asked: str, text: str, wrong: str
) -> None:
    ndk(tmp_path, text, "27.2.12479018")
    with pytest.raises(AssertionError, match=wrong):
        told({"ndk": asked}).ndk({})


def test_sources_of_another_mnn_are_refused(told: Told, tmp_path: Path) -> None:
    header = tmp_path / "kits" / "mnn" / "include" / "MNN" / "MNNDefine.h"
    header.parent.mkdir(parents=True)
    (tmp_path / "kits" / "mnn" / "transformers" / "llm" / "engine").mkdir(parents=True)
    lines = ("#define MNN_VERSION_MAJOR 3", "#define MNN_VERSION_MINOR 6")
    header.write_text("\n".join((*lines, "#define MNN_VERSION_PATCH 1")) + "\n")
    assert "MNN 3.6.1" in told({"mnn": "3.6.1"}).mnn_sources({})
    with pytest.raises(AssertionError, match=r"of MNN 3\.6\.1, asked was 3\.5\.0"):
        told({"mnn": "3.5.0"}).mnn_sources({})


def sdk(folder: Path) -> Path:
    """A kit laid out as the SDK, of the distribution's tools; returns its zipalign.

    Theirs knows no pages of 16 KB, so a script hands it on without them.
    """
    jar, framework = (
        Path("/usr/share", place)
        for place in ("java/apksigner.jar", "android-framework-res/framework-res.apk")
    )
    tools = [shutil.which(name) for name in ("aapt2", "zipalign", "keytool", "java")]
    if None in tools or not (jar.is_file() and framework.is_file()):
        packages = "aapt zipalign apksigner android-framework-res openjdk-17-jdk-headless"
        pytest.skip(f"no tools to make an app with (Debian: apt install {packages})")
    root = folder / "kits" / "android-sdk"
    (root / "platforms" / "android-35").mkdir(parents=True)
    (root / "platforms" / "android-35" / "android.jar").symlink_to(framework)
    place = root / "build-tools" / "35.0.0"
    (place / "lib").mkdir(parents=True)
    (place / "lib" / "apksigner.jar").symlink_to(jar)
    (place / "aapt2").symlink_to(str(tools[0]))
    script = place / "zipalign"
    take = 'while :; do case "$1" in -P) shift 2;; -c) c=-c; shift;; *) break;; esac; done'
    script.write_text(f'#!/bin/sh\n{take}\nexec {tools[1]} $c -p "$@"\n')
    script.chmod(0o755)
    return script


def test_the_sdks_tools_are_tried_on_an_app(told: Told, tmp_path: Path) -> None:
    sdk(tmp_path)
    said = told({"android-sdk": "35"}).sdk({})
    assert said == "the SDK's tools make an app, align and sign it; android-35"


def test_an_sdk_whose_zipalign_aligns_nothing_is_refused(told: Told, tmp_path: Path) -> None:
    script = sdk(tmp_path)
    script.write_text('#!/bin/sh\n[ "$1" = -c ] && exit 1\ncp "$4" "$5"\n')
    with pytest.raises(AssertionError, match="zipalign ended with 1"):
        told({"android-sdk": "35"}).sdk({})


@pytest.mark.parametrize("name", ["mlc-android", "mnn-android"])
def test_every_kit_of_a_toolchain_has_a_check(told: Told, name: str) -> None:
    kits = {kit.family: kit.version for kit in load_toolchain(name).kits}
    checks = told(kits)
    assert set(kits) <= set(checks._OF_KITS)
    assert len(checks.CHECKS) >= 2 + len(kits)
    assert checks.absent not in checks.CHECKS


def test_without_kits_it_is_said_that_they_were_not_looked_at(told: Told) -> None:
    checks = told({})
    assert checks.CHECKS[-1] is checks.absent
    assert checks.absent({}) == "without its kits: what they are for was not looked at"
