"""Two builds side by side against one after the other: OpenMP's spinning is what this is about."""

from __future__ import annotations

import time
from collections.abc import Iterator

from edgekiln.bench.kit import Context, Figure, kiln, start
from edgekiln.errors import StageError

# Different options, so that neither finds the other's work in the store.
_BUILDS = (["--quant-bit", "4"], ["--quant-bit", "8", "--no-hqq"])


def measure(context: Context) -> Iterator[Figure]:
    """Both orders from an empty store each time; the reference is shared, as it would be."""
    repeat = max(1, context.repeat // 2)
    ratios = []
    for number in range(repeat):
        apart = _apart(context, f"apart-{number}")
        ratios.append(_together(context, f"together-{number}") / apart)
    yield Figure(name="two builds at once / in turn", samples=tuple(ratios), unit="times")


def _command(options: list[str], number: int) -> list[str]:
    return ["build", "--backend", "mnn", *options, "--out", f"bundle-{number}"]


def _apart(context: Context, name: str) -> float:
    cache = context.fresh_home(name)
    return sum(kiln(_command(options, n), cache, cache) for n, options in enumerate(_BUILDS))


def _together(context: Context, name: str) -> float:
    cache = context.fresh_home(name)
    began = time.perf_counter()
    both = [start(_command(options, n), cache, cache) for n, options in enumerate(_BUILDS)]
    said = [process.communicate()[0] for process in both]
    spent = time.perf_counter() - began
    for process, text in zip(both, said, strict=True):
        if process.returncode:
            raise StageError("one of two builds side by side failed", why=text.strip()[-300:])
    return spent
