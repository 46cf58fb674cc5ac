"""Stage: run the model compiled for this machine and hold it against the float model.

Inputs: `library` (compiled for the cpu), `weights`, `config` (mlc-chat-config.json and the
tokenizer), `texts`, `reference`. Parameters: file (the library's name), prove ("quick" or "full").
Output: the folder `prove` with prove.json.

The weights are the very bytes that go to the phone and the graph is the phone's, in the same
16-bit floats; the kernels are this processor's. They are not fast: "quick" asks fewer questions,
gives them shorter answers and reads less of the text, and says how much.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import conversation
import hostrun

import texts
from stagekit import BadInput, Stage, main


@dataclass(frozen=True, kw_only=True)
class Extent:
    """How much is run; None is all there is."""

    answers: int | None
    answer_tokens: int
    windows: int | None


EXTENTS = {
    "quick": Extent(answers=3, answer_tokens=24, windows=1),
    "full": Extent(answers=None, answer_tokens=64, windows=None),
}


def run(stage: Stage) -> None:
    """Compare, answer, time, and write it down."""
    os.environ["TVM_NUM_THREADS"] = str(stage.cpus)
    extent = EXTENTS.get(stage.param("prove", str, "quick"))
    if extent is None:
        raise BadInput(f"prove is one of {', '.join(EXTENTS)}")
    reference = json.loads((stage.input("reference") / "reference.json").read_text("utf-8"))
    config = json.loads((stage.input("config") / "mlc-chat-config.json").read_text("utf-8"))
    asked = _Asked.of(stage, reference, config, extent)
    library = stage.input("library") / stage.param("file", str, "host.so")
    if not library.is_file():
        raise BadInput(f"there is no {library.name} in the library's folder")
    told = _teller(stage, asked)
    model = hostrun.load(library, stage.input("weights"), longest=asked.longest())
    found = _compare(model, stage, asked, told)
    found |= _speak(model, stage, asked, told)
    found |= {
        "prove": stage.param("prove", str, "quick"),
        "runtime_peak_bytes": _peak_bytes(),
        "threads": stage.cpus,
        "ran_on": "this machine's processor, not the phone's",
    }
    out = stage.output("prove")
    out.mkdir(parents=True)
    text = json.dumps(found, indent=1, sort_keys=True, ensure_ascii=False)
    (out / "prove.json").write_text(text + "\n", encoding="utf-8", newline="\n")


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What the model is asked, and how the app would put it."""

    extent: Extent
    template: dict[str, Any]
    tokenizer: Any
    prompts: list[str]
    prompt_ids: list[list[int]]
    app_ids: list[list[int]]
    windows: list[list[int]]
    window_nats: list[float]

    @classmethod
    def of(
        cls, stage: Stage, reference: dict[str, Any], config: dict[str, Any], extent: Extent
    ) -> _Asked:
        template = config["conv_template"]
        tokenizer = _tokenizer(stage.input("config"))
        prompts = reference["prompts"]
        return cls(
            extent=extent,
            template=template,
            tokenizer=tokenizer,
            prompts=prompts,
            prompt_ids=reference["prompt_ids"],
            app_ids=[conversation.first_tokens(template, tokenizer, p) for p in prompts],
            windows=reference["window_ids"][: extent.windows],
            window_nats=reference["window_nats"][: extent.windows],
        )

    def questions(self) -> list[tuple[str, list[int]]]:
        """Those that are answered, with the tokens the app would make of them."""
        return list(zip(self.prompts, self.app_ids, strict=True))[: self.extent.answers]

    def longest(self) -> int:
        """The most tokens any conversation comes to."""
        spoken = [len(ids) + self.extent.answer_tokens for ids in self.app_ids]
        return max(spoken + [len(ids) for ids in (*self.prompt_ids, *self.windows)])


def _tokenizer(config: Path) -> Any:
    """The tokenizer that lies with the weights, read as the app reads it."""
    from tokenizers import Tokenizer

    file = config / "tokenizer.json"
    if not file.is_file():
        raise BadInput(
            "there is no tokenizer.json beside mlc-chat-config.json, so no question can be asked",
            remedy="convert the model's tokenizer to tokenizer.json, or build with prove none",
        )
    return Tokenizer.from_file(str(file))


def _teller(stage: Stage, asked: _Asked) -> Callable[[str, int], None]:
    """A function to call after each piece of work, with the tokens it came to."""
    total = sum(len(ids) for ids in (*asked.prompt_ids, *asked.windows))
    total += sum(len(ids) + asked.extent.answer_tokens for _, ids in asked.questions())
    count = 0

    def told(what: str, tokens: int) -> None:
        nonlocal count
        count += tokens
        stage.progress(count, total, unit="tokens", what=what)

    return told


def _compare(
    model: hostrun.HostModel, stage: Stage, asked: _Asked, told: Callable[[str, int], None]
) -> dict[str, Any]:
    """Cosine of the last logits of each prompt, and perplexity on the text, against the float."""
    import numpy as np

    wanted = np.load(stage.input("reference") / "logits.npz")["prompts"]
    each, seconds, read = [], 0.0, 0
    for n, ids in enumerate(asked.prompt_ids):
        began = time.perf_counter()
        row = model.last(ids)
        seconds, read = seconds + time.perf_counter() - began, read + len(ids)
        each.append(texts.against(row, wanted[n], asked.prompts[n]))
        each[-1]["same_tokens"] = asked.app_ids[n] == ids
        told("logits", len(ids))
    nats, count = 0.0, 0
    for ids in asked.windows:
        more, scored = texts.loss(model.rows(ids), ids)
        nats, count = nats + more, count + scored
        told("perplexity", len(ids))
    _warn(stage, asked, each)
    float_perplexity = texts.perplexity(sum(asked.window_nats), count)
    return {
        **texts.figures(each, nats, count, float_perplexity),
        "prefill_tokens_per_second": round(read / seconds, 1),
        "prefill_prompt_tokens": read,
    }


def _warn(stage: Stage, asked: _Asked, each: list[dict[str, Any]]) -> None:
    differ = sum(not e["same_tokens"] for e in each)
    if differ:
        name = asked.template.get("name", "")
        stage.note(
            f"the conversation template {name} makes other tokens than the model's own chat "
            f"template for {differ} of {len(each)} prompts"
        )


def _speak(
    model: hostrun.HostModel, stage: Stage, asked: _Asked, told: Callable[[str, int], None]
) -> dict[str, Any]:
    """The answers the app would give, and how fast they came here."""
    stops = {int(token) for token in asked.template.get("stop_token_ids") or []}
    answers, rates = [], []
    for prompt, ids in asked.questions():
        said: list[int] = []
        began = 0.0
        for token in model.answer(ids, asked.extent.answer_tokens, stops):
            began = began or time.perf_counter()
            said.append(token)
        if len(said) > 1:
            rates.append((len(said) - 1) / (time.perf_counter() - began))
        text = conversation.spoken(asked.template, asked.tokenizer.decode(said))
        answers.append({"prompt": prompt, "answer": text.strip()})
        told("answers", len(ids) + asked.extent.answer_tokens)
    return {
        "answers": answers,
        "answer_tokens_limit": asked.extent.answer_tokens,
        "decode_tokens_per_second": round(statistics.median(rates), 1) if rates else None,
    }


def _peak_bytes() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main(run)
