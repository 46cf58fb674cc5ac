"""`kiln test`: the project's own tests, with what they need."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys

from edgekiln.commands.common import shown_task
from edgekiln.errors import KilnError, UsageError
from edgekiln.home import project

# Programs that tests call, and the packages of Debian and Ubuntu that hold them.
_TESTS_CALL = {
    "adb": "adb",
    "aarch64-linux-gnu-as": "binutils-aarch64-linux-gnu",
    "aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu libc6-dev-arm64-cross",
    "aapt": "aapt android-framework-res",
    "apksigner": "apksigner",
    "docker-registry": "docker-registry",
}


def run_tests(*, select: str, unit: bool, args: str) -> None:
    """Run pytest in this environment, with an engine brought up first where that can be done."""
    if select and not (project() / select.partition("::")[0]).exists():
        raise UsageError(f"no tests at {select}", remedy="a path such as tests/unit/test_store.py")
    where = select or ("tests/unit" if unit else "tests")
    if not unit and not where.startswith("tests/unit"):
        _try_engine()
        _try_packages()
    command = [sys.executable, "-m", "pytest", where, *shlex.split(args)]
    env = {**os.environ, "TESTCONTAINERS_RYUK_DISABLED": "true"}
    code = subprocess.run(command, cwd=project(), env=env, check=False).returncode
    if code:
        from invoke.exceptions import Exit

        raise Exit(code=code)


def _try_engine() -> None:
    """An engine for the container tests, where this user may bring one up."""
    from edgekiln import engine

    if engine.find_engine() is not None:
        return
    print("no container engine answers: trying to bring one up for the tests", flush=True)
    try:
        with shown_task("engine") as task:
            engine.up(task)
    except KilnError as error:
        print("\n".join(error.lines()), file=sys.stderr)


def _try_packages() -> None:
    """The programs of the distribution that some tests call, where they may be installed."""
    from edgekiln import aptrun

    missing = [packages for program, packages in _TESTS_CALL.items() if not shutil.which(program)]
    lacking = [package for packages in missing for package in packages.split()]
    if lacking and aptrun.can_install():
        print(f"installing for the tests: {' '.join(lacking)}", flush=True)
        try:
            aptrun.install(lacking)
        except KilnError as error:
            print("\n".join(error.lines()), file=sys.stderr)
