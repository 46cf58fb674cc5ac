"""What a model can be compiled for: mlc_llm's words for it, and what this machine must have."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stagekit import BadInput


@dataclass(frozen=True, kw_only=True)
class Target:
    """One target: `device` as compile takes it, `codegen` that TVM must have, file's suffixes.

    `programs` are looked for on PATH, unless only objects are made; `elsewhere` says where a
    machine has them, `kernels` that they compile the kernels, so that objects want them, too.
    `phone` is a target that links the library under a prefix. The host's own table
    (backends/mlc_targets.py) says the same of programs and files to the user beforehand.
    """

    device: str
    codegen: str
    suffixes: tuple[str, ...]
    host: str = "auto"
    programs: tuple[str, ...] = ()
    elsewhere: str = ""
    kernels: bool = False
    phone: bool = False

    def check(self, name: str, file: str, codegens: Sequence[str]) -> None:
        """Raise BadInput for a target this image cannot compile for, or a file of another kind."""
        if self.codegen not in codegens:
            raise BadInput(
                f"the TVM of this toolchain makes no code for {self.codegen}, so none for {name}",
                remedy=f"it has {', '.join(codegens)}; upstream's wheels (toolchain mlc) have more",
            )
        suffix = Path(file).suffix
        if suffix not in (*self.suffixes, ".tar"):
            raise BadInput(f"{file}: for {name} it is {' or '.join(self.suffixes)}, or .tar")
        if suffix == ".tar" and not self.kernels:
            return
        missing = [p for p in self.programs if shutil.which(p) is None]
        if missing:
            raise BadInput(
                f"for {name} {' and '.join(missing)} must be there: {self.elsewhere}",
                remedy="compile there, or take the objects alone (.tar) and link them there"
                if not self.kernels
                else "compile there with the same mlc_llm",
            )


_CPU_LEVELS = {"avx2": "x86-64-v3", "": "x86-64-v2"}
# Beside a GPU the processor does little; "auto" would compile for the very one that is here.
_LINUX = f"{platform.machine()}-unknown-linux-gnu"
_XCODE = "Xcode's command line tools on a Mac have it"

TARGETS: Mapping[str, Target] = {
    "android": Target(device="android", codegen="opencl", suffixes=(".tar",), phone=True),
    "android:adreno": Target(
        device="android:adreno", codegen="opencl", suffixes=(".tar",), phone=True
    ),
    "iphone": Target(
        device="iphone",
        codegen="metal",
        suffixes=(".tar",),
        programs=("xcrun",),
        elsewhere=_XCODE,
        kernels=True,
        phone=True,
    ),
    "metal": Target(
        device="metal:generic",
        codegen="metal",
        suffixes=(".dylib",),
        host="arm64-apple-darwin",
        programs=("xcrun",),
        elsewhere=_XCODE,
    ),
    "cuda": Target(
        device="cuda",
        codegen="cuda",
        suffixes=(".so",),
        host=_LINUX,
        programs=("nvcc",),
        elsewhere="NVIDIA's CUDA toolkit has it",
        kernels=True,
    ),
    "vulkan": Target(device="vulkan:generic", codegen="vulkan", suffixes=(".so",), host=_LINUX),
    "windows": Target(
        device="vulkan:generic",
        codegen="vulkan",
        suffixes=(".dll",),
        host="x86_64-pc-windows-msvc",
        programs=("lld-link",),
        elsewhere="a Windows machine with Visual Studio's tools links it",
    ),
    "webgpu": Target(
        device="webgpu",
        codegen="webgpu",
        suffixes=(".wasm",),
        programs=("emcc",),
        elsewhere="Emscripten has it, and mlc-llm's web/prep_emcc_deps.sh its runtime",
    ),
    "cpu": Target(device="cpu", codegen="llvm", suffixes=(".so",)),
}


def device_words(name: str, target: Target, cuda_arch: str) -> list[str]:
    """compile's options for a target: the device, and the machine that hosts it."""
    device = target.device
    if name == "cpu":
        device = json.dumps(_cpu())
    elif name == "cuda":
        device = json.dumps(_cuda(cuda_arch))
    return ["--device", device, "--host", target.host]


def _cpu() -> dict[str, object]:
    """This kind of machine, not this machine: the library is kept and used on others, too."""
    machine = platform.machine()
    if machine != "x86_64":
        host = {"kind": "llvm", "mtriple": f"{machine}-linux-gnu"}
    else:
        try:
            flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
        except OSError:
            flags = []
        level = _CPU_LEVELS["avx2" if "avx2" in flags and "f16c" in flags else ""]
        host = {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": level}
    return {**host, "host": host}


def _cuda(arch: str) -> dict[str, object]:
    """A GPU that need not be here. The limits hold for every one since sm_50."""
    return {
        "kind": "cuda",
        "arch": arch,
        "max_threads_per_block": 1024,
        "max_shared_memory_per_block": 49152,
        "max_num_threads": 1024,
        "thread_warp_size": 32,
    }
