"""What kind of machine this is: one's own, or a container, and what a container may do."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from edgekiln.calls import call

# capabilities(7): the bits that matter here.
_CAPABILITIES = {12: "net_admin", 18: "sys_chroot", 21: "sys_admin"}
_HINTS = {
    "/.dockerenv": "Docker",
    "/run/.containerenv": "Podman",
    "/var/run/secrets/kubernetes.io": "Kubernetes",
}
# What the path of a control group begins with where an engine made it.
_GROUPS = {"docker": "Docker", "kubepods": "Kubernetes", "libpod": "Podman", "lxc": "LXC"}


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What this process runs in. `hints` name the engine; empty on a machine of one's own."""

    hints: tuple[str, ...]
    capabilities: tuple[str, ...]
    root: bool
    mounts: bool
    namespaces: bool

    def told(self) -> str:
        """All of it in a line."""
        what = f"a container ({', '.join(self.hints)})" if self.hints else "a machine"
        who = "root" if self.root else "an ordinary user"
        had = f" with {', '.join(self.capabilities)}" if self.capabilities else ""
        mounts = "may mount" if self.mounts else "may not mount"
        names = "may make namespaces" if self.namespaces else "may not make namespaces"
        return f"{what}, as {who}{had}: {mounts}, {names}"


def kind() -> Kind:
    """Look at this process and what the kernel lets it do; costs two short programs."""
    return Kind(
        hints=container(),
        capabilities=tuple(_capabilities()),
        root=hasattr(os, "geteuid") and os.geteuid() == 0,
        mounts=_allowed("--mount", "mount", "-t", "tmpfs", "none", "/tmp"),
        namespaces=_allowed("--net", "true"),
    )


@lru_cache(maxsize=1)
def container() -> tuple[str, ...]:
    """What tells that this is a container, by the engine's name; empty where nothing does."""
    found = [name for path, name in _HINTS.items() if Path(path).exists()]
    with contextlib.suppress(OSError):
        for line in Path("/proc/1/cgroup").read_text().splitlines():
            path = line.split(":", 2)[-1]
            found += [name for mark, name in _GROUPS.items() if f"/{mark}" in path]
    if told := os.environ.get("container"):  # noqa: SIM112 (systemd's convention)
        found.append(told)
    return tuple(dict.fromkeys(found))


def _capabilities() -> Iterator[str]:
    """Those of this process in effect, of the ones that say what a box may do."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        mask = int(next(line for line in lines if line.startswith("CapEff:")).split()[1], 16)
        yield from (name for bit, name in _CAPABILITIES.items() if mask >> bit & 1)


def _allowed(*words: str) -> bool:
    """Whether a namespace can be made, by root's own right or within one of users."""
    own = call(["unshare", *words], timeout=10).returncode == 0
    return own or call(["unshare", "--user", "--map-root-user", *words], timeout=10).returncode == 0
