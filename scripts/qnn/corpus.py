"""The texts that quantising looks at: to calibrate with, to measure with, questions to answer.

The defaults lie in the stage input `texts`: calibration.txt and chats.json, evaluation.txt,
prompts.json. Each text is cut into windows, chains of whole chunks that begin with what the
tokenizer begins texts with, so that no padding is ever looked at.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import chat
from stagekit import BadInput

# Windows of this many chunks, where the context has room for them.
WINDOW_CHUNKS = 4
# More of a text of the user's own would take longer and say the same.
EVALUATION_TOKENS = 2048
LEAST_EVALUATION = 1400
LEAST_CALIBRATION = 1024

Windows = list[list[int]]


@dataclass(frozen=True, kw_only=True)
class Cutter:
    """How texts become windows for one decoder and tokenizer."""

    tokenizer: Any
    prefill: int
    context: int

    @classmethod
    def of(cls, model: Path, *, prefill: int, context: int) -> Cutter:
        """With the tokenizer of a model folder."""
        from tokenizers import Tokenizer

        file = model / "tokenizer.json"
        if not file.is_file():
            raise BadInput(
                "the model has no tokenizer.json", remedy="take a release that comes with one"
            )
        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # what tokenizers raises is a bare Exception
            raise BadInput(
                f"tokenizer.json cannot be read: {error}".splitlines()[0],
                remedy="fetch the model again",
            ) from error
        return cls(tokenizer=tokenizer, prefill=prefill, context=context)

    @property
    def window(self) -> int:
        """Tokens of a whole window."""
        return self.prefill * min(WINDOW_CHUNKS, self.context // self.prefill)

    def ids(self, text: str, *, special: bool = False) -> list[int]:
        """A text's tokens; with `special`, also what the tokenizer puts around texts."""
        return [int(i) for i in self.tokenizer.encode(text, add_special_tokens=special).ids]

    def windows(self, text: str, *, most: int, least: int, what: str) -> Windows:
        """Up to `most` tokens of a text in whole chunks. BadInput where there are under `least`."""
        begin = self.ids("", special=True)[:1]
        ids = self.ids(text)
        if len(ids) < least:
            raise BadInput(
                f"the {what} text has {len(ids)} tokens; at least {least} are needed",
                remedy="give a longer text, or none, to use the one that comes along",
            )
        step = self.window - len(begin)
        cut = [begin + ids[at : at + step] for at in range(0, min(len(ids), most), step)]
        whole = [w[: len(w) // self.prefill * self.prefill] for w in cut]
        return [w for w in whole if w]


@dataclass(frozen=True, kw_only=True)
class Material:
    """All that is looked at, as tokens."""

    calibration: Windows
    evaluation: Windows
    prompts: Sequence[Question]


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question, as it is put to the model."""

    prompt: str
    text: str
    ids: Sequence[int]


def material(
    cutter: Cutter,
    *,
    model: Path,
    texts: Path,
    calibration: Path | None,
    evaluation: Path | None,
    calibration_tokens: int,
) -> Material:
    """The user's own files where given, else those that come along."""
    talk = chat.load(model)
    calibrating = cutter.windows(
        read(calibration or texts / "calibration.txt"),
        most=calibration_tokens,
        least=min(LEAST_CALIBRATION, calibration_tokens),
        what="calibration",
    )
    # A window of conversation: the tokens that chats begin with reach farther than any text's.
    calibrating += _chats(cutter, talk, texts / "chats.json")
    return Material(
        calibration=calibrating,
        evaluation=cutter.windows(
            read(evaluation or texts / "evaluation.txt"),
            most=EVALUATION_TOKENS,
            least=LEAST_EVALUATION,
            what="evaluation",
        ),
        prompts=list(_questions(cutter, talk, texts / "prompts.json")),
    )


def read(file: Path) -> str:
    """A text file; BadInput where it is not UTF-8."""
    try:
        return file.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{file.name} is not UTF-8: byte {error.start}", remedy="save it as UTF-8"
        ) from error


def _chats(cutter: Cutter, talk: chat.Chat | None, file: Path) -> Windows:
    pairs = json.loads(read(file))
    if talk is None:
        said = "\n\n".join(f"{question}\n{answer}" for question, answer in pairs)
    else:
        said = "".join(talk.question(question) + answer + "\n" for question, answer in pairs)
    ids = cutter.ids(said)[: cutter.window]
    whole = ids[: len(ids) // cutter.prefill * cutter.prefill]
    return [whole] if whole else []


def _questions(cutter: Cutter, talk: chat.Chat | None, file: Path) -> list[Question]:
    asked = json.loads(read(file))
    made = []
    for prompt in asked:
        text = chat.prompt(talk, prompt)
        made.append(Question(prompt=prompt, text=text, ids=cutter.ids(text, special=talk is None)))
    return made
