"""An engine brought up where none answers: the distribution's docker.io, as root.

What `up` starts goes on running when the command ends; `down` stops that one and no other.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from edgekiln.aptrun import can_install, install
from edgekiln.calls import call, last_words
from edgekiln.engine import Engine, find_engine, why_not
from edgekiln.errors import EngineError
from edgekiln.home import home
from edgekiln.progress import Progress

# What docker.io only recommends and an engine still needs: certificates for registries, the
# packet filter for containers' networks. buildx is a package of its own where docker.io is 23
# or newer (Ubuntu), and part of the CLI where it is 20.10 (Debian 12).
_PACKAGES = ["docker.io", "ca-certificates", "iptables"]
_BUILDX = "docker-buildx"
_PATIENCE = 60.0


def up(progress: Progress) -> Engine:
    """The engine that answers, started (and installed) first if need be; idempotent.

    Raises EngineError where this process may not, with what a user can do instead.
    """
    engine = find_engine()
    if engine is not None:
        return engine
    _refuse_where_impossible()
    if not shutil.which("dockerd"):
        packages = _packages()
        progress.note(f"installing with apt: {' '.join(packages)}")
        install(packages, EngineError)
    if _starting():
        return _wait(progress, lambda: None, Path("/var/log/docker.log"))
    if _systemd():
        progress.note("starting docker: systemctl start docker")
        _systemctl("start")
        return _wait(progress, lambda: None, Path("/var/log"))
    return _start_dockerd(progress)


def down(progress: Progress) -> None:
    """Stop the dockerd that `up` started; one that others started is left alone."""
    pid = _our_pid()
    if pid is None:
        remedy = "stop the engine the way it was started"
        raise EngineError("no engine of ours is running", remedy=remedy)
    progress.note(f"stopping dockerd (process {pid})")
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + _PATIENCE
    while _our_pid() is not None:
        if time.monotonic() > deadline:
            raise EngineError(f"dockerd (process {pid}) does not end", why="it still runs")
        time.sleep(0.1)
    _pid_file().unlink(missing_ok=True)


def _refuse_where_impossible() -> None:
    told = os.environ.get("DOCKER_HOST")
    if told:
        why, remedy = why_not(), "start that engine, or unset DOCKER_HOST"
        raise EngineError(
            f"DOCKER_HOST is {told}, and no engine answers there", why=why, remedy=remedy
        )
    if sys.platform != "linux":
        remedy = "install and start Docker Desktop"
        raise EngineError("no engine can be started from here on this system", remedy=remedy)
    if os.geteuid() != 0:
        why, remedy = "starting one needs root", "sudo ./kiln engine up, or --executor native"
        raise EngineError("no container engine answers", why=why, remedy=remedy)
    if not shutil.which("dockerd") and not can_install():
        why = "dockerd is not installed, and this is neither Debian nor Ubuntu"
        raise EngineError("no container engine answers", why=why, remedy="install Docker or Podman")
    if not _may_make_containers():
        why = "this is itself a container without the rights to make others"
        raise EngineError("no engine can run here", why=why, remedy="use --executor native")


def _may_make_containers() -> bool:
    """Whether the kernel lets this process mount, which every engine must.

    An unprivileged container (a rented GPU box) is root without CAP_SYS_ADMIN; seen in
    capabilities(7)'s effective set, so that nothing has to be tried.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return False
    line = next(line for line in status.splitlines() if line.startswith("CapEff:"))
    held = int(line.split()[1], 16)
    sys_admin, net_admin = 21, 12
    return bool(held >> sys_admin & 1 and held >> net_admin & 1)


def _packages() -> list[str]:
    """docker.io with what it only recommends and this machine still needs."""
    packages = [*_PACKAGES, *([_BUILDX] if _known_to_apt(_BUILDX) else [])]
    # Where the kernel enforces AppArmor, no container starts without its parser.
    enforced = Path("/sys/module/apparmor/parameters/enabled")
    if enforced.is_file() and enforced.read_text(encoding="ascii").startswith("Y"):
        packages.append("apparmor")
    return packages


def _starting() -> bool:
    """Whether some dockerd runs and only has to answer: the package may have started its own."""
    try:
        pid = int(Path("/var/run/docker.pid").read_text(encoding="ascii"))
        return Path(f"/proc/{pid}/comm").read_text(encoding="ascii").strip() == "dockerd"
    except (OSError, ValueError):
        return False


def _known_to_apt(package: str) -> bool:
    done = call(["apt-cache", "show", "--no-all-versions", package])
    return done.returncode == 0


def _systemd() -> bool:
    """Whether systemd runs this machine, as sd_booted(3) tells."""
    return Path("/run/systemd/system").is_dir() and bool(shutil.which("systemctl"))


def _systemctl(verb: str) -> None:
    done = call(["systemctl", verb, "docker"])
    if done.returncode:
        why, remedy = last_words(done), "see journalctl -u docker"
        raise EngineError(f"systemctl {verb} docker failed", why=why, remedy=remedy)


def _start_dockerd(progress: Progress) -> Engine:
    folder = home() / "engine"
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "dockerd.log"
    progress.note(f"starting dockerd; its log is {log}")
    with log.open("ab") as stream:
        process = subprocess.Popen(
            ["dockerd"],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            cwd="/",
            start_new_session=True,
        )
    _pid_file().write_text(f"{process.pid}\n", encoding="ascii")
    return _wait(progress, process.poll, log)


def _wait(progress: Progress, ended: Callable[[], int | None], log: Path) -> Engine:
    """Wait until the engine answers, ends, or takes too long."""
    began = time.monotonic()
    while time.monotonic() - began < _PATIENCE:
        engine = find_engine()
        if engine is not None:
            progress.note(f"{engine.kind} {engine.version} answers")
            return engine
        if ended() is not None:
            raise EngineError("dockerd ended at once", why=_last_error(log), remedy=f"see {log}")
        time.sleep(0.1)
    raise EngineError(
        "dockerd does not answer", why=f"after {_PATIENCE:.0f} s", remedy=f"see {log}"
    )


def _last_error(log: Path) -> str:
    """The line of dockerd's log that says why it ended."""
    if not log.is_file():
        return ""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    told = [line for line in lines if "failed to start daemon" in line or "level=fatal" in line]
    return ((told or lines or [""])[-1])[-300:]


def _pid_file() -> Path:
    return home() / "engine" / "dockerd.pid"


def _our_pid() -> int | None:
    """The process of the dockerd that `up` started, if it still is one."""
    try:
        pid = int(_pid_file().read_text(encoding="ascii"))
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except (OSError, ValueError):
        return None
    name, rest = state.partition("(")[2].rpartition(")")[0::2]
    return pid if name == "dockerd" and rest.split()[0] != "Z" else None
