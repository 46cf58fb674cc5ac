"""Stage: what the compiled model says, on this machine, before it ever sees a phone.

Inputs: `quantized`, `twins`, `settings`. Output: the folder `proof` with proof.json.
Parameters: prove ("quick": the first prompt; "full": all of them), answer_tokens (of one answer),
seconds (for all answers).

Two things are shown, each in a process of its own. The twins run under the emulation of the
Hexagon processor that the vendor's library holds, on the test vectors: their logits against the
float model's, and against the quantised model's on the CPU. Then the real Genie loads the twins
by the bundle's own genie_config.json and answers prompts, taking the likeliest token each time
whatever the bundle's sampler, so that the answers can be held against the float model's.

It says nothing of a phone's speed, and does not check the chip.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import childwork
import genie
import jsons
import rehearse
import twins

from stagekit import BadInput, Stage, main

RAN_ON = "HTP emulation on this machine's processor; says nothing of the phone's speed"
CHILD = Path(rehearse.__file__)
# Test vectors' last tokens that go through the decode graph, one by one.
DECODE_ROWS = {"quick": 2, "full": 8}
ANSWER_TOKENS = {"quick": 16, "full": 32}
# A bound for machines that are busy with something else: the emulation takes 4 to 6 s a token of
# a model of 135 million parameters where it has a core to itself.
SECONDS = {"quick": 600, "full": 3600}
# Loading, and the pass through a prompt, which cannot be cut, come on top of the seconds.
GRACE = 900
# Emulation and CPU round alike but not the same; where the two best tokens lie closer than this
# (of logits about 20 wide), either may come out on top.
TIE = 0.05


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """How long the dialog may go on: tokens of an answer, seconds for all of them."""

    tokens: int
    seconds: int


class ProofFailed(Exception):  # noqa: N818 - it says what happened
    """The compiled model could not be shown to run."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A prompt as Genie gets it, and what the float model answers."""

    question: str
    text: str
    ids: Sequence[int]
    float_ids: Sequence[int]
    float_answer: str
    margin: float | None


def run(stage: Stage) -> None:
    """Compare, talk, and write it down."""
    depth = stage.param("prove", str, "quick")
    if depth not in ANSWER_TOKENS:
        raise BadInput(f"parameter prove is {depth!r}", remedy="give quick or full")
    asked = prompts(stage)[: 1 if depth == "quick" else None]
    binaries = twins.files(stage.input("twins"))
    bounds = Bounds(
        tokens=stage.param("answer_tokens", int, ANSWER_TOKENS[depth]),
        seconds=stage.param("seconds", int, SECONDS[depth]),
    )
    told = _teller(stage, DECODE_ROWS[depth] + 1, len(asked), bounds.tokens)
    # The emulation uses one core.
    with ThreadPoolExecutor(min(2, stage.cpus)) as pool:
        compared = pool.submit(_compare, stage, DECODE_ROWS[depth], told)
        talked = pool.submit(_talk, stage, asked, binaries, bounds, told)
        found = compared.result() | talked.result()
    found |= {"format": 1, "prove": depth, "ran_on": RAN_ON}
    out = stage.output("proof")
    out.mkdir(parents=True)
    jsons.write(out / "proof.json", found)


def prompts(stage: Stage) -> list[Asked]:
    """The bundle's prompts, in order, with the float model's answers where they are known."""
    settings = stage.input("settings")
    files = jsons.read(settings / "settings.json")["prompts"]
    quality = jsons.read(stage.input("quantized") / "quality.json")
    known = {entry["prompt"]: entry for entry in quality["prompts"]}
    found = []
    for file, question in sorted(files.items()):
        entry = known.get(question, {})
        found.append(
            Asked(
                question=question,
                text=(settings / file).read_text(encoding="utf-8"),
                ids=entry.get("ids", []),
                float_ids=entry.get("float_answer_ids", []),
                float_answer=str(entry.get("float_answer", "")),
                margin=entry.get("margin"),
            )
        )
    if not found:
        raise BadInput("the settings hold no prompt")
    return found


def _teller(stage: Stage, steps: int, prompts: int, tokens: int) -> childwork.Told:
    """Progress in tokens: the test vectors' steps and the answers' pieces, as they come."""
    stepped, pieces, total = 0, 0, steps + prompts * tokens
    one_at_a_time = threading.Lock()

    def told(event: Mapping[str, Any]) -> None:
        nonlocal stepped, pieces
        with one_at_a_time:
            if "step" in event:
                stepped, what = stepped + 1, str(event["step"])
            else:
                pieces = event["prompt"] * tokens + event["pieces"]
                what = str(event["text"])[-60:]
            stage.progress(min(stepped + pieces, total), total, unit="tokens", what=what)

    return told


def _compare(stage: Stage, decode: int, told: childwork.Told) -> dict[str, Any]:
    request = {
        "kind": "compare",
        "quantized": str(stage.input("quantized")),
        "twins": str(stage.input("twins")),
        "decode": decode,
    }
    found = _child("the HTP emulation", request, told)
    emulation = found["emulation"]
    tied = [behind <= TIE for behind in emulation["behind"]]
    return {
        "cosine_mean": found["cosine_mean"],
        "cosine_min": found["cosine_min"],
        "same_next_token": found["same_next_token"],
        "rows": found["rows"],
        "decode_rows": found["decode_rows"],
        "prefill_seconds": round(found["prefill_seconds"], 3),
        "emulation": {
            "cosine_mean": emulation["cosine_mean"],
            "cosine_min": emulation["cosine_min"],
            "same_next_token": emulation["same_next_token"],
            "same_next_token_or_tied": sum(tied) / len(tied),
            "tie": TIE,
        },
    }


def _talk(
    stage: Stage,
    asked: Sequence[Asked],
    binaries: Mapping[int, Sequence[Path]],
    bounds: Bounds,
    told: childwork.Told,
) -> dict[str, Any]:
    """A dialog with Genie; its answers beside the float model's."""
    request = {
        "kind": "dialog",
        "settings": str(stage.input("settings")),
        "quantized": str(stage.input("quantized")),
        "binaries": [str(file) for count in sorted(binaries)[::-1] for file in binaries[count]],
        "prompts": [one.text for one in asked],
        "tokens": bounds.tokens,
        "seconds": bounds.seconds,
    }
    found = _child("Genie", request, told, bounds.seconds + GRACE)
    answers = [_judged(one, said) for one, said in zip(asked, found["answers"], strict=False)]
    notes = _notes(asked, answers)
    for note in notes:
        stage.note(note)
    return {
        "answers": answers,
        "answer_tokens_limit": bounds.tokens,
        "tokens": sum(a["tokens"] for a in answers),
        "seconds": round(sum(a["seconds"] for a in answers), 3),
        "load_seconds": found["load_seconds"],
        "genie_version": found["genie_version"],
        "runtime_peak_bytes": found["peak_bytes"],
        "notes": notes,
    }


def _judged(asked: Asked, said: Mapping[str, Any]) -> dict[str, Any]:
    """An answer with what the float model says, and how many tokens they begin with alike."""
    ids, wanted = said["ids"], list(asked.float_ids)
    alike = next(
        (i for i, (a, b) in enumerate(zip(ids, wanted, strict=False)) if a != b),
        min(len(ids), len(wanted)),
    )
    return {
        "prompt": asked.question,
        "text": asked.text,
        "answer": said["answer"],
        "ids": ids,
        "float_answer": asked.float_answer,
        "float_ids": wanted,
        "tokens_alike": alike,
        "agrees": bool(ids) and alike == min(len(ids), len(wanted)),
        "margin": asked.margin,
        "same_prompt_tokens": list(said["prompt_ids"]) == list(asked.ids) if asked.ids else None,
        "tokens": said["tokens"],
        "seconds": said["seconds"],
        "first_token_seconds": said["first_token_seconds"],
        "ended": said["ended"],
    }


def _notes(asked: Sequence[Asked], answers: Sequence[Mapping[str, Any]]) -> list[str]:
    notes = []
    if len(answers) < len(asked):
        notes.append(f"time was up after {len(answers)} of {len(asked)} prompts")
    other = sum(answer["same_prompt_tokens"] is False for answer in answers)
    if other:
        notes.append(
            f"Genie makes other tokens than the model's own tokenizer of {other} of {len(answers)} "
            "prompts: its bos-token comes before each of them"
        )
    return notes


def _child(
    who: str, request: Mapping[str, Any], told: childwork.Told, seconds: float | None = None
) -> dict[str, Any]:
    """Run the child; what ended it badly, in words."""
    # The extensions file makes Genie look for another library beside its own by name.
    here = {"LD_LIBRARY_PATH": str(genie.wheel_libraries())}
    try:
        return childwork.call(CHILD, request, told=told, seconds=seconds, environment=here)
    except childwork.Crashed as crash:
        raise ProofFailed(f"{who} could not run the model: {crash}") from crash


if __name__ == "__main__":
    main(run)
