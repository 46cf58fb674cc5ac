"""Whether a model's files are still what they were when they came.

A fetched model has a file COMMIT.files.json beside its folder: where it came from, and every file's
size and sha256. A bit that has flipped since is found when the model is hashed for a build, which
happens anyway and is remembered by the stat index.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekiln.digest import FileIndex, digest_file, walk
from edgekiln.errors import DigestError
from edgekiln.models.model import Model


def sealed(folder: Path) -> Path:
    """Where it is written down what the files of a fetched model's folder were."""
    return folder.with_name(f"{folder.name}.files.json")


def seal(folder: Path, target: Path, source: str, known: Mapping[str, str | None]) -> None:
    """Write down in `target` what the files of a model are that has just come.

    `known` has the digests that were checked already; the other files are read.
    """
    files = {
        file.relative: {
            "size": file.size,
            "sha256": known.get(file.relative) or digest_file(file.path),
        }
        for file in walk(folder)
    }
    fresh = target.with_name(target.name + ".new")
    text = json.dumps({"source": source, "files": files}, indent=1)
    fresh.write_text(text + "\n", encoding="utf-8", newline="\n")
    fresh.replace(target)


def refuse_changed(models: Mapping[str, Model], index: FileIndex) -> None:
    """Raise DigestError for a fetched model of which a file is not what it was when it came.

    A folder of the user's own may change as its owner likes: nothing is written down of it.
    """
    for model in models.values():
        try:
            known = json.loads(sealed(model.path).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # fetched before this was written down, or not fetched at all
        refuse_other(model, known["files"], known["source"], index)


def refuse_other(
    model: Model, files: Mapping[str, Mapping[str, Any]], source: str, index: FileIndex
) -> None:
    """Raise DigestError unless a model's folder holds these very files.

    `source` is where they are said to come from, as Model.source puts it.
    """
    found = index.files(model.path)
    for name in sorted(files.keys() | found.keys()):
        wanted = str(files[name]["sha256"]) if name in files else "none: there was no such file"
        there = found[name][1] if name in found else "none: it is not there"
        if wanted != there:
            raise DigestError(
                f"{model.path / name} is not the file that came from {source}",
                why=f"sha256 is {there}, recorded is {wanted}",
                remedy=_remedy(model, source),
            )


def _remedy(model: Model, source: str) -> str:
    if source == "local":
        return "name the folder that holds the model as it was: --model DIR"
    return f"remove {model.path} and run this again: the model is then fetched anew"
