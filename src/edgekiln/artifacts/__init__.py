"""What an artifact is, by its content: `kiln inspect`.

    elf            programs, libraries and objects for phones and hosts
    apk            Android apps and libraries: manifest, signatures, libraries in the zip
    archives       static libraries, and the .tar of objects that MLC compiles to
    weights        safetensors and GGUF
    onnxfile       ONNX, read off its wire format
    mnnfile        MNN's own model format
    jsons          configurations, encodings, profiles
    genie_profile  what genie-t2t-run --profile writes
    folders        bundles, MNN and MLC models, Hugging Face models
    tensors        tables of tensors for people
    binaries       Hexagon context binaries, looked into by Qualcomm's own library

A name is never trusted: a file is what its bytes say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekiln import units
from edgekiln.errors import AccessError, ArtifactError, KilnError

if TYPE_CHECKING:
    from edgekiln.report import Reporter

_START = 1 << 16
_POINTER = b"version https://git-lfs.github.com/spec/"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a reader found: `kind` in a word, `facts` for machines, `rows` for people."""

    kind: str
    facts: Mapping[str, Any]
    rows: tuple[tuple[str, str], ...]
    tail: str = ""


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A file or folder that was recognised."""

    path: Path
    size: int
    found: Facts = field(repr=False)

    def value(self) -> dict[str, Any]:
        """For machines."""
        head = {"path": str(self.path), "kind": self.found.kind, "size": self.size}
        return {**head, **self.found.facts}

    def text(self) -> str:
        """For people: a name and its value a line."""
        rows = [("file", str(self.path)), ("size", units.size(self.size)), *self.found.rows]
        width = max(len(name) for name, _ in rows)
        lines = [f"{name.ljust(width)}  {value}" for name, value in rows]
        return "\n".join([*lines, *([f"\n{self.found.tail}"] if self.found.tail else [])])


def look(path: Path, reporter: Reporter, *, executor: str = "auto") -> Artifact:
    """What lies at `path`. Raises ArtifactError for what is unknown, empty or damaged."""
    try:
        if path.is_dir():
            from edgekiln.artifacts.folders import read_folder

            size = sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
            return Artifact(path=path, size=size, found=read_folder(path))
        if path.exists() and not path.is_file():
            raise unknown(path, "it is a pipe, a socket or a device, which has no bytes to look at")
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(_START)
    except OSError as error:
        raise AccessError(
            f"cannot read {path}",
            why=error.strerror or str(error),
            remedy="give the path of a file or folder that you may read",
        ) from error
    return Artifact(path=path, size=size, found=_file(path, start, reporter, executor))


def _file(path: Path, start: bytes, reporter: Reporter, executor: str) -> Facts:
    """The first reader that knows how the file begins."""
    if not start:
        raise ArtifactError(f"{path} is empty", remedy="get or make the file again")
    if start.startswith(_POINTER):
        raise ArtifactError(
            f"{path} is a Git-LFS pointer",
            why="the repository was cloned without its large files",
            remedy=f"install git-lfs, then run: git -C {path.parent} lfs pull",
        )
    from edgekiln.artifacts import apk, archives, elf, jsons, mnnfile, onnxfile, weights

    readers: tuple[tuple[Callable[[bytes], bool], Callable[[Path], Facts]], ...] = (
        (elf.is_elf, elf.read),
        (archives.is_static, archives.read_static),
        (archives.is_tar, archives.read_tar),
        (apk.is_zip, apk.read),
        (weights.is_gguf, weights.read_gguf),
        (weights.is_safetensors, weights.read_safetensors),
        (jsons.is_json, jsons.read),
        (onnxfile.is_onnx, onnxfile.read),
        (mnnfile.is_mnn, mnnfile.read),
    )
    for fits, read in readers:
        if fits(start):
            return read(path)
    from edgekiln.artifacts import binaries

    if binaries.is_context_binary(start):
        return binaries.read(path, reporter, executor)
    raise unknown(path, f"its first bytes are {start[:8].hex(' ')}")


def unknown(path: Path, why: str) -> ArtifactError:
    """The error for what no reader knows."""
    return ArtifactError(
        f"{path} is of no kind that edgekiln knows",
        why=why,
        remedy="docs/inspect.md lists the kinds",
    )


def damaged(path: Path, kind: str, error: Exception | str) -> ArtifactError:
    """The error for a file of a known kind that does not hold together."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, KilnError):
        text = error.why or error.what
    return ArtifactError(
        f"{path} is a damaged {kind}",
        why=text,
        remedy="get or make the file again: it was cut short, or changed",
    )
