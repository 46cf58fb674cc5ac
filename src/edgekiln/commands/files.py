"""`kiln inspect`, `kiln explain`: what a file is, what a log says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgekiln.errors import AccessError, UsageError
from edgekiln.report import Reporter

if TYPE_CHECKING:
    pass


def _refuse_no_log(log: Path) -> None:
    """Raise UsageError for what is no text, in which nothing would be found and all seem well."""
    remedy = "give a file; builds name theirs"
    if log.is_dir():
        raise UsageError(f"{log} is a folder", remedy=remedy)
    if not log.is_file():
        raise UsageError(f"there is no log {log}", remedy=remedy)
    try:
        with log.open("rb") as file:
            begins = file.read(4096)
    except OSError as error:
        why = error.strerror or str(error)
        raise AccessError(
            f"cannot read {log}", why=why, remedy="give a log you may read"
        ) from error
    if not begins:
        raise UsageError(f"{log} is empty", remedy="give the log of what went wrong")
    if b"\0" in begins and begins[:2] not in (b"\xff\xfe", b"\xfe\xff"):
        raise UsageError(f"{log} is no text", remedy="give a log as text, unpacked")


def explain(reporter: Reporter, log: Path) -> None:
    """Say which known faults a log tells of."""
    from edgekiln.faults import explain_all

    log = log.expanduser()
    _refuse_no_log(log)
    found = explain_all(log)
    lines = []
    for each in found:
        lines += [f"{each.what}", f"  why   {each.why}", f"  do    {each.do}"]
        lines += [f"  line  {each.line}", f"  seen  {each.threads}", ""]
    values = [
        {"name": f.fault.name, "what": f.what, "why": f.why, "do": f.do, "line": f.line}
        for f in found
    ]
    text = "\n".join(lines[:-1]) if found else "no fault that is known stands in it"
    reporter.result("faults", values, text)


def inspect(reporter: Reporter, path: Path, *, executor: str) -> None:
    """Say what a file or folder is."""
    from edgekiln.artifacts import look

    found = look(path.expanduser(), reporter, executor=executor)
    reporter.result("artifact", found.value(), found.text())
