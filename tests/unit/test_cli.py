"""The commands as a user meets them: help, nearest names, exit codes, no tracebacks."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from edgekiln.__main__ import translate
from edgekiln.backends import options_by_backend
from edgekiln.home import project


def kiln(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command line as a user would, in an environment of its own."""
    return subprocess.run(
        [sys.executable, "-m", "edgekiln", *arguments],
        env={**os.environ, "PYTHONPATH": str(project() / "src"), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ([], ["--list"]),
        (["help"], ["--list"]),
        (["images"], ["--list", "images"]),
        (["images", "build", "mnn"], ["images.build", "mnn"]),
        (["help", "build"], ["--help", "build"]),
        (["help", "build", "--backend", "mlc"], ["--help", "build", "build", "--backend", "mlc"]),
        (["build", "--backend", "mlc", "--help"], ["--help", "build", "build", "--backend", "mlc"]),
        (["test", "--args", "--help"], ["test", "--args", "--help"]),
        (["help", "store", "gc"], ["--help", "store.gc"]),
        (["bundle", "lint", "--help"], ["--help", "bundle.lint"]),
        (["inspect", "-h"], ["--help", "inspect"]),
        (["build", "--backend", "mnn"], ["build", "--backend", "mnn"]),
        (["images", "--help"], ["--list", "images"]),
        (["help", "images"], ["--list", "images"]),
        (["toolchains", "lock", "mnn"], ["toolchains.lock", "--name", "mnn"]),
        (["toolchains", "lock", "--check"], ["toolchains.lock", "--check"]),
        (["sign", "DIR", "--key", "k"], ["sign", "--folder", "DIR", "--key", "k"]),
        (["sign", "--new-key"], ["sign", "--new-key"]),
        (["verify", "signature", "DIR"], ["verify.signature", "DIR"]),
        (["verify"], ["--list", "verify"]),
        (["test", "tests/unit", "--args", "-x"], ["test", "--path", "tests/unit", "--args", "-x"]),
    ],
)
def test_spaces_stand_for_dots(words: list[str], meant: list[str]) -> None:
    assert translate(words) == meant


@pytest.mark.parametrize(
    "words", [["help", "inspect"], ["bundle", "lint", "--help"], ["help", "device", "run"]]
)
def test_a_command_that_needs_an_argument_has_help_without_it(words: list[str]) -> None:
    done = kiln(*words)
    assert done.returncode == 0, done.stderr
    assert "Usage: kiln" in done.stdout
    assert "Options:" in done.stdout


def test_help_names_what_all_builds_take_and_where_the_rest_is() -> None:
    shown = kiln("build", "--help").stdout
    for flag in ("--model", "--preset", "--dry-run", "--json", "kiln help build --backend mlc"):
        assert flag in shown
    assert "--quant-bit" not in shown.partition("Options:")[2]
    assert len(shown.splitlines()) < 80


@pytest.mark.parametrize("backend", ["mnn", "qnn", "mlc"])
@pytest.mark.parametrize("command", ["build", "doctor"])
def test_help_names_every_option_of_one_backend(command: str, backend: str) -> None:
    shown = kiln("help", command, "--backend", backend, COLUMNS="100").stdout
    flags = re.findall(r"^  --(\[no-\])?([a-z0-9-]+)", shown, re.MULTILINE)
    named = {name.replace("-", "_") for _, name in flags}
    specs = options_by_backend()
    assert {spec.name for spec in specs[backend]} <= named
    others = {spec.name for other in specs for spec in specs[other] if other != backend}
    assert not (others - {spec.name for spec in specs[backend]}) & named
    assert max(map(len, shown.splitlines())) <= 100
    for group in {spec.group for spec in specs[backend]}:
        assert f"Options of {backend}, {group}:" in shown


def test_help_of_a_command_says_what_stands_by_itself() -> None:
    shown = kiln("help", "device", "install", COLUMNS="90").stdout
    assert shown.startswith("Usage: kiln device install APP [options]\n")
    options = shown.partition("Options:\n")[2].splitlines()
    assert options[0].startswith("  APP  ") and not any("--app" in line for line in options)
    assert any(line.startswith("  --serial=STRING ") for line in options)
    assert max(map(len, shown.splitlines())) <= 90
    assert kiln("help", "engine", "up").stdout.startswith("Usage: kiln engine up [options]\n")


def test_help_asked_for_at_a_lines_end_is_of_its_backend() -> None:
    asked = kiln("build", "--backend", "mlc", "--model", "x", "--help").stdout
    assert asked == kiln("help", "build", "--backend", "mlc").stdout != ""


def test_help_of_a_backend_there_is_not() -> None:
    done = kiln("help", "build", "--backend", "mlx")
    assert (done.returncode, "did you mean mlc?" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["build", "--backend", "mnn", "--quant-bitt", "4"], 2, "did you mean --quant-bit?"),
        (["biuld"], 2, "did you mean build?"),
        (["store", "lst"], 2, "did you mean store list?"),
        (["build"], 2, "--backend mnn"),
        (["build", "--backend", "mnm"], 2, "did you mean mnn?"),
        (["build", "--backend", "mnn", "--quant-bit", "5"], 2, "one of: 2, 4, 8, 16"),
        (["build", "--backend", "mnn", "--sym", "--no-hqq", "--top-p", "2"], 2, "from 0 to 1"),
        (["build", "--backend", "mnn", "--preset", "precison"], 2, "did you mean precision?"),
        (["build", "--recipe", "qwen3-1.7b"], 2, "did you mean qwen3-1.7b-mnn?"),
        (["build", "--backend", "mnn", "--model", "./no-such"], 3, "no-such"),
        (["build", "--backend", "mnn", "--memory-limit", "lots"], 2, "12g"),
        (["build", "--backend", "mnn", "--memory-limit", "0"], 2, "12g"),
        (["build", "--backend", "mnn", "--preset=memory", "--preset", "default"], 2, "given twice"),
        (["build", "--backend", "mnn", "--backend=qnn"], 2, "--backend is given twice"),
        (["build", "--sym", "false", "--backend", "mnn"], 2, "--sym takes no value"),
        (["build", "--sym", "--no-sym", "--backend", "mnn"], 2, "--sym and --no-sym contradict"),
        (["build", "--backend"], 2, "--backend needs a value"),
        (["build", "--backend", "mnn", "--quant-bit", "--sym"], 2, "--quant-bit needs a value"),
        (["build", "--backend", "mnn", "it's"], 2, 'kiln build does not take "it\'s" too'),
        (["wait", "1121-000000", "1121-000001"], 2, "kiln wait does not take '1121-000001' too"),
        (["verify", "images", "mnn", "qnn"], 2, "kiln verify images does not take 'qnn' too"),
        (["build", "--backend", "mnn", "--on", "--dry-run"], 2, "--on needs a value"),
        (["build", "--backend", "mnn", "--model", "no/such", "--on", "export"], 2, "STAGE=PLACE"),
        (["build", "--backend", "mnn", "--detach", "--on", "a=nowhere"], 2, "no machine nowhere"),
        (["hosts", "check", "local"], 2, "local is this machine"),
        (["images", "export", "mnn", "--to", "a", "-o", "b"], 2, "give one of them"),
        (["images", "push", "mnn"], 2, "which registry?"),
        (["toolchains", "fetch", "mnn", "--to", "v", "--python", "2.7"], 2, "--python 2.7"),
        (["toolchains", "fetch", "mnn", "--to", "v", "--model", "./no"], 2, "of your own"),
        (["images", "pull", "mnn", "--from", "127.0.0.1:99999/x"], 2, "no repository"),
        (["build", "--backend", "mnn", "--model", ""], 2, "--model is empty"),
        (["build", "--backend", "mnn", "--out="], 2, "--out is empty"),
        (["build", "--recipe", " "], 2, "--recipe is empty"),
        (["doctor", "--model", ""], 2, "--model is empty"),
        (["build", "--backend", "mnn", "--executor", "podman", "--dry-run"], 2, "one of: auto"),
        (["bundle", "lint"], 2, "kiln bundle lint: which folder?"),
        (["toolchains", "fetch", "mnn"], 2, "kiln toolchains fetch needs --to"),
        (["images", "export", "mnn"], 2, "kiln images export needs --to"),
        (["build", "mlc"], 2, "say --backend mlc"),
        (["build", "--backend", "mlc", "--context-window-size", "0"], 2, "from 64 to 1048576"),
        (["build", "--backend", "mnn", "--quant-block", "-1"], 2, "from 0 to 4096"),
        (["build", "--backend", "mlc", "--soc", "69"], 2, "kiln help build --backend mlc"),
        (["toolchains", "show", "mmn"], 4, "did you mean mnn?"),
        (["recipes", "show", "nothing-like-it"], 2, "one of"),
        (["test", "tests/nowhere.py"], 2, "no tests at"),
    ],
)
def test_mistakes_are_answered_in_words(words: list[str], code: int, said: str) -> None:
    done = kiln(*words)
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "is empty"), (b"\x1f\x8b\x00\x01", "is no text"), (None, "is a folder")],
)
def test_what_is_no_log_is_not_found_to_be_well(
    tmp_path: Path, content: bytes | None, said: str
) -> None:
    log = tmp_path / "log"
    log.mkdir() if content is None else log.write_bytes(content)
    done = kiln("explain", str(log))
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = kiln("store", "list", EDGEKILN_HOME=str(tmp_path / "file"))
    assert done.returncode == 12
    assert "EDGEKILN_HOME" in done.stderr


def test_json_errors_are_one_object() -> None:
    done = kiln("build", "--backend", "mnn", "--quant-bit", "5", "--json")
    event = json.loads(done.stdout.splitlines()[-1])
    assert (event["event"], event["kind"], event["exit_code"]) == ("error", "usage", 2)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["toolchains", "list"], 0),
        (["recipes", "show", "smollm2-135m-mnn"], 0),
        (["store", "gc"], 0),
        (["models", "get", "./no-such"], 3),
        (["toolchains", "fetch", "mmn", "--to", "x"], 4),
        (["bundle", "lint", "./no-such"], 15),
        (["status"], 0),
    ],
)
def test_with_json_all_of_any_command_is_events(
    tmp_path: Path, words: list[str], code: int
) -> None:
    done = kiln(*words, "--json", EDGEKILN_HOME=str(tmp_path))
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert (done.returncode, done.stderr) == (code, "")
    assert events[-1]["event"] == ("error" if code else "result")
    if code:
        assert events[-1]["exit_code"] == code
    else:
        plain = kiln(*words, EDGEKILN_HOME=str(tmp_path))
        assert events[-1]["text"] == plain.stdout.strip("\n") != ""


def test_every_command_that_does_not_own_the_terminal_takes_json_and_quiet() -> None:
    from tests.unit.test_docs import known

    lacking = {
        name
        for name, context in known().items()
        if not {"json", "quiet"} <= set(context.args) or context.args["json"].kind is not bool
    }
    assert lacking == {"images.shell", "test", "bench"}


def test_nobody_is_asked_behind_json() -> None:
    """At a real terminal, where without --json there would be a question, and no end."""
    pty = pytest.importorskip("pty")
    master, slave = pty.openpty()
    ask = "from edgekiln import report; print(report.may_ask())"
    within = "from edgekiln import report\nwith report.shown_as(quiet=False, as_json=True):\n"
    for code, said in ((ask, "True"), (within + "    print(report.may_ask())", "False")):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": str(project() / "src")},
            stdin=slave,
            stdout=subprocess.PIPE,
            stderr=slave,
            text=True,
            check=False,
        )
        assert done.stdout.strip() == said
    os.close(master)
    os.close(slave)


def test_an_empty_store_is_listed_and_swept(tmp_path: Path) -> None:
    assert "0 stages" in kiln("store", "list", EDGEKILN_HOME=str(tmp_path)).stdout
    assert "freed 0 B" in kiln("store", "gc", EDGEKILN_HOME=str(tmp_path)).stdout


def test_invoke_itself_runs_the_same_commands() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "invoke", "build", "--backend", "mnn", "--quant-bitt", "4"],
        cwd=project(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "did you mean --quant-bit?" in done.stderr
