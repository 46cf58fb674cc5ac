"""A bundle's speed on the phone, kept beside the bundle and compared with published figures.

The figures are the runtime's own: Genie's profile file, or what llm_demo prints at its end.
"""

from __future__ import annotations

import dataclasses
import json
import posixpath
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from edgekiln.artifacts.genie_profile import read_profile
from edgekiln.bundle import write_json
from edgekiln.device.adb import Phone
from edgekiln.device.payload import Payload
from edgekiln.device.run import Answer, Asked, run
from edgekiln.errors import DeviceError

if TYPE_CHECKING:
    from edgekiln.progress import Progress

_REMOTE = ".profile.json"
_MNN = {
    "prompt_tokens": r"prompt tokens num = (\d+)",
    "generated_tokens": r"decode tokens num = (\d+)",
    "time_to_first_token_s": r"prefill time = ([\d.]+) s",
    "generation_s": r" decode time = ([\d.]+) s",
    "prompt_tokens_per_second": r"prefill speed = ([\d.]+) tok/s",
    "tokens_per_second": r" decode speed = ([\d.]+) tok/s",
}
# name, words, unit, and whether more is better
_COMPARED = (
    ("tokens_per_second", "tokens/s out", "", True),
    ("prompt_tokens_per_second", "tokens/s in", "", True),
    ("time_to_first_token_s", "to the first token", " s", False),
    ("init_s", "to load", " s", False),
)


@dataclass(frozen=True, kw_only=True)
class Profiled:
    """What a profile found: `figures` by name (seconds, tokens, tokens/s), and where it lies."""

    figures: Mapping[str, float | None]
    compared: list[dict[str, Any]]
    answer: Answer
    path: Path
    lines: tuple[str, ...]


def profile(
    phone: Phone, payload: Payload, asked: Asked, progress: Progress, *, place: str, timeout: float
) -> Profiled:
    """Ask once with figures, and write them to profiles/ beside the bundle."""
    if payload.backend == "qnn":
        answer, figures, raw = _genie(phone, payload, asked, progress, place=place, timeout=timeout)
    else:
        answer = run(phone, payload, asked, progress, place=place, timeout=timeout)
        figures, raw = mnn_figures(answer.raw), None
    about = _about(phone, payload)
    path = payload.bundle.parent / "profiles" / _name(payload)
    path.parent.mkdir(parents=True, exist_ok=True)
    compared = compare(figures, payload)
    record = {"format": 1, **about, "figures": figures, "compared": compared, "genie": raw}
    write_json(path, record)
    lines = tuple(lines_of(figures, compared))
    return Profiled(figures=figures, compared=compared, answer=answer, path=path, lines=lines)


def _genie(
    phone: Phone, payload: Payload, asked: Asked, progress: Progress, *, place: str, timeout: float
) -> tuple[Answer, dict[str, float | None], Any]:
    """genie-t2t-run refuses to write over a profile, so an old one goes first."""
    remote = posixpath.join(place, _REMOTE)
    phone.must(f"rm -f {quote(remote)}", "removing an old profile")
    answer = run(phone, payload, asked, progress, place=place, timeout=timeout, profile=_REMOTE)
    if phone.shell(f"[ -s {quote(remote)} ]").returncode:
        raise DeviceError(
            "genie-t2t-run answered and wrote no profile",
            why="its --profile left no file",
            remedy="take the runtime from a newer QAIRT SDK (2.36 is known to write one)",
        )
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder, "profile.json")
        phone.pull(remote, local)
        phone.shell(f"rm -f {quote(remote)}")
        figures = genie_figures(local)
        return answer, figures, json.loads(local.read_bytes())


def genie_figures(path: Path) -> dict[str, float | None]:
    """The figures of a Genie profile's last question, and the seconds to load."""
    found = read_profile(path)
    return {"init_s": found.init_s, **dataclasses.asdict(found.queries[-1])}


def mnn_figures(out: str) -> dict[str, float | None]:
    """The figures that llm_demo prints. Raises DeviceError where it printed none."""
    found = {name: re.search(pattern, out) for name, pattern in _MNN.items()}
    figures = {name: float(match[1]) if match else None for name, match in found.items()}
    if figures["tokens_per_second"] is None:
        raise DeviceError(
            "llm_demo printed no figures",
            why="its lines end without `decode speed`",
            remedy="use an llm_demo of MNN's tag 3.6.1",
        )
    return figures


def _about(phone: Phone, payload: Payload) -> dict[str, Any]:
    found = phone.properties(
        "ro.product.manufacturer", "ro.product.model", "ro.soc.model", "ro.build.version.release"
    )
    return {
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "model": payload.model,
        "backend": payload.backend,
        "soc": payload.soc,
        "build_key": payload.manifest.get("build_key", ""),
        "phone": {
            "maker": found.get("ro.product.manufacturer", ""),
            "model": found.get("ro.product.model", ""),
            "soc": found.get("ro.soc.model", ""),
            "android": found.get("ro.build.version.release", ""),
        },
    }


def _name(payload: Payload) -> str:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    name = payload.bundle.name
    taken = payload.bundle.parent / "profiles" / f"{name}-{stamp}.json"
    # Two within a second: the second gets its own name.
    return f"{name}-{stamp}-{time.time_ns() % 10**9}.json" if taken.exists() else taken.name


def published(backend: str) -> list[dict[str, Any]]:
    """Published figures of a runtime, each with its source."""
    text = Path(__file__).with_name("figures.json").read_text(encoding="utf-8")
    found: list[dict[str, Any]] = json.loads(text)
    return [entry for entry in found if entry["backend"] == backend]


def compare(figures: Mapping[str, float | None], payload: Payload) -> list[dict[str, Any]]:
    """How figures compare with each published set: ratios above 1 are better here."""
    found = []
    for entry in published(payload.backend):
        ratios = {}
        for name, _, _, more in _COMPARED:
            here, there = figures.get(name), entry.get(name)
            if here and there:
                ratios[name] = round(here / there if more else there / here, 4)
        same = payload.model.lower() == entry["model"].lower() and payload.soc == entry["soc"]
        found.append({"with": entry, "same_model_and_chip": same, "ratios": ratios})
    return found


def lines_of(figures: Mapping[str, float | None], compared: list[dict[str, Any]]) -> Iterator[str]:
    """The figures and the comparison, in words."""
    counts = (figures.get("prompt_tokens"), figures.get("generated_tokens"))
    if None not in counts:
        yield f"{counts[0]:g} tokens in, {counts[1]:g} out"
    for name, words, unit, _ in _COMPARED:
        if (value := figures.get(name)) is not None:
            beside = ", ".join(_beside(name, unit, c) for c in compared if name in c["ratios"])
            yield f"{value:.2f}{unit} {words}" + (f" ({beside})" if beside else "")
    for entry in [c["with"] for c in compared]:
        counts_there = f"{entry['prompt_tokens']} tokens in, {entry['generated_tokens']} out"
        yield (
            f"compared with {entry['name']}: {entry['model']} on a {entry['device']}, "
            f"{entry['runtime']}, {counts_there}"
        )
    if compared and not any(c["same_model_and_chip"] for c in compared):
        yield "that was another model or another chip: no measure of this one, only an orientation"


def _beside(name: str, unit: str, compared: Mapping[str, Any]) -> str:
    ratio, there = compared["ratios"][name], compared["with"][name]
    return f"{ratio:.2f} times as fast as there: {there:.2f}{unit}"
