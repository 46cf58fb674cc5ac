"""`kiln toolchains`: what is pinned, locked, fetched, still there, newer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edgekiln import offline
from edgekiln.errors import ToolchainError, UsageError
from edgekiln.report import Reporter, Task, table

if TYPE_CHECKING:
    from edgekiln.kits import Kit
    from edgekiln.toolchain.differences import Relocked
from edgekiln.commands.common import shown_task


def toolchains_list() -> None:
    """Print every toolchain."""
    from edgekiln.toolchain import list_toolchains, load_toolchain

    rows = []
    for name in list_toolchains():
        t = load_toolchain(name)
        rows.append((name, t.base.name, t.python, str(len(t.lock.wheels)), t.summary))
    print(table(rows, ("name", "base", "python", "wheels", "what")))


def toolchains_show(name: str) -> None:
    """Print what a toolchain pins."""
    from edgekiln.toolchain import load_toolchain

    t = load_toolchain(name)
    print(f"{t.name}: {t.summary}\ndigest   {t.digest}\nbase     {t.base.name} {t.base.digest}")
    print(f"python   {t.python}\nuv       {t.lock.uv.version} sha256:{t.lock.uv.sha256}\n")
    wheels = [(w.name, w.version, f"sha256:{w.sha256}") for w in t.lock.wheels]
    debs = [(d.name, d.version, f"sha256:{d.sha256}") for d in t.lock.debs]
    print(table([*wheels, *debs], ("package", "version", "digest")))
    if t.kits:
        print("\n" + table([_kit_row(kit) for kit in t.kits], ("kit", "family", "", "what")))


def _kit_row(kit: Kit) -> tuple[str, ...]:
    from edgekiln.kits import is_ready, missing

    state = "ready" if is_ready(kit) else "to be fetched" if missing([kit]) else "at hand"
    return kit.name, kit.family, state, kit.summary


def toolchains_lock(name: str, *, check: bool, only: str, to: str) -> None:
    """Lock a toolchain, or all of them; with `check` say what has drifted and change nothing.

    `only` (names with commas) refreshes these and leaves the rest as it was locked; `to` moves
    the YAML's pin of the one package that `only` names.
    """
    from edgekiln.toolchain import list_bases, list_toolchains, relock

    chosen = words_of(only)
    _check_chosen(name, check, chosen, to)
    drifted = False
    for each in [name] if name else [*list_bases(), *list_toolchains()]:
        with shown_task(each) as task:
            if not check:
                _tell_changes(_lock(each, task, chosen, to))
                continue
            found = relock.check(each, task)
        drifted |= bool(found)
        print("\n".join([f"{each}: {len(found)} drifted", *(f"  {line}" for line in found)]))
    if drifted:
        raise ToolchainError("not all is as it was locked", remedy="kiln toolchains lock NAME")


def toolchain_names(text: str) -> list[str]:
    """Names of toolchains; the commas of a variant, NAME@KIT,KIT, are its own."""
    return [text] if "@" in text else words_of(text)


def words_of(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _check_chosen(name: str, check: bool, chosen: list[str], to: str) -> None:
    if chosen and check:
        raise UsageError("--only and --check contradict each other", remedy="give one of them")
    if chosen and not name:
        raise UsageError("--only: of which toolchain?", remedy="kiln toolchains lock NAME --only …")
    if to and len(chosen) != 1:
        raise UsageError("--to: which package?", remedy="name one package with --only")


def _lock(name: str, task: Task, chosen: list[str], to: str) -> Relocked:
    from edgekiln.toolchain import folder, relock
    from edgekiln.toolchain.repin import repinned

    if not to:
        return relock.lock(name, task, only=chosen)
    path = folder() / f"{name}.yaml"
    if not path.is_file():
        raise UsageError(f"--to: {name} is no toolchain", remedy="kiln toolchains list")
    with repinned(path, chosen[0], to):
        return relock.lock(name, task, only=chosen)


def _tell_changes(made: Relocked) -> None:
    from edgekiln.toolchain.differences import HEAD

    print(made.path)
    if made.changes:
        print(table([change.row for change in made.changes], HEAD))
    if not any(change.real for change in made.changes):
        print("nothing has changed")


def toolchains_health(reporter: Reporter, *, name: str, base: str) -> None:
    """Ask each upstream whether it still has what is pinned. Raises as `health.refuse` does."""
    from edgekiln.toolchain import list_toolchains, load_toolchain
    from edgekiln.upstream import health
    from edgekiln.user.pipconf import pip_settings

    names = toolchain_names(name) or list_toolchains()
    toolchains = [load_toolchain(each, base=base or None) for each in names]
    with _asking(reporter, "health", name, "things") as task:
        found = health.health(toolchains, pip_settings(), task)
    text = f"{health.shown(found)}\n\n{health.counts(found)}"
    reporter.result("health", health.plain(found), text)
    health.refuse(found)


def toolchains_outdated(reporter: Reporter, *, name: str, every: bool) -> None:
    """Print what is newer than the pins; nothing is changed."""
    from edgekiln.toolchain import list_toolchains, load_toolchain
    from edgekiln.upstream import outdated
    from edgekiln.user.pipconf import pip_settings

    toolchains = [load_toolchain(each) for each in toolchain_names(name) or list_toolchains()]
    with _asking(reporter, "outdated", name, "packages") as task:
        report = outdated.outdated(toolchains, pip_settings(), task, every=every)
    reporter.result("outdated", outdated.plain(report), outdated.shown(report))


@contextmanager
def _asking(reporter: Reporter, task: str, name: str, unit: str) -> Iterator[Task]:
    """A task that asks upstream about one toolchain, or all."""
    offline.refuse("what upstreams have now", remedy=f"kiln toolchains {task}, with a network")
    reporter.started(task, f"asking upstream about {name or 'all toolchains'}")
    started = time.monotonic()
    try:
        yield Task(reporter, task, unit)
    except BaseException:
        reporter.ended(task, "failed", {})
        raise
    reporter.ended(task, "done", {"seconds": round(time.monotonic() - started, 3)})
