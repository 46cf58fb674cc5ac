"""Tiny Android apps, made by the tools that make large ones: aapt, an arm64 assembler, apksigner.

Only the zip's entries are laid by hand, so that they can lie as wrongly as a test wants.
"""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import zipfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

PACKAGE = "ai.mlc.mlcchat"
_FRAMEWORK = Path("/usr/share/android-framework-res/framework-res.apk")
_TOOLS = ("aapt", "apksigner", "keytool", "aarch64-linux-gnu-as")
_MANIFEST = """<?xml version="1.0" encoding="utf-8"?>
<manifest xmlns:android="http://schemas.android.com/apk/res/android" package="{package}"
    android:versionCode="{code}" android:versionName="1.{code}">
  <uses-sdk android:minSdkVersion="{min_sdk}" android:targetSdkVersion="33"/>
  <application android:label="Tiny" android:extractNativeLibs="false" android:debuggable="true">
    <activity android:name=".MainActivity">
      <intent-filter>
        <action android:name="android.intent.action.MAIN"/>
        <category android:name="android.intent.category.LAUNCHER"/>
      </intent-filter>
    </activity>
  </application>
</manifest>
"""
# APK's own kind of padding (AOSP, apksig): what it was aligned to, then zeros.
_ALIGNED = 0xD935


def need_tools() -> None:
    """Skip where the tools are not there."""
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing or not _FRAMEWORK.exists():
        packages = "aapt apksigner android-framework-res binutils-aarch64-linux-gnu"
        pytest.skip(f"no tools to make an app with (Debian: apt install {packages})")


def call(*words: str | Path) -> None:
    """Run a tool, with its words where it fails."""
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def library(folder: Path, page: int) -> bytes:
    """A shared library for arm64 whose segments are aligned to `page`."""
    source, thing, linked = (folder / f"tiny.{suffix}" for suffix in ("s", "o", "so"))
    source.write_text(".text\n.global tiny\ntiny: ret\n.data\n.quad 1\n", encoding="utf-8")
    call("aarch64-linux-gnu-as", "-o", thing, source)
    how = ("-shared", "-soname", "libtiny.so", "-z", f"max-page-size={page}")
    call("aarch64-linux-gnu-ld", *how, "-o", linked, thing)
    return linked.read_bytes()


@lru_cache(maxsize=4)
def keystore(folder: Path, name: str = "debug") -> Path:
    """A keystore with one key, made as Android's tools make their debug key."""
    path = folder / f"{name}.keystore"
    key = ("-alias", "androiddebugkey", "-keyalg", "RSA", "-keysize", "2048", "-validity", "9000")
    password = ("-storepass", "android", "-keypass", "android")
    owner = ("-dname", f"CN={'Android Debug' if name == 'debug' else name},O=Android,C=US")
    call("keytool", "-genkeypair", "-keystore", path, *key, *password, *owner)
    return path


def make(
    path: Path,
    *,
    key: Path | None,
    libraries: Mapping[str, bytes] | None = None,
    boundary: int = 16384,
    compressed: bool = False,
    min_sdk: int = 26,
    code: int = 1,
    package: str = PACKAGE,
    models: Sequence[Mapping[str, Any]] = (),
    schemes: Mapping[int, bool] | None = None,
) -> Path:
    """An app with these libraries, each stored at a multiple of `boundary`; signed with `key`.

    `schemes` switches apksigner's signature schemes on and off.
    """
    need_tools()
    manifest = path.with_suffix(".d") / "AndroidManifest.xml"
    manifest.parent.mkdir(exist_ok=True)
    words = {"package": package, "code": code, "min_sdk": min_sdk}
    manifest.write_text(_MANIFEST.format(**words), encoding="utf-8")
    call("aapt", "package", "-f", "-M", manifest, "-I", _FRAMEWORK, "-F", path)
    with zipfile.ZipFile(path, "a") as archive:
        if models:
            text = json.dumps({"model_list": list(models)})
            archive.writestr("assets/mlc-app-config.json", text)
        for name, data in (libraries or {}).items():
            store(archive, name, data, boundary=boundary, compressed=compressed)
    if key is not None:
        password = ("--ks-pass", "pass:android", "--key-pass", "pass:android")
        which = [f"--v{n}-signing-enabled={str(on).lower()}" for n, on in (schemes or {}).items()]
        call("apksigner", "sign", "--ks", key, *password, *which, path)
    return path


def store(
    archive: zipfile.ZipFile, name: str, data: bytes, *, boundary: int, compressed: bool = False
) -> None:
    """Put an entry into a zip so that its bytes begin at a multiple of `boundary`."""
    entry = zipfile.ZipInfo(name)
    entry.compress_type = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    begin = archive.start_dir + 30 + len(name) + 6
    entry.extra = struct.pack("<HHH", _ALIGNED, 2 + -begin % boundary, boundary)
    entry.extra += bytes(-begin % boundary)
    archive.writestr(entry, data)
