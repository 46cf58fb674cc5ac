"""A prompt on its way to the phone's program, and its answer on the way back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgekiln.build import open_store
from edgekiln.device.adb import choose
from edgekiln.device.payload import Payload, read_payload
from edgekiln.device.push import push
from edgekiln.device.run import Answer, ask, check_pushed, read_genie, read_mnn, run
from edgekiln.errors import DeviceError, UsageError
from edgekiln.home import project
from edgekiln.progress import Silent
from tests.device.conftest import LIBRARIES, make_qnn, write_bundle
from tests.device.standin import Phone

# As MNN's llm_demo of 3.6.1 prints it; 127 as its exit code would be the linker's.
LLM_DEMO = r"""#!/bin/sh
echo "config path is $1"
if [ ! -f "$1" ]; then echo "LLM init error"; exit 0; fi
echo "prompt file is $2"
[ -f slow ] && sleep 60
grep -v '^#' "$2" | while read -r line; do printf 'You asked: %s' "$line"; done
printf '\n#################################\n'
echo "prompt tokens num = 11"
echo "decode tokens num = 22"
echo " vision time = 0.00 s"
echo "prefill time = 0.10 s"
echo " decode time = 1.00 s"
echo "prefill speed = 110.00 tok/s"
echo " decode speed = 22.00 tok/s"
echo "##################################"
"""

PROMPTS = [
    "What is the capital of France?",
    "She said \"no\" and 'yes' — `id` $HOME $(reboot) \\n; rm -rf / & | > x",
    "Zeile eins\nZeile zwei mit Umlauten: äöüß €\n\n中文 😀",
    "[BEGIN]: not this[END] but that",
    "-n --help",
]


def on_phone(bundle: Path) -> Payload:
    """The bundle, pushed."""
    with open_store() as store:
        payload = read_payload(bundle, store.index)
    push(choose(), payload, Silent(), place=payload.place)
    return payload


def answer(payload: Payload, prompt: str, *, timeout: float = 30.0) -> Answer:
    """The phone's answer to a prompt."""
    asked = ask(payload, prompt=prompt, prompt_file=None)
    return run(choose(), payload, asked, Silent(), place=payload.place, timeout=timeout)


def make_mnn(tmp_path: Path, **more: bytes) -> Path:
    """An mnn bundle with its runtime beside the model."""
    files = {
        "llm_demo": LLM_DEMO.encode(),
        "libMNN.so": b"library",
        "mnn_models/tiny/config.json": b"{}",
        "mnn_models/tiny/draft/config.json": b"{}",
        **more,
    }
    place = tmp_path / "build" / "tiny" / "mnn"
    return write_bundle(place, files, backend="mnn", model={"name": "tiny"}, options={})


@pytest.mark.parametrize("prompt", PROMPTS)
def test_any_prompt_arrives_as_it_is(phone: Phone, tmp_path: Path, prompt: str) -> None:
    # This program answers with the very file it was given.
    script = b'#!/bin/sh\nprintf "[PROMPT]: "; cat "$4"; printf "\\n\\n[BEGIN]: "; cat "$4"; '
    script += b'printf "[END]\\n"\n'
    payload = on_phone(make_qnn(tmp_path, **{"genie-t2t-run": script}))
    found = answer(payload, prompt)
    assert found.text == f"<|user|>\n{prompt}<|end|>\n<|assistant|>\n"
    assert found.how == "end"
    assert not list(phone.path(payload.place).glob(".prompt*")), "the prompt's file is gone"


def test_the_answer_stands_between_its_markers(phone: Phone, qnn_bundle: Path) -> None:
    assert answer(on_phone(qnn_bundle), "What is the capital of France?").text == "Paris."


def test_a_file_is_taken_as_it_is(phone: Phone, qnn_bundle: Path, tmp_path: Path) -> None:
    payload = on_phone(qnn_bundle)
    file = tmp_path / "p.txt"
    file.write_bytes("<raw>ä\r\n".encode())
    assert ask(payload, prompt="", prompt_file=file).text == "<raw>ä\r\n"
    with pytest.raises(UsageError, match="one of --prompt and --prompt-file"):
        ask(payload, prompt="x", prompt_file=file)
    with pytest.raises(UsageError, match="cannot be read"):
        ask(payload, prompt="", prompt_file=tmp_path / "none.txt")


@pytest.mark.parametrize(
    ("out", "text", "how"),
    [
        ("[PROMPT]: p\n\n[BEGIN]: a\nb[END]\n\n[KPIS]:\nInit Time: 1 us\n", "a\nb", "end"),
        ("[BEGIN]: he says [END] twice[END]\n", "he says [END] twice", "end"),
        ("[COMPLETE]: all at once\n", "all at once", "complete"),
        ("[BEGIN]: cut off[ABORT]\n", "cut off", "abort"),
    ],
)
def test_each_way_genie_ends_an_answer(out: str, text: str, how: str) -> None:
    assert read_genie(out, "p") == (text, how)


@pytest.mark.parametrize("out", ["", "Using libGenie.so\n", "[BEGIN]: it never ended"])
def test_no_answer_is_none(out: str) -> None:
    assert read_genie(out, "p") is None


def test_a_program_that_hangs_is_ended_on_the_phone_too(phone: Phone, tmp_path: Path) -> None:
    payload = on_phone(make_qnn(tmp_path, slow=b"1"))
    with pytest.raises(DeviceError, match="had no end after 2 s") as caught:
        answer(payload, "x", timeout=2)
    assert "thinking" in caught.value.why
    assert not running("genie-t2t-run")
    assert not list(phone.path(payload.place).glob(".prompt*"))


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("nan")])
def test_a_timeout_is_more_than_nothing(phone: Phone, tmp_path: Path, timeout: float) -> None:
    payload = on_phone(make_mnn(tmp_path))
    with pytest.raises(UsageError, match="--timeout"):
        answer(payload, "x", timeout=timeout)


def test_ctrl_c_ends_the_program_on_the_phone(phone: Phone, tmp_path: Path) -> None:
    payload = on_phone(make_qnn(tmp_path, slow=b"1"))
    command = [sys.executable, "-m", "edgekiln", "device", "run", "--prompt", "x"]
    process = subprocess.Popen(
        [*command, "--bundle", str(payload.bundle)],
        env={**os.environ, "PYTHONPATH": str(project() / "src")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: running("genie-t2t-run"))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    wait_for(lambda: not running("genie-t2t-run"))


def running(name: str) -> bool:
    """Whether a script of that name runs on this machine, which is the phone's."""
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = place.read_bytes().split(b"\0")
        except OSError:
            continue
        if f"./{name}".encode() in words[:3]:
            return True
    return False


def wait_for(happened: Callable[[], bool]) -> None:
    for _ in range(300):
        if happened():
            return
        time.sleep(0.1)
    raise AssertionError("it never happened")


def test_a_program_that_fails_is_quoted(phone: Phone, tmp_path: Path) -> None:
    script = b'#!/bin/sh\necho "Failed to create the dialog: bad kv-dim" >&2\nexit 1\n'
    payload = on_phone(make_qnn(tmp_path, **{"genie-t2t-run": script}))
    with pytest.raises(DeviceError, match="ended with 1") as caught:
        answer(payload, "x")
    assert caught.value.why == "Failed to create the dialog: bad kv-dim"
    assert "genie-t2t-run.log" in caught.value.remedy


@pytest.mark.parametrize(
    ("said", "what", "why"),
    [
        (
            "[ERROR] <E> Stub lib id mismatch: expected (v2.28.0.241029232508_102474), detected "
            "(v2.25.17.241017130936_18858)",
            "of two versions",
            "v2.25.17.241017130936_18858",
        ),
        (
            'libQnn.so" program alignment (4096) cannot be smaller than system page size (16384)',
            "does not fit this phone's pages",
            "aligned to 4096 bytes",
        ),
    ],
    ids=["pytorch/executorch#8762", "dotnet/android#10545"],
)
def test_a_known_fault_of_the_phone_is_explained(
    phone: Phone, tmp_path: Path, said: str, what: str, why: str
) -> None:
    script = f"#!/bin/sh\necho '{said}' >&2\nexit 1\n".encode()
    payload = on_phone(make_qnn(tmp_path, **{"genie-t2t-run": script}))
    with pytest.raises(DeviceError, match="ended with 1 on the phone: ") as caught:
        answer(payload, "x")
    assert what in caught.value.what and why in caught.value.why
    assert "genie-t2t-run.log" in caught.value.remedy


def test_a_library_the_linker_misses_is_named(phone: Phone, tmp_path: Path) -> None:
    words = 'CANNOT LINK EXECUTABLE "./genie-t2t-run": library "libc++_shared.so" not found'
    script = f"#!/bin/sh\necho '{words}: needed by main executable' >&2\nexit 1\n".encode()
    payload = on_phone(make_qnn(tmp_path, **{"genie-t2t-run": script}))
    with pytest.raises(DeviceError, match=r"libc\+\+_shared\.so is missing on the phone"):
        answer(payload, "x")


def test_memory_is_named_when_android_kills_the_program(phone: Phone, tmp_path: Path) -> None:
    script = b"#!/bin/sh\nkill -9 $$\n"
    payload = on_phone(make_qnn(tmp_path, **{"genie-t2t-run": script}))
    with pytest.raises(DeviceError, match="was killed") as caught:
        answer(payload, "x")
    assert "memory" in caught.value.why


def test_what_is_missing_on_the_phone_is_named_with_its_source(
    phone: Phone, tmp_path: Path
) -> None:
    without = dict.fromkeys(LIBRARIES)
    payload = on_phone(make_qnn(tmp_path, **without))
    with pytest.raises(DeviceError, match=r"libQnnHtpV79Skel\.so") as caught:
        check_pushed(choose(), payload, payload.place)
    assert "libQnnHtpV79Skel.so: from lib/hexagon-v79/unsigned" in caught.value.why
    for name in LIBRARIES:
        (phone.path(payload.place) / name).write_text("by hand")
    check_pushed(choose(), payload, payload.place)


def test_a_bundle_that_is_not_there_or_another_is_said(phone: Phone, tmp_path: Path) -> None:
    first = make_qnn(tmp_path)
    with open_store() as store:
        payload = read_payload(first, store.index)
    with pytest.raises(DeviceError, match="is not at") as caught:
        check_pushed(choose(), payload, payload.place)
    assert "kiln device push --bundle" in caught.value.remedy
    on_phone(first)
    with open_store() as store:
        newer = read_payload(make_qnn(tmp_path), store.index)
    with pytest.raises(DeviceError, match="not this bundle") as caught:
        check_pushed(choose(), newer, newer.place)
    assert "another version" in caught.value.why


def test_mnns_answer_and_its_figures(phone: Phone, tmp_path: Path) -> None:
    payload = on_phone(make_mnn(tmp_path))
    check_pushed(choose(), payload, payload.place)
    assert answer(payload, "# what is 'this'?").text == "You asked: # what is 'this'?"
    assert "mnn_models/tiny/config.json" in "".join(phone.lines)


@pytest.mark.parametrize("npu", [False, True])
def test_a_bundle_built_with_its_runtime_runs_as_it_is(
    phone: Phone, tmp_path: Path, npu: bool
) -> None:
    """As `--runtime android` and `--npu` lay it out."""
    files = {
        "arm64-v8a/llm_demo": LLM_DEMO.encode(),
        "arm64-v8a/libMNN.so": b"library",
        "arm64-v8a/llm_bench": b"program",
        "MnnLlmChat.apk": b"app",
        "mnn_models/tiny/config.json": b"{}",
        **({"mnn_models/tiny/config_qnn.json": b"{}"} if npu else {}),
    }
    place = tmp_path / "build" / "tiny" / "mnn"
    bundle = write_bundle(place, files, backend="mnn", model={"name": "tiny"}, options={})
    payload = on_phone(bundle)
    check_pushed(choose(), payload, payload.place)
    assert answer(payload, "who?").text == "You asked: who?"
    config = "config_qnn.json" if npu else "config.json"
    assert f"mnn_models/tiny/{config}" in "".join(phone.lines)
    there = phone.path(payload.place)
    assert (there / "libMNN.so").is_file() and not (there / "arm64-v8a").exists()
    assert not (there / "MnnLlmChat.apk").exists()


def test_mnn_takes_a_line_for_a_prompt(phone: Phone, tmp_path: Path) -> None:
    payload = on_phone(make_mnn(tmp_path))
    with pytest.raises(UsageError, match="several lines"):
        ask(payload, prompt="a\nb", prompt_file=None)


def test_mnn_without_figures_gave_no_answer() -> None:
    assert read_mnn("config path is x\nLLM init error\n", "p") is None
    assert read_mnn("prompt file is p.txt\nhalf an answ", "p") is None


def test_mnns_missing_program_is_named(phone: Phone, tmp_path: Path) -> None:
    bundle = make_mnn(tmp_path)
    manifest = json.loads((bundle / "manifest.json").read_text())
    del manifest["files"]["llm_demo"]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    payload = on_phone(bundle)
    with pytest.raises(DeviceError, match="llm_demo") as caught:
        check_pushed(choose(), payload, payload.place)
    assert "MNN" in caught.value.why


def test_two_runs_at_once_do_not_share_a_prompt(phone: Phone, tmp_path: Path) -> None:
    script = b'#!/bin/sh\nprintf "[BEGIN]: "; sleep 0.3; cat "$4"; printf "[END]\\n"\n'
    payload = on_phone(make_qnn(tmp_path, **{"genie-t2t-run": script}))
    found: dict[str, str] = {}

    def one(prompt: str) -> None:
        found[prompt] = answer(payload, prompt).text

    threads = [threading.Thread(target=one, args=(p,)) for p in ("first", "second")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {p: p in text for p, text in found.items()} == {"first": True, "second": True}
