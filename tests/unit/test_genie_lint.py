"""The linter for Genie bundles: a good one passes, and each rule has one that it finds."""

from __future__ import annotations

import contextlib
import copy
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgekiln.errors import ArtifactError
from edgekiln.genie import RULES, lint
from edgekiln.home import project
from edgekiln.problems import Problem

LLAMA3 = {
    "rope-type": "llama3",
    "factor": 32.0,
    "low-freq-factor": 1.0,
    "high-freq-factor": 4.0,
    "original-max-position-embeddings": 8192,
}
CONFIG: dict[str, Any] = {
    "dialog": {
        "version": 1,
        "type": "basic",
        "context": {
            "version": 1,
            "size": 4096,
            "n-vocab": 128256,
            "bos-token": 128000,
            "eos-token": [128001, 128008, 128009],
        },
        "sampler": {"version": 1, "seed": 42, "temp": 0.8, "top-k": 40, "top-p": 0.95},
        "tokenizer": {"version": 1, "path": "tokenizer.json"},
        "engine": {
            "version": 1,
            "n-threads": 3,
            "backend": {
                "version": 1,
                "type": "QnnHtp",
                "QnnHtp": {
                    "version": 1,
                    "use-mmap": True,
                    "spill-fill-bufsize": 0,
                    "mmap-budget": 0,
                    "poll": True,
                    "cpu-mask": "0xe0",
                    "kv-dim": 64,
                    "allow-async-init": False,
                },
                "extensions": "htp_backend_ext_config.json",
            },
            "model": {
                "version": 1,
                "type": "binary",
                "binary": {
                    "version": 1,
                    "ctx-bins": ["models/weight_sharing_model_1_of_1.serialized.bin"],
                },
                "positional-encoding": {
                    "type": "rope",
                    "rope-dim": 32,
                    "rope-theta": 500000,
                    "rope-scaling": LLAMA3,
                },
            },
        },
    }
}
EXTENSIONS: dict[str, Any] = {
    "devices": [
        {
            "soc_model": 69,
            "dsp_arch": "v79",
            "cores": [{"core_id": 0, "perf_profile": "burst", "rpc_control_latency": 100}],
        }
    ],
    "memory": {"mem_type": "shared_buffer"},
    "context": {"weight_sharing_enabled": True},
}
MODEL = {
    "model_type": "llama",
    "hidden_size": 2048,
    "num_attention_heads": 32,
    "head_dim": 64,
    "vocab_size": 128256,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "eos_token_id": [128001, 128008, 128009],
}
LIBRARIES = (
    "libGenie.so",
    "libQnnHtp.so",
    "libQnnHtpNetRunExtensions.so",
    "libQnnSystem.so",
    "libQnnHtpV79Stub.so",
    "libQnnHtpV79Skel.so",
)
BINARY = b"\0" * 64 + b"ar128-cl4096_1_of_1\0ar1-cl4096_1_of_1\0"


class Made:
    """A good bundle in a folder, to be spoiled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = copy.deepcopy(CONFIG)
        self.extensions = copy.deepcopy(EXTENSIONS)
        self.model: dict[str, Any] | None = copy.deepcopy(MODEL)
        self.files: dict[str, bytes] = {
            "models/weight_sharing_model_1_of_1.serialized.bin": BINARY,
            "tokenizer.json": json.dumps(
                {"model": {"vocab": {"a": 0, "b": 127999}}, "added_tokens": [{"id": 128255}]}
            ).encode(),
            "prompts/01.txt": b"What is the capital of France?\n",
        }

    @property
    def engine(self) -> dict[str, Any]:
        engine: dict[str, Any] = self.config["dialog"]["engine"]
        return engine

    @property
    def htp(self) -> dict[str, Any]:
        htp: dict[str, Any] = self.engine["backend"]["QnnHtp"]
        return htp

    @property
    def rope(self) -> dict[str, Any]:
        rope: dict[str, Any] = self.engine["model"]["positional-encoding"]
        return rope

    def write(self) -> Path:
        """The bundle on disk."""
        self.folder.mkdir(parents=True, exist_ok=True)
        texts = {"genie_config.json": self.config, "htp_backend_ext_config.json": self.extensions}
        if self.model is not None:
            texts["config.json"] = self.model
        files = {**{name: json.dumps(text).encode() for name, text in texts.items()}, **self.files}
        for name, content in files.items():
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_bytes(content)
        return self.folder

    def problems(self, *levels: str) -> list[Problem]:
        """What the linter finds, of these levels; of all that need doing by default."""
        found = lint(self.write())
        return [p for p in found if p.level in (levels or ("error", "warning"))]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path / "bundle")


def runtime(build: str = "2.51.0.260929181845") -> dict[str, bytes]:
    """Files that say which build they are of, as the vendor's libraries do."""
    words = b"\0v" + build.encode() + b"\0AISW_VERSION: " + ".".join(build.split(".")[:3]).encode()
    return {**dict.fromkeys(LIBRARIES, words + b"\0"), "genie-t2t-run": b"program"}


def test_a_good_bundle_has_nothing_to_be_done(made: Made) -> None:
    assert made.problems() == []
    assert [p.what for p in made.problems("note")] != []


def test_a_good_bundle_with_its_libraries_has_nothing_at_all(made: Made) -> None:
    made.files |= runtime()
    assert lint(made.write()) == []


def spoil_key(m: Made) -> None:
    m.htp["use-mmapp"] = m.htp.pop("use-mmap")


def spoil_type(m: Made) -> None:
    m.config["dialog"]["context"]["size"] = "4096"


def spoil_word(m: Made) -> None:
    m.config["dialog"]["type"] = "basik"


def spoil_rope_key(m: Made) -> None:
    m.rope["rope_dim"] = 32


def spoil_twice(m: Made) -> None:
    m.htp.update({"pos-id-dim": 32, "rope-theta": 500000})


def spoil_nowhere(m: Made) -> None:
    del m.engine["model"]["positional-encoding"]


def spoil_rope_dim(m: Made) -> None:
    m.rope["rope-dim"] = 64


def spoil_pos_id(m: Made) -> None:
    del m.engine["model"]["positional-encoding"]
    m.htp.update({"pos-id-dim": 64, "rope-theta": 500000})


def spoil_head(m: Made) -> None:
    m.htp["kv-dim"], m.rope["rope-dim"] = 128, 64


def spoil_factor(m: Made) -> None:
    m.rope["rope-scaling"] = {**LLAMA3, "factor": 8.0}


def spoil_published(m: Made) -> None:
    m.model = None
    spoil_factor(m)


def spoil_no_scaling(m: Made) -> None:
    del m.rope["rope-scaling"]


def spoil_theta(m: Made) -> None:
    m.rope["rope-theta"] = 10000


def spoil_binary_name(m: Made) -> None:
    m.engine["model"]["binary"]["ctx-bins"] = ["models/weight_sharing_model_1_of_1.serialised.bin"]


def spoil_tokenizer_path(m: Made) -> None:
    m.config["dialog"]["tokenizer"]["path"] = "tokeniser.json"


def spoil_place(m: Made) -> None:
    m.config["dialog"]["tokenizer"]["path"] = "/data/local/tmp/genie/tokenizer.json"


def spoil_no_binaries(m: Made) -> None:
    m.engine["model"]["binary"]["ctx-bins"] = []


def spoil_part(m: Made) -> None:
    m.files["models/weight_sharing_model_1_of_2.serialized.bin"] = BINARY
    m.engine["model"]["binary"]["ctx-bins"] = ["models/weight_sharing_model_1_of_2.serialized.bin"]


def spoil_length(m: Made) -> None:
    m.config["dialog"]["context"]["size"] = 2048


def spoil_vocabulary(m: Made) -> None:
    m.model = None
    m.config["dialog"]["context"]["n-vocab"] = 128200


def spoil_other_model(m: Made) -> None:
    m.config["dialog"]["context"]["n-vocab"] = 151936


def spoil_bos(m: Made) -> None:
    m.config["dialog"]["context"]["bos-token"] = 151643


def spoil_eos(m: Made) -> None:
    m.config["dialog"]["context"]["eos-token"] = 128001


def spoil_endless(m: Made) -> None:
    m.config["dialog"]["context"]["eos-token"] = -1


def spoil_extensions(m: Made) -> None:
    m.extensions["devices"][0]["perf_profil"] = "burst"


def spoil_chip(m: Made) -> None:
    m.extensions["devices"][0]["dsp_arch"] = "v75"


def spoil_two_chips(m: Made) -> None:
    m.extensions["devices"][0]["soc_id"] = 57


def spoil_devices(m: Made) -> None:
    m.extensions["devices"] = []


def spoil_sharing(m: Made) -> None:
    del m.extensions["context"]


def spoil_old_chip(m: Made) -> None:
    m.extensions["devices"][0] |= {"soc_model": 36, "dsp_arch": "v69"}


def spoil_skel(m: Made) -> None:
    m.files |= runtime()
    m.files["libQnnHtpV75Skel.so"] = m.files.pop("libQnnHtpV79Skel.so")


def spoil_build(m: Made) -> None:
    m.files |= runtime()
    m.files["libQnnHtpV79Skel.so"] = runtime("2.36.0.250627103412")["libQnnHtpV79Skel.so"]


def spoil_begin(m: Made) -> None:
    tokens = [{"id": 128000, "content": "<|begin_of_text|>"}, {"id": 128255, "content": "x"}]
    text = json.dumps({"model": {"vocab": {"a": 0}}, "added_tokens": tokens})
    m.files["tokenizer.json"] = text.encode()
    m.files["prompts/01.txt"] = b"<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi"


def spoil_greedy(m: Made) -> None:
    m.config["dialog"]["sampler"]["greedy"] = True


def spoil_half(m: Made) -> None:
    m.config["dialog"]["context"]["size"] = 256
    name = "models/weight_sharing_model_1_of_1.serialized.bin"
    m.files[name] = BINARY.replace(b"4096", b"0256")


def spoil_prompt(m: Made) -> None:
    m.files["prompts/02.txt"] = b"<|user|>\\nHello\\n"


BROKEN: list[tuple[Callable[[Made], None], str, str, str]] = [
    (spoil_key, "error", "QnnHtp.use-mmapp", "did you mean use-mmap?"),
    (spoil_key, "error", "QnnHtp.use-mmap", "add it"),
    (spoil_type, "error", "context.size", "a whole number"),
    (spoil_word, "error", "dialog.type", "did you mean basic?"),
    (spoil_rope_key, "error", "positional-encoding.rope_dim", "did you mean rope-dim?"),
    (spoil_twice, "error", "engine.backend.QnnHtp", "leave them out"),
    (spoil_nowhere, "warning", "dialog.engine", "add positional-encoding"),
    (spoil_rope_dim, "error", "dialog.engine", "half of kv-dim"),
    (spoil_pos_id, "error", "dialog.engine", "pos-id-dim is half of kv-dim"),
    (spoil_head, "error", "QnnHtp.kv-dim", "kv-dim 64"),
    (spoil_factor, "error", "rope-scaling.factor", "32.0"),
    (spoil_published, "warning", "rope-scaling.factor", "published configurations"),
    (spoil_no_scaling, "error", "positional-encoding", "add rope-scaling"),
    (spoil_theta, "error", "rope-theta", "500000"),
    (spoil_binary_name, "error", "ctx-bins[0]", "did you mean weight_sharing"),
    (spoil_tokenizer_path, "error", "tokenizer.path", "did you mean tokenizer.json?"),
    (spoil_place, "warning", "tokenizer.path", "from the bundle's folder"),
    (spoil_no_binaries, "error", "model.binary", "ctx-bins"),
    (spoil_part, "error", "ctx-bins", "name every part"),
    (spoil_length, "error", "context.size", "4096"),
    (spoil_vocabulary, "error", "n-vocab", "of one model"),
    (spoil_other_model, "error", "n-vocab", "128256"),
    (spoil_bos, "error", "bos-token", "generation_config"),
    (spoil_eos, "warning", "eos-token", "128009"),
    (spoil_endless, "error", "eos-token", "eos_token_id"),
    (spoil_extensions, "warning", "devices[0].perf_profil", ""),
    (spoil_chip, "error", "dsp_arch", "v79"),
    (spoil_two_chips, "error", "devices[0]", "keep one"),
    (spoil_devices, "error", "htp_backend_ext_config.json", "soc_model"),
    (spoil_sharing, "warning", "htp_backend_ext_config.json", "share_resources"),
    (spoil_old_chip, "error", "htp_backend_ext_config.json", "v73 or newer"),
    (spoil_skel, "error", "bundle", "the same SDK"),
    (spoil_skel, "warning", "libQnnHtpV75Skel.so", "leave it out"),
    (spoil_build, "error", "bundle", "from one SDK"),
    (spoil_begin, "warning", "bos-token", "leave it out"),
    (spoil_greedy, "warning", "sampler.greedy", "top-k"),
    (spoil_half, "error", "model.binary", "another context length"),
    (spoil_prompt, "warning", "prompts/02.txt", "real line ends"),
]


@pytest.mark.parametrize(
    ("spoil", "level", "where", "remedy"), BROKEN, ids=[f"{b[0].__name__}-{b[2]}" for b in BROKEN]
)
def test_what_is_broken_is_found_and_told(
    made: Made, spoil: Callable[[Made], None], level: str, where: str, remedy: str
) -> None:
    spoil(made)
    found = made.problems()
    assert [p for p in found if p.level == level and where in p.where and remedy in p.remedy], (
        "\n".join(p.text for p in found)
    )


def test_every_rule_has_a_bundle_that_breaks_it(tmp_path: Path) -> None:
    silent = {rule.__name__ for rule in RULES}
    for number, (spoil, *_) in enumerate(BROKEN):
        made = Made(tmp_path / str(number) / "bundle")
        spoil(made)
        from edgekiln.genie import _bundles

        for bundle in _bundles(made.write(), None):
            silent -= {r.__name__ for r in RULES if any(p.level != "note" for p in r(bundle))}
    assert not silent


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.extensions["devices"][0].update(soc_id=69),
        lambda m: m.extensions["devices"].__setitem__(0, {"soc_id": 69, "dsp_arch": "v79"}),
        lambda m: m.extensions.update(context={}, groupContext={"share_resources": True}),
        lambda m: m.config["dialog"]["sampler"].update({"greedy": True, "top-k": 1}),
    ],
)
def test_what_real_bundles_do_differently_is_accepted(
    made: Made, change: Callable[[Made], None]
) -> None:
    change(made)
    assert made.problems() == []


def test_a_bundle_without_positional_encoding_of_the_older_kind_is_accepted(made: Made) -> None:
    made.model = None
    del made.engine["model"]["positional-encoding"]
    made.htp.update({"pos-id-dim": 32, "rope-theta": 500000})
    assert made.problems() == []


def test_the_llama_3_1_scaling_by_8_is_not_blamed(made: Made) -> None:
    made.model = None
    made.htp["kv-dim"], made.rope["rope-dim"] = 128, 64
    made.rope["rope-scaling"] = {**LLAMA3, "factor": 8.0}
    assert made.problems() == []


def test_a_length_that_cannot_be_told_is_said(made: Made) -> None:
    made.files["models/weight_sharing_model_1_of_1.serialized.bin"] = b"no names in here"
    assert any("do not tell lengths" in p.what for p in made.problems("note"))


def test_a_bundle_of_ours_tells_its_lengths_in_its_manifest(made: Made) -> None:
    name = "weight_sharing_model_1_of_1.serialized.bin"
    binaries = [{"file": name, "graphs": [{"context": 1024}, {"context": 1024}]}]
    manifest = {"figures": {"binaries": {"binaries": binaries}}}
    made.files["manifest.json"] = json.dumps(manifest).encode()
    assert any("made for 1024" in p.what for p in made.problems("error"))


def test_the_model_may_lie_elsewhere(made: Made, tmp_path: Path) -> None:
    made.model = None
    spoil_factor(made)
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(MODEL))
    for given in (model, model / "config.json"):
        assert [p for p in lint(made.write(), given) if p.level == "error"]


@pytest.mark.parametrize("files", [{}, {"a.json": "{"}, {"a.json": "[]"}])
def test_a_folder_without_a_configuration_is_refused(tmp_path: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ArtifactError, match="no Genie configuration"):
        lint(tmp_path)


def test_damage_of_any_kind_is_a_finding_and_no_traceback(made: Made) -> None:
    for value in (None, 3, [], "x", {}):
        for key in ("context", "tokenizer", "engine", "sampler"):
            made.config["dialog"] = {**copy.deepcopy(CONFIG["dialog"]), key: value}
            assert made.problems("error"), (key, value)


def places(value: Any, *above: str | int) -> Iterator[tuple[str | int, ...]]:
    """The way to every value inside a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, held in inner:
        yield (*above, key)
        if isinstance(held, (dict, list)):
            yield from places(held, *above, key)


@pytest.mark.parametrize(
    "name", ["genie_config.json", "htp_backend_ext_config.json", "config.json", "tokenizer.json"]
)
def test_no_value_of_another_type_stops_the_linter(made: Made, name: str) -> None:
    made.files |= runtime()
    file = made.write() / name
    whole = json.loads(file.read_bytes())
    for place in places(whole):
        for wrong in (None, True, "", "x", [], [1, "x", {}], {}, float("inf")):
            spoilt = copy.deepcopy(whole)
            within = spoilt
            for key in place[:-1]:
                within = within[key]
            within[place[-1]] = wrong
            file.write_text(json.dumps(spoilt))
            with contextlib.suppress(ArtifactError):
                lint(made.folder)


@pytest.mark.parametrize(("spoil", "code"), [(None, 0), (spoil_twice, 16)])
def test_the_command_leaves_with_its_own_code(
    made: Made, spoil: Callable[[Made], None] | None, code: int
) -> None:
    if spoil:
        spoil(made)
    done = subprocess.run(
        [sys.executable, "-m", "edgekiln", "bundle", "lint", str(made.write())],
        env={"PYTHONPATH": str(project() / "src"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert ("leave them out" in done.stdout) == bool(spoil)
    assert "Traceback" not in done.stderr
