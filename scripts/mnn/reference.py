"""Stage: what the model itself says, in 32-bit floats, before anything is quantised.

Inputs: `model`, `texts`. Output: the folder `reference` with reference.json (the prompts, their
tokens, the text's tokens, its perplexity) and logits.npz (the last row of logits of each
prompt, float32). Nothing in it depends on how the model is exported: every export of the same
model is held against the same reference.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import npz
import texts
from stagekit import BadInput, Stage, main


def run(stage: Stage) -> None:
    """Ask the float model everything the exported one will be asked."""
    import numpy as np
    import torch

    torch.set_num_threads(stage.cpus)
    asked, prose = texts.prompts(stage.input("texts")), texts.text(stage.input("texts"))
    trusted = stage.param("trust_remote_code", bool, False)
    tokenizer, model = _load(stage.input("model"), trusted)
    prompt_ids = [encode(tokenizer, prompt) for prompt in asked]
    text_ids = tokenizer(prose, add_special_tokens=False)["input_ids"]
    cut = texts.windows(text_ids)
    steps = len(prompt_ids) + len(cut)
    rows = []
    with torch.inference_mode():
        for done, ids in enumerate(prompt_ids, 1):
            rows.append(_logits(model, ids)[-1])
            stage.progress(done, steps, unit="texts", what="float model")
        nats, tokens = [], 0
        for done, ids in enumerate(cut, len(prompt_ids) + 1):
            more, count = texts.loss(_logits(model, ids), ids)
            nats.append(more)
            tokens += count
            stage.progress(done, steps, unit="texts", what="float model")
    out = stage.output("reference")
    out.mkdir(parents=True)
    npz.write(out / "logits.npz", prompts=np.stack(rows).astype(np.float32))
    _write(
        out / "reference.json",
        {
            "prompts": asked,
            "prompt_ids": prompt_ids,
            "templated": bool(tokenizer.chat_template),
            "window_ids": cut,
            "window_nats": nats,
            "perplexity": texts.perplexity(sum(nats), tokens),
            "perplexity_tokens": tokens,
            "dtype": "float32",
        },
    )


def _load(model: Path, trusted: bool) -> tuple[Any, Any]:
    """The tokenizer and the model with its own weights in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

    common: dict[str, Any] = {"local_files_only": True, "trust_remote_code": trusted}
    tokenizer = AutoTokenizer.from_pretrained(model, **common)
    more = {"dtype": torch.float32, "attn_implementation": "eager"}
    try:
        loaded = AutoModelForCausalLM.from_pretrained(model, **common, **more)
    except ValueError:  # what transformers raises for a model that also sees
        loaded = AutoModelForImageTextToText.from_pretrained(model, **common, **more)
    return tokenizer, loaded.eval()


def encode(tokenizer: Any, prompt: str) -> list[int]:
    """The tokens of a question as a user puts it: one user message, no system message."""
    if not tokenizer.chat_template:
        return list(tokenizer(prompt)["input_ids"])
    message = [{"role": "user", "content": prompt}]
    templated = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    return list(tokenizer(templated, add_special_tokens=False)["input_ids"])


def _logits(model: Any, ids: list[int]) -> Any:
    """All rows of logits for `ids`, as float32."""
    import torch

    rows = model(torch.tensor([ids]), use_cache=False).logits[0].float().numpy()
    if not bool((abs(rows[-1]) < float("inf")).all()):
        raise BadInput("the model answers with numbers that are not finite")
    return rows


def _write(file: Path, value: dict[str, Any]) -> None:
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False)
    file.write_text(text + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main(run)
