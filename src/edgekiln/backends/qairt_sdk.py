"""The vendor's QAIRT SDK, which users bring: the zip or the unpacked folder, checked.

Nothing of it may be passed on, so none of its digests stands in this repository: the digest of
a zip is written down the first time it is used, and the same version with another digest is
refused from then on. A zip is unpacked once, without what a build has no use for; its checksums
are checked on the way, each member's.
"""

from __future__ import annotations

import json
import mmap
import re
import shutil
import stat
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edgekiln.digest import digest_file
from edgekiln.errors import DigestError, ToolchainError
from edgekiln.home import home
from edgekiln.locking import held
from edgekiln.room import refuse_full
from edgekiln.units import size

# What the stage runs. Where each lies in an SDK: bin/envsetup.sh puts this folder on PATH.
HOST = "x86_64-linux-clang"
TOOLS = ("qairt-converter", "qairt-quantizer", "qnn-context-binary-generator")
LIBRARIES = ("libQnnHtp.so", "libQnnModelDlc.so", "libQnnHtpNetRunExtensions.so")
PHONE = "aarch64-android"
# What a build or a phone reads of an SDK; the rest (samples, docs, other systems) stays zipped.
_KEPT = (
    f"bin/{HOST}/",
    f"lib/{HOST}/",
    f"bin/{PHONE}/",
    f"lib/{PHONE}/",
    "lib/python/",
    "benchmarks/QNN/",
    "include/",
    "share/",
)
_SKEL = re.compile(r"lib/hexagon-v\d+/unsigned/")
_VERSION = re.compile(r"\d+\.\d+\.\d+(?:\.\d+)?")
_NAMED = re.compile(r"^\s*version\s*:\s*['\"]?v?(\d+\.\d+\.\d+(?:\.\d+)?)", re.MULTILINE)
# A library says which release it is of, and the larger ones which build: v2.51.0.260929181845.
_BUILD = re.compile(rb"v(\d+\.\d+\.\d+\.\d{12})(?!\d)")
_RELEASE = re.compile(rb"AISW_VERSION: (\d+\.\d+\.\d+)")
_OFFER = "give the zip or the unpacked folder of the QAIRT SDK for Linux with --qairt-sdk"


@dataclass(frozen=True, kw_only=True)
class Sdk:
    """An SDK that was looked into: its folder, its version, and the zip's sha256 ("" without)."""

    root: Path
    version: str
    sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class DeviceFile:
    """A file the phone needs: its name in the bundle and its place in an SDK."""

    name: str
    place: str


def prepare(path: Path, *, arch: str | None = None) -> Sdk:
    """Check the user's zip or folder and give the SDK's folder; a zip is unpacked once.

    `arch` is the Hexagon ("v79") whose files the phone will need. The vendor's licence is asked
    for once. Raises LicenceError where it is not accepted, ToolchainError for what is no SDK, or
    lacks that Hexagon's files, DigestError for a damaged zip or another one of the same version.
    """
    from edgekiln.kits import licences

    path = path.expanduser().absolute()
    if path.is_dir():
        found = Sdk(root=_root_of(path), version=_version_of(_root_of(path)))
    elif path.is_file():
        found = _from_zip(path)
    else:
        raise ToolchainError(f"there is no QAIRT SDK at {path}", remedy=_OFFER)
    _check_parts(found, arch)
    licences.settle(["qairt"], whose=f"QAIRT SDK {found.version}")
    return found


def device_files(arch: str) -> tuple[DeviceFile, ...]:
    """What goes beside a bundle's binaries: genie-t2t-run and the runtime of that Hexagon.

    libQnnHtpPrepare.so is not among them: a context binary is prepared already.
    """
    number = arch.removeprefix("v")
    libraries = ("libGenie.so", "libQnnHtp.so", "libQnnHtpNetRunExtensions.so", "libQnnSystem.so")
    stub, skel = f"libQnnHtpV{number}Stub.so", f"libQnnHtpV{number}Skel.so"
    return (
        DeviceFile(name="genie-t2t-run", place=f"bin/{PHONE}/genie-t2t-run"),
        *(DeviceFile(name=name, place=f"lib/{PHONE}/{name}") for name in (*libraries, stub)),
        DeviceFile(name=skel, place=f"lib/hexagon-v{number}/unsigned/{skel}"),
    )


def device_libraries(sdk: Sdk, arch: str) -> dict[str, Path]:
    """The phone's files of this SDK by their names, all of one release and one build.

    Raises ToolchainError where one is missing or of another build: a Stub beside another
    release's Skel fails on the phone with no more than "Stub lib id mismatch".
    """
    found = {file.name: sdk.root / file.place for file in device_files(arch)}
    missing = [name for name, path in found.items() if not path.is_file()]
    if missing:
        raise ToolchainError(
            f"QAIRT SDK {sdk.version} lacks {', '.join(missing)} for Hexagon {arch}",
            why=f"it has files for {_words(hexagons(sdk))}",
            remedy="give an SDK that knows this phone: 2.36 ends at v79, 2.48 has v81",
        )
    _check_one_build(sdk, found)
    return found


def hexagons(sdk: Sdk) -> list[str]:
    """The Hexagon versions the SDK has phone files for: v73, v75, v79."""
    folders = sdk.root.glob("lib/hexagon-v*/unsigned")
    return sorted(folder.parent.name.removeprefix("hexagon-") for folder in folders)


def check_runtime(sdk: Sdk, built_with: str) -> None:
    """A phone's runtime must be no older than what made the binary.

    `built_with` is the binary's build id ("v2.51.0.260929181845"). Raises ToolchainError.
    """
    found = _VERSION.search(built_with)
    if found and _numbers(sdk.version)[:2] < _numbers(found[0])[:2]:
        raise ToolchainError(
            f"QAIRT SDK {sdk.version} is older than QNN {found[0]}, which made the binaries",
            why="a phone runtime does not load what a newer release prepared",
            remedy=f"give SDK {'.'.join(found[0].split('.')[:2])} or newer, "
            "or compile with --compiler qairt, which uses the SDK itself",
        )


def build_ids(path: Path) -> tuple[str, str]:
    """Release and build a library says it is of, "" where it says nothing."""
    if path.stat().st_size == 0:
        return "", ""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        release, build = _RELEASE.search(content), _BUILD.search(content)
        return (
            release[1].decode() if release else "",
            build[1].decode() if build else "",
        )


def mixed(files: Mapping[str, Path]) -> tuple[str, str] | None:
    """Of libraries that are not all of one make: "release" or "build", and each one's in words."""
    said = {name: build_ids(path) for name, path in sorted(files.items())}
    for which, what in enumerate(("release", "build")):
        values = {name: ids[which] for name, ids in said.items() if ids[which]}
        if len(set(values.values())) > 1:
            return what, ", ".join(f"{name} {value}" for name, value in values.items())
    return None


def _check_one_build(sdk: Sdk, files: Mapping[str, Path]) -> None:
    if found := mixed(files):
        raise ToolchainError(
            f"the phone files of QAIRT SDK {sdk.version} are not of one {found[0]}",
            why=found[1],
            remedy="unpack the SDK afresh; files of two releases do not work together",
        )


def _from_zip(path: Path) -> Sdk:
    with _opened(path) as archive:
        prefix, version = _inside(path, archive)
        kept = home() / "sdks"
        with held(kept / f".qairt-{version}.lock"):
            sha256 = _recorded(path, version, kept / f"qairt-{version}.json")
            root = kept / f"qairt-{version}-{sha256[:12]}"
            if not root.is_dir():
                _unpack(path, archive, prefix, root)
    return Sdk(root=root, version=version, sha256=sha256)


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise DigestError(
            f"{path} is no whole zip",
            why=f"{error}; it has {size(path.stat().st_size)}",
            remedy="download the QAIRT SDK again: sign-in pages and cut downloads look like this",
        ) from error


def _inside(path: Path, archive: zipfile.ZipFile) -> tuple[str, str]:
    """The SDK's folder inside the zip (qairt/2.36.0.250627/) and its version."""
    for name in archive.namelist():
        before, found, _ = name.partition(f"bin/{HOST}/qairt-converter")
        if found and name.endswith("qairt-converter"):
            folder = PurePosixPath(before).name
            text = _text(archive, f"{before}sdk.yaml")
            version = _said(text) or (folder if _VERSION.fullmatch(folder) else "")
            if version:
                return before, version
            raise ToolchainError(
                f"{path} does not say which QAIRT SDK it is",
                why=f"neither {before}sdk.yaml nor the folder's name holds a version",
                remedy=_OFFER,
            )
    raise ToolchainError(
        f"{path} is no QAIRT SDK for Linux",
        why=f"it holds no bin/{HOST}/qairt-converter; it begins with "
        + ", ".join(archive.namelist()[:3]),
        remedy=_OFFER,
    )


def _text(archive: zipfile.ZipFile, name: str) -> str:
    try:
        return archive.read(name).decode(errors="replace")
    except KeyError:
        return ""
    except zipfile.BadZipFile as error:
        raise _damaged(Path(str(archive.filename)), name, str(error)) from error


def _said(text: str) -> str:
    """The version a sdk.yaml holds."""
    found = _NAMED.search(text)
    return found[1] if found else ""


def _recorded(path: Path, version: str, record: Path) -> str:
    """The zip's sha256: the one written down, or written down now. Raises DigestError."""
    stamp = {"size": path.stat().st_size, "mtime_ns": path.stat().st_mtime_ns, "path": str(path)}
    known = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    if known.get("stamp") == stamp:
        return str(known["sha256"])
    sha256 = digest_file(path)
    if known and known["sha256"] != sha256:
        raise DigestError(
            f"{path} is another QAIRT SDK {version} than the one used before",
            why=f"sha256 {sha256}, and at its first use {known['sha256']}",
            remedy=f"use the first one; or, if this one is right, delete {record}",
        )
    record.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"version": version, "sha256": sha256, "stamp": stamp}, indent=1)
    record.write_text(text + "\n", encoding="utf-8")
    return sha256


def _unpack(path: Path, archive: zipfile.ZipFile, prefix: str, root: Path) -> None:
    """Read every member, which checks its checksum; keep what builds and phones read."""
    members = [member for member in archive.infolist() if not member.is_dir()]
    _room_for(members, prefix, root)
    part = root.with_name(f"{root.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    for member in members:
        _read_member(path, archive, member, _target(path, member.filename, prefix, part))
    part.rename(root)


def _room_for(members: Sequence[zipfile.ZipInfo], prefix: str, root: Path) -> None:
    needed = sum(m.file_size for m in members if _is_kept(m.filename, prefix))
    root.parent.mkdir(parents=True, exist_ok=True)
    refuse_full(root.parent, needed, "the QAIRT SDK, unpacked")


def _is_kept(name: str, prefix: str) -> bool:
    inner = name.removeprefix(prefix)
    if inner == name:
        return False
    shallow = inner.count("/") == 0 or (inner.startswith("bin/") and inner.count("/") == 1)
    return shallow or inner.startswith(_KEPT) or bool(_SKEL.match(inner))


def _target(path: Path, name: str, prefix: str, part: Path) -> Path | None:
    """Where a member goes, None for one that is only read. Raises ToolchainError."""
    inner = PurePosixPath(name)
    if inner.is_absolute() or ".." in inner.parts or "\\" in name:
        raise ToolchainError(
            f"{path} holds {name}, which points out of its own folder",
            why="no SDK of the vendor's does that",
            remedy="download the QAIRT SDK again, from the vendor",
        )
    return part / name.removeprefix(prefix) if _is_kept(name, prefix) else None


def _read_member(
    path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path | None
) -> None:
    try:
        with archive.open(member) as source:
            if target is None:
                while source.read(1 << 20):
                    pass
                return
            target.parent.mkdir(parents=True, exist_ok=True)
            if stat.S_ISLNK(member.external_attr >> 16):
                return _link(path, target, source.read().decode())
            with target.open("wb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise _damaged(path, member.filename, str(error)) from error
    except ToolchainError:
        raise
    except Exception as error:  # zlib.error, lzma.LZMAError: what each method calls bad bytes
        raise _damaged(path, member.filename, str(error)) from error
    mode = member.external_attr >> 16
    tool = target.parent.name in (HOST, PHONE) and target.parent.parent.name == "bin"
    if tool or mode & stat.S_IXUSR:
        target.chmod(0o755)


def _link(path: Path, target: Path, to: str) -> None:
    """A link the zip holds, where it leads to a file beside it (libfoo.so to libfoo.so.1)."""
    if "/" in to or "\\" in to or to in ("", ".", ".."):
        raise ToolchainError(
            f"{path} holds {target.name}, a link to {to!r}",
            why="links of an SDK lead to files beside them",
            remedy="download the QAIRT SDK again, from the vendor",
        )
    target.symlink_to(to)


def _damaged(path: Path, name: str, why: str) -> DigestError:
    return DigestError(
        f"{path} is damaged: {name} cannot be read",
        why=why or "its checksum does not match",
        remedy="download the QAIRT SDK again",
    )


def _root_of(path: Path) -> Path:
    """The SDK's folder: the one given, or the one version below it (qairt/2.36.0.250627)."""
    if (path / "bin" / HOST).is_dir():
        return path
    below = [p.parents[1] for p in _folders(path)]
    if len(below) == 1:
        return below[0]
    raise ToolchainError(
        f"{path} is no QAIRT SDK for Linux",
        why=f"it holds no bin/{HOST}"
        if not below
        else "it holds several: " + _words([str(p) for p in below]),
        remedy=_OFFER,
    )


def _folders(path: Path) -> Iterator[Path]:
    for pattern in ("*", "*/*"):
        yield from sorted(path.glob(f"{pattern}/bin/{HOST}"))


def _version_of(root: Path) -> str:
    file = root / "sdk.yaml"
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    version = _said(text) or (root.name if _VERSION.fullmatch(root.name) else "")
    if not version:
        raise ToolchainError(
            f"{root} does not say which QAIRT SDK it is",
            why="neither its sdk.yaml nor its name holds a version",
            remedy=_OFFER,
        )
    return version


def _check_parts(sdk: Sdk, arch: str | None) -> None:
    wanted = [f"bin/{HOST}/{tool}" for tool in TOOLS]
    wanted += [f"lib/{HOST}/{library}" for library in LIBRARIES]
    missing = [place for place in wanted if not (sdk.root / place).is_file()]
    if not (sdk.root / "lib" / PHONE).is_dir():
        missing.append(f"lib/{PHONE}")
    if missing:
        raise ToolchainError(
            f"QAIRT SDK {sdk.version} is not whole: it lacks {', '.join(missing)}",
            why="a build runs its Linux tools and takes the phone's libraries from it",
            remedy="give the complete SDK for Linux, not its Windows or device-only part",
        )
    if arch and arch not in hexagons(sdk):
        raise ToolchainError(
            f"QAIRT SDK {sdk.version} knows no Hexagon {arch}",
            why=f"it has lib/hexagon-*/unsigned for {_words(hexagons(sdk))}",
            remedy="give a newer SDK, or another --soc",
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _words(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "none"
