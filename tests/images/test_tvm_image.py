"""The tvm image: it compiles a module for Android, and its verify finds when it cannot."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from edgekiln import images
from edgekiln.artifacts.elf import read_elf
from edgekiln.engine import Engine
from edgekiln.errors import ImageError
from edgekiln.progress import Silent
from edgekiln.toolchain import load_toolchain
from tests.images.content import called, changed

pytestmark = pytest.mark.engine

# Two matrix products with a quantised weight's shape between them, in float16, for a phone's GPU.
PROGRAM = """
import sys
import tvm
from tvm import relax
from tvm.s_tir import dlight
from tvm.support.tar import tar

prefix, target_name, out = sys.argv[1:]
builder = relax.BlockBuilder()
x = relax.Var("x", relax.TensorType((1, 64), "float16"))
w = [relax.Var(n, relax.TensorType(s, "float16")) for n, s in (("a", (64, 128)), ("b", (128, 64)))]
with builder.function("decode", [x, *w]):
    with builder.dataflow():
        hidden = relax.op.nn.silu(relax.op.matmul(x, w[0]))
        y = builder.emit_output(relax.op.matmul(hidden, w[1]))
    builder.emit_func_output(y)
host = {"kind": "llvm", "mtriple": "aarch64-linux-android"}
target = tvm.target.Target({"kind": target_name, "host": host})
module = builder.get().with_attr("system_lib_prefix", prefix)
with target:
    module = relax.get_pipeline("zero")(module)
    rules = dlight.gpu.GEMV(), dlight.gpu.Matmul(), dlight.gpu.Fallback()
    module = dlight.ApplyDefaultSchedule(*rules)(module)
relax.build(module, target=target, system_lib=True).export_library(out, fcompile=tar)
"""


@pytest.fixture(scope="module")
def tvm(engine: Engine) -> str:
    """The tvm image's tag."""
    return images.build(engine, load_toolchain("tvm"), Silent())


def compiled(image: str, place: Path, prefix: str, target: str) -> Path:
    """The library that a container of the image makes, without a network, as nobody."""
    from testcontainers.core.container import DockerContainer

    place.mkdir(mode=0o777)
    place.chmod(0o777)
    (place / "make.py").write_text(PROGRAM, encoding="utf-8")
    container = DockerContainer(image).with_volume_mapping(str(place), "/make", "rw")
    limits = {"network_mode": "none", "cap_drop": ["ALL"], "read_only": True}
    container = container.with_command("sleep 300").with_env("PYTHONHASHSEED", "0")
    container = container.with_tmpfs_mount("/tmp", "exec")
    with container.with_kwargs(**limits) as running:
        words = ["python3", "-s", "/make/make.py", prefix, target, f"/make/{prefix}lib.tar"]
        code, output = running.exec(words)
    assert code == 0, output
    return place / f"{prefix}lib.tar"


def members(library: Path) -> dict[str, bytes]:
    """name → bytes of what a library holds."""
    with tarfile.open(library) as archive:
        found = {m.name: archive.extractfile(m) for m in archive if m.isfile()}
        return {name.removeprefix("./"): stream.read() for name, stream in found.items() if stream}


def test_a_module_becomes_android_objects_with_opencl_inside(tvm: str, tmp_path: Path) -> None:
    library = compiled(tvm, tmp_path / "one", "qwen2_q4f16_1_", "opencl")
    objects = members(library)
    assert sorted(objects) == ["lib0.o", "qwen2_q4f16_1_devc.o"]
    for name, data in objects.items():
        (tmp_path / name).write_bytes(data)
        facts = read_elf(tmp_path / name)
        assert (facts["machine"], facts["type"]) == ("EM_AARCH64", "object file"), facts
    whole = b"".join(objects.values())
    assert b"qwen2_q4f16_1___tvm_ffi__library_bin" in whole
    assert whole.count(b"__kernel void") >= 2
    assert b"cl_khr_fp16" in whole


def test_two_runs_give_the_same_objects(tvm: str, tmp_path: Path) -> None:
    first, second = (
        compiled(tvm, tmp_path / name, "same_prefix_", "opencl") for name in ("first", "second")
    )
    assert members(first) == members(second)


def test_the_prefix_is_in_the_symbols_of_the_library(tvm: str, tmp_path: Path) -> None:
    objects = members(compiled(tvm, tmp_path / "other", "llama_q0f16_", "opencl"))
    whole = b"".join(objects.values())
    assert b"llama_q0f16___tvm_ffi__library_bin" in whole
    assert b"qwen2" not in whole


@pytest.mark.parametrize(
    ("script", "check"),
    [
        ("rm /usr/bin/gcc /usr/bin/x86_64-linux-gnu-gcc*", "compiler: "),
        ("sed -i 's/aarch64-linux-android/x86_64-linux-gnu/' /opt/edgekiln/checks.py", "CPU 62"),
        ('sed -i \'s/"opencl", "webgpu"/"vulkan"/\' /opt/edgekiln/checks.py', "no vulkan"),
        ("rm /usr/bin/tar", "phone: "),
    ],
)
def test_verify_finds_what_would_make_no_library_for_a_phone(
    engine: Engine, tvm: str, script: str, check: str
) -> None:
    with changed(engine, tvm, script) as broken, pytest.raises(ImageError) as caught:
        images.verify(engine, broken)
    assert check in caught.value.why


def test_verify_says_what_the_image_can(engine: Engine, tvm: str) -> None:
    said = called(engine, ["run", "--rm", tvm, "/opt/edgekiln/verify", "--json"])
    proved = json.loads(said.splitlines()[-1])["proved"]
    assert any("2 AArch64 objects, OpenCL inside" in line for line in proved)
