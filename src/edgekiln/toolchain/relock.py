"""Locks made and checked: which files the pins of a toolchain come to today.

Wheels are resolved by uv from the user's own indexes for the platform of the images; packages of
the distribution by apt itself, in a container of the base. Only names, versions and digests are
kept.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from edgekiln import offline
from edgekiln.calls import call
from edgekiln.errors import EngineError, KilnError, ToolchainError, UsageError, nearest
from edgekiln.progress import Progress
from edgekiln.toolchain import Base, changes, file_digest, folder, load_base, read_definition
from edgekiln.toolchain.differences import Relocked, changes_of
from edgekiln.toolchain.inbase import resolve_debs
from edgekiln.toolchain.lock import (
    FORMAT,
    BaseDefinition,
    BaseLock,
    Deb,
    Definition,
    Lock,
    Wheel,
    carried,
    name_of,
    normal,
    read_lock,
    refuse_placeholders,
    write_lock,
)
from edgekiln.toolchain.uvtool import PINNED, host_uv
from edgekiln.user.pipconf import PipSettings, pip_settings, uv_environment

L = TypeVar("L", Lock, BaseLock)
PLATFORM = "linux/amd64"
# The glibc of each release that bases are of: the newest wheels that run on it.
GLIBC = {"bookworm": "2_36", "jammy": "2_35"}


def lock(name: str, progress: Progress, *, only: Sequence[str] = ()) -> Relocked:
    """Lock a toolchain (or a base) anew; the lock is written, and what changed is told.

    `only` names what is refreshed: wheels or packages of the distribution by name, or all of a
    kind (`wheels`, `debs`, `uv`, `base`). All else stays as it was locked: the same versions, the
    same files. Raises ToolchainError where it cannot.
    """
    if _is_base(name):
        if only:
            remedy = f"lock all of it: kiln toolchains lock {name}"
            raise ToolchainError(f"{name} is a base: its packages belong together", remedy=remedy)
        return _lock_base(name, progress)
    path = folder() / f"{name}.yaml"
    what = read_definition(Definition, path)
    base = load_base(what.base)
    target = path.with_name(f"{name}.lock.json")
    held = _held(Lock, target, name, needed=bool(only))
    chosen = _chosen(held, only, what, base) if held and only else _ALL
    pip = pip_settings()
    made = Lock(
        format=FORMAT,
        definition=replace(what, places=()),
        definition_sha256=file_digest(path),
        platform=PLATFORM,
        base_sha256=base.digest,
        uv=PINNED if held is None or chosen.uv else held.uv,
        wheels=_wheels_of(held, chosen, what, pip, progress),
        debs=_debs_of(held, chosen, what, base, progress),
    )
    write_lock(replace(made, images=carried(held, made)), target)
    return Relocked(path=target, changes=tuple(changes_of(held, made, only)))


@dataclass(frozen=True, kw_only=True)
class _Chosen:
    """What is refreshed: names of wheels and debs, None for all of a kind; and whether uv is."""

    wheels: frozenset[str] | None = None
    debs: frozenset[str] | None = None
    uv: bool = True


_ALL = _Chosen()
_KINDS = ("wheels", "debs", "uv", "base")


def _held(cls: type[L], path: Path, name: str, *, needed: bool) -> L | None:
    """The lock there is; None for one that is missing or cannot be read, unless it is needed."""
    try:
        return read_lock(cls, path, remedy=f"kiln toolchains lock {name}")
    except ToolchainError:
        if needed:
            raise
        return None


def _chosen(held: Lock, only: Sequence[str], what: Definition, base: Base) -> _Chosen:
    """Sort names into kinds, and see that what stays locked still belongs to the definition.

    Raises UsageError for a name that is neither locked nor asked for, ToolchainError where the
    definition was changed beside what is refreshed.
    """
    asked = {normal(name_of(line)) for line in (*what.requirements, *what.overrides)}
    wheels = {normal(wheel.name) for wheel in held.wheels} | asked
    debs = {deb.name for deb in held.debs} | set(what.apt)
    for name in only:
        if name not in _KINDS and normal(name) not in wheels and name not in debs:
            remedy = nearest(name, {*_KINDS, *wheels, *debs} if len(name) > 2 else _KINDS)
            raise UsageError(f"{what.name} has no {name}", remedy=remedy)
    named = {normal(n) for n in only if n not in _KINDS}
    chosen = _Chosen(
        wheels=None if "wheels" in only else frozenset(named & wheels),
        debs=None if "debs" in only else frozenset(set(only) & debs),
        uv="uv" in only,
    )
    _refuse_mixture(held, chosen, what, base="" if "base" in only else base.digest)
    return chosen


def _refuse_mixture(held: Lock, chosen: _Chosen, what: Definition, *, base: str) -> None:
    """Raise ToolchainError where a part that stays would not be what the definition asks for.

    `base` is the digest of a base that has to be the locked one; "" where it is refreshed.
    """
    changed = set(changes(held.definition, what))
    stays = []
    if base and base != held.base_sha256:
        stays.append(f"{what.base} was locked again since")
    if chosen.debs == frozenset() and changed & {"apt", "base"}:
        stays.append("apt or base was changed")
    if chosen.wheels == frozenset() and changed & {
        *("requirements", "overrides", "without", "python", "base")
    }:
        stays.append("the Python packages were changed")
    if stays:
        raise ToolchainError(
            f"{what.name}.yaml was changed beside what is to be refreshed",
            why="; ".join(stays),
            remedy=f"name that too, or lock all of it: kiln toolchains lock {what.name}",
        )


def _wheels_of(
    held: Lock | None, chosen: _Chosen, what: Definition, pip: PipSettings, progress: Progress
) -> tuple[Wheel, ...]:
    """The wheels as the indexes have them, but for those that stay as they were locked."""
    if held is None or chosen.wheels is None:
        return tuple(resolve(what.requirements, what, pip, progress))
    if not chosen.wheels:
        return held.wheels
    stay = {w.name: w for w in held.wheels if normal(w.name) not in chosen.wheels}
    pins = [f"{wheel.name}=={wheel.version}" for wheel in stay.values()]
    try:
        now = resolve(what.requirements, what, pip, progress, constraints=pins)
    except ToolchainError as error:
        if not error.why:
            raise
        remedy = f"name those too with --only, or lock all of it: kiln toolchains lock {what.name}"
        told = f"{', '.join(sorted(chosen.wheels))} cannot be refreshed while the others stay"
        raise ToolchainError(told, why=error.why, remedy=remedy) from error
    return tuple(stay.get(wheel.name, wheel) for wheel in now)


def _debs_of(
    held: Lock | None, chosen: _Chosen, what: Definition, base: Base, progress: Progress
) -> tuple[Deb, ...]:
    if held is not None and chosen.debs == frozenset():
        return held.debs
    now = resolve_debs(what.apt, base, progress)
    if held is None or chosen.debs is None:
        return tuple(now)
    stay = {deb.name: deb for deb in held.debs if deb.name not in chosen.debs}
    return tuple(stay.get(deb.name, deb) for deb in now)


def check(name: str, progress: Progress) -> list[str]:
    """What has drifted since the lock was made, one line each; nothing is changed."""
    return list(_check_base(name, progress) if _is_base(name) else _check(name, progress))


def _is_base(name: str) -> bool:
    return (folder() / "bases" / f"{name}.yaml").is_file()


def _lock_base(name: str, progress: Progress) -> Relocked:
    path = folder() / "bases" / f"{name}.yaml"
    what = read_definition(BaseDefinition, path)
    made = BaseLock(
        format=FORMAT,
        definition=what,
        definition_sha256=file_digest(path),
        platform=PLATFORM,
        debs=_base_debs(what, progress),
    )
    target = path.with_name(f"{name}.lock.json")
    held = _held(BaseLock, target, name, needed=False)
    write_lock(made, target)
    return Relocked(path=target, changes=tuple(changes_of(held, made)))


def _base_debs(what: BaseDefinition, progress: Progress) -> tuple[Deb, ...]:
    from edgekiln.images.base import bootstrap

    with tempfile.TemporaryDirectory(prefix="edgekiln-base-") as scratch:
        return bootstrap(what, Path(scratch), progress).debs


def _check_base(name: str, progress: Progress) -> Iterator[str]:
    from edgekiln.images.base import drift_of

    path = folder() / "bases" / f"{name}.yaml"
    held = read_lock(BaseLock, path.with_name(f"{name}.lock.json"), remedy=f"lock {name}")
    what = read_definition(BaseDefinition, path)
    yield from _changed(held.definition, what)
    yield from drift_of(held.debs, _base_debs(what, progress))


def _check(name: str, progress: Progress) -> Iterator[str]:
    path = folder() / f"{name}.yaml"
    held = read_lock(Lock, path.with_name(f"{name}.lock.json"), remedy=f"lock {name}")
    what = read_definition(Definition, path)
    yield from _changed(held.definition, what)
    base = load_base(what.base)
    if base.digest != held.base_sha256:
        yield f"{what.base}: locked again since"
    yield from _check_wheels(held, what, progress)
    try:
        now = resolve_debs(what.apt, base, progress)
    except EngineError as error:
        yield f"packages of the distribution were not checked: {error.what}"
        return
    from edgekiln.images.base import drift_of

    yield from drift_of(held.debs, tuple(now))


def _changed(locked: Any, now: Any) -> Iterator[str]:
    for key in changes(locked, now):
        yield f"{now.name}.yaml: {key} was changed since it was locked"


def _check_wheels(held: Lock, what: Definition, progress: Progress) -> Iterator[str]:
    """Whether each locked file is still what its version comes to."""
    pins = [f"{wheel.name}=={wheel.version}" for wheel in held.wheels]
    try:
        now = resolve(pins, what, pip_settings(), progress, exact=True)
    except KilnError as error:
        yield error.short
        return
    there = {wheel.name: wheel for wheel in now}
    for wheel in held.wheels:
        found = there.get(wheel.name)
        if found is None or found.sha256 != wheel.sha256:
            yield f"{wheel.file}: the indexes now give {found.file if found else 'nothing'}"


def resolve(
    requirements: Iterable[str],
    what: Definition,
    pip: PipSettings,
    progress: Progress,
    *,
    exact: bool = False,
    constraints: Sequence[str] = (),
) -> list[Wheel]:
    """The wheels that requirements come to, one file a package; `exact` looks up no dependency.

    `constraints` are versions that hold for packages that are asked for by others, too.
    """
    from edgekiln.toolchain.places import answering

    offline.refuse(f"what the indexes have for {what.name}", remedy="lock without --offline")
    progress.update(0, None, "resolving wheels")
    env = uv_environment(pip)
    places = answering(what.places, pip)
    env["UV_INDEX"] = " ".join([*env.get("UV_INDEX", "").split(), *places])
    if pip.cert:
        env["SSL_CERT_FILE"] = pip.cert
    with tempfile.TemporaryDirectory(prefix="edgekiln-lock-") as scratch:
        asked = _listed(requirements, Path(scratch, "asked.in"))
        found = Path(scratch, "pylock.toml")
        for_images = ["--python-version", what.python, "--python-platform", _platform(what.base)]
        options = ["--format", "pylock.toml", "--only-binary", ":all:", *for_images]
        options += ["--no-deps"] if exact else []
        more = {"--overrides": what.overrides, "--excludes": what.without}
        for option, given in {**more, "--constraints": constraints}.items():
            options += [option, str(_listed(given, Path(scratch, option[2:])))]
        command = [str(host_uv(pip, progress)), "pip", "compile", "--quiet", *options]
        _uv([*command, "--output-file", str(found), str(asked)], env)
        packages = _toml(found)["packages"]
    refuse_placeholders((package["name"] for package in packages), f"{what.name}.yaml")
    return _with_sizes([_wheel(package) for package in packages], packages, pip)


def _listed(requirements: Iterable[str], path: Path) -> Path:
    """A requirements file that holds these."""
    path.write_text("".join(f"{line}\n" for line in requirements), encoding="utf-8")
    return path


def _platform(base: str) -> str:
    """What uv calls a Linux whose glibc is the base's."""
    what = read_definition(BaseDefinition, folder() / "bases" / f"{base}.yaml")
    return f"x86_64-manylinux_{GLIBC[what.release]}"


def _uv(command: list[str], env: dict[str, str]) -> None:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("UV_")}
    done = call(command, env={**clean, **env})
    if done.returncode:
        raise ToolchainError("the wheels cannot be resolved", why=" ".join(done.stderr.split()))


def _toml(path: Path) -> dict[str, Any]:
    import importlib

    try:
        tomllib: Any = importlib.import_module("tomllib")
    except ImportError:
        remedy = "lock with Python 3.11 or newer (using a lock needs 3.10 only)"
        raise ToolchainError("this Python cannot read TOML", remedy=remedy) from None
    found: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    return found


def _wheel(package: dict[str, Any]) -> Wheel:
    files = package.get("wheels", [])
    if not files:
        why = "only wheels are installed, and the indexes have none that fits the images"
        raise ToolchainError(f"{package['name']} {package.get('version')} has no wheel", why=why)
    best = max(files, key=lambda file: _fitness(_file_name(file)))
    return Wheel(
        name=package["name"],
        version=package["version"],
        file=_file_name(best),
        sha256=best["hashes"]["sha256"],
        size=int(best.get("size", 0)),
    )


def _file_name(file: dict[str, Any]) -> str:
    return unquote(Path(urlsplit(file.get("url") or file["path"]).path).name)


def _fitness(name: str) -> tuple[bool, bool, tuple[int, int]]:
    """How closely a wheel is made for the images; several of one version may fit them.

    As installers rank them: its own ABI before the stable one, both before pure Python, then
    the newest glibc (PEP 600).
    """
    *_, abi, platform = name.removesuffix(".whl").split("-")
    glibc = [(int(a), int(b)) for a, b in re.findall(r"manylinux_(\d+)_(\d+)_", platform)]
    return platform != "any", abi.startswith("cp"), max(glibc, default=(2, 17))


def _with_sizes(
    wheels: list[Wheel], packages: list[dict[str, Any]], pip: PipSettings
) -> list[Wheel]:
    """Sizes for doctor's estimates, where the index tells them."""
    from concurrent.futures import ThreadPoolExecutor

    from edgekiln.toolchain.places import size_of

    urls = {_file_name(f): f.get("url", "") for package in packages for f in package["wheels"]}
    places = [urls[wheel.file] for wheel in wheels]
    with ThreadPoolExecutor(max_workers=8) as pool:
        sizes = list(pool.map(lambda place: size_of(place, pip), places))
    return [replace(w, size=w.size or size) for w, size in zip(wheels, sizes, strict=True)]
