"""The GPUs of this machine, their driver, and which CUDA that can run."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass

from edgekiln import units
from edgekiln.boxes.release import version
from edgekiln.calls import call

_QUERY = "name,memory.total,memory.free,driver_version,compute_cap"


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """An NVIDIA GPU as nvidia-smi tells of it; memory in bytes."""

    name: str
    memory: int
    free: int
    driver: str
    compute: str

    def told(self) -> str:
        """It in a line."""
        sizes = f"{units.size(self.memory)}, {units.size(self.free)} free"
        return f"{self.name} ({sizes}), compute capability {self.compute or 'not told'}"


def free_memory() -> list[int]:
    """Free bytes of each GPU; nothing where there is none."""
    said = _smi("--query-gpu=memory.free", "--format=csv,noheader,nounits")
    return [int(line) << 20 for line in said.split() if line.isdigit()]


def gpus() -> list[Gpu]:
    """Every GPU; nothing where nvidia-smi is missing or finds none."""
    said = _smi(f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits")
    return [found for line in said.splitlines() if (found := parse(line))]


def _smi(*words: str) -> str:
    """What nvidia-smi says; "" where it is missing."""
    tool = shutil.which("nvidia-smi")
    return call([tool, *words], timeout=30).stdout if tool else ""


def parse(line: str) -> Gpu | None:
    """A line of nvidia-smi's table; None for one that is something else."""
    parts = [part.strip() for part in line.split(",")]
    if len(parts) != 5 or not (parts[1].isdigit() and parts[2].isdigit()):
        return None
    name, total, free, driver, compute = parts
    sizes = {"memory": int(total) << 20, "free": int(free) << 20}
    return Gpu(name=name, driver=driver, compute=compute, **sizes)


def cuda() -> str:
    """The newest CUDA that the driver can run, e.g. "12.4"; "" where nothing tells."""
    return newest_cuda(_smi())


def newest_cuda(said: str) -> str:
    """The same out of the words nvidia-smi prints."""
    found = re.search(r"CUDA Version:\s*(\d+\.\d+)", said)
    return found[1] if found else ""


def cuda_of(name: str) -> str:
    """The CUDA that a toolchain brings, by the wheels' suffix in its name: cu121 → 12.1."""
    found = re.search(r"cu(\d+)(\d)$", name)
    return f"{found[1]}.{found[2]}" if found else ""


def told_of(wanted: str) -> str:
    """What can be said of a CUDA that a toolchain wants, on this machine."""
    newest = cuda()
    if not newest:
        return "no driver here: on the processor only"
    if (version(newest) or (0, 0)) >= (version(wanted) or (0, 0)):
        return f"the driver runs it, up to {newest}"
    return f"the driver runs up to {newest} only: rent a box with a newer one"
