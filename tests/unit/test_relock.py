"""Locks made anew: what changed is told, single components are refreshed, pins are moved."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from edgekiln import toolchain
from edgekiln.commands import toolchains as commands
from edgekiln.errors import KilnError, ToolchainError
from edgekiln.home import project
from edgekiln.progress import Silent
from edgekiln.toolchain import file_digest, load_base, load_toolchain, relock
from edgekiln.toolchain.differences import Change, changes_of
from edgekiln.toolchain.lock import BaseLock, Deb, Definition, Lock, Wheel, read_lock, write_lock
from edgekiln.toolchain.repin import repinned
from edgekiln.user.pipconf import PipSettings
from tests.unit.kitmaking import NOBODY, Repo
from tests.unit.test_lock import put_wheel, uv  # noqa: F401 - a fixture

YAML = """\
name: demo
summary: for tests  # part==0
base: debian-12
python: "3.11"
apt: [program]
requirements:
  - tool==1  # wants any part
  - Other_Part[fast]==1 ; python_version > "3"
overrides: ["part==1"]
"""
DEB = Deb(name="program", version="1.0-1", sha256="a" * 64, size=5)


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uv: None) -> Path:  # noqa: F811
    """A toolchain of three wheels, locked; a folder gives newer ones. Returns toolchains/."""
    copy, folder = tmp_path / "toolchains", tmp_path / "wheels"
    shutil.copytree(toolchain.folder(), copy)
    for module in (toolchain, relock):
        monkeypatch.setattr(module, "folder", lambda: copy)
    folder.mkdir()
    put_wheel(folder, "tool", "1", "part")
    put_wheel(folder, "tool", "2", "part>=2")
    put_wheel(folder, "part", "1")
    put_wheel(folder, "other_part", "1")
    monkeypatch.setattr(
        relock, "pip_settings", lambda: PipSettings(find_links=(str(folder),), no_index=True)
    )
    (copy / "demo.yaml").write_text(YAML, encoding="utf-8")
    what = toolchain.read_definition(Definition, copy / "demo.yaml")
    shipped = load_toolchain("mnn").lock
    held = replace(
        shipped,
        images=(),
        definition=what,
        definition_sha256=file_digest(copy / "demo.yaml"),
        wheels=tuple(relock.resolve(what.requirements, what, relock.pip_settings(), Silent())),
        debs=(DEB,),
    )
    write_lock(held, copy / "demo.lock.json")
    return copy


def locked(demo: Path) -> Lock:
    return read_lock(Lock, demo / "demo.lock.json", remedy="")


def rows(made: relock.Relocked) -> list[tuple[str, ...]]:
    return [change.row for change in made.changes]


def edit(demo: Path, old: str, new: str) -> None:
    text = (demo / "demo.yaml").read_text(encoding="utf-8")
    assert old in text
    (demo / "demo.yaml").write_text(text.replace(old, new), encoding="utf-8")


def test_a_single_wheel_is_refreshed_and_the_rest_stays_byte_by_byte(
    demo: Path, tmp_path: Path
) -> None:
    before = locked(demo)
    put_wheel(tmp_path / "wheels", "part", "1", tag="py3-none-manylinux_2_17_x86_64")
    put_wheel(tmp_path / "wheels", "other_part", "1", tag="py3-none-manylinux_2_17_x86_64")
    made = relock.lock("demo", Silent(), only=["part"])
    assert rows(made) == [("wheel", "part", "1", "1", "another file")]
    after = locked(demo)
    stays = {wheel.name: wheel for wheel in before.wheels if wheel.name != "part"}
    assert {wheel.name: wheel for wheel in after.wheels if wheel.name != "part"} == stays
    assert (after.debs, after.uv) == (before.debs, before.uv)


def test_nothing_new_changes_nothing(demo: Path) -> None:
    before = (demo / "demo.lock.json").read_bytes()
    made = relock.lock("demo", Silent(), only=["Other.Part", "wheels", "uv"])
    assert not any(change.real for change in made.changes)
    assert [row[1] for row in rows(made)] == ["uv", "other-part"], "what was asked about is told"
    assert (demo / "demo.lock.json").read_bytes() == before


def test_a_pin_is_moved_with_its_comment_and_the_table_says_so(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put_wheel(tmp_path / "wheels", "part", "2")
    commands.toolchains_lock("demo", check=False, only="part", to="2")
    said = capsys.readouterr().out.splitlines()
    assert [line.split() for line in said[1:]] == [
        ["kind", "package", "from", "to", "digest", "changed"],
        ["wheel", "part", "1", "2", "yes"],
    ]
    text = (demo / "demo.yaml").read_text(encoding="utf-8")
    assert text == YAML.replace('["part==1"]', '["part==2"]')  # the comment's part==0 stays
    assert locked(demo).definition_sha256 == file_digest(demo / "demo.yaml")


def test_extras_and_markers_of_a_pin_stay(demo: Path) -> None:
    with repinned(demo / "demo.yaml", "other-part", "1.5"):
        text = (demo / "demo.yaml").read_text(encoding="utf-8")
    assert '  - Other_Part[fast]==1.5 ; python_version > "3"\n' in text
    assert text.replace("==1.5", "==1") == YAML


def test_a_pin_whose_version_is_not_to_be_had_is_put_back(demo: Path) -> None:
    before = {p: (demo / p).read_bytes() for p in ("demo.yaml", "demo.lock.json")}
    with pytest.raises(ToolchainError, match="part cannot be refreshed while the others stay"):
        commands.toolchains_lock("demo", check=False, only="part", to="99")
    assert {p: (demo / p).read_bytes() for p in before} == before


def test_one_that_drags_another_along_is_refused_unless_both_are_named(
    demo: Path, tmp_path: Path
) -> None:
    put_wheel(tmp_path / "wheels", "part", "2")
    edit(demo, 'overrides: ["part==1"]\n', "")
    edit(demo, "tool==1 ", "tool==2 ")
    with pytest.raises(ToolchainError, match="tool cannot be refreshed") as caught:
        relock.lock("demo", Silent(), only=["tool"])
    assert "part" in caught.value.why
    made = relock.lock("demo", Silent(), only=["tool", "part"])
    assert rows(made) == [
        ("wheel", "part", "1", "2", "yes"),
        ("wheel", "tool", "1", "2", "yes"),
    ]


@pytest.mark.parametrize(
    ("old", "new", "only", "why"),
    [
        ("apt: [program]", "apt: [program, more]", "part", "apt or base was changed"),
        ("tool==1 ", "tool==2 ", "uv", "the Python packages were changed"),
    ],
)
def test_what_stays_must_still_be_what_the_yaml_asks_for(
    demo: Path, old: str, new: str, only: str, why: str
) -> None:
    edit(demo, old, new)
    with pytest.raises(ToolchainError, match="changed beside what is to be refreshed") as caught:
        relock.lock("demo", Silent(), only=[only])
    assert why in caught.value.why


def test_a_base_that_was_locked_again_is_taken_only_when_named(demo: Path) -> None:
    path = demo / "bases" / "debian-12.lock.json"
    base = read_lock(BaseLock, path, remedy="")
    write_lock(replace(base, debs=base.debs[1:]), path)
    with pytest.raises(ToolchainError, match="changed beside") as caught:
        relock.lock("demo", Silent(), only=["uv"])
    assert "debian-12 was locked again since" in caught.value.why
    made = relock.lock("demo", Silent(), only=["base"])
    assert rows(made) == [("base", "debian-12", "debian-12", "debian-12", "another file")]
    assert locked(demo).base_sha256 == load_base("debian-12").digest


def test_a_single_deb_is_refreshed(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = Deb(name="more", version="1", sha256="c" * 64)
    write_lock(replace(locked(demo), debs=(more, DEB)), demo / "demo.lock.json")
    newer = [replace(d, version="9", sha256="b" * 64) for d in (more, DEB)]
    monkeypatch.setattr(relock, "resolve_debs", lambda *_: newer)  # apt in a container: images/
    assert rows(relock.lock("demo", Silent(), only=["more"])) == [("deb", "more", "1", "9", "yes")]
    assert locked(demo).debs == (newer[0], DEB)
    assert rows(relock.lock("demo", Silent(), only=["debs"])) == [
        ("deb", "program", "1.0-1", "9", "yes")
    ]


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ({"name": "demo", "only": "prat"}, "demo has no prat"),
        ({"name": "debian-12", "only": "apt"}, "debian-12 is a base"),
        ({"name": "", "only": "part"}, "--only: of which toolchain"),
        ({"name": "demo", "only": "part", "check": True}, "--only and --check contradict"),
        ({"name": "demo", "only": "part,tool", "to": "2"}, "--to: which package"),
        ({"name": "demo", "only": "nothing", "to": "2"}, "has no pin of nothing"),
        ({"name": "demo", "only": "part", "to": "2; x"}, "is no version"),
        ({"name": "debian-12", "only": "part", "to": "2"}, "debian-12 is no toolchain"),
    ],
)
def test_what_makes_no_sense_is_refused(demo: Path, words: dict[str, str], what: str) -> None:
    before = {p: p.read_bytes() for p in demo.rglob("*") if p.is_file()}
    with pytest.raises(KilnError, match=what):
        commands.toolchains_lock(**{"check": False, "to": "", **words})  # type: ignore[arg-type]
    assert {p: p.read_bytes() for p in demo.rglob("*") if p.is_file()} == before


def test_only_needs_a_lock_to_keep_the_rest_of(demo: Path) -> None:
    (demo / "demo.lock.json").unlink()
    with pytest.raises(ToolchainError, match=r"demo\.lock\.json is missing"):
        relock.lock("demo", Silent(), only=["part"])


def test_a_change_is_told_by_version_and_by_digest() -> None:
    held = load_toolchain("mnn").lock
    first, second = held.wheels[:2]
    new = Wheel(name="zz", version="1", file="zz-1-py3-none-any.whl", sha256="0" * 64)
    now = replace(
        held,
        wheels=(replace(first, sha256="0" * 64), *held.wheels[2:], new),
        debs=(replace(held.debs[0], version="9", sha256="1" * 64), *held.debs[1:]),
    )
    deb = held.debs[0]
    assert [change.row for change in changes_of(held, now)] == [
        ("wheel", first.name, first.version, first.version, "another file"),
        ("wheel", second.name, second.version, "none", "yes"),
        ("wheel", "zz", "none", "1", "yes"),
        ("deb", deb.name, deb.version, "9", "yes"),
    ]
    assert list(changes_of(held, held)) == []
    # What was asked about by name is told though it stayed; names are compared as indexes do.
    stayed = list(changes_of(held, held, [held.wheels[0].name.upper(), held.debs[0].name]))
    assert [change.name for change in stayed] == [held.wheels[0].name, held.debs[0].name]
    assert not any(change.real for change in stayed)
    assert len(list(changes_of(None, held))) == len(held.wheels) + len(held.debs) + 2


def test_a_bases_image_and_packages_are_compared() -> None:
    base = load_base("debian-12").lock
    assert base is not None
    image = base.definition.image.partition("@")[0]
    moved = replace(base, definition=replace(base.definition, image=f"{image}@sha256:{'0' * 64}"))
    assert list(changes_of(base, moved)) == [
        Change(kind="image", name="debian-12", before=image, after=image, digest=True)
    ]


@pytest.mark.skipif(not all(map(shutil.which, ("git", "jq", "sh"))), reason="needs git and jq")
def test_a_bump_becomes_a_branch_with_the_table_and_is_made_once(tmp_path: Path) -> None:
    """The workflow's script with git and jq; kiln and gh are told by what they are called with."""
    repo = Repo(tmp_path / "clone")
    repo.commit({"toolchains/demo.yaml": b"part==1\n"})
    repo.git("init", "--bare", "--quiet", "../origin.git")
    repo.git("remote", "add", "origin", "../origin.git")
    script = project() / ".github" / "bump"
    programs = {
        repo.path / "kiln": 'echo "$*" >> ../asked; echo part==2 > toolchains/demo.yaml\n'
        'echo /somewhere/demo.lock.json; echo "wheel part 1 2"\n',
        tmp_path / "bin" / "gh": 'echo "$*" >> ../asked; cat "$8"\n',
    }
    for path, body in programs.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{body}", encoding="utf-8")
        path.chmod(0o755)
    bump = {"only": "part", "to": "2", "toolchains": ["demo"], "branch": "bump/part-2"}
    env = {**os.environ, **NOBODY, "BUMP": json.dumps(bump)}
    env["PATH"] = f"{tmp_path / 'bin'}{os.pathsep}{env['PATH']}"
    command = ["sh", str(script)]
    done = subprocess.run(
        command, cwd=repo.path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "### demo\n\n```\nwheel part 1 2\n```" in done.stdout
    asked = (tmp_path / "asked").read_text(encoding="utf-8").splitlines()
    assert asked[0] == "toolchains lock demo --only part --to 2"
    assert asked[1].startswith("pr create --head bump/part-2 --title toolchains: part 2 (demo)")
    assert repo.git("show", "--name-only", "--format=%s", "origin/bump/part-2").split("\n\n") == [
        "toolchains: part 2 (demo)",
        "toolchains/demo.yaml",
    ]
    again = subprocess.run(
        command, cwd=repo.path, env=env, capture_output=True, text=True, check=False
    )
    assert again.stdout == "bump/part-2 is there already\n"
