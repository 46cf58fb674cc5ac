"""Packages put onto this very machine, as root on Debian and Ubuntu."""

from __future__ import annotations

import os
import shutil
import sys

from edgekiln import offline
from edgekiln.calls import call, last_words
from edgekiln.errors import ImageError, KilnError


def can_install() -> bool:
    """Whether this process may install packages here: Debian or Ubuntu, and root."""
    return sys.platform == "linux" and bool(shutil.which("apt-get")) and os.geteuid() == 0


def install(packages: list[str], error: type[KilnError] = ImageError) -> None:
    """Install without recommends. Raises `error` with apt's own last words."""
    if offline.enabled():
        remedy = f"install {' '.join(packages)} from the distribution's own media"
        raise error(f"{' '.join(packages)} is not here, and --offline asks nobody", remedy=remedy)
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    # A mirror's passing fault in update need not matter: install says whether it did.
    call(["apt-get", "update", "-q"], env=env)
    done = call(["apt-get", "install", "-q", "-y", "--no-install-recommends", *packages], env=env)
    if done.returncode:
        raise error(f"apt could not install {' '.join(packages)}", why=last_words(done))
