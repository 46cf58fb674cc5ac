"""A model directory is looked into before anything is spent on it."""

from __future__ import annotations

import json
import os
import pickle
import tempfile
import zipfile
from pathlib import Path

import pytest

from edgekiln.errors import AccessError, KilnError, ModelError
from edgekiln.models.inspect import inspect
from edgekiln.models.model import name_of, slug
from tests.unit import tinymodel


def refused(path: Path, error: type[KilnError] = ModelError, *, trust: bool = False) -> str:
    """What inspect says when it refuses, all its lines; each is one line."""
    with pytest.raises(error) as caught:
        inspect(path, trust_pickle=trust)
    lines = caught.value.lines()
    assert all("\n" not in line for line in lines)
    return "\n".join(lines)


def test_a_whole_model_is_described_from_its_headers(tmp_path: Path) -> None:
    model = inspect(tinymodel.make(tmp_path / "My Model"))
    assert (model.name, model.family, model.dtype) == ("my-model", "llama", "float16")
    assert model.parameters == 16 * 8 + 8 * 8 + 8
    assert model.weight_bytes == model.parameters * 2
    assert (model.heads, model.kv_heads, model.head_dim) == (4, 2, 2)
    assert (model.layers, model.vocab_size, model.context_length) == (1, 16, 64)
    assert model.tied
    assert model.source == "local"


def test_a_sharded_model_counts_all_its_files(tmp_path: Path) -> None:
    whole = inspect(tinymodel.make(tmp_path / "a"))
    sharded = inspect(tinymodel.make_sharded(tmp_path / "b"))
    assert (sharded.parameters, sharded.weight_bytes) == (whole.parameters, whole.weight_bytes)


def test_sizes_of_a_model_of_several_parts_are_the_language_models(tmp_path: Path) -> None:
    text = {**tinymodel.CONFIG, "model_type": "qwen3", "num_hidden_layers": 7}
    folder = tinymodel.make(tmp_path / "vl", model_type="qwen3_vl", text_config=text)
    model = inspect(folder)
    assert (model.family, model.layers) == ("qwen3_vl", 7)


def test_the_nearest_name_is_offered_for_a_folder_that_is_not_there(tmp_path: Path) -> None:
    tinymodel.make(tmp_path / "qwen3-1.7b")
    said = refused(tmp_path / "qwen3-1.7")
    assert "does not exist" in said
    assert "did you mean qwen3-1.7b?" in said


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    assert "is empty" in refused(tmp_path / "m")


def test_a_file_is_not_a_model(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF")
    assert "a GGUF is for llama.cpp" in refused(path)


def test_a_folder_with_a_gguf_alone_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "x.Q4_0.gguf").write_bytes(b"GGUF")
    assert "x.Q4_0.gguf is for llama.cpp" in refused(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(tinymodel.CONFIG))
    assert "holds only a GGUF: x.Q4_0.gguf" in refused(tmp_path)


def test_a_model_one_folder_deeper_is_pointed_at(tmp_path: Path) -> None:
    tinymodel.make(tmp_path / "outer" / "inner")
    assert f"did you mean {tmp_path / 'outer' / 'inner'}?" in refused(tmp_path / "outer")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not valid JSON"),
        ("[]", "is not a JSON mapping"),
        ("", "is empty"),
        ('{"hidden_size": 8}', "has no model_type"),
        (tinymodel.POINTER, "is a Git-LFS pointer"),
    ],
)
def test_a_config_that_says_nothing_is_refused(tmp_path: Path, text: str, said: str) -> None:
    tinymodel.make(tmp_path)
    (tmp_path / "config.json").write_text(text)
    assert said in refused(tmp_path)


@pytest.mark.parametrize("size", ["8", 0, -1, 2.5, True])
def test_a_size_that_is_no_size_is_named(tmp_path: Path, size: object) -> None:
    told = refused(tinymodel.make(tmp_path, hidden_size=size))
    assert "hidden_size is not a size" in told
    assert "do:    take the model's own config.json" in told


def test_a_size_that_is_missing_is_named(tmp_path: Path) -> None:
    assert "has no num_hidden_layers" in refused(tinymodel.make(tmp_path, num_hidden_layers=None))


@pytest.mark.parametrize("keep", [0, 4, 20, -1, -100])
def test_truncated_weights_are_refused_wherever_they_end(tmp_path: Path, keep: int) -> None:
    path = tinymodel.make(tmp_path) / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:keep])
    said = refused(tmp_path)
    assert "model.safetensors" in said
    assert any(word in said for word in ("cut short", "is empty", "not a safetensors file"))


def test_weights_with_bytes_to_spare_are_refused(tmp_path: Path) -> None:
    path = tinymodel.make(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes() + b"more")
    assert "is too long" in refused(tmp_path)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (b"not json", "not JSON"),
        ([], "not a mapping"),
        ({}, "holds no tensor"),
        ({"w": {"dtype": "F16", "shape": [2], "data_offsets": [0, 2]}}, "has 2 bytes"),
        ({"w": {"dtype": "F16", "shape": [2], "data_offsets": [4, 8]}}, "begins at byte 4"),
        ({"w": {"dtype": "F99", "shape": [2], "data_offsets": [0, 4]}}, "entry for w"),
        ({"w": {"dtype": "F16", "shape": [-2], "data_offsets": [4, 0]}}, "has -4 bytes"),
        ({"w": "?"}, "entry for w"),
    ],
)
def test_a_header_that_does_not_add_up_is_refused(
    tmp_path: Path, header: object, said: str
) -> None:
    path = tinymodel.make(tmp_path) / "model.safetensors"
    path.write_bytes(tinymodel.raw_safetensors(header, b"" if header == {} else bytes(4)))
    assert said in refused(tmp_path)


def test_a_web_page_saved_as_weights_is_not_taken_for_them(tmp_path: Path) -> None:
    tinymodel.make(tmp_path)
    (tmp_path / "model.safetensors").write_text("<!DOCTYPE html><html>Sign in</html>")
    assert "is not a safetensors file" in refused(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    tinymodel.make_sharded(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    said = refused(tmp_path)
    assert "lacks model-00002-of-00002.safetensors" in said
    assert "1 of the 2" in said


def test_a_tensor_that_the_index_promises_and_no_file_holds_is_named(tmp_path: Path) -> None:
    tinymodel.make_sharded(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    promised = json.loads(index.read_text())
    promised["weight_map"]["model.extra.weight"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(promised))
    assert "model-00001-of-00002.safetensors does not hold model.extra.weight" in refused(tmp_path)


def test_shards_without_their_index_are_refused(tmp_path: Path) -> None:
    tinymodel.make_sharded(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    assert "nothing says how to put together" in refused(tmp_path)


def test_an_index_may_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    tinymodel.make_sharded(tmp_path / "m")
    index = tmp_path / "m" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": "../x.safetensors"}}))
    assert "names a file outside" in refused(tmp_path / "m")


def test_an_adapter_is_told_from_a_model(tmp_path: Path) -> None:
    tinymodel.make(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "adapter_model.safetensors")
    assert "holds an adapter, not a model" in refused(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_git_lfs_pointer_is_recognised_with_its_cure(tmp_path: Path, name: str) -> None:
    tinymodel.make(tmp_path)
    (tmp_path / name).write_text(tinymodel.POINTER)
    said = refused(tmp_path)
    assert f"{name} is a Git-LFS pointer" in said
    assert "lfs pull" in said


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_file_of_zero_bytes_is_named(tmp_path: Path, name: str) -> None:
    tinymodel.make(tmp_path)
    (tmp_path / name).write_bytes(b"")
    assert f"{name} is empty" in refused(tmp_path)


def test_a_missing_tokenizer_is_refused(tmp_path: Path) -> None:
    tinymodel.make(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    assert "has no tokenizer" in refused(tmp_path)


def test_half_a_tokenizer_is_refused(tmp_path: Path) -> None:
    tinymodel.make(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model": {"vocab": {"a": 1')
    assert "tokenizer.json is damaged" in refused(tmp_path)


@pytest.mark.parametrize("names", [["tokenizer.model"], ["vocab.json", "merges.txt"]])
def test_other_tokenizers_will_do(tmp_path: Path, names: list[str]) -> None:
    tinymodel.make(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    for name in names:
        (tmp_path / name).write_text('{"a": 1}')
    assert inspect(tmp_path).family == "llama"


def make_pickled(folder: Path) -> Path:
    tinymodel.make(folder)
    (folder / "model.safetensors").unlink()
    with zipfile.ZipFile(folder / "pytorch_model.bin", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"w": [0] * 400}))
    return folder


def test_pickles_are_refused_unless_trusted(tmp_path: Path) -> None:
    said = refused(make_pickled(tmp_path))
    assert "pickle only: pytorch_model.bin" in said
    assert "--trust-pickle" in said
    model = inspect(tmp_path, trust_pickle=True)
    assert model.weight_bytes == (tmp_path / "pytorch_model.bin").stat().st_size
    assert model.dtype == "float16"


def test_a_trusted_pickle_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    path = make_pickled(tmp_path) / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:-30])
    assert "pytorch_model.bin is cut short" in refused(tmp_path, trust=True)


def test_leavings_of_training_are_not_weights(tmp_path: Path) -> None:
    tinymodel.make(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "training_args.bin").write_bytes(b"PK")
    assert "has no weights" in refused(tmp_path, trust=True)


def test_whether_the_head_is_the_embedding_follows_config_then_weights(tmp_path: Path) -> None:
    head = {**tinymodel.SHAPES, "lm_head.weight": (16, 8)}
    untold = tinymodel.make(tmp_path / "untold", tie_word_embeddings=None)
    assert inspect(untold).tied
    tinymodel.write_weights(untold / "model.safetensors", head)
    assert not inspect(untold).tied
    both = tinymodel.make(tmp_path / "both")
    tinymodel.write_weights(both / "model.safetensors", head)
    assert inspect(both).tied
    assert inspect(both).parameters == 200


def test_a_head_that_ought_to_be_there_is_missed(tmp_path: Path) -> None:
    folder = tinymodel.make(tmp_path, tie_word_embeddings=False)
    assert "has no lm_head.weight" in refused(folder)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads all")
def test_a_file_that_may_not_be_read_is_an_access_error(tmp_path: Path) -> None:
    path = tinymodel.make(tmp_path) / "model.safetensors"
    path.chmod(0)
    assert "permission denied" in refused(tmp_path, AccessError)


@pytest.mark.skipif(not hasattr(os, "fork") or os.geteuid() != 0, reason="needs root to drop it")
def test_a_user_who_may_not_read_is_told_so() -> None:
    with tempfile.TemporaryDirectory() as open_to_all:
        Path(open_to_all).chmod(0o755)
        path = tinymodel.make(Path(open_to_all, "m")) / "model.safetensors"
        path.chmod(0)
        assert said_to_nobody(path.parent) == f"AccessError: cannot read {path}: permission denied"


def said_to_nobody(folder: Path) -> str:
    """What inspect says to a user without rights: root reads everything, so nobody has to try."""
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        os.setgid(65534)
        os.setuid(65534)
        try:
            inspect(folder)
        except KilnError as error:
            os.write(write, f"{type(error).__name__}: {error.what}: {error.why}".encode())
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    return os.read(read, 4096).decode()


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("SmolLM2-135M-Instruct", "smollm2-135m-instruct"),
        ("a b/ç", "a-b"),
        ("con", "model-con"),
        ("...", "model"),
        ("aux.x", "model-aux.x"),
    ],
)
def test_names_are_safe_on_every_system(text: str, safe: str) -> None:
    assert slug(text) == safe


def test_a_snapshot_in_the_hubs_cache_is_called_by_the_models_name(tmp_path: Path) -> None:
    path = tmp_path / "models--Org--My-Model" / "snapshots" / "0123abc"
    path.mkdir(parents=True)
    assert name_of(path) == "my-model"
