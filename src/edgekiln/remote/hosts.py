"""Other machines by name: hosts.yaml, which `--on STAGE=NAME` and `kiln hosts` read."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from edgekiln import yamls
from edgekiln.errors import KilnError, UsageError, nearest
from edgekiln.toolchain.records import field, read
from edgekiln.toolchain.records import schema as record_schema

LOCAL = "local"
_MODELS = ("send", "fetch")
_FORM = "write `NAME: {address: ssh://USER@HOST:PORT}`; docs/remote.md shows more"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, kw_only=True)
class Host:
    """Another machine, as hosts.yaml describes it under its name."""

    address: str = field("ssh://USER@HOST:PORT, or a name of your ~/.ssh/config")
    profile: str = field("what kind of machine: autodl, runpod, vastai, plain", default="")
    executor: str = field("where its stages run: auto, docker, native, rootfs", default="auto")
    home: str = field("EDGEKILN_HOME there (default: ~/.cache/edgekiln)", default="")
    memory: str = field("the most a stage may use there, e.g. 20g", default="")
    key: str = field("the private key's file (default: what ssh takes)", default="")
    password_from: str = field("the variable here that holds the password", default="")
    models: str = field("send: models go over from here; fetch: it fetches them", default="send")
    env: Mapping[str, str] = field(
        "variables for what runs there; no secrets", default_factory=dict
    )
    name: str = field("what messages call it (default: its name in the file)", default="")

    @property
    def user(self) -> str | None:
        """The user to be there; None where ssh's configuration says it."""
        return self.parts.username

    @property
    def machine(self) -> str:
        """The machine's name, or what ssh's configuration calls it."""
        return self.parts.hostname or ""

    @property
    def port(self) -> int | None:
        """The port; None where ssh's configuration says it, or 22 is meant."""
        return self.parts.port

    @property
    def parts(self) -> SplitResult:
        """The address, taken apart."""
        text = self.address if "://" in self.address else f"ssh://{self.address}"
        return urlsplit(text)


def file() -> Path:
    """Where hosts.yaml lies: EDGEKILN_HOSTS, or the user's folder for settings."""
    if chosen := os.environ.get("EDGEKILN_HOSTS"):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("APPDATA") or str(Path.home() / "AppData" / "Roaming")
    else:
        base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "edgekiln" / "hosts.yaml"


def load() -> dict[str, Host]:
    """Every host of hosts.yaml; none where there is no such file. Raises UsageError."""
    path = file()
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        if os.environ.get("EDGEKILN_HOSTS"):
            raise UsageError(
                f"EDGEKILN_HOSTS {path} does not exist",
                remedy="name the file of your machines by it, or unset it; docs/remote.md",
            ) from None
        return {}
    except OSError as error:
        raise UsageError(
            f"cannot read {path}",
            why=error.strerror or str(error),
            remedy="let your user read it, or name another file by EDGEKILN_HOSTS",
        ) from error
    return dict(_parsed(path, text))


@lru_cache(maxsize=4)
def _parsed(path: Path, text: bytes) -> dict[str, Host]:
    import yaml

    try:
        found = yamls.load(text) or {}
    except yaml.YAMLError as error:
        raise UsageError(
            f"{path} is not YAML", why=" ".join(str(error).split())[:200], remedy=_FORM
        ) from error
    if not isinstance(found, dict):
        raise UsageError(f"{path} holds no names of machines", remedy=_FORM)
    return {str(name): _read(str(name), data, path) for name, data in found.items()}


def _read(name: str, data: Any, path: Path) -> Host:
    where = f"{path.name}: {name}"
    if name == LOCAL or not _NAME.fullmatch(name):
        raise UsageError(f"{where} cannot be a machine's name", remedy="take letters and digits")
    try:
        host = read(Host, {**data, "name": name} if isinstance(data, dict) else data, where=where)
    except KilnError as error:
        raise UsageError(error.what, why=error.why, remedy=error.remedy or _FORM) from error
    return _checked(host, where)


def _checked(host: Host, where: str) -> Host:
    """The host, if all that it says can be."""
    from edgekiln.executors.choose import check_executor
    from edgekiln.units import parse_size

    _check_address(host, where)
    check_executor(host.executor)
    if host.memory:
        parse_size(host.memory, where=f"{where}: memory")
    if host.profile:
        from edgekiln.boxes.profiles import chosen

        chosen(host.profile)
    if host.models not in _MODELS:
        raise UsageError(f"{where}: models is {host.models!r}", remedy=nearest("", _MODELS))
    return host


def _check_address(host: Host, where: str) -> None:
    remedy = "give ssh://USER@HOST:PORT, or a name of your ~/.ssh/config"
    scheme = urlsplit(host.address).scheme if "://" in host.address else "ssh"
    try:
        whole = scheme == "ssh" and host.machine and (host.port is None or host.port > 0)
        whole = whole and not host.parts.path.strip("/")  # a folder there would mean nothing
    except ValueError:  # a port that is no number
        whole = False
    if not whole:
        raise UsageError(f"{where}: address is {host.address!r}", remedy=remedy)
    if host.parts.password:
        raise UsageError(
            f"{where}: a password has no place in an address",
            why="it would be seen in lists of processes and in logs",
            remedy="use a key, or password_from in hosts.yaml: the name of a variable",
        )


def find(place: str) -> Host | None:
    """The host that a place names: None for `local`. Raises UsageError for one unknown."""
    if place == LOCAL:
        return None
    if "://" in place:
        bare = Host(address=place)
        _check_address(bare, "--on")
        user, port = f"{bare.user}@" if bare.user else "", f":{bare.port}" if bare.port else ""
        return Host(address=place, name=f"{user}{bare.machine}{port}")
    hosts = load()
    if place not in hosts:
        remedy = nearest(place, (LOCAL, *hosts))
        if "@" in place:
            remedy = f"did you mean ssh://{place}?"
        elif remedy.startswith("one of"):
            remedy = f"give ssh://USER@HOST:PORT, {LOCAL}, or a name of {file()}"
        raise UsageError(f"there is no machine {place or repr(place)}", remedy=remedy)
    return hosts[place]


def schema() -> dict[str, Any]:
    """The JSON schema of hosts.yaml, for editors; hosts.schema.json beside this is it."""
    found = record_schema(Host, title="The machines of edgekiln's hosts.yaml")
    one = {key: found[key] for key in ("type", "additionalProperties", "required", "properties")}
    del one["properties"]["name"]
    return {"$schema": found["$schema"], "title": found["title"]} | {
        "type": "object",
        "additionalProperties": one,
    }
