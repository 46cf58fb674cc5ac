"""An app onto a phone: looked through here first, installed by adb, its refusals explained.

An app of MLC's may want weights that lie beside it: those go where the app looks for them, the
place that upstream's bundle_weight.py uses.
"""

from __future__ import annotations

import json
import posixpath
import re
import time
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from edgekiln import units, yamls
from edgekiln.artifacts.apk import PAGE_16K, Package, read_package
from edgekiln.bundle import MANIFEST, finished_manifest
from edgekiln.device.adb import Phone
from edgekiln.device.payload import Item, Payload, refuse_changed
from edgekiln.device.push import Pushed, free_space, push
from edgekiln.errors import ArtifactError, DeviceError, DiskError, UsageError

if TYPE_CHECKING:
    from edgekiln.digest import FileIndex
    from edgekiln.progress import Progress

ABI = "arm64-v8a"
_FILES = "/storage/emulated/0/Android/data/{package}/files"
_PACKAGE_CONFIG = "mlc-package-config.json"
_CHAT_CONFIG = "mlc-chat-config.json"
# The app, what Android unpacks and compiles of it, and something for the phone.
_TIMES, _SPARE = 2, 64 << 20
_PATIENCE = 900.0
_V2_NEEDED = 30
_REFUSED = re.compile(r"(?P<code>INSTALL_[A-Z_]+)(?:: ?(?P<words>[^\]\n]*))?")


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A model's files for an app: `name` is its model_id, which is its folder's name there."""

    name: str
    items: tuple[Item, ...]


@dataclass(frozen=True, kw_only=True)
class Source:
    """What is to be installed: an app, and weights that the bundle has beside it."""

    apk: Package
    weights: tuple[Weights, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Installed:
    """What was done. `before` is the version code that was there, None where there was none."""

    package: str
    version: str
    before: int | None
    weights: tuple[Pushed, ...]
    started: bool
    notes: tuple[str, ...]
    seconds: float


def read_source(
    path: Path, index: FileIndex, *, every: bool = False, told: Any = lambda *_: None
) -> Source:
    """An app, or the app of a bundle with the weights that it wants beside it.

    `every` takes weights too that the app would download by itself. Raises UsageError for what is
    neither, ArtifactError for an app that no phone takes, DigestError for a bundle that changed.
    """
    if path.is_dir():
        return _from_bundle(path, index, every=every, told=told)
    if not path.is_file():
        raise UsageError(f"there is no {path}", remedy="give an .apk, or a bundle with one")
    if every:
        raise UsageError(
            f"{path} is an app, and --weights is for a bundle",
            remedy="give the folder that `kiln build` names at its end",
        )
    return Source(apk=check(path))


def check(path: Path) -> Package:
    """An app that a phone can take. Raises ArtifactError for any other."""
    if not zipfile.is_zipfile(path):
        raise ArtifactError(
            f"{path} is no app",
            why="an .apk is a zip; this is none, or it was cut short",
            remedy=f"give an .apk, or a bundle with one; `kiln inspect {path}` says what this is",
        )
    found = read_package(path, whole=True)
    if found.kind != "apk":
        raise ArtifactError(
            f"{path} is a library for apps, not an app",
            remedy="give the .apk that was built with it",
        )
    if not found.signed:
        raise ArtifactError(
            f"{path} is not signed",
            why="a phone takes signed apps only",
            remedy="sign it with apksigner, or build it with --apk debug",
        )
    if ABI not in found.abis:
        raise ArtifactError(
            f"{path} has no library for {ABI}",
            why=f"it has some for {', '.join(found.abis)}" if found.abis else "it has none at all",
            remedy="build the runtime first: a package without it makes an empty app",
        )
    return found


def _from_bundle(bundle: Path, index: FileIndex, *, every: bool, told: Any) -> Source:
    manifest = finished_manifest(bundle)
    apps = [name for name in manifest["files"] if name.endswith(".apk")]
    if len(apps) != 1:
        raise UsageError(
            f"{bundle} holds {len(apps) or 'no'} app{'s' if len(apps) > 1 else ''}",
            why=", ".join(apps) if apps else f"no .apk stands in its {MANIFEST}",
            remedy="name one of them" if apps else "build it with an app: --apk debug",
        )
    listed = dict(_wanted(bundle, every=every))
    names = {apps[0], *(n for n in manifest["files"] if n.startswith(tuple(listed.values())))}
    found = index.files(bundle, told)
    refuse_changed(bundle, {n: manifest["files"][n] for n in names}, found)
    weights = []
    for model_id, folder in listed.items():
        files = sorted(n for n in names if n.startswith(folder))
        items = tuple(
            Item(
                name=name.removeprefix(folder),
                source=bundle / name,
                size=found[name][0],
                sha256=found[name][1],
            )
            for name in files
        )
        weights.append(Weights(name=model_id, items=items))
    return Source(apk=check(bundle / apps[0]), weights=tuple(weights))


def _wanted(bundle: Path, *, every: bool) -> Iterator[tuple[str, str]]:
    """Models whose weights are to go along: model_id, and the folder in the bundle with its /."""
    config = bundle / _PACKAGE_CONFIG
    if not config.is_file():
        if every:
            raise UsageError(
                f"{bundle} lists no models",
                why=f"it has no {_PACKAGE_CONFIG}",
                remedy="leave --weights out; for a model without an app: kiln device push",
            )
        return
    try:
        models = json.loads(config.read_text(encoding="utf-8"))["model_list"]
        listed = [(m["model_id"], m["model"], bool(m.get("bundle_weight"))) for m in models]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"{config} is damaged", why=str(error) or type(error).__name__, remedy="build it again"
        ) from error
    for model_id, model, bundled in listed:
        if not (bundled or every):
            continue
        places = (str(model), f"bundle/{model_id}", str(model_id))
        folder = next((p for p in places if (bundle / p / _CHAT_CONFIG).is_file()), None)
        if folder is not None:
            yield str(model_id), f"{posixpath.normpath(folder)}/"
        elif bundled:
            raise ArtifactError(
                f"{bundle} does not hold the weights of {model_id}",
                why=f"its {_PACKAGE_CONFIG} says that they are bundled",
                remedy="repeat the build: it makes the bundle whole again",
            )


def install(phone: Phone, source: Source, progress: Progress, *, start: bool = False) -> Installed:
    """Install an app, over an older one where it may; push its weights; start it if asked.

    Raises DeviceError for what the phone refuses, DiskError when it is full.
    """
    began = time.monotonic()
    apk = source.apk
    notes = tuple(_examine(phone, apk))
    before = _installed(phone, apk.package)
    _refuse_full(phone, source)
    progress.update(0, what=f"installing {apk.package} ({units.size(apk.size)})")
    flags = ["-r", *(["-t"] if apk.test_only else [])]
    said = phone.install(apk.path, flags, timeout=_PATIENCE)
    if not said.startswith("Success"):
        raise _refusal(phone, apk, said)
    pushed = tuple(_push(phone, apk, weights, progress) for weights in source.weights)
    if start:
        _start(phone, apk)
    return Installed(
        package=apk.package,
        version=apk.version,
        before=before,
        weights=pushed,
        started=start,
        notes=notes,
        seconds=time.monotonic() - began,
    )


def _examine(phone: Phone, apk: Package) -> Iterator[str]:
    """What of the app does not go with this phone: errors, and words for what may matter later."""
    names = ("ro.product.cpu.abilist", "ro.product.cpu.abi", "ro.build.version.sdk")
    told = phone.properties(*names)
    abis = [a for a in (told[names[0]] or told[names[1]]).split(",") if a]
    if abis and not set(abis) & set(apk.abis):
        raise DeviceError(
            f"{apk.path.name} is not for {phone.serial}",
            why=f"it has libraries for {', '.join(apk.abis)}, the phone takes {', '.join(abis)}",
            remedy="take a phone of 64-bit ARM",
        )
    level = int(told[names[2]]) if told[names[2]].isdigit() else None
    if level is not None:
        _check_level(phone, apk, level)
    yield from _check_pages(phone, apk)


def _check_level(phone: Phone, apk: Package, level: int) -> None:
    if apk.min_sdk is not None and apk.min_sdk > level:
        raise DeviceError(
            f"{apk.path.name} needs a newer Android than {phone.serial} has",
            why=f"it is for API {apk.min_sdk} and newer, the phone has {level}",
            remedy="update the phone, or lower minSdk in the app's build.gradle",
        )
    if apk.signed == ("v1",) and level >= _V2_NEEDED and (apk.target_sdk or 0) >= _V2_NEEDED:
        raise DeviceError(
            f"{apk.path.name} is signed in a way that {phone.serial} does not take",
            why="for its targetSdk, Android 11 and newer want signature scheme 2 or newer",
            remedy="sign it with apksigner, not with jarsigner",
        )


def _check_pages(phone: Phone, apk: Package) -> Iterator[str]:
    # Where Android unpacks libraries at installation, how they lie in the zip does not matter; it
    # does so unless the manifest says no.
    mapped = apk.extracted is False
    own = [x for x in apk.libraries if x.abi == ABI]
    wrong = [x for x in own if not x.fits_16k or (mapped and not x.lies_at_16k)]
    if not wrong:
        return
    said = phone.shell("getconf PAGE_SIZE 2>/dev/null").stdout.strip()
    if said.isdigit() and int(said) >= PAGE_16K:
        raise DeviceError(
            f"{apk.path.name} does not fit the pages of {phone.serial}",
            why=f"they have {said} bytes, and {wrong[0].name} is not made for them",
            remedy="link it with -Wl,-z,max-page-size=16384 and lay it with zipalign -P 16; "
            "`kiln inspect` shows each library",
        )
    yield (
        f"{posixpath.basename(wrong[0].name)} does not fit 16 KB pages: phones of Android 15 and "
        "newer that have them do not load it"
    )


def _installed(phone: Phone, package: str) -> int | None:
    """The version code of the app that is there; None where there is none or the phone is mute."""
    if not package:
        return None
    done = phone.shell(f"dumpsys package {quote(package)} | grep -m 1 versionCode")
    match = re.search(r"versionCode=(\d+)", done.stdout)
    return int(match[1]) if match else None


def _refuse_full(phone: Phone, source: Source) -> None:
    need = _TIMES * source.apk.size + _SPARE
    need += sum(item.size for weights in source.weights for item in weights.items)
    free = free_space(phone, "/data")
    if free < need:
        raise DiskError(
            f"the phone has {units.size(free)} free",
            why=f"the app and what goes with it need {units.size(need)}",
            remedy="free some space on the phone, then try again",
        )


@lru_cache(maxsize=1)
def refusals() -> Mapping[str, Mapping[str, str]]:
    """What each of the package manager's codes means."""
    found: Mapping[str, Mapping[str, str]] = yamls.beside(__file__, "refusals.yaml")
    return found


def _refusal(phone: Phone, apk: Package, said: str) -> DeviceError | DiskError:
    """The error for an app that the phone did not take, out of what it said."""
    match = _REFUSED.search(said)
    what = f"{phone.serial} does not take {apk.path.name}"
    if match is None:
        return DeviceError(what, why=_last(said), remedy="look at the phone, then try again")
    code, words = match["code"], (match["words"] or "").strip()
    known = refusals().get(code)
    kind = DiskError if code == "INSTALL_FAILED_INSUFFICIENT_STORAGE" else DeviceError
    if known is None:
        why = f"{code}: {words}" if words else code
        return kind(what, why=why, remedy="look the code up; the phone's log (adb logcat) has more")
    names: dict[str, Any] = {"package": apk.package or "the app", "serial": phone.serial}
    why = f"{known['why'].format(**names)} ({code}{': ' + words if words else ''})"
    return kind(what, why=why, remedy=known["do"].format(**names))


def _last(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


def _push(phone: Phone, apk: Package, weights: Weights, progress: Progress) -> Pushed:
    """A model's weights into the app's own folder, which only changed files travel to."""
    place = posixpath.join(_FILES.format(package=apk.package), weights.name)
    manifest = {"model": {"name": weights.name}, "backend": "mlc", "files": {}}
    payload = Payload(bundle=apk.path.parent, manifest=manifest, items=weights.items)
    return push(phone, payload, progress, place=place)


def _start(phone: Phone, apk: Package) -> None:
    if apk.activity:
        command = f"am start -n {quote(f'{apk.package}/{apk.activity}')}"
    else:
        command = f"monkey -p {quote(apk.package)} -c android.intent.category.LAUNCHER 1"
    done = phone.shell(command)
    said = done.stdout + done.stderr
    if done.returncode or "Error" in said or "No activities found" in said:
        raise DeviceError(
            f"{apk.package} is installed, but {phone.serial} could not start it",
            why=_last(said),
            remedy="unlock the phone and start the app by hand",
        )
