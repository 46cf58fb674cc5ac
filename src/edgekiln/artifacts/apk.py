"""Android apps (.apk) and libraries (.aar): both are zips.

What decides whether a phone takes an app is read off the file: the manifest, the native libraries
and how they lie in the zip, and the signatures. Android maps libraries straight out of the app
where they are stored uncompressed at a page's beginning; a phone with pages of 16 KB wants them at
16 KB. Signatures: AOSP, source.android.com/docs/security/features/apksigning; schemes 2 and 3 lie
in a block before the zip's directory.
"""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

from edgekiln import units
from edgekiln.artifacts import Facts, damaged, unknown
from edgekiln.artifacts.axml import Element, elements, is_axml

_MAGIC = b"PK\x03\x04"
_EMPTY = b"PK\x05\x06"
MANIFEST = "AndroidManifest.xml"
PAGE_16K = 16384
_BLOCK_MAGIC = b"APK Sig Block 42"
_SCHEMES = {0x7109871A: "v2", 0xF05368C0: "v3", 0x1B93AD61: "v3.1"}
_APP_CONFIG = "assets/mlc-app-config.json"
_LARGEST_TEXT = 16 << 20
# What zipfile and what it unpacks with raise for files that do not hold together.
_ERRORS = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError, ValueError,
    KeyError, NotImplementedError, RuntimeError, OverflowError,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Library:
    """A native library in the zip. `offset` is where its bytes begin; None where compressed."""

    name: str
    abi: str
    size: int
    offset: int | None
    load_align: tuple[int, ...]

    @property
    def fits_16k(self) -> bool:
        """Whether its segments can be loaded on pages of 16 KB."""
        return bool(self.load_align) and all(a % PAGE_16K == 0 for a in self.load_align)

    @property
    def lies_at_16k(self) -> bool:
        """Whether it can be mapped where it lies, on pages of 16 KB."""
        return self.offset is None or self.offset % PAGE_16K == 0


@dataclass(frozen=True, kw_only=True)
class Package:
    """An .apk or .aar, read. `signed` names the signature schemes; `certificates` their sha256."""

    path: Path
    size: int
    kind: str
    package: str = ""
    version: str = ""
    version_code: int | None = None
    min_sdk: int | None = None
    target_sdk: int | None = None
    extracted: bool | None = None
    debuggable: bool = False
    test_only: bool = False
    activity: str = ""
    libraries: tuple[Library, ...] = ()
    signed: tuple[str, ...] = ()
    certificates: tuple[str, ...] = ()
    debug_key: bool = False
    models: tuple[Mapping[str, Any], ...] = field(default=())

    @property
    def abis(self) -> tuple[str, ...]:
        """The processors it has libraries for."""
        return tuple(sorted({library.abi for library in self.libraries}))


def is_zip(start: bytes) -> bool:
    """Whether a file that begins so is a zip."""
    return start[:4] in (_MAGIC, _EMPTY)


def read(path: Path) -> Facts:
    """An .apk or .aar for `kiln inspect`."""
    found = read_package(path)
    facts = {k: v for k, v in vars(found).items() if k not in ("path", "size", "kind", "libraries")}
    facts["abis"] = found.abis
    facts["libraries"] = [
        {
            "name": x.name, "abi": x.abi, "size": x.size, "stored_at": x.offset,
            "load_align": x.load_align, "pages_16k": x.fits_16k and x.lies_at_16k,
        }
        for x in found.libraries
    ]  # fmt: skip
    return Facts(kind=found.kind, facts=facts, rows=tuple(_rows(found)))


def read_package(path: Path, *, whole: bool = False) -> Package:
    """What an .apk or .aar says of itself; `whole` compares every entry with its checksum too.

    Raises ArtifactError for a damaged one, and for a zip that is neither.
    """
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            names = set(archive.namelist())
            if MANIFEST not in names:
                raise unknown(path, f"it is a zip without {MANIFEST}")
            if whole and (bad := archive.testzip()):
                raise ValueError(f"{bad} does not have the checksum that the zip says")
            kind = "apk" if is_axml(_bytes(archive, MANIFEST)) else "aar"
            signed, certificates = _signatures(file, archive, names)
            return Package(
                path=path,
                size=path.stat().st_size,
                kind=kind,
                libraries=tuple(_libraries(archive, file, kind)),
                signed=signed,
                certificates=tuple(hashlib.sha256(c).hexdigest() for c in certificates),
                debug_key=any(b"Android Debug" in c for c in certificates),
                models=_models(archive, names),
                **(_manifest(archive) if kind == "apk" else _text_manifest(archive)),
            )
    except _ERRORS as error:
        raise damaged(path, "zip of an Android app or library", error) from error


def _bytes(archive: zipfile.ZipFile, name: str) -> bytes:
    if archive.getinfo(name).file_size > _LARGEST_TEXT:
        raise ValueError(f"{name} is larger than it can be")
    return archive.read(name)


def _manifest(archive: zipfile.ZipFile) -> dict[str, Any]:
    found = elements(_bytes(archive, MANIFEST))
    by_name: dict[str, Element] = {}
    for element in found:
        by_name.setdefault(element.name, element)
    root, sdk, app = (by_name.get(n) for n in ("manifest", "uses-sdk", "application"))
    if root is None:
        raise ValueError("its manifest has no <manifest>")
    about = root.attributes
    levels = sdk.attributes if sdk else {}
    how = app.attributes if app else {}
    extracted = how.get("extractNativeLibs")
    return {
        "package": _text(about.get("package")),
        "version": _text(about.get("versionName")),
        "version_code": _number(about.get("versionCode")),
        "min_sdk": _number(levels.get("minSdkVersion", 1)),
        "target_sdk": _number(levels.get("targetSdkVersion")),
        "extracted": extracted if isinstance(extracted, bool) else None,
        "debuggable": how.get("debuggable") is True,
        "test_only": how.get("testOnly") is True,
        "activity": _launcher(found, _text(about.get("package"))),
    }


def _launcher(found: list[Element], package: str) -> str:
    """The activity that the home screen starts, with its package before it."""
    last = ""
    for element in found:
        name = _text(element.attributes.get("name"))
        if element.name in ("activity", "activity-alias"):
            last = f"{package}{name}" if name.startswith(".") else name
        elif element.name == "category" and name == "android.intent.category.LAUNCHER":
            return last if "." in last else f"{package}.{last}"
    return ""


def _text_manifest(archive: zipfile.ZipFile) -> dict[str, Any]:
    """A library's manifest is plain XML."""
    from xml.etree import ElementTree

    android = "{http://schemas.android.com/apk/res/android}"
    text = _bytes(archive, MANIFEST)
    if b"<!ENTITY" in text:
        raise ValueError("its manifest has entities, which no manifest needs")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ValueError(f"its manifest is no XML: {error}") from error
    sdk = root.find("uses-sdk")
    levels = sdk.attrib if sdk is not None else {}
    return {
        "package": root.attrib.get("package", ""),
        "min_sdk": _number(levels.get(f"{android}minSdkVersion")),
        "target_sdk": _number(levels.get(f"{android}targetSdkVersion")),
    }


def _text(value: object) -> str:
    return value if isinstance(value, str) else "" if value is None else str(value)


def _number(value: object) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    return int(value) if isinstance(value, str) and value.isdigit() else None


def _libraries(archive: zipfile.ZipFile, file: IO[bytes], kind: str) -> Iterator[Library]:
    folder = "lib" if kind == "apk" else "jni"
    for entry in archive.infolist():
        place = PurePosixPath(entry.filename)
        if len(place.parts) != 3 or place.parts[0] != folder or place.suffix != ".so":
            continue
        stored = entry.compress_type == zipfile.ZIP_STORED
        yield Library(
            name=entry.filename,
            abi=place.parts[1],
            size=entry.file_size,
            offset=_begin(file, entry.header_offset) if stored else None,
            load_align=_alignment(archive, entry),
        )


def _begin(file: IO[bytes], header: int) -> int:
    """Where an entry's bytes begin: behind its local head, its name and what pads it."""
    file.seek(header)
    head = file.read(30)
    if head[:4] != _MAGIC:
        raise ValueError(f"there is no entry at byte {header}")
    name, extra = struct.unpack_from("<HH", head, 26)
    return header + 30 + int(name) + int(extra)


def _alignment(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> tuple[int, ...]:
    """The alignments of an ELF's LOAD segments; nothing for what is no ELF of 64 bits.

    Only the head and the table behind it are unpacked.
    """
    with archive.open(entry) as stream:
        head = stream.read(64)
        if head[:5] != b"\x7fELF\x02" or len(head) < 64:
            return ()
        order = "<" if head[5] == 1 else ">"
        at = struct.unpack_from(f"{order}Q", head, 32)[0]
        size, count = struct.unpack_from(f"{order}HH", head, 54)
        if at > _LARGEST_TEXT:
            raise ValueError(f"{entry.filename} has its table of segments at byte {at}")
        table = (head + stream.read(at + size * count - len(head)))[at:]
    found = set()
    for n in range(count):
        kind = struct.unpack_from(f"{order}I", table, n * size)[0]
        if kind == 1:  # PT_LOAD
            found.add(int(struct.unpack_from(f"{order}Q", table, n * size + 48)[0]))
    return tuple(sorted(found))


def _signatures(
    file: IO[bytes], archive: zipfile.ZipFile, names: set[str]
) -> tuple[tuple[str, ...], tuple[bytes, ...]]:
    """The schemes an app is signed with, and the first certificate of each signer (DER)."""
    v1 = any(
        n.startswith("META-INF/") and n.upper().endswith((".RSA", ".DSA", ".EC")) for n in names
    )
    found: dict[str, bytes] = {"v1": b""} if v1 else {}
    for number, value in _block(file, archive.start_dir):
        if scheme := _SCHEMES.get(number):
            found[scheme] = value
    certificates = {c for value in found.values() if value for c in _certificates(value)}
    return tuple(sorted(found)), tuple(sorted(certificates))


def _block(file: IO[bytes], directory: int) -> Iterator[tuple[int, bytes]]:
    """The pairs of number and value in the signing block, which ends at the zip's directory."""
    if directory < 32:
        return
    file.seek(directory - 24)
    size, magic = struct.unpack("<Q16s", file.read(24))
    if magic != _BLOCK_MAGIC:
        return
    if not 24 <= size <= directory - 8:
        raise ValueError("its signing block has no proper size")
    file.seek(directory - size)
    block = io.BytesIO(file.read(size - 24))
    while len(head := block.read(12)) == 12:
        length, number = struct.unpack("<QI", head)
        if not 4 <= length <= size:
            raise ValueError("a part of its signing block has no proper size")
        yield number, block.read(length - 4)


def _certificates(value: bytes) -> Iterator[bytes]:
    """The first certificate of each signer: signers, signer, signed data, digests, certificates."""
    for signer in _sequence(_sized(value, 0)[0]):
        data = _sized(signer, 0)[0]
        _, at = _sized(data, 0)
        for certificate in _sequence(_sized(data, at)[0]):
            yield certificate
            break


def _sized(data: bytes, at: int) -> tuple[bytes, int]:
    """A part that says its length first, and where the next begins."""
    length = struct.unpack_from("<I", data, at)[0]
    if at + 4 + length > len(data):
        raise ValueError("a signature is cut short")
    return data[at + 4 : at + 4 + length], at + 4 + int(length)


def _sequence(data: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        part, at = _sized(data, at)
        yield part


def _models(archive: zipfile.ZipFile, names: set[str]) -> tuple[Mapping[str, Any], ...]:
    """The models that MLC's app offers."""
    if _APP_CONFIG not in names:
        return ()
    try:
        listed = json.loads(_bytes(archive, _APP_CONFIG))["model_list"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{_APP_CONFIG} is no configuration of MLC's app: {error}") from error
    return tuple(entry for entry in listed if isinstance(entry, dict))


def _rows(found: Package) -> Iterator[tuple[str, str]]:
    yield "kind", "Android app (APK)" if found.kind == "apk" else "Android library (AAR)"
    if found.package:
        version = f" {found.version}" if found.version else ""
        code = f" (version code {found.version_code})" if found.version_code is not None else ""
        yield "package", f"{found.package}{version}{code}"
    if found.min_sdk is not None:
        aimed = f", made for {found.target_sdk}" if found.target_sdk is not None else ""
        yield "Android", f"API {found.min_sdk} or newer{aimed}"
    if found.debuggable:
        yield "build", "debug: whoever holds the phone can look into the app"
    if found.kind == "apk":
        yield "signed", _signed(found)
    for model in found.models:
        yield "model", f"{model.get('model_id', '?')}, library {model.get('model_lib', '?')}"
    for library in found.libraries:
        yield library.name, f"{units.size(library.size)}, {_pages(library)}"
    if not found.libraries:
        yield "libraries", "none"


def _signed(found: Package) -> str:
    if not found.signed:
        return "not at all: no phone takes it"
    key = " with a debug key" if found.debug_key else ""
    digest = f", certificate {found.certificates[0][:16]}…" if found.certificates else ""
    return f"{', '.join(found.signed)}{key}{digest}"


def _pages(library: Library) -> str:
    if not library.load_align:
        return "not an ELF of 64 bits"
    aligned = ", ".join(map(str, library.load_align))
    if not library.fits_16k:
        return f"aligned to {aligned} bytes: does not fit 16 KB pages"
    if not library.lies_at_16k:
        return f"fits 16 KB pages, but lies in the zip at byte {library.offset}: zipalign -P 16"
    where = "compressed" if library.offset is None else "stored at a 16 KB boundary"
    return f"fits 16 KB pages, {where}"
