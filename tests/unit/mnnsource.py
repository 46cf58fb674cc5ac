"""A stand-in for MNN's sources and for an NDK, small enough to be built in a second.

Only the names are MNN's: the same CMake options, targets and places, so that cmake, ninja, the
compiler and the ELF files are real. The stand-in NDK is this machine's cross compiler, which
writes Android's note by hand as the NDK's crt files do.
"""

from __future__ import annotations

import shutil
import subprocess
import textwrap
from pathlib import Path

CROSS = "aarch64-linux-gnu-gcc"
REVISION = "27.2.12479018"

_CMAKE = """
cmake_minimum_required(VERSION 3.6)
project(MNN C)
foreach(wanted MNN_BUILD_LLM MNN_BUILD_LLM_OMNI MNN_LOW_MEMORY MNN_SUPPORT_TRANSFORMER_FUSE)
  if(NOT ${wanted})
    message(FATAL_ERROR "${wanted} is off")
  endif()
endforeach()
option(MNN_SEP_BUILD "" ON)
if(MNN_OPENCL)
  add_definitions(-DOPENCL)
endif()
if(MNN_QNN)
  if(NOT EXISTS "${QNN_SDK_ROOT}/include/QNN/QnnInterface.h")
    message(FATAL_ERROR "no QnnInterface.h below ${QNN_SDK_ROOT}")
  endif()
  add_definitions(-DQNN)
endif()
add_library(MNN SHARED mnn.c)
if(MNN_SEP_BUILD)
  add_library(llm SHARED llm.c)
  add_library(MNN_Express SHARED express.c)
  set_target_properties(MNN_Express PROPERTIES LIBRARY_OUTPUT_DIRECTORY express)
  target_link_libraries(llm MNN MNN_Express)
else()
  target_sources(MNN PRIVATE llm.c)
endif()
set(programs llm_demo llm_bench)
if(MNN_BUILD_CONVERTER)
  list(APPEND programs MNNConvert)
endif()
if(MNN_QNN_CONVERT_MODE)
  list(APPEND programs generateIO compilefornpu MNN2QNNModel)
endif()
foreach(program ${programs})
  add_executable(${program} main.c)
  target_link_libraries(${program} MNN)
endforeach()
"""

_SOURCES = {
    "mnn.c": """
        const char *mnn_built_from(void) { return __FILE__; }
        #ifdef OPENCL
        const char *mnn_opencl(void) { return "libOpenCL.so"; }
        #endif
        #ifdef QNN
        const char *mnn_qnn(void) { return "libQnnHtp.so"; }
        #endif
    """,
    "llm.c": """
        void *create(const char *config) __asm__("_ZN3MNN11Transformer3Llm9createLLMEPKc");
        void *create(const char *config) { return (void *)config; }
    """,
    "express.c": "int mnn_express(void) { return 1; }\n",
    "main.c": "int main(void) { return 0; }\n",
    "include/MNN/MNNDefine.h": """
        #define MNN_VERSION_MAJOR 3
        #define MNN_VERSION_MINOR 6
        #define MNN_VERSION_PATCH 1
    """,
    "transformers/llm/export/npu/generate_llm_qnn.py": "# its place\n",
    "source/backend/qnn/npu_convert.py": "# its place\n",
    "docs/left_out.md": "not built\n",
}

# The note of .note.android.ident: owner "Android", kind 1, API level, names of 64 bytes each.
_NOTE = """
.section .note.android.ident, "a", %note
.balign 4
.int 8, 132, 1
.asciz "Android"
.int {api}
1: .asciz "r27c"
.skip 64 - (. - 1b), 0
2: .asciz "{build}"
.skip 64 - (. - 2b), 0
"""

_TOOLCHAIN = """
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER {compiler})
set(CMAKE_C_STANDARD_LIBRARIES "{note}")
"""


def source(place: Path) -> Path:
    """Write the stand-in sources; gives their folder."""
    files = {"CMakeLists.txt": _CMAKE, **_SOURCES}
    for name, text in files.items():
        file = place / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text), encoding="utf-8")
    return place


def ndk(place: Path, *, note: bool = True, build: str = REVISION.rpartition(".")[2]) -> Path:
    """Write a stand-in NDK; gives its folder. Without `note` what it links is not Android's."""
    folder = place / "build" / "cmake"
    folder.mkdir(parents=True)
    (place / "source.properties").write_text(f"Pkg.Revision = {REVISION}\n", encoding="utf-8")
    ident = place / "ident.S"
    ident.write_text(_NOTE.format(api=28, build=build) if note else "\n", encoding="utf-8")
    words = _TOOLCHAIN.format(compiler=shutil.which(CROSS), note=_assembled(ident))
    (folder / "android.toolchain.cmake").write_text(words, encoding="utf-8")
    return place


def _assembled(file: Path) -> Path:
    made = file.with_suffix(".o")
    subprocess.run([CROSS, "-c", str(file), "-o", str(made)], check=True)
    return made


def missing() -> str:
    """What a build of these would lack on this machine, "" where it has all."""
    tools = ("cmake", "ninja", "gcc", CROSS)
    return ", ".join(tool for tool in tools if shutil.which(tool) is None)
