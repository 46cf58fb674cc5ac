"""What a box without a network lives on: a vendor folder, filled once and kept."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement

from edgekiln.calls import call
from edgekiln.home import project

# What a box's Python is, for the markers in requirements.txt.
_BOX = {
    "python_version": "3.11",
    "python_full_version": "3.11.2",
    "sys_platform": "linux",
    "platform_machine": "x86_64",
    "platform_system": "Linux",
    "os_name": "posix",
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
}
_PLATFORMS = ("manylinux_2_34", "manylinux_2_28", "manylinux_2_17", "manylinux2014")


def fill(folder: Path, names: tuple[str, ...]) -> Path:
    """Have a folder hold edgekiln's own packages for a box, and these toolchains' wheels."""
    from edgekiln.kits import vendor
    from edgekiln.progress import Silent
    from edgekiln.toolchain import load_toolchain

    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        vendor.fill(load_toolchain(name), folder, Silent())
    _own_packages(folder)
    return folder


def _own_packages(folder: Path) -> None:
    """The wheels of requirements.txt that a box wants and the folder lacks, by the user's pip."""
    lacking = [text for text in _wanted() if not _there(text, folder)]
    if not lacking:
        return
    from edgekiln.user.pipconf import pip_command

    command = pip_command()
    assert command is not None, "this Python has no pip"
    with tempfile.TemporaryDirectory(prefix="edgekiln-box-") as scratch:
        asked = Path(scratch, "requirements.txt")
        asked.write_text("\n".join(lacking) + "\n", encoding="utf-8")
        words = ["--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes"]
        words += ["--python-version=3.11", "--implementation=cp", "--disable-pip-version-check"]
        words += [f"--platform={name}_x86_64" for name in _PLATFORMS]
        words += ["--requirement", str(asked), "--dest", str(folder)]
        done = call([*command, "download", *words])
        assert done.returncode == 0, done.stderr


def _wanted() -> list[str]:
    """The requirements of a box, each with its hashes."""
    text = (project() / "requirements.txt").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = (line.strip() for line in text.splitlines())
    every = [line for line in lines if line and not line.startswith(("#", "-"))]
    return [line for line in every if _meant(line)]


def _meant(line: str) -> bool:
    marker = Requirement(line.partition(" --hash")[0]).marker
    return marker is None or marker.evaluate({**default_environment(), **_BOX})


def _there(line: str, folder: Path) -> bool:
    """Whether a wheel of that name and version lies in the folder."""
    name, _, version = line.partition(";")[0].split()[0].partition("==")
    plain = re.sub(r"[-_.]+", "_", name).lower()
    return any(path.name.lower().startswith(f"{plain}-{version}-") for path in folder.glob("*.whl"))
