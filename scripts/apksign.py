"""Aligning, signing and verifying an APK, by Android's own zipalign and apksigner.

No password is ever an argument or in a log: the tools read it from a file that only we can read.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apkfile
import toolcall
from stagekit import BadInput

_ALIAS, _PASSWORD = "androiddebugkey", "android"  # as Android's own debug keystores have them
_NAME = "CN=Android Debug,O=Android,C=US"
_DAYS = 10000
_DIGEST = re.compile(r"Signer #1 certificate SHA-256 digest: ([0-9a-f]{64})")
_SUBJECT = re.compile(r"Signer #1 certificate DN: (.*)")
_WORDS = ("storePassword", "keyAlias", "keyPassword")


@dataclass(frozen=True, kw_only=True)
class Key:
    """A keystore and how to open it.

    The files hold one password each: given one file twice, apksigner reads a line at a time.
    """

    keystore: Path
    alias: str
    store_password: Path
    key_password: Path


@dataclass(frozen=True, kw_only=True)
class Signed:
    """Who signed an APK, and by which schemes."""

    subject: str
    digest: str
    schemes: tuple[str, ...]


def users_key(keystore: Path, signing: Path | None, folder: Path) -> Key:
    """The user's keystore, with the words of a keystore.properties to open it.

    Raises BadInput for a properties file that does not say them.
    """
    told = _properties(signing) if signing else {}
    missing = [word for word in _WORDS[:2] if not told.get(word)]
    if missing:
        raise BadInput(
            f"the keystore's properties do not say {' and '.join(missing)}",
            remedy="a text file with the lines storePassword=…, keyAlias=…, keyPassword=…",
        )
    key_password = told.get("keyPassword") or told["storePassword"]
    return Key(
        keystore=keystore,
        alias=told["keyAlias"],
        store_password=_secret(folder / "store", told["storePassword"]),
        key_password=_secret(folder / "key", key_password),
    )


def debug_key(keystore: Path, folder: Path) -> Key:
    """A debug keystore, opened as every debug keystore of Android is."""
    return Key(
        keystore=keystore,
        alias=_ALIAS,
        store_password=_secret(folder / "store", _PASSWORD),
        key_password=_secret(folder / "key", _PASSWORD),
    )


def fresh_key(folder: Path) -> Key:
    """A debug keystore made in a folder that goes with this run: no later app is its update."""
    folder.mkdir(parents=True, exist_ok=True)
    keystore = folder / "debug.keystore"
    make_debug_keystore(keystore, folder)
    return debug_key(keystore, folder)


def make_debug_keystore(keystore: Path, folder: Path) -> None:
    """Make one with a fresh key, by Java's keytool."""
    secret = _secret(folder / "new", _PASSWORD)
    words = [_program("keytool"), "-genkeypair", "-noprompt", "-storetype", "PKCS12"]
    words += ["-keystore", str(keystore), "-alias", _ALIAS, "-dname", _NAME]
    words += ["-keyalg", "RSA", "-keysize", "2048", "-validity", str(_DAYS)]
    words += ["-storepass:file", str(secret), "-keypass:file", str(secret)]
    toolcall.call("keytool", words, os.environ)


def finish(assembled: Path, apk: Path, work: Path, key: Key, page_size: int) -> dict[str, Any]:
    """Align and sign what Gradle made, and tell what it is.

    Raises RuntimeError where a library does not begin at a page in the end.
    """
    aligned = work / "aligned.apk"
    align(assembled, aligned, page_size)
    signed = sign(aligned, apk, key)
    if wrong := apkfile.misaligned(apk, page_size):
        raise RuntimeError(f"signing moved {', '.join(wrong)} away from its page")
    apk.with_name(f"{apk.name}.idsig").unlink(missing_ok=True)
    return {
        "signed_by": signed.subject,
        "signer_sha256": signed.digest,
        "schemes": list(signed.schemes),
        "abis": apkfile.abis(apk),
        "page_size": page_size,
        "bytes": apk.stat().st_size,
        "sha256": hashlib.sha256(apk.read_bytes()).hexdigest(),
    }


def align(apk: Path, aligned: Path, page_size: int) -> None:
    """Put the native libraries at pages, and have zipalign look. Raises ToolError if it objects.

    zipalign itself knows pages of more than 4 KB only since build tools 35, and its padding says
    nothing to an apksigner that moves entries; so ours is written, and zipalign checks it.
    """
    apkfile.align(apk, aligned, page_size)
    program = _program("zipalign")
    try:
        words = [program, "-c", "-P", str(page_size // 1024), "4", str(aligned)]
        toolcall.call("zipalign", words, os.environ)
    except toolcall.ToolError as error:
        if not any("Usage" in line for line in error.lines):
            raise
        toolcall.call("zipalign", [program, "-c", "-p", "4", str(aligned)], os.environ)


def sign(apk: Path, signed: Path, key: Key) -> Signed:
    """Sign, verify, and tell who signed. Raises BadInput where the keystore does not open."""
    words = [_program("apksigner"), "sign", "--ks", str(key.keystore)]
    words += ["--ks-key-alias", key.alias, "--ks-pass", f"file:{key.store_password}"]
    words += ["--key-pass", f"file:{key.key_password}", "--out", str(signed), str(apk)]
    try:
        toolcall.call("apksigner", words, os.environ)
    except toolcall.ToolError as error:
        said = "\n".join(error.lines)
        if re.search(r"keystore|password|alias|UnrecoverableKey", said, re.IGNORECASE):
            raise BadInput(
                f"the keystore does not open: {toolcall.last_words(error.lines)}",
                remedy="look at its alias and its passwords",
            ) from error
        raise
    return verify(signed)


def verify(apk: Path) -> Signed:
    """Have apksigner verify an APK. Raises RuntimeError where it does not hold."""
    lines = toolcall.call(
        "apksigner", [_program("apksigner"), "verify", "-v", "--print-certs", str(apk)], os.environ
    )
    text = "\n".join(lines)
    digest, subject = _DIGEST.search(text), _SUBJECT.search(text)
    if digest is None:
        raise RuntimeError("apksigner verified the APK and named no signer")
    return Signed(
        subject=subject[1] if subject else "",
        digest=digest[1],
        schemes=tuple(apkfile.schemes(apk)),
    )


def _properties(file: Path) -> Mapping[str, str]:
    found = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.lstrip().startswith(("#", "!")):
            found[name.strip()] = value.strip()
    return found


def _secret(file: Path, text: str) -> Path:
    """A file that its owner alone may read."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as opened:
        opened.write(f"{text}\n")
    return file


def _program(name: str) -> str:
    """A tool of Android's build tools, the newest that is there, or one on PATH."""
    sdk = Path(os.environ.get("ANDROID_HOME") or "/nowhere")
    places = sorted(sdk.glob(f"build-tools/*/{name}"), key=lambda p: _version(p.parent.name))
    found = str(places[-1]) if places else shutil.which(name)
    if found is None:
        raise RuntimeError(f"the toolchain has no {name}")
    return found


def _version(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]
