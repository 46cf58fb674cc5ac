"""The native prefix: a toolchain's locked parts as a Python environment on this very machine.

The same images/provision.py fills it as fills the images, from the same lock, and the image's
own verify proves it. A virtual environment holds absolute paths, so it is built where it stays;
a marker written last tells a whole one from one whose making was cut short.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from edgekiln.calls import call, call_logged, last_words
from edgekiln.errors import EngineError, ImageError, KilnError
from edgekiln.faults import with_fault
from edgekiln.home import home, project
from edgekiln.prefix import here

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgekiln.progress import Progress
    from edgekiln.toolchain import Toolchain

_MARKER = "complete"


def prefix_path(toolchain: Toolchain) -> Path:
    """Where the prefix lies: named by the lock and by the installer, as an image's tag is.

    Inside an image of that very toolchain it is the image's own environment.
    """
    if here.is_here(toolchain):
        return here.ROOT
    how = hashlib.sha256()
    for name in ("provision.py", "bytecode.py"):
        how.update(_provision().with_name(name).read_bytes())
    named = f"{toolchain.name}-{toolchain.installed[:12]}-{how.hexdigest()[:8]}"
    return home() / "prefixes" / named


def prefix_python(toolchain: Toolchain) -> Path:
    """The prefix's Python; there once `prefix_ready`."""
    return prefix_path(toolchain) / "bin" / "python3"


def prefix_ready(toolchain: Toolchain) -> bool:
    """Whether the prefix is whole, and the Python it was made of still there."""
    if here.is_here(toolchain):
        return True
    marker = prefix_path(toolchain) / _MARKER
    return marker.is_file() and prefix_python(toolchain).exists()


def build_prefix(toolchain: Toolchain, progress: Progress) -> Path:
    """Fill the prefix unless it is whole already; returns its Python.

    Raises EngineError where the toolchains' wheels cannot run (they are for Linux x86-64), and
    ImageError where it cannot be filled.
    """
    from edgekiln.kits import absent
    from edgekiln.kits.vendor import told
    from edgekiln.locking import held

    if here.is_here(toolchain):
        return prefix_python(toolchain)
    refuse_elsewhere()
    path = prefix_path(toolchain)
    lock = home() / "locks" / f"prefix-{path.name}.lock"
    with held(lock, lambda: progress.note(f"waiting: another edgekiln is filling {path.name}")):
        if not prefix_ready(toolchain):
            absent.refuse([toolchain], None, kits=False)
            shutil.rmtree(path, ignore_errors=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                _fill(toolchain, path, progress)
            except KilnError as error:
                found = told(error, toolchain) if isinstance(error, ImageError) else error
                if elsewhere := here.other_image(toolchain):
                    found.remedy = "; or ".join(filter(None, (found.remedy, elsewhere)))
                raise found from error
            progress.update(0, None, "verify")
            _verify(toolchain, path)
            (path / _MARKER).write_text(toolchain.installed + "\n", encoding="utf-8")
    return prefix_python(toolchain)


def refuse_elsewhere() -> None:
    """Raise EngineError unless this is Linux on x86-64, which the locked wheels are for."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        raise EngineError(
            "toolchains cannot be installed natively here",
            why=f"their wheels are for Linux x86-64, this is {sys.platform} {platform.machine()}",
            remedy="start Docker or Podman and use --executor docker",
        )


def _provision() -> Path:
    return project() / "images" / "provision.py"


def _fill(toolchain: Toolchain, path: Path, progress: Progress) -> None:
    from edgekiln.boxes.fits import bring_packages, what_to_rent
    from edgekiln.images.context import indexes
    from edgekiln.prefix.pythons import find_python
    from edgekiln.toolchain import folder
    from edgekiln.toolchain.uvtool import linux_uv
    from edgekiln.toolchain.wheels import find_local, vendor
    from edgekiln.user.pipconf import PipSettings, pip_settings

    pip = pip_settings()
    unusual = [wheel for wheel in toolchain.lock.wheels if wheel.local]
    at_hand = set(find_local(unusual, pip))
    if vendor():
        at_hand |= set(find_local(toolchain.lock.wheels, PipSettings()))
    env = indexes(toolchain, at_hand, pip, remote_only=False)
    links = [*map(str, vendor()), *filter(None, [env.get("UV_FIND_LINKS")])]
    env |= {"UV_FIND_LINKS": ",".join(links)} if links else {}
    uv = linux_uv(toolchain.lock.uv, pip, progress)
    if pip.cert:
        env["SSL_CERT_FILE"] = pip.cert
    with what_to_rent(toolchain):
        python = find_python(toolchain.python, uv, env, progress)
    bring_packages(toolchain, progress)
    command = [sys.executable, str(_provision()), "--python", python, "--into", str(path)]
    command += ["--lock", str(folder() / f"{toolchain.name}.lock.json"), "--uv", str(uv)]
    command += ["--cache", str(home() / "uv")]
    _run(command, env, path, progress)
    _keep(toolchain, path)


def _keep(toolchain: Toolchain, path: Path) -> None:
    """Put beside the environment what lies there in an image."""
    from edgekiln.toolchain import MARKER, marker
    from edgekiln.toolchain.lock import installed_text

    images = project() / "images"
    shutil.copyfile(images / "verify", path / "verify")
    shutil.copyfile(images / toolchain.checks / "checks.py", path / "checks.py")
    told = {"lock.json": installed_text(toolchain.lock), MARKER: marker(toolchain, path.name)}
    for name, text in told.items():
        (path / name).write_text(text, encoding="utf-8", newline="\n")


def _run(command: list[str], env: Mapping[str, str], path: Path, progress: Progress) -> None:
    """Run provision.py; settings travel in a file of their own, read by this user only."""
    log = home() / "logs" / f"prefix-{path.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    settings = log.with_name(f".settings-{os.getpid()}.json")

    def hear(line: str) -> None:
        if line.startswith("provision: "):
            progress.update(0, None, line.partition(": ")[2].strip())

    settings.touch(mode=0o600)
    settings.write_text(json.dumps(dict(env)), encoding="utf-8")
    try:
        code = call_logged([*command, "--settings", str(settings)], log, hear)
    finally:
        settings.unlink()
    if code:
        from edgekiln.images.builder import reason
        from edgekiln.toolchain.swapped import swapped

        error = ImageError("the prefix could not be filled", why=reason(log), remedy=f"see {log}")
        raise swapped(log) or with_fault(error, log)


def _verify(toolchain: Toolchain, path: Path) -> None:
    """The image's own verify, run by the prefix's Python."""
    command = [str(prefix_python(toolchain)), "-s", str(path / "verify")]
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "UV_", "PIP_"))}
    done = call(command, env=clean)
    if done.returncode:
        from edgekiln.boxes.fits import with_packages

        error = ImageError(f"the prefix {path.name} failed its verify", why=last_words(done))
        raise with_packages(error, toolchain)
