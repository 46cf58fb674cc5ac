"""Builds of images run: what the builder says, which step it is at, and why it ended."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edgekiln.calls import call, call_logged, last_words
from edgekiln.engine import fixedtimes
from edgekiln.engine.buildcli import build_environment
from edgekiln.errors import ImageError
from edgekiln.faults import with_fault
from edgekiln.home import home
from edgekiln.images import EPOCH
from edgekiln.progress import Progress, Silent

if TYPE_CHECKING:
    from edgekiln.engine import Engine


def build(engine: Engine, name: str, words: list[str], context: Path, progress: Progress) -> None:
    """Build `name` from a context, every time in it fixed where the builder can do that.

    `words` are further ones for the builder's command line. Raises ImageError with the builder's
    own last words and the log's path, or what `toolchain.swapped` finds in the log.
    """
    if fixedtimes.why_not(engine):
        _run(engine, name, ["--tag", name, *words], context, progress)
        return
    scratch = home() / "tmp"
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="load-", dir=scratch) as folder:
        archive = Path(folder, "image.tar")
        _run(
            engine, name, [*fixedtimes.build_words(name, archive, EPOCH), *words], context, progress
        )
        load = [*engine.cli, "load", "--quiet", "--input", str(archive)]
        done = call(load, env=build_environment(engine.url))
    if done.returncode:
        raise ImageError("the engine did not take the image", why=last_words(done))


def relabel(engine: Engine, image: str, labels: Mapping[str, str]) -> None:
    """Put labels on a built image: a build of one line, which adds no layer."""
    with tempfile.TemporaryDirectory(prefix="edgekiln-label-") as folder:
        Path(folder, "Dockerfile").write_text(f"FROM {image}\n", encoding="utf-8")
        words = [word for k, v in labels.items() for word in ("--label", f"{k}={v}")]
        build(engine, image, words, Path(folder), Silent())


def _run(engine: Engine, name: str, words: list[str], context: Path, progress: Progress) -> None:
    """Run the builder; its words go to the log, its steps to the user."""

    def hear(line: str) -> None:
        if step := step_of(line):
            progress.update(*step)

    what = name.rpartition("/")[2].partition(":")[0]
    log = home() / "logs" / f"image-{what}-{os.getpid()}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    plain = [] if engine.kind == "podman" else ["--progress=plain"]
    command = [*engine.cli, "build", *plain, *words, str(context)]
    code = call_logged(command, log, hear, env=build_environment(engine.url))
    if code:
        from edgekiln.toolchain.swapped import swapped

        error = ImageError("the image could not be built", why=reason(log), remedy=f"see {log}")
        raise swapped(log) or with_fault(error, log)


def step_of(line: str) -> tuple[int, int, str] | None:
    """(number, of how many, what) from a builder's line such as `#7 [3/5] RUN …`."""
    found = re.match(r"(?:#\d+ \[(?:\S+ )?(\d+)/(\d+)\]|STEP (\d+)/(\d+):) ?(.*)", line)
    if found is None:
        return None
    number, count = (int(found[1] or found[3]), int(found[2] or found[4]))
    what = (
        "provision.py" if "provision.py" in found[5] else "apt" if "apt-install" in found[5] else ""
    )
    return number - 1, count, what or found[5].split(" ")[0]


def reason(log: Path) -> str:
    """The line of a build's log that says why it ended."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8").splitlines()]
    lines = [line.partition(" ")[2] if line.startswith("#") else line for line in lines]
    for mark in (
        "apt-install:",
        "E: ",
        "provision:",
        "error:",
        "Error: ",
        "No space left",
        "ERROR",
    ):
        for line in reversed(lines):
            if mark in line:
                return line[line.index(mark) :][:300]
    return (lines or ["the builder said nothing"])[-1][:300]
