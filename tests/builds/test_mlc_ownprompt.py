"""The system prompt that a model's own chat template has, found by rendering it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from edgekiln.home import project

SCRIPTS = project() / "scripts"
ASK = """
import json, sys
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
import ownprompt
print(json.dumps(ownprompt.own_system_message(Path(sys.argv[3]), json.loads(sys.argv[4]))))
"""
CHATML = {
    "system_template": "<|im_start|>system\n{system_message}<|im_end|>\n",
    "system_message": "A conversation.",
    "roles": {"user": "<|im_start|>user", "assistant": "<|im_start|>assistant"},
    "seps": ["<|im_end|>\n"],
    "role_content_sep": "\n",
    "role_empty_sep": "\n",
}
TURNS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
OWN = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are Kiln.\nBe brief.<|im_end|>\n' }}{% endif %}"
)
DATED = OWN.replace("Be brief.", "Today is ' + strftime_now('%d %b %Y') + '.")
LLAMA_2 = {
    "system_template": "[INST] <<SYS>>\n{system_message}\n<</SYS>>\n\n",
    "system_message": "Be kind.",
    "add_role_after_system_message": False,
    "roles": {"user": "<s>[INST]", "assistant": "[/INST]"},
    "seps": [" "],
    "role_content_sep": " ",
    "role_empty_sep": "",
    "system_prefix_token_ids": [1],
}
OWN_LLAMA_2 = (
    "{{ bos_token }}[INST] <<SYS>>\nsystem of mine\n<</SYS>>\n\n"
    "{{ messages[0]['content'] }} [/INST]"
)


@pytest.mark.parametrize(
    ("source", "template", "wanted"),
    [
        (OWN + TURNS, CHATML, "You are Kiln.\nBe brief."),
        (OWN_LLAMA_2, LLAMA_2, "system of mine"),
        # Another turn than mlc_llm writes: the system prompt alone would not make it right.
        (OWN + TURNS.replace("<|im_end|>\n' }}", "<|im_end|>' }}"), CHATML, None),
        # No system prompt, one that tells a day, no place to put it, no template, a broken one.
        (TURNS, CHATML, None),
        (DATED + TURNS, CHATML, None),
        (OWN + TURNS, {**CHATML, "system_template": ""}, None),
        ("", CHATML, None),
        (OWN + "{{ raise_exception('system') }}", CHATML, None),
    ],
)
def test_the_system_prompt_of_a_chat_template(
    mnn_python: Path, tmp_path: Path, source: str, template: dict[str, Any], wanted: str | None
) -> None:
    config = {"chat_template": source, "bos_token": "<s>"} if source else {}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    command = [str(mnn_python), "-c", ASK, str(SCRIPTS), str(SCRIPTS / "mlc"), str(tmp_path)]
    done = subprocess.run(
        [*command, json.dumps(template)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == wanted


def test_a_first_token_that_begins_turns_is_left_where_it_is(
    mnn_python: Path, tmp_path: Path
) -> None:
    """SmolLM2's bos_token is <|im_start|>."""
    config = {"chat_template": OWN + TURNS, "bos_token": "<|im_start|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    command = [str(mnn_python), "-c", ASK, str(SCRIPTS), str(SCRIPTS / "mlc"), str(tmp_path)]
    done = subprocess.run(
        [*command, json.dumps(CHATML)], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == "You are Kiln.\nBe brief."
