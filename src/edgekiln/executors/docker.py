"""Stages as containers, through the Docker API (Docker or Podman).

A stage sees its inputs read only, an output folder and a scratch folder; it has no network, no
capabilities, no way to gain any, and the caller's user. The container is removed on every way
out; one left by a build that was killed outright is removed by the next.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO
from urllib.parse import urlsplit

from edgekiln.engine.paths import engine_path
from edgekiln.errors import EngineError, StageError
from edgekiln.executors import owners
from edgekiln.executors.base import (
    StageResult,
    StageRun,
    environment,
    read_event,
    ways_out,
)
from edgekiln.executors.kills import Killed, kernel_kills, who
from edgekiln.executors.kitlinks import kits_ready, make_kits
from edgekiln.executors.views import places

if TYPE_CHECKING:
    from docker.api.client import APIClient
    from docker.types import Mount

    from edgekiln.engine import Engine
    from edgekiln.progress import Progress
    from edgekiln.toolchain import Toolchain

_STAGE = "io.edgekiln.stage"
# A rootless engine shares one user's process limit between all its containers.
_PIDS = 4096
# 128 + SIGKILL; with 128 + SIGTERM: it was not the program's own end.
_KILLED = 137
_FROM_OUTSIDE = (_KILLED, 143)
_LAST_BREATH = 3.0


class DockerExecutor:
    """Runs stages in containers of the toolchains' images."""

    name = "docker"

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._guard = threading.Lock()
        self._running: set[str] = set()
        self._cancelled = False

    def describe(self) -> str:
        """Which engine runs the stages."""
        rootless = ", rootless" if self._engine.rootless else ""
        return f"{self._engine.kind} {self._engine.version}{rootless} (network none)"

    def ready(self, toolchain: Toolchain) -> bool:
        """Whether the toolchain's image and its kits are there."""
        from edgekiln import images

        return kits_ready(toolchain) and images.exists(self._engine, toolchain)

    def prepare(self, toolchain: Toolchain, progress: Progress) -> None:
        """Unpack the toolchain's kits and build its image."""
        from edgekiln import images

        if toolchain.kits:
            make_kits([toolchain], progress)
        images.build(self._engine, toolchain, progress)

    def tidy(self) -> None:
        """Remove containers of builds that were killed before they could."""
        with self._api() as api, _engine_faults("clean-up"):
            for found in api.containers(all=True, filters={"label": owners.LABEL}):
                if owners.is_orphan(found["Labels"][owners.LABEL]):
                    with contextlib.suppress(Exception):
                        api.remove_container(found["Id"], force=True, v=True)

    def drift(self, toolchain: Toolchain) -> list[str]:
        """The packages of the distribution that are newer than locked, by the image's label."""
        from edgekiln import images

        return images.drift(self._engine, toolchain)

    def run(self, toolchain: Toolchain, run: StageRun) -> StageResult:
        """Run a stage's program in a container and wait for it."""
        with self._api() as api:
            config = self._container(api, toolchain, run)
            began, before = time.monotonic(), self._kernel_kills()
            with _engine_faults(run.name), self._created(api, config) as container:
                stream = api.attach(container, stream=True, logs=True, demux=True)
                api.start(container)
                if self._cancelled:  # meanwhile: cancel() may have found it not running yet
                    api.kill(container)
                with run.log.open("w", encoding="utf-8") as log:
                    _follow(stream, run, log)
                code = int(api.wait(container)["StatusCode"])
                state = api.inspect_container(container)["State"]
                if code in _FROM_OUTSIDE and not (state.get("OOMKilled") or self._cancelled):
                    _wait_for_end(api)
            if code == 127 and not state.get("Running") and state.get("Error"):
                raise StageError(f"stage {run.name} did not start", why=str(state["Error"]))
        killed = None
        if state.get("OOMKilled") and code:
            killed = Killed.LIMIT
        elif code == _KILLED and not self._cancelled:
            killed = who(before, self._kernel_kills())
        return StageResult(exit_code=code, seconds=time.monotonic() - began, killed=killed)

    def _kernel_kills(self) -> int | None:
        """The count of the kernel the containers run on, where that is this machine's."""
        own = sys.platform == "linux" and self._engine.url.startswith("unix://")
        return kernel_kills() if own else None

    def cancel(self) -> None:
        """End every running stage's container."""
        self._cancelled = True
        with self._guard:
            running = list(self._running)
        # The engine may be gone, or a container may have ended by itself: both are an end.
        with contextlib.suppress(EngineError), self._api() as api:
            for container in running:
                with contextlib.suppress(Exception):
                    api.kill(container)

    def close(self) -> None:
        """Nothing is held between stages."""

    @contextlib.contextmanager
    def _api(self) -> Iterator[APIClient]:
        # A client of docker-py is not for several threads: each stage opens its own.
        import docker

        try:
            api = docker.APIClient(base_url=self._engine.url, version="auto", timeout=60)
        except docker.errors.DockerException as error:
            raise _gone(_innermost(error)) from error
        try:
            yield api
        finally:
            api.close()

    @contextlib.contextmanager
    def _created(self, api: APIClient, config: Mapping[str, Any]) -> Iterator[str]:
        with self._guard:
            if self._cancelled:
                raise KeyboardInterrupt
            container = str(api.create_container(**config)["Id"])
            self._running.add(container)
        try:
            yield container
        finally:
            with self._guard:
                self._running.discard(container)
            # With the engine gone there is nobody to remove it; the next build reaps.
            with contextlib.suppress(Exception):
                api.remove_container(container, force=True, v=True)

    def _container(self, api: APIClient, toolchain: Toolchain, run: StageRun) -> dict[str, Any]:
        from edgekiln import images

        scratch = run.work / "scratch"
        scratch.mkdir()
        params = run.work / "params.json"
        params.write_text(json.dumps(run.params), encoding="utf-8")
        env = environment(
            toolchain, run, scripts="/kiln/scripts", path=images.PATH, kits=images.KITS
        )
        return {
            "image": images.tag(toolchain),
            "entrypoint": [],
            "command": ["python3", "-s", f"/kiln/scripts/{run.program}"],
            "environment": {**env, "HOME": "/scratch", "TMPDIR": "/scratch"},
            "working_dir": "/scratch",
            "labels": {owners.LABEL: owners.this_process(), _STAGE: run.name},
            **({"user": user} if (user := self._user()) else {}),
            "host_config": api.create_host_config(
                mounts=[*self._mounts(run, scratch, params), *self._kits(toolchain)],
                network_mode=_network() if run.network else "none",
                cap_drop=["ALL"],
                security_opt=["no-new-privileges", "label=disable"],
                read_only=True,
                init=True,
                pids_limit=_PIDS,
                mem_limit=run.memory,
                memswap_limit=run.memory,
            ),
        }

    def _mounts(self, run: StageRun, scratch: Path, params: Path) -> list[Mount]:
        readable = [
            place
            for name, path in run.inputs.items()
            for place in places(f"/in/{name}", path, run.work / "skeletons" / name)
        ]
        readable += [("/kiln/scripts", run.scripts), ("/kiln/params.json", params)]
        writable = [("/out", run.work / "out"), ("/scratch", scratch)]
        return [
            *(self._bind(target, path, read_only=True) for target, path in readable),
            *(self._bind(target, path, read_only=False) for target, path in writable),
        ]

    def _kits(self, toolchain: Toolchain) -> list[Mount]:
        from edgekiln.images import KITS

        return [
            self._bind(f"{KITS}/{kit.family}", kit.path, read_only=True) for kit in toolchain.kits
        ]

    def _bind(self, target: str, source: Path, *, read_only: bool) -> Mount:
        from docker.types import Mount

        place = engine_path(source.resolve(), self._engine.kind)
        return Mount(target, place, type="bind", read_only=read_only)

    def _user(self) -> str | None:
        """The caller's user, so that results are his.

        A rootless engine already maps the caller to root inside: mapping again would hand the
        files to a user nobody has (dockcross#649, cross#1698). Docker Desktop maps by itself.
        """
        if self._engine.rootless:
            return "0:0"
        if sys.platform == "win32":
            return None
        return f"{os.getuid()}:{os.getgid()}"


def _network() -> str:
    """The engine's own network; this machine's, where a proxy listens on no other address."""
    hosts = (urlsplit(place).hostname for place in ways_out().values() if "://" in place)
    return "host" if any(host in ("127.0.0.1", "localhost", "::1") for host in hosts) else "bridge"


def _wait_for_end(api: APIClient) -> None:
    """An engine that is shut down ends its containers first, then itself: see whether it does.

    Raises what docker-py raises where nobody answers.
    """
    deadline = time.monotonic() + _LAST_BREATH
    while time.monotonic() < deadline:
        api.ping()
        time.sleep(0.1)


def _follow(stream: Any, run: StageRun, log: TextIO) -> None:
    """Hand events on and write the log, until the program's streams end."""
    pending = b""
    for out, err in stream:
        if err:
            log.write(err.decode("utf-8", "replace"))
            log.flush()
        if out:
            *lines, pending = (pending + out).split(b"\n")
            for line in lines:
                if event := read_event(line.decode("utf-8", "replace")):
                    run.on_event(event)


@contextlib.contextmanager
def _engine_faults(stage: str) -> Iterator[None]:
    """Turn what docker-py and its HTTP library raise into words for the user."""
    import docker
    import requests
    import urllib3

    try:
        yield
    except docker.errors.ImageNotFound as error:
        raise EngineError(
            f"the image for stage {stage} is not there any more",
            why=str(error.explanation),
            remedy="run the build again: it makes missing images",
        ) from error
    except (
        docker.errors.APIError,
        requests.exceptions.RequestException,
        urllib3.exceptions.HTTPError,
        ConnectionError,
        TimeoutError,
    ) as error:
        raise _gone(_innermost(error), f" during stage {stage}") from error


def _innermost(error: BaseException) -> str:
    """What the system said, below what the HTTP libraries wrapped around it."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, OSError) and inner.strerror:
            return inner.strerror
        inner = inner.__cause__ or inner.__context__
    return str(error)


def _gone(why: str, when: str = "") -> EngineError:
    return EngineError(
        f"the container engine went away or refused{when}",
        why=why.splitlines()[0][:300] if why else "",
        remedy="start it again (`kiln engine up`) and repeat the build: finished stages are kept",
    )
