"""Starts a build in a process of its own, and ends one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from edgekiln.errors import AccessError, EngineError, KilnError
from edgekiln.executors import owners
from edgekiln.jobs import Job, State, all_jobs, folder, write

_RUNNING = Path(__file__).with_name("running.py")
_LOOK_SECONDS = 0.05
# Enough to look back at what was built in the last weeks, too little to fill a disk.
_KEPT_JOBS, _KEPT_SECONDS = 30, 30 * 86400.0


def start(words: Sequence[str]) -> Job:
    """Start `kiln WORDS --json` in a session of its own, in this folder and environment.

    Returns when the process has begun. Raises EngineError where the system knows no sessions, and
    AccessError where nothing can be written.
    """
    if sys.platform == "win32":
        raise EngineError(
            "a build cannot be detached on Windows",
            remedy="leave --detach out, or run kiln in WSL",
        )
    tidy()
    job = _made([*words, "--json"])
    process = _spawn(job)
    while not job.process and process.poll() is None:
        time.sleep(_LOOK_SECONDS)
    if not job.process:
        said = job.output.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise KilnError("the job did not start", why=said[-1] if said else "it said nothing")
    return job


def _made(words: list[str]) -> Job:
    """A job with a folder of its own, which nobody sees yet."""
    began = time.time()
    name = time.strftime("%m%d-%H%M%S", time.localtime(began))
    try:
        folder().mkdir(parents=True, exist_ok=True)
        place = _free(folder() / name)
    except OSError as error:
        raise AccessError(
            f"cannot write {folder()}", why=str(error.strerror), remedy="set EDGEKILN_HOME"
        ) from error
    return Job(id=place.name, place=place, words=tuple(words), folder=str(Path.cwd()), began=began)


def _free(wanted: Path) -> Path:
    """A folder that is made now: two jobs of one second get two."""
    place, count = wanted, 1
    while True:
        try:
            place.mkdir(mode=0o700)
            return place
        except FileExistsError:
            count += 1
            place = wanted.with_name(f"{wanted.name}-{count}")


def _spawn(job: Job) -> subprocess.Popen[bytes]:
    """The process, with the job's lock handed down to it: there is no moment without a holder.

    It is seen from job.json on, and locked by then, so that nobody takes it for a killed one.
    """
    import fcntl

    lock = os.open(job.place / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        said = {"words": list(job.words), "folder": job.folder, "began": job.began}
        write(job.place / "job.json", said)
        with job.events.open("wb") as out, job.output.open("wb") as err:
            return subprocess.Popen(
                [sys.executable, str(_RUNNING), str(job.place), str(lock), *job.words],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                pass_fds=[lock],
                start_new_session=True,
            )
    finally:
        os.close(lock)


def cancel(job: Job) -> bool:
    """Ask a job's process to end, as Ctrl-C does; False where there is none to ask.

    The number of a process alone would not do: after a restart it is somebody else's. Raises
    KilnError where the process is another machine's.
    """
    while not job.process and job.state() is State.RUNNING:
        time.sleep(_LOOK_SECONDS)
    if job.state() is not State.RUNNING:
        return False
    pid = owners.here(job.process)
    if pid is None:
        raise KilnError(
            f"job {job.id} does not run on this machine",
            why=f"its process is {job.process}",
            remedy="cancel it there",
        )
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return False
    except PermissionError as error:
        raise AccessError(
            f"job {job.id} is another user's",
            why=f"its process {pid} may not be sent a signal",
            remedy="cancel it as who started it",
        ) from error
    return True


def tidy() -> None:
    """Forget the jobs that ended long ago, and the oldest where there are many."""
    over = time.time() - _KEPT_SECONDS
    for place, job in enumerate(all_jobs()):
        old = place >= _KEPT_JOBS or (job.ended or job.began) < over
        if old and job.state() is not State.RUNNING:
            shutil.rmtree(job.place, ignore_errors=True)
