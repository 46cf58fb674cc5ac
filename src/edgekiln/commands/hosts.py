"""kiln hosts: the machines of hosts.yaml, and whether stages can run there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekiln import units
from edgekiln.errors import KilnError, UsageError
from edgekiln.remote import hosts
from edgekiln.report import Reporter, Task, table

if TYPE_CHECKING:
    from edgekiln.remote.executor import RemoteExecutor

_HEAD = ("name", "address", "profile", "executor", "home")


def hosts_list(reporter: Reporter) -> None:
    """Print every machine of hosts.yaml; none is reached for that."""
    found = hosts.load()
    rows = [
        (h.name, h.address, h.profile or "as recognised", h.executor, h.home or "by its profile")
        for h in found.values()
    ]
    text = table(rows, _HEAD) if rows else f"no machines are named in {hosts.file()}"
    values = [dict(zip(_HEAD, row, strict=True)) for row in rows]
    reporter.result("hosts", values, text)


def hosts_check(reporter: Reporter, name: str, *, accept_new: bool) -> None:
    """Reach a machine, bring edgekiln's own files there, and print what it has."""
    from edgekiln.build import open_store
    from edgekiln.remote.executor import RemoteExecutor

    host = hosts.find(name)
    if host is None:
        raise UsageError("local is this machine", remedy="`kiln doctor` says what it has")
    reporter.started(host.name, f"reaching {host.address}")
    with open_store() as store:
        executor = RemoteExecutor(host, store.index, reporter.say, accept_new=accept_new)
        try:
            executor.connect(Task(reporter, host.name))
        except KilnError:
            reporter.ended(host.name, "failed", {})
            raise
        finally:
            executor.close()
    reporter.ended(host.name, "done", {})
    _tell(reporter, executor)


def _tell(reporter: Reporter, executor: RemoteExecutor) -> None:
    there, gpus = executor.there, executor.there["vram"]
    rows = {
        "profile": there["profile"],
        "cores": str(there["cpus"]),
        "memory": f"{units.size(executor.memory)} for a stage",
        "GPU": ", ".join(f"{units.size(free)} free" for free in gpus) or "none",
        "home": f"{executor.home} ({units.size(there['free'])} free)",
        "executor": f"{there['describe']} ({there['why']})",
    }
    text = "\n".join(f"{name.ljust(8)}  {said}" for name, said in rows.items())
    reporter.result("host", {**there, "home": executor.home}, text)
