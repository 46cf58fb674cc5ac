"""Models from a hub, kept whole on this machine.

    models/hub/ORG--NAME/refs/REVISION.json   which commit a revision was when it was fetched
    models/hub/ORG--NAME/COMMIT/              the model's files, plain files, all of them
    models/hub/ORG--NAME/COMMIT.files.json    what each of them was when it came
    models/hub/ORG--NAME/COMMIT.part/         a download under way; the next one goes on from it

A rename is the only way from COMMIT.part to COMMIT, after sizes and digests were checked. What is
recorded needs no network again; `refresh` asks the hub anew. The hub's own cache is not used as a
place: its links lead out of the model's folder, where a container could not follow.
"""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

from edgekiln import offline
from edgekiln.digest import digest_file
from edgekiln.errors import DigestError, FetchError, KilnError, ModelError
from edgekiln.home import home, vendor_folder
from edgekiln.locking import held
from edgekiln.models.seal import seal, sealed
from edgekiln.progress import Progress
from edgekiln.room import refuse_full

_ELSEWHERE = (
    "elsewhere: kiln toolchains fetch NAME --model REF --to DIR; or name a folder: --model DIR"
)
COMMIT = re.compile(r"[0-9a-f]{40}")
RETRIES = (1.0, 3.0, 9.0)  # seconds to wait before each further try
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
# Other frameworks' weights, pictures and archives: no backend reads them.
UNUSED = re.compile(
    r".*\.(gguf|ggml|onnx|onnx_data|msgpack|h5|ot|tflite|mlmodel|nemo|pdf|png|jpe?g|gif|svg|mp4|zip"
    r"|tar|gz|7z|parquet)|\..*",
    re.IGNORECASE,
)
STANDARD = re.compile(r"model(-\d+-of-\d+)?\.safetensors")


@contextmanager
def explained(
    translate: Callable[[Exception, str, str], KilnError], repo: str, revision: str
) -> Iterator[None]:
    """Turn a hub client's exceptions into errors with a remedy; `translate` knows the client."""
    try:
        yield
    except KilnError:
        raise
    except Exception as error:
        raise translate(error, repo, revision) from error


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file a hub lists; `sha256` where it tells one, `size` 0 where it tells none."""

    path: str
    size: int
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What a hub has under one revision: the commit it stands for, and its files."""

    commit: str
    files: tuple[RemoteFile, ...]


class Hub(Protocol):
    """A place that models come from, through its own client library."""

    kind: str
    revision: str

    def list(self, repo: str, revision: str) -> Listing:
        """The commit and files of a revision; ModelError or FetchError."""

    def download(self, repo: str, commit: str, files: Sequence[RemoteFile], into: Path) -> None:
        """Put these files into a folder, going on from what is there; FetchError on a cut."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A model's folder and where it came from, as Model.source puts it."""

    path: Path
    source: str


def snapshot(
    hub: Hub,
    repo: str,
    revision: str | None,
    *,
    progress: Progress,
    trust_pickle: bool = False,
    refresh: bool = False,
    retries: Sequence[float] | None = None,
) -> Snapshot:
    """The files of `repo` at `revision`, fetched unless they are here already."""
    root = _root(hub, repo)
    revision = revision or hub.revision
    if not refresh and (path := _here(hub, repo, revision)):
        return _snapshot(hub, repo, path)
    offline.refuse(f"the model {repo} at {revision}", remedy=_ELSEWHERE)
    progress.update(0, what=f"asking for {repo}")
    listing = hub.list(repo, revision)
    path = root / listing.commit
    with held(root / "fetch.lock", lambda: progress.note(f"somebody else fetches {repo}; waiting")):
        if not path.is_dir():
            fetch = _Fetch(hub, repo, listing.commit, choose(listing.files, trust_pickle, repo))
            fetch.into(path, progress, RETRIES if retries is None else retries)
    _record(root, revision, listing.commit)
    return _snapshot(hub, repo, path)


def at_hand(hub: Hub, repo: str, revision: str | None) -> bool:
    """Whether `snapshot` finds that revision here, without asking the hub."""
    return _here(hub, repo, revision or hub.revision) is not None


def _here(hub: Hub, repo: str, revision: str) -> Path | None:
    """Where a revision lies: fetched before, or in the vendor folder."""
    vendor = vendor_folder()
    roots = [_root(hub, repo), *([_root(hub, repo, vendor)] if vendor else [])]
    return next(filter(None, (_recorded(root, revision) for root in roots)), None)


def _root(hub: Hub, repo: str, place: Path | None = None) -> Path:
    return (place or home()) / "models" / hub.kind / repo.replace("/", "--")


def _snapshot(hub: Hub, repo: str, path: Path) -> Snapshot:
    return Snapshot(path=path, source=f"{hub.kind}:{repo}@{path.name}")


def _recorded(root: Path, revision: str) -> Path | None:
    """Where `revision` lies, when it was fetched before: a commit is its own record."""
    commit = revision
    if not COMMIT.fullmatch(revision):
        try:
            commit = json.loads(_ref(root, revision).read_text(encoding="utf-8"))["commit"]
        except (OSError, ValueError, KeyError):
            return None
    path = root / commit
    return path if path.is_dir() else None


def _record(root: Path, revision: str, commit: str) -> None:
    ref = _ref(root, revision)
    ref.parent.mkdir(parents=True, exist_ok=True)
    fresh = ref.with_name(f"{ref.name}.new")
    fresh.write_text(json.dumps({"revision": revision, "commit": commit}), encoding="utf-8")
    fresh.replace(ref)


def _ref(root: Path, revision: str) -> Path:
    return root / "refs" / f"{quote(revision, safe='')}.json"


def choose(files: Sequence[RemoteFile], trust_pickle: bool, repo: str) -> list[RemoteFile]:
    """The files a build may need: those on top, without weights in formats nothing here reads.

    Pickles are fetched only when there are no safetensors and the user trusts them; otherwise
    they are refused before the download rather than after it.
    """
    top = [file for file in files if "/" not in file.path and not UNUSED.fullmatch(file.path)]
    tensors = [file for file in top if file.path.endswith(".safetensors")]
    pickles = [file for file in top if file.path.endswith(PICKLES)]
    if not tensors and not (pickles and trust_pickle):
        raise _without_weights(repo, [file.path for file in files], bool(pickles))
    standard = [file for file in tensors if STANDARD.fullmatch(file.path)] or tensors
    weights = standard or pickles
    return [file for file in top if file in weights or file not in (*tensors, *pickles)]


def _without_weights(repo: str, names: Sequence[str], pickled: bool) -> ModelError:
    if pickled:
        return ModelError(
            f"{repo} has its weights as pickles only",
            why="opening a pickle runs whatever program it holds",
            remedy="take a revision with safetensors, or pass --trust-pickle if you trust it",
        )
    gguf = next((name for name in names if name.endswith(".gguf")), None)
    why = f"it has {gguf}, which is for llama.cpp" if gguf else "no .safetensors file is there"
    return ModelError(
        f"{repo} has no weights to build from",
        why=why,
        remedy="name the model's original repository",
    )


@dataclass(frozen=True)
class _Fetch:
    """One download: of these files, at this commit."""

    hub: Hub
    repo: str
    commit: str
    files: Sequence[RemoteFile]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    def into(self, path: Path, progress: Progress, retries: Sequence[float]) -> None:
        """Fetch into path.part, check, and rename."""
        part = path.with_name(f"{path.name}.part")
        part.mkdir(parents=True, exist_ok=True)
        self._check_room(part)
        with watched(part, self.size, progress, f"fetching {self.repo}"):
            self._download(part, progress, retries)
        for done, file in enumerate(self.files, 1):
            progress.update(done, len(self.files), f"checking {file.path}")
            _verify(part / file.path, file, self.repo)
        # The clients leave their notes on what is complete beside the files.
        for leaving in part.glob(".*"):
            shutil.rmtree(leaving) if leaving.is_dir() else leaving.unlink()
        known = {file.path: file.sha256 for file in self.files}
        seal(part, sealed(path), f"{self.hub.kind}:{self.repo}@{self.commit}", known)
        part.replace(path)

    def _check_room(self, part: Path) -> None:
        refuse_full(part.parent, self.size - size_of(part), f"what is to be fetched of {self.repo}")

    def _download(self, part: Path, progress: Progress, retries: Sequence[float]) -> None:
        """Let the client fetch, again after a pause while the network is to blame."""
        for pause in (*retries, None):
            try:
                return self.hub.download(self.repo, self.commit, self.files, part)
            except FetchError as error:
                if pause is None:
                    raise
                progress.note(f"{error.why or error.what}; trying again in {pause:.0f} s")
                time.sleep(pause)


def _verify(path: Path, file: RemoteFile, repo: str) -> None:
    """A file must be what the hub lists; a wrong one is removed, so that it is fetched again."""
    found = path.stat().st_size if path.is_file() else -1
    why = ""
    if found < 0:
        raise FetchError(f"{repo}: {file.path} did not arrive", remedy="run the command again")
    if file.size and found != file.size:
        why = f"{found} bytes, expected {file.size}"
    elif file.sha256 and (sha := digest_file(path)) != file.sha256:
        why = f"sha256 {sha}, expected {file.sha256}"
    if why:
        path.unlink()
        raise DigestError(
            f"{repo}: {file.path} is not what the hub lists",
            why=why,
            remedy="run the command again; if it stays so, the mirror or a proxy changes files",
        )


def literal(path: str) -> str:
    """A pattern that matches this very name."""
    return "".join(f"[{char}]" if char in "*?[" else char for char in path)


@contextmanager
def watched(folder: Path, total: int, progress: Progress, what: str) -> Iterator[None]:
    """Tell how many bytes lie in `folder` while the work goes on.

    Looking at the files is the same for every client and each of its versions; their own
    progress hooks are not.
    """
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.3):
            progress.update(min(size_of(folder), total), total, what)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def size_of(folder: Path) -> int:
    """Bytes of all files under `folder`; files that go away meanwhile count nothing."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue
    return total
