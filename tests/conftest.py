"""What all tests share: the container engine, the mnn image and prefix, and why some were skipped.

Expensive things (images, prefixes, bases, models) are the user's own, made if they are missing;
stores are the tests' own.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from edgekiln.home import home
from edgekiln.progress import Silent

# A CI job in the background is started with these ignored, and what it starts inherits that:
# the tests that stop builds by signals would then stop nothing.
for _number in (signal.SIGINT, getattr(signal, "SIGHUP", signal.SIGINT)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.SIG_DFL)

if TYPE_CHECKING:
    from edgekiln.engine import Engine
    from edgekiln.toolchain import Toolchain

# Before any test has set EDGEKILN_HOME for itself.
USERS_HOME = home()
_SHARED = ("bases", "downloads", "locks", "models", "prefixes", "tools", "uv")
_NO_ENGINE = "no container engine answers"


@lru_cache(maxsize=1)
def _found() -> tuple[Engine | None, str]:
    """The engine, or why there is none."""
    from edgekiln.engine import find_engine, why_not

    engine = find_engine()
    return engine, "" if engine else "; ".join(why_not().splitlines()) or "no socket to try"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked `engine` are skipped where no engine answers."""
    if item.get_closest_marker("engine") and _found()[0] is None:
        pytest.skip(f"{_NO_ENGINE}: {_found()[1]}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say in the closing lines why container tests did not run."""
    every = terminalreporter.stats.get("skipped", [])
    skipped = [report for report in every if _NO_ENGINE in str(report.longrepr)]
    if skipped:
        text = f"{len(skipped)} container tests were skipped: {_NO_ENGINE} ({_found()[1]})"
        terminalreporter.write_line(text, yellow=True)


@pytest.fixture(scope="session")
def engine() -> Engine:
    """The container engine of this machine."""
    engine, why = _found()
    if engine is None:
        pytest.skip(f"{_NO_ENGINE}: {why}")
    return engine


@pytest.fixture(scope="session")
def mnn() -> Toolchain:
    """The mnn toolchain, as it is locked."""
    from edgekiln.toolchain import load_toolchain

    return load_toolchain("mnn")


@pytest.fixture(scope="session")
def qnn() -> Toolchain:
    """The qnn toolchain, as it is locked."""
    from edgekiln.toolchain import load_toolchain

    return load_toolchain("qnn")


def _python(toolchain: Toolchain) -> Path:
    from edgekiln.errors import EngineError
    from edgekiln.prefix import build_prefix

    try:
        return build_prefix(toolchain, Silent())
    except EngineError as error:
        pytest.skip(f"{error.what}: {error.why}")


@pytest.fixture(scope="session")
def mnn_python(mnn: Toolchain) -> Path:
    """The Python of mnn's native prefix, filled if it is not there yet."""
    return _python(mnn)


@pytest.fixture(scope="session")
def qnn_python(qnn: Toolchain) -> Path:
    """The Python of qnn's native prefix, filled if it is not there yet."""
    return _python(qnn)


@pytest.fixture(scope="session")
def image(engine: Engine, mnn: Toolchain) -> str:
    """The tag of mnn's image, built if it is not there yet."""
    from edgekiln import images

    return images.build(engine, mnn, Silent())


@pytest.fixture(scope="session")
def share_expensive() -> Callable[[Path], Path]:
    """Gives a folder the user's expensive things; its store and logs stay its own."""

    def share(place: Path) -> Path:
        for name in _SHARED:
            (USERS_HOME / name).mkdir(parents=True, exist_ok=True)
            (place / name).symlink_to(USERS_HOME / name)
        return place

    return share


@pytest.fixture
def own_store(tmp_path: Path, share_expensive: Callable[[Path], Path]) -> Path:
    """A home for EDGEKILN_HOME: a store and logs of its own, the user's expensive things."""
    (tmp_path / "kiln").mkdir()
    return share_expensive(tmp_path / "kiln")
