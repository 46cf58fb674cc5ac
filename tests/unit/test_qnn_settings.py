"""What Genie's configuration is made of: the graph's own numbers, and the options."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path[:0] = [str(SCRIPTS), str(SCRIPTS / "qnn")]

import settings  # noqa: E402

from edgekiln.genie_schema import EXTENSIONS, ROOT, misfits  # noqa: E402
from stagekit import BadInput, Stage  # noqa: E402

GRAPH: dict[str, Any] = {
    "context": 1024,
    "prefill": 128,
    "vocab": 49152,
    "head_dim": 64,
    "bos": 1,
    "eos": [2],
    "rope": {"theta": 100000.0, "scaling": None},
}
LLAMA3 = {
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192.0,
}
CHIP = {"soc_model": 69, "arch": "v79"}


def stage(**params: Any) -> Stage:
    """A stage with parameters and nothing else."""
    nowhere = Path("/nowhere")
    return Stage(inputs=nowhere, outputs=nowhere, params=params, cpus=1, events=io.StringIO())


def dialog(graph: dict[str, Any] | None = None, **params: Any) -> dict[str, Any]:
    """The dialog's block."""
    made = settings.dialog(stage(**params), {**GRAPH, **(graph or {})}, ["models/a.bin"], -1)
    assert not list(misfits(made, ROOT, ""))
    found: dict[str, Any] = made["dialog"]
    return found


def test_the_sizes_are_the_graph_s() -> None:
    made = dialog()
    assert made["context"] == {
        "version": 1, "size": 1024, "n-vocab": 49152, "bos-token": -1, "eos-token": 2
    }  # fmt: skip
    assert made["engine"]["backend"]["QnnHtp"]["kv-dim"] == 64
    assert made["engine"]["model"]["binary"]["ctx-bins"] == ["models/a.bin"]


def test_positions_are_said_in_one_place_only() -> None:
    engine = dialog()["engine"]
    assert engine["model"]["positional-encoding"] == {
        "type": "rope", "rope-dim": 32, "rope-theta": 100000
    }  # fmt: skip
    assert not {"pos-id-dim", "rope-theta"} & set(engine["backend"]["QnnHtp"])


def test_llama3_s_scaling_is_the_model_s_own() -> None:
    rope = settings.positions({**GRAPH, "rope": {"theta": 500000.0, "scaling": LLAMA3}})
    assert rope["rope-scaling"] == {
        "rope-type": "llama3",
        "factor": 32.0,
        "low-freq-factor": 1.0,
        "high-freq-factor": 4.0,
        "original-max-position-embeddings": 8192,
    }


def test_a_base_that_is_no_whole_number_stays_one() -> None:
    assert settings.positions({**GRAPH, "rope": {"theta": 10000.5, "scaling": None}})[
        "rope-theta"
    ] == pytest.approx(10000.5)


@pytest.mark.parametrize(
    ("eos", "said"), [([2], 2), ([128001, 128008, 128009], [128001, 128008, 128009])]
)
def test_every_token_that_ends_an_answer_is_named(eos: list[int], said: Any) -> None:
    assert dialog({"eos": eos})["context"]["eos-token"] == said


def test_a_model_that_names_no_end_is_refused() -> None:
    with pytest.raises(BadInput, match="ends an answer"):
        dialog({"eos": []})


def test_the_first_token_is_the_template_s_to_write_and_else_genie_s() -> None:
    assert settings.bos({**GRAPH, "bos": None}, None) == -1
    assert settings.bos(GRAPH, None) == 1
    assert settings.bos(GRAPH, settings.chat.Chat(source="", special={})) == -1


def test_the_sampler_s_values_are_the_options() -> None:
    made = dialog(temperature=0.6, top_k=20, top_p=0.9, sampler_seed=7)
    assert made["sampler"] == {
        "version": 1, "seed": 7, "temp": 0.6, "top-k": 20, "top-p": 0.9
    }  # fmt: skip
    greedy = dialog(greedy=True, top_k=20)["sampler"]
    assert (greedy["greedy"], greedy["top-k"]) == (True, 1)


def test_the_extensions_name_the_chip_and_whether_weights_are_shared() -> None:
    shared = settings.extensions(stage(**CHIP), True)
    assert shared["devices"][0]["soc_model"] == 69
    assert shared["devices"][0]["dsp_arch"] == "v79"
    assert shared["context"] == {"weight_sharing_enabled": True}
    apart = settings.extensions(stage(soc_model=36, arch="v69"), False)
    assert "context" not in apart
    assert not list(misfits(shared, EXTENSIONS, ""))


@pytest.mark.parametrize("params", [{}, {"soc_model": 69}, {"arch": "v79"}])
def test_a_chip_that_is_not_told_is_refused(params: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        settings.extensions(stage(**params), True)


def test_a_mask_that_is_none_is_refused() -> None:
    with pytest.raises(BadInput):
        dialog(cpu_mask="all")


# Stands for genie-t2t-run: it tells what it was given, and refuses as the real one does.
PROGRAM = """#!/bin/sh
echo "$PWD|$LD_LIBRARY_PATH|$ADSP_LIBRARY_PATH|$*"
[ -e profile.json ] && { echo "already exists"; exit 1; }
exit 0
"""


@pytest.mark.parametrize(
    ("words", "given"),
    [
        ([], "-c genie_config.json --prompt_file prompts/01.txt"),
        (["prompts/long.txt"], "-c genie_config.json --prompt_file prompts/long.txt"),
        (
            ["prompts/long.txt", "--profile", "profile.json"],
            "-c genie_config.json --prompt_file prompts/long.txt --profile profile.json",
        ),
    ],
)
def test_run_sh_starts_genie_in_its_own_folder(
    tmp_path: Path, words: list[str], given: str
) -> None:
    place = tmp_path / "bundle with a space"
    place.mkdir()
    (place / "run.sh").write_text(settings.script("prompts/01.txt"))
    (place / "genie-t2t-run").write_text(PROGRAM)
    if words:
        (place / "profile.json").write_text("of last time")
    expected = 0 if "--profile" in words or not words else 1
    done = subprocess.run(
        ["sh", str(place / "run.sh"), *words], cwd="/", capture_output=True, text=True, check=False
    )
    assert done.returncode == expected
    assert done.stdout.splitlines()[0] == f"{place}|{place}|{place}|{given}"
