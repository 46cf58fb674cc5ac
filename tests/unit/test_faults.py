"""Known faults: each is recognised in the words of the tool itself, and ordinary logs hold none.

The messages are those of the threads that are named beside them, cut to the lines that matter;
folders of persons are called user.
"""

# ruff: noqa: E501 - messages are as wide as the tools write them

from __future__ import annotations

import re
import shlex
import string
import time
from pathlib import Path

import pytest

from edgekiln.commands.files import explain as explain_log
from edgekiln.errors import ImageError, KilnError, OutOfMemoryError, StageError, UsageError
from edgekiln.faults import explain, explain_all, explain_text, faults, with_fault
from edgekiln.pipeline import Pipeline
from tests.unit.kit import Bench, Heard, stage
from tests.unit.test_docs import known, parse

# Name of the fault, where the message was seen, the message.
MESSAGES = [
    (
        "no-procfs",
        "ONNX Runtime 1.31.1 in a chroot without /proc",
        "[ONNXRuntimeError] : 1 : FAIL : Secure opened-file canonicalization requires procfs at "
        "/proc/self/fd/8. Ensure /proc is mounted in the sandbox or chroot. Error: No such file or "
        "directory",
    ),
    (
        "model-lib-underscore",
        "mlc-ai/mlc-llm#3256",
        r"""ValidationError:
    model_lib qwen3_q4f16_1_ requested in dist\bundle\mlc-app-config.json is not found in dist\lib\libmodel_android.a
    current available model_libs in dist/lib/libmodel_android.a: []""",
    ),
    (
        "model-libs-none",
        "mlc-ai/mlc-llm#2597",
        """[2024-06-20 09:16:49] INFO package.py:252: ValidationError:
        model_lib qwen2_0.5b_q4f16_1 requested in dist/bundle/mlc-app-config.json is not found in dist/lib/libmodel_android.a
        specifically the model_lib for /home/user/mlc-llm/android/MLCChat/dist/libs/Qwen2-0.5B-Instruct-q4f16_1-android.tar.
        current available model_libs in dist/lib/libmodel_android.a: []""",
    ),
    (
        "model-lib-name",
        "the MLC-on-Android write-up",
        r"""[2025-11-11 18:13:28] INFO package.py:252: ValidationError:
        model_lib deepseek_r1_qwen1p5b_q4f16_1 requested in dist\bundle\mlc-app-config.json is not found in dist\lib\libmodel_android.a
        specifically the model_lib for dist/lib/deepseek-r1-qwen1p5b-android.tar.
        current available model_libs in dist\lib\libmodel_android.a: ['qwen3_q0f16', 'phi3_q4f16_0', 'qwen2_q4f16_1']
        This can happen when we manually specified model_lib_path_for_prepare_libs in mlc-package-config.json
        Consider remove model_lib_path_for_prepare_libs (so library can be jitted)or check the compile command
[2025-11-11 18:13:28] INFO package.py:258: Validation failed""",
    ),
    (
        "model-lib-path",
        "mlc-ai/mlc-llm python/mlc_llm/interface/package.py",
        "RuntimeError: Cannot find file dist/lib/qwen2.tar as an android model library",
    ),
    (
        "jit-readonly",
        "mlc-ai/mlc-llm python/mlc_llm/interface/jit.py",
        "RuntimeError: No cached model lib found, and JIT is disabled by MLC_JIT_POLICY=READONLY",
    ),
    (
        "local-model-not-bundled",
        "mlc-ai/mlc-llm python/mlc_llm/interface/package.py",
        """ValueError: Model "dist/Qwen2" in "model_list" is a local path.Please set '"bundle_weight": true' in the entry of model "dist/Qwen2".""",
    ),
    (
        "weights-not-found",
        "mlc-ai/mlc-llm python/mlc_llm/interface/package.py",
        'ValueError: Bundle weight is set for model "dist/Qwen2". However, model weights are notfound under the directory "dist/Qwen2". ',
    ),
    (
        "llvm-missing",
        "the Windows journey",
        "ValueError: Cannot find global function tvm.codegen.llvm.GetDefaultTargetTriple",
    ),
    (
        "llvm-not-enabled",
        "apache/tvm#346",
        "[15:44:03] src/codegen/codegen.cc:27: Check failed: bf != nullptr Target llvm is not enabled",
    ),
    (
        "mlc-undefined-symbol",
        "mlc-ai/mlc-llm#3266",
        "OSError: /home/user/mlc-llm/python/mlc_llm/libmlc_llm_module.so: undefined symbol: _ZN3tvm7runtime10ModuleNode10SaveToFileERKNS0_6StringES4_",
    ),
    (
        "libtvm-missing",
        "mlc-ai/mlc-llm#3508",
        "OSError: libtvm.so: cannot open shared object file: No such file or directory",
    ),
    (
        "tvm-without-relax",
        "mlc-ai/mlc-llm#212",
        "ImportError: cannot import name 'relax' from 'tvm' (/home/user/anaconda3/envs/qnn-raj/lib/python3.8/site-packages/tvm/__init__.py)",
    ),
    (
        "conv-template",
        "mlc-ai/mlc-llm#347",
        "[20:31:27] ~/mlc-llm/cpp/conv_templates.cc:156: Unknown conversation template: dolly",
    ),
    (
        "metal-tools",
        "the old build.py page",
        """Compilation error:
xcrun: error: unable to find utility "metal", not a developer tool or in PATH
xcrun: error: unable to find utility "metallib", not a developer tool or in PATH""",
    ),
    (
        "wasm-runtime",
        "mlc-ai/mlc-llm python/mlc_llm/support/auto_target.py",
        "RuntimeError: Cannot find library: mlc_wasm_runtime.bc",
    ),
    (
        "tvm-tensor-units",
        "mlc_llm compile on apache-tvm 0.26.0",
        """[2026-11-21 14:00:01] INFO pipeline.py:52: Running TVM Dlight low-level optimizations
!!!!!!! Segfault encountered !!!!!!!
  File "./signal/../sysdeps/unix/sysv/linux/x86_64/libc_sigaction.c", line 0, in 0x00007fd465c5a04f
  File "<unknown>", line 0, in tvm::ffi::ToJSONGraph(tvm::ffi::Any const&, tvm::ffi::Any const&)
  File "<unknown>", line 0, in tvm::s_tir::Tensorize(tvm::s_tir::ScheduleState, tvm::tirx::StmtSRef const&, tvm::tirx::TensorIntrin const&, bool)""",
    ),
    (
        "cmake-4",
        "MCPI-Revival/Ninecraft#29",
        """CMake Error at CMakeLists.txt:1 (cmake_minimum_required):
  Compatibility with CMake < 3.5 has been removed from CMake.""",
    ),
    (
        "submodules",
        "mlc-ai/tokenizers-cpp#43",
        """CMake Error at ../CMakeLists.txt:89 (add_subdirectory):
  The source directory

    /home/user/tokenizers-cpp/msgpack

  does not contain a CMakeLists.txt file.""",
    ),
    (
        "submodule-tvm",
        "mlc-ai/mlc-llm#255",
        """CMake Error at CMakeLists.txt:54 (tvm_file_glob):
  Unknown CMake command "tvm_file_glob".""",
    ),
    (
        "source-dir",
        "mlc-ai/mlc-llm#2600",
        '"path/to/mlc-llm/android/android/mlc4j" does not exist',
    ),
    (
        "ndk-not-set",
        "mlc-ai/mlc-llm android/mlc4j/prepare_libs.py",
        'ValueError: Environment variable "ANDROID_NDK" is required but not found.Please follow https://llm.mlc.ai/docs/deploy/android.html to properly specify "ANDROID_NDK".',
    ),
    (
        "ndk-compiler-not-set",
        "mlc-ai/mlc-llm#1312",
        "RuntimeError: Require environment variable TVM_NDK_CC to be the NDK standalone compiler",
    ),
    (
        "ndk-tools",
        "mlc-ai/mlc-llm#1947",
        "FileNotFoundError: [Errno 2] No such file or directory: 'Library/Android/sdk/ndk/26.2.11394342/toolchains/llvm/prebuilt/darwin-x86_64/bin/llvm-ar'",
    ),
    (
        # Python's own words where TVM_NDK_CC names a compiler of another system's NDK.
        "ndk-tools",
        "mlc-ai/mlc-llm#1237",
        "FileNotFoundError: [Errno 2] No such file or directory: '/opt/ndk/toolchains/llvm/prebuilt/darwin-x86_64/bin/aarch64-linux-android24-clang'",
    ),
    (
        "nm-of-the-machine",
        "mlc-ai/mlc-llm#2317",
        "nm: invalid argument to -U/--unicode: dist/lib/libmodel_android.a",
    ),
    (
        "ndk-without-c++17",
        "mlc-ai/mlc-llm#2600",
        "/home/user/mlc-llm/android/mlc4j/../../3rdparty/tvm/include/tvm/runtime/object.h:574:67: error: no template named 'is_base_of_v' in namespace 'std'; did you mean 'is_base_of'?",
    ),
    (
        "opencl-namespace",
        "mlc-ai/mlc-llm#3157",
        "mlc-llm/3rdparty/tvm/src/runtime/relax_vm/attn_utils.h:712:19: error: no member named 'cl' in namespace 'tvm::runtime'",
    ),
    (
        "posix-memalign",
        "the Windows journey",
        "error: there are no arguments to 'posix_memalign' that depend on a template parameter",
    ),
    (
        # Python's own words where a program is missing, for the one that prepare_libs.py calls.
        "rustup-missing",
        "mlc-ai/mlc-llm android/mlc4j/prepare_libs.py",
        "FileNotFoundError: [Errno 2] No such file or directory: 'rustup'",
    ),
    (
        "rust-no-default",
        "Morganamilo/paru#1134",
        "error: rustup could not choose a version of cargo to run, because one wasn't specified explicitly, and no default is configured.",
    ),
    (
        "rust-target",
        "mlc-ai/tokenizers-cpp#56",
        """error[E0463]: can't find crate for `core`
  |
  = note: the `aarch64-linux-android` target may not be installed
  = help: consider downloading the target with `rustup target add aarch64-linux-android`""",
    ),
    (
        "rust-crate",
        "mlc-ai/mlc-llm#1722",
        "error[E0463]: can't find crate for `compiler_builtins`",
    ),
    (
        "crates-network",
        "ClickHouse/ClickHouse#77682",
        "warning: spurious network error (3 tries remaining): [6] Couldn't resolve host name (Could not resolve host: index.crates.io)",
    ),
    (
        "gradle-java",
        "ikarus23/MifareClassicTool#427",
        "Android Gradle plugin requires Java 17 to run. You are currently using Java 11.",
    ),
    (
        "gradle-class-file",
        "OpenLiberty/start.openliberty.io#106",
        """> startup failed:
  General error during semantic analysis: Unsupported class file major version 61""",
    ),
    (
        "sdk-licences",
        "javiersantos/android-ci#10",
        """* What went wrong:
A problem occurred configuring project ':app'.
> Failed to install the following Android SDK packages as some licences have not been accepted.
     platforms;android-28 Android SDK Platform 28""",
    ),
    (
        "sdk-location",
        "love2d/love-android#266",
        "SDK location not found. Define a valid SDK location with an ANDROID_HOME environment variable",
    ),
    (
        "sdk-platform",
        "googlesamples/android-testdpc#65",
        "> Failed to find Platform SDK with path: platforms;android-P",
    ),
    (
        "gradle-offline",
        "android/uamp#419",
        "> No cached version of com.android.tools.build:gradle:4.1.1 available for offline mode.",
    ),
    (
        "gradle-download",
        "flutter/flutter#35437",
        """      > Could not resolve com.android.tools.build:gradle:3.2.1.
         > Could not get resource 'https://dl.google.com/dl/android/maven2/com/android/tools/build/gradle/3.2.1/gradle-3.2.1.pom'.
            > Could not HEAD 'https://dl.google.com/dl/android/maven2/com/android/tools/build/gradle/3.2.1/gradle-3.2.1.pom'.
               > Connect to 127.0.0.1:1080 [/127.0.0.1] failed: Connection refused (Connection refused)""",
    ),
    (
        "gradle-host",
        "tronprotocol/documentation#301",
        'Exception in thread "main" java.net.UnknownHostException: services.gradle.org',
    ),
    (
        "tvm4j-missing",
        "mlc-ai/mlc-llm#2569",
        "package org.apache.tvm does not exist\nimport org.apache.tvm.Device;",
    ),
    (
        "keystore-password",
        "pwa-builder/PWABuilder#3189",
        """Failed to load signer "signer #1"
java.io.IOException: Keystore was tampered with, or password was incorrect""",
    ),
    (
        "key-password",
        "r0adkll/sign-android-release#2",
        'java.io.IOException: Failed to obtain key with alias "***" from android/app/build/outputs/apk/release/signingKey.jks. Wrong password?',
    ),
    (
        "gradle-killed",
        "faberNovel/docker-android#97",
        "org.gradle.launcher.daemon.client.DaemonDisappearedException: Gradle build daemon disappeared unexpectedly (it may have been killed or may have crashed)",
    ),
    (
        "aimet-undefined-symbol",
        "qualcomm/aimet#1878",
        "ImportError: /usr/local/lib/python3.8/site-packages/aimet_common/AimetTensorQuantizer.cpython-38-x86_64-linux-gnu.so: undefined symbol: _ZNK2at6Tensor8data_ptrIfEEPT_v",
    ),
    (
        "aimet-torch-index",
        "qualcomm/aimet#2138",
        "ERROR: No matching distribution found for torch==1.9.1+cu111",
    ),
    (
        "cuda-library",
        "qualcomm/aimet#3950",
        "libcublas.so.12: cannot open shared object file: No such file or directory",
    ),
    (
        "glibc",
        "qualcomm/aimet#3163",
        "ImportError: /lib/x86_64-linux-gnu/libc.so.6: version `GLIBC_2.32' not found (required by /opt/conda/envs/work_v2.0/lib/python3.10/site-packages/aimet_common/libpymo.cpython-310-x86_64-linux-gnu.so)",
    ),
    (
        "cuda-memory",
        "qualcomm/aimet#4073",
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 16.00 MiB. GPU 0 has a total capacity of 93.10 GiB of which 5.31 MiB is free.",
    ),
    (
        "qnn-libc++",
        "pytorch/executorch#5120",
        "[ERROR] [Qnn ExecuTorch]: Cannot Open QNN library libQnnHtp.so, with error: libc++.so.1: cannot open shared object file: No such file or directory",
    ),
    (
        "qnn-python",
        "qualcomm/ai-hub-models#181",
        "ImportError: cannot import name 'libPyIrGraph38' from partially initialized module 'qti.aisw.converters.common' (most likely due to a circular import) (/opt/qcom/aistack/qairt/2.28.2.241116/lib/python/qti/aisw/converters/common/__init__.py)",
    ),
    (
        "qnn-too-large",
        "qualcomm/ai-hub-models#129",
        "0.0ms [ ERROR ] fa_alloc.cc:3866:ERROR:graph requires estimated allocation of 2347229 KB, limit is 2097152 KB",
    ),
    (
        "qnn-stub",
        "pytorch/executorch#8762",
        "[ERROR] [Qnn ExecuTorch]:  <E> Stub lib id mismatch: expected (v2.28.0.241029232508_102474), detected (v2.25.17.241017130936_18858)",
    ),
    (
        "pages-16k",
        "trustdecision/trustdevice-android#38",
        'libtddevicefingerprint.so" program alignment (4096) cannot be smaller than system page size (16384)',
    ),
    (
        "mnn-npu-postreat",
        "alibaba/MNN#4212",
        """Step2: Seperate Model
model: /home/user/MNN-master/model/llm.mnn
Segmentation fault (core dumped)
Cost:  0.39046382904052734  s
Step3: Compile to QNN
FileNotFoundError: [Errno 2] No such file or directory: 'npu_postreat.json'""",
    ),
    (
        "mnn-npu-make",
        "alibaba/MNN#4103",
        "RuntimeError: Failed to compile model library for target: x86_64-linux-clang",
    ),
    (
        "mnn-npu-operator",
        "alibaba/MNN#4475",
        "MNN_QNN: Not registered type 305, /layers.0/self_attn/FusedLinearAttention.",
    ),
    (
        "mnnconvert-missing",
        "alibaba/MNN#2974",
        "AttributeError: 'NoneType' object has no attribute 'mnnconvert'",
    ),
    (
        "numpy-2",
        "wangzhaode/llm-export#57",
        """A module that was compiled using NumPy 1.x cannot be run in
NumPy 2.1.0 as it may crash.""",
    ),
    (
        "compiler-killed",
        "hoytech/strfry#41",
        "g++: fatal error: Killed signal terminated program cc1plus",
    ),
    (
        "oom-killer",
        "cgeo/cgeo#5963",
        "[  487.012644] emulator64-x86 invoked oom-killer: gfp_mask=0x2400040(GFP_NOFS), order=0, oom_score_adj=0",
    ),
    (
        "oom-killed",
        "ggml-org/llama.cpp#76",
        "Out of memory: Killed process 930269 (python3) total-vm:15643332kB, anon-rss:13201980kB, file-rss:4kB, shmem-rss:0kB, UID:0 pgtables:26524kB oom_score_adj:0",
    ),
    (
        "python-memory",
        "adriancable/qwen3.c#1",
        """    b = struct.pack(f"{len(d)}b", *d)
MemoryError""",
    ),
    (
        "disk-full",
        "modelscope/ms-swift#3551",
        "[rank4]: OSError: [Errno 28] No space left on device",
    ),
    (
        "http2",
        "curl/curl#16732",
        "error: RPC failed; curl 92 HTTP/2 stream 5 was not closed cleanly: CANCEL (err 8)",
    ),
    (
        "base-image-gone",
        "NVIDIA/nvidia-docker#1768",
        "Error: error creating build container: initializing source docker://nvidia/cuda:10.2-cudnn7-devel-ubuntu18.04: reading manifest 10.2-cudnn7-devel-ubuntu18.04 in docker.io/nvidia/cuda: manifest unknown: manifest unknown",
    ),
    (
        "base-image-gone",
        "NVIDIA/nvidia-docker#1735",
        "docker: Error response from daemon: manifest for nvidia/cuda:11.0-base-ubuntu20.04 not found: manifest unknown: manifest unknown.",
    ),
    (
        "killed",
        "lllyasviel/Fooocus#1117",
        "model_type EPS\nadm 2816\nKilled",
    ),
    (
        "killed",
        "henrywoo/pyllama#62",
        "[1]    16261 killed     python3 -m llama.convert_llama --ckpt_dir $CKPT_DIR --tokenizer_path   65B",
    ),
    (
        "crashed",
        "alibaba/MNN#4212",
        "Step1: Make IO\nSegmentation fault (core dumped)\n\nCost:  0.4871361255645752  s",
    ),
    (
        "mlc-compile",
        "mlc-ai/mlc-llm#3417",
        "RuntimeError: Cannot find compilation output, compilation failed",
    ),
]

# What the same tools say when all is well, or is a warning only.
ORDINARY = [
    # The MLC-on-Android write-up: a compile that went well.
    """[2025-11-11 17:56:22] INFO auto_config.py:154: Found model type: qwen2. Use `--model-type` to override.
[2025-11-11 17:56:22] WARNING auto_target.py:378: --system-lib-prefix is automatically picked from the filename, qwen2_q4f16_1_, this allows us to use the filename as the model_lib in android/iOS builds. Please avoid renaming the .tar file when uploading the prebuilt.
[2025-11-11 17:56:35] INFO model_metadata.py:94: Total memory usage without KV cache: 1039.00 MB (Parameters: 953.50 MB. Temporary buffer: 85.50 MB)
[2025-11-11 17:56:35] INFO compile.py:208: Generated: /home/user/deepseek-r1-qwen1p5b-android.tar""",
    # mlc-ai/mlc-llm#2828: a package whose libraries fit.
    r"""[2024-08-25 08:32:41] INFO package.py:212: Validating the library dist\lib\libmodel_android.a
[2024-08-25 08:32:41] INFO package.py:213: List of available model libs packaged: ['phi3_q4f16_1_5a9dfbccbb0147e0e063927839645159', 'qwen2_q4f16_1_2e221f430380225c03990ad24c3d030e'], if we have '-' in the model_lib string, it will be turned into '_'
[2024-08-25 08:32:41] INFO package.py:256: Validation pass
info: downloading component 'rust-std' for 'aarch64-linux-android'""",
    # mlc-ai/mlc-llm#3223: CMake 3.31 warns of what CMake 4 refuses.
    """CMake Deprecation Warning at /home/user/Library/Android/sdk/ndk/27.0.11718014/build/cmake/android-legacy.toolchain.cmake:35 (cmake_minimum_required):
  Compatibility with CMake < 3.10 will be removed from a future version of
  CMake.
-- Building for Android
-- Didn't find the path to CCACHE, disabling ccache""",
    # mlc-ai/mlc-llm#1302: the policy is told in every run.
    """[2024-06-05 18:01:16] INFO jit.py:43: MLC_JIT_POLICY = ON. Can be one of: ON, OFF, REDO, READONLY
info: component 'rust-std' for target 'aarch64-linux-android' is up to date""",
    # alibaba/MNN#4436 and #4475: an export, and a look for a file that need not be there.
    """✅ Done load pretrained model /home/user/Qwen3-VL-2B-Instruct     [116.17 s]
✅ Done convert onnx model to ./model/llm.mnn                           [ 1.27 s]
[Warning]: No QnnDevice_getPlatformInfo APILoad Cache file error.
Can't open file:/sys/devices/system/cpu/cpufreq/schedutil/affected_cpus""",
    # mlc-ai/mlc-llm#2600's build before its error: warnings are none.
    """/mlc-llm/android/mlc4j/../../3rdparty/tvm/include/tvm/runtime/container/array.h:794:8: warning: constexpr if is a C++17 extension [-Wc++17-extensions]
    if constexpr (is_same_output_type) {""",
    # Ordinary words that stand near some of the messages.
    "FileNotFoundError: [Errno 2] No such file or directory: 'config.json'",
    "ImportError: libGL.so.1: cannot open shared object file: No such file or directory",
    "Killed the old container",
]


def written(tmp_path: Path, text: str) -> Path:
    log = tmp_path / "stage.log"
    log.write_text(text, encoding="utf-8")
    return log


@pytest.mark.parametrize(("name", "thread", "text"), MESSAGES, ids=lambda v: v.split("\n")[0][:40])
def test_a_real_message_is_explained(tmp_path: Path, name: str, thread: str, text: str) -> None:
    before = "Building CXX object a.cc.o\n" * 50
    found = explain(written(tmp_path, f"{before}{text}\n{before}"))
    assert found is not None and found.fault.name == name
    assert found.line in " ".join(text.split("\n")) and found.line
    for words in (found.what, found.why, found.do):
        assert words and "\n" not in words and "{" not in words


def test_every_fault_has_a_real_message() -> None:
    assert {name for name, _, _ in MESSAGES} == {fault.name for fault in faults()}


@pytest.mark.parametrize("text", ORDINARY, ids=range(len(ORDINARY)))
def test_ordinary_logs_hold_none(tmp_path: Path, text: str) -> None:
    assert explain_all(written(tmp_path, text)) == []


def test_a_log_that_is_not_there_holds_none(tmp_path: Path) -> None:
    assert explain(tmp_path / "nowhere.log") is None


@pytest.mark.parametrize("fault", faults(), ids=lambda fault: fault.name)
def test_texts_name_only_what_the_log_says(fault: object) -> None:
    given = {n for p in (fault.find, *fault.also) for n in p.groupindex}  # type: ignore[attr-defined]
    texts = (fault.what, fault.why, fault.do)  # type: ignore[attr-defined]
    used = {name for text in texts for _, name, _, _ in string.Formatter().parse(text) if name}
    assert used <= given
    assert all(texts) and fault.seen  # type: ignore[attr-defined]


def test_names_are_used_once() -> None:
    names = [fault.name for fault in faults()]
    assert len(names) == len(set(names))


def test_what_the_log_says_is_filled_in() -> None:
    by_name = {name: text for name, _, text in MESSAGES}
    found = explain_text(by_name["model-lib-name"])
    assert found is not None
    assert "'qwen2_q4f16_1'" in found.why and "deepseek_r1_qwen1p5b_q4f16_1" in found.what
    found = explain_text(by_name["model-lib-underscore"])
    assert found is not None and "as qwen3_q4f16_1;" in found.do
    found = explain_text(by_name["qnn-too-large"])
    assert found is not None and "2347229 KB" in found.why


def test_colours_and_bars_do_not_hide_a_message() -> None:
    coloured = "\x1b[31mRuntimeError:\x1b[0m JIT is disabled by MLC_JIT_POLICY=\x1b[1mOFF\x1b[0m"
    assert explain_text(coloured) is not None
    bar = "\r".join(f"{n}%" for n in range(101)) + "\rMemoryError: it was too much"
    found = explain_text(bar)
    assert found is not None and found.line == "MemoryError: it was too much"


def test_a_message_on_the_edge_of_two_pieces_is_found(tmp_path: Path) -> None:
    message = next(text for name, _, text in MESSAGES if name == "libtvm-missing")
    for before in range((1 << 20) - len(message), (1 << 20) + 2, 7):
        log = tmp_path / "edge.log"
        log.write_bytes(b"x" * (before - 1) + b"\n" + message.encode() + b"\nmore\n")
        found = explain(log)
        assert found is not None and found.line == message, before


def test_a_large_log_is_read_in_little_time_and_memory(tmp_path: Path) -> None:
    import tracemalloc

    line = "[ 81%] Building CXX object mlc_llm/CMakeFiles/mlc_llm_objs.dir/cpp/serve/model.cc.o\n"
    log = tmp_path / "large.log"
    with log.open("w", encoding="utf-8") as file:
        for _ in range(64):
            file.write(line * (1_000_000 // len(line)))
        file.write(MESSAGES[0][2])
    began = time.process_time()
    assert explain(log) is not None
    assert time.process_time() - began < 5
    tracemalloc.start()
    explain(log)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_a_log_that_powershell_wrote_is_read(tmp_path: Path, encoding: str) -> None:
    name, _, message = next(each for each in MESSAGES if each[0] == "libtvm-missing")
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    log = tmp_path / "build.log"
    log.write_bytes(f"{mark}ok\n{message}\n".encode(encoding))
    found = explain(log)
    assert found is not None and found.fault.name == name


def test_a_line_without_an_end_is_bounded(tmp_path: Path) -> None:
    log = tmp_path / "line.log"
    log.write_bytes(b"." * (5 << 20) + b" MemoryError")
    assert explain(log) is None


# -- where a stage's failure becomes an error


def failing(bench: Bench, said: str, code: int = 1) -> KilnError:
    bench.program("fails.py", f"print({said!r}, file=sys.stderr, flush=True); os._exit({code})")
    with pytest.raises(KilnError) as caught:
        bench.run(Pipeline(stages=(stage("package", "fails.py"),)))
    return caught.value


def test_a_stage_that_fails_with_a_known_fault_is_told_it(bench: Bench) -> None:
    text = next(text for name, _, text in MESSAGES if name == "model-lib-name")
    error = failing(bench, text, 255)
    assert isinstance(error, StageError)
    assert "exit code 255: no library of the package is called" in error.what
    assert "qwen2_q4f16_1" in error.why and "mlc-ai/mlc-llm#2597" in error.why
    assert "the whole log: " in error.remedy and len(error.lines()) == 3


def test_what_the_program_itself_said_is_not_lost(bench: Bench) -> None:
    body = """
    print("Segmentation fault (core dumped)", file=sys.stderr, flush=True)
    raise RuntimeError("the step compilefornpu left no npu_postreat.json")
    """
    bench.program("fails.py", body)
    with pytest.raises(StageError, match="a tool crashed") as caught:
        bench.run(Pipeline(stages=(stage("npu", "fails.py"),)))
    assert "RuntimeError: the step compilefornpu left no" in caught.value.why


def test_a_known_fault_of_memory_is_called_memory(bench: Bench) -> None:
    error = failing(bench, "g++: fatal error: Killed signal terminated program cc1plus", 2)
    assert isinstance(error, OutOfMemoryError) and "cc1plus" in error.what


def test_a_fault_that_is_not_known_is_told_as_before(bench: Bench) -> None:
    error = failing(bench, "it broke in a way of its own")
    assert error.what == "stage package failed with exit code 1"
    assert error.why == "it broke in a way of its own"


def test_another_error_gains_what_its_log_tells_of(tmp_path: Path) -> None:
    error = ImageError("the image could not be built", why="exit 1", remedy="see build.log")
    log = written(tmp_path, "ERROR: No matching distribution found for torch==1.9.1+cu111")
    told = with_fault(error, log)
    assert isinstance(told, ImageError)
    assert told.what.startswith("the image could not be built: torch==1.9.1+cu111 is not in")
    assert told.why.endswith("; exit 1") and told.remedy.endswith("; see build.log")
    assert with_fault(error, written(tmp_path, "nothing known")) is error


# -- the command


def test_the_command_tells_every_known_fault_of_a_log(tmp_path: Path) -> None:
    texts = {name: text for name, _, text in MESSAGES}
    log = written(tmp_path, f"{texts['libtvm-missing']}\n{texts['cmake-4']}\n")
    heard = Heard()
    explain_log(heard, log)
    assert [f["name"] for f in heard.results["faults"]] == ["libtvm-missing", "cmake-4"]
    assert set(heard.results["faults"][0]) == {"name", "what", "why", "do", "line"}
    explain_log(heard, written(tmp_path, "all is well"))
    assert heard.results["faults"] == []
    with pytest.raises(UsageError, match="there is no log"):
        explain_log(heard, tmp_path / "nowhere")


# -- the advice itself


def test_commands_in_the_texts_are_ones_there_are() -> None:
    texts = [text for fault in faults() for text in (fault.why, fault.do)]
    named = {c for text in texts for c in re.findall(r"`kiln ([^`]+)`", text)}
    assert {"package check", "inspect", "toolchains fetch"} <= named
    for line in named:
        words = shlex.split(line)
        if ".".join(words) not in known():
            parse(words)


# Flags of git, pip, rustup, mlc_llm, llmexport and of the like, which advice names too.
_THEIRS = {
    "--init",
    "--recursive",
    "--system-lib-prefix",
    "--extra-index-url",
    "--mnnconvert",
    "--licenses",
    "--generate_for_npu",
    "--seperate_embed",
    "--global",
    "--sym",
}


def test_flags_in_the_texts_are_ones_there_are() -> None:
    ours = {flag for context in known().values() for flag in context.flags}
    named = {f for fault in faults() for f in re.findall(r"(?<![\w-])--[\w-]+", fault.do)}
    assert {"--splits", "--bundle-weights"} <= named
    assert not named - ours - _THEIRS
