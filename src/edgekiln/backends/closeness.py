"""How close a quantised model is to the float one: told from a prove.json, and held to floors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from edgekiln.backends.base import Finding
from edgekiln.errors import QualityError


def findings(proof: Mapping[str, Any], against: str) -> Iterator[Finding]:
    """The first answer, the logits' cosine, the perplexity."""
    first = proof["answers"][0]
    yield Finding(name="answer", value=first, text=f"{first['prompt']}\n  {first['answer']}")
    cosine, least = proof["cosine_mean"], proof["cosine_min"]
    text = f"cosine of logits with {against}: {cosine:.4f} (least {least:.4f})"
    yield Finding(name="cosine_mean", value=cosine, text=text)
    before, after = proof["perplexity_float"], proof["perplexity_quantised"]
    ratio = proof["perplexity_ratio"]
    text = f"perplexity: {before:.2f} before, {after:.2f} after ({ratio:.3f} times)"
    yield Finding(name="perplexity_ratio", value=ratio, text=text)


def judge(
    figures: Mapping[str, Any], *, min_cosine: float, max_perplexity_ratio: float, remedy: str
) -> None:
    """Raise QualityError for a model below a floor; `remedy` is what makes a closer one."""
    cosine, ratio = figures["cosine_mean"], figures["perplexity_ratio"]
    # Written so that a figure that is not a number fails.
    if not (cosine >= min_cosine and ratio <= max_perplexity_ratio):
        raise QualityError(
            "the quantised model is too far from the float one: "
            f"cosine {cosine:.4f}, perplexity {ratio:.3f} times the float model's",
            why=f"the floor is cosine {min_cosine:g} and {max_perplexity_ratio:g} times the "
            "perplexity",
            remedy=f"{remedy}; or lower min_cosine or raise max_perplexity_ratio",
        )
