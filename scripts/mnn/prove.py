"""Stage: run the exported model with MNN's own runtime and hold it against the float model.

Inputs: `mnn` (the export), `config` (what configure wrote), `texts`, `reference`, and `draft`
(its export) where there is one. Output: the folder `prove` with prove.json.

The runtime is the wheel's, on this machine's processor, whatever the phone will use; the
phone's memory mode and key-value quantisation stay on, because they change the answers.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import texts
from stagekit import Stage, main

ANSWER_TOKENS = 64
# A prompt this long keeps the prefill figure clear of the cost of starting.
SPEED_PROMPT_CHARACTERS = 1000
# What the phone's config says of these holds on the phone only.
HOST = {
    "backend_type": "cpu",
    "sampler_type": "greedy",
    "max_new_tokens": ANSWER_TOKENS,
    "use_mmap": False,
    "reuse_kv": False,
    "async": False,
    "speculative_type": "",
}
# Logits of every position, which come whole only when the prompt is not cut into chunks. An
# instance that gives them samples its answers' first token wrongly, so answers have their own.
ALL_LOGITS = {"all_logits": True, "chunk": 0}


def run(stage: Stage) -> None:
    """Answer, time, compare, and write it down."""
    reference = json.loads((stage.input("reference") / "reference.json").read_text("utf-8"))
    told = _teller(stage, reference, stage.has("draft"))
    with _workplace() as place:
        config = _assemble(stage, place / "model", "mnn", "config.json")
        found = _speak(config, stage, reference["prompts"], told)
        found |= _compare(config, stage, reference, told)
        if stage.has("draft"):
            draft = _assemble(stage, place / "draft", "draft", "draft/config.json")
            found["draft"] = _compare_draft(config, draft, stage, reference, told)
    out = stage.output("prove")
    out.mkdir(parents=True)
    text = json.dumps(found, indent=1, sort_keys=True, ensure_ascii=False)
    (out / "prove.json").write_text(text + "\n", encoding="utf-8", newline="\n")


def _teller(stage: Stage, reference: dict[str, Any], draft: bool) -> Callable[[str], None]:
    """A function to call after each piece of work."""
    comparisons = len(reference["prompts"]) + len(reference["window_ids"])
    drafts = 2 * len(reference["window_ids"]) if draft else 0
    total = len(reference["prompts"]) + 1 + comparisons + drafts
    count = 0

    def told(what: str) -> None:
        nonlocal count
        count += 1
        stage.progress(count, total, unit="texts", what=what)

    return told


@contextmanager
def _workplace() -> Iterator[Path]:
    """A scratch folder to stand in: the runtime leaves cache files where it runs."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        try:
            yield Path(scratch)
        finally:
            os.chdir(before)


def _assemble(stage: Stage, place: Path, export: str, config: str) -> Path:
    """The folder as it will lie on the phone, of links, with its config.json."""
    place.mkdir()
    for file in stage.input(export).iterdir():
        if file.name != "config.json":
            (place / file.name).symlink_to(file.resolve())
    shutil.copyfile(stage.input("config") / config, place / "config.json")
    return place / "config.json"


def _load(config: Path, stage: Stage, **more: Any) -> Any:
    """The model in MNN's runtime."""
    import MNN.llm

    llm = MNN.llm.create(str(config))
    llm.set_config({**HOST, "thread_num": stage.cpus, "tmp_path": str(config.parent), **more})
    llm.load()
    return llm


def _speak(
    config: Path, stage: Stage, prompts: list[str], told: Callable[[str], None]
) -> dict[str, Any]:
    """The answers, and how fast and in how much memory they came."""
    llm = _load(config, stage)
    answers, decode = [], []
    for prompt in prompts:
        said, timed = answer(llm, prompt)
        answers.append({"prompt": prompt, "answer": said})
        if timed.get("decode_us") and timed["gen_seq_len"] > 8:
            decode.append(timed["gen_seq_len"] / timed["decode_us"] * 1e6)
        told("answers")
    _, timed = answer(llm, texts.text(stage.input("texts"))[:SPEED_PROMPT_CHARACTERS])
    told("speed")
    return {
        "answers": answers,
        "answer_tokens_limit": ANSWER_TOKENS,
        "prefill_tokens_per_second": _rate(timed.get("prompt_len"), timed.get("prefill_us")),
        "prefill_prompt_tokens": timed.get("prompt_len"),
        "decode_tokens_per_second": round(statistics.median(decode), 1) if decode else None,
        "runtime_peak_bytes": _peak_bytes(),
        "threads": stage.cpus,
        "ran_on": "this machine's processor, not the phone's",
    }


def answer(llm: Any, prompt: str) -> tuple[str, dict[str, Any]]:
    """What the model says to a question, from an empty context, with its counts and times.

    The binding raises where an answer is cut off inside a character of several bytes; to ask it
    for the counts then ends in a segmentation fault, so there are none.
    """
    llm.reset()
    try:
        said: str = llm.response(prompt, False)
    except UnicodeDecodeError as cut:
        return cut.object.decode("utf-8", errors="replace").strip(), {}
    found: dict[str, Any] = llm._c_obj.get_context()
    return said.strip(), found


def _rate(count: int | None, microseconds: int | None) -> float | None:
    return round(count / microseconds * 1e6, 1) if count and microseconds else None


def _peak_bytes() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _rows(llm: Any, ids: list[int]) -> Any:
    """A row of logits for each of `ids`, from an empty context."""
    import numpy as np

    llm.reset()
    logits = llm.forward(ids)
    if logits is None or list(logits.shape)[-2] != len(ids):
        raise RuntimeError("MNN's runtime did not give a row of logits for each token")
    return np.array(logits.read(), dtype=np.float32).reshape(len(ids), -1)


def _compare(
    config: Path, stage: Stage, reference: dict[str, Any], told: Callable[[str], None]
) -> dict[str, Any]:
    """Cosine of the last logits of each prompt, and perplexity on the text, against the float."""
    import numpy as np

    llm = _load(config, stage, **ALL_LOGITS)
    wanted = np.load(stage.input("reference") / "logits.npz")["prompts"]
    each = []
    for prompt, ids, row in zip(reference["prompts"], reference["prompt_ids"], wanted, strict=True):
        each.append(texts.against(_rows(llm, ids)[-1], row, prompt))
        each[-1]["same_tokens"] = tokens(llm, prompt, reference["templated"]) == ids
        told("logits")
    nats, count = 0.0, 0
    for ids in reference["window_ids"]:
        more, scored = texts.loss(_rows(llm, ids), ids)
        nats, count = nats + more, count + scored
        told("perplexity")
    _warn(stage, each)
    return texts.figures(each, nats, count, reference["perplexity"])


def tokens(llm: Any, prompt: str, templated: bool) -> list[int]:
    """The tokens the phone will make of a question, with the runtime's own template."""
    asked = llm.apply_chat_template(prompt) if templated else prompt
    return list(llm.tokenizer_encode(asked))


def _warn(stage: Stage, each: list[dict[str, Any]]) -> None:
    differ = sum(not e["same_tokens"] for e in each)
    if differ:
        stage.note(
            f"the runtime's chat template or tokenizer makes other tokens than the model's own "
            f"for {differ} of {len(each)} prompts"
        )


def _compare_draft(
    config: Path,
    draft_config: Path,
    stage: Stage,
    reference: dict[str, Any],
    told: Callable[[str], None],
) -> dict[str, Any]:
    """How often the draft's next token on the text is the model's: what it could save."""
    chosen = []
    for place in (config, draft_config):
        llm = _load(place, stage, **ALL_LOGITS)
        made = []
        for ids in reference["window_ids"]:
            made += list(_rows(llm, ids)[:-1].argmax(axis=1))
            told("draft")
        chosen.append((made, tokens(llm, reference["prompts"][0], False)))
        del llm
        gc.collect()
    (model, words), (draft, draft_words) = chosen
    same = sum(a == b for a, b in zip(model, draft, strict=True))
    return {
        "agreement": same / len(model),
        "agreement_tokens": len(model),
        "same_tokenizer": words == draft_words,
    }


if __name__ == "__main__":
    main(run)
