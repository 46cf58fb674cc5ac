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
_TILE = 64
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
    summing = [n for n, block in enumerate(blocks) if any(_kinds(sch, block))]
    if len(summing) != 1:
        return None
    product, makers = blocks[summing[0]], blocks[: summing[0]]
    layout = _layout(sch, product)
    if layout is None:
        return None
    for block in makers[:-1]:
        sch.compute_inline(block)
    (_by_rows if layout == "rows" else _by_columns)(sch, product, makers[-1:])
    return sch


def _by_rows(sch: Any, product: Any, makers: list[Any]) -> None:
    """Weights of one output beside each other: sums in lanes, which are then added up."""
    batch, row, out, inner = sch.get_loops(product)
    # A tile is of a size known beforehand, and whole: a vocabulary may be known only later.
    known = _extent(sch, out)
    outside = [out, batch, row]
    if known:
        tile, each = sch.split(out, factors=[None, math.gcd(known, _TILE)])
        outside = [tile, batch, row, each]
    sch.reorder(*outside)
    _, lane = sch.split(inner, factors=[None, _LANES])
    partial = sch.rfactor(lane, 3)
    sch.compute_at(partial, outside[-1], preserve_unit_loops=True)
    lanes, *units, outer = sch.get_loops(partial)[len(outside) :]
    sch.reorder(*units, outer, lanes)
    sch.vectorize(lanes)
    for maker in makers:
        if known:
            sch.compute_at(maker, outside[0], preserve_unit_loops=True)
        else:
            sch.parallel(sch.get_loops(maker)[0])
        _, word = sch.split(sch.get_loops(maker)[-1], factors=[None, _WORD])
        sch.vectorize(word)
    sch.parallel(outside[0])
    sch.decompose_reduction(partial, outer)


def _by_columns(sch: Any, product: Any, makers: list[Any]) -> None:
    """Weights of one input beside each other: a lane for each output."""
    batch, row, out, inner = sch.get_loops(product)
    tile, group, lane = sch.split(out, factors=[None, _TILE // _LANES, _LANES])
    sch.reorder(tile, batch, row, group, inner, lane)
    sch.vectorize(lane)
    for maker in makers:
        sch.compute_at(maker, tile, preserve_unit_loops=True)
        _, lanes = sch.split(sch.get_loops(maker)[-1], factors=[None, _LANES])
        sch.vectorize(lanes)
    sch.parallel(tile)
    sch.decompose_reduction(product, inner)


def _kinds(sch: Any, block: Any) -> list[bool]:
    """For each of a block's iterators, whether it sums up."""
    return [int(i.iter_type) == 2 for i in sch.get(block).iter_vars]


def _layout(sch: Any, block: Any) -> str | None:
    """How the weights lie in out[b, s, n] += in[b, s, k] * weights[…]; None for no such product.

    "rows" is weights[n, k] with k in whole lanes, "columns" weights[k, n] with n in whole tiles.
    """
    loops = sch.get_loops(block)
    if _kinds(sch, block) != [False, False, False, True] or len(loops) != _PRODUCT_LOOPS:
        return None
    shapes = sorted((_sizes(read.buffer) for read in sch.get(block).reads), key=len)
    out, inner = _extent(sch, loops[2]), _extent(sch, loops[3])
    if [len(shape) for shape in shapes] != [2, 3] or not inner or shapes[1][-1] != inner:
        return None
    weights = shapes[0]
    if weights == [out, inner] and inner % _LANES == 0:
        return "rows"
    return "columns" if weights == [inner, out] and out and out % _TILE == 0 else None


def _sizes(buffer: Any) -> list[int]:
    """A buffer's sizes; 0 where one is known only later."""
    return [int(getattr(size, "value", 0)) for size in buffer.shape]


def _extent(sch: Any, loop: Any) -> int:
    """How often a loop runs; 0 where that is known only later."""
    return int(getattr(sch.get(loop).extent, "value", 0))
