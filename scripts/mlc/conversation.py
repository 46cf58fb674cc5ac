"""A conversation template of mlc-chat-config.json applied as the app applies it.

The fields and their rules are those of mlc_llm/protocol/conversation_protocol.py, for the first
question of a conversation and without functions or images.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def first_prompt(template: Mapping[str, Any], question: str) -> str:
    """The text that a model is given for the first question of a conversation."""
    system = str(template.get("system_template", "{system_message}"))
    system = system.replace("{system_message}", str(template.get("system_message", "")))
    roles, between = template["roles"], str(template.get("role_content_sep", ""))
    # "[INST] <<SYS>>…" has the user's role within the system's text.
    opened = bool(system) and not template.get("add_role_after_system_message", True)
    asked = "" if opened else str(roles["user"]) + between
    written = str((template.get("role_templates") or {}).get("user", "{user_message}"))
    asked += written.replace("{user_message}", question) + str(template["seps"][0])
    answering = str(roles["assistant"]) + str(template.get("role_empty_sep", ""))
    return (system + asked + answering).replace("{function_string}", "")


def first_tokens(template: Mapping[str, Any], tokenizer: Any, question: str) -> list[int]:
    """The tokens of `first_prompt`, by a tokenizer of the library `tokenizers`."""
    text = first_prompt(template, question)
    ids = list(tokenizer.encode(text, add_special_tokens=False).ids)
    return [*(template.get("system_prefix_token_ids") or []), *ids]


def spoken(template: Mapping[str, Any], text: str) -> str:
    """An answer up to the first of the template's stop texts."""
    ends = [text.find(stop) for stop in template.get("stop_str") or [] if stop]
    found = [end for end in ends if end >= 0]
    return text[: min(found)] if found else text
