"""A build's plan and its end, as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgekiln import units
from edgekiln.plan import Planned
from edgekiln.report import table
from edgekiln.runner import Done

if TYPE_CHECKING:
    from edgekiln.build import Job


def summary(done: Mapping[str, Done]) -> str:
    """The closing table: each stage, cached or run, time, peak memory, size."""
    rows = []
    for name, d in done.items():
        peak = d.entry.meta.get("peak_memory")
        rows.append(
            (
                name,
                "run" if d.ran else "cached",
                units.seconds(d.seconds) if d.ran else "",
                units.size(peak) if peak else "",
                units.size(d.entry.size),
            )
        )
    return table(rows, ("stage", "", "time", "peak memory", "made"))


def stage_figures(done: Mapping[str, Done]) -> dict[str, Any]:
    """The same for machines."""
    return {
        name: {
            "ran": d.ran,
            "seconds": round(d.seconds, 3),
            "peak_memory": d.entry.meta.get("peak_memory"),
            "size": d.entry.size,
        }
        for name, d in done.items()
    }


def describe_plan(job: Job, planned: list[Planned]) -> str:
    """What --dry-run prints: stages, images, what is cached, what it will need."""
    rows = []
    for p in planned:
        state = "cached" if p.entry else "to run"
        needs = "" if p.entry else f"{units.size(p.stage.memory)}, {units.size(p.stage.disk)}"
        needs += ", network" if needs and p.stage.network else ""
        rows.append((p.stage.name, p.toolchain.asked, p.stage.program, state, needs))
    model = job.model
    lines = [
        f"backend:   {job.backend.name}",
        f"model:     {model.name} ({model.family}, {model.parameters / 1e6:.0f} M parameters, "
        f"{units.size(model.weight_bytes)}), {model.source}",
        f"bundle:    {job.place}",
        "",
        table(rows, ("stage", "toolchain", "program", "", "memory, disk")),
    ]
    return "\n".join(lines)
