"""The stage contract: how a program under scripts/ is given its work and tells how it goes.

A stage reads $KILN_IN/NAME for each input, writes $KILN_OUT/NAME for each output, and finds its
parameters as one JSON object in the file $KILN_PARAMS. Its standard output carries events only,
one JSON object a line; everything else it or its libraries say goes to standard error, the log.

    {"event": "progress", "done": 3, "total": 30, "unit": "layers", "what": "quantize"}
    {"event": "note", "text": "…"}
    {"event": "error", "text": "…", "remedy": "…"}
    {"event": "usage", "peak_bytes": 1430000000, "cpu_seconds": 21.4}     always, as the last one

Exit code 0 is done, 64 is bad input (an `error` event says which), anything else is a fault.

To try a program by hand, in the Python of its toolchain:

    mkdir in out; ln -s ~/models/smollm2 in/model; echo '{"quant_bit": 4}' >params.json
    KILN_IN=in KILN_OUT=out KILN_PARAMS=params.json KILN_CPUS=2 PYTHONPATH=scripts \
        python3 scripts/mnn/export.py

Only the standard library is used: every toolchain's Python can run this.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

BAD_INPUT = 64
FAULT = 1
# A bar needs no more than this many events a second, and each one is a write to a pipe.
_PROGRESS_EVERY = 0.05


class BadInput(Exception):  # noqa: N818 - it says what is wrong, not that something is
    """What was handed in cannot be used; one line what, one line what to do about it."""

    def __init__(self, text: str, *, remedy: str = "") -> None:
        super().__init__(text)
        self.text = text
        self.remedy = remedy


@dataclass(kw_only=True)
class Stage:
    """One run of a program: where its inputs and outputs lie, and whom to tell."""

    inputs: Path
    outputs: Path
    params: Mapping[str, Any]
    cpus: int
    events: TextIO
    _told: float = field(default=0.0, init=False)

    def has(self, name: str) -> bool:
        """Whether that input was handed in."""
        return (self.inputs / name).exists()

    def input(self, name: str) -> Path:
        """Where an input lies; it is read only."""
        if not self.has(name):
            raise BadInput(f"there is no input called {name}")
        return self.inputs / name

    def output(self, name: str) -> Path:
        """Where an output goes. The program makes the file or folder itself."""
        return self.outputs / name

    def param(self, name: str, kind: type, default: Any = None) -> Any:
        """A parameter, checked to be of `kind`; `default` stands in where it is not given."""
        value = self.params.get(name)
        if value is None:
            return default
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise BadInput(f"parameter {name} is {value!r}, not of type {kind.__name__}")
        return value

    def progress(self, done: float, total: float, *, unit: str, what: str = "") -> None:
        """Tell how far the work is. Calls in quick succession are thinned, the last never."""
        now = time.monotonic()
        if done < total and now - self._told < _PROGRESS_EVERY:
            return
        self._told = now
        self._emit("progress", done=done, total=total, unit=unit, what=what)

    def note(self, text: str) -> None:
        """Tell something worth a line of its own."""
        self._emit("note", text=text)

    def error(self, text: str, remedy: str = "") -> None:
        """Tell, in one line each, why this stage ends badly and what to do."""
        self._emit("error", text=text, remedy=remedy)

    def usage(self) -> None:
        """Tell what this process and its children took."""
        peak, seconds = _usage()
        self._emit("usage", peak_bytes=peak, cpu_seconds=round(seconds, 3))

    def _emit(self, event: str, **rest: Any) -> None:
        line = json.dumps({"event": event, **rest}, ensure_ascii=False)
        print(line, file=self.events, flush=True)


def main(run: Callable[[Stage], None]) -> None:
    """Run a stage's `run` under the contract and leave with its exit code."""
    stage = _from_environment(_claim_stdout())
    code = _guarded(run, stage)
    stage.usage()
    stage.events.close()
    sys.stderr.flush()
    sys.exit(code)


def _claim_stdout() -> TextIO:
    """Keep stdout for events: what libraries print, in Python or C, goes to the log."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8", newline="\n")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return events


def _from_environment(events: TextIO) -> Stage:
    place = Path(os.environ.get("KILN_PARAMS", "/kiln/params.json"))
    params = json.loads(place.read_text(encoding="utf-8")) if place.exists() else {}
    return Stage(
        inputs=Path(os.environ.get("KILN_IN", "/in")).absolute(),
        outputs=Path(os.environ.get("KILN_OUT", "/out")).absolute(),
        params=params,
        cpus=int(os.environ.get("KILN_CPUS") or os.cpu_count() or 1),
        events=events,
    )


def _guarded(run: Callable[[Stage], None], stage: Stage) -> int:
    try:
        run(stage)
    except BadInput as bad:
        stage.error(bad.text, bad.remedy)
        return BAD_INPUT
    except MemoryError:
        stage.error("the program ran out of memory")
        raise
    except Exception as fault:
        traceback.print_exc()
        stage.error(f"{type(fault).__name__}: {fault}".splitlines()[0])
        return FAULT
    except SystemExit as leaving:  # some tools call exit() deep inside
        code = leaving.code if isinstance(leaving.code, int) else FAULT
        return FAULT if code in (0, BAD_INPUT) else code
    return 0


def _usage() -> tuple[int, float]:
    """Peak resident bytes of the largest process, and processor seconds of all."""
    import resource

    both = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    unit = 1 if sys.platform == "darwin" else 1024
    peak = max(_own_peak() or both[0].ru_maxrss * unit, both[1].ru_maxrss * unit)
    return peak, sum(u.ru_utime + u.ru_stime for u in both)


def _own_peak() -> int:
    """This process's own peak (Linux). getrusage's is no less than what the process that
    started it held: the kernel keeps it across exec."""
    try:
        with open("/proc/self/status", encoding="ascii") as status:  # noqa: PTH123
            held = next(line for line in status if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return 0
    return int(held.split()[1]) * 1024
