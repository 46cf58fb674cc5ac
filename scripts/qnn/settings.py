"""Stage: write what Genie reads on the phone, and the prompts to try it with.

Inputs: `model`, `texts`, `quantized`, `binaries`. Output: the folder `settings` with
genie_config.json, htp_backend_ext_config.json, prompts/, run.sh and settings.json. Parameters:
those of `dialog`, `extensions` and `questions` below.

The keys are those of libGenie 1.21 (QNN 2.51), read from the schemas that it carries; it refuses
a key it does not know. The rotary positions are taken from what the graph was made of, which is
the model's own config.json: published configurations of Llama 3.2 scale them by 8 where the model
says 32, and with positional-encoding there Genie takes no pos-id-dim and rope-theta beside it.

Prompts are the model's own chat template around each question. prompts/template.json holds the
two parts of it, for questions of one's own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jsons

import chat
from stagekit import BadInput, Stage, main

CONFIG, EXTENSIONS = "genie_config.json", "htp_backend_ext_config.json"
# Stands for the question when a template is taken apart; no template has it in it.
QUESTION = "xq0x"
# Left of the context for the answer to the long prompt.
ANSWER = 200
LONG = "Say in a few sentences what this text is about.\n\n"
# How a core of the NPU runs: as fast as it can, as in the vendor's examples.
PROFILE = {"core_id": 0, "perf_profile": "burst", "rpc_control_latency": 100}


def run(stage: Stage) -> None:
    """Look at what was made, then write each file."""
    graph = jsons.read(stage.input("quantized") / "graph.json")
    compiled = jsons.read(stage.input("binaries") / "compile.json")
    quality = jsons.read(stage.input("quantized") / "quality.json")
    out = stage.output("settings")
    (out / "prompts").mkdir(parents=True)
    template = chat.load(stage.input("model"))
    if template is None:
        stage.note("the model has no chat template: prompts are the plain questions")
    binaries = [f"models/{binary['file']}" for binary in compiled["binaries"]]
    config = dialog(stage, graph, binaries, bos(graph, template))
    jsons.write(out / CONFIG, config, indent=2)
    jsons.write(out / EXTENSIONS, extensions(stage, bool(compiled["shared"])), indent=2)
    asked = [entry["prompt"] for entry in quality["prompts"]]
    room = int(graph["context"]) - int(graph["prefill"]) - ANSWER
    written = questions(stage, out / "prompts", template, asked, room)
    (out / "run.sh").write_text(script(next(iter(written))), encoding="utf-8", newline="\n")
    (out / "run.sh").chmod(0o755)
    jsons.write(out / "settings.json", {"format": 1, "prompts": written, "binaries": binaries})


def dialog(
    stage: Stage, graph: Mapping[str, Any], binaries: Sequence[str], begin: int
) -> dict[str, Any]:
    """Genie's dialog configuration; paths are relative to the bundle's folder."""
    return {
        "dialog": {
            "version": 1,
            "type": "basic",
            "context": {
                "version": 1,
                "size": graph["context"],
                "n-vocab": graph["vocab"],
                "bos-token": begin,
                "eos-token": _ends(graph),
            },
            "sampler": _sampler(stage),
            "tokenizer": {"version": 1, "path": "tokenizer.json"},
            "engine": {
                "version": 1,
                "n-threads": stage.param("threads", int, 3),
                "backend": {
                    "version": 1,
                    "type": "QnnHtp",
                    "QnnHtp": _htp(stage, graph),
                    "extensions": EXTENSIONS,
                },
                "model": {
                    "version": 1,
                    "type": "binary",
                    "binary": {"version": 1, "ctx-bins": list(binaries)},
                    "positional-encoding": positions(graph),
                },
            },
        }
    }


def positions(graph: Mapping[str, Any]) -> dict[str, Any]:
    """How Genie is to turn the heads: the same that the graph's float model was measured with."""
    rope = graph["rope"]
    theta = float(rope["theta"])
    found: dict[str, Any] = {
        "type": "rope",
        "rope-dim": int(graph["head_dim"]) // 2,
        # One of Genie's two readers of this key takes whole numbers only.
        "rope-theta": int(theta) if theta.is_integer() else theta,
    }
    if rope["scaling"]:
        scaling = {name.replace("_", "-"): value for name, value in rope["scaling"].items()}
        original = "original-max-position-embeddings"
        scaling[original] = int(scaling[original])
        found["rope-scaling"] = {"rope-type": "llama3", **scaling}
    return found


def bos(graph: Mapping[str, Any], template: chat.Chat | None) -> int:
    """The token that Genie is to put before a prompt; -1 for none.

    A chat template writes the first token itself where there is one, and Genie, told of it, would
    put it there once more. A model without a template gets it from Genie.
    """
    return -1 if template is not None or graph["bos"] is None else int(graph["bos"])


def extensions(stage: Stage, shared: bool) -> dict[str, Any]:
    """The backend's own settings: which chip, how fast, whether binaries share their weights."""
    device = {
        "soc_model": stage.param("soc_model", int, 0),
        "dsp_arch": stage.param("arch", str, ""),
        "cores": [dict(PROFILE)],
    }
    if not device["soc_model"] or not device["dsp_arch"]:
        raise BadInput("the chip is not told", remedy="give soc_model and arch")
    found: dict[str, Any] = {"devices": [device], "memory": {"mem_type": "shared_buffer"}}
    if shared:
        found["context"] = {"weight_sharing_enabled": True}
    return found


def questions(
    stage: Stage, place: Path, template: chat.Chat | None, asked: Sequence[str], room: int
) -> dict[str, str]:
    """Write prompts/01.txt and so on, template.json and long.txt; file to question.

    The long prompt has at most `room` tokens: Genie wants a whole prefill left of the context.
    """
    system = stage.param("system_prompt", str)
    around = chat.prompt(template, QUESTION, system)
    before, after = around.split(QUESTION)
    jsons.write(place / "template.json", {"format": 1, "prefix": before, "suffix": after})
    written = {f"prompts/{number:02}.txt": text for number, text in enumerate(asked, 1)}
    for name, text in written.items():
        _text(place.parent / name, chat.prompt(template, text, system))
    story = (stage.input("texts") / "evaluation.txt").read_text(encoding="utf-8").strip()
    tokenizer = stage.input("quantized") / "tokenizer.json"
    story = _cut(tokenizer, story, room=room - _count(tokenizer, around + LONG))
    if story:
        _text(place / "long.txt", before + LONG + story + after)
    else:
        stage.note("the context is too short for a long prompt")
    return written


def script(first: str) -> str:
    """run.sh: the libraries lie beside it, on the processor's side and on the NPU's."""
    return (
        "#!/system/bin/sh\n"
        "# sh run.sh [PROMPT_FILE [further arguments of genie-t2t-run]]\n"
        'cd "$(dirname "$0")" || exit 1\n'
        'export LD_LIBRARY_PATH="$PWD"\n'
        'export ADSP_LIBRARY_PATH="$PWD"\n'
        f'prompt="${{1:-{first}}}"\n'
        '[ "$#" -gt 0 ] && shift\n'
        "# genie-t2t-run refuses to write a profile over an older one.\n"
        "last=\n"
        'for word in "$@"; do\n'
        '    [ "$last" = --profile ] && rm -f "$word"\n'
        '    last="$word"\n'
        "done\n"
        "chmod +x genie-t2t-run\n"
        f'exec ./genie-t2t-run -c {CONFIG} --prompt_file "$prompt" "$@"\n'
    )


def _ends(graph: Mapping[str, Any]) -> int | list[int]:
    """What ends an answer. Genie also fills up a prefill with it, so there has to be one."""
    ends = [int(token) for token in graph["eos"]]
    if not ends:
        raise BadInput(
            "the model does not say which token ends an answer",
            remedy="add eos_token_id to its generation_config.json",
        )
    return ends if len(ends) > 1 else ends[0]


def _sampler(stage: Stage) -> dict[str, Any]:
    """libGenie 1.21 passes over `greedy`; a single token to choose from does it."""
    found: dict[str, Any] = {"version": 1, "seed": stage.param("sampler_seed", int, 42)}
    if stage.param("greedy", bool, False):
        return {**found, "temp": 1.0, "top-k": 1, "top-p": 1.0, "greedy": True}
    found["temp"] = stage.param("temperature", float, 0.8)
    found["top-k"] = stage.param("top_k", int, 40)
    found["top-p"] = stage.param("top_p", float, 0.95)
    return found


def _htp(stage: Stage, graph: Mapping[str, Any]) -> dict[str, Any]:
    """QnnHtp's block. rope-theta and pos-id-dim are positional-encoding's to say."""
    mask = stage.param("cpu_mask", str, "0xe0")
    if not re.fullmatch(r"0x[0-9a-fA-F]+", mask):
        raise BadInput(f"cpu_mask is {mask!r}", remedy="hexadecimal digits, such as 0xe0")
    return {
        "version": 1,
        "use-mmap": stage.param("use_mmap", bool, True),
        "spill-fill-bufsize": 0,
        "mmap-budget": 0,
        "poll": stage.param("poll", bool, True),
        "cpu-mask": mask,
        "kv-dim": graph["head_dim"],
        "allow-async-init": False,
    }


def _count(tokenizer: Path, text: str) -> int:
    return len(_tokens(tokenizer, text).ids)


def _cut(tokenizer: Path, text: str, *, room: int) -> str:
    """As much of a text as fits into so many tokens, up to the end of a sentence."""
    found = _tokens(tokenizer, text)
    if len(found.ids) > room:
        text = text[: found.offsets[room][0]] if room > 0 else ""
        text = text[: max(text.rfind(end) for end in (". ", ".\n")) + 1]
    return text.strip()


def _tokens(tokenizer: Path, text: str) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(tokenizer)).encode(text, add_special_tokens=False)


def _text(file: Path, text: str) -> None:
    """As it is: Genie reads the last line end of a prompt file as a token."""
    file.write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main(run)
