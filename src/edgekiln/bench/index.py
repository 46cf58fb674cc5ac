"""The stat index against hashing everything, on the model of 2 GB."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from edgekiln.bench.kit import Context, Figure
from edgekiln.bench.models import two_gigabytes
from edgekiln.digest import FileIndex


def measure(context: Context) -> Iterator[Figure]:
    """Time a digest that the index knows against one that it does not."""
    model = two_gigabytes(context)
    for file in model.iterdir():  # old enough to be remembered
        os.utime(file, ns=(10**18, 10**18))
    ratios, full = [], []
    for number in range(context.repeat):
        index = FileIndex(context.scratch / f"index-{number}.sqlite")
        began = time.perf_counter()
        index.digest(model)
        middle = time.perf_counter()
        index.digest(model)
        ended = time.perf_counter()
        index.close()
        full.append(middle - began)
        ratios.append((ended - middle) / (middle - began))
    yield Figure(name="hashing 2 GB in full", samples=tuple(full), unit="s")
    yield Figure(name="stat index / full hashing", samples=tuple(ratios), unit="times")
