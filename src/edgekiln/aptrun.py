"""Packages put onto this very machine, as root on Debian and Ubuntu."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from edgekiln.errors import ImageError


def can_install() -> bool:
    """Whether this process may install packages here: Debian or Ubuntu, and root."""
    return sys.platform == "linux" and bool(shutil.which("apt-get")) and os.geteuid() == 0


def install(packages: list[str], error: type[ImageError] = ImageError) -> None:
    """Install without recommends. Raises `error` with apt's own last words."""
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update", "-q"], ["install", "-q", "-y", "--no-install-recommends", *packages]):
        done = subprocess.run(
            ["apt-get", *command], env=env, capture_output=True, text=True, check=False
        )
        if done.returncode and command[0] == "install":
            said = [line for line in done.stderr.splitlines() if line.startswith("E:")]
            why = (said or done.stderr.splitlines() or ["apt-get failed"])[-1]
            raise error(f"apt could not install {' '.join(packages)}", why=why)
