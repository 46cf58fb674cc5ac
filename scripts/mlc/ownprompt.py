"""The system prompt that a model's own chat template puts first where none is given.

A conversation template of mlc_llm has a system prompt of its own, one for all models that are
written down alike: `chatml` tells SmolLM2 that it is in "a conversation between a user and an
LLM-based AI assistant", and the capital of France is "la femme de France" then, in the float model
as well. What a model was made with is in its own chat template.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import conversation

import chat
from stagekit import BadInput

# A text that no template has in it.
_ASKED = "xq1x"


def own_system_message(model: Path, template: Mapping[str, Any]) -> str | None:
    """What to put for `system_message`, so that a first question is what the model knows.

    None where the two templates differ in more than that, where the model's cannot be applied, and
    where it puts in today's date: an app would go on telling the day of the build.
    """
    system = str(template.get("system_template", ""))
    if "{system_message}" not in system:
        return None
    try:
        own = chat.load(model)
        if own is None or not _says_always_the_same(own.source):
            return None
        wanted = own.render([{"role": "user", "content": _ASKED}])
    except BadInput:
        return None
    if template.get("system_prefix_token_ids"):  # the first token, by its number
        wanted = wanted.removeprefix(own.special.get("bos_token", ""))
    before, after = system.split("{system_message}", 1)
    found = re.match(f"{re.escape(before)}(.*?){re.escape(after)}", wanted, re.DOTALL)
    if found is None:
        return None
    message = found[1]
    alike = conversation.first_prompt({**template, "system_message": message}, _ASKED) == wanted
    return message if alike and message else None


def _says_always_the_same(source: str) -> bool:
    """Whether a chat template may have a system prompt, and one without a date in it."""
    return "system" in source and "strftime" not in source and "date_string" not in source
