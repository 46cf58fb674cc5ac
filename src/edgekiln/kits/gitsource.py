"""Git sources at one commit, without their history: every byte proved by that commit's name.

A commit's name is the digest of a record that names a tree, a tree's name the digest of a list
that names files and trees: so one pinned commit pins all of it, the commits of the repositories
inside (submodules) too. Every object that git brings is held against its name as it is read, and
written as it is: no filter, line-end rule or attribute of the repository is applied.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin, urlsplit

from edgekiln import offline
from edgekiln.calls import call, call_logged, last_words
from edgekiln.errors import DigestError, FetchError, ToolchainError
from edgekiln.fetch import RETRIES
from edgekiln.home import home
from edgekiln.kits.definition import Source, Submodule
from edgekiln.kits.places import Names, link
from edgekiln.locking import held
from edgekiln.progress import Progress
from edgekiln.transfer import shown

_LINK, _FOLDER, _GITLINK = "120000", "40000", "160000"
_PROTOCOLS = "https:http:ssh:git:file"


@dataclass(frozen=True, kw_only=True)
class Repository:
    """A repository at a commit, and where its files go below the source's folder."""

    path: str  # "." for the source itself
    repository: str
    commit: str

    @property
    def bare(self) -> str:
        """The bare repository's name in a folder; objects of two origins do no harm together."""
        return bare_name(self.repository)


def bare_name(repository: str) -> str:
    """https://github.com/mlc-ai/mlc-llm(.git) → mlc-llm.git."""
    path = urlsplit(repository).path if "://" in repository else repository
    name = path.rstrip("/").rpartition("/")[2].rpartition(":")[2]
    return f"{name.removesuffix('.git')}.git"


def listed(source: Source) -> list[Repository]:
    """The repositories a source's YAML names; those without a commit are known once fetched."""
    own = Repository(path=".", repository=source.repository, commit=source.commit)
    subs = source.submodules.items()
    return [own, *(Repository(path=p, repository=s.repository, commit=s.commit) for p, s in subs)]


def holds(folder: Path, repository: Repository) -> Path | None:
    """The bare repository in `folder` that has the commit, if there is one."""
    bare = folder / repository.bare
    if not (bare / "HEAD").is_file() or not repository.commit or not shutil.which("git"):
        return None
    done = _git(bare, "cat-file", "-e", f"{repository.commit}^{{tree}}")
    return bare if done.returncode == 0 else None


def obtain(
    repository: Repository,
    folders: Sequence[Path],
    into: Path,
    progress: Progress,
    *,
    retries: Sequence[float] = RETRIES,
) -> Path:
    """A bare repository with the commit: one of `folders`, else fetched into `into`.

    One commit is fetched, without its history. Raises FetchError where it cannot be had.
    """
    for folder in (*folders, into):
        if found := holds(folder, repository):
            return found
    bare = into / repository.bare
    into.mkdir(parents=True, exist_ok=True)
    waiting = f"somebody else fetches {bare.name}; waiting"
    with held(into / f".{bare.name}.lock", lambda: progress.note(waiting)):
        if not holds(into, repository):
            _fetch(repository, bare, progress, retries)
    return bare


def _fetch(
    repository: Repository, bare: Path, progress: Progress, retries: Sequence[float]
) -> None:
    offline.refuse(
        f"{repository.bare} with commit {repository.commit}",
        why=f"to be had from {shown(repository.repository)}",
    )
    _need_git()
    if not (bare / "HEAD").is_file():
        done = call(["git", "init", "--quiet", "--bare", str(bare)], env=environment())
        if done.returncode:
            raise FetchError(f"{bare} cannot be made", why=last_words(done))
    kept = f"{repository.commit}:refs/edgekiln/{repository.commit}"
    words = ["fetch", "--progress", "--depth=1", "--no-tags"]
    command = ["git", f"--git-dir={bare}", *words, "--", repository.repository, kept]
    log = home() / "logs" / f"git-{bare.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    for pause in (*retries, None):
        progress.update(0, None, f"fetching {repository.bare} {repository.commit[:12]}")
        hear = _Hearing(repository, progress)
        if call_logged(command, log, hear, env=environment()) == 0:
            return
        if pause is None:
            raise FetchError(
                f"{shown(repository.repository)} did not give commit {repository.commit[:12]}",
                why=hear.error,
                remedy=f"check the network, or put a bare {repository.bare} that has the commit "
                "into a folder and name it by EDGEKILN_VENDOR",
            )
        progress.note(f"{repository.bare}: {hear.error}; trying again in {pause:g} s")
        time.sleep(pause)


class _Hearing:
    """What git says while it fetches: how far it is, and at the end what went wrong."""

    def __init__(self, repository: Repository, progress: Progress) -> None:
        self._what, self._progress = f"fetching {repository.bare}", progress
        self.error = "git said nothing"

    def __call__(self, line: str) -> None:
        if found := re.match(r"Receiving objects: +\d+% \((\d+)/(\d+)\)", line):
            self._progress.update(0, None, f"{self._what}: {found[1]} of {found[2]} objects")
        elif line.startswith(("fatal: ", "error: ")):
            self.error = line.strip()[:300]


def walk(
    source: Source,
    folders: Sequence[Path],
    cache: Path,
    progress: Progress,
    *,
    retries: Sequence[float] = RETRIES,
) -> Iterator[tuple[Repository, Path]]:
    """A source's repository and all inside it, each with a bare repository that has its commit.

    What `folders` do not have is fetched into `cache`. Raises DigestError for a submodule at
    another commit than its pin, or one that the YAML names and the tree does not.
    """
    waiting = [listed(source)[0]]
    seen: set[str] = set()
    while waiting:
        each = waiting.pop(0)
        bare = obtain(each, folders, cache, progress, retries=retries)
        found = list(_inside(source, each, bare))
        seen.update(sub.path for sub in found)
        waiting += [sub for sub in found if sub.path not in source.without]
        yield each, bare
    if strange := sorted({*source.submodules, *source.without} - seen):
        raise DigestError(
            f"commit {source.commit[:12]} has no submodule at {strange[0]}",
            why="the kit's YAML names one there",
            remedy="mend the kit's YAML, or take the commit that it was written for",
        )


def lay_out(
    source: Source,
    folders: Sequence[Path],
    cache: Path,
    into: Path,
    progress: Progress,
    *,
    retries: Sequence[float] = RETRIES,
) -> list[Repository]:
    """Put a source's files and those of its submodules into a plain folder.

    Returns what was laid out. Raises DigestError as `walk` does, and for bytes that are not the
    commit's.
    """
    laid = []
    for each, bare in walk(source, folders, cache, progress, retries=retries):
        _write(bare, each, into if each.path == "." else into / each.path, progress)
        laid.append(each)
    return laid


def _inside(source: Source, outer: Repository, bare: Path) -> Iterator[Repository]:
    """The repositories that a tree names, each held against its pin."""
    with _Objects(bare, outer) as objects:
        files = objects.files(objects.tree())
        gitlinks = {path: name for mode, name, path in files if mode == _GITLINK}
    addresses = _addresses(bare, outer) if gitlinks else {}
    for path, commit in sorted(gitlinks.items()):
        full = path if outer.path == "." else f"{outer.path}/{path}"
        pinned = source.submodules.get(full, Submodule(repository=addresses.get(path, "")))
        if pinned.commit and pinned.commit != commit:
            raise DigestError(
                f"{full} is at another commit than the one that was pinned",
                why=f"{outer.bare} {outer.commit[:12]} names {commit}, pinned is {pinned.commit}",
                remedy="the pins of the kit's YAML do not belong together: mend them",
            )
        if not pinned.repository and full not in source.without:
            raise ToolchainError(
                f"no address is known for the submodule {full}",
                why=f"neither the kit's YAML nor .gitmodules of {outer.bare} has one",
                remedy="name it under submodules, or under without",
            )
        yield Repository(path=full, repository=pinned.repository, commit=commit)


def _addresses(bare: Path, outer: Repository) -> dict[str, str]:
    """path → address, as .gitmodules says; relative ones are the outer repository's siblings."""
    blob = f"{outer.commit}:.gitmodules"
    done = _git(bare, "config", "--blob", blob, "--get-regexp", r"^submodule\..*\.(path|url)$")
    told: dict[str, dict[str, str]] = {}
    for line in done.stdout.splitlines():
        key, _, value = line.partition(" ")
        name, _, what = key.removeprefix("submodule.").rpartition(".")
        told.setdefault(name, {})[what] = value
    return {
        entry["path"]: _absolute(outer.repository, entry["url"])
        for entry in told.values()
        if "path" in entry and "url" in entry
    }


def _absolute(outer: str, address: str) -> str:
    if not address.startswith(("./", "../")):
        return address
    if "://" in outer:
        return urljoin(outer.rstrip("/") + "/", address)
    return os.path.normpath(f"{outer}/{address}")


class _Objects:
    """A bare repository's objects, each held against its own name as it is read."""

    def __init__(self, bare: Path, repository: Repository) -> None:
        self.repository = repository
        self._process = subprocess.Popen(
            ["git", f"--git-dir={bare}", "cat-file", "--batch"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment(),
        )

    def __enter__(self) -> _Objects:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def read(self, name: str, kind: str, path: str) -> bytes:
        """An object's bytes. Raises DigestError where it is missing or not what it is named."""
        ask, answer = self._process.stdin, self._process.stdout
        assert ask is not None and answer is not None
        ask.write(f"{name}\n".encode())
        ask.flush()
        told = answer.readline().split()
        body = answer.read(int(told[2])) if len(told) == 3 else b""
        answer.read(1 if len(told) == 3 else 0)
        found = hashlib.sha1(b"%s %d\0" % (kind.encode(), len(body)) + body, usedforsecurity=False)
        if len(told) != 3 or told[1].decode() != kind or found.hexdigest() != name:
            raise DigestError(
                f"{self.repository.bare} does not hold commit {self.repository.commit[:12]} whole",
                why=f"{path} ({kind} {name}) is missing or damaged",
                remedy=f"remove that {self.repository.bare} and fetch it again",
            )
        return body

    def tree(self) -> str:
        """The name of the tree that the commit names."""
        commit = self.read(self.repository.commit, "commit", "the commit")
        return commit.partition(b"\n")[0].removeprefix(b"tree ").decode()

    def files(self, tree: str, prefix: str = "") -> Iterator[tuple[str, str, str]]:
        """(mode, name, path) of all in a tree but the trees."""
        body = self.read(tree, "tree", prefix or "its tree")
        while body:
            told, _, rest = body.partition(b"\0")
            mode, _, file = told.decode("utf-8", "surrogateescape").partition(" ")
            name, body = rest[:20].hex(), rest[20:]
            _check_name(file, prefix, self.repository)
            if mode.lstrip("0") == _FOLDER:
                yield from self.files(name, f"{prefix}{file}/")
            else:
                yield mode, name, prefix + file


def _write(bare: Path, repository: Repository, into: Path, progress: Progress) -> None:
    """Write a commit's files; a submodule is an empty folder for the time being."""
    links = {}
    into.mkdir(parents=True, exist_ok=True)
    with _Objects(bare, repository) as objects:
        files = list(objects.files(objects.tree()))
        names = Names(into)
        for number, (mode, name, path) in enumerate(files, 1):
            names.check(path)
            if mode == _GITLINK:
                (into / path).mkdir(parents=True, exist_ok=True)
                continue
            body = objects.read(name, "blob", path)
            if mode == _LINK:
                links[path] = body
            else:
                _write_file(into / path, body, bool(int(mode, 8) & 0o100))
            if number % 256 == 0:
                told = f"writing {repository.bare}: {number} of {len(files)} files"
                progress.update(0, None, told)
    for path, target in links.items():  # last: nothing is written through one
        _write_link(into, path, target, repository)


def _check_name(name: str, prefix: str, repository: Repository) -> None:
    if name in ("", ".", "..") or name.lower() == ".git" or "/" in name or "\\" in name:
        raise _climbs(repository, prefix + name)


def _write_file(place: Path, body: bytes, executable: bool) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(body)
    place.chmod(0o755 if executable else 0o644)


def _write_link(into: Path, path: str, target: bytes, repository: Repository) -> None:
    told = os.fsdecode(target)
    ends = os.path.normpath(os.path.join(os.path.dirname(path), told))  # noqa: PTH118, PTH120
    if told.startswith("/") or ends == ".." or ends.startswith("../"):
        raise _climbs(repository, f"{path} -> {told}")
    link(into / path, told)


def _climbs(repository: Repository, what: str) -> ToolchainError:
    return ToolchainError(
        f"{repository.bare} would write outside of its folder",
        why=f"it holds {what}",
        remedy="do not use it",
    )


def _need_git() -> None:
    if not shutil.which("git"):
        raise FetchError("git is not installed", remedy="install git")


def environment() -> dict[str, str]:
    """The user's own settings of git (proxy, mirrors, passwords), and never a question."""
    env = {k: v for k, v in os.environ.items() if not re.match(r"GIT_(DIR|WORK_TREE|INDEX)", k)}
    env |= {"GIT_TERMINAL_PROMPT": "0", "GIT_ALLOW_PROTOCOL": _PROTOCOLS, "LC_ALL": "C"}
    bundle = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("SSL_CERT_FILE")
    return {**({"GIT_SSL_CAINFO": bundle} if bundle else {}), **env}


def _git(bare: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return call(["git", f"--git-dir={bare}", *words], env=environment())
