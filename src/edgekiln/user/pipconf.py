"""The user's pip settings, said to uv.

uv reads none of pip's configuration. What the user has told pip (which index, which folders,
which certificates, which proxy) holds for edgekiln too, so it is read here, from pip itself, and
handed to uv as environment. Folders and file:// indexes are kept apart: a container cannot see
them, so wheels.py looks into them on this side.
"""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

from edgekiln.calls import call

_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
# uv has an option for it and no variable: an index that is not there gives nothing either.
_NO_INDEX = "file:///nonexistent/simple"
_SECTIONS = ("global", "install", "download", ":env:")  # later ones win, as in pip


@dataclass(frozen=True, kw_only=True)
class PipSettings:
    """Where wheels come from. `index_url` None is the Python index itself."""

    index_url: str | None = None
    extra_index_urls: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()
    no_index: bool = False
    cert: str | None = None
    trusted_hosts: tuple[str, ...] = ()
    timeout: int | None = None
    proxies: Mapping[str, str] = field(default_factory=dict)
    netrc: Path | None = None

    def folders(self) -> list[Path]:
        """Folders on this machine that pip looks into for wheels (find-links)."""
        return [path for path in map(_as_path, self.find_links) if path and path.is_dir()]

    def file_indexes(self) -> list[Path]:
        """Simple indexes on this machine (file://)."""
        urls = (self.index_url or "", *self.extra_index_urls)
        return [path for path in map(_as_file_url, urls) if path and path.is_dir()]


def uv_environment(pip: PipSettings, *, remote_only: bool = False) -> dict[str, str]:
    """uv's environment for the same places, in the sense pip gives them.

    pip takes the best version from all its indexes together; uv's default stops at the first
    index that knows the name, hence the strategy. `remote_only` leaves out what lies on this
    machine, for a container that could not see it.
    """
    extra = [u for u in pip.extra_index_urls if not (remote_only and _as_file_url(u))]
    links = [u for u in pip.find_links if not (remote_only and _as_path(u))]
    env = {"UV_NO_CONFIG": "1", "UV_INDEX_STRATEGY": "unsafe-best-match"}
    if pip.no_index:
        env["UV_DEFAULT_INDEX"] = _NO_INDEX
    elif pip.index_url and not (remote_only and _as_file_url(pip.index_url)):
        env["UV_DEFAULT_INDEX"] = pip.index_url
    if extra and not pip.no_index:
        env["UV_INDEX"] = " ".join(extra)
    if links:
        env["UV_FIND_LINKS"] = ",".join(links)
    if pip.trusted_hosts:
        env["UV_INSECURE_HOST"] = " ".join(pip.trusted_hosts)
    if pip.timeout:
        env["UV_HTTP_TIMEOUT"] = str(pip.timeout)
    return {**env, **pip.proxies}


@lru_cache(maxsize=1)
def pip_settings() -> PipSettings:
    """What pip on this machine has been told, by files and environment."""
    return parse(pip_config_list(), os.environ)


def pip_command() -> list[str] | None:
    """pip of this Python, else the first one on PATH; None where there is none."""
    import importlib.util
    import shutil

    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    found = shutil.which("pip3") or shutil.which("pip")
    return [found] if found else None


def pip_config_list() -> str:
    """`pip config list`: pip merges its own files, so nothing here guesses where they lie."""
    command = pip_command()
    if command is None:
        return "".join(
            f":env:.{key[4:].lower().replace('_', '-')}={value!r}\n"
            for key, value in os.environ.items()
            if key.startswith("PIP_")
        )
    env = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = call([*command, "config", "list"], env=env)
    return done.stdout if done.returncode == 0 else ""


def parse(listing: str, environ: Mapping[str, str]) -> PipSettings:
    """Settings from the lines of `pip config list` (`section.key='value'`) and proxies."""
    sections: dict[str, dict[str, str]] = {name: {} for name in _SECTIONS}
    for line in listing.splitlines():
        name, _, value = line.partition("=")
        section, _, key = name.rpartition(".")
        if section in sections:
            sections[section][key] = _literal(value)
    told: dict[str, str] = {}
    for name in _SECTIONS:
        told.update({key: value for key, value in sections[name].items() if value.strip()})
    return PipSettings(
        index_url=told.get("index-url"),
        extra_index_urls=tuple(told.get("extra-index-url", "").split()),
        find_links=tuple(told.get("find-links", "").split()),
        no_index=told.get("no-index", "").lower() in ("1", "true", "yes", "on"),
        cert=told.get("cert") or environ.get("SSL_CERT_FILE") or environ.get("REQUESTS_CA_BUNDLE"),
        trusted_hosts=tuple(told.get("trusted-host", "").split()),
        timeout=_seconds(told.get("timeout") or told.get("default-timeout")),
        proxies=_proxies(told.get("proxy"), environ),
        netrc=_netrc(environ),
    )


def _literal(value: str) -> str:
    try:
        return str(ast.literal_eval(value))
    except (ValueError, SyntaxError):
        return value


def _seconds(told: str | None) -> int | None:
    try:
        return int(float(told)) if told else None
    except ValueError:
        return None


def _proxies(told: str | None, environ: Mapping[str, str]) -> dict[str, str]:
    """Proxy variables as the user has them (either case); pip's own `proxy` wins."""
    found = {}
    for name in _PROXIES:
        value = environ.get(name.lower()) or environ.get(name)
        if value:
            found[name] = value
    if told:
        found["HTTP_PROXY"] = found["HTTPS_PROXY"] = told
    return found


def _netrc(environ: Mapping[str, str]) -> Path | None:
    """The user's .netrc, where indexes with a password keep it."""
    named = environ.get("NETRC")
    path = Path(named) if named else Path.home() / (".netrc" if os.name != "nt" else "_netrc")
    return path if path.is_file() else None


def _as_file_url(place: str) -> Path | None:
    """The folder of a file:// address; None for any other address."""
    if not place.startswith("file:"):
        return None
    path = unquote(urlsplit(place).path)
    if os.name == "nt":
        path = path.lstrip("/")
    return Path(path)


def _as_path(place: str) -> Path | None:
    """The folder a find-links entry names, as a path or a file:// address."""
    if place.startswith("file:"):
        return _as_file_url(place)
    return None if "://" in place else Path(place).expanduser()
