"""The image's bytecode: what is compiled, and that Python takes it as its own."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from edgekiln.home import project

PROGRAM = project() / "images" / "bytecode.py"


@pytest.fixture
def bytecode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """images/bytecode.py, for packages in a folder of the test."""
    spec = importlib.util.spec_from_file_location("bytecode", PROGRAM)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "SITE", tmp_path)
    for name, text in {
        "pkg/__init__.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n import never\n",
        "pkg/top.py": "import os\nfrom . import beside\nfrom .sub.deep import x\nimport other\n",
        "pkg/beside.py": "from pkg import *\ndef later():\n    import lazy\n",
        "pkg/sub/__init__.py": "",
        "pkg/sub/deep.py": "from ..up import *\nx = 1\n",
        "pkg/up.py": "try:\n    import maybe\nexcept ImportError:\n    pass\n",
        "pkg/unasked.py": "",
        "other.py": "import no_such_module\n",
        "maybe.py": "",
        "lazy.py": "",
        "never.py": "",
        "broken.py": "def (",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return module


def closure(bytecode: ModuleType, *roots: str) -> set[str]:
    """What compile_all would compile, one file after the other in this process."""
    seen: set[Path] = set()
    waiting = {path for root in roots for path in bytecode.files_of(root)}
    while waiting:
        path = waiting.pop()
        seen.add(path)
        waiting |= {f for name in bytecode.compile_one(path) for f in bytecode.files_of(name)}
        waiting -= seen
    return {path.relative_to(bytecode.SITE).as_posix() for path in seen}


def test_a_module_brings_its_packages_and_what_it_imports_at_its_top(bytecode: ModuleType) -> None:
    assert closure(bytecode, "pkg.top") == {
        "pkg/__init__.py",
        "pkg/top.py",
        "pkg/beside.py",
        "pkg/sub/__init__.py",
        "pkg/sub/deep.py",
        "pkg/up.py",
        "other.py",
        "maybe.py",
    }


def test_a_star_is_every_module_of_a_package(bytecode: ModuleType) -> None:
    assert "pkg/unasked.py" in closure(bytecode, "pkg.*")
    assert "pkg/sub/deep.py" in closure(bytecode, "pkg.*")


def test_a_file_that_is_no_python_is_passed_over(bytecode: ModuleType, tmp_path: Path) -> None:
    assert closure(bytecode, "broken") == {"broken.py"}
    assert not (tmp_path / "__pycache__").exists()


def test_python_takes_the_bytecode_without_compiling(bytecode: ModuleType, tmp_path: Path) -> None:
    bytecode.compile_one(tmp_path / "maybe.py")
    cached = Path(importlib.util.cache_from_source(str(tmp_path / "maybe.py")))
    before = cached.read_bytes()
    words = [sys.executable, "-v", "-c", "import maybe"]
    done = subprocess.run(
        words, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=True
    )
    assert f"code object from '{cached}'" in done.stderr
    assert cached.read_bytes() == before


def test_changed_source_is_compiled_anew(bytecode: ModuleType, tmp_path: Path) -> None:
    bytecode.compile_one(tmp_path / "maybe.py")
    (tmp_path / "maybe.py").write_text("print('changed')\n")
    words = [sys.executable, "-B", "-c", "import maybe"]
    env = {"PYTHONPATH": str(tmp_path)}
    assert subprocess.check_output(words, env=env, text=True) == "changed\n"
