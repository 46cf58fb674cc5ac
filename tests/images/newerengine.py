"""A newer Docker than this machine's, in a root file system and namespaces of its own.

It is the distribution's next release's, made with mmdebstrap; its network, mounts and processes are
its own, so that it and the machine's engine know nothing of each other. All of it ends with the
process that holds it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edgekiln.engine import Engine, find_engine
from edgekiln.user.aptconf import apt_settings
from edgekiln.user.pipconf import pip_settings

_RELEASE, _OURS = "trixie", "bookworm"
_PACKAGES = "docker.io,docker-cli,docker-buildx,iptables,iproute2,ca-certificates"
_START = """set -eu
root=$1
ip link set lo up
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/run"
mkdir "$root/run/shared"
mount --bind "$2" "$root/run/shared"
exec chroot "$root" dockerd --host unix:///run/shared/docker.sock --group root
"""
_PATIENCE = 60.0


class UnavailableError(Exception):
    """Why such an engine cannot be had here."""


def root_of(folder: Path) -> Path:
    """Make the root file system. Raises UnavailableError where it cannot be made."""
    if os.geteuid() != 0:
        raise UnavailableError("a newer engine needs root for namespaces of its own")
    absent = [name for name in ("mmdebstrap", "unshare", "ip") if not shutil.which(name)]
    if absent:
        raise UnavailableError(f"a newer engine needs {', '.join(absent)}")
    root = folder / "root"
    pip = pip_settings()
    apt = apt_settings("debian", _OURS, pip.proxies, pip.cert)
    main = [line for line in apt.sources.splitlines() if line.split()[2] == _OURS]
    sources = "".join(f"{line.replace(f' {_OURS} ', f' {_RELEASE} ')}\n" for line in main[:1])
    options = [f"--aptopt={line}" for line in apt.conf().splitlines()]
    words = ["mmdebstrap", "--variant=minbase", "--mode=root", f"--include={_PACKAGES}", *options]
    command = [*words, _RELEASE, str(root), *(["-"] if sources else [])]
    done = subprocess.run(command, input=sources, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise UnavailableError(f"{_RELEASE} cannot be had here: {said}")
    settings = {"features": {"containerd-snapshotter": True}}
    (root / "etc" / "docker").mkdir(exist_ok=True)
    (root / "etc" / "docker" / "daemon.json").write_text(json.dumps(settings), encoding="utf-8")
    return root


@contextmanager
def running(folder: Path) -> Iterator[Engine]:
    """Make and start the engine; in the meantime it is the one that the environment names.

    Raises UnavailableError where there can be none.
    """
    root, socket, log = root_of(folder), folder / "socket", folder / "dockerd.log"
    socket.mkdir()
    command = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child"]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [*command, "sh", "-c", _START, "sh", str(root), str(socket)],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in _environment(root, socket / "docker.sock").items():
                patch.setenv(name, value)
            yield _answering(process, log)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        _remove(root)


def _answering(process: subprocess.Popen[bytes], log: Path) -> Engine:
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        engine = find_engine()
        if engine is not None:
            return engine
        time.sleep(0.2)
    said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["nothing"]
    raise UnavailableError(f"a newer dockerd does not start here: {said[-1]}")


def _environment(root: Path, socket: Path) -> dict[str, str]:
    """What leads to that engine and to its own command, which has buildx."""
    place = socket.parent.with_name("cli")
    place.mkdir()
    (place / "docker").symlink_to(root / "usr" / "bin" / "docker")
    plugins = [str(root / "usr" / "libexec" / "docker" / "cli-plugins")]
    (place / "config.json").write_text(json.dumps({"cliPluginsExtraDirs": plugins}))
    return {
        "DOCKER_HOST": f"unix://{socket}",
        "DOCKER_CONFIG": str(place),
        "PATH": f"{place}{os.pathsep}{os.environ['PATH']}",
    }


def _remove(root: Path) -> None:
    """Remove the root file system, unless something is mounted in it that is not ours to remove."""
    deadline = time.monotonic() + _PATIENCE
    while str(root) in Path("/proc/self/mounts").read_text(encoding="utf-8"):
        assert time.monotonic() < deadline, f"something is mounted below {root}"
        time.sleep(0.2)
    shutil.rmtree(root, ignore_errors=True)
