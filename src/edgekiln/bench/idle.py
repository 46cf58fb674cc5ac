"""A build with nothing to do, on a model of 2 GB: the whole command, start of Python included."""

from __future__ import annotations

from collections.abc import Iterator

from edgekiln.bench.kit import Context, Figure, kiln
from edgekiln.bench.models import two_gigabytes

_AIM = 0.30
# Random weights have nothing to lose; hqq only costs time here.
_BUILD = ["build", "--backend", "mnn", "--no-hqq", "--min-cosine", "0"]


def measure(context: Context) -> Iterator[Figure]:
    """Build once, then time the same command again and again."""
    cache, model = context.fresh_home("idle"), two_gigabytes(context)
    command = [*_BUILD, "--max-perplexity-ratio", "1000", "--model", str(model)]
    first = kiln(command, cache, context.scratch)
    yield Figure(name="first build of 2 GB", samples=(first,), unit="s")
    kiln(command, cache, context.scratch)
    samples = tuple(kiln(command, cache, context.scratch) for _ in range(context.repeat * 2))
    yield Figure(name="nothing to do, 2 GB", samples=samples, unit="s", aim=_AIM)
