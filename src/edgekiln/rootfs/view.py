"""What a stage sees inside an unpacked root: what of this machine lies where, as in a container."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgekiln.executors.base import StageRun
    from edgekiln.toolchain import Toolchain

CONFINE = "/kiln/confine.py"
SCRATCH = "/scratch"
# What a container has in /dev: no disks, no terminals of others.
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_LINKS = {"fd": "fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"}
_NETWORK = ("/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf")


@dataclass(frozen=True, kw_only=True)
class Bind:
    """`source` of this machine, seen at `target` inside; `writable`: folders of ours, devices."""

    source: Path
    target: str
    writable: bool = False


def stage_binds(toolchain: Toolchain, run: StageRun, params: Path) -> list[Bind]:
    """All that a stage sees beside the root itself; its own folders are made in `run.work`.

    A folder of links that lead out of it is given as files of its own, as to containers.
    """
    from edgekiln.executors.views import places
    from edgekiln.images import KITS

    found = [
        Bind(source=source, target=target)
        for name, path in run.inputs.items()
        for target, source in places(f"/in/{name}", path, run.work / "skeletons" / name)
    ]
    found += [Bind(source=kit.path, target=f"{KITS}/{kit.family}") for kit in toolchain.kits]
    found.append(Bind(source=run.scripts, target="/kiln/scripts"))
    found.append(Bind(source=params, target="/kiln/params.json"))
    found.append(Bind(source=run.work / "out", target="/out", writable=True))
    found += network_binds() if run.network else []
    return [*common_binds(run.work), *found]


def common_binds(work: Path) -> list[Bind]:
    """What every program sees: a scratch folder, an empty /tmp, devices and the kernel's files."""
    from edgekiln.rootfs import confine, gpu

    devices = _devices(work / "dev")
    scratch, tmp = work / "scratch", work / "tmp"
    for folder in (scratch, tmp):
        folder.mkdir(exist_ok=True)
    return [
        Bind(source=Path("/proc"), target="/proc"),
        Bind(source=Path("/sys"), target="/sys"),
        Bind(source=devices, target="/dev"),
        *(Bind(source=path, target=str(path), writable=True) for path in (*_nodes(), *gpu.nodes())),
        *(Bind(source=path, target=target) for path, target in gpu.libraries()),
        Bind(source=Path(confine.__file__), target=CONFINE),
        Bind(source=devices / "shm", target="/dev/shm", writable=True),
        Bind(source=tmp, target="/tmp"),
        Bind(source=scratch, target=SCRATCH, writable=True),
    ]


def network_binds() -> Iterator[Bind]:
    """This machine's own ways to find other machines, for a stage that may go out."""
    for path in map(Path, _NETWORK):
        if path.is_file():
            yield Bind(source=path.resolve(), target=str(path))


def _nodes() -> list[Path]:
    return [path for name in DEVICES if (path := Path("/dev", name)).exists()]


def _devices(folder: Path) -> Path:
    """A /dev of a stage's own: the usual links, and shared memory nobody else sees."""
    (folder / "shm").mkdir(parents=True)
    for name, target in _LINKS.items():
        (folder / name).symlink_to(f"/proc/self/{target}")
    return folder
