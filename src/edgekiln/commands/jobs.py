"""The commands about builds in the background, and about what a CI job shows of a build."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from edgekiln import jobs, units
from edgekiln.errors import KilnError, UsageError
from edgekiln.jobs import Job, State, follow
from edgekiln.report import JsonReporter, Reporter, table

if TYPE_CHECKING:
    from edgekiln.build import Settings
    from edgekiln.recipe import Recipe

_LOOK_SECONDS = 0.2
_OF_THE_TERMINAL = ("--detach", "--json", "--quiet")
_COLUMNS = ("job", "", "for", "what", "now")


def detach(
    reporter: Reporter, words: Sequence[str], what: Recipe, how: Settings, *, dry_run: bool
) -> None:
    """Start a build as a job, and say how to look at it; `words` are the command line's.

    What can be refused at once is refused here, where somebody looks.
    """
    from edgekiln.backends import load_backend
    from edgekiln.build import check_places
    from edgekiln.executors.choose import check_executor
    from edgekiln.jobs.launch import start

    if dry_run:
        raise UsageError("--detach and --dry-run contradict each other", remedy="give one of them")
    check_executor(how.executor)
    check_places(how.on)
    what.parsed(load_backend(what.backend))
    given = words[words.index("build") :]
    job = start([word for word in given if word not in _OF_THE_TERMINAL])
    lines = [
        f"job {job.id} goes on by itself, also when this terminal is closed",
        f"kiln logs -f {job.id}   shows it",
        f"kiln wait {job.id}      ends when it does, with its exit code",
        f"kiln cancel {job.id}    stops it",
    ]
    reporter.result("job", job.id, "\n".join(lines))


def status(reporter: Reporter, named: str) -> None:
    """Say how all jobs are, or one of them with all that is known."""
    if named:
        job = jobs.find(named)
        reporter.result("job", _value(job, follow.sum_up(follow.told(job))), _described(job))
        return
    found = [(job, follow.sum_up(follow.told(job))) for job in jobs.all_jobs()]
    rows = [_row(job, seen) for job, seen in found]
    text = table(rows, _COLUMNS) if rows else "no job: `kiln build … --detach` starts one"
    reporter.result("jobs", [_value(job, seen) for job, seen in found], text)


def _row(job: Job, seen: follow.Seen) -> tuple[str, ...]:
    return (job.id, job.state().value, _took(job), job.title, seen.now)


def _took(job: Job) -> str:
    took = jobs.seconds(job)
    return "" if took is None else units.seconds(took)


def _value(job: Job, seen: follow.Seen) -> dict[str, object]:
    return {
        "id": job.id,
        "state": job.state().value,
        "exit_code": job.exit_code,
        "command": ["kiln", *job.words],
        "folder": job.folder,
        "began": round(job.began, 3),
        "seconds": jobs.seconds(job),
        "process": job.process,
        "stages": seen.stages,
        "now": seen.now,
        "bundle": seen.results.get("bundle"),
        "events": str(job.events),
    }


def _described(job: Job) -> str:
    seen = follow.sum_up(follow.told(job))
    code = job.exit_code
    began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.began))
    rows = [
        ("job", job.id),
        ("state", job.state().value + ("" if code is None else f" (exit code {code})")),
        ("command", f"kiln {job.title}"),
        ("folder", job.folder),
        ("began", f"{began}, {_took(job) or 'its end was not seen'}"),
        ("process", job.process),
        *((f"  {stage}", f"{how} {seen.at.get(stage, '')}") for stage, how in seen.stages.items()),
        ("now", seen.now if job.state() is State.RUNNING else seen.last),
        ("bundle", str(seen.results.get("bundle") or "")),
        ("events", str(job.events)),
    ]
    return "\n".join(f"{name:<12} {text.rstrip()}" for name, text in rows if text)


def logs(reporter: Reporter, named: str, *, on: bool) -> None:
    """Show what a job told, as the build itself would; with `on` until it ends."""
    job = jobs.find(named)
    with _only_watching(reporter, job):
        error = follow.replay(follow.told(job, follow=on), reporter)
    reporter.close()
    ended = _over(job, error)
    if ended and not (error and isinstance(reporter, JsonReporter)):
        reporter.failed(ended)


def wait(reporter: Reporter, named: str) -> None:
    """Wait for a job, show what came out, and raise what the build itself ended with."""
    job = jobs.find(named)
    if job.state() is State.RUNNING:
        reporter.say(f"waiting for job {job.id}: {job.title}")
    _sleep_until_over(reporter, job)
    error = None
    for event in follow.told(job):
        if event["event"] == "result":
            follow.show(event, reporter)
        elif event["event"] == "error":
            error = follow.as_error(event)
    if ended := _over(job, error):
        raise ended


def _over(job: Job, error: KilnError | None) -> KilnError | None:
    return None if job.state() is State.RUNNING else follow.how_it_ended(job, error)


def _sleep_until_over(reporter: Reporter, job: Job) -> None:
    with _only_watching(reporter, job):
        while job.state() is State.RUNNING:
            time.sleep(_LOOK_SECONDS)


@contextmanager
def _only_watching(reporter: Reporter, job: Job) -> Iterator[None]:
    """Ctrl-C ends the watching, not the job."""
    from invoke.exceptions import Exit

    try:
        yield
    except KeyboardInterrupt:
        reporter.close()
        if job.state() is State.RUNNING:
            reporter.say(f"\njob {job.id} goes on; `kiln cancel {job.id}` stops it")
        raise Exit(code=jobs.STOPPED) from None


def cancel(reporter: Reporter, named: str) -> None:
    """Stop a job as Ctrl-C does, and wait until it has ended."""
    from edgekiln.jobs.launch import cancel as ask

    job = jobs.find_running(named)
    if not ask(job):
        reporter.result("job", job.id, f"job {job.id} is over already: {job.state().value}")
        return
    reporter.say(f"job {job.id}: asked to stop")
    _sleep_until_over(reporter, job)
    state = job.state()
    kept = "; finished stages are kept" if state is State.STOPPED else ""
    reporter.result("job", job.id, f"job {job.id} is {state.value}{kept}")


def summary(bundle: Path, *, to: str) -> None:
    """Print a bundle's page, or add it to a file."""
    from edgekiln.jobsummary import append, page

    text = page(bundle.expanduser())
    if to:
        append(text, Path(to).expanduser())
    else:
        print(text, end="")
