"""What a toolchain is: its YAML, its lock, and the digest that both come to."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from edgekiln.errors import ToolchainError, nearest
from edgekiln.home import project
from edgekiln.toolchain.lock import (
    BaseDefinition,
    BaseLock,
    Definition,
    Lock,
    digest,
    read_lock,
    refuse_placeholders,
)
from edgekiln.toolchain.records import read_named

if TYPE_CHECKING:
    from edgekiln.kits import Kit

D = TypeVar("D", Definition, BaseDefinition)
_NAME = re.compile(r"[a-z0-9][a-z0-9.-]*")
# Lies at the top of every image's environment and of every prefix; see `marker`.
MARKER = "toolchain.json"
# What a value of `env` may be filled with; see executors/base.py.
_FILLED = ("kits", "path")


@dataclass(frozen=True, kw_only=True)
class Base:
    """What an image stands on: one of toolchains/bases/, or the image given with --base.

    `given` is that image's reference, "" for a base of our own; `lock` is None then.
    """

    name: str
    digest: str
    lock: BaseLock | None
    given: str = ""


@dataclass(frozen=True, kw_only=True)
class Toolchain:
    """A pinned set of tools. `digest` (sha256, hex) is what the keys of stages are made of.

    `installed` is the digest of what an image or a prefix holds: all of it but the kits, which
    are mounted beside it. `variant` names the kits that were asked for in place of its own.
    """

    name: str
    summary: str
    base: Base
    python: str
    apt: tuple[str, ...]
    requirements: tuple[str, ...]
    env: Mapping[str, str]
    imports: tuple[str, ...]
    lock: Lock
    digest: str
    installed: str
    checks: str
    kits: tuple[Kit, ...] = ()
    variant: str = ""

    @property
    def asked(self) -> str:
        """The name it was loaded by: NAME or NAME@KIT."""
        return f"{self.name}@{self.variant}" if self.variant else self.name

    @property
    def places(self) -> tuple[str, ...]:
        """Further indexes to look for wheels in; read when asked, since locks name no index."""
        return read_definition(Definition, folder() / f"{self.name}.yaml").places


def folder() -> Path:
    """toolchains/ of this checkout."""
    return project() / "toolchains"


def list_toolchains() -> list[str]:
    """The names that `load_toolchain` takes."""
    return sorted(path.stem for path in folder().glob("*.yaml"))


def list_bases() -> list[str]:
    """The names of the bases that toolchains stand on."""
    return sorted(path.stem for path in (folder() / "bases").glob("*.yaml"))


def load_toolchain(asked: str, *, base: str | None = None) -> Toolchain:
    """Read a toolchain and its lock. `base` puts it on another base: a name or an image.

    NAME@KIT[,KIT] is a variant: each kit named replaces the one of its family. Raises
    ToolchainError for an unknown name, a key that does not belong, a missing lock, or a YAML that
    was changed since it was locked.
    """
    name, _, variant = asked.partition("@")
    path = folder() / f"{name}.yaml"
    if not _NAME.fullmatch(name) or not path.is_file():
        raise ToolchainError(f"no toolchain {name}", remedy=nearest(name, list_toolchains()))
    remedy = f"kiln toolchains lock {name}"
    lock = read_lock(Lock, path.with_name(f"{name}.lock.json"), remedy=remedy)
    what = _agreeing(path, lock.definition, lock.definition_sha256, remedy)
    refuse_placeholders((wheel.name for wheel in lock.wheels), f"{name}.lock.json")
    own = load_base(what.base)
    if lock.base_sha256 != own.digest:
        why = f"it was locked on another {what.base}"
        raise ToolchainError(f"{name}.lock.json is out of date", why=why, remedy=remedy)
    under = own if base is None or base == own.name else other_base(base)
    installed = digest(lock, extra="" if under is own else under.digest)
    kits = _kits(what.kits, variant, asked) if what.kits or variant else ()
    return Toolchain(
        name=name,
        summary=what.summary,
        base=under,
        python=what.python,
        apt=what.apt,
        requirements=what.requirements,
        env=what.env,
        imports=what.imports,
        lock=lock,
        digest=_with_kits(installed, kits),
        installed=installed,
        checks=what.checks or name,
        kits=kits,
        variant=variant,
    )


def _kits(own: tuple[str, ...], variant: str, asked: str) -> tuple[Kit, ...]:
    """The kits of a toolchain, those of a variant in the place of the family's own."""
    from edgekiln.kits import load_kit

    found = {kit.family: kit for kit in map(load_kit, own)}
    if len(found) < len(own):
        raise ToolchainError(f"{asked}: two of its kits are of one family", why=", ".join(own))
    for name in variant.split(",") if variant else ():
        kit = load_kit(name)
        if kit.family not in found:
            why = f"{name} is a kit of the family {kit.family}, which it does not use"
            remedy = f"it uses {', '.join(found)}" if found else "it uses no kits"
            raise ToolchainError(f"there is no toolchain {asked}", why=why, remedy=remedy)
        found[kit.family] = kit
    return tuple(found.values())


def _with_kits(installed: str, kits: tuple[Kit, ...]) -> str:
    """The digest that counts for stages. Without kits it is that of the lock alone."""
    if not kits:
        return installed
    named = "".join(f"{kit.family} {kit.digest}\n" for kit in sorted(kits, key=lambda k: k.family))
    return hashlib.sha256(f"{installed}\n{named}".encode()).hexdigest()


def variables(toolchain: Toolchain, *, path: str, kits: str) -> dict[str, str]:
    """The toolchain's own variables, with what {path} and {kits} stand for put in."""
    return {
        key: value.replace("{kits}", kits).replace("{path}", path)
        for key, value in toolchain.env.items()
    }


def marker(toolchain: Toolchain, tag: str) -> str:
    """What tells an environment's toolchain: {name, installed (sha256, hex), tag}, as JSON.

    `tag` names the image, or the prefix. A process inside one knows by it whose stages it can run.
    """
    told = {"name": toolchain.name, "installed": toolchain.installed, "tag": tag}
    return json.dumps(told, sort_keys=True) + "\n"


def load_base(name: str) -> Base:
    """One of toolchains/bases/, with its lock checked against its YAML."""
    path = folder() / "bases" / f"{name}.yaml"
    if not path.is_file():
        known = (p.stem for p in path.parent.glob("*.yaml"))
        raise ToolchainError(f"no base {name}", remedy=nearest(name, known))
    remedy = f"kiln toolchains lock {name}"
    lock = read_lock(BaseLock, path.with_name(f"{name}.lock.json"), remedy=remedy)
    _agreeing(path, lock.definition, lock.definition_sha256, remedy)
    return Base(name=name, digest=digest(lock), lock=lock)


def other_base(reference: str) -> Base:
    """The base that --base names: one of ours, or any image the engine can have.

    An image given by tag counts by its name; given by digest, by what it is.
    """
    if (folder() / "bases" / f"{reference}.yaml").is_file():
        return load_base(reference)
    if not re.fullmatch(r"[\w][\w./:@-]+", reference):
        raise ToolchainError(f"--base {reference!r} names neither a base nor an image")
    name = re.sub(r"[^a-z0-9.]+", "-", reference.partition("@")[0].lower()).strip("-")
    named = hashlib.sha256(reference.encode()).hexdigest()
    return Base(name=name, digest=named, lock=None, given=reference)


def read_definition(cls: type[D], path: Path) -> D:
    """The YAML in `path`, checked. Raises ToolchainError with the path of what is wrong."""
    found: D = read_named(cls, path)
    if isinstance(found, Definition):
        refuse_placeholders((*found.requirements, *found.overrides), path.name)
        _check_env(found, path.name)
    return found


def _check_env(what: Definition, where: str) -> None:
    """Refuse a placeholder in `env` that nothing is put in for."""
    for key, value in what.env.items():
        for name in re.findall(r"\{(\w*)\}", value):
            if name not in _FILLED:
                remedy = nearest(name, _FILLED)
                raise ToolchainError(f"{where}: env.{key} asks for {{{name}}}", remedy=remedy)
            if name == "kits" and not what.kits:
                raise ToolchainError(f"{where}: env.{key} asks for {{kits}}", why="it has none")


def file_digest(path: Path) -> str:
    """sha256 of a small file of ours, the same whatever line ends the checkout has."""
    return hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest()


def _agreeing(path: Path, locked: D, locked_sha256: str, remedy: str) -> D:
    """The definition, read from the YAML only when its bytes are not the ones that were locked."""
    if file_digest(path) == locked_sha256:
        return locked
    now = read_definition(type(locked), path)
    if changed := changes(locked, now):
        why = f"changed since: {', '.join(changed)}"
        raise ToolchainError(f"{path.name} does not match its lock", why=why, remedy=remedy)
    return now


def changes(locked: D, now: D) -> list[str]:
    """The keys in which a definition is not what was locked; words and places do not count."""
    kept = [key for key in vars(now) if key not in ("summary", "places")]
    return [key for key in kept if getattr(now, key) != getattr(locked, key)]
