"""Figures of a run on the phone: measured, parsed, kept, compared."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgekiln.artifacts.genie_profile import parse_profile, read_profile
from edgekiln.device.adb import choose
from edgekiln.device.profile import compare, lines_of, profile, published
from edgekiln.device.run import ask
from edgekiln.errors import ArtifactError, DeviceError
from edgekiln.home import project
from edgekiln.progress import Silent
from tests.device.conftest import PROFILE, make_qnn
from tests.device.standin import Phone
from tests.device.test_run import make_mnn, on_phone


def test_the_write_ups_profile_gives_its_figures() -> None:
    found = parse_profile(PROFILE, "perf.json")
    query = found.queries[0]
    assert (query.prompt_tokens, query.generated_tokens) == (823, 200)
    assert query.tokens_per_second == pytest.approx(38.525, abs=1e-3)
    assert query.prompt_tokens_per_second == pytest.approx(1547.99, abs=1e-2)
    assert query.time_to_first_token_s == pytest.approx(0.531665)
    assert query.whole_s == pytest.approx(5.726945)
    assert found.init_s == pytest.approx(1.124713)


def test_the_published_figures_are_those_of_that_profile() -> None:
    entry = published("qnn")[0]
    query = parse_profile(PROFILE, "perf.json").queries[0]
    for name in ("tokens_per_second", "prompt_tokens_per_second", "time_to_first_token_s"):
        assert entry[name] == pytest.approx(getattr(query, name))


def damaged(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    value = copy.deepcopy(PROFILE)
    change(value)
    return value


def query_of(value: dict[str, Any]) -> dict[str, Any]:
    event: dict[str, Any] = value["components"][0]["events"][1]
    return event


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ([], "no header"),
        ({}, "no header"),
        (damaged(lambda v: v["header"].update(artifact_type="GENIE_LOG")), "GENIE_LOG"),
        (damaged(lambda v: v.pop("components")), "components"),
        (damaged(lambda v: v["components"][0]["events"].pop(1)), "GenieDialog_query"),
        (damaged(lambda v: query_of(v)["time-to-first-token"].update(value="x")), "'x'"),
        (damaged(lambda v: query_of(v)["time-to-first-token"].update(unit="weeks")), "unit"),
        (damaged(lambda v: query_of(v).update({"num-prompt-tokens": {}})), "value"),
        (
            damaged(lambda v: query_of(v)["token-generation-rate"].update(value=float("nan"))),
            "nan",
        ),
    ],
)
def test_what_is_no_profile_is_refused_with_the_reason(value: Any, why: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        parse_profile(value, "perf.json")
    assert why in f"{caught.value.why} {caught.value.what}"


def test_a_profile_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "perf.json"
    path.write_text(json.dumps(PROFILE)[:500])
    with pytest.raises(ArtifactError, match="no Genie profile"):
        read_profile(path)


def test_profiled_twice_and_the_old_file_is_not_in_the_way(phone: Phone, qnn_bundle: Path) -> None:
    payload = on_phone(qnn_bundle)
    # What a run that was cut off would have left.
    (phone.path(payload.place) / ".profile.json").write_text("old")
    asked = ask(payload, prompt="x", prompt_file=None)
    paths = set()
    for _ in range(2):
        found = profile(choose(), payload, asked, Silent(), place=payload.place, timeout=30)
        assert found.figures["tokens_per_second"] == pytest.approx(38.525, abs=1e-3)
        assert found.answer.text == "Paris."
        paths.add(found.path)
    assert len(paths) == 2
    record = json.loads(paths.pop().read_text())
    assert record["phone"]["soc"] == "SM8750"
    assert record["genie"] == PROFILE
    assert qnn_bundle.parent / "profiles" == found.path.parent


def test_a_profile_the_phone_left_damaged_is_refused(phone: Phone, tmp_path: Path) -> None:
    payload = on_phone(make_qnn(tmp_path, **{"profile.json": b'{"header": {}}'}))
    asked = ask(payload, prompt="x", prompt_file=None)
    with pytest.raises(ArtifactError, match="no Genie profile"):
        profile(choose(), payload, asked, Silent(), place=payload.place, timeout=30)


def test_a_runtime_that_writes_no_profile_is_named(phone: Phone, tmp_path: Path) -> None:
    script = b'#!/bin/sh\nprintf "[BEGIN]: Paris.[END]\\n"\n'
    payload = on_phone(make_qnn(tmp_path, **{"genie-t2t-run": script}))
    asked = ask(payload, prompt="x", prompt_file=None)
    with pytest.raises(DeviceError, match="wrote no profile"):
        profile(choose(), payload, asked, Silent(), place=payload.place, timeout=30)


def test_mnns_figures_are_those_it_prints(phone: Phone, tmp_path: Path) -> None:
    payload = on_phone(make_mnn(tmp_path))
    asked = ask(payload, prompt="x", prompt_file=None)
    found = profile(choose(), payload, asked, Silent(), place=payload.place, timeout=30)
    assert (found.figures["tokens_per_second"], found.figures["prompt_tokens"]) == (22.0, 11.0)


def test_a_comparison_says_how_much_and_whether_it_is_fair(phone: Phone, qnn_bundle: Path) -> None:
    payload = on_phone(qnn_bundle)
    figures = {"tokens_per_second": 77.05, "time_to_first_token_s": 1.06333}
    compared = compare(figures, payload)
    assert compared[0]["ratios"]["tokens_per_second"] == pytest.approx(2, abs=1e-3)
    assert compared[0]["ratios"]["time_to_first_token_s"] == pytest.approx(0.5, abs=1e-3)
    text = "\n".join(lines_of(figures, compared))
    assert "77.05 tokens/s out (2.00 times as fast as there: 38.53)" in text
    assert "1.06 s to the first token (0.50 times as fast as there: 0.53 s)" in text
    assert "Llama-3.2-1B-Instruct" in text
    assert "another model or another chip" in text


def test_the_commands_from_push_to_profile(phone: Phone, qnn_bundle: Path) -> None:
    def kiln(*words: str) -> list[dict[str, Any]]:
        done = subprocess.run(
            [sys.executable, "-m", "edgekiln", "device", *words, "--json"],
            env={**os.environ, "PYTHONPATH": str(project() / "src")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        events = [json.loads(line) for line in done.stdout.splitlines()]
        return [e for e in events if e["event"] == "result"]

    listed = kiln("list")[0]["value"]
    assert listed == [
        {"serial": phone.serial, "state": "device", "model": "Stand in", "soc": "SM8750"}
    ]
    where = ("--bundle", str(qnn_bundle), "--serial", phone.serial)
    assert kiln("push", *where)[0]["value"]["bytes"] > 3 << 20
    answer = kiln("run", *where, "--prompt", 'Grüße, "Welt"?')[0]["value"]
    assert answer == {"prompt": 'Grüße, "Welt"?', "answer": "Paris.", "how": "end"}
    results = {e["name"]: e["value"] for e in kiln("profile", *where, "--prompt", "x")}
    assert results["figures"]["time_to_first_token_s"] == pytest.approx(0.531665)
    assert Path(results["profile"]).is_file()
