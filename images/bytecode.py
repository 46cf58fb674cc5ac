#!/usr/bin/env python3
"""Bytecode for the modules that stages import, and for no others.

Run by the environment's own Python with the modules' names. It compiles them and whatever they
import at their top level, file by file on every core, without running any of it: importing the
same modules would take three times as long, and compiling every file of torch and its friends
costs 230 MB. What a function imports later is compiled then, each time, unless it is named here.
"""

from __future__ import annotations

import dis
import importlib.util
import marshal
import os
import sys
import sysconfig
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from types import CodeType

SITE = Path(sysconfig.get_path("purelib"))


def main() -> int:
    """Compile the modules named on the command line and all they lead to."""
    count = compile_all(sys.argv[1:])
    print(f"{count} modules compiled", file=sys.stderr)
    return 0


def compile_all(roots: list[str]) -> int:
    """Compile `roots` and what they import, transitively; returns how many files."""
    seen: set[Path] = set()
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        running: set[Future[set[str]]] = set()
        fresh = {path for root in roots for path in files_of(root)}
        while fresh or running:
            seen |= fresh
            running |= {pool.submit(compile_one, path) for path in sorted(fresh)}
            done, running = wait(running, return_when=FIRST_COMPLETED)
            names = {name for future in done for name in future.result()}
            fresh = {path for name in names for path in files_of(name)} - seen
    return len(seen)


def files_of(name: str) -> Iterator[Path]:
    """The files that importing a module reads: its own, and those of the packages around it.

    Only what lies in the environment: Python's own modules have their bytecode already. A name
    that ends in .* is all modules of a package, for those found by no import statement.
    """
    place = SITE
    for part in name.split("."):
        if part == "*":
            yield from place.glob("*.py")
            return
        place = place / part
        if (place / "__init__.py").is_file():
            yield place / "__init__.py"
        elif place.with_name(f"{part}.py").is_file():
            yield place.with_name(f"{part}.py")
            return
        elif not place.is_dir():
            return


def compile_one(path: Path) -> set[str]:
    """Write a file's bytecode where Python looks for it; returns the modules it may import."""
    source = path.read_bytes()
    try:
        code = compile(source, str(path), "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return set()  # a template, or a file for another Python: nobody can import it
    stat = path.stat()
    # As importlib writes it: magic number, flags (0: checked by time), time, size, code.
    numbers = (0, int(stat.st_mtime) & 0xFFFFFFFF, stat.st_size & 0xFFFFFFFF)
    head = importlib.util.MAGIC_NUMBER + b"".join(n.to_bytes(4, "little") for n in numbers)
    target = Path(importlib.util.cache_from_source(str(path)))
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(head + marshal.dumps(code))
    package = ".".join(path.relative_to(SITE).parent.parts)
    return set(imported(code, package))


def imported(code: CodeType, package: str) -> Iterator[str]:
    """The modules that a module's top level imports; `from x import y` gives x and x.y.

    What stands under `if TYPE_CHECKING:` is never imported, and is most of what transformers has.
    """
    before: list[object] = [None, None]
    past = 0
    for step in dis.get_instructions(code):
        if "JUMP_IF_FALSE" in step.opname or "JUMP_FORWARD_IF_FALSE" in step.opname:
            past = step.argval if before[1] == "TYPE_CHECKING" else past
        elif step.opname == "IMPORT_NAME" and step.offset >= past:
            level, names = before
            base = _absolute(str(step.argval), level if isinstance(level, int) else 0, package)
            yield base
            # `from x import *` brings no module that x does not bring itself.
            parts = names if isinstance(names, tuple) and names != ("*",) else ()
            yield from (f"{base}.{name}" for name in parts)
        before = [before[1], step.argval]


def _absolute(name: str, level: int, package: str) -> str:
    """The full name of a module that is imported by a relative one (PEP 328)."""
    if level == 0:
        return name
    parts = package.split(".")
    return ".".join([*parts[: len(parts) - level + 1], *([name] if name else [])])


if __name__ == "__main__":
    sys.exit(main())
