"""`kiln store`: finished work, and what of it can go."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from edgekiln import units
from edgekiln.report import table

if TYPE_CHECKING:
    pass


def store_list() -> None:
    """Print what the store holds."""
    from edgekiln.build import open_store

    with open_store() as store:
        entries = list(store.entries())
        rows = [
            (
                e.meta["stage"],
                e.meta["toolchain"],
                time.strftime("%Y-%m-%d %H:%M", time.localtime(e.meta["created"])),
                units.size(e.size),
                e.key[:16],
            )
            for e in sorted(entries, key=lambda e: int(e.meta["created"]))
        ]
        print(table(rows, ("stage", "toolchain", "made", "size", "key")))
        print(f"\n{len(rows)} stages, {units.size(sum(e.size for e in entries))}, {store.root}")


def store_gc(*, days: int, everything: bool, dry_run: bool) -> None:
    """Remove finished stages older than `days`."""
    from edgekiln.build import open_store

    before = time.time() - days * 86400
    freed = 0
    with open_store() as store:
        store.sweep()
        for entry in list(store.entries()):
            if everything or store.last_used(entry) < before:
                if not dry_run and not store.remove(entry):
                    print(f"in use, kept: {entry.meta['stage']} {entry.key[:16]}")
                    continue
                freed += entry.size
                print(f"{entry.meta['stage']:<12} {units.size(entry.size):>10}  {entry.key[:16]}")
    print(f"{'would free' if dry_run else 'freed'} {units.size(freed)}")
