"""A model of the shape of Llama-3.2-1B with random weights: graph, quantize, compile; no proof.

Its weights mean nothing, so the bound on perplexity is put out of the way; time and memory are
those of a real model. What models of 3 and 8 thousand million parameters would take is worked
out in docs/bench.md from this and the example's figures.
"""

from __future__ import annotations

from collections.abc import Iterator

from edgekiln.bench.kit import Context, Figure
from edgekiln.bench.models import llama_1b
from edgekiln.bench.qnn import build

_AIM_GB = 16.0


def measure(context: Context) -> Iterator[Figure]:
    """Once: it takes the better part of an hour on two cores."""
    found = build(context, "large", ["--model", str(llama_1b(context))])
    for stage, figures in found["stages"].items():
        yield Figure(name=f"1B, {stage}", samples=(figures["seconds"],), unit="s")
        peak = (figures["peak_memory"] or 0) / 1e9
        name = f"1B, {stage}, peak memory"
        yield Figure(name=name, samples=(peak,), unit="GB", aim=_AIM_GB)
