"""Which of mlc_llm's conversation templates a model was made for, and why we think so.

A chat template is text that names its own marks (<|im_start|>, [INST], …); a family of models
uses one kind of them. Both are looked at, and the first name that the installed mlc_llm has a
template for is taken.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stagekit import BadInput


@dataclass(frozen=True, kw_only=True)
class Guess:
    """A template's name, and in one line what spoke for it."""

    name: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Names to try, best first, where all `marks` stand in the chat template (and, if given, the
    family of the model is one of `families`)."""

    marks: tuple[str, ...]
    names: tuple[str, ...]
    families: tuple[str, ...] = ()

    def holds(self, text: str, family: str) -> bool:
        """Whether this rule is one for that chat template of that family."""
        return all(m in text for m in self.marks) and (not self.families or family in self.families)


# The narrow ones first: a distilled DeepSeek is a Qwen or a Llama by its family.
RULES = (
    Rule(
        marks=("<｜User｜>", "<｜Assistant｜>"),
        names=("deepseek_r1_qwen",),
        families=("qwen2", "qwen3"),
    ),
    Rule(
        marks=("<｜User｜>", "<｜Assistant｜>"), names=("deepseek_r1_llama",), families=("llama",)
    ),
    Rule(marks=("<｜User｜>", "<｜Assistant｜>"), names=("deepseek_v3",)),
    Rule(marks=("<|header_start|>", "<|eot|>"), names=("llama-4",)),
    Rule(marks=("<|start_header_id|>", "ipython"), names=("llama-3_1", "llama-3")),
    Rule(marks=("<|start_header_id|>",), names=("llama-3", "llama-3_1")),
    Rule(
        marks=("<|im_start|>",),
        names=("qwen3_5", "qwen3", "qwen2"),
        families=("qwen3_5", "qwen3_5_text"),
    ),
    Rule(marks=("<|im_start|>",), names=("qwen3", "qwen2"), families=("qwen3", "qwen3_moe")),
    Rule(marks=("<|im_start|>",), names=("qwen2",), families=("qwen2", "qwen2_moe")),
    Rule(marks=("<|im_start|>",), names=("chatml",)),
    Rule(
        marks=("<start_of_turn>",),
        names=("gemma3_instruction", "gemma_instruction"),
        families=("gemma3", "gemma3_text"),
    ),
    Rule(marks=("<start_of_turn>",), names=("gemma_instruction",)),
    Rule(marks=("<|user|>", "<|end|>"), names=("phi-3-vision",), families=("phi3_v",)),
    Rule(marks=("<|im_sep|>",), names=("phi-4",)),
    Rule(marks=("<|user|>", "<|end|>"), names=("phi-3",)),
    Rule(marks=("<|user|>", "</s>"), names=("tinyllama_v1_0",)),
    Rule(marks=("<|START_OF_TURN_TOKEN|>",), names=("aya-23",)),
    Rule(marks=("<extra_id_1>",), names=("nemotron",)),
    Rule(
        marks=("[INST]",),
        names=("ministral3", "mistral_default"),
        families=("ministral3", "mistral3"),
    ),
    Rule(marks=("[INST]", "<<SYS>>"), names=("llama-2",)),
    Rule(marks=("[INST]",), names=("mistral_default",), families=("mistral", "mixtral")),
    Rule(marks=("[INST]",), names=("llama-2",), families=("llama",)),
    Rule(marks=("[INST]",), names=("mistral_default",)),
    Rule(marks=("<|user|>", "<|assistant|>"), names=("olmo2", "olmo"), families=("olmo2", "olmo")),
    Rule(marks=("<|user|>", "<|assistant|>"), names=("stablelm-2",), families=("stablelm",)),
    Rule(marks=("[gMASK]",), names=("glm",)),
    Rule(marks=("User:", "Assistant:"), names=("deepseek_v2",), families=("deepseek_v2",)),
    Rule(marks=("### Instruction:",), names=("dolly",), families=("gpt_neox",)),
    Rule(marks=("USER:", "ASSISTANT:"), names=("llava",), families=("llava",)),
)

# For models without a chat template: what their family is talked to with.
FAMILIES: Mapping[str, tuple[str, ...]] = {
    "rwkv5": ("rwkv_world",),
    "rwkv6": ("rwkv_world",),
    "gpt2": ("gpt2",),
    "gpt_bigcode": ("gpt_bigcode",),
    "orion": ("orion",),
    "phi": ("phi-2",),
    "phi-msft": ("phi-2",),
    "chatglm": ("glm",),
    "llava": ("llava",),
    "qwen2": ("qwen2", "chatml"),
    "qwen3": ("qwen3", "qwen2", "chatml"),
    "gemma": ("gemma_instruction",),
    "gemma2": ("gemma_instruction",),
    "gemma3": ("gemma3_instruction", "gemma_instruction"),
    "gemma3_text": ("gemma3_instruction", "gemma_instruction"),
    "phi3": ("phi-3",),
    "stablelm": ("stablelm-2",),
    "nemotron": ("nemotron",),
    "cohere": ("aya-23",),
}

# And by the name it goes by, where family and marks say nothing.
NAMES: Mapping[str, tuple[str, ...]] = {
    "redpajama": ("redpajama_chat",),
    "tinyllama": ("tinyllama_v1_0",),
    "codellama": ("codellama_instruct",),
    "llama-2": ("llama-2",),
    "dolly": ("dolly",),
    "oasst": ("oasst",),
    "wizardcoder": ("wizard_coder_or_math",),
    "wizardmath": ("wizard_coder_or_math",),
    "wizardlm": ("wizardlm_7b",),
    "stablelm-3b": ("stablelm-3b",),
    "gorilla-openfunctions-v2": ("gorilla-openfunctions-v2",),
    "gorilla": ("gorilla",),
}


def guess(
    model: Path, family: str, offered: Sequence[str], *, hints: Sequence[str] = (), name: str = ""
) -> Guess:
    """The template for a model: a hint's, by its chat template, its family or its name.

    Raises BadInput where nothing speaks for any template that `offered` names.
    """
    text = chat_template(model)
    for found in _candidates(text, family, hints, name):
        if found.name in offered:
            return found
    what = "its chat template has marks of none" if text else "it has no chat template"
    raise BadInput(
        f"no conversation template of mlc_llm could be told for this model: {what}, and its "
        f"family is {family}",
        remedy=f"say it with --conv-template; there are {', '.join(offered)} (LM is plain text)",
    )


def _candidates(text: str, family: str, hints: Sequence[str], name: str) -> Iterator[Guess]:
    for hint in hints:
        yield Guess(name=hint, why="known for this model")
    for rule in RULES:
        if text and rule.holds(text, family):
            marks = " and ".join(rule.marks)
            of = f", of family {family}" if rule.families else ""
            for found in rule.names:
                yield Guess(name=found, why=f"its chat template has {marks}{of}")
    for known, names in NAMES.items():
        if known in name.lower():
            for found in names:
                yield Guess(name=found, why=f"its name has {known}")
    if not text:
        for found in FAMILIES.get(family, ()):
            yield Guess(name=found, why=f"it has no chat template, and its family is {family}")


def chat_template(model: Path) -> str:
    """A model's chat template, wherever it lies; nothing where it has none."""
    beside = model / "chat_template.jinja"
    if beside.is_file():
        return beside.read_text(encoding="utf-8", errors="replace")
    for file in ("tokenizer_config.json", "chat_template.json"):
        value = _read(model / file).get("chat_template")
        if isinstance(value, str):
            return value
        if isinstance(value, list):  # several, by name
            named = {str(v.get("name")): str(v.get("template", "")) for v in value}
            return named.get("default") or next(iter(named.values()), "")
    return ""


def _read(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
