"""Which command on this machine can build with BuildKit, and how it is started."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from edgekiln.calls import call
from edgekiln.errors import EngineError


def build_cli(kind: str, url: str) -> tuple[str, ...]:
    """The command whose `build` understands RUN --mount, e.g. ("/usr/bin/docker",).

    Every docker on PATH is looked at: from 23 on a CLI without the buildx plugin has the old
    builder only, and such a one may come first. Raises EngineError where none will do.
    """
    if kind == "podman":
        for podman in _on_path("podman"):
            return (podman,)
        why, remedy = "Podman builds through its own command", "put podman on PATH"
        raise EngineError("podman is not on PATH", why=why, remedy=remedy)
    told = []
    for docker in _on_path("docker"):
        version = _said([docker, "version", "--format", "{{.Client.Version}}"], url)
        if has_buildkit(version, partial(_buildx, docker, url)):
            return (docker,)
        told.append(f"{docker} is {version.strip() or 'not answering'} without buildx")
    raise EngineError(
        "no docker command here can build with BuildKit",
        why="; ".join(told) or "there is no docker on PATH",
        remedy="install the buildx plugin (docker-buildx), or use --executor native",
    )


def has_buildkit(version: str, buildx: Callable[[], bool]) -> bool:
    """Whether a CLI of that version builds with BuildKit; `buildx` is asked from 23 on."""
    major = re.match(r"\s*(\d+)\.", version)
    if major is None:
        return False
    return 19 <= int(major[1]) <= 22 or (int(major[1]) >= 23 and buildx())


def build_environment(url: str) -> dict[str, str]:
    """The environment of a build: this engine, its own builder, plain words."""
    env = {**os.environ, "DOCKER_HOST": url, "DOCKER_BUILDKIT": "1", "BUILDX_BUILDER": "default"}
    # A context named by the user would win over DOCKER_HOST with a warning.
    env.pop("DOCKER_CONTEXT", None)
    return {**env, "BUILDKIT_COLORS": "", "NO_COLOR": "1"}


def _on_path(name: str) -> Iterator[str]:
    """Every executable of that name on PATH, each real file once."""
    seen = set()
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        for suffix in ("", ".exe") if os.name == "nt" else ("",):
            path = Path(folder or ".", name + suffix)
            # access first: of a folder that is closed to this user it says no, is_file raises.
            if os.access(path, os.X_OK) and path.is_file() and path.resolve() not in seen:
                seen.add(path.resolve())
                yield str(path)


def _buildx(docker: str, url: str) -> bool:
    return bool(_said([docker, "buildx", "version"], url))


def _said(command: list[str], url: str) -> str:
    env: Mapping[str, str] = build_environment(url)
    done = call(command, env=env, timeout=30)
    return done.stdout if done.returncode == 0 else ""
