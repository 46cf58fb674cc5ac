"""A model's own chat template, applied as transformers applies it, without transformers.

The environment is that of transformers' `render_jinja_template` (utils/chat_template_utils.py):
a sandbox, trim_blocks and lstrip_blocks, `tojson` that leaves characters as they are,
`raise_exception`, `strftime_now`, loop controls and the `generation` tag. One thing differs:
today is always the same day, so that a build gives the same bytes tomorrow.

Many templates put in a system message of their own where none is given. What they put in is
left out here unless a system message is asked for: a small model's answer hangs on it more than
on the question.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from stagekit import BadInput

# The date Llama 3.2's template falls back to where it is told none.
TODAY = datetime(2024, 7, 26)
SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")
# Three texts that no template has in it, and that survive its trimming.
FIRST, SECOND, THIRD = "xq1x", "xq2x", "xq3x"

Message = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Chat:
    """A chat template and the special tokens it may name."""

    source: str
    special: Mapping[str, str]

    def render(self, messages: Sequence[Message], *, ask: bool = True) -> str:
        """The whole text of a chat; with `ask` it ends where the model is to speak."""
        import jinja2

        try:
            said: str = _compiled(self.source).render(
                messages=list(messages), add_generation_prompt=ask, **self.special
            )
        # A template is a program: it fails in Python's ways as well as in jinja's own.
        except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise BadInput(
                f"the model's chat template fails: {error}".splitlines()[0],
                remedy="take chat_template.jinja, or tokenizer_config.json where there is none, as "
                "the model's makers published it",
            ) from error
        return said

    def question(self, text: str, system: str | None = None) -> str:
        """The prompt for one question, up to where the answer begins.

        With `system` None there is no system message, not the template's own either.
        """
        if system is not None:
            asked = [{"role": "system", "content": system}, {"role": "user", "content": text}]
            return self.render(asked)
        whole = self.render([_says("user", text)])
        added, kept = self._default_system()
        return kept + whole.removeprefix(added)

    def _default_system(self) -> tuple[str, str]:
        """What the template says before a first question, unasked, and what of that is to stay.

        What stays is the token that texts begin with, where it is not a part of the turn itself.
        A second question shows how a turn begins: what stands between the end of an answer and
        the question after it.
        """
        first = self.render([_says("user", FIRST)])
        before = first[: first.index(FIRST)]
        turns = [_says("user", FIRST), _says("assistant", SECOND)]
        try:
            answered = self.render(turns, ask=False)
            again = self.render([*turns, _says("user", THIRD)])
        except BadInput:
            return "", ""
        if not all(mark in again for mark in (SECOND, THIRD)) or SECOND not in answered:
            return "", ""
        end = answered[answered.rindex(SECOND) + len(SECOND) :]
        between = again[again.rindex(SECOND) + len(SECOND) : again.rindex(THIRD)]
        begin = between.removeprefix(end)
        if not begin or not before.endswith(begin):
            return "", ""
        added, bos = before.removesuffix(begin), self.special.get("bos_token", "")
        apart = bos and added.startswith(bos) and not begin.startswith(bos)
        return added, bos if apart else ""


def load(model: Path) -> Chat | None:
    """The chat template of a model folder, or None where it has none."""
    config = _json(model / "tokenizer_config.json")
    source = _source(model, config)
    if source is None:
        return None
    special = {**_special(_json(model / "special_tokens_map.json")), **_special(config)}
    return Chat(source=source, special=special)


def prompt(chat: Chat | None, text: str, system: str | None = None) -> str:
    """A question as the model is to read it; a model without a template gets it as it is."""
    if chat is not None:
        return chat.question(text, system)
    return text if system is None else f"{system}\n\n{text}"


def _says(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _source(model: Path, config: Mapping[str, Any]) -> str | None:
    """transformers' order: a file of its own first, then tokenizer_config.json."""
    file = model / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise BadInput(f"{file.name} is not UTF-8", remedy="fetch the model again") from error
    for holder in (_json(model / "chat_template.json"), config):
        found = holder.get("chat_template")
        if isinstance(found, list):
            entries = [entry for entry in found if isinstance(entry, Mapping)]
            named = {entry.get("name"): entry.get("template") for entry in entries}
            found = named.get("default")
        if isinstance(found, str) and found:
            return found
    return None


def _special(config: Mapping[str, Any]) -> dict[str, str]:
    """Special tokens by their names; each is a text, or an object with its `content`."""
    found = {}
    for name in SPECIAL:
        token = config.get(name)
        if isinstance(token, Mapping):
            token = token.get("content")
        if isinstance(token, str):
            found[name] = token
    return found


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(
            f"{file.name} is not JSON: {error}", remedy="fetch the model again"
        ) from error
    return found if isinstance(found, dict) else {}


def _compiled(source: str) -> Any:
    from jinja2.ext import Extension, loopcontrols
    from jinja2.nodes import CallBlock
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):  # type: ignore[misc]
        """{% generation %} marks the model's words for training; here it marks nothing."""

        tags = frozenset({"generation"})

        def parse(self, parser: Any) -> CallBlock:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return CallBlock(self.call_method("_same"), [], [], body).set_lineno(line)

        def _same(self, caller: Any) -> Any:
            return caller()

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = TODAY.strftime
    return environment.from_string(source)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **more: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **more)


def _raise(message: str) -> None:
    import jinja2

    raise jinja2.TemplateError(message)
