"""The schedule for products on a processor: the same numbers as numpy's, and faster."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from edgekiln.home import project
from tests.builds.kit import call

pytestmark = pytest.mark.slow

# Run by the toolchain's Python, with scripts/mlc on its path. A product with weights of 4 bits,
# eight to a word and a scale for each 32, written as mlc_llm writes it.
PRODUCTS = """
import json
import time

import numpy as np
import tvm
from tvm import te, tirx

import hostkernels

INNER, TOKENS = 576, 40
numbers = np.random.default_rng(0)


def product(rows, tokens, turned=False):
    def turn(*pair):
        return pair[::-1] if turned else pair

    def part(words, n, k):
        shift = (k % 8 * 4).astype("uint32")
        return ((words[turn(n, k // 8)] >> shift) & tirx.const(15, "uint32")).astype("float16")

    def group(scales, n, k):
        return scales[turn(n, k // 32)]

    words = te.placeholder(turn(rows, INNER // 8), "uint32", "words")
    scales = te.placeholder(turn(rows, INNER // 32), "float16", "scales")
    x = te.placeholder((1, tokens, INNER), "float16", "x")
    four = te.compute(
        turn(rows, INNER),
        lambda *at: part(words, *turn(*at)),
        "four",
    )
    weights = te.compute(
        turn(rows, INNER),
        lambda *at: (four[at] - tirx.const(7, "float16"))
        * group(scales, *turn(*at)),
        "weights",
    )
    k = te.reduce_axis((0, INNER), "k")
    out = te.compute(
        (1, tokens, rows),
        lambda b, s, n: te.sum(x[b, s, k] * weights[turn(n, k)], axis=k),
        "out",
    )
    more = te.compute((1, tokens, rows), lambda b, s, n: out[b, s, n] * x[b, s, 0], "more")
    return te.create_prim_func([words, scales, x, more])


def run(function, rows, turned=False):
    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    built = tvm.compile(module, target=tvm.target.Target.from_device("cpu"))
    words = numbers.integers(0, 2**32, (rows, INNER // 8), dtype=np.uint32)
    scales = numbers.normal(0, 0.01, (rows, INNER // 32)).astype("float16")
    x = numbers.normal(0, 1, (1, TOKENS, INNER)).astype("float16")
    out = tvm.runtime.tensor(np.zeros((1, TOKENS, rows), "float16"))
    laid = (words.T.copy(), scales.T.copy(), x) if turned else (words, scales, x)
    given = [tvm.runtime.tensor(a) for a in laid]
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        built["main"](*given, out)
        seconds.append(time.perf_counter() - began)
    weights = np.stack([(words >> (4 * i)) & 15 for i in range(8)], -1).reshape(rows, INNER)
    weights = (weights.astype("float64") - 7) * np.repeat(scales.astype("float64"), 32, 1)
    wanted = (x[0].astype("float64") @ weights.T) * x[0, :, :1].astype("float64")
    return float(abs(out.numpy()[0] - wanted).max() / abs(wanted).max()), min(seconds)


found = {}
symbol = tirx.Var("n", "int64")
for name, rows, real in (("known", 1536, 1536), ("ragged", 1000, 1000), ("symbol", symbol, 700)):
    for tokens in (TOKENS, tirx.Var("s", "int64")):
        plain = product(rows, tokens)
        scheduled = hostkernels.schedule(plain)
        error, seconds = run(scheduled.mod["main"], real)
        worse, before = run(plain, real)
        kind = name + (" tokens" if tokens is TOKENS else "")
        found[kind] = {"error": error, "worse": worse, "faster": before / seconds}
a = te.placeholder((8, 576), "float16", "a")
copied = te.compute((8, 576), lambda i, j: a[i, j] + a[i, j], "copied")
found["no product"] = hostkernels.schedule(te.create_prim_func([a, copied]))
k = te.reduce_axis((0, 576), "k")
summed = te.compute((8,), lambda i: te.sum(a[i, k], axis=k), "summed")
found["no pair"] = hostkernels.schedule(te.create_prim_func([a, summed]))
x, w = te.placeholder((1, 8, 576), "float16"), te.placeholder((576, 90), "float16")
k = te.reduce_axis((0, 576), "k")
other = te.compute((1, 8, 90), lambda b, s, n: te.sum(x[b, s, k] * w[k, n], axis=k), "other")
found["odd columns"] = hostkernels.schedule(te.create_prim_func([x, w, other]))
for rows, tokens in ((1536, TOKENS), (64, tirx.Var("s", "int64"))):
    plain = product(rows, tokens, turned=True)
    error, seconds = run(hostkernels.schedule(plain).mod["main"], rows, turned=True)
    worse, before = run(plain, rows, turned=True)
    found[f"columns {rows}"] = {"error": error, "worse": worse, "faster": before / seconds}
before = tvm.s_tir.dlight.cpu.GEMV
hostkernels.install()
found["installed"] = issubclass(tvm.s_tir.dlight.cpu.GEMV, before)
with tvm.target.Target("llvm"):
    rules = tvm.s_tir.dlight.ApplyDefaultSchedule(tvm.s_tir.dlight.cpu.GEMV())
    module = rules(tvm.IRModule({"main": product(1536, TOKENS)}))
found["applied"] = "parallel" in module.script()
print(json.dumps(found))
"""


def test_products_on_a_processor(tvm_python: Path) -> None:
    scripts = project() / "scripts"
    env = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": f"{scripts}:{scripts / 'mlc'}"}
    done = call([str(tvm_python), "-s", "-c", PRODUCTS], env)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    kinds = [name for name in found if name.split()[0] in ("known", "ragged", "symbol")]
    assert len(kinds) == 6
    for name in kinds:
        assert found[name]["error"] < 0.01, name
        assert found[name]["error"] < found[name]["worse"], f"{name}: sums lose less in lanes"
    assert found["known tokens"]["faster"] > 1.5
    assert found["no product"] is None
    assert found["no pair"] is None
    assert found["odd columns"] is None
    for name in ("columns 1536", "columns 64"):
        # Here each sum stays one sum: as good as the plain loops, sooner.
        assert found[name]["error"] < 0.02, name
    assert found["columns 1536"]["faster"] > 1.5
    assert found["installed"]
    assert found["applied"]
