"""What of a bundle goes onto the phone: the files of its manifest, whole and unchanged."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekiln.bundle import README, finished_manifest
from edgekiln.errors import ArtifactError, DigestError, UsageError

if TYPE_CHECKING:
    from edgekiln.digest import FileIndex

BASE = "/data/local/tmp/edgekiln"
# Of an mnn bundle: the phone's runtime, which goes beside the model's folder and not below one of
# its own; and what was built for other uses.
_RUNTIME = "arm64-v8a/"
_NOT_FOR_IT = ("x86_64/", "MnnLlmChat.apk")
# Runtimes that `device run` knows how to start.
BACKENDS = ("mnn", "qnn")


@dataclass(frozen=True, kw_only=True)
class Item:
    """A file for the phone: `name` is its path from the bundle's folder there."""

    name: str
    source: Path
    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Payload:
    """A bundle as the phone gets it."""

    bundle: Path
    manifest: Mapping[str, Any]
    items: tuple[Item, ...]

    @property
    def backend(self) -> str:
        """The runtime it is for: mnn or qnn."""
        return str(self.manifest["backend"])

    @property
    def soc(self) -> str:
        """The chip a qnn bundle is for; empty for one that is for any."""
        return _chip(str(self.manifest.get("options", {}).get("soc") or ""))

    @property
    def model(self) -> str:
        """The model's name."""
        return str(self.manifest["model"]["name"])

    @property
    def place(self) -> str:
        """Where it lies on the phone unless --to says otherwise."""
        return place(self.model, "-".join(w for w in (self.backend, self.soc) if w))


def place(model: str, variant: str) -> str:
    """The folder on the phone for a bundle of that model: `variant` is mnn, or qnn-SOC."""
    return f"{BASE}/{re.sub(r'[^A-Za-z0-9._-]+', '-', f'{model}-{variant}').strip('-.')}"


def _chip(said: str) -> str:
    """A chip as its table has it, however the build's option spelt it."""
    from edgekiln.backends.qnn_socs import find_soc

    try:
        return find_soc(said).soc if said else ""
    except UsageError:
        return said


def read_manifest(bundle: Path) -> Mapping[str, Any]:
    """The manifest of a finished bundle that can be run on a phone. Raises UsageError else."""
    manifest = finished_manifest(bundle)
    if manifest["backend"] not in BACKENDS:
        raise UsageError(
            f"no way is known to run a bundle for {manifest['backend']} on a phone",
            remedy=f"bundles for {' and '.join(BACKENDS)} can be run; an app goes onto a phone by "
            "`kiln device install`",
        )
    return manifest


def _goes(name: str) -> bool:
    """Whether a file of a bundle goes onto the phone's file system."""
    return name != README and not name.startswith(_NOT_FOR_IT)


def refuse_changed(
    bundle: Path, wanted: Mapping[str, Any], found: Mapping[str, tuple[int, str]]
) -> None:
    """Raise DigestError for a file of the manifest that is missing, or not what the build made."""
    for name, file in wanted.items():
        if name not in found:
            raise DigestError(
                f"{bundle / name} is missing",
                why="the manifest names it",
                remedy="repeat the build: it makes the bundle whole again",
            )
        if found[name][1] != file["sha256"]:
            raise DigestError(
                f"{bundle / name} is not the file that was built",
                why=f"its sha256 is {found[name][1][:16]}…, the manifest says "
                f"{file['sha256'][:16]}…",
                remedy="repeat the build: it makes the bundle whole again",
            )


def read_payload(bundle: Path, index: FileIndex, told: Any = lambda *_: None) -> Payload:
    """A bundle's files, each compared with its manifest, those too that stay here.

    Raises DigestError where a file is missing or not what the build made: what is pushed is
    what was measured, out of a bundle that is whole.
    """
    manifest = read_manifest(bundle)
    wanted = {n: f for n, f in manifest["files"].items() if _goes(n)}
    found = index.files(bundle, told)
    refuse_changed(bundle, manifest["files"], found)
    items = tuple(
        Item(
            name=name.removeprefix(_RUNTIME),
            source=bundle / name,
            size=found[name][0],
            sha256=found[name][1],
        )
        for name in sorted(wanted)
    )
    if not items:
        raise ArtifactError(f"{bundle} holds no files", remedy="repeat the build")
    return Payload(bundle=bundle, manifest=manifest, items=items)
