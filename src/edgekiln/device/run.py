"""A prompt answered on the phone: Genie's genie-t2t-run for qnn, MNN's llm_demo for mnn."""

from __future__ import annotations

import json
import posixpath
import re
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from edgekiln.device.adb import Ended, Phone
from edgekiln.device.payload import Payload
from edgekiln.device.programs import GENIE, GENIE_CONFIG, MNN, missing
from edgekiln.device.push import pushed_files
from edgekiln.errors import DeviceError, UsageError
from edgekiln.faults import explain_texts
from edgekiln.home import home

if TYPE_CHECKING:
    from edgekiln.progress import Progress

TEMPLATE = "prompts/template.json"
# llm_demo takes this first line for the head of an examination (C-Eval) and marks the answers.
_EXAMINATION = "id,question,A,B,C,D,answer"
_KILLED = (137, 9)
# Of the faults that are known, those that a program on a phone can have.
_ON_PHONES = ("qnn-stub", "pages-16k")
_UNLINKED = re.compile(r'library "([^"]+)" not found')


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A prompt: `said` is the user's own words, `text` what the program gets."""

    said: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the phone said. `how` is end, complete or abort; `raw` the program's whole output."""

    text: str
    how: str
    seconds: float
    raw: str


def ask(payload: Payload, *, prompt: str, prompt_file: Path | None) -> Asked:
    """The prompt in the form the bundle's program wants.

    --prompt is a question: for qnn the bundle's chat template is put around it; llm_demo does
    that by itself. --prompt-file is taken as it is.
    """
    if bool(prompt) == bool(prompt_file):
        raise UsageError(
            "one of --prompt and --prompt-file must be given",
            remedy='for example --prompt "What is the capital of France?"',
        )
    if prompt_file is not None:
        try:
            text = prompt_file.read_bytes().decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"{prompt_file} cannot be read as text",
                why=str(error),
                remedy="give a UTF-8 text file",
            ) from error
        if not text.strip():
            raise UsageError(f"{prompt_file} is empty", remedy="write a prompt into it")
        return Asked(said=text, text=text)
    if payload.backend == "mnn":
        return Asked(said=prompt, text=_one_line(prompt))
    return Asked(said=prompt, text=_templated(payload, prompt))


def _one_line(prompt: str) -> str:
    """A prompt as llm_demo reads its file: each line is a prompt, and # makes a comment."""
    if "\n" in prompt.strip("\n"):
        raise UsageError(
            "the prompt has several lines",
            why="llm_demo takes each line of its file for a prompt of its own",
            remedy="put it on one line, or ask each line with --prompt-file",
        )
    line = prompt.strip("\n")
    return f" {line}\n" if line.startswith("#") or line == _EXAMINATION else f"{line}\n"


def _templated(payload: Payload, prompt: str) -> str:
    path = payload.bundle / TEMPLATE
    try:
        template = json.loads(path.read_text(encoding="utf-8"))
        return f"{template['prefix']}{prompt}{template['suffix']}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path} cannot be read",
            why="it holds the words the model wants around a question",
            remedy="give the whole prompt, special tokens included, with --prompt-file",
        ) from error


def check_pushed(phone: Phone, payload: Payload, place: str) -> None:
    """Refuse a phone that lacks the bundle, has another version of it, or no runtime."""
    have = pushed_files(phone, place)
    if not have:
        raise DeviceError(
            f"the bundle is not at {place} on {phone.serial}",
            remedy=f"kiln device push --bundle {payload.bundle}",
        )
    names = [item.name for item in payload.items]
    there = _sizes(phone, place, [*names, *_runtime_names(payload)])
    changed = [i for i in payload.items if have.get(i.name) != i.sha256]
    lacking = [i for i in payload.items if there.get(i.name) != i.size]
    if changed or lacking:
        name = (changed or lacking)[0].name
        raise DeviceError(
            f"what lies at {place} is not this bundle",
            why=f"{name} is {'of another version' if changed else 'missing or not whole'}",
            remedy=f"kiln device push --bundle {payload.bundle}",
        )
    if lost := missing(payload, list(there)):
        raise DeviceError(
            f"{len(lost)} files of the runtime are missing on the phone: "
            + ", ".join(part.name for part in lost),
            why="; ".join(_sources(lost)),
            remedy=f"kiln device push --bundle {payload.bundle} --libraries FOLDER, the folder "
            "that holds them",
        )


def _runtime_names(payload: Payload) -> list[str]:
    return [part.name for part in missing(payload, [])]


def _sources(lost: Any) -> Iterator[str]:
    by_source: dict[str, list[str]] = {}
    for part in lost:
        by_source.setdefault(part.source, []).append(part.name)
    for source, names in by_source.items():
        yield f"{', '.join(names)}: from {source}"


def _sizes(phone: Phone, place: str, names: list[str]) -> dict[str, int]:
    """Bytes of each of these files that is there."""
    words = " ".join(quote(f"./{name}") for name in names)
    script = f"cd {quote(place)} && {{ stat -c '%s %n' {words} 2>/dev/null; true; }}"
    found = {}
    for line in phone.must(script, "looking at its files").splitlines():
        size, _, name = line.partition(" ")
        if size.isdigit():
            found[name.removeprefix("./")] = int(size)
    return found


def run(
    phone: Phone,
    payload: Payload,
    asked: Asked,
    progress: Progress,
    *,
    place: str,
    timeout: float,
    profile: str = "",
) -> Answer:
    """Ask on the phone and wait for the answer; `profile` names Genie's file for figures there.

    Raises DeviceError with the program's own last words where there is no answer.
    """
    program = GENIE if payload.backend == "qnn" else MNN
    with _prompt_on(phone, place, asked) as file:
        if payload.backend == "qnn":
            line = f"./{GENIE} -c {GENIE_CONFIG} --prompt_file {quote(file)}"
            line += f" --profile {quote(profile)}" if profile else ""
        else:
            line = f"./{MNN} {quote(_mnn_config(payload))} {quote(file)}"
        # llm_demo keeps mapped weights and tuned kernels in tmp/, and does not make it.
        tmp = "" if payload.backend == "qnn" else "mkdir -p tmp && "
        paths = "LD_LIBRARY_PATH=$PWD ADSP_LIBRARY_PATH=$PWD"
        command = f"cd {quote(place)} && {tmp}export {paths} && exec {line}"

        def hear(said: str) -> None:
            progress.update(len(said), what="characters said")

        ended = phone.follow(command, program, hear, timeout=timeout)
    read = read_genie if payload.backend == "qnn" else read_mnn
    found = read(ended.out, asked.text)
    if ended.code or found is None:
        raise _failure(program, ended, payload)
    text, how = found
    return Answer(text=text, how=how, seconds=ended.seconds, raw=ended.out)


def _mnn_config(payload: Payload) -> str:
    """The model's own config.json in an mnn bundle (a draft has one too, deeper down).

    Where the bundle was built for the NPU as well, the configuration that uses it.
    """
    names = {i.name for i in payload.items}
    found = [name for name in names if posixpath.basename(name) == "config.json"]
    if not found:
        raise UsageError(f"{payload.bundle} holds no config.json", remedy="repeat the build")
    own = min(sorted(found), key=lambda name: name.count("/"))
    npu = posixpath.join(posixpath.dirname(own), "config_qnn.json")
    return npu if npu in names else own


@contextmanager
def _prompt_on(phone: Phone, place: str, asked: Asked) -> Iterator[str]:
    """The prompt as a file in the bundle's folder, for the length of a run.

    A file and not an argument: genie-t2t-run takes "\\n" in an argument as two characters.
    """
    name = f".prompt-{uuid.uuid4().hex[:8]}.txt"
    target = posixpath.join(place, name)
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder, "prompt.txt")
        local.write_bytes(asked.text.encode("utf-8"))
        phone.push(local, target, lambda _: None)
    try:
        yield name
    finally:
        phone.shell(f"rm -f {quote(target)}")


def read_genie(out: str, prompt: str) -> tuple[str, str] | None:
    """The answer and how it ended, out of what genie-t2t-run prints; None without one.

    `[PROMPT]: …` repeats the prompt, which may itself hold the markers; then comes
    `[BEGIN]: …[END]`, or `[COMPLETE]: …` for an answer in one piece, or `[ABORT]`.
    """
    _, repeated, after = out.partition(f"[PROMPT]: {prompt}")
    rest = after if repeated else out
    rest = re.split(r"^\[KPIS\]:", rest, maxsplit=1, flags=re.MULTILINE)[0]
    begin, complete = rest.find("[BEGIN]"), rest.find("[COMPLETE]")
    if begin < 0 and complete < 0:
        return None
    if begin < 0:
        text = rest[complete + len("[COMPLETE]") :].removeprefix(":").removeprefix(" ")
        return text.removesuffix("\n").removesuffix("[END]"), "complete"
    text = rest[begin + len("[BEGIN]") :].removeprefix(":").removeprefix(" ")
    end, abort = text.rfind("[END]"), text.rfind("[ABORT]")
    if abort > end:
        return text[:abort], "abort"
    return (text[:end], "end") if end >= 0 else None


def read_mnn(out: str, prompt: str) -> tuple[str, str] | None:
    """The answer out of what llm_demo prints: between `prompt file is …` and the figures.

    llm_demo ends with 0 even when the model could not be loaded; then there are no figures.
    """
    _, head, rest = out.partition("prompt file is ")
    answer, frame, _ = rest.partition("\n#################################\n")
    if not head or not frame:
        return None
    return answer.partition("\n")[2], "end"


def _failure(program: str, ended: Ended, payload: Payload) -> DeviceError:
    said = f"{ended.out}\n{ended.err}"
    if unlinked := _UNLINKED.search(said):
        return DeviceError(
            f"{program} does not start: {unlinked[1]} is missing on the phone",
            why="the phone's linker did not find it in the bundle's folder",
            remedy=f"kiln device push --bundle {payload.bundle} --libraries FOLDER, with a "
            f"folder that holds {unlinked[1]}",
        )
    if ended.code in _KILLED:
        return DeviceError(
            f"{program} was killed on the phone",
            why="Android does so when memory runs out",
            remedy="close other apps, or build with a shorter context or fewer bits",
        )
    how = f"ended with {ended.code}" if ended.code else "gave no answer"
    known = next((f for f in explain_texts(said) if f.fault.name in _ON_PHONES), None)
    if known is not None:
        return DeviceError(
            f"{program} {how} on the phone: {known.what}",
            why=known.why,
            remedy=f"{known.do}; all it said is in {_logged(program, said)}",
        )
    remedy = f"{_remedy(said)}all it said is in {_logged(program, said)}"
    return DeviceError(f"{program} {how} on the phone", why=_why(said), remedy=remedy)


def _logged(program: str, said: str) -> Path:
    """A file with everything the program said."""
    log = home() / "logs" / f"{program}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(said, encoding="utf-8")
    return log


def _why(said: str) -> str:
    """The line that names an error, else the last one."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"error|fail", line, re.IGNORECASE)]
    return (errors or lines or ["it said nothing"])[-1][:300]


def _remedy(said: str) -> str:
    if re.search(r"skel|dspqueue", said, re.IGNORECASE):
        return "take all libraries, Stub and Skel too, from one version of the QAIRT SDK; "
    if "Permission denied" in said:
        return "put the bundle under /data/local/tmp, elsewhere Android runs no programs; "
    if re.search(r"context|binary|deserial", said, re.IGNORECASE):
        return "build for this phone's chip, and push a runtime no older than the build's; "
    return ""
