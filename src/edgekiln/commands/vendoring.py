"""`kiln toolchains fetch`: one folder with all that a machine without a network needs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgekiln import units
from edgekiln.commands.common import shown_task, the_engine
from edgekiln.commands.toolchains import toolchain_names, words_of
from edgekiln.progress import Progress

if TYPE_CHECKING:
    from edgekiln.toolchain import Toolchain


def toolchains_fetch(names: str, *, to: Path, image: bool, model: str, pythons: str) -> None:
    """Fill a folder with all that toolchains are made of, edgekiln's own packages, and a model.

    `pythons` are the versions that edgekiln runs on there, with commas; "" is this one's.
    """
    from edgekiln.kits import licences, ownpackages, vendormodel
    from edgekiln.toolchain import load_toolchain

    toolchains = [load_toolchain(name) for name in toolchain_names(names)]
    ownpackages.check(words_of(pythons))
    if model:
        vendormodel.refuse_own(model)
    licences.settle_for([kit for toolchain in toolchains for kit in toolchain.kits])
    folder = to.expanduser().absolute()
    for toolchain in toolchains:
        with shown_task(f"fetch {toolchain.asked}") as task:
            lines = _fill(toolchain, folder, words_of(pythons), task, image=image)
        print("\n".join(lines))
    if model:
        with shown_task("model") as task:
            files = vendormodel.fill(model, folder, task)
        print(f"{model}: {len(files)} files ({_size(files)})")


def _fill(
    toolchain: Toolchain, folder: Path, pythons: Sequence[str], task: Progress, *, image: bool
) -> list[str]:
    """Fill the folder with one toolchain's inputs; what to say of it."""
    from edgekiln import images, sbom
    from edgekiln.engine import find_engine
    from edgekiln.kits import vendor

    filled = vendor.fill(toolchain, folder, task, pythons=pythons)
    lines = [
        f"{folder}: {toolchain.asked}: {len(filled.files)} files ({_size(filled.files)}), "
        f"{len(filled.repositories)} repositories"
    ]
    if image:
        images.build(the_engine(), toolchain, task)
        saved = vendor.save_image(the_engine(), toolchain, folder, task)
        sbom.put_beside(toolchain, saved)
        lines.append(f"{saved} ({_size(saved.rglob('*'))})")
    # After an image is built its base is there; else where an earlier build has left it.
    engine = find_engine()
    if engine is not None:
        vendor.save_base(engine, toolchain, folder, task)
    return lines


def _size(files: Iterable[Path]) -> str:
    return units.size(sum(path.stat().st_size for path in files))
