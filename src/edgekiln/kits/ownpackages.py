"""edgekiln's own Python packages for a vendor folder: the wheels of requirements.txt.

`./kiln` sets itself up from the folder that EDGEKILN_VENDOR names. Which wheels that takes depends
on the Python of the machine that it is for: this one's, or CPythons on Linux x86-64 that are named.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from edgekiln import offline
from edgekiln.calls import call_logged
from edgekiln.digest import digest_file
from edgekiln.errors import FetchError, UsageError
from edgekiln.home import home, project
from edgekiln.progress import Progress
from edgekiln.user.pipconf import pip_command

if TYPE_CHECKING:
    from packaging.tags import Tag

# The oldest and the newest glibc whose wheels are asked for, for a machine that is not this one.
_GLIBC = (17, 36)
_OLDEST = (3, 10)


@dataclass(frozen=True, kw_only=True)
class Pinned:
    """One line of requirements.txt: name==version, and the sha256 of each file it may be."""

    requirement: str
    digests: frozenset[str]


def bring(folder: Path, pythons: Sequence[str], progress: Progress) -> list[Path]:
    """Have the wheels for each Python (left out: this one) in the folder; what is there stays.

    Raises UsageError for a Python that edgekiln does not run on, FetchError where pip cannot have
    one of them.
    """
    found: dict[Path, None] = {}
    for python in pythons or ("",):
        wanted = list(pinned(_environment(python)))
        progress.update(0, None, f"edgekiln's own packages{f' for Python {python}' * bool(python)}")
        absent = [each for each in wanted if not _there(each, folder, python)]
        _download(absent, folder, python)
        for each in wanted:
            if path := _there(each, folder, python):
                found[path] = None
    return list(found)


def check(pythons: Iterable[str]) -> None:
    """Raise UsageError for a Python that edgekiln does not run on."""
    for python in pythons:
        _environment(python)


def pinned(environment: dict[str, str] | None) -> Iterator[Pinned]:
    """The lines that count in an environment (None: this one's)."""
    from packaging.requirements import Requirement

    text = (project() / "requirements.txt").read_text(encoding="utf-8")
    for line in text.replace("\\\n", " ").splitlines():
        words, _, rest = line.partition("--hash=")
        if not words.strip() or words.startswith("#"):
            continue
        asked = Requirement(words.strip())
        if asked.marker is None or asked.marker.evaluate(dict(environment or {})):
            digests = frozenset(re.findall(r"sha256:([0-9a-f]{64})", f"--hash={rest}"))
            yield Pinned(requirement=f"{asked.name}{asked.specifier}", digests=digests)


def _environment(python: str) -> dict[str, str] | None:
    """What markers are told of a CPython on Linux x86-64."""
    if not python:
        return None
    if not re.fullmatch(r"3\.\d+", python) or _minor(python) < _OLDEST:
        remedy = "one of 3.10, 3.11, 3.12, 3.13; several with commas"
        raise UsageError(f"--python {python}: edgekiln does not run on that", remedy=remedy)
    return {
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": "linux",
    }


def _minor(python: str) -> tuple[int, int]:
    major, minor = python.split(".")
    return int(major), int(minor)


def _platforms() -> list[str]:
    """Linux x86-64 from the newest glibc down, as wheels name it."""
    newest = [f"manylinux_2_{n}_x86_64" for n in range(_GLIBC[1], _GLIBC[0] - 1, -1)]
    return [*newest, "manylinux2014_x86_64", "manylinux_2_12_x86_64", "manylinux_2_5_x86_64"]


@lru_cache(maxsize=8)
def _tags(python: str) -> frozenset[Tag]:
    """The tags of wheels that the Python takes."""
    from packaging import tags

    if not python:
        return frozenset(tags.sys_tags())
    minor, platforms = _minor(python), _platforms()
    own = tags.cpython_tags(minor, platforms=platforms)
    pure = tags.compatible_tags(minor, f"cp{minor[0]}{minor[1]}", platforms)
    return frozenset((*own, *pure))


def _there(each: Pinned, folder: Path, python: str) -> Path | None:
    """The wheel in the folder that is one of the pinned files and fits the Python."""
    from packaging.utils import InvalidWheelFilename, parse_wheel_filename

    name, _, version = each.requirement.partition("==")
    pattern = re.sub(r"[-_.]+", "[-_.]", name)
    for path in sorted(folder.glob("*.whl")):
        if not re.match(f"{pattern}-", path.name, re.IGNORECASE):
            continue
        try:
            _, found, _, tags = parse_wheel_filename(path.name)
        except InvalidWheelFilename:
            continue
        fits = str(found) == version and tags & _tags(python)
        if fits and digest_file(path) in each.digests:
            return path
    return None


def _download(wanted: Sequence[Pinned], folder: Path, python: str) -> None:
    """Let the user's pip bring them: pinned files only, and no dependency is looked up."""
    if not wanted:
        return
    offline.refuse(f"edgekiln's package {wanted[0].requirement}")
    command = pip_command()
    if command is None:
        why = "this Python has no pip"
        raise FetchError("edgekiln's own packages cannot be fetched", why=why, remedy="install pip")
    log = home() / "logs" / "own-packages.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    words = ["--disable-pip-version-check", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    if python:
        words += ["--implementation=cp", f"--python-version={python}"]
        words += [f"--platform={platform}" for platform in _platforms()]
    last: list[str] = []

    def hear(line: str) -> None:
        if line.startswith("ERROR: "):
            last.append(line.removeprefix("ERROR: ").strip()[:300])

    with tempfile.TemporaryDirectory(dir=folder, prefix=".own-") as scratch:
        asked = Path(scratch, "requirements.txt")
        asked.write_text("".join(map(_line, wanted)), encoding="utf-8")
        options = [*words, "--requirement", str(asked), "--dest", scratch]
        code = call_logged([*command, "download", *options], log, hear)
        for path in Path(scratch).glob("*.whl"):
            path.replace(folder / path.name)
    if code:
        raise FetchError(
            "pip could not bring edgekiln's own packages",
            why=last[0] if last else "",
            remedy=f"see {log}; pip's own settings say where it looks",
        )


def _line(each: Pinned) -> str:
    hashes = " ".join(f"--hash=sha256:{digest}" for digest in sorted(each.digests))
    return f"{each.requirement} {hashes}\n"
