"""Stage: mlc-chat-config.json and the tokenizer's files, with mlc_llm gen_config.

Inputs: `model`, `source`. Parameters: quantization, model_type ("auto"), conv_template ("auto"),
conv_template_hints, model_name, and the sizes that mlc-chat-config.json may override, null for the
model's own. Outputs: `config`, `config-report` with config.json.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import hfmend
import mlclog
import mlctool
import ownprompt
import templates

from stagekit import BadInput, Stage, main

# In upstream's order; each is an option of gen_config by this name, with dashes.
SIZES = (
    "context_window_size",
    "sliding_window_size",
    "prefill_chunk_size",
    "attention_sink_size",
    "tensor_parallel_shards",
    "pipeline_parallel_stages",
    "max_batch_size",
)
# -1 means "none of it" to mlc_llm, for these.
_MAY_BE_NONE = {"context_window_size", "sliding_window_size", "attention_sink_size"}
CHAT_CONFIG = "mlc-chat-config.json"
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_model", "vocab.json")


def run(stage: Stage) -> None:
    """Choose a template, generate, look that all is there, and write down what was chosen."""
    quantization = stage.param("quantization", str, "q4f16_1")
    sizes = read_sizes(stage)
    with tempfile.TemporaryDirectory() as scratch:
        offers = mlctool.offers(stage)
        offers.check_quantization(quantization)
        model = hfmend.lay_out(stage.input("model"), Path(scratch) / "model")
        kind = model.type(stage.param("model_type", str, "auto"))
        offers.check_model_type(kind)
        chosen, guessed = choose(stage, model.folder, kind, offers)
        out = stage.output("config")
        out.mkdir(parents=True)
        words = ["gen_config", str(model.folder), "--quantization", quantization]
        words += ["--model-type", kind, "--conv-template", chosen.name, "--output", str(out)]
        for name, value in sizes.items():
            words += [f"--{name.replace('_', '-')}", str(value)]
        lines = mlctool.run(stage, words)
        written = check(out)
        own = _own_prompt(stage, model.folder, written, out) if guessed else None
    ignored = mlclog.not_taken(lines)
    if ignored:
        stage.note(f"a {kind} has no {', '.join(ignored)}: left out")
    report = _report(written, chosen, lines)
    report |= {
        "guessed": guessed,
        "system_prompt": own,
        "mended": list(model.mended),
        "rope_theta_mended": any(name.endswith("rope_theta") for name in model.mended),
        "not_taken": ignored,
        "templates": list(offers.templates),
        "quantizations": list(offers.quantizations),
        "mlc_llm": offers.version,
    }
    place = stage.output("config-report")
    place.mkdir()
    text = json.dumps(report, indent=2, ensure_ascii=False)
    (place / "config.json").write_text(f"{text}\n", encoding="utf-8", newline="\n")
    stage.note(f"conversation template {chosen.name}: {chosen.why}")


def read_sizes(stage: Stage) -> dict[str, int]:
    """The sizes that were given. Raises BadInput for one that cannot be."""
    sizes = {}
    for name in SIZES:
        value = stage.param(name, int)
        if value is None:
            continue
        if value < 1 and not (value == -1 and name in _MAY_BE_NONE):
            raise BadInput(f"{name} is {value}", remedy="give a whole number above 0")
        sizes[name] = value
    both = [
        name for name in ("context_window_size", "sliding_window_size") if sizes.get(name, 0) > 0
    ]
    if len(both) == 2:
        raise BadInput(
            "context_window_size and sliding_window_size exclude each other",
            remedy="give one of them; with the other as -1 where the model sets it itself",
        )
    return sizes


def choose(
    stage: Stage, model: Path, kind: str, offers: mlctool.Offers
) -> tuple[templates.Guess, bool]:
    """The template asked for, or one that fits the model; and whether it was guessed."""
    asked = stage.param("conv_template", str, "auto")
    if asked != "auto":
        offers.check_template(asked)
        return templates.Guess(name=asked, why="asked for"), False
    hints = stage.param("conv_template_hints", list, [])
    name = stage.param("model_name", str, "")
    return templates.guess(model, kind, offers.templates, hints=hints, name=name), True


def _own_prompt(stage: Stage, model: Path, written: dict[str, Any], out: Path) -> str | None:
    """Give a guessed template the model's own system prompt; None where it has that, or none fits.

    A template that was asked for stays as mlc_llm has it.
    """
    template = written["conv_template"]
    own = ownprompt.own_system_message(model, template)
    if own is None or own == template.get("system_message"):
        return None
    template["system_message"] = own
    # As gen_config writes it.
    (out / CHAT_CONFIG).write_text(json.dumps(written, indent=2), encoding="utf-8")
    stage.note(f"system prompt: the model's own, {json.dumps(own, ensure_ascii=False)}")
    return own


def check(out: Path) -> dict[str, Any]:
    """What was written. Raises RuntimeError where the configuration or the tokenizer is missing."""
    file = out / CHAT_CONFIG
    if not file.is_file():
        raise RuntimeError(f"gen_config wrote no {CHAT_CONFIG}")
    if not any((out / name).is_file() for name in _TOKENIZERS):
        raise BadInput(
            "the model has no tokenizer that MLC reads",
            remedy=f"it reads {', '.join(_TOKENIZERS)}",
        )
    written = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(written.get("conv_template"), dict):
        raise RuntimeError(f"{CHAT_CONFIG} holds no conversation template")
    return dict(written)


def _report(written: dict[str, Any], chosen: templates.Guess, lines: list[str]) -> dict[str, Any]:
    template = written["conv_template"]
    names = ("model_type", "quantization", "vocab_size", "active_vocab_size", "tokenizer_files")
    config = written.get("model_config", {})
    return {
        "conv_template": chosen.name,
        "why": chosen.why,
        **{name: written.get(name) for name in names},
        **{name: written.get(name, config.get(name)) for name in SIZES},
        "stop_strs": template.get("stop_str", []),
        "stop_token_ids": template.get("stop_token_ids", []),
        "overridden": {name: list(pair) for name, pair in mlclog.overridden(lines).items()},
    }


if __name__ == "__main__":
    main(run)
