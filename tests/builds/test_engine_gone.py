"""The engine goes away in mid-stage: said plainly, nothing left, and the build goes on later.

A second dockerd of the tests' own is brought up for it; the machine's is not touched.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from edgekiln.engine import Engine, _engine_at
from edgekiln.executors import owners
from tests.builds.kit import open_folder, python, until

if TYPE_CHECKING:
    from edgekiln.toolchain import Toolchain

pytestmark = [pytest.mark.engine, pytest.mark.slow]

BUILD = """
import sys
from pathlib import Path
from edgekiln import cli
from edgekiln.engine import find_engine
from edgekiln.executors.docker import DockerExecutor
from edgekiln.pipeline import FromStage, Pipeline
from edgekiln.toolchain import load_toolchain
from invoke.exceptions import Exit
from tests.unit.kit import Bench, stage
bench = Bench(Path(sys.argv[1]), load_toolchain("mnn"))
bench.program("first.py", "stage.output('made').write_text('x')")
bench.program("second.py", sys.argv[2])
second = stage("second", "second.py", was=FromStage(stage="first", output="made"))
try:
    with cli.reporting():
        bench.executor = lambda: DockerExecutor(find_engine())
        bench.executor().tidy()
        bench.store.sweep()
        done = bench.run(Pipeline(stages=(stage("first", "first.py"), second)))
        print({name: d.ran for name, d in done.items()})
except Exit as leaving:
    sys.exit(leaving.code)
"""
SLEEPS = "stage.output('made').write_text('half'); time.sleep(600)"


class Dockerd:
    """A dockerd of its own: network, mounts, data, socket."""

    def __init__(self, root: Path) -> None:
        self.root, self.url = root, f"unix://{root}/docker.sock"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        words = ["unshare", "--net", "--mount", "dockerd", "--host", self.url, "--bridge=none"]
        words += ["--iptables=false", "--ip6tables=false", "--data-root", str(self.root / "data")]
        words += ["--exec-root", str(self.root / "exec"), "--pidfile", str(self.root / "pid")]
        with (self.root / "log").open("ab") as log:
            self._process = subprocess.Popen(words, stdout=log, stderr=log, start_new_session=True)
        until(self._answers, f"dockerd answers; see {self.root}/log", seconds=60)

    def end(self, number: int) -> None:
        """Send it a signal and wait for its end."""
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait(60)
        (self.root / "docker.sock").unlink(missing_ok=True)
        self._forget()

    def _forget(self) -> None:
        """What a killed dockerd leaves: the numbers of processes that are no more, its containerd.

        The next dockerd would take any process of that number, a zombie too, for its own.
        """
        containerd = self.root / "exec/containerd/containerd.pid"
        if containerd.exists():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(containerd.read_text()), signal.SIGKILL)
        for left in (self.root / "pid", containerd, containerd.with_suffix(".sock")):
            left.unlink(missing_ok=True)

    @property
    def running(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    def engine(self) -> Engine:
        """It, as edgekiln sees it."""
        return _engine_at(self.url)

    def _answers(self) -> bool:
        assert self.running, (self.root / "log").read_text()[-2000:]
        try:
            return bool(self.engine().version)
        except (OSError, ValueError):
            return False


@pytest.fixture(scope="module")
def dockerd(engine: Engine, image: str) -> Iterator[Dockerd]:
    """A dockerd with an image of the mnn image's name that holds its Python and little else."""
    if sys.platform != "linux" or os.getuid() != 0 or not shutil.which("dockerd"):
        pytest.skip("only root can start a dockerd of the test's own")
    if not shutil.which("unshare"):
        pytest.skip("unshare is needed to keep a second dockerd apart")
    with open_folder() as root:
        own = Dockerd(root)
        own.start()
        try:
            _put_python(engine, image, own)
            yield own
        finally:
            if not own.running:  # to let it clear its containers away
                own.start()
            own.end(signal.SIGTERM)


def _put_python(engine: Engine, image: str, own: Dockerd) -> None:
    words = [
        "run",
        "--rm",
        "--network=none",
        "--user=0",
        "--entrypoint=",
        image,
        "tar",
        "-cf",
        "-",
        "-C",
        "/",
    ]
    # What the image is large for is not needed here.
    words += ["--exclude=site-packages", "--exclude=share", "--exclude=include"]
    words += ["bin", "etc", "lib", "lib64", "opt", "sbin", "usr"]
    docker = engine.cli[0]
    with subprocess.Popen([docker, *words], env=_at(engine.url), stdout=subprocess.PIPE) as packing:
        take = [docker, "import", *_settings(engine, image), "-", image]
        subprocess.run(take, env=_at(own.url), stdin=packing.stdout, check=True)
    assert packing.returncode == 0


def _settings(engine: Engine, image: str) -> list[str]:
    known = engine.image(image)
    assert known is not None
    return [word for setting in known["Config"]["Env"] for word in ("--change", f"ENV {setting}")]


def _at(url: str) -> dict[str, str]:
    return {**os.environ, "DOCKER_HOST": url}


def begin(own: Dockerd, root: Path, body: str) -> subprocess.Popen[str]:
    """Start a build of two stages; the second's program is `body`."""
    root.mkdir(exist_ok=True)
    command, env = python("-c", BUILD, str(root), body, DOCKER_HOST=own.url)
    return subprocess.Popen(
        command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def _written(root: Path) -> list[str]:
    """What the stages that run have written so far."""
    with contextlib.suppress(OSError):  # a workspace that just became an entry
        return [path.read_text() for path in root.glob("store/v1/doing/*/out/made")]
    return []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "shut down"])
def test_an_engine_that_goes_away_is_named_and_the_build_goes_on_later(
    number: int, dockerd: Dockerd, tmp_path: Path, mnn: Toolchain
) -> None:
    if not dockerd.running:
        dockerd.start()
    root = tmp_path / "build"
    build = begin(dockerd, root, SLEEPS)
    until(lambda: "half" in _written(root), "the second stage writes")
    dockerd.end(number)
    _, said = build.communicate(timeout=60)
    assert build.returncode == 7, said
    assert "error: the container engine went away or refused during stage second" in said
    assert "repeat the build: finished stages are kept" in said and "Traceback" not in said

    dockerd.start()
    out, said = begin(dockerd, root, "stage.output('made').write_text('whole')").communicate()
    assert out.strip() == "{'first': False, 'second': True}", said
    assert not list((root / "store/v1/doing").iterdir())
    (made,) = [p for p in root.glob("store/v1/objects/*/*/out/made") if p.read_text() != "x"]
    assert made.read_text() == "whole"
    wanted = "%7B%22label%22%3A%20%5B%22" + owners.LABEL + "%22%5D%7D"
    left = dockerd.engine().get(f"/containers/json?all=1&filters={wanted}")
    assert left == [], json.dumps(left)
