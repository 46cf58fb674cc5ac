"""A Python of a given minor version on this machine, found or fetched."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from edgekiln import offline
from edgekiln.aptrun import can_install, install
from edgekiln.calls import call
from edgekiln.errors import ImageError
from edgekiln.home import home
from edgekiln.progress import Progress

# uv fetches Python from a public file host; where that is out of reach it should say so soon.
_PATIENCE = 120


def find_python(minor: str, uv: Path, env: Mapping[str, str], progress: Progress) -> str:
    """The path of a CPython `minor` (e.g. 3.11): PATH, pyenv, uv's own, then apt as root."""
    for path in _candidates(minor, uv, env):
        if is_python(path, minor):
            return path
    if offline.enabled():
        remedy = f"install python{minor} from the distribution's own media, or --executor docker"
        raise ImageError(f"no Python {minor} on this machine", remedy=remedy)
    progress.note(f"no Python {minor} here: asking uv to fetch one")
    if _uv(uv, ["install", minor], env) is not None:
        found = _uv(uv, ["find", minor], env)
        if found and is_python(found, minor):
            return found
    if can_install():
        progress.note(f"installing python{minor} with apt")
        install([f"python{minor}"])
        found = shutil.which(f"python{minor}", path="/usr/bin")
        if found and is_python(found, minor):
            return found
    remedy = f"install python{minor} (pyenv install {minor}), or use --executor docker or rootfs"
    raise ImageError(f"no Python {minor} on this machine", remedy=remedy)


def _candidates(minor: str, uv: Path, env: Mapping[str, str]) -> Iterator[str]:
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        yield str(Path(folder, f"python{minor}"))
    root = Path(os.environ.get("PYENV_ROOT", str(Path.home() / ".pyenv")))
    for path in sorted(root.glob(f"versions/{minor}.*/bin/python{minor}"), reverse=True):
        yield str(path)
    yield _uv(uv, ["find", minor], env) or ""


def is_python(path: str, minor: str) -> bool:
    """Whether `path` runs and is a released CPython of that minor version.

    pyenv's shims may exist and not run. Ubuntu 22.04's python3.11 is 3.11.0rc1: torch and the
    markers of packages take it for neither 3.11 nor older.
    """
    if not path or not os.access(path, os.X_OK):
        return False
    says = "import sys; v = sys.version_info; print(sys.implementation.name, '%d.%d' % v[:2], v[3])"
    done = call([path, "-I", "-c", says], timeout=30)
    return done.returncode == 0 and done.stdout.split() == ["cpython", minor, "final"]


def _uv(uv: Path, words: list[str], env: Mapping[str, str]) -> str | None:
    kept = {**os.environ, **env, "UV_PYTHON_INSTALL_DIR": str(home() / "pythons")}
    kept |= {"UV_HTTP_TIMEOUT": "15", "UV_PYTHON_PREFERENCE": "managed"}
    kept["UV_CACHE_DIR"] = str(home() / "uv")
    options = ["--no-python-downloads"] if words[0] == "find" else ["--quiet"]
    done = call([str(uv), "python", *words, *options], env=kept, timeout=_PATIENCE)
    return done.stdout.strip() if done.returncode == 0 else None
