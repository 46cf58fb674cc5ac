"""What MLC compiles for, what comes out, and what only another machine can do.

Device names are MLC-LLM's own (support/auto_target.py), but for `windows`, which is its
windows:adreno_x86, and `cpu`. What Apache TVM 0.26 makes here was tried: objects for Android,
WebAssembly, Apple's ARM and Windows; it has no generator for Vulkan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Target:
    """A device to compile for.

    `static` libraries are linked into an app and carry a prefix. `elsewhere` says what the last
    step needs that no toolchain here holds, `there` what is to be done on the machine that has it.
    """

    title: str
    suffix: str
    static: bool = False
    android: bool = False
    elsewhere: str = ""
    there: str = ""


_APPLE = "Apple's compilers (xcrun), which come with Xcode and run on a Mac only"

TARGETS: Mapping[str, Target] = {
    "android": Target(title="Android, any OpenCL GPU", suffix=".tar", static=True, android=True),
    "android:adreno": Target(
        title="Android, Qualcomm Adreno", suffix=".tar", static=True, android=True
    ),
    "cuda": Target(title="NVIDIA GPUs, Linux", suffix=".so"),
    "vulkan": Target(title="Vulkan GPUs, Linux", suffix=".so"),
    "metal": Target(
        title="Macs with Apple silicon",
        suffix=".dylib",
        elsewhere=f"linking a .dylib needs {_APPLE}",
        there="link them on the Mac into a .dylib (xcrun clang -dynamiclib)",
    ),
    "iphone": Target(
        title="iPhone and iPad",
        suffix=".tar",
        static=True,
        elsewhere=f"the shaders' compiler and the app need {_APPLE}",
        there="name it in mlc-package-config.json on the Mac and run `mlc_llm package` there; its "
        "shaders are source, which the phone compiles when the model is loaded",
    ),
    "webgpu": Target(
        title="browsers, with WebLLM",
        suffix=".wasm",
        static=True,
        elsewhere="linking a .wasm needs Emscripten's emcc and the mlc_wasm_runtime.bc that "
        "mlc-llm's web/prep_emcc_deps.sh makes",
        there="link them where emcc is, with mlc_wasm_runtime.bc (TVM's emcc.create_tvmjs_wasm)",
    ),
    "windows": Target(
        title="Windows with an Adreno GPU",
        suffix=".dll",
        elsewhere="linking a .dll needs Microsoft's linker, which runs on Windows only",
        there="link them on Windows into a .dll, with TVM's import library (link /dll)",
    ),
    "cpu": Target(title="this machine's processor", suffix=".so"),
}
