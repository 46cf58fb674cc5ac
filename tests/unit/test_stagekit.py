"""The stage contract, tried with real programs in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


class Ran(NamedTuple):
    code: int
    events: list[dict[str, Any]]
    log: str

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [e for e in self.events if e["event"] == kind]


class Program:
    """Writes a program, runs it as an executor would, reads its events."""

    def __init__(self, place: Path) -> None:
        self.place = place
        for folder in ("in", "out"):
            (place / folder).mkdir()

    def run(self, body: str, params: object = None, **environment: str) -> Ran:
        lines = "\n".join(f"    {line}" for line in body.splitlines())
        text = f"import os, sys\nfrom stagekit import BadInput, main\ndef run(stage):\n{lines}\n"
        program = self.place / "program.py"
        program.write_text(text + "main(run)\n", encoding="utf-8")
        (self.place / "params.json").write_text(json.dumps(params or {}), encoding="utf-8")
        environment = {
            **os.environ,
            "PYTHONPATH": str(SCRIPTS),
            "KILN_IN": str(self.place / "in"),
            "KILN_OUT": str(self.place / "out"),
            "KILN_PARAMS": str(self.place / "params.json"),
            "KILN_CPUS": "3",
            **environment,
        }
        done = subprocess.run(
            [sys.executable, str(program)],
            capture_output=True,
            text=True,
            encoding="utf-8",
            env=environment,
            check=False,
            timeout=60,
        )
        events = [json.loads(line) for line in done.stdout.splitlines()]
        return Ran(done.returncode, events, done.stderr)


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path)


def test_a_program_that_ends_well_leaves_zero_and_says_what_it_took(program: Program) -> None:
    ran = program.run("pass")
    assert ran.code == 0
    assert [e["event"] for e in ran.events] == ["usage"]
    assert ran.events[0]["peak_bytes"] > 1 << 20
    assert ran.events[0]["cpu_seconds"] >= 0


def test_usage_counts_children(program: Program) -> None:
    child = 'x = b"x" * (200 << 20)'
    body = f"import subprocess\nsubprocess.run([sys.executable, '-c', {child!r}])"
    assert program.run(body).of("usage")[0]["peak_bytes"] > 200 << 20


def test_stdout_carries_events_only_whoever_prints(program: Program) -> None:
    ran = program.run(
        "print('from python')\n"
        "os.system('echo from a child')\n"
        "os.write(1, b'from the descriptor\\n')\n"
        "stage.note('ünïcode')"
    )
    assert [e["event"] for e in ran.events] == ["note", "usage"]
    assert ran.of("note")[0]["text"] == "ünïcode"
    for words in ("from python", "from a child", "from the descriptor"):
        assert words in ran.log


def test_bad_input_leaves_64_with_one_line_and_a_remedy(program: Program) -> None:
    ran = program.run("raise BadInput('no weights', remedy='get them')")
    assert ran.code == 64
    assert ran.of("error") == [{"event": "error", "text": "no weights", "remedy": "get them"}]
    assert ran.events[-1]["event"] == "usage"


def test_a_fault_leaves_its_traceback_in_the_log_and_one_line_as_event(program: Program) -> None:
    ran = program.run("raise ValueError('first\\nsecond')")
    assert ran.code == 1
    assert ran.of("error")[0]["text"] == "ValueError: first"
    assert "Traceback" in ran.log


@pytest.mark.parametrize(("given", "left"), [(0, 1), (64, 1), (3, 3), ("'text'", 1)])
def test_a_tool_that_exits_deep_inside_is_never_taken_for_done(
    program: Program, given: object, left: int
) -> None:
    assert program.run(f"sys.exit({given})").code == left


def test_inputs_outputs_parameters_and_cpus_are_found(program: Program) -> None:
    (program.place / "in" / "words").write_text("hello", encoding="utf-8")
    body = (
        "assert stage.has('words') and not stage.has('other')\n"
        "text = stage.input('words').read_text()\n"
        "stage.output('said').write_text(f'{text} {stage.params[\"n\"]} {stage.cpus}')"
    )
    assert program.run(body, {"n": 4}).code == 0
    assert (program.place / "out" / "said").read_text(encoding="utf-8") == "hello 4 3"


def test_a_missing_input_is_bad_input(program: Program) -> None:
    ran = program.run("stage.input('model')")
    assert ran.code == 64
    assert "model" in ran.of("error")[0]["text"]


@pytest.mark.parametrize(
    ("params", "code"), [({"n": 4}, 0), ({}, 0), ({"n": "4"}, 64), ({"n": True}, 64)]
)
def test_parameters_are_checked_for_their_type(
    program: Program, params: dict[str, object], code: int
) -> None:
    assert program.run("assert stage.param('n', int, 4) == 4", params).code == code


def test_progress_is_thinned_but_the_end_is_always_told(program: Program) -> None:
    body = "for i in range(1, 1001):\n    stage.progress(i, 1000, unit='layers', what='quantise')"
    told = program.run(body).of("progress")
    assert 1 <= len(told) < 500
    assert told[-1] == {
        "event": "progress",
        "done": 1000,
        "total": 1000,
        "unit": "layers",
        "what": "quantise",
    }
