"""Profiles of the places that rent boxes: how they are told, and what follows from it.

A profile is data (profiles.yaml). It is chosen by --profile or EDGEKILN_PROFILE, else recognised,
and becomes defaults of the environment: never over what the user has set.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from edgekiln import yamls
from edgekiln.errors import UsageError, nearest

VARIABLE = "EDGEKILN_PROFILE"
# The folder that bundles go into unless --out says another one.
BUILDS = "EDGEKILN_BUILDS"
# Which variables are a profile's word and not the user's: for processes that this one starts.
MARK = "EDGEKILN_SET_BY_PROFILE"
# Told without reading the data: what costs a stat or two at each start. A box has one of them.
_HINTS = ("/.dockerenv", "/run/.containerenv", "/root/autodl-tmp", "/workspace")
_FORM = "name a profile, or a file such as `NAME: {summary: …, data: […]}`"
_PROXIES = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")


@dataclass(frozen=True, kw_only=True)
class Recognised:
    """What tells a place: variables of the box's first process, or files; any of them does."""

    variables: tuple[str, ...] = ()
    files: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Proxy:
    """The place's own script that sets a proxy, and when to leave it off."""

    script: str
    when_off: str


@dataclass(frozen=True, kw_only=True)
class NoGpu:
    """A start without the GPU: at most `memory` (as `2.5g`), and what it is good for."""

    memory: str
    good_for: str


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What is known of a place; profiles.yaml says what each key means."""

    name: str
    summary: str
    recognised: Recognised = Recognised()
    data: tuple[str, ...] = ()
    hub: str = ""
    pip: str = ""
    proxy: Proxy | None = None
    survives: str = ""
    no_gpu: NoGpu | None = None
    rent: Mapping[str, str] = field(default_factory=dict)


# A machine of one's own: nothing follows from it.
MACHINE = Profile(name="machine", summary="a machine of your own")


@dataclass(frozen=True, kw_only=True)
class Settled:
    """A profile in force, and the variables that it set."""

    profile: Profile
    variables: Mapping[str, str]

    def shown(self) -> dict[str, str]:
        """What it set, as it may be shown: without a password in an address."""
        from edgekiln import transfer

        return {key: transfer.shown(to) for key, to in self.variables.items() if key != MARK}

    def told(self) -> str:
        """One line that says so; "" where nothing was set."""
        if not self.variables:
            return ""
        said = ", ".join(f"{key}={value}" for key, value in self.shown().items())
        return f"profile {self.profile.name} ({self.profile.summary}): {said}"


_SETTLED = [Settled(profile=MACHINE, variables={})]


def current() -> Profile:
    """The profile in force."""
    return _SETTLED[0].profile


def settled() -> Settled:
    """The profile in force, with what it set."""
    return _SETTLED[0]


def settle(name: str = "", environ: MutableMapping[str, str] | None = None) -> Settled:
    """Put a profile in force: the one named, else EDGEKILN_PROFILE's, else the one recognised.

    What an earlier one had set is taken back first. Raises UsageError for a name that is none.
    """
    env = os.environ if environ is None else environ
    for key, value in _SETTLED[0].variables.items():
        if env.get(key) == value:
            del env[key]
    wanted = name or env.get(VARIABLE, "")
    profile = chosen(wanted) if wanted else recognise(env)
    found = {} if profile is MACHINE else defaults(profile, env)
    env.update(found)
    _SETTLED[0] = Settled(profile=profile, variables=found)
    return _SETTLED[0]


def set_by_profile(variable: str) -> bool:
    """Whether a variable's value is a profile's, and not the user's own."""
    return variable in os.environ.get(MARK, "").split(",")


def builds() -> Path:
    """The folder that bundles go into unless another is asked for: EDGEKILN_BUILDS, else build/."""
    return Path(os.environ.get(BUILDS) or "build").expanduser()


def chosen(wanted: str) -> Profile:
    """The profile of a name, or of a file of the user's own. Raises UsageError."""
    if wanted == MACHINE.name:
        return MACHINE
    path = Path(wanted).expanduser()
    if wanted.endswith((".yaml", ".yml")):
        own = _read(path)
        if len(own) != 1:
            raise UsageError(
                f"{path} is to hold one profile",
                why=f"it holds {len(own)}",
                remedy="leave one in it",
            )
        return next(iter(own.values()))
    known = profiles()
    if wanted not in known:
        remedy = nearest(wanted, [*known, MACHINE.name])
        raise UsageError(f"there is no profile {wanted}", remedy=remedy)
    return known[wanted]


def recognise(environ: Mapping[str, str]) -> Profile:
    """The profile of this machine by what it shows; MACHINE where it is no container."""
    if not any(Path(hint).exists() for hint in _HINTS):
        return MACHINE
    told = {**_first_process(), **environ}
    for profile in profiles().values():
        seen = profile.recognised
        if any(told.get(key) for key in seen.variables) or any(map(_is_there, seen.files)):
            return profile
    from edgekiln.boxes.box import container

    return profiles()["plain"] if container() else MACHINE


def defaults(profile: Profile, environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that a profile sets: none that the user has set already."""
    found = {}
    if place := data_disk(profile):
        found["EDGEKILN_HOME"] = str(place / "edgekiln")
        found[BUILDS] = str(place / "build")
    if profile.hub:
        found["HF_ENDPOINT"] = profile.hub
    if profile.pip and not _pip_is_told(environ):
        found["PIP_INDEX_URL"] = profile.pip
    found = {key: value for key, value in found.items() if not environ.get(key)}
    if hosts := _left_off(profile, found, environ):
        found["NO_PROXY"] = found["no_proxy"] = hosts
    before = [environ[MARK]] if environ.get(MARK) else []
    return {**found, MARK: ",".join([*before, *found])} if found else {}


def data_disk(profile: Profile) -> Path | None:
    """The profile's data disk: the first of its folders that is there and may be written."""
    for name in profile.data:
        if os.access(name, os.W_OK | os.X_OK) and Path(name).is_dir():
            return Path(name)
    return None


def _left_off(profile: Profile, found: Mapping[str, str], environ: Mapping[str, str]) -> str:
    """The hosts of mirrors this profile chose, where its proxy is on and nobody excepted any."""
    excepted = environ.get("NO_PROXY") or environ.get("no_proxy")
    if profile.proxy is None or excepted or not any(map(environ.get, _PROXIES)):
        return ""
    chosen_here = (found.get(key, "") for key in ("HF_ENDPOINT", "PIP_INDEX_URL"))
    hosts = [urlsplit(address).hostname or "" for address in chosen_here]
    return ",".join(filter(None, hosts))


def _pip_is_told(environ: Mapping[str, str]) -> bool:
    """Whether pip has an index of somebody's choice: a file of its own, or a variable."""
    home = Path(environ.get("HOME") or "~").expanduser()
    files = [Path("/etc/pip.conf"), home / ".pip/pip.conf", home / ".config/pip/pip.conf"]
    named = environ.get("PIP_CONFIG_FILE")
    files += [Path(named)] if named else []
    keys = ("PIP_INDEX_URL", "PIP_NO_INDEX")
    return any(map(environ.get, keys)) or any("index-url" in _text(path) for path in files)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _is_there(name: str) -> bool:
    try:
        return Path(name).expanduser().exists()
    except (OSError, RuntimeError):  # a folder this user may not look into; no home at all
        return False


def _first_process() -> dict[str, str]:
    """The variables of process 1: what a login over SSH does not hand on. Root may read them."""
    try:
        words = Path("/proc/1/environ").read_bytes().split(b"\0")
    except OSError:
        return {}
    pairs = (word.decode(errors="replace").partition("=") for word in words if b"=" in word)
    return {key: value for key, _, value in pairs}


@lru_cache(maxsize=1)
def profiles() -> Mapping[str, Profile]:
    """The profiles that edgekiln has, by name."""
    return _read(Path(__file__).with_name("profiles.yaml"))


def _read(path: Path) -> dict[str, Profile]:
    """The profiles of a file. Raises UsageError with the path of what is wrong in it."""
    import yaml

    from edgekiln.errors import ToolchainError
    from edgekiln.toolchain.records import read

    try:
        data: Any = yamls.load(path.read_bytes())
        if not isinstance(data, dict):
            raise UsageError(f"{path} holds no profiles", remedy=_FORM)
        return {
            str(name): read(Profile, {"name": name, **(what or {})}, where=f"{path.name}: {name}")
            for name, what in data.items()
        }
    except yaml.YAMLError as error:
        why = " ".join(str(error).split())
        raise UsageError(f"{path} is not YAML", why=why, remedy=_FORM) from None
    except ToolchainError as error:
        raise UsageError(error.what, why=error.why, remedy=error.remedy) from None
    except OSError as error:
        why = error.strerror or str(error)
        raise UsageError(f"{path} cannot be read", why=why, remedy=_FORM) from None
