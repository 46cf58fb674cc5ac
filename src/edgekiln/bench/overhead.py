"""A whole build through edgekiln against the same programs started by hand, one by one.

Where an engine answers, by hand means: one container of the same image, kept open, with the model
mounted and each program run in it by `exec`. Else it means the programs run by the prefix's
Python. Either way nothing is hashed, checked, kept or put into a bundle by hand.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from edgekiln.bench.kit import Context, Figure, kiln
from edgekiln.build import Job, Settings, prepare
from edgekiln.engine import Engine, find_engine
from edgekiln.errors import StageError
from edgekiln.executors.base import StageRun, environment
from edgekiln.home import project
from edgekiln.pipeline import FromStage, Stage
from edgekiln.recipe import make_recipe
from edgekiln.report import QuietReporter

_AIM = 1.03


def measure(context: Context) -> Iterator[Figure]:
    """Both, from an empty store, as often as asked."""
    engine = find_engine()
    where = "docker" if engine else "native"
    command = ["build", "--backend", "mnn", "--executor", where]
    job = _job()
    kiln(command, context.fresh_home("warm-up"), context.scratch)
    ratios, times = [], []
    for number in range(context.repeat):
        times.append(kiln(command, context.fresh_home(f"whole-{number}"), context.scratch))
        place = context.scratch / f"hand-{number}"
        place.mkdir()
        ratios.append(times[-1] / _by_hand(job, place, engine))
    note = f"executor {where}"
    yield Figure(name="whole build", samples=tuple(times), unit="s", note=note)
    name = "whole build / the same programs by hand"
    yield Figure(name=name, samples=tuple(ratios), unit="times", aim=_AIM, note=note)


def _job() -> Job:
    with Path(os.devnull).open("w") as nowhere:
        quiet = QuietReporter(nowhere, nowhere)
        recipe = make_recipe(recipe="", backend="mnn", model="", preset="", options={})
        return prepare(recipe, Settings(), quiet)


def _by_hand(job: Job, place: Path, engine: Engine | None) -> float:
    """Seconds for all programs in turn, each with every core."""
    for stage in job.pipeline.stages:
        _lay_out(stage, place)
    opened = _container(job, place, engine) if engine else _bare(job)
    began = time.perf_counter()
    with opened as shell:
        for stage in job.pipeline.stages:
            _run(shell, stage, job, place)
    return time.perf_counter() - began


def _lay_out(stage: Stage, place: Path) -> None:
    work = place / stage.name
    (work / "in").mkdir(parents=True)
    (work / "out").mkdir()
    (work / "params.json").write_text(json.dumps(dict(stage.params)))
    for name, source in stage.inputs.items():
        if isinstance(source, FromStage):
            target = place / source.stage / "out" / source.output
        else:
            target = source.path
        (work / "in" / name).symlink_to(target)


class _Shell:
    """Something that takes a command line and an environment."""

    def __init__(self, before: list[str], python: str, *, inside: bool) -> None:
        self._before, self._python, self._inside = before, python, inside

    def run(self, program: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        words = [self._python, "-s", str(program)]
        if self._inside:
            flags = [f"--env={key}={value}" for key, value in env.items()]
            words = [self._before[0], "exec", *flags, self._before[1], *words]
        full = {**os.environ, **({} if self._inside else env)}
        return subprocess.run(words, env=full, capture_output=True, text=True, check=False)


@contextmanager
def _container(job: Job, place: Path, engine: Engine) -> Iterator[_Shell]:
    """One container for all programs; starting and removing it counts."""
    from edgekiln import images

    cli, env = engine.kind, {**os.environ, "DOCKER_HOST": engine.url}
    toolchain = next(iter(job.toolchains.values()))
    paths = {project() / "scripts", place, *(m.path for m in job.models.values())}
    mounts = [f"--volume={p}:{p}" for p in sorted(paths)]
    user = f"--user={os.getuid()}:{os.getgid()}"
    words = [cli, "run", "--detach", "--rm", "--init", "--network=none", user, *mounts]
    words += [images.tag(toolchain), "sleep", "3600"]
    started = subprocess.run(words, env=env, capture_output=True, text=True, check=True)
    name = started.stdout.strip()
    try:
        yield _Shell([cli, name], "python3", inside=True)
    finally:
        subprocess.run([cli, "rm", "--force", name], env=env, capture_output=True, check=False)


@contextmanager
def _bare(job: Job) -> Iterator[_Shell]:
    from edgekiln.prefix import prefix_python

    toolchain = next(iter(job.toolchains.values()))
    yield _Shell([], str(prefix_python(toolchain)), inside=False)


def _run(shell: _Shell, stage: Stage, job: Job, place: Path) -> None:
    from edgekiln.doctor import usable_cpus

    run = SimpleNamespace(cpus=usable_cpus(), beside_others=False, network=False)
    work, scripts = place / stage.name, str(project() / "scripts")
    path = f"/opt/edgekiln/bin:{os.environ['PATH']}"  # the image's; natively it is not there
    toolchain = job.toolchains[stage.toolchain]
    env: dict[str, Any] = environment(toolchain, cast(StageRun, run), scripts=scripts, path=path)
    env |= {"KILN_IN": str(work / "in"), "KILN_OUT": str(work / "out"), "HOME": str(work)}
    env |= {"KILN_PARAMS": str(work / "params.json"), "TMPDIR": str(work)}
    done = shell.run(project() / "scripts" / stage.program, env)
    if done.returncode:
        raise StageError(f"{stage.program} by hand failed", why=done.stderr.strip()[-300:])
