"""Whether a repository still gives a commit, without its files."""

from __future__ import annotations

import tempfile
from pathlib import Path

from edgekiln.calls import call, call_logged
from edgekiln.kits.gitsource import Repository, environment
from edgekiln.transfer import shown
from edgekiln.upstream import GONE, NOT_REACHED, OK, Answer

# What git says once the server has the commit and begins to pack it.
_PACKING = ("remote: Enumerating", "remote: Counting", "remote: Total", "Receiving objects")
# A repository that was removed or made private asks for a password: nobody answers that here.
_NONE = (
    "not our ref",
    "not found",
    "does not appear to be a git repository",
    "could not read Username",
    "no such remote ref",
    "couldn't find remote ref",
    "does not exist",
)


def ask_commit(repository: Repository) -> Answer:
    """Ask for one commit and stop before its files come.

    The commit's name is its digest, so it is there or it is not.
    """
    place = shown(repository.repository)
    if not repository.commit:
        return Answer(place=place, state=NOT_REACHED, why="its commit is known once it is fetched")
    with tempfile.TemporaryDirectory(prefix="edgekiln-commit-") as scratch:
        bare = Path(scratch, "probe.git")
        made = call(["git", "init", "--quiet", "--bare", str(bare)], env=environment())
        if made.returncode:
            why = made.stderr.strip().splitlines()[-1] if made.stderr.strip() else "no git"
            return Answer(place=place, state=NOT_REACHED, why=why)
        return _fetch(repository, bare, place)


def _fetch(repository: Repository, bare: Path, place: str) -> Answer:
    """A fetch without trees; where a server does not know how, its pack ends the asking."""
    words = ["fetch", "--progress", "--depth=1", "--no-tags", "--filter=tree:0"]
    limits = ["-c", "http.lowSpeedLimit=1", "-c", "http.lowSpeedTime=20"]
    command = ["git", *limits, f"--git-dir={bare}", *words, "--", repository.repository]
    said: list[str] = []

    def hear(line: str) -> None:
        said.append(line.strip())
        if line.startswith(_PACKING):
            raise _HereError

    try:
        code = call_logged([*command, repository.commit], bare / "log", hear, env=environment())
    except _HereError:
        code = 0
    if code == 0:
        return Answer(place=place, state=OK)
    errors = [line for line in said if line.startswith(("fatal: ", "error: "))]
    told = next(iter(errors), said[-1] if said else "git said nothing")[:200]
    gone = any(mark in line for line in said for mark in _NONE)
    return Answer(place=place, state=GONE if gone else NOT_REACHED, why=told)


class _HereError(Exception):
    """The server has begun to send the commit."""
