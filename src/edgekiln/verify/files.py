"""A bundle as its manifest describes it: every byte read, nothing taken from an index."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekiln.bundle import BESIDE, MANIFEST, PROVENANCE, Bundle, everything, is_plain
from edgekiln.digest import digest_file
from edgekiln.errors import ArtifactError, DigestError

_KEYS = ("model", "options", "toolchains", "stages", "files")
_SHOWN = 3
_NO_FILE = "none: it is a link, or no file"


@dataclass(frozen=True, kw_only=True)
class Damage:
    """A file that is not what the manifest says; a digest is "" where there is no such file."""

    name: str
    found: str
    recorded: str

    @property
    def text(self) -> str:
        """Both digests."""
        if not self.found:
            return f"it is missing, recorded is sha256 {self.recorded}"
        return f"sha256 is {self.found}, recorded is {self.recorded or 'none: no such file'}"


def read_bundle(place: Path) -> Bundle:
    """The bundle at `place`, from its manifest alone. Raises ArtifactError where there is none."""
    file = place / MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{place} is no bundle that can be read",
            why=f"{MANIFEST}: {getattr(error, 'strerror', None) or error}",
            remedy="give the folder that `kiln build` named at its end",
        ) from error
    if not isinstance(manifest, dict) or manifest.get("unfinished"):
        why = "the build that wrote it was cut off" if isinstance(manifest, dict) else ""
        raise ArtifactError(f"{place} is no whole bundle", why=why, remedy="build it again")
    lacking = [key for key in _KEYS if not isinstance(manifest.get(key), dict)]
    lacking += [] if isinstance(manifest.get("backend"), str) else ["backend"]
    lacking += [] if lacking or _described(manifest["files"]) else ["files with their digests"]
    if lacking:
        raise ArtifactError(
            f"{file} is no manifest of edgekiln's", why=f"it has no {', '.join(lacking)}"
        )
    return Bundle(path=place, manifest=manifest)


def _described(files: Mapping[str, Any]) -> bool:
    return all(isinstance(f, dict) and {"size", "sha256"} <= f.keys() for f in files.values())


def damage(bundle: Bundle) -> list[Damage]:
    """Every file that is missing, too many, or other than recorded; all bytes are read.

    Hidden files count, and a link is never the file, whatever it leads to. The provenance counts
    where the manifest knows it: manifests of older builds do not.
    """
    recorded = {n: str(file["sha256"]) for n, file in bundle.manifest["files"].items()}
    if bundle.manifest.get("provenance"):
        recorded[PROVENANCE] = str(bundle.manifest["provenance"])
    beside = set(BESIDE) - recorded.keys()
    there = {name: path for name, path in everything(bundle.path) if name not in beside}
    found = []
    for name in sorted(recorded.keys() | there.keys()):
        now = _digest(there[name]) if name in there else ""
        then = recorded.get(name, "")
        if now != then:
            found.append(Damage(name=name, found=now, recorded=then))
    return found


def _digest(path: Path) -> str:
    return digest_file(path) if is_plain(path) else _NO_FILE


def whole(place: Path) -> Bundle:
    """The bundle at `place`, every file of it as recorded.

    Raises DigestError that names the first file that is not, both digests, and where the file
    came from; ArtifactError where no bundle lies there.
    """
    bundle = read_bundle(place)
    harmed = damage(bundle)
    if not harmed:
        return bundle
    first = harmed[0]
    more = [d.name for d in harmed[1 : _SHOWN + 1]]
    rest = f"; so are {', '.join(more)}" if more else ""
    rest += f" and {len(harmed) - 1 - len(more)} more" if len(harmed) - 1 > len(more) else ""
    raise DigestError(
        f"{place / first.name} is not the file that was built{rest}",
        why=f"{first.text} ({came_from(bundle, first)})",
        remedy="take the bundle again from where it came, or build it again",
    )


def came_from(bundle: Bundle, file: Damage) -> str:
    """Where a file of a bundle came from, in words."""
    if not file.recorded:
        return f"{MANIFEST} knows nothing of it"
    stage = origin(bundle.manifest, file.recorded)
    return f"it came from stage {stage}, by {MANIFEST}" if stage else f"by {MANIFEST}"


def origin(manifest: Mapping[str, Any], sha256: str) -> str:
    """STAGE/OUTPUT/FILE of the stage that made these bytes; "" where no stage is known to have."""
    for name, stage in manifest["stages"].items():
        for output, made in stage.get("outputs", {}).items():
            for file, known in made["files"].items():
                if known["sha256"] == sha256:
                    return f"{name} ({output}/{file})" if file != output else f"{name} ({output})"
    return ""
