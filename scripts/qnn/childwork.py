"""Work in a child process: vendor libraries that may crash or never end must not take us along.

The child is a program of this folder that calls `answer(function)`: it reads one JSON object from
its standard input and writes JSON lines to its standard output, the last one {"result": …} or
{"bad": …, "remedy": …}. Whatever libraries print goes to standard error, which becomes our log.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from stagekit import BadInput

_KEPT_LINES = 40
# prctl(PR_SET_PDEATHSIG): a stage that is killed leaves no compiler running behind it.
_DIE_WITH_PARENT = 1
# What libraries print by the way, which never says why something ended badly.
_NOISE = ("LIBNATIVE:", "[W:onnxruntime", "[I:onnxruntime", "  warnings.warn")

Told = Callable[[Mapping[str, Any]], None]


class Crashed(Exception):  # noqa: N818 - it says what happened
    """The child ended without a result."""

    def __init__(self, how: str, last: tuple[str, ...] = ()) -> None:
        self.how = how
        said = [line.strip() for line in last if line.strip()]
        super().__init__(": ".join([how, *([" / ".join(said[-3:])] if said else [])]))


def call(
    program: Path,
    request: Mapping[str, Any],
    *,
    told: Told | None = None,
    seconds: float | None = None,
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Run a program of this folder on a request and give its result.

    `told` hears every JSON line before the result. Raises BadInput as the child raised it, and
    Crashed when it died, said nothing, or was killed after `seconds`.
    """
    child = subprocess.Popen(
        [sys.executable, str(program)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **(environment or {})},
    )
    last: deque[str] = deque(maxlen=_KEPT_LINES)
    log = threading.Thread(target=_drain, args=(child.stderr, last), daemon=True)
    late = threading.Event()
    clock = threading.Timer(seconds or 0, _stop, (child, late))
    log.start()
    if seconds:
        clock.start()
    final: Mapping[str, Any] = {}
    try:
        final = _converse(child, request, told)
    finally:
        if not final:
            child.kill()
        child.wait()
        clock.cancel()
        log.join()
    return _judged(final, child.returncode, seconds if late.is_set() else None, tuple(last))


def _converse(
    child: subprocess.Popen[bytes], request: Mapping[str, Any], told: Told | None
) -> Mapping[str, Any]:
    """Hand the request over and hear the child out; its last line, or nothing."""
    assert child.stdin and child.stdout
    try:
        child.stdin.write(json.dumps(request).encode())
        child.stdin.close()
    except BrokenPipeError:
        pass  # it died at once; its exit code says how
    for line in child.stdout:
        try:
            event = json.loads(line)
        except ValueError:
            break  # cut off in the middle
        if "result" in event or "bad" in event or "fault" in event:
            return dict(event)
        if told:
            told(event)
    child.wait()
    return {"gone": True}


def _judged(
    final: Mapping[str, Any], code: int, after: float | None, last: tuple[str, ...]
) -> dict[str, Any]:
    if "result" in final:
        return dict(final["result"])
    if "bad" in final:
        raise BadInput(final["bad"], remedy=final.get("remedy", ""))
    if "fault" in final:
        raise Crashed(str(final["fault"]))
    if after is not None:
        raise Crashed(f"it was stopped after {after:g} s", last)
    if code < 0:
        raise Crashed(f"it crashed ({signal.Signals(-code).name})", last)
    raise Crashed(f"it ended with exit code {code}", last)


def _stop(child: subprocess.Popen[bytes], late: threading.Event) -> None:
    late.set()
    child.kill()


def _drain(pipe: IO[bytes], last: deque[str]) -> None:
    """Pass a child's log on, and keep its last lines."""
    for raw in pipe:
        line = raw.decode("utf-8", errors="replace").rstrip("\n")
        print(line, file=sys.stderr)
        if not any(noise in line for noise in _NOISE):
            last.append(line)


def answer(function: Callable[[Mapping[str, Any], Told], Mapping[str, Any]]) -> None:
    """The child's side: call `function(request, tell)` and hand over what it gives."""
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8", newline="\n")
    os.dup2(2, 1)  # what libraries print goes to the log
    sys.stdout = sys.stderr

    def tell(event: Mapping[str, Any]) -> None:
        print(json.dumps(event), file=lines, flush=True)

    try:
        tell({"result": function(json.load(sys.stdin), tell)})
    except BadInput as bad:
        tell({"bad": bad.text, "remedy": bad.remedy})
    except Exception as fault:
        traceback.print_exc()
        tell({"fault": f"{type(fault).__name__}: {fault}"})
    lines.close()
    sys.stderr.flush()
    # The vendor's libraries are known to crash while they are taken down.
    os._exit(0)


def peak_bytes() -> int:
    """The most memory this process has held (Linux)."""
    with open("/proc/self/status", encoding="ascii") as status:  # noqa: PTH123
        held = next((line for line in status if line.startswith("VmHWM:")), "VmHWM: 0")
    return int(held.split()[1]) * 1024
