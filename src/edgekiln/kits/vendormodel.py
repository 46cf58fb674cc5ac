"""A model for a vendor folder: as its hub had it, or the package that carries the example.

models/hub/ORG--NAME/…      as below EDGEKILN_HOME; models.snapshots looks into both
"""

from __future__ import annotations

import json
from pathlib import Path

from edgekiln.digest import digest_file
from edgekiln.errors import UsageError
from edgekiln.kits import firstuse
from edgekiln.models import Model, example_names, resolve
from edgekiln.models.example import carried_by, take_wheel
from edgekiln.models.seal import sealed
from edgekiln.progress import Progress
from edgekiln.toolchain.wheels import put


def refuse_own(ref: str) -> None:
    """Raise UsageError for a folder of the user's own, or a path to one."""
    if ref in example_names():
        return
    path = Path(ref).expanduser()
    if path.is_dir() or path.is_absolute() or ref.startswith("."):
        remedy = "copy it yourself, and name the copy by --model there"
        raise UsageError(f"--model {ref} is a folder of your own, or to be one", remedy=remedy)


def fill(ref: str, folder: Path, progress: Progress) -> list[Path]:
    """Fetch the model if need be and put it into the folder; what is there stays.

    Raises UsageError for a folder of the user's own, and as `resolve` does.
    """
    refuse_own(ref)
    model = resolve(ref, progress=progress)
    kind, _, rest = model.source.partition(":")
    if kind == "example":
        what = carried_by(rest)
        wheel = take_wheel(what, folder, progress)
        firstuse.list_in(folder, {wheel.name: what.sha256})
        return [wheel]
    return _snapshot(model, kind, folder)


def _snapshot(model: Model, kind: str, folder: Path) -> list[Path]:
    """The snapshot's files, what each of them was when it came, and which revisions it is."""
    root = model.path.parent
    target = folder / "models" / kind / root.name
    commit = model.path.name
    files = [path for path in model.path.rglob("*") if path.is_file()]
    files += [sealed(model.path), *_refs(root, commit)]
    made = [_copied(path, target / path.relative_to(root)) for path in files]
    known = json.loads(sealed(model.path).read_text(encoding="utf-8"))["files"]
    sums = {}
    for path in made:
        inner = path.relative_to(target).as_posix().removeprefix(f"{commit}/")
        digest = str(known[inner]["sha256"]) if inner in known else digest_file(path)
        sums[path.relative_to(folder).as_posix()] = digest
    firstuse.list_in(folder, sums)
    return made


def _refs(root: Path, commit: str) -> list[Path]:
    """The notes that say which revision the commit was."""
    return [p for p in root.glob("refs/*.json") if json.loads(p.read_bytes())["commit"] == commit]


def _copied(source: Path, target: Path) -> Path:
    if not target.is_file() or target.stat().st_size != source.stat().st_size:
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = target.with_name(f".{target.name}.part")
        fresh.unlink(missing_ok=True)
        put(source, fresh)
        fresh.replace(target)
    return target
