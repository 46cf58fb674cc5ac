"""Builds in the background: how they are named, found, followed, stopped, forgotten."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from edgekiln import jobs
from edgekiln.__main__ import translate
from edgekiln.errors import KilnError, UsageError
from edgekiln.executors import owners
from edgekiln.jobs import Job, State, follow, launch
from edgekiln.report import JsonReporter, LineReporter
from tests.unit.test_cli import kiln

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no sessions")
FAILS = ("build", "--backend", "mnn", "--model", "/no/such/model")


def remembered(name: str, *, began: float | None = None, code: int | None = 0) -> Path:
    """The folder of a job that is over; without a code it was killed."""
    place = jobs.folder() / name
    place.mkdir(parents=True)
    said = {"words": ["build", "--json"], "folder": "/", "began": began or time.time()}
    jobs.write(place / "job.json", said)
    jobs.write(place / "process.json", {"process": owners.this_process()})
    (place / "lock").touch()
    (place / "output.txt").touch()
    (place / "events.jsonl").touch()
    if code is not None:
        jobs.write(place / "ended.json", {"exit_code": code, "time": (began or time.time()) + 5})
    return place


def until_over(job: Job) -> State:
    """How it ended."""
    deadline = time.monotonic() + 30
    while job.state() is State.RUNNING:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return job.state()


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["logs", "-f"], ["logs", "--follow"]),
        (["logs", "-f", "1121-1"], ["logs", "--follow", "--job=1121-1"]),
        (["logs", "1121-1", "-f"], ["logs", "--job=1121-1", "--follow"]),
        (["wait", "--job", "1121-1"], ["wait", "--job", "1121-1"]),
        (["status", "--json"], ["status", "--json"]),
        (["cancel", "--help"], ["--help", "cancel"]),
    ],
)
def test_a_word_by_itself_is_the_job(words: list[str], meant: list[str]) -> None:
    assert translate(words) == meant


def test_a_job_ends_as_its_build_does(own_home: Path) -> None:
    started = kiln(*FAILS, "--detach", EDGEKILN_HOME=str(own_home))
    assert started.returncode == 0, started.stderr
    job = jobs.find()
    assert job.id in started.stdout and until_over(job) is State.FAILED
    waited = kiln("wait", EDGEKILN_HOME=str(own_home))
    assert waited.returncode == job.exit_code == 3
    plain = kiln(*FAILS, EDGEKILN_HOME=str(own_home))
    assert waited.stderr == plain.stderr and "/no/such/model" in plain.stderr
    shown = kiln("status", "--json", EDGEKILN_HOME=str(own_home))
    (value,) = json.loads(shown.stdout)["value"]
    assert (value["state"], value["exit_code"]) == ("failed", 3)
    assert value["command"] == ["kiln", *FAILS, "--json"]


def test_json_of_a_jobs_log_is_what_the_build_wrote(own_home: Path) -> None:
    job = launch.start(FAILS)
    until_over(job)
    shown = kiln("logs", "--json", EDGEKILN_HOME=str(own_home))
    assert shown.stdout == job.events.read_text() != ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--backend", "mnn", "--quant-bit", "5"], "one of: 2, 4, 8, 16"),
        (["--backend", "mnn", "--executor", "podman"], "one of: auto"),
        (["--backend", "mnn", "--dry-run"], "--detach and --dry-run"),
    ],
)
def test_what_can_be_refused_at_once_makes_no_job(
    own_home: Path, words: list[str], said: str
) -> None:
    done = kiln("build", *words, "--detach", EDGEKILN_HOME=str(own_home))
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr
    assert not jobs.all_jobs()


def test_a_job_is_named_by_how_it_begins(own_home: Path) -> None:
    for age, name in enumerate(("1121-093007", "1121-101500", "1122-080000")):
        remembered(name, began=1e9 + age)
    assert jobs.find().id == "1122-080000"
    assert jobs.find("1121-10").id == "1121-101500"
    with pytest.raises(UsageError, match="beginning of 2 jobs"):
        jobs.find("1121")
    with pytest.raises(UsageError, match="there is no job 1123") as error:
        jobs.find("1123-080000")
    assert error.value.remedy == "did you mean 1122-080000?"
    with pytest.raises(UsageError, match="no job is running"):
        jobs.find_running()


def test_one_without_a_holder_and_without_a_code_was_killed(own_home: Path) -> None:
    remembered("1121-093007", code=None)
    assert jobs.find().state() is State.KILLED
    waited = kiln("wait", EDGEKILN_HOME=str(own_home))
    assert waited.returncode == 23
    assert "job 1121-093007 was killed" in waited.stderr and "do:" in waited.stderr


def test_a_number_that_is_another_process_now_is_sent_nothing(own_home: Path) -> None:
    """The lock says that nobody is there, and the time of its beginning that it is another."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as other:
        place = remembered("1121-093007", code=None)
        host = owners.this_process().split(":")[0]
        stale = {"process": f"{host}:{other.pid}:1"}
        jobs.write(place / "process.json", stale)
        assert not launch.cancel(jobs.find())
        if Path("/proc/self/stat").exists():
            assert owners.here(stale["process"]) is None
        assert other.poll() is None
        other.kill()


def test_another_machines_job_cannot_be_stopped_from_here(own_home: Path) -> None:
    import fcntl

    place = remembered("1121-093007", code=None)
    jobs.write(place / "process.json", {"process": "elsewhere:12:34"})
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(KilnError, match="does not run on this machine"):
            launch.cancel(jobs.find())


def test_old_jobs_are_forgotten_and_running_ones_never(own_home: Path) -> None:
    import fcntl

    for number in range(40):
        remembered(f"recent-{number:02}", began=time.time() - number)
    remembered("old-over", began=time.time() - 60 * 86400)
    place = remembered("old-running", began=time.time() - 60 * 86400, code=None)
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        launch.tidy()
        names = {job.id for job in jobs.all_jobs()}
    assert names == {"old-running", *(f"recent-{number:02}" for number in range(30))}


def test_two_jobs_of_one_moment_get_two_names(own_home: Path) -> None:
    jobs.folder().mkdir(parents=True)
    places = {launch._free(jobs.folder() / "1121-093007").name for _ in range(3)}
    assert places == {"1121-093007", "1121-093007-2", "1121-093007-3"}


def test_a_job_is_not_seen_before_its_lock_is_held(own_home: Path) -> None:
    made = launch._made(["build"])
    assert made.place.is_dir() and jobs.all_jobs() == [], "it would look killed"
    with launch._spawn(made) as process:
        assert [job.words for job in jobs.all_jobs()] == [("build",)]
        process.kill()


def test_a_jobs_files_are_for_its_owner_only(own_home: Path) -> None:
    job = launch.start(FAILS)
    until_over(job)
    assert job.place.stat().st_mode & 0o077 == 0


def test_nothing_of_the_environment_is_written_down(
    own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_ThisIsNobodysToken")
    until_over(launch.start(FAILS))
    for path in [path for path in own_home.rglob("*") if path.is_file()]:
        assert b"hf_ThisIsNobodysToken" not in path.read_bytes(), path


def lines_of(*events: dict[str, Any]) -> bytes:
    """A file of events."""
    return b"".join(json.dumps({"time": 1.0, **event}).encode() + b"\n" for event in events)


def test_what_is_written_while_it_is_read_is_seen_and_half_a_line_waits(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    whole = lines_of({"event": "note", "text": "one"}, {"event": "note", "text": "two"})
    steps = [whole[:20], whole[20:60], whole[60:] + b'{"event": "no']
    path.write_bytes(b"")

    def goes_on() -> bool:
        if steps:
            with path.open("ab") as file:
                file.write(steps.pop(0))
            return True
        return False

    assert [event["text"] for event in follow.events(path, goes_on)] == ["one", "two"]


def test_a_build_told_again_reads_as_it_did_the_first_time(tmp_path: Path) -> None:
    def tell(reporter: Any) -> None:
        reporter.say("executor: native")
        reporter.started("export", "mnn/export.py in mnn, 2 threads")
        reporter.progressed("export", 3, 30, "layers", "")
        reporter.ended("export", "done", {"seconds": 1.5, "peak_memory": 1 << 20, "size": 5})
        reporter.result("bundle", "/b", "\nbundle: /b (5 B)")

    written = io.StringIO()
    tell(JsonReporter(written))
    path = tmp_path / "events.jsonl"
    path.write_text(written.getvalue())
    first, again = ((io.StringIO(), io.StringIO()) for _ in range(2))
    tell(LineReporter(*first))
    assert follow.replay(follow.events(path), LineReporter(*again)) is None
    assert [text.getvalue() for text in again] == [text.getvalue() for text in first]


def test_damaged_lines_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(
        b'\xff\n[]\n{"event": 3}\n'
        + lines_of({"event": "error"}, {"event": "result"}, {"event": "note", "text": "whole"})
    )
    assert [event.get("text") for event in follow.events(path)] == ["whole"]


def test_where_a_job_is_by_what_it_told(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    begun = [
        {"event": "started", "task": "export", "what": "x"},
        {"event": "ended", "task": "export", "how": "done"},
        {"event": "started", "task": "prove", "what": "x"},
        {"event": "progress", "task": "prove", "done": 3, "total": 12, "unit": "texts", "what": ""},
    ]
    path.write_bytes(lines_of(*begun))
    seen = follow.sum_up(follow.events(path))
    assert seen.stages == {"export": "done", "prove": "running"}
    assert seen.now == "prove 3 of 12 texts"


def test_an_error_keeps_its_kind_and_code() -> None:
    said = {"kind": "disk", "exit_code": 11, "what": "full", "why": "no space", "remedy": "free"}
    error = follow.as_error({"event": "error", **said})
    assert (error.kind, error.exit_code, error.lines()[1]) == ("disk", 11, "why:   no space")
    assert KilnError("x").exit_code == 1, "the class itself is left alone"
