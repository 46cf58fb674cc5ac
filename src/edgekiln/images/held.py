"""An export held against the lock: who made it, and where it came from, does not matter then.

The lock has the content digest of images that were built and recorded (repro.py). An export of the
same content is the same image, whoever's hands it went through.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekiln.errors import DigestError
from edgekiln.images import content, recipe_digest
from edgekiln.images.layout import OPAQUE, WHITEOUT, Image, Layout

if TYPE_CHECKING:
    from edgekiln.progress import Progress
    from edgekiln.toolchain import Toolchain


def hold(source: Layout, image: Image, toolchain: Toolchain, progress: Progress) -> None:
    """Hold an export's content against the lock, where the lock has it; else say that it has not.

    Raises DigestError for another content than recorded.
    """
    base = image.labels.get("io.edgekiln.images.base", "")
    known = toolchain.lock.image_of(toolchain.installed, recipe_digest(toolchain), base)
    if known is None:
        progress.note("no content digest of this image is in its lock: it is taken as it is")
        return
    found = content.digest(listing(source, image, progress))
    if found == known.content:
        return
    if drift := image.labels.get("io.edgekiln.drift", ""):
        progress.note(f"not held against its lock, since it is newer: {drift}")
        return
    raise DigestError(
        f"{source.path} is not the image that {toolchain.name}.lock.json tells of",
        why=f"its content is sha256 {found}, recorded is {known.content}",
        remedy=f"export it anew where `kiln images build {toolchain.name} --repro` says: "
        "as the lock has it",
    )


def listing(source: Layout, image: Image, progress: Progress) -> content.Listing:
    """What the image holds when its layers are laid over each other."""
    found: dict[str, content.Entry] = {}
    total, done = sum(layer.size for layer in image.layers), 0
    for layer, diff_id in zip(image.layers, image.diff_ids, strict=True):
        progress.update(done, total, f"reading {image.tag}")
        source.check(layer)
        with source.layer(layer, diff_id) as stream:
            _over(found, content.of_tar(stream))
        done += layer.size
    progress.update(total, total, f"reading {image.tag}")
    return found


def _over(found: dict[str, content.Entry], layer: content.Listing) -> None:
    """Lay a layer's names over those of the layers below it."""
    for name in layer:
        folder, _, last = name.rpartition("/")
        if last.startswith(WHITEOUT):
            gone = folder if last == OPAQUE else f"{folder}/{last.removeprefix(WHITEOUT)}"
            gone = gone.strip("/")
            for below in [n for n in found if not gone or n.startswith(f"{gone}/")]:
                del found[below]
            if last != OPAQUE:
                found.pop(gone, None)
    found.update({n: e for n, e in layer.items() if not n.rpartition("/")[2].startswith(WHITEOUT)})
