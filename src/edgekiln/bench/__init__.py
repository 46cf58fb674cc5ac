"""`kiln bench`: what edgekiln itself costs, as medians of ratios taken in one run.

A ratio of two times taken one after the other, on the same machine in the same minute, says more
than either time: the machine's mood cancels out. Each measurement is a module here with a
`measure(context)`; none is part of the tests.
"""

from __future__ import annotations

import importlib
import platform
from pathlib import Path
from typing import Any

from edgekiln.bench.kit import Context, Figure
from edgekiln.errors import UsageError, nearest
from edgekiln.report import table

# In the order in which they are run: the cheap ones first.
MEASUREMENTS = {
    "nothing-to-do": "idle",
    "stat-index": "index",
    "side-by-side": "together",
    "overhead": "overhead",
    "image": "image",
    "qnn": "qnn",
    "qnn-1b": "qnn_large",
}


def run(*, only: str, repeat: int, to: Path | None) -> None:
    """Take the measurements and print them; `to` keeps them as JSON."""
    if only and only not in MEASUREMENTS:
        raise UsageError(f"no measurement {only}", remedy=nearest(only, MEASUREMENTS))
    if repeat < 1:
        raise UsageError(f"--repeat is {repeat}", remedy="give 1 or more")
    figures: list[Figure] = []
    with Context.make(repeat) as context:
        for name in [only] if only else MEASUREMENTS:
            print(f"measuring {name} …", flush=True)
            module = importlib.import_module(f"edgekiln.bench.{MEASUREMENTS[name]}")
            for figure in module.measure(context):
                print(f"  {figure.line()}", flush=True)
                figures.append(figure)
    print("\n" + _table(figures))
    if to:
        from edgekiln.bundle import write_json

        write_json(to, {"machine": _machine(), "figures": [f.plain() for f in figures]})


def _table(figures: list[Figure]) -> str:
    rows = [(f.name, f.shown(), f.aim_shown(), f.verdict()) for f in figures]
    return table(rows, ("measured", "median", "aim", ""))


def _machine() -> dict[str, Any]:
    from edgekiln.doctor import available_memory, usable_cpus

    return {
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "cpus": usable_cpus(),
        "free_memory": available_memory(),
    }
