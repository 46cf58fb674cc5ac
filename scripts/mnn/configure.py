"""Stage: write the config.json that MNN's runtime reads on the phone.

Inputs: `mnn` (the export) and `draft` (a draft model's export), where there is one. Output: the
folder `config` with config.json, and draft/config.json. Parameters: the names in WRITTEN below
and those of the functions beside it; a name that is not known is refused, because the runtime
itself passes over a key it does not know in silence.

The keys are those of MNN 3.6.1, read from its wheel. Two names of older runtimes are gone:
`quant_qkv` became `attention_mode`, with other numbers, and `prefer_decode` is now eight added
to `dynamic_option`. A separate draft model was never taken up by its decoding loop, which knows
lookahead, mtp, eagle and dflash: the draft is put beside the model for apps that drive both.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stagekit import BadInput, Stage, main

# Parameters that are the runtime's own keys, each with the type the runtime's reader insists on:
# a whole number where it wants a float is passed over in silence, and so is the other way round.
WRITTEN: dict[str, type] = {
    "backend_type": str,
    "precision": str,
    "memory": str,
    "power": str,
    "use_mmap": bool,
    "reuse_kv": bool,
    "chunk": int,
    "max_new_tokens": int,
    "system_prompt": str,
    "sampler_type": str,
}
# The sampler's values, and the samplers that read them. `mixed` reads those of its parts.
SAMPLING: dict[str, tuple[type, frozenset[str]]] = {
    "temperature": (float, frozenset({"temperature", "topP", "minP", "tfs", "typical"})),
    "top_k": (int, frozenset({"topK"})),
    "top_p": (float, frozenset({"topP"})),
    "min_p": (float, frozenset({"minP", "min_p"})),
    "tfs_z": (float, frozenset({"tfs"})),
    "typical": (float, frozenset({"typical"})),
    "repetition_penalty": (float, frozenset({"penalty"})),
    "presence_penalty": (float, frozenset({"penalty"})),
    "frequency_penalty": (float, frozenset({"penalty"})),
    "penalty_window": (int, frozenset({"penalty"})),
    "n_gram": (int, frozenset({"penalty"})),
    "ngram_factor": (float, frozenset({"penalty"})),
    "penalty_sampler": (str, frozenset({"penalty"})),
}
LOOKAHEAD: dict[str, type] = {
    "draft_match_strictness": str,
    "draft_selection_rule": str,
    "ngram_match_maxlen": int,
    "ngram_update": bool,
}
OTHERS = frozenset(
    {
        "threads",
        "kv_quant",
        "flash_attention",
        "dynamic_option",
        "prefer_decode",
        "mixed_samplers",
        "speculative",
        "draft_length",
    }
)
# OpenCL does not count threads: 64 says buffers rather than images, 4 says tune widely.
OPENCL_MODE = 64 | 4
THREADS = 4


def run(stage: Stage) -> None:
    """Write the configuration of the model, and of its draft."""
    unknown = set(stage.params) - set(WRITTEN) - set(SAMPLING) - set(LOOKAHEAD) - OTHERS
    if unknown:
        raise BadInput(f"the runtime's configuration has no {', '.join(sorted(unknown))}")
    out = stage.output("config")
    out.mkdir(parents=True)
    config = {
        **_files(stage.input("mnn")),
        **_plain(stage),
        **_threads(stage),
        **_attention(stage),
        **_dynamic(stage),
        **_sampler(stage),
        **_speculative(stage),
    }
    _write(out / "config.json", config)
    if stage.has("draft"):
        stage.note(
            "MNN 3.6.1 does not decode with a draft model by itself: "
            "the draft lies in draft/ for apps that drive both models"
        )
        (out / "draft").mkdir()
        _write(out / "draft" / "config.json", {**config, **_files(stage.input("draft"))})


def _files(export: Path) -> dict[str, Any]:
    """The files of an export by the runtime's keys, and what its family needs."""
    made = json.loads((export / "config.json").read_text(encoding="utf-8"))
    kept = {k: made[k] for k in ("llm_model", "llm_weight", "tokenizer_file") if k in made}
    embedding = made.get("embedding_file", "embeddings_bf16.bin")
    # The exporter names the file even where the embedding is tied and none is written.
    if (export / embedding).is_file():
        kept["embedding_file"] = embedding
    special = {k: made[k] for k in ("mllm", "hidden_states") if k in made}
    talker = {k: v for k, v in made.items() if k.startswith(("talker", "dit"))}
    return {**kept, **special, **talker}


def _plain(stage: Stage) -> dict[str, Any]:
    found = {name: stage.param(name, kind) for name, kind in WRITTEN.items()}
    given = {k: v for k, v in found.items() if v is not None}
    if given.get("use_mmap"):
        given["tmp_path"] = "tmp"  # without a folder the weights are mapped nowhere
    return given


def _threads(stage: Stage) -> dict[str, int]:
    opencl = stage.params.get("backend_type") == "opencl"
    return {"thread_num": stage.param("threads", int, OPENCL_MODE if opencl else THREADS)}


def _attention(stage: Stage) -> dict[str, int]:
    """attention_mode: eight for flash attention, plus 1 for int8 keys or 2 for values as well."""
    quantised = stage.param("kv_quant", int, 0)
    if quantised == 2 and stage.param("reuse_kv", bool, False):
        stage.note("with reuse_kv the runtime quantises the keys only: kv_quant 2 becomes 1")
    return {"attention_mode": 8 * stage.param("flash_attention", bool, True) + quantised}


def _dynamic(stage: Stage) -> dict[str, int]:
    chosen: int = stage.param("dynamic_option", int, 0)
    return {"dynamic_option": chosen + 8 * stage.param("prefer_decode", bool, False)}


def _sampler(stage: Stage) -> dict[str, Any]:
    """The values that the chosen sampler reads, and none that it would pass over."""
    sampler = stage.param("sampler_type", str, "greedy")
    parts = {sampler}
    found: dict[str, Any] = {}
    if sampler == "mixed":
        parts = set(stage.param("mixed_samplers", list, []))
        found["mixed_samplers"] = stage.params["mixed_samplers"]
    for name, (kind, readers) in SAMPLING.items():
        value = stage.param(name, kind)
        if value is not None and parts & readers:
            found[name] = value
    return found


def _speculative(stage: Stage) -> dict[str, Any]:
    kind = stage.param("speculative", str, "none")
    if kind == "none":
        return {}
    found: dict[str, Any] = {"speculative_type": kind}
    if (length := stage.param("draft_length", int)) is not None:
        found["draft_predict_length"] = length
    if kind == "lookahead":
        values = {name: stage.param(name, of) for name, of in LOOKAHEAD.items()}
        found |= {k: v for k, v in values.items() if v is not None}
    if kind == "eagle":
        found["hidden_states"] = True
    return found


def _write(file: Path, config: dict[str, Any]) -> None:
    text = json.dumps(config, indent=4, ensure_ascii=False)
    file.write_text(text + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main(run)
