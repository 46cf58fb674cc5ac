"""Chat templates as transformers renders them, the settings stage, and what libGenie says to it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgekiln.genie import lint
from edgekiln.genie_schema import ENGINE, HTP, POSITIONS, ROOT, Block, Words
from edgekiln.home import project
from tests.unit.test_qnn_settings import GRAPH, LLAMA3

pytestmark = pytest.mark.slow

SCRIPTS = project() / "scripts"
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful AI assistant<|im_end|>\\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA = (
    "{{- bos_token }}{%- set date = strftime_now('%d %b %Y') %}"
    "{%- if messages[0]['role'] == 'system' %}{%- set said = messages[0]['content']|trim %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set said = '' %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: ' + date + '\\n\\n' + said "
    "+ '<|eot_id|>' }}{%- for m in messages %}{{- '<|start_header_id|>' + m['role'] + "
    "'<|end_header_id|>\\n\\n' + m['content'] | trim + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
)
THINKING = (
    "{% for m in messages %}{% if m.role == 'assistant' and loop.last %}"
    "{{ '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' + m.content + '<|im_end|>\\n' }}"
    "{% else %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% else %}{% if not m.content %}{% continue %}{% endif %}"
    "{{ 'Q: ' + m.content + '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'A: ' }}{% endif %}"
)
TOKENS = {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}}
# Template, special tokens: the question without a system message, and with one.
TEMPLATES: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "chatml": (
        CHATML,
        {"bos_token": "<|im_start|>"},
        "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n",
    ),
    "llama": (
        LLAMA,
        TOKENS,
        "<s><|start_header_id|>user<|end_header_id|>\n\nHi?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<s><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\nBe brief."
        "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "thinking": (
        THINKING,
        {},
        "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n",
    ),
    "marked": (MARKED, {}, "Q: Hi?\nA: ", "Q: Be brief.\nQ: Hi?\nA: "),
}
ASK = """
import json, sys
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
import chat
template = chat.load(Path(sys.argv[3]))
print(json.dumps([chat.prompt(template, "Hi?"), chat.prompt(template, "Hi?", "Be brief.")]))
"""


def asked(python: Path, model: Path, code: str = ASK) -> Any:
    """What a program of a few lines prints about a model folder."""
    command = [str(python), "-c", code, str(SCRIPTS), str(SCRIPTS / "qnn"), str(model)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_question_is_put_into_the_model_s_own_template(
    qnn_python: Path, tmp_path: Path, name: str
) -> None:
    template, special, plain, briefed = TEMPLATES[name]
    config = {"chat_template": template, **special}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert asked(qnn_python, tmp_path) == [plain, briefed]


def test_a_template_that_wants_turns_about_keeps_its_first_token(
    qnn_python: Path, tmp_path: Path
) -> None:
    config = {"chat_template": MISTRAL, **TOKENS}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    plain = asked(
        qnn_python, tmp_path, ASK.replace(', chat.prompt(template, "Hi?", "Be brief.")', "")
    )
    assert plain == ["<s>[INST] Hi? [/INST]"]


BROKEN = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
import chat, stagekit, json
try:
    chat.prompt(chat.load(Path(sys.argv[3])), "Hi?")
except stagekit.BadInput as error:
    print(json.dumps([str(error), error.remedy]))
"""


@pytest.mark.parametrize(
    ("content", "said", "remedy"),
    [
        (b"{% for x in %}", "chat template fails", "chat_template.jinja"),
        (b"{{ raise_exception('no') }}", "chat template fails: no", "chat_template.jinja"),
        (b"{{ 1 + 'no' }}", "chat template fails: unsupported operand", "chat_template.jinja"),
        (b"{{ messages[0].content }} \xff", "chat_template.jinja is not UTF-8", "again"),
    ],
)
def test_a_template_that_is_broken_is_called_that(
    qnn_python: Path, tmp_path: Path, content: bytes, said: str, remedy: str
) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(content)
    told = asked(qnn_python, tmp_path, BROKEN)
    assert said in told[0]
    assert remedy in told[1]


def beside(place: Path) -> None:
    (place / "chat_template.jinja").write_text("file: {{ messages[0].content }}")


def in_json(place: Path) -> None:
    text = json.dumps({"chat_template": "json: {{ messages[-1].content }}"})
    (place / "chat_template.json").write_text(text)


def in_list(place: Path) -> None:
    entries = [
        {"name": "tool_use", "template": "no"},
        {"name": "default", "template": "list: {{ messages[-1].content }}"},
    ]
    (place / "tokenizer_config.json").write_text(json.dumps({"chat_template": entries}))


def nowhere(place: Path) -> None:
    (place / "tokenizer_config.json").write_text("{}")


@pytest.mark.parametrize(
    ("write", "plain"),
    [(beside, "file: Hi?"), (in_json, "json: Hi?"), (in_list, "list: Hi?"), (nowhere, "Hi?")],
)
def test_the_template_is_found_where_models_keep_it(
    qnn_python: Path, tmp_path: Path, write: Callable[[Path], None], plain: str
) -> None:
    write(tmp_path)
    assert asked(qnn_python, tmp_path)[0] == plain


TRANSFORMERS = """
import json, sys
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[3])
asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi?"}]
print(json.dumps(tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)))
"""


def test_it_is_what_transformers_makes_of_it(
    qnn_python: Path, mnn_python: Path, tiny: Path
) -> None:
    assert asked(qnn_python, tiny)[1] == asked(mnn_python, tiny, TRANSFORMERS)


class Settings:
    """A place with what the stages before have left, and the stage run on it."""

    def __init__(self, place: Path, python: Path, model: Path) -> None:
        self.place, self.python = place, python
        about = json.loads((model / "config.json").read_text())
        rope = {"theta": about["rope_parameters"]["rope_theta"], "scaling": None}
        sizes = {"vocab": about["vocab_size"], "head_dim": about["head_dim"]}
        self.graph = {**GRAPH, **sizes, "rope": rope, "bos": 0, "eos": [1]}
        for name in ("quantized", "binaries"):
            (place / "in" / name).mkdir(parents=True)
        (place / "in" / "model").symlink_to(model)
        (place / "in" / "texts").symlink_to(SCRIPTS / "qnn" / "data")
        tokenizer = (model / "tokenizer.json").read_bytes()
        (place / "in" / "quantized" / "tokenizer.json").write_bytes(tokenizer)

    def run(self, **params: Any) -> tuple[int, list[dict[str, Any]]]:
        quantized, binaries = self.place / "in" / "quantized", self.place / "in" / "binaries"
        (quantized / "graph.json").write_text(json.dumps(self.graph))
        prompts = [{"prompt": "What is the capital of France?"}, {"prompt": "Who are you?"}]
        (quantized / "quality.json").write_text(json.dumps({"prompts": prompts}))
        files = [{"file": f"weight_sharing_model_{i}_of_2.serialized.bin"} for i in (1, 2)]
        text = json.dumps({"shared": True, "binaries": files})
        (binaries / "compile.json").write_text(text)
        (self.place / "out").mkdir()
        chip = {"soc_model": 69, "arch": "v79"}
        (self.place / "params.json").write_text(json.dumps({**chip, **params}))
        places = {"KILN_IN": "in", "KILN_OUT": "out", "KILN_PARAMS": "params.json"}
        done = subprocess.run(
            [str(self.python), str(SCRIPTS / "qnn" / "settings.py")],
            env={
                **os.environ,
                "PYTHONPATH": str(SCRIPTS),
                **{name: str(self.place / path) for name, path in places.items()},
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]

    def bundle(self) -> Path:
        """The folder for the phone, with the binaries' places taken."""
        made = self.place / "out" / "settings"
        (made / "models").mkdir()
        for i in (1, 2):
            (made / "models" / f"weight_sharing_model_{i}_of_2.serialized.bin").write_bytes(b"")
        tokenizer = (self.place / "in" / "quantized" / "tokenizer.json").read_bytes()
        (made / "tokenizer.json").write_bytes(tokenizer)
        return made


@pytest.fixture
def settings(tmp_path: Path, qnn_python: Path, tiny: Path) -> Settings:
    return Settings(tmp_path / "stage", qnn_python, tiny)


def test_every_file_of_the_phone_is_written_and_passes_the_linter(settings: Settings) -> None:
    code, _ = settings.run()
    assert code == 0
    bundle = settings.bundle()
    names = {p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file()}
    assert {"genie_config.json", "htp_backend_ext_config.json", "run.sh"} <= names
    assert {"prompts/01.txt", "prompts/02.txt", "prompts/template.json"} <= names
    found = lint(bundle, settings.place / "in" / "model")
    assert not [p.text for p in found if p.level == "error"]


def test_prompts_are_rendered_and_the_template_is_there_for_more(settings: Settings) -> None:
    settings.run(system_prompt="Be brief.")
    prompts = settings.place / "out" / "settings" / "prompts"
    template = json.loads((prompts / "template.json").read_text())
    first = (prompts / "01.txt").read_text()
    assert first == template["prefix"] + "What is the capital of France?" + template["suffix"]
    assert template["prefix"].startswith("<|im_start|>system\nBe brief.<|im_end|>\n")
    long = (prompts / "long.txt").read_text()
    assert long.startswith(template["prefix"]) and long.endswith(template["suffix"])


def test_the_long_prompt_leaves_room_for_an_answer(settings: Settings) -> None:
    settings.run()
    text = (settings.place / "out" / "settings" / "prompts" / "long.txt").read_text()
    # The tiny tokenizer makes a token of each byte, and the markers are one each.
    tokens = len(text.replace("<|im_start|>", "x").replace("<|im_end|>", "x").encode())
    assert tokens <= 1024 - 128 - 200


def test_a_context_too_short_for_a_long_prompt_gets_none(settings: Settings) -> None:
    settings.graph["context"] = 256
    code, events = settings.run()
    assert code == 0
    assert any("too short" in e.get("text", "") for e in events)
    assert not (settings.place / "out" / "settings" / "prompts" / "long.txt").exists()


CREATE = "codes = [create(json.dumps(c).encode(), ctypes.byref(handle())) for c in configs]"
ACCEPTS = f"""
import ctypes, json, os, sys
sys.path[:0] = sys.argv[1:3]
import genie
library = ctypes.CDLL(str(genie.wheel_libraries() / genie.LIBRARY))
create = library.GenieDialogConfig_createFromJson
create.argtypes = [ctypes.c_char_p, ctypes.POINTER(ctypes.c_void_p)]
os.chdir(sys.argv[3])
quiet = os.open(os.devnull, os.O_WRONLY)
kept = os.dup(1)
os.dup2(quiet, 1)
configs = json.load(open("configs.json"))
handle = ctypes.c_void_p
{CREATE}
ctypes.CDLL(None).fflush(None)
os.dup2(kept, 1)
print(json.dumps(codes))
"""


def accepted(python: Path, folder: Path, configs: list[Any]) -> list[bool]:
    """Whether libGenie takes each configuration, with its files in that folder."""
    (folder / "configs.json").write_text(json.dumps(configs))
    found: list[int] = asked(python, folder, ACCEPTS)
    return [code == 0 for code in found]


@pytest.mark.parametrize("scaling", [None, LLAMA3])
def test_libgenie_takes_the_configuration(settings: Settings, scaling: Any) -> None:
    settings.graph["rope"] = {"theta": 500000.0, "scaling": scaling}
    settings.graph["eos"] = [1, 2, 3]
    settings.run(greedy=True)
    bundle = settings.bundle()
    config = json.loads((bundle / "genie_config.json").read_text())
    broken = json.loads((bundle / "genie_config.json").read_text())
    broken["dialog"]["engine"]["backend"]["QnnHtp"]["pos-id-dim"] = 32
    assert accepted(settings.python, bundle, [config, broken]) == [True, False]


def known(block: Block, where: tuple[str, ...]) -> list[tuple[tuple[str, ...], Any]]:
    """Every plain key of a block and of those in it, with a value of its kind."""
    values = {"whole number": 1, "number": 1.5, "text": "x", "true or false": True, "list": []}
    found: list[tuple[tuple[str, ...], Any]] = []
    for name, kind in block.more.items():
        if isinstance(kind, Block):
            found += known(kind, (*where, name))
        elif isinstance(kind, Words):
            found.append(((*where, name), kind.of[0]))
        elif kind in values:
            found.append(((*where, name), values[kind]))
    return found


def test_libgenie_knows_every_key_that_the_linter_knows(settings: Settings) -> None:
    settings.run()
    bundle = settings.bundle()
    text = (bundle / "genie_config.json").read_text()
    engine = ("dialog", "engine")
    model = (*engine, "model")
    keys = [
        *known(ROOT.needed["dialog"], ("dialog",)),  # type: ignore[arg-type]
        *known(ENGINE, engine),
        *known(POSITIONS, (*model, "positional-encoding")),
        *[((*engine, "backend", "QnnHtp", n), v) for (n,), v in known(HTP, ())],
    ]
    unknown = _unknown(settings.python, bundle, text, keys)
    # This one is for samplers of type custom.
    assert unknown == ["dialog.sampler.callback-name"]


UNKNOWN = (
    ACCEPTS.replace("print(json.dumps(codes))", "").replace(
        CREATE,
        """
import tempfile
told = []
for config in configs:
    with tempfile.TemporaryFile() as heard:
        os.dup2(heard.fileno(), 1)
        os.dup2(heard.fileno(), 2)
        create(json.dumps(config).encode(), ctypes.byref(ctypes.c_void_p()))
        ctypes.CDLL(None).fflush(None)
        heard.seek(0)
        told.append(heard.read().decode(errors="replace"))
""",
    )
    + "print(json.dumps(told))\n"
)


def _unknown(
    python: Path, bundle: Path, text: str, keys: list[tuple[tuple[str, ...], Any]]
) -> list[str]:
    """The keys that libGenie calls additional when they are put into a good configuration."""
    configs = []
    for path, value in [*keys, (("dialog", "no-such-key"), 1)]:
        config = json.loads(text)
        block = config
        for name in path[:-1]:
            block = block.setdefault(name, {})
        block[path[-1]] = value
        configs.append(config)
    (bundle / "configs.json").write_text(json.dumps(configs))
    told = asked(python, bundle, UNKNOWN)
    wrong = [
        ".".join(path)
        for (path, _), words in zip([*keys, (("no-such-key",), 1)], told, strict=True)
        if f"additional property '{path[-1]}'" in words
    ]
    assert wrong[-1:] == ["no-such-key"]
    return wrong[:-1]
