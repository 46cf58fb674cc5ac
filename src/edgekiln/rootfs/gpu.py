"""The machine's NVIDIA GPU inside an unpacked root: its device nodes, and the driver's libraries.

The libraries belong to the kernel's module, so they are never part of an image. Which ones a
program that computes needs is what libnvidia-container gives containers as `compute` and
`utility` (its nvc_info.c).
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from edgekiln.calls import call

if TYPE_CHECKING:
    from edgekiln.toolchain import Toolchain

_NAMES = re.compile(
    r"lib(cuda|cudadebugger|nvidia-(ml|cfg|ptxjitcompiler|nvvm|nvvm70|gpucomp|fatbinaryloader"
    r"|compiler|allocator|opencl|pkcs11|pkcs11-openssl3|api|sandboxutils))\.so\.[0-9.]+"
)
# Where every image of ours looks for libraries, whatever its linker's cache says.
INSIDE = "/usr/lib/x86_64-linux-gnu"
_NODES = ("nvidia[0-9]*", "nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset")
_WHEELS = ("nvidia-cuda-runtime", "nvidia-cublas")

# Run inside: the first call that needs the driver, the nodes and the libraries all together.
FIRST_CALL = """
import ctypes, json
cuda = ctypes.CDLL("libcuda.so.1")
version, count = ctypes.c_int(), ctypes.c_int()
codes = [cuda.cuInit(0), cuda.cuDriverGetVersion(ctypes.byref(version)),
         cuda.cuDeviceGetCount(ctypes.byref(count))]
print(json.dumps({"code": next(filter(None, codes), 0), "version": version.value,
                  "count": count.value}))
"""


def nodes(devices: Path = Path("/dev")) -> list[Path]:
    """The device nodes of the machine's GPUs; none where there is no GPU."""
    return sorted({path for name in _NODES for path in devices.glob(name)})


def libraries() -> list[tuple[Path, str]]:
    """Each of the driver's libraries and programs, and where it is to be seen inside."""
    return list(_found()) if nodes() else []


def uses_cuda(toolchain: Toolchain) -> bool:
    """Whether the toolchain's own wheels hold a CUDA runtime."""
    return any(wheel.name.startswith(_WHEELS) for wheel in toolchain.lock.wheels)


@lru_cache(maxsize=1)
def _found() -> tuple[tuple[Path, str], ...]:
    done = call([shutil.which("ldconfig") or "/sbin/ldconfig", "-p"])
    inside = dict(placed(listed(done.stdout)))
    tool = shutil.which("nvidia-smi")
    if tool:
        inside["/usr/bin/nvidia-smi"] = Path(tool).resolve()
    return tuple((path, target) for target, path in inside.items())


def listed(text: str) -> list[Path]:
    """The driver's libraries of this machine's kind, out of what `ldconfig -p` prints."""
    found = []
    for line in text.splitlines():
        name, _, rest = line.strip().partition(" (")
        kind, _, path = rest.partition(") => ")
        if _NAMES.fullmatch(name) and "x86-64" in kind:
            found.append(Path(path))
    return found


def placed(paths: list[Path]) -> Iterator[tuple[str, Path]]:
    """(place inside, file): by the name it is linked by and by its own, which others open."""
    for path in paths:
        file = path.resolve()
        if file.is_file():
            yield f"{INSIDE}/{path.name}", file
            yield f"{INSIDE}/{file.name}", file
