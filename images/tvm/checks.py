"""What the toolchains tvm and mlc are for: TVM compiles for phones and runs here, for mlc_llm.

In the toolchain mlc both are a kit: mounted, and what needs them is checked only then.
"""

from __future__ import annotations

import importlib.util
import json
import os
import struct
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# {family: version} of the kits that verify finds; natively they lie elsewhere.
TOLD: dict[str, str] = json.loads(os.environ.get("KILN_KITS", "{}"))
KITS = Path(os.environ.get("KILN_KITS_AT") or Path(sys.prefix) / "kits")

# What mlc_llm compiles for phones: kernels in OpenCL, everything else for Android's CPU.
PHONE = {
    "kind": "opencl",
    "host": {"kind": "llvm", "mtriple": "aarch64-linux-android"},
}
# Of more than seven characters: TVM 0.26 takes shorter texts for no object and fails on them.
PREFIX = "edgekiln_verify_"
# e_machine of AArch64, and e_type of an object file to be linked (ELF's own header).
_AARCH64, _RELOCATABLE = 183, 1


def torch_cpu(lock: dict[str, Any]) -> str:
    """torch computes, on the CPU, and has no CUDA inside."""
    import torch

    assert torch.version.cuda is None, f"torch is for CUDA {torch.version.cuda}"
    assert torch.ones(64, 64).matmul(torch.ones(64, 64)).sum().item() == 64.0**3
    return f"torch {torch.__version__} computes on the CPU"


def compiler(lock: dict[str, Any]) -> str:
    """gcc, by which TVM links a library for this machine, makes one."""
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "a.c"), Path(folder, "a.so")
        source.write_text("int answer(void) { return 42; }\n", encoding="utf-8")
        _call("gcc", "-shared", "-fPIC", "-o", str(library), str(source))
        assert library.read_bytes()[:4] == b"\x7fELF", "gcc made no ELF file"
    return f"gcc {_call('gcc', '-dumpfullversion')} links a shared library"


def foundation(lock: dict[str, Any]) -> str:
    """What mlc_llm and TVM stand on imports."""
    import pydantic
    import safetensors.torch
    import shortuuid
    import tiktoken
    import transformers
    import tvm_ffi

    assert all((pydantic, safetensors.torch, shortuuid, tiktoken))
    return f"tvm_ffi {tvm_ffi.__version__} and transformers {transformers.__version__} import"


def absent(_: dict[str, Any]) -> str:
    """Said in place of what needs the kits."""
    return "without its kits: what they are for was not looked at"


def mlc_llm(lock: dict[str, Any]) -> str:
    """mlc_llm imports, with what converts, configures, compiles and packs."""
    # Not before: verify holds what is on the path against the lock. The checks after this need it.
    sys.path.insert(0, str(KITS / "mlc"))
    for name in ("convert_weight", "gen_config", "compile", "package"):
        importlib.import_module(f"mlc_llm.interface.{name}")
    for name in ("mlc_llm", "tvm"):
        file = importlib.import_module(name).__file__
        assert Path(file or "").is_relative_to(KITS), f"another {name}: {file}"
    # What its wheel says: the module itself names a version of its sources.
    told = next((KITS / "mlc").glob("mlc_llm*.dist-info/METADATA")).read_text(encoding="utf-8")
    version = next(line for line in told.splitlines() if line.startswith("Version: "))[9:]
    assert version.startswith(TOLD["mlc"]), f"mlc_llm is {version}, its kit {TOLD['mlc']}"
    quantization = importlib.import_module("mlc_llm.quantization").QUANTIZATION
    assert "q4f16_1" in quantization, "mlc_llm has no q4f16_1"
    return f"mlc_llm {version} imports; {len(quantization)} quantisations"


def _call(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words[0]}: {(done.stderr or done.stdout).strip()[-300:]}"
    return done.stdout.strip()


def code_generators(lock: dict[str, Any]) -> str:
    """TVM can generate code for what model libraries are made for."""
    import tvm

    wanted = ("opencl", "webgpu", "metal", "cuda", "llvm")
    missing = [name for name in wanted if not _generates(name)]
    assert not missing, f"TVM {tvm.__version__} generates no {', '.join(missing)}"
    return f"TVM {tvm.__version__} generates {', '.join(wanted)}"


def _generates(kind: str) -> bool:
    import tvm

    return tvm.get_global_func(f"target.build.{kind}", allow_missing=True) is not None


def phone(lock: dict[str, Any]) -> str:
    """A Relax module becomes a .tar of objects for Android, with its OpenCL kernels inside."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "library.tar")
        _export(library)
        members = dict(_members(library))
    assert members, "the library has no members"
    for name, data in members.items():
        assert data[:4] == b"\x7fELF", f"{name} is no ELF file"
        kind, machine = struct.unpack_from("<HH", data, 16)
        assert (kind, machine) == (_RELOCATABLE, _AARCH64), f"{name}: type {kind}, CPU {machine}"
    whole = b"".join(members.values())
    symbol = f"{PREFIX}__tvm_ffi__library_bin".encode()
    assert symbol in whole, f"no object has the symbol {symbol.decode()}"
    assert b"__kernel void" in whole, "no object holds an OpenCL kernel"
    return f"a Relax module compiles for Android: {len(members)} AArch64 objects, OpenCL inside"


def host(lock: dict[str, Any]) -> str:
    """The same module, linked into a shared library, computes here what numpy computes."""
    import numpy as np
    import tvm
    from tvm import relax

    given, weight = _values()
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "library.so")
        relax.build(_module(), target=tvm.target.Target("llvm")).export_library(str(library))
        machine = relax.VirtualMachine(tvm.runtime.load_module(str(library)), tvm.cpu())
        found = machine["main"](*(tvm.runtime.tensor(value) for value in (given, weight))).numpy()
    error = float(np.abs(found - np.maximum(given @ weight, 0)).max())
    assert error < 1e-4, f"TVM computes something else: {error}"
    return f"TVM links for this machine and computes the same (largest difference {error:.1e})"


def _values() -> tuple[Any, Any]:
    import numpy as np

    random = np.random.default_rng(0)
    given, weight = (random.standard_normal(shape) for shape in ((4, 16), (16, 8)))
    return given.astype(np.float32), weight.astype(np.float32)


def _module() -> Any:
    """relu(x · w) in Relax."""
    from tvm import relax

    builder = relax.BlockBuilder()
    # TVM gave it another name in 2026.
    tensor = getattr(relax, "TensorStructInfo", None) or relax.TensorType
    x, w = relax.Var("x", tensor((4, 16), "float32")), relax.Var("w", tensor((16, 8), "float32"))
    with builder.function("main", [x, w]):
        with builder.dataflow():
            y = builder.emit_output(relax.op.nn.relu(relax.op.matmul(x, w)))
        builder.emit_func_output(y)
    return builder.get()


def _export(library: Path) -> None:
    """Compile the module for a phone, as mlc_llm does it."""
    import tvm
    from tvm import relax

    dlight = _first("tvm.s_tir.dlight", "tvm.dlight")
    tar = _first("tvm.support.tar", "tvm.contrib.tar").tar
    target = tvm.target.Target(PHONE)
    module = _module().with_attr("system_lib_prefix", PREFIX)
    with target:
        module = relax.get_pipeline("zero")(module)
        module = dlight.ApplyDefaultSchedule(dlight.gpu.Matmul(), dlight.gpu.Fallback())(module)
    relax.build(module, target=target, system_lib=True).export_library(str(library), fcompile=tar)


def _first(*names: str) -> Any:
    """The first of some modules that there is: TVM moved them in 2026."""
    for name in names:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            continue
    raise AssertionError(f"TVM has none of {', '.join(names)}")


def _members(library: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(library) as archive:
        for member in archive:
            if stream := archive.extractfile(member):
                yield member.name, stream.read()


_OF_TVM: list[Callable[[dict[str, Any]], str]] = [code_generators, phone, host]
CHECKS: list[Callable[[dict[str, Any]], str]] = [torch_cpu, foundation, compiler]
if "mlc" in TOLD:
    CHECKS += [mlc_llm, *_OF_TVM]
elif importlib.util.find_spec("tvm"):
    CHECKS += _OF_TVM
else:
    CHECKS += [absent]
