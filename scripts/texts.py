"""What the float model and the exported one are both asked, and how the answers are compared.

`prompts.json` is a list of questions; `text.txt` is a text written for this project, so that no
model has learned it by heart. Both lie in the stage input `texts`.
"""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stagekit import BadInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Logits = NDArray[np.float32]

# The text is read in windows this long, each from an empty context: the same work for both
# models, and never more than this many rows of logits in memory.
WINDOW_TOKENS = 256
# Rows in 64 bits at a time: a vocabulary is wide.
_ROWS = 32


def prompts(texts: Path) -> list[str]:
    """The questions, in order."""
    found = json.loads((texts / "prompts.json").read_text(encoding="utf-8"))
    if not isinstance(found, list) or not all(isinstance(p, str) and p for p in found):
        raise BadInput("prompts.json is not a list of questions")
    if not found:
        raise BadInput("prompts.json holds no question")
    return found


def text(texts: Path) -> str:
    """The text for the perplexity."""
    return (texts / "text.txt").read_text(encoding="utf-8").strip()


def windows(ids: list[int]) -> list[list[int]]:
    """The text's tokens in windows; a last one too short to say much is left out."""
    cut = [ids[i : i + WINDOW_TOKENS] for i in range(0, len(ids), WINDOW_TOKENS)]
    return [w for w in cut if len(w) >= min(len(ids), WINDOW_TOKENS // 4) and len(w) > 1]


def loss(logits: Logits, ids: list[int]) -> tuple[float, int]:
    """Summed negative log likelihood in nats of each token after the first, and how many.

    `logits` has a row for each of `ids`; row i predicts token i + 1.
    """
    import numpy as np

    nats, scored = 0.0, len(ids) - 1
    for start in range(0, scored, _ROWS):
        rows = logits[start : min(start + _ROWS, scored)].astype(np.float64)
        top = rows.max(axis=1)
        total = top + np.log(np.exp(rows - top[:, None]).sum(axis=1))
        chosen = rows[np.arange(len(rows)), ids[start + 1 : start + 1 + len(rows)]]
        nats += float((total - chosen).sum())
    return nats, scored


def perplexity(nats: float, tokens: int) -> float:
    """exp of the mean negative log likelihood; infinite where it is past all counting."""
    mean = nats / tokens
    return math.exp(mean) if mean < 700 else math.inf


def cosine(a: Logits, b: Logits) -> float:
    """The cosine of the angle between two rows of logits."""
    import numpy as np

    x, y = a.astype(np.float64), b.astype(np.float64)
    return float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))


def divergence(a: Logits, b: Logits) -> float:
    """Kullback-Leibler divergence in nats of b's next-token distribution from a's."""
    import numpy as np

    p, q = _log_softmax(a), _log_softmax(b)
    return float((np.exp(p) * (p - q)).sum())


def _log_softmax(row: Logits) -> Any:
    import numpy as np

    wide = row.astype(np.float64)
    shifted = wide - wide.max()
    return shifted - np.log(np.exp(shifted).sum())


def against(row: Logits, wanted: Logits, prompt: str) -> dict[str, Any]:
    """How far a prompt's last logits are from the float model's, as prove.json says it."""
    width = min(len(row), len(wanted))  # some checkpoints pad the vocabulary, some exports do not
    got, want = row[:width], wanted[:width]
    return {
        "prompt": prompt,
        "cosine": cosine(got, want),
        "divergence_nats": divergence(want, got),
        "same_next_token": bool(got.argmax() == want.argmax()),
    }


def figures(
    each: list[dict[str, Any]], nats: float, tokens: int, float_perplexity: float
) -> dict[str, Any]:
    """What prove.json says of all prompts (`against`) and of the text: its loss, its tokens."""
    quantised = perplexity(nats, tokens)
    return {
        "prompts": each,
        "cosine_mean": statistics.fmean(e["cosine"] for e in each),
        "cosine_min": min(e["cosine"] for e in each),
        "divergence_nats_mean": statistics.fmean(e["divergence_nats"] for e in each),
        "perplexity_float": float_perplexity,
        "perplexity_quantised": quantised,
        "perplexity_ratio": quantised / float_perplexity,
        "perplexity_tokens": tokens,
    }
