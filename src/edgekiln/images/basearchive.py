"""A base's root file system as an image to load: the same bytes make the same image, id and all.

`docker import` notes the time in the image, and every image on top of it has that in its history.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from edgekiln.digest import digest_file

_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def write(root: Path, reference: str, made_by: str, target: Path, *, epoch: int) -> None:
    """Write the archive that `docker load` and `podman load` take for the tar at `root`."""
    layer = digest_file(root)
    config = _json(_config(layer, made_by, epoch))
    name = f"{hashlib.sha256(config).hexdigest()}.json"
    layers = [f"{layer}/layer.tar"]
    manifest = _json([{"Config": name, "RepoTags": [reference], "Layers": layers}])
    with tarfile.open(target, "w") as archive:
        _add(archive, "manifest.json", manifest)
        _add(archive, name, config)
        with root.open("rb") as stream:
            told = tarfile.TarInfo(layers[0])
            told.size = root.stat().st_size
            archive.addfile(told, stream)


def _config(layer: str, made_by: str, epoch: int) -> dict[str, Any]:
    created = datetime.fromtimestamp(epoch, tz=timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "architecture": "amd64",
        "os": "linux",
        "created": created,
        "config": {"Env": [_PATH], "Cmd": ["bash"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer}"]},
        "history": [{"created": created, "created_by": made_by}],
    }


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    told = tarfile.TarInfo(name)
    told.size = len(content)
    archive.addfile(told, io.BytesIO(content))
