"""Libraries of one small layer, compiled by TVM as mlc_llm compiles a model's."""

from __future__ import annotations

import os
from pathlib import Path

from tests.builds.kit import call

# Run by the toolchain's Python: FOLDER, then NAME:PREFIX:KIND:TRIPLE for each.
_MAKE = """
import sys
import tvm
from tvm import relax
from tvm.relax.frontend import nn
from tvm.s_tir import dlight
from tvm.support import tar

folder, *wanted = sys.argv[1:]


class Layer(nn.Module):
    def __init__(self):
        self.linear = nn.Linear(16, 16, bias=False, dtype="float32")

    def forward(self, x: nn.Tensor):
        return self.linear(x)


for word in wanted:
    name, prefix, kind, triple = word.split(":")
    spec = {"forward": {"x": nn.spec.Tensor((1, 16), "float32")}}
    module, _ = Layer().export_tvm(spec=spec)
    host = {"kind": "llvm", "mtriple": triple}
    target = tvm.target.Target(host if kind == "llvm" else {"kind": kind, "host": host})
    if prefix:
        module = module.with_attrs({"system_lib_prefix": prefix})
    with target:
        module = relax.get_pipeline("zero")(module)
        if kind != "llvm":
            rules = (dlight.gpu.Matmul(), dlight.gpu.GEMV(), dlight.gpu.Fallback())
            module = dlight.ApplyDefaultSchedule(*rules)(module)
    built = relax.build(module, target=target, system_lib=True)
    built.export_library(f"{folder}/{name}", fcompile=tar.tar)
"""

ARM = "aarch64-linux-android"


def make_libraries(python: Path, folder: Path, *wanted: str) -> Path:
    """Have TVM compile libraries into a folder, each NAME:PREFIX:KIND:TRIPLE."""
    folder.mkdir(exist_ok=True)
    command = [str(python), "-s", "-c", _MAKE, str(folder), *wanted]
    done = call(command, {**os.environ, "PYTHONHASHSEED": "0"})
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


# Run by the toolchain's Python, with scripts/mlc on its path: the slots each shape function writes.
SHAPE_FUNCTIONS = """
import tvm
from tvm import relax, tirx

import mlcrun

builder = relax.BlockBuilder()
n = tirx.Var("n", "int64")
x = relax.Var("x", relax.TensorType([n, 8], "float32"))
with builder.function("main", [x]):
    made = [
        builder.emit(relax.op.zeros(relax.ShapeExpr(shape), "float32"))
        for shape in ([n * 4, 8], [(n + 4095) // 4096, 8], [n * 3 + 1, n * 7])
    ]
    builder.emit_func_output(relax.Tuple(made))


def slots(function):
    body = function.body
    return [int(store.indices[0]) for store in (body if isinstance(body, tirx.SeqStmt) else [body])]


mlcrun._steady_shapes()
lowered = relax.transform.VMShapeLower(emit_err_ctx=False)(builder.finalize())
found = [f for g, f in lowered.functions_items() if g.name_hint.startswith("shape_func")]
print(sorted(slots(f) for f in found))
longest = max(found, key=lambda f: len(slots(f)))
backwards = longest.with_body(tirx.SeqStmt(list(longest.body)[::-1]))
print(slots(backwards), slots(mlcrun.steady_shape(backwards)))
# One that reads what it writes stays as it is.
buffer = longest.body[0].buffer
first = tirx.BufferStore(buffer, tirx.IntImm("int64", 1), [5])
second = tirx.BufferStore(buffer, tirx.BufferLoad(buffer, [5]), [4])
chained = longest.with_body(tirx.SeqStmt([first, second]))
print(slots(mlcrun.steady_shape(chained)))
"""
