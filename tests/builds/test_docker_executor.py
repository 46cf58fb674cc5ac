"""Stages in real containers: what they may, what they leave, and that they go away."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from edgekiln.digest import FileIndex
from edgekiln.errors import KilnError, OutOfMemoryError, StageError
from edgekiln.executors import owners
from edgekiln.executors.docker import DockerExecutor
from edgekiln.executors.kills import kernel_kills
from edgekiln.pipeline import FromPath, Pipeline
from edgekiln.progress import Silent
from tests.builds.kit import NOBODY, call, nobodys_python, open_folder, python, until
from tests.unit.kit import Bench, stage

if TYPE_CHECKING:
    from edgekiln.engine import Engine
    from edgekiln.toolchain import Toolchain

pytestmark = pytest.mark.engine

LOOK = """
import socket, errno
def tried(path):
    try:
        Path(path).write_text('x')
        return 'written'
    except OSError as error:
        return errno.errorcode[error.errno]
status = dict(line.split(':', 1) for line in Path('/proc/self/status').read_text().splitlines())
Path(os.environ['TMPDIR'], 'scrap').write_text('x')
stage.output('made').write_text(json.dumps({
    'input file': tried('/in/model/config.json'), 'input folder': tried('/in/model/new'),
    'scripts': tried('/kiln/scripts/new'), 'parameters': tried('/kiln/params.json'),
    'root': tried('/new'), 'tmp': tried('/tmp/new'), 'opt': tried('/opt/new'),
    'capabilities': [int(status[name], 16) for name in ('CapEff', 'CapPrm', 'CapInh', 'CapBnd')],
    'privileges': int(status['NoNewPrivs']),
    'network': [name for _, name in socket.if_nameindex()],
    'init': Path('/proc/1/cmdline').read_text().split(chr(0))[0],
    'user': [os.getuid(), os.getgid()], 'environment': dict(os.environ),
}))
"""


def run_one(bench: Bench, body: str, **inputs: Path) -> Path:
    """Run one stage in the mnn image and return its output."""
    bench.program("one.py", body)
    sources = {name: FromPath(path=path) for name, path in inputs.items()}
    done = bench.run(Pipeline(stages=(stage("one", "one.py", memory=1 << 26, **sources),)))
    return done["one"].entry.output("made")


def ours(engine: Engine, name: str = "") -> list[dict[str, Any]]:
    """Containers that this process, or one with that owner, has."""
    label = f"{owners.LABEL}={name or owners.this_process()}"
    filters = json.dumps({"label": [label]})
    from urllib.parse import quote

    return engine.get(f"/containers/json?all=1&filters={quote(filters)}") or []


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder to read."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"a": 1}')
    return folder


@pytest.fixture
def seen(boat: Bench, model: Path) -> dict[str, Any]:
    """What a stage finds in its container."""
    found: dict[str, Any] = json.loads(run_one(boat, LOOK, model=model).read_text())
    return found


def test_a_stage_can_do_no_harm(seen: dict[str, Any], model: Path) -> None:
    places = ("input file", "input folder", "scripts", "parameters", "root", "tmp", "opt")
    assert {place: seen[place] for place in places} == dict.fromkeys(places, "EROFS")
    assert seen["capabilities"] == [0, 0, 0, 0]
    assert seen["privileges"] == 1
    assert "lo" in seen["network"] and "eth0" not in seen["network"]
    assert (model / "config.json").read_text() == '{"a": 1}'


def test_an_init_stands_over_it_and_the_environment_is_the_contracts(seen: dict[str, Any]) -> None:
    assert "init" in seen["init"]
    env = seen["environment"]
    assert (env["HF_HUB_OFFLINE"], env["PYTHONHASHSEED"], env["KILN_CPUS"]) == ("1", "0", "2")
    assert env["HOME"] == env["TMPDIR"] == "/scratch"


def test_results_are_the_callers(boat: Bench, seen: dict[str, Any], engine: Engine) -> None:
    if not engine.rootless:
        assert seen["user"] == [os.getuid(), os.getgid()]
    (entry,) = boat.store.entries()
    assert entry.output("made").stat().st_uid == os.getuid()
    assert not stat.S_IMODE(entry.output("made").stat().st_mode) & 0o222


def test_the_container_is_removed_after_success(boat: Bench, engine: Engine) -> None:
    run_one(boat, "stage.output('made').write_text('x')")
    assert ours(engine) == []


def test_the_container_is_removed_after_failure(boat: Bench, engine: Engine) -> None:
    with pytest.raises(StageError, match="exit code 1") as caught:
        run_one(boat, "raise RuntimeError('the tool broke')")
    assert "the tool broke" in caught.value.why
    assert ours(engine) == []
    assert not list((boat.store.root / "doing").iterdir())


def test_a_stage_killed_for_memory_is_told_the_figure(boat: Bench, engine: Engine) -> None:
    boat.limits = type(boat.limits)(cpus=1, memory=100_000_000)
    with pytest.raises(OutOfMemoryError) as caught:
        run_one(boat, "x = bytearray(400 << 20); stage.output('made').write_text('x')")
    assert "killed for memory (exit 137)" in caught.value.what
    assert "100.0 MB" in caught.value.why
    assert ours(engine) == []


def test_a_stage_killed_by_somebody_is_not_called_memory(boat: Bench, engine: Engine) -> None:
    before = kernel_kills()
    with pytest.raises(KilnError, match="killed") as caught:
        run_one(boat, "os.kill(os.getpid(), 9)")
    if before is None or kernel_kills() != before or not engine.url.startswith("unix://"):
        pytest.skip("this kernel counts no kills, or killed something for memory just now")
    assert isinstance(caught.value, StageError)
    assert "from outside (exit 137), and not for memory" in caught.value.what


def test_orphans_in_the_container_are_reaped(boat: Bench) -> None:
    body = """
    import subprocess
    for _ in range(20):
        subprocess.run(['sh', '-c', 'sleep 0.01 &'], check=True)
    time.sleep(0.5)
    stats = [p.read_text().rpartition(')')[2] for p in Path('/proc').glob('[0-9]*/stat')]
    stage.output('made').write_text(''.join(text.split()[0] for text in stats))
    """
    assert "Z" not in run_one(boat, body).read_text()


def test_what_the_program_and_its_children_say_is_in_the_log(boat: Bench) -> None:
    body = """
    print('a library chats'); os.system('echo and its children')
    stage.progress(1, 2, unit='layers'); stage.note('half-way: \u00bd')
    stage.output('made').write_text('x')
    """
    run_one(boat, body)
    (log,) = (boat.root / "logs").iterdir()
    assert "a library chats" in log.read_text() and "and its children" in log.read_text()
    assert ("one", 1, 2) in boat.heard.progress
    assert "one: half-way: \u00bd" in boat.heard.said


READ = """
root = stage.input('model')
found = {p.relative_to(root).as_posix(): p.read_text() for p in root.rglob('*') if p.is_file()}
stage.output('made').write_text(json.dumps(found))
"""


def test_a_model_in_a_hub_caches_link_farm_is_read(boat: Bench, tmp_path: Path) -> None:
    repo = tmp_path / "models--org--name"
    (repo / "blobs").mkdir(parents=True)
    snapshot = repo / "snapshots" / "c0ffee"
    (snapshot / "sub").mkdir(parents=True)
    elsewhere = tmp_path / "elsewhere.txt"
    elsewhere.write_text("absolute")
    (repo / "blobs" / "aa").write_text("config")
    (repo / "blobs" / "bb").write_text("weights")
    (snapshot / "config.json").symlink_to("../../blobs/aa")
    (snapshot / "sub" / "model.safetensors").symlink_to("../../../blobs/bb")
    (snapshot / "plain.txt").write_text("plain")
    (snapshot / "far.txt").symlink_to(elsewhere)
    wanted = {
        "config.json": "config",
        "sub/model.safetensors": "weights",
        "plain.txt": "plain",
        "far.txt": "absolute",
    }
    assert json.loads(run_one(boat, READ, model=snapshot).read_text()) == wanted
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-rL", str(snapshot), str(copy)], check=True)
    digests = [FileIndex(tmp_path / "index").digest(place) for place in (snapshot, copy)]
    assert digests[0] == digests[1]
    assert json.loads(run_one(boat, READ, model=copy).read_text()) == wanted
    assert boat.heard.how("one") == ["done", "cached"], "the same bytes, the same key"


def test_a_single_file_behind_a_link_is_read(boat: Bench, tmp_path: Path) -> None:
    (tmp_path / "real").write_text("text")
    (tmp_path / "link").symlink_to("real")
    body = "stage.output('made').write_text(stage.input('text').read_text() * 2)"
    assert run_one(boat, body, text=tmp_path / "link").read_text() == "texttext"


BUILD = """
import sys
from pathlib import Path
from edgekiln import cli
from edgekiln.engine import find_engine
from edgekiln.executors.docker import DockerExecutor
from edgekiln.executors import owners
from edgekiln.pipeline import Pipeline
from edgekiln.toolchain import load_toolchain
from invoke.exceptions import Exit
from tests.unit.kit import Bench, stage
root = Path(sys.argv[1])
bench = Bench(root, load_toolchain("mnn"), executor=lambda: DockerExecutor(find_engine()))
bench.program("one.py", sys.argv[2])
print(owners.this_process(), flush=True)
try:
    with cli.reporting():
        bench.run(Pipeline(stages=(stage("one", "one.py"),)))
except Exit as leaving:
    sys.exit(leaving.code)
"""
SLEEPS = "stage.note('began'); (stage.output('made')).write_text('half'); time.sleep(600)"


class Build:
    """A build in a process of its own, of one stage that never ends."""

    def __init__(self, root: Path, engine: Engine) -> None:
        root.mkdir()
        self.root, self._engine = root, engine
        command, env = python("-c", BUILD, str(root), SLEEPS, DOCKER_HOST=engine.url)
        self.process = subprocess.Popen(
            command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert self.process.stdout is not None
        self.owner = self.process.stdout.readline().strip()
        until(lambda: bool(self.halves()), "its stage writes")

    def halves(self) -> list[Path]:
        """What its stage has written so far."""
        return list(self.root.glob("store/v1/doing/*/out/made"))

    def containers(self) -> list[dict[str, Any]]:
        """Its containers."""
        return ours(self._engine, self.owner)

    def end(self, number: int) -> tuple[int, str]:
        """Send a signal; its exit code and what it said."""
        self.process.send_signal(number)
        _, said = self.process.communicate(timeout=60)
        return self.process.returncode, said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_build_that_is_stopped_removes_its_container(
    number: int, tmp_path: Path, engine: Engine, image: str
) -> None:
    build = Build(tmp_path / "build", engine)
    assert len(build.containers()) == 1
    code, said = build.end(number)
    assert (code, build.containers()) == (130, [])
    assert "finished stages are kept" in said and "Traceback" not in said
    assert not build.halves()


def test_a_killed_builds_container_is_reaped_and_a_living_ones_left(
    tmp_path: Path, engine: Engine, image: str, mnn: Toolchain
) -> None:
    killed, living = Build(tmp_path / "killed", engine), Build(tmp_path / "living", engine)
    try:
        assert killed.end(signal.SIGKILL)[0] == -signal.SIGKILL
        assert len(killed.containers()) == 1, "nobody was there to remove it"
        DockerExecutor(engine).tidy()
        assert killed.containers() == []
        assert len(living.containers()) == 1
    finally:
        living.end(signal.SIGTERM)


def test_a_label_that_is_not_ours_to_read_is_nobodys_orphan() -> None:
    for name in ("", "x", "a:b:c", f"{owners.this_process()}", "::", "host:1:"):
        assert not owners.is_orphan(name)


def test_an_ordinary_users_results_are_his(engine: Engine, image: str) -> None:
    socket = Path(engine.url.removeprefix("unix://"))
    if engine.rootless or not socket.is_socket():
        pytest.skip("no socket that another user could be let at")
    with open_folder() as root:
        os.chown(root, NOBODY, NOBODY)
        body = "stage.output('made').write_text(json.dumps([os.getuid(), os.getgid()]))"
        host = {"DOCKER_HOST": engine.url, "HOME": str(root)}
        command, env = nobodys_python("-c", BUILD, str(root), body, **host)
        group = socket.stat().st_gid
        words = [f"--groups={group}" if w == "--clear-groups" else w for w in command]
        done = call(words, env)
        assert done.returncode == 0, done.stderr
        (made,) = root.glob("store/v1/objects/*/*/out/made")
        assert json.loads(made.read_text()) == [NOBODY, NOBODY]
        assert made.stat().st_uid == NOBODY


def test_an_image_that_is_gone_is_made_again(engine: Engine, mnn: Toolchain, image: str) -> None:
    executor = DockerExecutor(engine)
    assert executor.ready(mnn)
    executor.prepare(mnn, Silent())
    assert image.startswith("edgekiln/mnn:")
