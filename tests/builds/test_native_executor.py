"""Stages as plain processes: nothing of them stays, whatever ends them, whoever runs them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from edgekiln.errors import OutOfMemoryError, StageError
from edgekiln.executors.guard import descendants
from edgekiln.executors.processes import network_cut
from edgekiln.pipeline import Pipeline
from tests.builds.kit import NOBODY, alive, call, nobodys_python, open_folder, python, until
from tests.unit.kit import Bench, stage

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="native stages are for Linux")
# A stage that leaves processes in its group, in a session of their own, and orphaned in one.
FAMILY = """
import subprocess
names = Path({pids!r})
sleeps = 'import os,sys,time; open(sys.argv[1], "w").write(str(os.getpid())); time.sleep(600)'
sleep = [sys.executable, '-c', sleeps]
subprocess.Popen([*sleep, str(names / 'child')])
subprocess.Popen([*sleep, str(names / 'session')], start_new_session=True)
daemon = ('import os,sys\\nif os.fork(): os._exit(0)\\nos.setsid()\\nif os.fork(): os._exit(0)\\n'
          'os.execv(sys.argv[1], sys.argv[1:])')
subprocess.run([sys.executable, '-c', daemon, *sleep, str(names / 'daemon')], check=True)
(names / 'stage').write_text(str(os.getpid()))
began = [names / 'child', names / 'session', names / 'daemon']
while not all(name.exists() and name.read_text() for name in began):
    time.sleep(0.01)
(names / 'all').write_text('')
{then}
"""


def family(bench: Bench, then: str) -> Pipeline:
    """One stage with a family of processes that would sleep for ten minutes."""
    pids = bench.root / "pids"
    pids.mkdir(mode=0o777)
    bench.program("family.py", FAMILY.format(pids=str(pids), then=then))
    return Pipeline(stages=(stage("family", "family.py"),))


def living(bench: Bench) -> list[str]:
    """Which of a family are still there."""
    files = [f for f in (bench.root / "pids").iterdir() if f.name != "all"]
    assert len(files) == 4, "all of them began"
    return sorted(f.name for f in files if alive(int(f.read_text())))


def test_what_a_stage_leaves_running_ends_with_it(bench: Bench) -> None:
    bench.run(family(bench, "stage.output('made').write_text('x')"))
    assert living(bench) == []


def test_what_a_failed_stage_leaves_running_ends_with_it(bench: Bench) -> None:
    with pytest.raises(StageError):
        bench.run(family(bench, "raise RuntimeError('no')"))
    assert living(bench) == []


def test_cancel_ends_processes_in_sessions_of_their_own(bench: Bench) -> None:
    pipeline = family(bench, "time.sleep(600)")
    everybody = str(bench.root / "pids" / "all")
    bench.program("bad.py", f"while not Path({everybody!r}).exists(): pass\nraise OSError")
    pipeline = Pipeline(stages=(*pipeline.stages, stage("bad", "bad.py")))
    with pytest.raises(StageError, match="bad"):
        bench.run(pipeline)
    assert living(bench) == []


SEPARATE = """
import sys
from pathlib import Path
from types import SimpleNamespace
from tests.unit.kit import Bench, stage
from edgekiln.pipeline import Pipeline
root = Path(sys.argv[1])
plain = SimpleNamespace(
    name="plain", digest="0" * 64, installed="0" * 64, env={}, summary="", kits=()
)
bench = Bench(root, plain)
bench.run(Pipeline(stages=(stage("family", "family.py"),)))
"""


def test_a_build_killed_outright_leaves_no_process(bench: Bench) -> None:
    family(bench, "time.sleep(600)")
    command, env = python("-c", SEPARATE, str(bench.root))
    build = subprocess.Popen(command, env=env)
    until((bench.root / "pids" / "all").exists, "the stage's processes run")
    assert len(descendants(build.pid)) >= 4
    build.kill()
    build.wait()
    until(lambda: living(bench) == [], "all of them are gone")


def test_a_guard_killed_outright_takes_the_stage_with_it(bench: Bench) -> None:
    bench.program("orphan.py", "os.kill(os.getppid(), 9); time.sleep(600)")
    with pytest.raises((StageError, OutOfMemoryError), match="killed"):
        bench.run(Pipeline(stages=(stage("orphan", "orphan.py"),)))


def test_memory_is_counted_across_sessions(bench: Bench) -> None:
    bench.limits = type(bench.limits)(cpus=1, memory=150 << 20)
    bench.program(
        "spread.py",
        """
        import subprocess
        hold = "x = bytearray(90 << 20); import time; time.sleep(60)"
        words = [sys.executable, '-c', hold]
        both = [subprocess.Popen(words, start_new_session=True) for _ in '12']
        both[0].wait()
        """,
    )
    with pytest.raises(OutOfMemoryError, match="killed for memory"):
        bench.run(Pipeline(stages=(stage("spread", "spread.py"),)))


def test_the_kernel_would_end_the_stage_before_others(bench: Bench) -> None:
    bench.program(
        "score.py",
        "stage.output('made').write_text(Path('/proc/self/oom_score_adj').read_text())",
    )
    done = bench.run(Pipeline(stages=(stage("score", "score.py"),)))
    assert int(done["score"].entry.output("made").read_text()) == 500


def test_the_loopback_is_up_and_nothing_else_answers(bench: Bench) -> None:
    if not network_cut():
        pytest.skip("this kernel lets nobody make a network namespace here")
    bench.program(
        "net.py",
        """
        import socket
        server = socket.create_server(('127.0.0.1', 0))
        socket.create_connection(server.getsockname(), timeout=5).close()
        names = [name for _, name in socket.if_nameindex()]
        stage.output('made').write_text(json.dumps(names))
        """,
    )
    done = bench.run(Pipeline(stages=(stage("net", "net.py"),)))
    routes = done["net"].entry.output("made").read_text()
    assert "lo" in routes and "eth" not in routes


def test_a_stage_sees_only_its_own_environment(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("PYTHONSTARTUP", "/nonsense")
    bench.program("env.py", "stage.output('made').write_text(json.dumps(dict(os.environ)))")
    done = bench.run(Pipeline(stages=(stage("env", "env.py"),)))
    env = done["env"].entry.output("made").read_text()
    assert "secret" not in env and "nonsense" not in env
    assert '"OMP_NUM_THREADS": "2"' in env and '"HF_HUB_OFFLINE": "1"' in env


AS_ANOTHER = """
import json, os, sys
from pathlib import Path
from types import SimpleNamespace
from tests.unit.kit import Bench, stage
from edgekiln.executors.native import NativeExecutor
from edgekiln.executors.processes import network_cut
from edgekiln.pipeline import Pipeline
root = Path(sys.argv[1])
plain = SimpleNamespace(
    name="plain", digest="0" * 64, installed="0" * 64, env={}, summary="", kits=()
)
bench = Bench(root, plain)
bench.program("net.py", '''
import socket
stage.output('made').write_text(json.dumps([name for _, name in socket.if_nameindex()]))
''')
done = bench.run(Pipeline(stages=(stage("net", "net.py"),)))
made = done["net"].entry.output("made")
print(json.dumps({"uid": os.getuid(), "owner": made.stat().st_uid, "cut": bool(network_cut()),
                  "seen": json.loads(made.read_text()), "says": NativeExecutor().describe()}))
"""


@pytest.fixture
def another() -> Iterator[dict[str, Any]]:
    """What a stage run by an ordinary user finds."""
    with open_folder() as root:
        os.chown(root, NOBODY, NOBODY)
        done = call(*nobodys_python("-c", AS_ANOTHER, str(root), HOME=str(root)))
        assert done.returncode == 0, done.stderr
        yield json.loads(done.stdout)


def test_an_ordinary_users_results_are_his(another: dict[str, Any]) -> None:
    assert (another["uid"], another["owner"]) == (NOBODY, NOBODY)


def test_what_is_said_of_the_network_is_what_a_stage_finds(another: dict[str, Any]) -> None:
    mine = [name for _, name in socket.if_nameindex()]
    assert another["cut"] == ("NOT cut" not in another["says"])
    if another["cut"]:
        assert "lo" in another["seen"] and "eth0" not in another["seen"]
    else:
        assert another["seen"] == mine
