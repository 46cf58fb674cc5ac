"""What the end of a stage's program means."""

from __future__ import annotations

import shutil
from pathlib import Path

from edgekiln import units
from edgekiln.errors import DiskError, KilnError, OutOfMemoryError, StageError, UsageError
from edgekiln.executors.base import BAD_INPUT, StageResult, StageRun
from edgekiln.executors.kills import Killed
from edgekiln.faults import explain, explain_text
from edgekiln.pipeline import Stage

_TAIL = 12
# With less than this left a program's failure is put down to the disk.
_FULL = 64 << 20
_TOO_FULL_TO_TRUST = 1 << 20
_NO_SPACE = "No space left on device"


def judge(stage: Stage, result: StageResult, run: StageRun, error: str, remedy: str) -> None:
    """Raise what a program's end means, unless it ended well.

    `error` and `remedy` are what the program itself said, if it said anything.
    """
    if result.exit_code == 0:
        return
    if result.killed is not None:
        raise _killed(stage, result, run)
    if result.exit_code == BAD_INPUT:
        raise UsageError(error or f"stage {stage.name} refused its input", remedy=remedy)
    # A tool that cleans up after itself has made room again: then its words tell.
    if _NO_SPACE in error or _NO_SPACE in _tail(run.log) or _free(run.work) < _FULL:
        raise _disk_full(f"stage {stage.name} could not go on", run.work)
    failed = f"stage {stage.name} failed with exit code {result.exit_code}"
    if found := explain(run.log) or explain_text(error):
        own = f"; the program: {error[:200]}" if error and error not in found.line else ""
        raise found.kind(
            f"{failed}: {found.what}",
            why=f"{found.why} (as in {found.fault.seen[0]}){own}",
            remedy=f"{found.do}; the whole log: {run.log}",
        )
    raise StageError(
        failed,
        why=error or _last_line(run.log),
        remedy=f"the whole log: {run.log}",
    )


def _killed(stage: Stage, result: StageResult, run: StageRun) -> KilnError:
    """The error for a program that was ended by SIGKILL, by who sent it."""
    code = f"(exit {result.exit_code})"
    held = f"it was last seen to hold {units.size(result.held)}" if result.held else ""
    if result.killed is Killed.SOMEBODY:
        return StageError(
            f"stage {stage.name} was killed from outside {code}, and not for memory",
            why="; ".join(w for w in ("the kernel killed nothing for memory meanwhile", held) if w),
            remedy="see what ends processes here (a job's time limit, systemd-oomd or earlyoom, "
            "somebody's kill), then run this again: finished stages are kept",
        )
    limits = f"the limit was {units.size(run.memory)}; "
    limits += f"the stage was expected to need {units.size(stage.memory)}"
    what = f"stage {stage.name} was killed for memory {code}"
    if result.killed is Killed.UNKNOWN:
        what = f"stage {stage.name} was killed {code}, most likely for memory"
    elif result.killed is Killed.KERNEL:
        limits = f"the machine had none left; {limits}"
    return OutOfMemoryError(
        what,
        why="; ".join(w for w in (limits, held) if w),
        remedy="close other programs, give more with --memory-limit, or use a larger machine",
    )


def _disk_full(what: str, place: Path) -> DiskError:
    return DiskError(
        f"the disk is full: {what}",
        why=f"{units.size(_free(place))} are free at {place.parent}",
        remedy="free some space (`kiln store gc` shows what can go), then run this again",
    )


def _free(place: Path) -> int:
    return shutil.disk_usage(place).free


def _last_line(log: Path) -> str:
    lines = _tail(log).splitlines()
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")


def _tail(log: Path) -> str:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(lines[-_TAIL:])


def check_outputs(stage: Stage, out: Path, log: Path) -> None:
    """A program that ended well must have left what it promised.

    Some tools do not look whether their writes went well: on a disk without room what they left
    may be cut, whatever they say.
    """
    if _free(out) < _TOO_FULL_TO_TRUST:
        raise _disk_full(f"what stage {stage.name} wrote may be cut", out.parent)
    for output in stage.outputs:
        wanted = [out / output.name, *(out / output.name / f for f in output.files)]
        missing = [p for p in wanted if not p.exists() or (p.is_file() and not p.stat().st_size)]
        if missing:
            raise StageError(
                f"stage {stage.name} ended well but did not write {missing[0].relative_to(out)}",
                why=_last_line(log),
                remedy=f"the whole log: {log}",
            )
