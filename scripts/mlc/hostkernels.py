"""Faster matrix products for a library that runs on this machine's processor, to prove a model.

mlc_llm has schedules for GPUs; for a processor it leaves a product with quantised weights as the
plain loops it was written as, which do less than one multiplication in four nanoseconds. Here a
product takes its weights a tile of rows at a time, in parallel, and multiplies sixteen at once.

The numbers are added up in another order than on the phone, in the same 16-bit floats; a GPU has
an order of its own, too.
"""

from __future__ import annotations

import contextlib
import importlib
import math
from typing import Any

_LANES = 16
_WORD = 8  # weights of 4 bits in one of 32
_ROWS = 64
_PRODUCT_LOOPS = 4


def install() -> None:
    """Have mlc_llm's pipeline use this for the processor, before the rule it has."""
    dlight: Any = importlib.import_module("tvm.s_tir.dlight")
    dlight.cpu.GEMV = _rule(dlight.cpu.GEMV)


def _rule(before: Any) -> Any:
    """A schedule rule that asks `before` where it has none itself."""

    class Product(before):  # type: ignore[misc]
        """A product of activations and (quantised) rows of weights."""

        def apply(self, func: Any, target: Any, tunable: bool) -> Any:
            """The schedule, or what the rule before says."""
            s_tir: Any = importlib.import_module("tvm.s_tir")
            found = None
            if target.kind.name == "llvm":
                # A product of a form that nobody thought of is slow, and right all the same.
                with contextlib.suppress(s_tir.ScheduleError):
                    found = schedule(func)
            return super().apply(func, target, tunable) if found is None else found

    return Product


def schedule(func: Any) -> Any:
    """A schedule for a product, or None where the function is anything else."""
    s_tir: Any = importlib.import_module("tvm.s_tir")
    sch = s_tir.Schedule(func)
    blocks = list(sch.get_child_blocks(sch.get_sblock("root")))
    summing = [n for n, block in enumerate(blocks) if _kinds(sch, block).count(True)]
    if len(summing) != 1 or not _is_product(sch, blocks[summing[0]]):
        return None
    product, makers = blocks[summing[0]], blocks[: summing[0]]
    for block in makers[:-1]:
        sch.compute_inline(block)
    batch, row, out, inner = sch.get_loops(product)
    # A tile is of a size known beforehand, and whole: a vocabulary may be known only later.
    known = _extent(sch, out)
    outside = [out, batch, row]
    if known:
        tile, each = sch.split(out, factors=[None, math.gcd(known, _ROWS)])
        outside = [tile, batch, row, each]
    sch.reorder(*outside)
    _, lane = sch.split(inner, factors=[None, _LANES])
    partial = sch.rfactor(lane, 3)
    sch.compute_at(partial, outside[-1], preserve_unit_loops=True)
    lanes, *units, outer = sch.get_loops(partial)[len(outside) :]
    sch.reorder(*units, outer, lanes)
    sch.vectorize(lanes)
    if makers:
        if known:
            sch.compute_at(makers[-1], outside[0], preserve_unit_loops=True)
        else:
            sch.parallel(sch.get_loops(makers[-1])[0])
        _, word = sch.split(sch.get_loops(makers[-1])[-1], factors=[None, _WORD])
        sch.vectorize(word)
    sch.parallel(outside[0])
    sch.decompose_reduction(partial, outer)
    return sch


def _kinds(sch: Any, block: Any) -> list[bool]:
    """For each of a block's iterators, whether it sums up."""
    return [int(i.iter_type) == 2 for i in sch.get(block).iter_vars]


def _is_product(sch: Any, block: Any) -> bool:
    """Whether it is out[b, s, n] += in[b, s, k] * weights[n, k], k in whole lanes."""
    loops = sch.get_loops(block)
    if _kinds(sch, block) != [False, False, False, True] or len(loops) != _PRODUCT_LOOPS:
        return False
    inner = _extent(sch, loops[-1])
    shapes = sorted((list(read.buffer.shape) for read in sch.get(block).reads), key=len)
    return (
        inner > 0
        and inner % _LANES == 0
        and [len(shape) for shape in shapes] == [2, 3]
        and all(getattr(shape[-1], "value", 0) == inner for shape in shapes)
    )


def _extent(sch: Any, loop: Any) -> int:
    """How often a loop runs; 0 where that is known only later."""
    return int(getattr(sch.get(loop).extent, "value", 0))
