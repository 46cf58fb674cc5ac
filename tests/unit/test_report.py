"""What people and machines are shown."""

from __future__ import annotations

import io
import json

from edgekiln.errors import DiskError
from edgekiln.report import BarReporter, JsonReporter, LineReporter, QuietReporter, Task, table


def test_json_is_one_event_a_line() -> None:
    out = io.StringIO()
    reporter = JsonReporter(out)
    reporter.started("export", "mnn/export.py")
    reporter.progressed("export", 3, 30, "layers", "quantize")
    reporter.ended("export", "done", {"seconds": 1.5})
    reporter.result("answer", "Paris", "it said Paris")
    reporter.failed(DiskError("full", why="no space", remedy="free some"))
    events = [json.loads(line) for line in out.getvalue().splitlines()]
    kinds = [e["event"] for e in events]
    assert kinds == ["started", "progress", "ended", "result", "error"]
    assert (events[1]["done"], events[1]["total"], events[1]["unit"]) == (3, 30, "layers")
    assert events[3]["value"] == "Paris"
    assert (events[4]["kind"], events[4]["exit_code"]) == ("disk", 11)


def test_quiet_shows_results_only() -> None:
    out, err = io.StringIO(), io.StringIO()
    reporter = QuietReporter(out, err)
    reporter.say("chatter")
    reporter.started("export", "x")
    reporter.ended("export", "done", {})
    reporter.result("answer", "Paris", "answer: Paris")
    assert out.getvalue() == "answer: Paris\n"
    assert err.getvalue() == ""


def test_lines_go_to_stderr_and_results_to_stdout() -> None:
    out, err = io.StringIO(), io.StringIO()
    reporter = LineReporter(out, err)
    reporter.started("export", "mnn/export.py")
    figures = {"seconds": 12.5, "peak_memory": 1_430_000_000, "size": 87_000_000}
    reporter.ended("export", "done", figures)
    reporter.result("bundle", "build/x", "bundle: build/x")
    assert "export: done (12.5 s, peak 1.4 GB, made 87.0 MB)" in err.getvalue()
    assert out.getvalue() == "bundle: build/x\n"


def test_bars_show_amounts_and_are_gone_at_the_end() -> None:
    out, err = io.StringIO(), io.StringIO()
    reporter = BarReporter(out, err)
    reporter.started("export", "mnn/export.py")
    reporter.progressed("export", 15, 30, "layers", "")
    Task(reporter, "model").update(5_000_000, 10_000_000)
    assert "50%" in err.getvalue() and "15/30" in err.getvalue()
    reporter.ended("export", "done", {})
    reporter.close()
    assert not reporter._bars


def test_a_table_lines_its_columns_up() -> None:
    text = table([("export", "run"), ("prove", "cached")], ("stage", "how"))
    assert text == "stage   how\nexport  run\nprove   cached"
