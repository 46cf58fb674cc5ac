"""What the Android toolchains are for: what is compiled, packed, aligned and signed for phones.

The NDK, the SDK, Gradle, Rust and the sources are kits: they are mounted, and what needs them is
checked only then.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# {family: version} of the kits that verify finds; natively they lie elsewhere.
TOLD: dict[str, str] = json.loads(os.environ.get("KILN_KITS", "{}"))
KITS = Path(os.environ.get("KILN_KITS_AT") or Path(sys.prefix) / "kits")
PREFIX = Path(sys.prefix)

# e_machine of AArch64; e_type of an object to be linked, and of a shared library.
_AARCH64, _RELOCATABLE, _SHARED = 183, 1, 3
# Types of program headers, and the type of the note that says what a library was made for.
_LOAD, _NOTE, _IDENT = 1, 4, 1
# What phones with large pages need; Android's API level of all that edgekiln makes.
PAGE, API = 16384, 24

_MANIFEST = """\
<manifest xmlns:android="http://schemas.android.com/apk/res/android" package="org.edgekiln.verify">
  <uses-sdk android:minSdkVersion="24" android:targetSdkVersion="35"/>
  <application android:hasCode="false"/>
</manifest>
"""

Check = Callable[[dict[str, Any]], str]


def cmake(lock: dict[str, Any]) -> str:
    """CMake below 4 and Ninja configure, build and test something for this machine."""
    version = re.search(r"version (\S+)", _call(_tool("cmake"), "--version"))
    assert version and int(version[1].split(".")[0]) < 4, f"CMake is {version and version[1]}"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "source")
        source.mkdir()
        (source / "main.c").write_text("int main(void) { return 0; }\n", encoding="utf-8")
        text = "cmake_minimum_required(VERSION 3.10)\nproject(verify C)\nadd_executable(v main.c)\n"
        (source / "CMakeLists.txt").write_text(text, encoding="utf-8")
        ninja = f"-DCMAKE_MAKE_PROGRAM={_tool('ninja')}"
        _call(_tool("cmake"), "-G", "Ninja", ninja, "-S", str(source), "-B", f"{folder}/build")
        _call(_tool("cmake"), "--build", f"{folder}/build")
        _call(f"{folder}/build/v")
    return f"CMake {version[1]} with Ninja {_call(_tool('ninja'), '--version')} builds"


def java(lock: dict[str, Any]) -> str:
    """Java 17 compiles, has the headers of JNI, and makes keys to sign with."""
    said = _call("javac", "-version")
    assert re.match(r"javac 17\b", said), f"Gradle 8 wants Java 17, here is {said}"
    home = Path(shutil.which("javac") or "").resolve().parent.parent
    assert (home / "include" / "jni.h").is_file(), f"no jni.h in {home}"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "A.java")
        source.write_text("class A { native int f(); }\n", encoding="utf-8")
        _call("javac", "-h", folder, "-d", folder, str(source))
        assert Path(folder, "A.h").is_file(), "javac made no header"
        _key(Path(folder, "key.p12"))
    return f"Java {said.split()[1]} compiles and makes keys"


def absent(_: dict[str, Any]) -> str:
    """Said in place of what needs the kits."""
    return "without its kits: what they are for was not looked at"


def ndk(lock: dict[str, Any]) -> str:
    """The NDK is the one that was asked for, and links a library with pages of 16 KB."""
    root = KITS / "ndk"
    said = (root / "source.properties").read_text(encoding="utf-8")
    revision = re.search(r"^Pkg\.Revision\s*=\s*(\S+)", said, re.MULTILINE)
    assert revision and revision[1].startswith(TOLD["ndk"]), f"not {TOLD['ndk']}: {said}"
    clang = root / f"toolchains/llvm/prebuilt/linux-x86_64/bin/aarch64-linux-android{API}-clang"
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "a.c"), Path(folder, "liba.so")
        source.write_text("int answer(void) { return 42; }\n", encoding="utf-8")
        flags = ["-shared", "-fPIC", f"-Wl,-z,max-page-size={PAGE}", "-Wl,--build-id=none"]
        _call(str(clang), *flags, "-o", str(library), str(source))
        build, level = look(library.read_bytes())
    assert revision[1].split(".")[2].split("-")[0] == build, f"made by build {build}, {revision[1]}"
    assert level == API, f"made for API level {level}"
    return f"NDK {revision[1]} makes AArch64 libraries for API {level} with pages of 16 KB"


def look(data: bytes) -> tuple[str, int]:
    """The NDK's build and the API level that a shared library was made by and for.

    Raises AssertionError unless it is one for AArch64 whose segments are aligned to 16 KB.
    """
    assert data[:4] == b"\x7fELF", "no ELF file"
    kind, machine = struct.unpack_from("<HH", data, 16)
    assert (kind, machine) == (_SHARED, _AARCH64), f"ELF type {kind} for machine {machine}"
    headers = list(_headers(data))
    low = [align for type_, _, _, align in headers if type_ == _LOAD and align < PAGE]
    assert not low, f"a segment is aligned to {low[0]} bytes, {PAGE} are needed"
    for type_, offset, size, _ in headers:
        for name, note, body in _notes(data[offset : offset + size]) if type_ == _NOTE else ():
            if (name, note) == (b"Android", _IDENT):
                build = body[68:132].split(b"\0")[0].decode().split("-")[0]
                return build, struct.unpack_from("<I", body)[0]
    raise AssertionError("no note of the NDK is in it")


def _headers(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Type, offset, size in the file and alignment of each segment (elf(5), Elf64_Phdr)."""
    start, size, count = *struct.unpack_from("<Q", data, 32), *struct.unpack_from("<HH", data, 54)
    for number in range(count):
        entry = struct.unpack_from("<IIQQQQQQ", data, start + number * size)
        yield entry[0], entry[2], entry[5], entry[7]


def _notes(data: bytes) -> Iterator[tuple[bytes, int, bytes]]:
    """Name, type and content of each note (elf(5), Elf64_Nhdr; padded to 4 bytes)."""
    at = 0
    while at + 12 <= len(data):
        name, size, kind = struct.unpack_from("<III", data, at)
        body = at + 12 + (name + 3) // 4 * 4
        yield data[at + 12 : at + 12 + name].rstrip(b"\0"), kind, data[body : body + size]
        at = body + (size + 3) // 4 * 4


def sdk(lock: dict[str, Any]) -> str:
    """The SDK's own tools make an app, align it to pages of 16 KB and sign it."""
    root = KITS / "android-sdk"
    tools = root / "build-tools" / "35.0.0"
    platforms = sorted(path.name for path in (root / "platforms").iterdir())
    assert "android-35" in platforms, f"platforms: {', '.join(platforms)}"
    with tempfile.TemporaryDirectory() as folder:
        manifest, plain, aligned, key = (
            Path(folder, name) for name in ("AndroidManifest.xml", "a.apk", "b.apk", "key.p12")
        )
        manifest.write_text(_MANIFEST, encoding="utf-8")
        words = ["-I", str(root / "platforms" / "android-35" / "android.jar")]
        words += ["--manifest", str(manifest), "-o", str(plain)]
        _call(str(tools / "aapt2"), "link", *words)
        with zipfile.ZipFile(plain, "a") as archive:
            archive.writestr("lib/arm64-v8a/liba.so", b"\x7fELF" + bytes(PAGE))
        _call(str(tools / "zipalign"), "-P", "16", "4", str(plain), str(aligned))
        _key(key)
        signer = ["java", "-jar", str(tools / "lib" / "apksigner.jar")]
        _call(*signer, "sign", "--ks", str(key), "--ks-pass", "pass:verify-key", str(aligned))
        _call(*signer, "verify", str(aligned))
        _call(str(tools / "zipalign"), "-c", "-P", "16", "4", str(aligned))
    return f"the SDK's tools make an app, align and sign it; {', '.join(platforms)}"


def gradle(lock: dict[str, Any]) -> str:
    """Gradle is the one that was asked for, and runs a build without a network."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "settings.gradle").write_text("", encoding="utf-8")
        text = "tasks.register('answer') { doLast { println 'forty-two' } }\n"
        Path(folder, "build.gradle").write_text(text, encoding="utf-8")
        words = ["--offline", "--no-daemon", "--quiet", "--project-dir", folder]
        words += ["--gradle-user-home", f"{folder}/home", "answer"]
        said = _call(str(KITS / "gradle" / "bin" / "gradle"), *words, HOME=folder)
        assert "forty-two" in said, said
        words = ["--gradle-user-home", f"{folder}/home", "--version"]
        version = _call(str(KITS / "gradle" / "bin" / "gradle"), *words, HOME=folder)
    assert f"Gradle {TOLD['gradle']}\n" in version, version
    return f"Gradle {TOLD['gradle']} runs a build"


def rust(lock: dict[str, Any]) -> str:
    """Rust compiles for Android, with its library for that."""
    rustc = str(KITS / "rust" / "bin" / "rustc")
    version = _call(rustc, "--version").split()[1]
    assert version == TOLD["rust"], f"rustc is {version}, its kit {TOLD['rust']}"
    _call(str(KITS / "rust" / "bin" / "cargo"), "--version")
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "a.rs"), Path(folder, "a.o")
        text = '#[no_mangle] pub extern "C" fn answer() -> usize { String::from("42").len() }\n'
        source.write_text(text, encoding="utf-8")
        words = ["--crate-type=lib", "--emit=obj", "--target=aarch64-linux-android"]
        _call(rustc, *words, "-o", str(target), str(source))
        kind, machine = struct.unpack_from("<HH", target.read_bytes(), 16)
    assert (kind, machine) == (_RELOCATABLE, _AARCH64), f"ELF type {kind} for machine {machine}"
    return f"Rust {version} compiles for Android"


def mlc_sources(lock: dict[str, Any]) -> str:
    """The sources of mlc_llm are whole: what is built for phones, with its submodules."""
    root = KITS / "mlc-llm"
    wanted = ("android/mlc4j/prepare_libs.py", "android/MLCChat/settings.gradle", "cpp")
    wanted += ("3rdparty/tvm/include/tvm/runtime", "3rdparty/tokenizers-cpp/rust/Cargo.toml")
    wanted += ("3rdparty/xgrammar/CMakeLists.txt", "3rdparty/stb/stb_image.h")
    missing = [path for path in wanted if not (root / path).exists()]
    assert not missing, f"not in the sources: {', '.join(missing)}"
    return "the sources of mlc_llm are whole"


def mlc_package(lock: dict[str, Any]) -> str:
    """The kit's mlc_llm has the command that packs."""
    code = "import mlc_llm.interface.package as p; print(p.SUPPORTED_DEVICES)"
    said = _call(sys.executable, "-c", code, PYTHONPATH=str(KITS / "mlc"))
    assert "android" in said, said
    return "mlc_llm packs for Android"


def mnn_sources(lock: dict[str, Any]) -> str:
    """The sources of MNN are of the version that was asked for."""
    root = KITS / "mnn"
    text = (root / "include" / "MNN" / "MNNDefine.h").read_text(encoding="utf-8", errors="replace")
    parts = [re.search(rf"MNN_VERSION_{part} (\d+)", text) for part in ("MAJOR", "MINOR", "PATCH")]
    version = ".".join(found[1] for found in parts if found)
    assert version == TOLD["mnn"], f"the sources are of MNN {version}, asked was {TOLD['mnn']}"
    assert (root / "transformers" / "llm" / "engine").is_dir(), "no language model engine in it"
    return f"the sources of MNN {version} are whole"


def _tool(name: str) -> str:
    """A program that a wheel of the lock brought."""
    path = PREFIX / "bin" / name
    assert path.is_file(), f"{path} is missing"
    return str(path)


def _key(path: Path) -> None:
    words = ["-genkeypair", "-keystore", str(path), "-storetype", "PKCS12", "-alias", "verify"]
    words += ["-storepass", "verify-key", "-keyalg", "RSA", "-dname", "CN=verify", "-validity", "1"]
    _call("keytool", *words)


def _call(*words: str, **more: str) -> str:
    env = {**os.environ, "LC_ALL": "C.UTF-8", **more}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=env)
    why = (done.stderr or done.stdout).strip()[-300:]
    assert done.returncode == 0, f"{Path(words[0]).name} ended with {done.returncode}: {why}"
    return (done.stdout or done.stderr).strip() + "\n"


_OF_KITS: dict[str, list[Check]] = {
    "ndk": [ndk],
    "android-sdk": [sdk],
    "gradle": [gradle],
    "rust": [rust],
    "mlc-llm": [mlc_sources],
    "mlc": [mlc_package],
    "mnn": [mnn_sources],
}
CHECKS: list[Check] = [cmake, java]
CHECKS += [check for family in TOLD for check in _OF_KITS[family]] or [absent]
