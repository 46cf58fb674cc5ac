"""Health of whole toolchains, what is newer than their pins, and apt's view of an archive."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from edgekiln import toolchain
from edgekiln.commands import toolchains as commands
from edgekiln.errors import EngineError, FetchError, UpstreamError
from edgekiln.home import home, project
from edgekiln.images import base as bases
from edgekiln.progress import Silent
from edgekiln.report import JsonReporter
from edgekiln.toolchain import Base, Toolchain, load_toolchain
from edgekiln.toolchain.lock import Deb, Wheel
from edgekiln.upstream import CHANGED, GONE, NOT_REACHED, OK, web
from edgekiln.upstream import debs as archive
from edgekiln.upstream.health import health, refuse, shown
from edgekiln.upstream.index import Index
from edgekiln.upstream.outdated import Report, bumps, compare, newest_version, outdated
from edgekiln.user.aptconf import AptSettings
from edgekiln.user.pipconf import PipSettings
from tests.unit.kitmaking import Told, archive_kit, pinned, zipped
from tests.unit.servers import Site, serving

needs_apt = pytest.mark.skipif(not shutil.which("apt-get"), reason="this machine has no apt")
BODY = zipped({"tool/answer": b"42"})
WHEEL = b"a wheel"
FILE = "part-1.0-py3-none-any.whl"
MANIFEST = b"{}"
DIGEST = f"sha256:{hashlib.sha256(MANIFEST).hexdigest()}"
DEB = Deb(name="tool", version="1:1.0-1", sha256="a" * 64, size=5)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "_PAUSE", 0.0)
    monkeypatch.delenv("EDGEKILN_VENDOR", raising=False)


@pytest.fixture
def site() -> Iterator[Site]:
    """All upstreams in one: an index, a kit's archive, a registry, a release's archive."""
    page = f'<a href="/files/{FILE}#sha256={hashlib.sha256(WHEEL).hexdigest()}">x</a>'.encode()
    files = {
        "/tool.zip": BODY,
        f"/files/{FILE}": WHEEL,
        "/simple/part/": page,
        f"/v2/base/manifests/{DIGEST}": MANIFEST,
        "/v2/base/manifests/12": MANIFEST,
    }
    with serving(Site(files=files)) as site:
        serve(site, DEB)
        yield site


def serve(site: Site, *debs: Deb) -> None:
    """Have the site's archive hold these and no others."""
    body = packages(*debs)
    entry = f" {hashlib.sha256(body).hexdigest()} {len(body)} Packages\n"
    date = "Date: Thu, 01 Jan 2026 00:00:00 UTC\n"
    site.files |= {"/apt/Packages": body, "/apt/Release": f"{date}SHA256:\n{entry}".encode()}


def packages(*debs: Deb) -> bytes:
    """An archive's list."""
    records = [
        f"Package: {deb.name}\nVersion: {deb.version}\nArchitecture: amd64\nMaintainer: t\n"
        f"Filename: ./{deb.name}.deb\nSize: {deb.size}\nSHA256: {deb.sha256}\nDescription: t\n"
        for deb in debs
    ]
    return "\n".join(records).encode()


@pytest.fixture
def demo(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toolchain:
    """A toolchain of one wheel, one deb, one kit and a base, all from that site."""
    copy = tmp_path / "toolchains"
    shutil.copytree(toolchain.folder(), copy)
    monkeypatch.setattr(toolchain, "folder", lambda: copy)
    body = yaml.safe_load((copy / "mnn.yaml").read_text(encoding="utf-8"))
    body |= {"name": "demo", "places": [], "requirements": ["part==1.0"]}
    (copy / "demo.yaml").write_text(json.dumps(body), encoding="utf-8")
    monkeypatch.setattr(bases, "apt_settings", lambda *_: AptSettings())
    shipped = load_toolchain("mnn")
    assert shipped.base.lock is not None
    part = Wheel(
        name="part",
        version="1.0",
        file=FILE,
        sha256=hashlib.sha256(WHEEL).hexdigest(),
        size=len(WHEEL),
    )
    image = f"{site.url.removeprefix('http://')}/base:12@{DIGEST}"
    held = replace(
        shipped.base.lock,
        definition=replace(shipped.base.lock.definition, image=image),
        debs=(DEB,),
    )
    made = Base(name="debian-12", digest="d" * 64, lock=held)
    kept = home() / "bases" / f"debian-12-{'d' * 12}.json"
    kept.parent.mkdir(parents=True)
    sources = f"deb [trusted=yes] {site.url} apt/\n"
    kept.write_text(json.dumps({"sources": sources}), encoding="utf-8")
    definition = replace(shipped.lock.definition, requirements=("part==1.0",), overrides=())
    lock = replace(
        shipped.lock,
        wheels=(part,),
        uv=part,
        debs=(DEB,),
        base_sha256=made.digest,
        definition=definition,
    )
    kit = archive_kit(pinned("tool.zip", BODY, f"{site.url}/tool.zip", size=len(BODY)))
    return replace(shipped, name="demo", base=made, lock=lock, kits=(kit,))


def pip(site: Site) -> PipSettings:
    return PipSettings(index_url=f"{site.url}/simple/")


def states(site: Site, demo: Toolchain) -> dict[str, str]:
    return {f"{f.thing.kind} {f.thing.name}": f.state for f in health([demo], pip(site), Silent())}


@needs_apt
def test_all_that_a_toolchain_pins_is_asked_for(site: Site, demo: Toolchain) -> None:
    told = Told()
    found = health([demo, demo], pip(site), told)
    kinds = [each.thing.kind for each in found]
    assert kinds == ["image", "deb", "wheel", "archive"]  # once, though two toolchains have it
    assert {each.state for each in found} == {OK}
    assert told.updates[-1][:2] == (4, 4)
    assert not [path for method, path, _ in site.asked if method == "GET" and "/files/" in path]
    refuse(found)
    assert len(shown(found).splitlines()) == 5


@needs_apt
@pytest.mark.parametrize(
    ("lost", "what"),
    [
        ("/tool.zip", "archive tool.zip"),
        (f"/files/{FILE}", "wheel part"),
        ("/simple/part/", "wheel part"),
    ],
)
def test_what_is_gone_is_named_and_has_a_code_of_its_own(
    site: Site, demo: Toolchain, lost: str, what: str
) -> None:
    del site.files[lost]
    found = health([demo], pip(site), Silent())
    assert [f"{f.thing.kind} {f.thing.name}" for f in found if f.state == GONE] == [what]
    with pytest.raises(UpstreamError, match="1 pinned thing is gone or changed") as caught:
        refuse(found)
    assert (caught.value.exit_code, what.split()[1] in caught.value.why) == (20, True)


@needs_apt
def test_a_swapped_file_has_changed(site: Site, demo: Toolchain) -> None:
    site.files["/tool.zip"] = BODY + b"more"
    assert states(site, demo)["archive tool.zip"] == CHANGED
    page = f'<a href="/files/{FILE}#sha256={"0" * 64}">x</a>'
    site.files["/simple/part/"] = page.encode()
    assert states(site, demo)["wheel part"] == CHANGED


@needs_apt
def test_what_nobody_answered_about_is_told_apart(site: Site, demo: Toolchain) -> None:
    silent = archive_kit(pinned("tool.zip", BODY, "http://127.0.0.1:9/tool.zip"))
    found = health([replace(demo, kits=(silent,))], pip(site), Silent())
    assert [f.state for f in found if f.thing.kind == "archive"] == [NOT_REACHED]
    with pytest.raises(FetchError, match="1 pinned thing was not reached"):
        refuse(found)
    del site.files["/simple/part/"]
    with pytest.raises(UpstreamError, match="1 pinned thing is gone"):  # counts more
        refuse(health([replace(demo, kits=(silent,))], pip(site), Silent()))


@needs_apt
def test_a_mirror_makes_good_for_a_place_that_is_gone(site: Site, demo: Toolchain) -> None:
    places = (f"{site.url}/old.zip", f"{site.url}/tool.zip")
    kit = archive_kit(pinned("tool.zip", BODY, *places, size=len(BODY)))
    found = health([replace(demo, kits=(kit,))], pip(site), Silent())
    last = found[-1]
    assert (last.state, [a.state for a in last.answers]) == (OK, [GONE, OK])
    assert "old.zip" in shown(found)  # told of all the same


@needs_apt
def test_a_deleted_base_is_told_although_its_packages_are_there(
    site: Site, demo: Toolchain
) -> None:
    del site.files[f"/v2/base/manifests/{DIGEST}"]
    first = health([demo], pip(site), Silent())[0]
    assert (first.state, [a.state for a in first.answers]) == (OK, [GONE, OK])
    given = replace(demo, base=Base(name="x", digest="0", lock=None, given=first.thing.name))
    assert states(site, given)[f"image {first.thing.name}"] == GONE


@needs_apt
def test_a_deb_that_was_replaced_is_gone_and_one_with_other_bytes_has_changed(
    site: Site, demo: Toolchain
) -> None:
    newer = replace(DEB, version="1:1.0-2", sha256="b" * 64)
    serve(site, newer)
    found = health([demo], pip(site), Silent())
    assert [(f.state, f.answers[0].why) for f in found if f.thing.kind == "deb"] == [
        (GONE, "the archive has 1:1.0-2")
    ]
    assert [a.why for a in found[0].answers if a.state == GONE] == [
        "of its 1 packages: tool 1:1.0-1"
    ]
    serve(site, replace(DEB, sha256="c" * 64))
    assert states(site, demo)["deb tool"] == CHANGED
    serve(site, newer, DEB)
    assert states(site, demo)["deb tool"] == OK
    serve(site, replace(DEB, name="other"))
    assert states(site, demo)["deb tool"] == GONE


@needs_apt
def test_an_archive_that_does_not_answer_is_not_reached(site: Site, demo: Toolchain) -> None:
    del site.files["/apt/Release"], site.files["/apt/Packages"]
    assert states(site, demo)["deb tool"] == NOT_REACHED


def test_without_apt_and_engine_the_packages_are_not_asked_about(
    demo: Toolchain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:9")
    with pytest.raises(EngineError, match="packages of debian-12 cannot be asked about"):
        archive.view(demo.base, ["tool"], Silent())


@needs_apt
def test_apts_own_lists_are_left_alone(site: Site, demo: Toolchain) -> None:
    before = sorted(Path("/var/lib/apt/lists").glob("*"))
    archive.view(demo.base, ["tool"], Silent())
    assert sorted(Path("/var/lib/apt/lists").glob("*")) == before


@needs_apt
def test_the_command_prints_what_machines_read(
    site: Site,
    demo: Toolchain,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(toolchain, "load_toolchain", lambda *_, **__: demo)
    monkeypatch.setattr("edgekiln.user.pipconf.pip_settings", lambda: pip(site))
    del site.files["/tool.zip"]
    with pytest.raises(UpstreamError):
        commands.toolchains_health(JsonReporter(sys.stdout), name="demo", base="")
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    result = next(e for e in events if e["event"] == "result")
    last = result["value"][-1]
    assert (result["name"], last["kind"], last["state"]) == ("health", "archive", GONE)
    assert last["places"][0]["place"] == f"{site.url}/tool.zip"
    assert [e["done"] for e in events if e["event"] == "progress"][-1] == 4


def listing(*files: str, **attributes: str) -> bytes:
    told = "".join(f" {key.replace('_', '-')}='{value}'" for key, value in attributes.items())
    return "".join(f"<a href='/files/{file}'{told}>x</a>" for file in files).encode()


def newest(site: Site, demo: Toolchain, *pages: bytes, version: str = "1.0") -> str:
    site.files["/simple/part/"] = b"".join(pages)
    wheel = replace(demo.lock.wheels[0], version=version)
    return newest_version(wheel, [Index(f"{site.url}/simple", PipSettings())], demo)


def test_the_newest_version_that_fits_the_image_counts(site: Site, demo: Toolchain) -> None:
    fits = listing("part-1.0-py3-none-any.whl", "part-1.10-py3-none-any.whl")
    assert newest(site, demo, fits, listing("part-1.9-py3-none-any.whl")) == "1.10"
    assert newest(site, demo, listing("part-0.9-py3-none-any.whl")) == ""
    for file, taken in [
        ("part-2-cp311-cp311-manylinux_2_36_x86_64.whl", "2"),
        ("part-2-cp39-abi3-manylinux2014_x86_64.whl", "2"),
        ("part-2-cp311-cp311-manylinux_2_37_x86_64.whl", ""),
        ("part-2-cp312-cp312-manylinux_2_17_x86_64.whl", ""),
        ("part-2-cp311-cp311-win_amd64.whl", ""),
        ("part-2.tar.gz", ""),
        ("part-2rc1-py3-none-any.whl", ""),
        ("part-2+cpu-py3-none-any.whl", ""),
        ("other-2-py3-none-any.whl", ""),
        ("part-two.whl", ""),
    ]:
        assert newest(site, demo, listing(file)) == taken, file


def test_withdrawn_ones_and_those_for_another_python_do_not_count(
    site: Site, demo: Toolchain
) -> None:
    file = "part-2-py3-none-any.whl"
    assert newest(site, demo, listing(file, data_yanked="")) == ""
    assert newest(site, demo, listing(file, data_requires_python="&gt;=3.12")) == ""
    assert newest(site, demo, listing(file, data_requires_python="&gt;=3.11,&lt;4")) == "2"


def test_a_local_version_is_followed_by_its_own_kind(site: Site, demo: Toolchain) -> None:
    page = listing("part-3-py3-none-any.whl", "part-2%2Bcpu-py3-none-any.whl")
    assert newest(site, demo, page, version="1.0+cpu") == "2+cpu"
    assert newest(site, demo, page) == "3"


@needs_apt
def test_newer_wheels_debs_and_tags_are_listed_and_nothing_is_changed(
    site: Site, demo: Toolchain
) -> None:
    site.files["/simple/part/"] += listing("part-1.1-py3-none-any.whl")
    serve(site, DEB, replace(DEB, version="1:1.0-1+deb12u1"))
    site.files["/v2/base/manifests/12"] = b"[]"
    before = {path: path.read_bytes() for path in toolchain.folder().rglob("*") if path.is_file()}
    shutil.copyfile(toolchain.folder() / "demo.yaml", toolchain.folder() / "other.yaml")
    other = toolchain.folder() / "other.yaml"
    other.write_text(other.read_text().replace('"demo"', '"other"'), encoding="utf-8")
    report = outdated([demo, replace(demo, name="other")], pip(site), Silent())
    assert [(n.kind, n.name, n.before, n.after, n.toolchains) for n in report.newer] == [
        ("wheel", "part", "1.0", "1.1", ("demo", "other")),
        (
            "image",
            f"{site.url.removeprefix('http://')}/base:12",
            DIGEST,
            f"sha256:{hashlib.sha256(b'[]').hexdigest()}",
            ("debian-12",),
        ),
        ("deb", "tool", "1:1.0-1", "1:1.0-1+deb12u1", ("demo", "other")),
    ]
    assert report.not_reached == []
    assert {path: path.read_bytes() for path in before} == before
    assert [(b["only"], b["to"], b["toolchains"]) for b in bumps(report)] == [
        ("part", "1.1", ["demo", "other"]),
        ("debs", "", ["demo"]),
        ("debs", "", ["other"]),
    ]


@needs_apt
def test_an_index_that_was_not_reached_is_told_of(site: Site, demo: Toolchain) -> None:
    silent = PipSettings(
        index_url=f"{site.url}/simple", extra_index_urls=("http://me:secret@127.0.0.1:9/more",)
    )
    report = outdated([demo], silent, Silent())
    assert report.newer == []
    assert [line.partition(": ")[0] for line in report.not_reached] == [
        "http://127.0.0.1:9/more"
    ]  # no password


def test_nothing_newer_is_said_in_words() -> None:
    from edgekiln.upstream.outdated import shown as told

    assert told(Report(not_reached=["x: y"])).splitlines() == [
        "nothing that could be asked has anything newer",
        "not reached: x: y",
    ]


@pytest.mark.parametrize(
    ("lower", "higher"),
    [
        ("1.0-1", "1.0-1+deb12u1"),
        ("1.0-1", "1.0-1.1"),
        ("1.9", "1.10"),
        ("9", "1:0"),
        ("1.0~rc1-1", "1.0-1"),
        ("1.0-1~bpo1", "1.0-1"),
        ("1.0a", "1.0+b"),
        ("3.11.2-6+deb12u8", "3.11.2-6+deb12u9"),
    ],
)
def test_versions_of_debs_are_ordered_as_dpkg_orders_them(lower: str, higher: str) -> None:
    assert compare(lower, higher) < 0 < compare(higher, lower)
    assert compare(lower, lower) == 0


def test_the_weekly_change_uses_actions_as_the_other_workflows_do() -> None:
    folder = project() / ".github" / "workflows"
    used: dict[str, set[str]] = {}
    for path in folder.glob("*.yml"):
        jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
        steps = [step for job in jobs.values() for step in job["steps"]]
        used[path.name] = {step["uses"] for step in steps if "uses" in step}
    assert used["bumps.yml"] <= used["ci.yml"]
    text = (folder / "bumps.yml").read_text(encoding="utf-8")
    runs = [line for line in text.splitlines() if "run:" in line or line.startswith("          ")]
    assert not [line for line in runs if "${{" in line and "run:" in line]


def test_the_toolchains_the_workflow_asks_about_are_ones_there_are() -> None:
    path = project() / ".github" / "workflows" / "bumps.yml"
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
    named = jobs["look"]["steps"][1]["env"]["TOOLCHAINS"].split(",")
    assert set(named) <= set(toolchain.list_toolchains())
