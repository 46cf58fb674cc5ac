"""Which container engine answers on this machine: Docker, Docker Desktop or Podman.

A look costs a few stats where nothing is there, and one small request where something is:
docker-py is imported only for places this module cannot speak to itself (ssh, pipes, TLS).
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote, urlsplit

from edgekiln.errors import EngineError

if TYPE_CHECKING:
    from edgekiln.progress import Progress

_PATIENCE = 5.0  # seconds, until nobody is thought to be there
_BUSY = 120.0  # seconds that an engine which has answered once may take: it may be unpacking layers


@dataclass(frozen=True, kw_only=True)
class Engine:
    """An engine that answered. `kind` is docker or podman, `url` as DOCKER_HOST has it."""

    kind: str
    url: str
    version: str
    rootless: bool

    @cached_property
    def cli(self) -> tuple[str, ...]:
        """The command that builds with BuildKit (or Podman's own builder) for this engine."""
        from edgekiln.engine.buildcli import build_cli

        return build_cli(self.kind, self.url)

    def get(self, path: str) -> Any | None:
        """GET a path of the engine's API; None where it says 404. Raises EngineError."""
        try:
            return ask(self.url, path, _BUSY)
        except TimeoutError as error:
            why = f"it said nothing for {_BUSY:g} s"
            remedy = "see what else it does, then try again"
            raise EngineError("the engine does not answer", why=why, remedy=remedy) from error

    def image(self, reference: str) -> dict[str, Any] | None:
        """What the engine knows of an image; None where it has none of that name."""
        found = self.get(f"/images/{quote(reference, safe='/:@')}/json")
        return cast("dict[str, Any] | None", found)


def find_engine() -> Engine | None:
    """The first engine that answers: DOCKER_HOST, the current context, then the usual sockets."""
    for url in candidates():
        try:
            return _engine_at(url)
        except (OSError, ValueError, http.client.HTTPException):
            continue
    return None


def why_not() -> str:
    """One line a place that was tried: why no engine answers there."""
    told = []
    for url in candidates(missing=True):
        try:
            _engine_at(url)
        except FileNotFoundError:
            told.append(f"{url}: no such socket")
        except PermissionError:
            told.append(f"{url}: not allowed (are you in the socket's group?)")
        except ConnectionRefusedError:
            told.append(f"{url}: nobody listens")
        except (OSError, ValueError, http.client.HTTPException) as error:
            told.append(f"{url}: {str(error).splitlines()[0] if str(error) else error!r}")
    return "\n".join(told)


def candidates(*, missing: bool = False) -> Iterator[str]:
    """Where an engine may listen, likeliest first; sockets that do not exist only if `missing`.

    With DOCKER_HOST set there is one place: the user said so.
    """
    told = os.environ.get("DOCKER_HOST")
    if told:
        yield told
        return
    places = [_context(), *_sockets()]
    seen = set()
    for url in places:
        if url and url not in seen:
            seen.add(url)
            if missing or not url.startswith("unix://") or Path(url[7:]).exists():
                yield url


def _sockets() -> Iterator[str]:
    if sys.platform == "win32":
        for pipe in ("docker_engine", "dockerDesktopLinuxEngine", "podman-machine-default"):
            if Path(rf"\\.\pipe\{pipe}").exists():
                yield f"npipe:////./pipe/{pipe}"
        return
    home, runtime = Path.home(), os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.getuid()}")
    yield "unix:///var/run/docker.sock"
    yield f"unix://{runtime}/docker.sock"
    for place in (".docker/run/docker.sock", ".docker/desktop/docker.sock"):
        yield f"unix://{home / place}"
    yield os.environ.get("CONTAINER_HOST", "")
    yield f"unix://{runtime}/podman/podman.sock"
    yield "unix:///run/podman/podman.sock"


def _context() -> str | None:
    """The endpoint of docker's current context (Docker Desktop, colima and others make one)."""
    folder = Path(os.environ.get("DOCKER_CONFIG", str(Path.home() / ".docker")))
    name = os.environ.get("DOCKER_CONTEXT")
    try:
        if not name:
            name = json.loads((folder / "config.json").read_bytes()).get("currentContext")
        if not name or name == "default":
            return None
        for meta in (folder / "contexts" / "meta").glob("*/meta.json"):
            known = json.loads(meta.read_bytes())
            if known.get("Name") == name:
                return str(known["Endpoints"]["docker"]["Host"])
    except (OSError, ValueError, KeyError):
        pass
    return None


def _engine_at(url: str) -> Engine:
    version = ask(url, "/version")
    if not isinstance(version, dict) or "Version" not in version:
        raise ValueError("what answers is not a container engine")
    info = ask(url, "/info") or {}
    names = [part.get("Name", "") for part in version.get("Components") or []]
    security = info.get("SecurityOptions") or []
    return Engine(
        kind="podman" if any("Podman" in name for name in names) else "docker",
        url=url,
        version=str(version["Version"]),
        rootless=any("rootless" in str(option) for option in security),
    )


def ask(url: str, path: str, patience: float = _PATIENCE) -> Any | None:
    """GET `path` from the engine at `url`; None for 404. Raises OSError where nobody answers.

    `patience` is in seconds.
    """
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return _read(_UnixConnection(parts.path, patience), path)
    if parts.scheme in ("tcp", "http") and not os.environ.get("DOCKER_TLS_VERIFY"):
        return _read(http.client.HTTPConnection(parts.netloc, timeout=patience), path)
    return _through_docker_py(url, path, patience)


def _read(connection: http.client.HTTPConnection, path: str) -> Any | None:
    try:
        connection.request("GET", path, headers={"Host": "localhost"})
        answer = connection.getresponse()
        body = answer.read()
    finally:
        connection.close()
    if answer.status == 404:
        return None
    if answer.status != 200:
        raise OSError(f"the engine answered {answer.status}: {body[:200].decode(errors='replace')}")
    return json.loads(body)


def _through_docker_py(url: str, path: str, patience: float) -> Any | None:
    import docker

    try:
        client = docker.APIClient(
            base_url=url, timeout=int(patience), use_ssh_client=True, tls=_tls(), version="auto"
        )
        try:
            answer = client.get(client.base_url + path)
        finally:
            client.close()
    except docker.errors.DockerException as error:
        raise OSError(str(error)) from error
    return None if answer.status_code == 404 else answer.json()


def _tls() -> Any:
    """The client certificates that DOCKER_CERT_PATH names, as docker's own CLI takes them."""
    if not os.environ.get("DOCKER_TLS_VERIFY"):
        return False
    import docker

    folder = Path(os.environ.get("DOCKER_CERT_PATH", str(Path.home() / ".docker")))
    pair = (str(folder / "cert.pem"), str(folder / "key.pem"))
    return docker.tls.TLSConfig(client_cert=pair, ca_cert=str(folder / "ca.pem"), verify=True)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, patience: float) -> None:
        super().__init__("localhost", timeout=patience)
        self._path = path

    def connect(self) -> None:
        # Looked up by name: on Windows the module has no such family.
        self.sock = socket.socket(getattr(socket, "AF_UNIX"))  # noqa: B009
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def up(progress: Progress) -> Engine:
    """Bring an engine up where none answers; see engineup."""
    from edgekiln.engine import bringup as engineup

    return engineup.up(progress)


def down(progress: Progress) -> None:
    """Stop the engine that `up` started; see engineup."""
    from edgekiln.engine import bringup as engineup

    engineup.down(progress)
