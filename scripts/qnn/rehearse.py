"""The proof's child: twins under HTP emulation, and a dialog with the real Genie (childwork.py).

Requests: {"kind": "compare", …} and {"kind": "dialog", …}; see the functions of those names.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import childwork
import genie
import numpy as np
import twins
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def answer(request: Mapping[str, Any], tell: childwork.Told) -> dict[str, Any]:
    """Do what the request says."""
    return {"compare": compare, "dialog": dialog}[request["kind"]](request, tell)


def compare(request: Mapping[str, Any], tell: childwork.Told) -> dict[str, Any]:
    """The twins' logits beside those of the float model and of the quantised one on the CPU.

    Request: `quantized` and `twins` (folders), `decode` (how many of the test vectors' last
    tokens go through the decode graph; the others go through the prefill graph).
    """
    folder, decode = Path(request["quantized"]), int(request["decode"])
    with np.load(folder / "vectors.npz") as vectors:
        ids = vectors["input_ids"].reshape(-1).tolist()
        wanted = _rows(vectors["logits_float"], len(ids))
        expected = _rows(vectors["logits_quantised"], len(ids))
    binaries = twins.files(Path(request["twins"]))
    prefill = max(binaries)
    ids = ids[:prefill]
    runner = twins.Twins(folder=folder, cpus=1, binaries=binaries)
    begun = time.monotonic()
    rows = [runner.run(ids[:-decode], tokens=prefill)]
    seconds = time.monotonic() - begun
    tell({"step": "prefill graph"})
    for token in ids[-decode:]:
        rows.append(runner.run([token], tokens=min(binaries)))
        tell({"step": "decode graph"})
    got = np.concatenate(rows)
    return {
        **_against(got, wanted[: len(ids)]),
        "emulation": _against(got, expected[: len(ids)]),
        "rows": len(ids),
        "decode_rows": decode,
        "prefill_seconds": seconds,
    }


def _rows(logits: Floats, count: int) -> Floats:
    return logits.reshape(-1, logits.shape[-1])[:count]


def _against(got: Floats, wanted: Floats) -> dict[str, Any]:
    """Cosines row by row, and how far below its best the wanted model puts the got one's choice."""
    x, y = got.astype(np.float64), wanted.astype(np.float64)
    cosines = (x * y).sum(1) / (np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1))
    chosen = y[np.arange(len(y)), x.argmax(1)]
    behind = y.max(1) - chosen
    return {
        "cosine_mean": float(cosines.mean()),
        "cosine_min": float(cosines.min()),
        "same_next_token": float((behind == 0).mean()),
        "behind": [float(b) for b in behind],
    }


def dialog(request: Mapping[str, Any], tell: childwork.Told) -> dict[str, Any]:
    """Answers to prompts by Genie, with the bundle's own configuration.

    Request: `settings` and `quantized` (folders), `binaries` (the twins in order), `prompts`
    (texts), `tokens` (of an answer), `seconds` (for all of them).
    """
    settings, quantized = Path(request["settings"]), Path(request["quantized"])
    config = json.loads((settings / "genie_config.json").read_text(encoding="utf-8"))
    binaries = [Path(file) for file in request["binaries"]]
    folders = {"tokenizer": quantized, "extensions": settings}
    begin = int(config["dialog"]["context"]["bos-token"])
    library = genie.Genie()
    begun = time.monotonic()
    talk = library.dialog(genie.with_paths(config, folders, binaries))
    loaded = time.monotonic() - begun
    until = time.monotonic() + float(request["seconds"])
    answers: list[dict[str, Any]] = []
    for number, prompt in enumerate(request["prompts"]):
        left = until - time.monotonic()
        if answers and left <= 0:
            break
        talk.reset()

        def told(text: str, pieces: int, number: int = number) -> None:
            tell({"prompt": number, "pieces": pieces, "text": text})

        said = talk.ask(prompt, tokens=int(request["tokens"]), seconds=max(left, 0), told=told)
        answers.append(
            {
                "answer": said.text.strip(),
                "ids": talk.encode(said.text) if said.text else [],
                # Genie puts that token before every prompt, one that begins with it as well.
                "prompt_ids": [*([begin] if begin >= 0 else []), *talk.encode(prompt)],
                "tokens": said.pieces,
                "seconds": round(said.seconds, 3),
                "first_token_seconds": round(said.first_seconds or said.seconds, 3),
                "ended": said.ended,
            }
        )
    return {
        "genie_version": library.version,
        "load_seconds": round(loaded, 3),
        "answers": answers,
        "peak_bytes": childwork.peak_bytes(),
    }


if __name__ == "__main__":
    childwork.answer(answer)
