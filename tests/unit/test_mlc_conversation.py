"""A conversation template put as the app puts it: what mlc_llm's own as_prompt gives."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from edgekiln.home import project

sys.path[:0] = [str(project() / "scripts"), str(project() / "scripts" / "mlc")]

import conversation  # noqa: E402

CHATML = {
    "system_template": "<|im_start|>system\n{system_message}<|im_end|>\n",
    "system_message": "Be kind.",
    "roles": {"user": "<|im_start|>user", "assistant": "<|im_start|>assistant"},
    "role_templates": {"user": "{user_message}", "assistant": "{assistant_message}"},
    "seps": ["<|im_end|>\n"],
    "role_content_sep": "\n",
    "role_empty_sep": "\n",
    "stop_str": ["<|im_end|>"],
}
LLAMA_2 = {
    "system_template": "[INST] <<SYS>>\n{system_message}\n<</SYS>>\n\n",
    "system_message": "Be kind.",
    "add_role_after_system_message": False,
    "roles": {"user": "<s>[INST]", "assistant": "[/INST]"},
    "role_templates": {"user": "{user_message}"},
    "seps": [" ", " </s>"],
    "role_content_sep": " ",
    "role_empty_sep": " ",
    "stop_str": ["[INST]"],
    "system_prefix_token_ids": [1],
}
PLAIN = {
    "system_template": "{system_message}",
    "roles": {"user": "", "assistant": ""},
    "seps": [""],
}


@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        (
            CHATML,
            "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n"
            "<|im_start|>assistant\n",
        ),
        (LLAMA_2, "[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nWhy? [/INST] "),
        (LLAMA_2 | {"system_template": ""}, "<s>[INST] Why? [/INST] "),
        (PLAIN, "Why?"),
        (CHATML | {"system_template": "{function_string}", "role_empty_sep": ""}, None),
    ],
)
def test_the_first_question(template: dict[str, Any], wanted: str | None) -> None:
    prompt = conversation.first_prompt(template, "Why?")
    assert prompt == (wanted or "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant")


class Bytes:
    """A tokenizer of one token a byte."""

    class Encoded:
        def __init__(self, ids: list[int]) -> None:
            self.ids = ids

    def encode(self, text: str, *, add_special_tokens: bool) -> Encoded:
        assert not add_special_tokens, "the template's own text has them"
        return self.Encoded(list(text.encode()))


def test_tokens_have_the_templates_prefix() -> None:
    assert conversation.first_tokens(PLAIN, Bytes(), "Hi") == [72, 105]
    assert conversation.first_tokens(LLAMA_2, Bytes(), "Hi")[:2] == [1, ord("[")]


def test_an_answer_ends_at_a_stop_text() -> None:
    assert conversation.spoken(CHATML, "Yes.<|im_end|>\n<|im_start|>user") == "Yes."
    assert conversation.spoken(CHATML, "Yes.") == "Yes."
    assert conversation.spoken(PLAIN | {"stop_str": ["", "b", "a"]}, "xab") == "x"
