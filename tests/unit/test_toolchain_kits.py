"""Toolchains with kits: digests, variants, variables, and what must never be installed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from edgekiln import doctor, images
from edgekiln.errors import FetchError, ImageError, KilnError, ToolchainError
from edgekiln.executors import docker
from edgekiln.executors.base import StageRun, environment
from edgekiln.executors.kitlinks import kits_ready, link_kits, make_kits, settle_kits
from edgekiln.kits import Kit, load_kit, making, ready
from edgekiln.kits.definition import Archive, Source
from edgekiln.progress import Silent
from edgekiln.toolchain import list_toolchains, load_toolchain, read_definition, variables
from edgekiln.toolchain.lock import Definition, Lock, read_lock, write_lock
from edgekiln.toolchain.relock import resolve
from edgekiln.user.pipconf import PipSettings, pip_settings
from tests.unit.kitmaking import archive_kit, pinned, source_kit, zipped
from tests.unit.servers import Site, serving
from tests.unit.test_lock import put_wheel, uv  # noqa: F401 - a fixture

BODY = zipped({"tool/answer": b"42"})
WITH_KITS = [name for name in list_toolchains() if load_toolchain(name).kits]


def declare(copy: Path, name: str, **keys: Any) -> None:
    """Give a shipped toolchain's definition other values, in its YAML and in its lock alike."""
    path = copy / f"{name}.lock.json"
    body = json.loads(path.read_bytes())
    body["definition"] |= keys
    (copy / f"{name}.yaml").write_text(json.dumps(body["definition"]), encoding="utf-8")
    path.write_text(json.dumps(body), encoding="utf-8")


@pytest.fixture
def site() -> Iterator[Site]:
    with serving(Site(files={"/tool.zip": BODY})) as site:
        yield site


@pytest.fixture
def tool(site: Site) -> Kit:
    """A kit that this machine serves to itself."""
    return archive_kit(pinned("tool.zip", BODY, f"{site.url}/tool.zip", strip=1), holds=("answer",))


def with_kits(*kits: Kit) -> Any:
    """As much of a toolchain as kits are made ready for."""
    return SimpleNamespace(asked="demo", kits=kits, digest="d" * 64, env={})


def test_a_toolchain_without_kits_has_the_digest_of_its_lock() -> None:
    for name in sorted(set(list_toolchains()) - set(WITH_KITS)):
        found = load_toolchain(name)
        assert found.digest == found.installed, name


def test_the_shipped_ones_with_kits_are_these() -> None:
    assert WITH_KITS == ["mlc", "mlc-android", "mnn-android"]
    families = {kit.family for kit in load_toolchain("mlc-android").kits}
    assert families == {"mlc", "mlc-llm", "ndk", "android-sdk", "gradle", "rust"}


def test_kits_count_for_stages_and_not_for_what_is_installed(copy: Path) -> None:
    before = load_toolchain("mnn")
    declare(copy, "mnn", kits=["gradle-8.5"])
    after = load_toolchain("mnn")
    assert after.digest not in (before.digest, after.installed)
    assert after.installed == before.installed
    assert images.tag(after) == images.tag(before)
    declare(copy, "mnn", kits=["gradle-8.9"])
    assert load_toolchain("mnn").digest != after.digest


def test_a_variant_has_another_kit_of_the_same_family_and_the_same_image() -> None:
    own, other = load_toolchain("mlc-android"), load_toolchain("mlc-android@ndk-r27-beta1")
    assert {kit.name for kit in own.kits} ^ {kit.name for kit in other.kits} == {
        "ndk-r27c",
        "ndk-r27-beta1",
    }
    assert own.digest != other.digest
    assert images.tag(own) == images.tag(other)
    assert (own.asked, other.asked) == ("mlc-android", "mlc-android@ndk-r27-beta1")
    assert load_toolchain("mlc-android@ndk-r27c").digest == own.digest


def test_a_variant_may_change_several_kits() -> None:
    found = load_toolchain("mlc-android@ndk-r28c,gradle-8.9")
    assert {"ndk-r28c", "gradle-8.9"} < {kit.name for kit in found.kits}


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ("mnn@ndk-r27c", "it uses no kits"),
        ("mlc@ndk-r27c", "it uses mlc"),
        ("mlc-android@ndk-r27", "did you mean ndk-r27c"),
        ("mlc-androit@ndk-r27c", "did you mean mlc-android"),
    ],
)
def test_a_variant_that_cannot_be_is_refused(asked: str, why: str) -> None:
    with pytest.raises(ToolchainError) as caught:
        load_toolchain(asked)
    assert why in caught.value.remedy


def test_two_kits_of_one_family_are_refused(copy: Path) -> None:
    declare(copy, "mnn", kits=["gradle-8.5", "gradle-8.9"])
    with pytest.raises(ToolchainError, match="of one family"):
        load_toolchain("mnn")


def test_changed_kits_are_refused_until_they_are_locked(copy: Path) -> None:
    path = copy / "mnn-android.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("ndk-r27c", "ndk-r28c"))
    with pytest.raises(ToolchainError) as caught:
        load_toolchain("mnn-android")
    assert caught.value.why == "changed since: kits"


@pytest.mark.parametrize(
    ("env", "wrong"),
    [({"A": "{kit}/x"}, "asks for {kit}"), ({"A": "{kits}/x"}, "asks for {kits}")],
)
def test_a_variable_that_nothing_is_put_in_for_is_refused(
    copy: Path, env: dict[str, str], wrong: str
) -> None:
    declare(copy, "mnn", env=env)
    with pytest.raises(ToolchainError) as caught:
        read_definition(Definition, copy / "mnn.yaml")
    assert wrong in caught.value.what


def test_variables_are_filled_in_and_stages_find_their_modules_first() -> None:
    android = load_toolchain("mlc-android")
    run = SimpleNamespace(cpus=1, beside_others=False, network=False)
    found = environment(
        android, cast(StageRun, run), scripts="/kiln/scripts", path="/usr/bin", kits="/k"
    )
    assert found["ANDROID_NDK"] == "/k/ndk"
    assert found["PATH"].split(":")[0] == "/k/gradle/bin"
    assert found["PATH"].endswith(":/usr/bin")
    assert found["PYTHONPATH"] == "/kiln/scripts:/k/mlc"
    assert not any("{" in value for value in variables(android, path="p", kits="k").values())


def test_only_a_stage_that_may_go_out_is_told_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    none = with_kits()
    for network in (False, True):
        run = SimpleNamespace(cpus=1, beside_others=False, network=network)
        found = environment(none, cast(StageRun, run), scripts="/s", path="/p")
        assert ("https_proxy" in found) is network


@pytest.mark.parametrize(
    ("proxy", "network"),
    [
        ("", "bridge"),
        ("http://proxy.example:3128", "bridge"),
        ("http://127.0.0.1:3128", "host"),
        ("http://user:word@localhost:3128", "host"),
    ],
)
def test_a_proxy_of_this_machine_is_reached_from_a_container(
    monkeypatch: pytest.MonkeyPatch, proxy: str, network: str
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    assert docker._network() == network


@pytest.mark.parametrize(
    "asked", ["mlc-llm", "mlc_llm_nightly_cpu==0.1", "MLC.AI-nightly-cu122 >= 0.1", "mlc-ai[x]"]
)
@pytest.mark.parametrize("key", ["requirements", "overrides"])
def test_a_definition_cannot_ask_an_index_for_mlc(copy: Path, key: str, asked: str) -> None:
    declare(copy, "mnn", **{key: [asked]})
    with pytest.raises(ToolchainError, match="must not come from a Python index") as caught:
        read_definition(Definition, copy / "mnn.yaml")
    assert "kits: [mlc-wheels]" in caught.value.remedy


def test_names_that_only_begin_alike_are_let_in(copy: Path) -> None:
    declare(copy, "mnn", requirements=["mlc-llms", "mlcroissant", "mlc"])
    assert read_definition(Definition, copy / "mnn.yaml").requirements[0] == "mlc-llms"


def test_a_lock_that_holds_a_placeholder_is_refused(copy: Path) -> None:
    path = copy / "mnn.lock.json"
    lock = read_lock(Lock, path, remedy="")
    import dataclasses

    wheel = dataclasses.replace(lock.wheels[0], name="mlc-llm-nightly-cpu", version="0.1")
    write_lock(dataclasses.replace(lock, wheels=(*lock.wheels, wheel)), path)
    with pytest.raises(ToolchainError, match="must not come from a Python index"):
        load_toolchain("mnn")


def test_a_placeholder_that_another_package_asks_for_is_refused(
    uv: None,  # noqa: F811
    tmp_path: Path,
) -> None:
    put_wheel(tmp_path, "innocent", "1", "mlc-llm-nightly-cpu")
    put_wheel(tmp_path, "mlc_llm_nightly_cpu", "0.1")
    pip = PipSettings(find_links=(str(tmp_path),), no_index=True)
    what = load_toolchain("mnn").lock.definition
    with pytest.raises(ToolchainError, match="mlc-llm-nightly-cpu must not come"):
        resolve(["innocent"], what, pip, Silent())


@pytest.mark.parametrize("name", ["mlc-llm-nightly-cpu", "mlc-ai-nightly-cpu"])
def test_the_real_placeholder_of_the_index_cannot_come_in(uv: None, name: str) -> None:  # noqa: F811
    import dataclasses

    what = dataclasses.replace(load_toolchain("mnn").lock.definition, places=())
    if not answers(what):
        pytest.skip("no Python index in reach")
    with pytest.raises(ToolchainError) as caught:
        resolve([name], what, pip_settings(), Silent())
    # What is there is a source archive, which is refused for being one before its name is.
    assert name in f"{caught.value.what} {caught.value.why}"


def answers(what: Definition) -> bool:
    """Whether the user's own index gives what is surely in it."""
    try:
        return bool(resolve(["numpy==2.4.6"], what, pip_settings(), Silent()))
    except KilnError:
        return False


def test_kits_are_unpacked_once_and_linked_by_their_families(tool: Kit, tmp_path: Path) -> None:
    asking = with_kits(tool)
    assert not kits_ready(asking)
    make_kits([asking, asking], Silent())
    assert kits_ready(asking)
    folder = link_kits(asking, tmp_path)
    assert (folder / tool.family / "answer").read_bytes() == b"42"
    assert link_kits(asking, tmp_path) == folder
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_variants_have_links_of_their_own(tool: Kit, tmp_path: Path) -> None:
    ready(tool, Silent())
    other = with_kits(tool)
    other.digest = "e" * 64
    assert link_kits(with_kits(tool), tmp_path) != link_kits(other, tmp_path)


def test_every_missing_file_is_named_with_the_way_out(
    tool: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(making, "RETRIES", ())
    gone = archive_kit(
        pinned("gone.zip", b"never", "http://127.0.0.1:9/gone.zip"), name="gone", family="gone"
    )
    lost = archive_kit(
        pinned("lost.zip", b"never", "http://127.0.0.1:9/lost.zip"), name="lost", family="lost"
    )
    with pytest.raises(FetchError) as caught:
        make_kits([with_kits(gone, tool), with_kits(lost)], Silent())
    assert "missing: gone (gone.zip); lost (lost.zip)" in caught.value.what
    assert caught.value.why.startswith("http://127.0.0.1:9/gone.zip could not be fetched: ")
    assert "lost.zip" not in caught.value.why  # it has been named
    assert "kiln toolchains fetch demo --to DIR" in caught.value.remedy
    assert "--vendor-dir DIR" in caught.value.remedy


def test_a_first_use_that_cannot_be_had_names_the_other_missing_files(
    tool: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(making, "RETRIES", ())
    place = "http://127.0.0.1:9"
    first = Archive(file="first.whl", places=(f"{place}/first.whl",), trust="first-use")
    open_one = archive_kit(first, name="open", family="open")
    gone = archive_kit(pinned("gone.zip", b"never", f"{place}/gone.zip"), name="gone")
    with pytest.raises(FetchError) as caught:
        settle_kits([with_kits(open_one, gone)], Silent())
    assert "missing: open (first.whl); gone (gone.zip)" in caught.value.what
    assert caught.value.why.startswith(f"{place}/first.whl could not be fetched: ")


def test_a_repository_that_cannot_be_had_leaves_the_names_of_others_to_the_first_line(
    tool: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(making, "RETRIES", ())
    gone = archive_kit(
        pinned("gone.zip", b"never", "http://127.0.0.1:9/gone.zip"), name="gone", family="gone"
    )
    source = Source(repository=f"file://{tmp_path}/none", commit="1" * 40)
    tree = source_kit(source)
    with pytest.raises(FetchError) as caught:
        make_kits([with_kits(tree, gone)], Silent())
    assert "missing: code (none.git); gone (gone.zip)" in caught.value.what
    assert caught.value.why.startswith(f"file://{tmp_path}/none did not give commit")


def test_a_single_missing_file_is_named_once_beside_its_address(
    tool: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(making, "RETRIES", ())
    place = "https://no-such-host.invalid/gone.zip"
    gone = archive_kit(pinned("gone.zip", b"never", place), name="gone", family="gone")
    with pytest.raises(FetchError) as caught:
        make_kits([with_kits(gone)], Silent())
    assert caught.value.what.endswith("missing: gone (gone.zip)")
    assert caught.value.why.startswith(f"{place} could not be fetched: its server's name cannot")


def test_doctor_tells_what_is_to_come_and_what_it_wants(tool: Kit) -> None:
    ndk = load_kit("ndk-r27c")
    lines = {check.name: check.found for check in doctor.tell_kits([ndk, tool])}
    assert "android-ndk-r27c-linux.zip (664.0 MB)" in lines["kit ndk-r27c"]
    assert "wants --accept-licence android-sdk" in lines["kit ndk-r27c"]
    told = {c.name: c.found for c in doctor.tell_kits(map(load_kit, ("android-sdk", "rust")))}
    assert "to be fetched: 5 files (259.7 MB); wants" in told["kit android-sdk"]
    assert "to be fetched: 4 files (size unknown)" in told["kit rust"]
    assert max(map(len, (*lines.values(), *told.values()))) < 100
    ((_, size, what),) = doctor.room_for_kits([ndk, ndk])
    assert what == "kits" and size == ndk.download + ndk.room
    ready(tool, Silent())
    assert doctor.tell_kits([tool]) == []
    assert doctor.room_for_kits([]) == []


def test_an_accepted_licence_is_not_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKILN_ACCEPT_LICENCES", "android-sdk")
    (check,) = doctor.tell_kits([load_kit("ndk-r27c")])
    assert "wants" not in check.found


def test_an_image_is_not_called_proved_while_kits_are_missing() -> None:
    engine: Any = None  # it is not asked
    with pytest.raises(ImageError) as caught:
        images.prove(engine, load_toolchain("mlc"))
    assert "not here yet: mlc-wheels" in caught.value.why
    assert "kiln toolchains fetch mlc" in caught.value.remedy


def test_kits_are_mounted_read_only_and_told_to_verify(tool: Kit) -> None:
    engine: Any = SimpleNamespace(kind="docker")
    words = list(images._kit_words(engine, [tool]))
    assert words[1] == f"{tool.path}:/opt/edgekiln/kits/{tool.family}:ro"
    assert words[3] == f'KILN_KITS={{"{tool.family}": "{tool.version}"}}'
    assert list(images._kit_words(engine, [])) == []
