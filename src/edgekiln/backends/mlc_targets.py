"""What MLC compiles for, what comes out, and what only another machine can do.

Names are MLC-LLM's own devices (support/auto_target.py), but for `windows`, which is its Vulkan
with a Windows host, and `cpu`. What Apache TVM 0.26 makes was tried here: objects for Android,
WebAssembly, Apple's ARM and Windows; it has no generator for Vulkan, and a language model's kernels
for Metal crash it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Target:
    """A device to compile for.

    `static` libraries are linked into an app and carry a prefix. `program` is what the last step
    needs that no toolchain here holds, `whence` where that is had; `kernels` where it is needed
    for the kernels, so that not even objects can be made without it. `threads` are those of a
    block, by which MLC chooses kernels.
    """

    title: str
    suffix: str
    static: bool = False
    android: bool = False
    vulkan: bool = False
    metal: bool = False
    program: str = ""
    whence: str = ""
    kernels: bool = False
    threads: int = 256


_XCODE = "Xcode has it, on a Mac only"

TARGETS: Mapping[str, Target] = {
    "android": Target(
        title="Android with any OpenCL GPU", suffix=".tar", static=True, android=True
    ),
    "android:adreno": Target(
        title="Android with Qualcomm's Adreno",
        suffix=".tar",
        static=True,
        android=True,
        threads=512,
    ),
    "cuda": Target(
        title="NVIDIA's GPUs, Linux",
        suffix=".so",
        program="nvcc",
        whence="NVIDIA's CUDA toolkit has it (Apache TVM would take NVRTC with the package "
        "cuda-python, which the toolchain does not hold either)",
        kernels=True,
        threads=1024,
    ),
    "vulkan": Target(title="Vulkan GPUs, Linux", suffix=".so", vulkan=True),
    "metal": Target(
        title="Macs with Apple silicon",
        suffix=".dylib",
        metal=True,
        program="xcrun",
        whence=_XCODE,
    ),
    "iphone": Target(
        title="iPhone and iPad",
        suffix=".tar",
        static=True,
        metal=True,
        program="xcrun",
        whence=_XCODE,
        kernels=True,
    ),
    "webgpu": Target(
        title="browsers, with WebLLM",
        suffix=".wasm",
        program="emcc",
        whence="Emscripten has it; mlc-llm's web/prep_emcc_deps.sh makes the mlc_wasm_runtime.bc "
        "that is linked, too",
    ),
    "windows": Target(
        title="Windows with a Vulkan GPU",
        suffix=".dll",
        vulkan=True,
        program="lld-link",
        whence="a Windows machine with Visual Studio's tools links it",
    ),
    "cpu": Target(title="this kind of machine's processor", suffix=".so"),
}
