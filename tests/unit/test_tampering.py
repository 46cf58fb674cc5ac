"""What was changed behind our back: refused, with its name, both digests and its place."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekiln import prefix, toolchain
from edgekiln.digest import FileIndex
from edgekiln.errors import DigestError, ToolchainError
from edgekiln.models.seal import refuse_changed, sealed
from edgekiln.progress import Silent
from edgekiln.toolchain import list_bases, list_toolchains, load_base, load_toolchain
from edgekiln.toolchain.lock import Lock, Wheel, read_lock, seal, write_lock
from edgekiln.toolchain.swapped import swapped
from edgekiln.user.pipconf import pip_settings
from tests.unit.servers import COMMIT, Handler, Site, serving
from tests.unit.test_lock import put_wheel, uv  # noqa: F401 - a fixture
from tests.unit.test_models import REPO, get, hub  # noqa: F401 - a fixture

LOCKS = [*list_toolchains(), *list_bases()]


def lock_of(folder: Path, name: str) -> Path:
    """A toolchain's or a base's lock."""
    found = folder / f"{name}.lock.json"
    return found if found.is_file() else folder / "bases" / found.name


def load(name: str) -> None:
    """Read a lock as every command does."""
    if name in list_bases():
        load_base(name)
    else:
        load_toolchain(name)


@pytest.mark.parametrize("name", LOCKS)
def test_every_lock_is_sealed(name: str) -> None:
    body = json.loads(lock_of(toolchain.folder(), name).read_bytes())
    assert body["sha256"] == seal(body)


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_with_one_byte_changed_is_refused(copy: Path, name: str) -> None:
    path = lock_of(copy, name)
    data = path.read_bytes()
    meant = json.loads(data)
    for at in range(3, len(data), len(data) // 60):
        changed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        path.write_bytes(changed)
        try:
            if json.loads(changed) == meant:
                continue  # a space that became another sign of no meaning
        except ValueError:
            pass
        with pytest.raises(ToolchainError):
            load(name)


def test_the_refusal_names_the_lock_and_both_digests(copy: Path) -> None:
    path = copy / "mnn.lock.json"
    recorded = json.loads(path.read_bytes())["sha256"]
    wheel = load_toolchain("mnn").lock.wheels[5]
    other = ("0" if wheel.sha256[0] != "0" else "1") + wheel.sha256[1:]
    path.write_text(path.read_text().replace(wheel.sha256, other))
    with pytest.raises(ToolchainError) as caught:
        load_toolchain("mnn")
    assert str(path) in caught.value.what
    assert recorded in caught.value.why
    assert seal(json.loads(path.read_bytes())) in caught.value.why
    assert "toolchains lock mnn" in caught.value.remedy


def test_a_lock_with_other_line_ends_is_the_same(copy: Path) -> None:
    path = copy / "mnn.lock.json"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert load_toolchain("mnn").name == "mnn"


def test_a_lock_of_before_there_were_seals_is_read(copy: Path) -> None:
    path = copy / "mnn.lock.json"
    before = load_toolchain("mnn").digest
    body = json.loads(path.read_bytes())
    del body["sha256"]
    path.write_text(json.dumps(body))
    assert load_toolchain("mnn").digest == before


@pytest.fixture(autouse=True)
def pips_settings_again() -> Iterator[None]:
    """What a test tells pip is forgotten with it."""
    yield
    pip_settings.cache_clear()


@pytest.fixture
def innocent(copy: Path, tmp_path: Path) -> Wheel:
    """mnn locked anew to one wheel, `innocent`, which has gone since."""
    (tmp_path / "right").mkdir()
    put_wheel(tmp_path / "right", "innocent", "1")
    file = next((tmp_path / "right").iterdir())
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    wheel = Wheel(name="innocent", version="1", file=file.name, sha256=sha256)
    path = copy / "mnn.lock.json"
    lock = read_lock(Lock, path, remedy="")
    plain = dataclasses.replace(lock.definition, imports=())
    write_lock(dataclasses.replace(lock, wheels=(wheel,), debs=(), definition=plain), path)
    (copy / "mnn.yaml").write_text(
        (copy / "mnn.yaml").read_text().replace("imports:", "x-imports:"), encoding="utf-8"
    )
    body = json.loads(path.read_bytes())
    body["definition_sha256"] = toolchain.file_digest(copy / "mnn.yaml")
    path.write_text(json.dumps({**body, "sha256": seal(body)}))
    return wheel


def swap(folder: Path, wheel: Wheel) -> tuple[Path, str]:
    """A wheel with the right name and other bytes; its path and its sha256."""
    folder.mkdir(parents=True)
    put_wheel(folder, "innocent", "1")
    with zipfile.ZipFile(folder / wheel.file, "a") as archive:
        archive.writestr("innocent.py", "import os\n")
    return folder / wheel.file, hashlib.sha256((folder / wheel.file).read_bytes()).hexdigest()


def no_index(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    """pip as a user has told it, by variables only."""
    for name in [n for n in os.environ if n.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    pip_settings.cache_clear()


def test_a_swapped_wheel_in_a_folder_is_refused(
    uv: None,  # noqa: F811
    innocent: Wheel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, found = swap(tmp_path / "vendor", innocent)
    no_index(monkeypatch, PIP_NO_INDEX="1", EDGEKILN_VENDOR=str(path.parent))
    with pytest.raises(DigestError) as caught:
        prefix.build_prefix(load_toolchain("mnn"), Silent())
    assert "innocent 1" in caught.value.what
    assert found in caught.value.why and innocent.sha256 in caught.value.why
    assert str(path) in caught.value.why
    assert not prefix.prefix_ready(load_toolchain("mnn"))


class Index(Handler):
    """A simple index: its pages say that they are HTML."""

    def file(self, path: str, **headers: str) -> None:
        if path.endswith("/"):
            headers["Content-Type"] = "text/html"
        super().file(path, **headers)


def test_a_swapped_wheel_of_an_index_is_refused(
    uv: None,  # noqa: F811
    innocent: Wheel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, found = swap(tmp_path / "served", innocent)
    with serving(Site(), Index) as site:
        site.files["/simple/innocent/"] = f'<a href="/f/{path.name}">{path.name}</a>'.encode()
        site.files[f"/f/{path.name}"] = path.read_bytes()
        no_index(monkeypatch, PIP_INDEX_URL=f"{site.url}/simple")
        with pytest.raises(DigestError) as caught:
            prefix.build_prefix(load_toolchain("mnn"), Silent())
        assert found in caught.value.why and innocent.sha256 in caught.value.why
        assert f"it came from {site.url}/simple" in caught.value.why


def test_a_builders_log_is_read_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_index(monkeypatch, PIP_INDEX_URL="https://user:secret@mirror.example/simple")
    said = ["cause: Hash mismatch for `idna==3.20`", "", "Expected:", f"sha256:{'a' * 64}", ""]
    said += ["Computed:", f"sha256:{'b' * 64}", "provision: uv ended with 1"]
    log = tmp_path / "build.log"
    log.write_text("\n".join(f"#12 3.4{i}   {line}" for i, line in enumerate(said)))
    error = swapped(log)
    assert error is not None
    assert "idna 3.20" in error.what
    assert "a" * 64 in error.why and "b" * 64 in error.why
    assert "https://mirror.example/simple" in error.why and "secret" not in error.why
    log.write_text("#12 error: No space left on device")
    assert swapped(log) is None


def test_a_fetched_model_with_one_bit_flipped_is_refused(hub: Site, tmp_path: Path) -> None:  # noqa: F811
    model = get(REPO)
    assert sealed(model.path).is_file()
    index = FileIndex(tmp_path / "index.sqlite")
    refuse_changed({"model": model}, index)
    weights = sorted(model.path.glob("*.safetensors"))[0]
    before = weights.read_bytes()
    after = before[:-1] + bytes([before[-1] ^ 1])
    weights.write_bytes(after)
    with pytest.raises(DigestError) as caught:
        refuse_changed({"model": get(REPO)}, index)
    assert str(weights) in caught.value.what
    assert f"hub:{REPO}@{COMMIT}" in caught.value.what
    assert hashlib.sha256(before).hexdigest() in caught.value.why
    assert hashlib.sha256(after).hexdigest() in caught.value.why


@pytest.mark.parametrize("harm", ["removed", "added"])
def test_a_fetched_model_that_lost_or_got_a_file_is_refused(
    hub: Site,  # noqa: F811
    tmp_path: Path,
    harm: str,
) -> None:
    model = get(REPO)
    if harm == "removed":
        (model.path / "tokenizer.json").unlink()
    else:
        (model.path / "more.json").write_text("{}")
    with pytest.raises(DigestError, match="is not the file that came from hub:"):
        refuse_changed({"model": model}, FileIndex(tmp_path / "index.sqlite"))


def test_a_users_own_folder_may_change(tmp_path: Path) -> None:
    from tests.unit import tinymodel

    place = tinymodel.make_sharded(tmp_path / "own")
    model = get(str(place))
    (place / "more.json").write_text("{}")
    refuse_changed({"model": model}, FileIndex(tmp_path / "index.sqlite"))
