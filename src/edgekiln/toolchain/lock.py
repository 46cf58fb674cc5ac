"""Locks: every input of a toolchain by version and digest, never by an index's address.

A lock is JSON made by `toolchains lock` (locking.py). It repeats the definition it was made
from, so that reading a toolchain whose YAML has not been touched needs no YAML parser.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from edgekiln.errors import ToolchainError
from edgekiln.toolchain.records import field, plain, read

T = TypeVar("T")
FORMAT = 1
_PLACEHOLDER = re.compile(r"mlc-(llm|ai)(-.*)?")


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """One wheel: the very file that is installed. `size` in bytes, 0 where it was not told."""

    name: str
    version: str
    file: str
    sha256: str
    size: int = 0

    @property
    def local(self) -> bool:
        """Whether it has a local version (+cpu): the Python index takes none of those."""
        return "+" in self.version


@dataclass(frozen=True, kw_only=True)
class Deb:
    """One package of the distribution, at the version that was current when it was locked."""

    name: str
    version: str
    sha256: str
    size: int = 0


@dataclass(frozen=True, kw_only=True)
class BaseDefinition:
    """toolchains/bases/NAME.yaml."""

    name: str = field("the file's own name")
    summary: str = field("one line for people")
    distribution: str = field("debian or ubuntu: whose archive mmdebstrap reads")
    release: str = field("the release's code name, e.g. bookworm")
    image: str = field("name:tag@sha256:digest of the registry's image; tried first")


@dataclass(frozen=True, kw_only=True)
class Definition:
    """toolchains/NAME.yaml."""

    name: str = field("the file's own name")
    summary: str = field("one line for people")
    base: str = field("which of toolchains/bases/ it stands on")
    python: str = field("Python's minor version, e.g. 3.11; the base's own")
    apt: tuple[str, ...] = field("packages of the distribution", default=())
    requirements: tuple[str, ...] = field("Python packages, as in a requirements file", default=())
    overrides: tuple[str, ...] = field(
        "Python packages at these versions, whatever other packages ask for", default=()
    )
    without: tuple[str, ...] = field(
        "Python packages that others ask for and that are left out", default=()
    )
    places: tuple[str, ...] = field("further indexes for wheels, used when they answer", default=())
    env: Mapping[str, str] = field(
        "environment of every stage; {kits} is where the kits lie, {path} the PATH it has anyway",
        default_factory=dict,
    )
    imports: tuple[str, ...] = field(
        "modules compiled in advance, with what they import; NAME.* is a whole package", default=()
    )
    kits: tuple[str, ...] = field(
        "what is in no package index: names in toolchains/kits/; mounted, never in an image",
        default=(),
    )
    checks: str = field("the folder in images/ whose checks.py proves it; else its own", default="")


@dataclass(frozen=True, kw_only=True)
class BaseLock:
    """toolchains/bases/NAME.lock.json: the image's digest, and the same release as packages."""

    format: int
    definition: BaseDefinition
    definition_sha256: str
    platform: str
    debs: tuple[Deb, ...]
    sha256: str = field("digest of all the other lines; see seal()", default="")

    @property
    def image_digest(self) -> str:
        """sha256:… of the registry's index."""
        return self.definition.image.partition("@")[2]


@dataclass(frozen=True, kw_only=True)
class ImageDigests:
    """What an image of a lock came to when it was built: other builds are held against it."""

    installed: str = field("digest of what the lock installs")
    recipe: str = field("digest of the files of images/ that it was made by")
    base: str = field("what it stands on, by digest")
    content: str = field("sha256 of its names, types, modes, owners, link targets and contents")
    manifest: str = field(
        "digest of its manifest, from a builder that fixes times; else not there", default=""
    )


@dataclass(frozen=True, kw_only=True)
class Lock:
    """toolchains/NAME.lock.json."""

    format: int
    definition: Definition
    definition_sha256: str
    platform: str
    base_sha256: str
    uv: Wheel
    wheels: tuple[Wheel, ...]
    debs: tuple[Deb, ...] = ()
    images: tuple[ImageDigests, ...] = field(
        "what images of this lock came to; it pins nothing", default=()
    )
    sha256: str = field("digest of all the other lines; see seal()", default="")

    def image_of(self, installed: str, recipe: str, base: str) -> ImageDigests | None:
        """What is known of an image made of these very things; None where nothing is."""
        made = (installed, recipe, base)
        return next((i for i in self.images if (i.installed, i.recipe, i.base) == made), None)


def digest(lock: Lock | BaseLock, *, extra: str = "") -> str:
    """sha256 over what the lock pins; comments in the YAML and the summary do not count.

    Nor do kits, which are pinned by their own files and are in no image.
    """
    text = json.dumps(_pinned(lock), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256((text + extra).encode()).hexdigest()


def installed_text(lock: Lock) -> str:
    """The lock as it lies in images and prefixes: what `digest` covers and nothing else.

    So what holds the same is the same, byte for byte, whatever words a lock was made with.
    """
    return _lines(_pinned(lock))


def _pinned(lock: Lock | BaseLock) -> dict[str, Any]:
    """What of a lock says which bytes are installed."""
    body: dict[str, Any] = plain(lock)
    body.pop("definition_sha256")
    body.pop("sha256", None)
    body.pop("images", None)
    body["definition"].pop("summary")
    for key in ("kits", "checks"):
        body["definition"].pop(key, None)
    return body


def normal(name: str) -> str:
    """A Python package's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def name_of(requirement: str) -> str:
    """torch==2.13.0+cpu → torch."""
    return re.split(r"[^\w.-]", requirement.strip(), maxsplit=1)[0]


def refuse_placeholders(requirements: Iterable[str], where: str) -> None:
    """Raise ToolchainError for a package that has only a placeholder in the Python index.

    mlc-llm, mlc-ai and their variants are published as wheels beside the index; what the index
    has under these names is version 0.1 and empty, and pip would take it without a word.
    """
    for requirement in requirements:
        name = name_of(requirement)
        if _PLACEHOLDER.fullmatch(normal(name)):
            raise ToolchainError(
                f"{where}: {name} must not come from a Python index",
                why="what an index has under this name is an empty placeholder, version 0.1",
                remedy="its wheels are a kit: kits: [mlc-wheels]",
            )


def read_lock(cls: type[T], path: Path, *, remedy: str) -> T:
    """The lock in `path`. Raises ToolchainError where it is missing, damaged or newer than us."""
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ToolchainError(f"{path.name} is missing", remedy=remedy) from None
    except (OSError, ValueError) as error:
        raise ToolchainError(f"{path.name} cannot be read", why=str(error), remedy=remedy) from None
    if isinstance(data, dict) and data.get("format") != FORMAT:
        why = f"it has format {data.get('format')}, this edgekiln reads {FORMAT}"
        raise ToolchainError(f"{path.name} cannot be read", why=why, remedy=remedy)
    _refuse_changed(data, path, remedy)
    return read(cls, data, where=path.name)


def seal(body: Mapping[str, Any]) -> str:
    """sha256 of a lock's lines, less its own: a byte that changed since is found by it.

    It is made over the values, so that line ends and spaces do not count. It keeps no one from
    changing a lock on purpose: the repository's history does.
    """
    text = json.dumps({k: v for k, v in body.items() if k != "sha256"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _refuse_changed(data: Any, path: Path, remedy: str) -> None:
    """Raise ToolchainError for a lock that is not as it was made; older ones have no seal."""
    recorded = data.get("sha256") if isinstance(data, dict) else None
    if recorded is not None and (found := seal(data)) != recorded:
        raise ToolchainError(
            f"{path} was changed since it was made",
            why=f"the sha256 of its lines is {found}, it was locked with {recorded}",
            remedy=f"take it again from where edgekiln came from (git checkout), or {remedy}",
        )


def write_lock(lock: Lock | BaseLock, path: Path) -> None:
    """Write `lock` so that one package is one line: a relock's diff then reads well."""
    body = plain(lock)
    body.pop("sha256", None)
    body["sha256"] = seal(body)
    path.write_text(_lines(body), encoding="utf-8", newline="\n")


def carried(held: Lock | None, made: Lock) -> tuple[ImageDigests, ...]:
    """What an older lock says of images that still hold for a new one: it installs the same."""
    now = digest(made)
    return tuple(image for image in (held.images if held else ()) if image.installed == now)


def _lines(body: Mapping[str, Any]) -> str:
    lines = [f"  {json.dumps(key)}: {_block(value)}" for key, value in body.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _block(value: Any) -> str:
    if isinstance(value, list):
        return "[\n    " + ",\n    ".join(json.dumps(item) for item in value) + "\n  ]"
    if isinstance(value, dict):
        inner = [f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items()]
        return "{\n" + ",\n".join(inner) + "\n  }"
    return json.dumps(value)
