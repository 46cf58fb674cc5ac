"""`cmake` as mlc4j's prepare_libs.py calls it, held to our number of jobs and to 16 KB pages.

    cmakeshim.py CMAKE JOBS PAGE_SIZE ARGUMENTS…

Upstream builds with as many jobs as the machine has processors, whatever the container was given,
and says nothing of the size of pages. LDFLAGS would not do: the NDK's toolchain file sets CMake's
own variable before CMake looks at the environment.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence

_TOOLCHAIN = "-DCMAKE_TOOLCHAIN_FILE="
_SHARED = "-DCMAKE_SHARED_LINKER_FLAGS="
_JOBS = re.compile(r"(-j|--parallel=?)\d*")


def rewrite(words: Sequence[str], jobs: int, page_size: int) -> list[str]:
    """The arguments to call CMake with, for those it was called with."""
    if "--build" in words:
        kept = [word for word in words if not _JOBS.fullmatch(word)]
        return [*kept, f"-j{jobs}"]
    if not any(word.startswith(_TOOLCHAIN) for word in words):
        return list(words)
    flag = f"-Wl,-z,max-page-size={page_size}"
    flags = [w.removeprefix(_SHARED) for w in words if w.startswith(_SHARED)]
    kept = [word for word in words if not word.startswith(_SHARED)]
    # The NDK's own word for it, which it has since r27; older ones ignore it.
    flexible = ["-DANDROID_SUPPORT_FLEXIBLE_PAGE_SIZES=ON"]
    return [*kept, f"{_SHARED}{' '.join([*flags, flag])}", *flexible]


def script(python: str, cmake: str, jobs: int, page_size: int) -> str:
    """A shell script to lie on PATH under the name cmake."""
    return f'#!/bin/sh\nexec "{python}" -s "{__file__}" "{cmake}" {jobs} {page_size} "$@"\n'


if __name__ == "__main__":
    program, count, size = sys.argv[1:4]
    arguments = rewrite(sys.argv[4:], int(count), int(size))
    print(f"$ {program} {' '.join(arguments)}", file=sys.stderr, flush=True)
    os.execv(program, [program, *arguments])
