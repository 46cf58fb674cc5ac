"""Apps on a phone: looked through first, installed by the real adb, refusals explained."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from edgekiln.build import open_store
from edgekiln.commands.devices import device_install
from edgekiln.device.adb import choose
from edgekiln.device.install import Installed, Source, install, read_source, refusals
from edgekiln.errors import ArtifactError, DeviceError, DigestError, DiskError, UsageError
from edgekiln.progress import Silent
from tests.device.conftest import write_bundle
from tests.device.standin import STORAGE, TMP, Phone
from tests.unit import tinyapk
from tests.unit.kit import Heard

LIBRARY = "lib/arm64-v8a/libtvm4j_runtime_packed.so"
MODEL = "Qwen3-0.6B-q4f16_1-MLC"
FILES = f"{STORAGE}/Android/data/{tinyapk.PACKAGE}/files"


@pytest.fixture(scope="module")
def makers(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[int, bytes], Path]:
    """A library for each page size, and a key."""
    tinyapk.need_tools()
    folder = tmp_path_factory.mktemp("makers")
    return {page: tinyapk.library(folder, page) for page in (4096, 16384)}, tinyapk.keystore(folder)


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory, makers: tuple[dict[int, bytes], Path]) -> Path:
    """A whole app."""
    path = tmp_path_factory.mktemp("app") / "MLCChat.apk"
    libraries, key = makers
    return tinyapk.make(path, key=key, libraries={LIBRARY: libraries[16384]})


@pytest.fixture
def phone(phone: Phone) -> Phone:
    """A phone of 64-bit ARM with Android 15."""
    told = {"ro.product.cpu.abilist": "arm64-v8a,armeabi-v7a", "ro.build.version.sdk": "35"}
    phone.properties(told)
    phone.free(8 << 20)
    return phone


def source(path: Path, *, every: bool = False) -> Source:
    with open_store() as store:
        return read_source(path, store.index, every=every)


def put(path: Path, *, every: bool = False, start: bool = False) -> Installed:
    return install(choose(), source(path, every=every), Silent(), start=start)


def test_an_app_arrives_whole_and_may_replace_an_older_one(phone: Phone, app: Path) -> None:
    phone.program("dumpsys", 'echo "    versionCode=7 minSdk=26 targetSdk=33"\n')
    done = put(app)
    ((words, data),) = phone.apps
    assert data == app.read_bytes()
    assert "-r" in words and "-t" not in words
    assert (done.package, done.version, done.before) == (tinyapk.PACKAGE, "1.1", 7)
    assert done.notes == () and not done.started


def test_a_phone_without_streaming_gets_the_app_as_a_file(
    phones: Callable[..., Phone], app: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = phones(streams_apps=False)
    monkeypatch.setenv("ANDROID_SERIAL", old.serial)
    old.free(8 << 20)
    old.program("pm", 'cp "$(eval echo \\$$#)" installed.apk && echo Success\n')
    put(app)
    assert (old.root / "installed.apk").read_bytes() == app.read_bytes()
    assert old.sent == [f"{TMP}/MLCChat.apk"] and not old.path(old.sent[0]).exists()


def test_an_app_is_started_when_asked(phone: Phone, app: Path) -> None:
    phone.program("am", 'echo "Starting: Intent { cmp=$3 }"; echo "$*" >started\n')
    assert put(app, start=True).started
    started = (phone.root / "started").read_text(encoding="utf-8")
    assert started.split() == ["start", "-n", f"{tinyapk.PACKAGE}/{tinyapk.PACKAGE}.MainActivity"]


def test_an_app_that_does_not_start_is_told(phone: Phone, app: Path) -> None:
    phone.program("am", 'echo "Error type 3"; echo "Error: Activity class does not exist."\n')
    with pytest.raises(DeviceError, match="could not start it") as caught:
        put(app, start=True)
    assert "does not exist" in caught.value.why and len(phone.apps) == 1


# -- refused by the phone


@pytest.mark.parametrize("code", sorted(refusals()))
def test_each_refusal_is_explained(phone: Phone, app: Path, code: str) -> None:
    phone.refusal = code
    with pytest.raises((DeviceError, DiskError), match=r"does not take MLCChat\.apk") as caught:
        put(app)
    assert code in caught.value.why and "{" not in caught.value.why + caught.value.remedy
    assert caught.value.remedy and caught.value.remedy != caught.value.why


def test_an_app_with_another_key_is_told_with_what_to_do(phone: Phone, app: Path) -> None:
    # SerafiniJose/rusty#6, with this app's name.
    phone.refusal = (
        "INSTALL_FAILED_UPDATE_INCOMPATIBLE: Package ai.mlc.mlcchat signatures do not match "
        "previously installed version; ignoring!"
    )
    with pytest.raises(DeviceError) as caught:
        put(app)
    assert "signed with another key" in caught.value.why
    assert "signatures do not match previously installed version" in caught.value.why
    assert f"adb -s {phone.serial} uninstall ai.mlc.mlcchat" in caught.value.remedy


def test_a_refusal_that_is_not_known_is_shown_as_it_is(phone: Phone, app: Path) -> None:
    phone.refusal = "INSTALL_FAILED_MOON_PHASE: wait for the next one"
    with pytest.raises(DeviceError) as caught:
        put(app)
    assert caught.value.why == "INSTALL_FAILED_MOON_PHASE: wait for the next one"


def test_a_phone_that_is_full_is_not_tried(phone: Phone, app: Path) -> None:
    phone.free(1000)
    with pytest.raises(DiskError):
        put(app)
    assert phone.apps == []


def test_a_lost_connection_is_told(phone: Phone, app: Path) -> None:
    found = choose()
    ready = source(app)
    phone.close()
    with pytest.raises(DeviceError):
        install(found, ready, Silent())


# -- refused before it goes out


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"ro.product.cpu.abilist": "x86_64,x86"}, "x86_64"),
        ({"ro.product.cpu.abi": "armeabi-v7a"}, "armeabi-v7a"),
        ({"ro.product.cpu.abilist": "arm64-v8a", "ro.build.version.sdk": "24"}, "API 26"),
    ],
)
def test_an_app_that_the_phone_cannot_run_stays_here(
    phone: Phone, app: Path, told: dict[str, str], said: str
) -> None:
    phone.properties(told)
    with pytest.raises(DeviceError) as caught:
        put(app)
    assert said in caught.value.why and phone.apps == []


def test_pages_of_16_kb_are_minded_where_the_phone_has_them(
    phone: Phone, tmp_path: Path, makers: tuple[dict[int, bytes], Path]
) -> None:
    libraries, key = makers
    small = tinyapk.make(
        tmp_path / "small.apk", key=key, libraries={LIBRARY: libraries[4096]}, boundary=4096
    )
    phone.program("getconf", "echo 4096\n")
    (note,) = put(small).notes
    assert "libtvm4j_runtime_packed.so does not fit 16 KB pages" in note
    phone.program("getconf", "echo 16384\n")
    with pytest.raises(DeviceError, match="does not fit the pages") as caught:
        put(small)
    assert "16384" in caught.value.why and len(phone.apps) == 1


def test_libraries_that_are_unpacked_may_lie_anywhere(
    phone: Phone, tmp_path: Path, makers: tuple[dict[int, bytes], Path]
) -> None:
    libraries, key = makers
    path = tinyapk.make(
        tmp_path / "a.apk", key=key, libraries={LIBRARY: libraries[16384]}, boundary=4096
    )
    phone.program("getconf", "echo 16384\n")
    found = source(path)
    with pytest.raises(DeviceError, match="does not fit the pages"):
        install(choose(), found, Silent())
    for said in (True, None):
        unpacked = Source(apk=dataclasses.replace(found.apk, extracted=said))
        assert install(choose(), unpacked, Silent()).notes == ()


def test_an_old_signature_is_not_enough_for_a_new_app(
    phone: Phone, tmp_path: Path, makers: tuple[dict[int, bytes], Path]
) -> None:
    libraries, key = makers
    path = tinyapk.make(
        tmp_path / "a.apk",
        key=key,
        libraries={LIBRARY: libraries[16384]},
        min_sdk=21,
        schemes={1: True, 2: False, 3: False},
    )
    with pytest.raises(DeviceError, match="signed in a way"):
        put(path)


@pytest.mark.parametrize("how", ["unsigned", "library", "no arm64", "cut", "changed", "text"])
def test_an_app_that_no_phone_takes_stays_here(
    tmp_path: Path, makers: tuple[dict[int, bytes], Path], app: Path, how: str
) -> None:
    libraries, key = makers
    path = tmp_path / "a.apk"
    if how == "unsigned":
        tinyapk.make(path, key=None, libraries={LIBRARY: libraries[16384]})
    elif how == "library":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("AndroidManifest.xml", '<manifest package="ai.mlc.mlcllm"/>')
    elif how == "no arm64":
        tinyapk.make(path, key=key, libraries={"lib/x86_64/liba.so": libraries[16384]})
    elif how == "text":
        path.write_text("no app", encoding="utf-8")
    else:
        data = bytearray(app.read_bytes())
        if how == "cut":
            del data[-100:]
        else:
            data[data.find(b"\x7fELF") + 2000] ^= 1
        path.write_bytes(data)
    with pytest.raises(ArtifactError) as caught:
        source(path)
    assert caught.value.remedy
    assert ("is no app" in caught.value.what) == (how in ("text", "cut"))


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.apk"):
        source(tmp_path / "nowhere.apk")


# -- bundles


def bundle(
    tmp_path: Path,
    app: Path | None,
    *,
    bundled: bool,
    left_out: Sequence[str] = (),
) -> Path:
    """An mlc bundle: weights beside an app."""
    folder = "Qwen3-0.6B-q4f16_1-MLC"
    listed = {
        "model_id": MODEL,
        "model": folder,
        "model_lib": "qwen3_q4f16_1",
        "estimated_vram_bytes": 1,
        "bundle_weight": bundled,
    }
    config = {"device": "android", "model_list": [listed]}
    files = {
        "README.md": b"words\n",
        "mlc-package-config.json": json.dumps(config).encode(),
        f"{folder}/mlc-chat-config.json": b"{}",
        f"{folder}/params_shard_0.bin": b"w" * 5000,
        f"{folder}/tensor-cache.json": b"{}",
        "lib/qwen3_q4f16_1.tar": b"t",
    }
    if app is not None:
        files["MLCChat.apk"] = app.read_bytes()
    for name in left_out:
        del files[name]
    return write_bundle(tmp_path / "mlc", files, backend="mlc", model={"name": "Qwen3-0.6B"})


def test_bundled_weights_go_where_the_app_looks_for_them(
    phone: Phone, tmp_path: Path, app: Path
) -> None:
    made = bundle(tmp_path, app, bundled=True)
    done = put(made)
    place = phone.path(f"{FILES}/{MODEL}")
    there = {p.name: p.read_bytes() for p in place.iterdir() if p.name != ".edgekiln.json"}
    weights = made / "Qwen3-0.6B-q4f16_1-MLC"
    assert there == {p.name: p.read_bytes() for p in weights.iterdir()}
    assert [pushed.place for pushed in done.weights] == [f"{FILES}/{MODEL}"]
    phone.sent.clear()
    assert put(made).weights[0].new == () and not [s for s in phone.sent if "params" in s]


def test_weights_that_the_app_downloads_go_only_when_asked(
    phone: Phone, tmp_path: Path, app: Path
) -> None:
    made = bundle(tmp_path, app, bundled=False)
    assert put(made).weights == () and not phone.path(FILES).exists()
    assert len(put(made, every=True).weights) == 1


@pytest.mark.parametrize("bundled", [True, False])
def test_a_bundle_that_was_changed_is_refused(
    phone: Phone, tmp_path: Path, app: Path, bundled: bool
) -> None:
    made = bundle(tmp_path, app, bundled=bundled)
    name = "Qwen3-0.6B-q4f16_1-MLC/params_shard_0.bin" if bundled else "MLCChat.apk"
    (made / name).write_bytes(b"other")
    with pytest.raises(DigestError, match=re.escape(name)):
        put(made)
    assert phone.apps == []


def test_a_bundle_without_an_app_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no app") as caught:
        source(bundle(tmp_path, None, bundled=False))
    assert "--apk" in caught.value.remedy


def test_a_bundle_of_two_apps_asks_which(tmp_path: Path, app: Path) -> None:
    made = bundle(tmp_path, app, bundled=False)
    manifest = json.loads((made / "manifest.json").read_text(encoding="utf-8"))
    (made / "Other.apk").write_bytes(b"x")
    digest = hashlib.sha256(b"x").hexdigest()
    manifest["files"]["Other.apk"] = {"size": 1, "sha256": digest}
    (made / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(UsageError, match="holds 2 apps"):
        source(made)


def test_bundled_weights_that_are_missing_are_named(tmp_path: Path, app: Path) -> None:
    lacking = [f"Qwen3-0.6B-q4f16_1-MLC/{n}" for n in ("mlc-chat-config.json",)]
    with pytest.raises(ArtifactError, match="does not hold the weights"):
        source(bundle(tmp_path, app, bundled=True, left_out=lacking))


def test_weights_are_asked_of_bundles_only(tmp_path: Path, app: Path) -> None:
    with pytest.raises(UsageError, match="--weights is for a bundle"):
        source(app, every=True)
    lacking = ["mlc-package-config.json"]
    with pytest.raises(UsageError, match="lists no models"):
        source(bundle(tmp_path, app, bundled=False, left_out=lacking), every=True)


def test_the_command_tells_what_it_did(phone: Phone, tmp_path: Path, app: Path) -> None:
    heard = Heard()
    made = bundle(tmp_path, app, bundled=True)
    device_install(heard, what=made, serial="", start=False, weights=False)
    assert heard.results["installed"]["package"] == tinyapk.PACKAGE
    assert heard.results["installed"]["weights"] == [f"{FILES}/{MODEL}"]
    assert heard.how("install") == ["done"]
    assert any("files pushed" in said for said in heard.said)
