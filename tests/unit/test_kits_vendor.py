"""A vendor folder is filled with all that a toolchain is made of, and is then enough."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgekiln import kits
from edgekiln.errors import (
    AccessError,
    DigestError,
    DiskError,
    FetchError,
    ImageError,
    LicenceError,
    UsageError,
)
from edgekiln.images import exports
from edgekiln.images.context import indexes
from edgekiln.kits import firstuse, making, shown, vendor
from edgekiln.kits.definition import Archive
from edgekiln.locking import held
from edgekiln.progress import Silent
from edgekiln.toolchain import load_toolchain
from edgekiln.toolchain.lock import Wheel
from edgekiln.toolchain.wheels import find_local
from edgekiln.user.pipconf import PipSettings, pip_settings
from tests.unit import imagekit
from tests.unit.kitmaking import Told, archive_kit, pinned, sha256, source_kit, zipped
from tests.unit.servers import Handler, Site, serving
from tests.unit.test_kits_git import Tree

BODY = zipped({"ndk-1/props": b"p"})


def wheel_of(name: str, version: str, tag: str) -> tuple[Wheel, bytes]:
    """A wheel that pip takes for one, and its pin."""
    info = f"{name}-{version}.dist-info"
    body = zipped(
        {
            f"{name}/__init__.py": b"",
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}".encode(),
            f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n".encode(),
            f"{info}/RECORD": b"",
        }
    )
    file = f"{name}-{version}-{tag}.whl"
    return Wheel(name=name, version=version, file=file, sha256=sha256(body), size=len(body)), body


UV = wheel_of("uv", "0.0.1", "py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64")
PURE = wheel_of("purely", "1.0", "py3-none-any")
NATIVE = wheel_of("natively", "2.0", "cp311-cp311-manylinux_2_28_x86_64")
EVERY = [UV, PURE, NATIVE]


class IndexHandler(Handler):
    """A simple index: pip wants to be told that a page is one."""

    def do_GET(self) -> None:  # noqa: N802 - the standard library's name
        if self.path.startswith("/simple/"):
            return self.file(self.path, **{"Content-Type": "text/html"})
        super().do_GET()


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A simple index and a place for archives; pip is told of this index only."""
    with serving(Site(files={"/ndk.zip": BODY}), IndexHandler) as site:
        for wheel, body in EVERY:
            link = f'<a href="/files/{wheel.file}">{wheel.file}</a>'
            site.files[f"/simple/{wheel.name}/"] = f"<!DOCTYPE html>{link}".encode()
            site.files[f"/files/{wheel.file}"] = body
        monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
        monkeypatch.setenv("PIP_INDEX_URL", f"{site.url}/simple")
        monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
        for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "EDGEKILN_VENDOR"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(making, "RETRIES", (0.0,))
        pip_settings.cache_clear()
        yield site
    pip_settings.cache_clear()


def toolchain(*with_kits: kits.Kit) -> Any:
    lock = SimpleNamespace(uv=UV[0], wheels=(PURE[0], NATIVE[0]), debs=())
    base = SimpleNamespace(lock=None)
    return SimpleNamespace(
        name="toy", asked="toy", python="3.11", base=base, lock=lock, places=(), kits=with_kits
    )


def tools(site: Site, **more: Any) -> kits.Kit:
    return archive_kit(pinned("ndk.zip", BODY, f"{site.url}/ndk.zip", strip=1), **more)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))


def test_wheels_archives_and_repositories_are_brought_together(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = Tree(tmp_path / "upstream")
    folder = tmp_path / "vendor"
    chain = toolchain(tools(site), source_kit(tree.source()))
    filled = vendor.fill(chain, folder, Silent())
    wheels = [wheel.file for wheel, _ in EVERY]
    repositories = ["dlpack.git", "outer.git", "tvm.git"]
    assert names(folder) == sorted(["SHA256SUMS", "ndk.zip", *repositories, *wheels])
    assert len(filled.files) == 4 and len(filled.repositories) == 3
    check = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    assert subprocess.run(check, cwd=folder, check=False).returncode == 0

    # And with all of upstream gone:
    monkeypatch.setenv("EDGEKILN_VENDOR", str(folder))
    site.files.clear()
    (tmp_path / "upstream").rename(tmp_path / "gone")
    assert kits.missing(chain.kits) == [] and vendor.lacks(chain) == []
    assert set(kits.ready_all(chain.kits, Silent())) == {"tools", "code"}
    found = find_local(chain.lock.wheels, PipSettings())
    assert indexes(chain, set(found), PipSettings())["UV_OFFLINE"] == "1"


def test_two_do_not_fill_one_folder_at_once(site: Site, tmp_path: Path) -> None:
    folder, said = tmp_path / "v", list[str]()
    with ExitStack() as another:

        class Waiting(Silent):
            def note(self, text: str) -> None:
                said.append(text)
                another.close()

        another.enter_context(held(folder / ".filling.lock"))
        vendor.fill(toolchain(tools(site)), folder, Waiting())
    assert said == [f"waiting: another edgekiln is filling {folder}"]
    assert "ndk.zip" in names(folder)


def test_an_image_is_listed_by_the_run_after_one_that_was_broken_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEKILN_OFFLINE", "1")  # proot's packages are not what this is about
    chain: Any = load_toolchain("mnn")
    name = exports.export_name(chain)
    imagekit.layout(tmp_path / name, [[imagekit.Member(name="one", body=b"1")]])
    no_engine: Any = None
    assert vendor.save_image(no_engine, chain, tmp_path, Silent()) == tmp_path / name
    lines = (tmp_path / "SHA256SUMS").read_text().splitlines()
    files = {str(p.relative_to(tmp_path)) for p in (tmp_path / name).rglob("*") if p.is_file()}
    assert files and files <= {line.split()[1] for line in lines}


def test_what_is_there_is_not_fetched_again(site: Site, tmp_path: Path) -> None:
    vendor.fill(toolchain(tools(site)), tmp_path / "v", Silent())
    asked = len(site.asked)
    vendor.fill(toolchain(tools(site)), tmp_path / "v", Silent())
    assert len(site.asked) == asked


def test_everything_that_is_missing_is_named_and_the_rest_kept(site: Site, tmp_path: Path) -> None:
    del site.files["/ndk.zip"], site.files[f"/files/{NATIVE[0].file}"]
    del site.files[f"/simple/{NATIVE[0].name}/"]
    told = Told()
    with pytest.raises(FetchError) as caught:
        vendor.fill(toolchain(tools(site)), tmp_path / "v", told)
    assert "ndk.zip" in caught.value.what and NATIVE[0].file in caught.value.what
    assert any("wheels" in note for note in told.notes)
    assert {UV[0].file, PURE[0].file} <= set(names(tmp_path / "v"))


def test_a_wheel_in_other_bytes_is_not_taken(site: Site, tmp_path: Path) -> None:
    site.files[f"/files/{PURE[0].file}"] = wheel_of("purely", "1.0", "py3-none-any")[1] + b"\0"
    with pytest.raises(FetchError) as caught:
        vendor.fill(toolchain(), tmp_path / "v", Silent())
    assert PURE[0].file in caught.value.what
    assert PURE[0].file not in names(tmp_path / "v")


def test_a_first_use_digest_travels_with_the_folder(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = Archive(file="ndk.zip", places=(f"{site.url}/ndk.zip",), trust="first-use")
    vendor.fill(toolchain(archive_kit(archive)), tmp_path / "v", Silent())
    monkeypatch.setenv("EDGEKILN_HOME", str(tmp_path / "another machine"))
    monkeypatch.setenv("EDGEKILN_VENDOR", str(tmp_path / "v"))
    (tmp_path / "v/ndk.zip").unlink()
    site.files["/ndk.zip"] = zipped({"evil": b"x"})
    assert kits.pin_of(archive).sha256 == sha256(BODY)
    with pytest.raises(DigestError):
        kits.ready(archive_kit(archive), Silent())
    assert firstuse.known("ndk.zip") is None


def test_a_licence_is_wanted_here_too(site: Site, tmp_path: Path) -> None:
    with pytest.raises(LicenceError):
        vendor.fill(toolchain(tools(site, licence="android-sdk")), tmp_path / "v", Silent())
    assert site.asked == [] and not (tmp_path / "v").exists()


def test_a_folder_that_cannot_be_filled_is_named(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(UsageError, match="file is a file"):
        vendor.fill(toolchain(), file, Silent())
    with pytest.raises(AccessError, match=f"cannot write {file}/below"):
        vendor.fill(toolchain(), file / "below", Silent())
    assert file.read_text() == "mine" and site.asked == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_told_of_the_folder_that_is_filled(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, target: Path) -> None:
        with Path("/dev/full").open("wb") as file:  # what a copy meets; its words name the source
            file.write(source.read_bytes())

    monkeypatch.setattr(vendor, "put", full)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / PURE[0].file).write_bytes(PURE[1])
    pip_settings.cache_clear()
    with pytest.raises(DiskError, match=f"the disk is full at {tmp_path / 'v'}"):
        vendor.fill(toolchain(), tmp_path / "v", Silent())


def test_a_failed_installation_names_what_the_folder_lacks(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vendor.fill(toolchain(), tmp_path / "v", Silent())
    error = ImageError("the prefix could not be filled", why="uv ended with 2")
    assert vendor.told(error, toolchain()) is error  # no folder is named
    monkeypatch.setenv("EDGEKILN_VENDOR", str(tmp_path / "v"))
    assert vendor.told(error, toolchain()) is error  # nothing is lacking
    (tmp_path / "v" / PURE[0].file).unlink()
    told = vendor.told(error, toolchain())
    assert isinstance(told, ImageError) and told.what.endswith(f"lacks {PURE[0].file}")
    assert "toolchains fetch toy" in told.remedy


def test_a_dry_run_shows_every_digest_size_and_address() -> None:
    chain = load_toolchain("mnn")
    rows = shown.needed(chain, None)
    text = shown.text(chain, rows)
    for wheel in (chain.lock.uv, *chain.lock.wheels):
        assert wheel.file in text and wheel.sha256 in text
    for deb in chain.lock.debs:
        assert f"{deb.name} {deb.version}" in text and deb.sha256 in text
    assert chain.base.lock and chain.base.lock.image_digest in text
    assert "to fetch" in text.splitlines()[-1]


def test_a_dry_run_fits_a_terminal_and_says_where_things_are(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = load_toolchain("mnn")
    wheel = chain.lock.wheels[0]
    (tmp_path / "v").mkdir()
    rows = [replace(row, where="") for row in shown.needed(chain, None)]
    long = [line for line in shown.text(chain, rows).splitlines() if len(line) > 130]
    assert long == []
    here = [
        replace(row, where=str(tmp_path / "v" / ".." / "v" / wheel.file))
        if row.name == wheel.file
        else replace(row, where="in the image")
        for row in rows
    ]
    lines = [line.strip() for line in shown.text(chain, here).splitlines()]
    at = next(n for n, line in enumerate(lines) if line.endswith(wheel.file))
    assert lines[at].startswith("here ")
    assert f"in {tmp_path / 'v'}" in lines[at + 1 : at + 5]
    assert sum(line.startswith("in the image  ") for line in lines) == len(rows) - 1
    assert lines[-1].startswith("0 of ")


def test_a_dry_run_shows_kits_and_the_licences_they_want(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain: Any = SimpleNamespace(
        **{**vars(load_toolchain("mnn")), "kits": tuple(map(kits.load_kit, ANDROID)), "places": ()}
    )
    text = shown.text(chain, shown.needed(chain, None))
    for part in kits.parts(chain.kits):
        assert part.file in text and (part.digest or "first use") in text
        assert all(place in text for place in part.places)
    assert "664.0 MB" in text
    assert "--accept-licence android-sdk" in text
    monkeypatch.setenv("EDGEKILN_ACCEPT_LICENCES", "android-sdk")
    assert "--accept-licence" not in shown.text(chain, shown.needed(chain, None))


ANDROID = ("ndk-r27c", "android-sdk", "gradle-8.5", "mlc-llm-v0.20.0", "mlc-wheels")


def test_the_commands_take_the_folder_and_the_licences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    from edgekiln import cli

    monkeypatch.setenv("EDGEKILN_VENDOR", "")
    monkeypatch.setenv("EDGEKILN_ACCEPT_LICENCES", "")
    cli.offline(str(tmp_path), "android-sdk,android-sdk-preview")
    assert os.environ["EDGEKILN_VENDOR"] == str(tmp_path)
    assert kits.licences.accepted("android-sdk-preview")
    with pytest.raises(UsageError, match="is no folder"):
        cli.offline(str(tmp_path / "none"), None)
    monkeypatch.setenv("EDGEKILN_VENDOR", __file__)
    with pytest.raises(UsageError, match=r"^EDGEKILN_VENDOR .* is no folder"):
        cli.offline(None, None)
    monkeypatch.setenv("EDGEKILN_VENDOR", "")
    with pytest.raises(UsageError, match="no licence mit"):
        cli.offline(None, "mit")


def test_an_import_of_kits_brings_no_yaml() -> None:
    program = "import sys, edgekiln.kits; print('yaml' in sys.modules or 'requests' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_the_command_says_what_it_filled(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgekiln.commands.vendoring import toolchains_fetch

    monkeypatch.setattr("edgekiln.toolchain.load_toolchain", lambda _: toolchain(tools(site)))
    # This index has none of edgekiln's own packages; tests/images/test_offline.py fetches them.
    monkeypatch.setattr("edgekiln.kits.ownpackages.bring", lambda *_: [])
    toolchains_fetch("toy", to=tmp_path / "v", image=False, model="", pythons="")
    assert f"{tmp_path / 'v'}: toy: 4 files (" in capsys.readouterr().out
    assert (tmp_path / "v/ndk.zip").read_bytes() == BODY


def test_a_dry_run_is_a_command_that_fetches_nothing(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgekiln.commands import images as commands

    commands.images_dry_run("mnn", base=None)
    assert load_toolchain("mnn").lock.wheels[0].sha256 in capsys.readouterr().out
    assert site.asked == []
