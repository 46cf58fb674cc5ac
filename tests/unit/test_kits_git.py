"""Git sources: one commit, no history, every byte held against the commit's name."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import zlib
from pathlib import Path

import pytest

from edgekiln import kits
from edgekiln.errors import DigestError, FetchError, ToolchainError
from edgekiln.home import home
from edgekiln.kits import making
from edgekiln.kits.definition import Source, Submodule
from edgekiln.kits.gitsource import bare_name
from edgekiln.kits.tree import tree_id
from edgekiln.progress import Silent
from tests.unit.kitmaking import NOBODY, Repo, Told, source_kit

pytestmark = pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pauses between tries, and none of the user's own settings of git."""
    monkeypatch.setattr(making, "RETRIES", (0.0,))
    monkeypatch.delenv("EDGEKILN_VENDOR", raising=False)
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(name, os.devnull)


class Tree:
    """outer holds tvm, which holds dlpack: as mlc-llm does."""

    def __init__(self, root: Path) -> None:
        self.dlpack, self.tvm, self.outer = (Repo(root / n) for n in ("dlpack", "tvm", "outer"))
        self.dlpack_at = self.dlpack.commit({"include/dlpack.h": b"#pragma once\n"})
        self.tvm.add(self.dlpack, "3rdparty/dlpack")
        self.tvm_at = self.tvm.commit({"CMakeLists.txt": b"project(tvm)\n"})
        self.outer.add(self.tvm, "3rdparty/tvm")
        (self.outer.path / "run.sh").write_bytes(b"#!/bin/sh\n")
        (self.outer.path / "run.sh").chmod(0o755)
        (self.outer.path / "again").symlink_to("run.sh")
        self.outer_at = self.outer.commit({"a/b.txt": b"b\r\n", ".gitattributes": b"* text=auto\n"})

    def source(self, **more: object) -> Source:
        submodules = {"3rdparty/tvm": self.tvm.submodule(self.tvm_at)}
        kept = {"repository": str(self.outer.path), "commit": self.outer_at}
        return Source(**{**kept, "submodules": submodules, **more})  # type: ignore[arg-type]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "upstream")


def listing(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir())


def test_a_source_is_a_plain_folder_with_its_submodules(tree: Tree) -> None:
    path = kits.ready(source_kit(tree.source(), holds=("3rdparty/tvm/CMakeLists.txt",)), Silent())
    assert listing(path) == [
        ".gitattributes",
        ".gitmodules",
        "3rdparty/tvm/.gitmodules",
        "3rdparty/tvm/3rdparty/dlpack/include/dlpack.h",
        "3rdparty/tvm/CMakeLists.txt",
        "a/b.txt",
        "again",
        "run.sh",
    ]
    assert not list(path.rglob(".git"))
    assert (path / "run.sh").stat().st_mode & stat.S_IXUSR
    assert (path / "again").is_symlink()
    assert (path / "a/b.txt").read_bytes() == b"b\n"  # as it was committed


def test_no_attribute_or_setting_changes_a_byte(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    body = b"$Id$ one\r\ntwo\n"
    tree.outer.git("config", "core.autocrlf", "false")
    attributes = b"odd.txt -text\nodd.txt ident filter=lfs export-subst\ngone.txt export-ignore\n"
    (tree.outer.path / ".gitattributes").write_bytes(attributes)
    at = tree.outer.commit({"odd.txt": body, "gone.txt": b"kept\n"})
    blob = tree.outer.git("cat-file", "-p", f"{at}:odd.txt")
    (tmp_path / "config").write_text("[core]\n\tautocrlf = true\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "config"))
    path = kits.ready(source_kit(tree.source(commit=at)), Silent())
    assert (path / "odd.txt").read_bytes() == body and blob.startswith("$Id$")
    assert (path / "gone.txt").read_bytes() == b"kept\n"


def test_only_one_commit_is_fetched(tree: Tree) -> None:
    before = tree.outer_at
    tree.outer_at = tree.outer.commit({"new.txt": b"n"})
    kits.ready(source_kit(tree.source()), Silent())
    bare = home() / "downloads/git/outer.git"
    words = ["git", f"--git-dir={bare}", "cat-file", "-e"]
    assert subprocess.run([*words, tree.outer_at], check=False).returncode == 0
    assert subprocess.run([*words, before], capture_output=True, check=False).returncode != 0


def test_a_commit_that_is_no_branchs_last_is_had(tree: Tree) -> None:
    tree.outer.commit({"later.txt": b"l"})
    path = kits.ready(source_kit(tree.source()), Silent())
    assert not (path / "later.txt").exists()


def test_its_tree_is_recorded_and_proved(tree: Tree) -> None:
    kit = source_kit(tree.source())
    path = kits.ready(kit, Silent())
    plain = path.parent / "again"
    shutil.copytree(path, plain, symlinks=True)
    env = {**os.environ, **NOBODY}
    git = ["git", "-C", str(plain)]
    subprocess.run([*git, "init", "--quiet"], env=env, check=True)
    (plain / ".git/info/attributes").write_text("* -text\n")
    subprocess.run([*git, "add", "--all", "--force"], env=env, check=True)
    told = subprocess.run([*git, "write-tree"], env=env, capture_output=True, check=True)
    assert tree_id(path) == told.stdout.decode().strip()
    making.verify(kit)
    commits = {each.path: each.commit for each in making.repositories(kit)}
    assert commits == {
        ".": tree.outer_at,
        "3rdparty/tvm": tree.tvm_at,
        "3rdparty/tvm/3rdparty/dlpack": tree.dlpack_at,
    }
    (path / "a/b.txt").write_bytes(b"changed")
    with pytest.raises(DigestError, match="not what was unpacked"):
        making.verify(kit)


def test_a_submodule_at_another_commit_than_its_pin_is_refused(tree: Tree) -> None:
    pinned = tree.tvm.commit({"more.txt": b"m"})
    wrong = tree.source(submodules={"3rdparty/tvm": tree.tvm.submodule(pinned)})
    with pytest.raises(DigestError, match="3rdparty/tvm is at another commit") as caught:
        kits.ready(source_kit(wrong), Silent())
    assert tree.tvm_at in caught.value.why and pinned in caught.value.why
    assert not kits.is_ready(source_kit(wrong))


def test_a_pin_for_a_submodule_that_is_not_there_is_refused(tree: Tree) -> None:
    extra = {"3rdparty/gone": tree.dlpack.submodule(tree.dlpack_at)}
    with pytest.raises(DigestError, match="no submodule at 3rdparty/gone"):
        kits.ready(source_kit(tree.source(submodules=extra)), Silent())


def test_a_submodule_may_be_left_out(tree: Tree) -> None:
    source = tree.source(submodules={}, without=("3rdparty/tvm/3rdparty/dlpack",))
    shutil.rmtree(tree.dlpack.path)
    path = kits.ready(source_kit(source), Silent())
    assert (path / "3rdparty/tvm/CMakeLists.txt").exists()
    assert not list(path.rglob("dlpack.h"))


def test_relative_addresses_are_siblings(tree: Tree) -> None:
    tree.outer.git("config", "--file", ".gitmodules", "submodule.3rdparty/tvm.url", "../tvm")
    tree.outer_at = tree.outer.commit()
    kits.ready(source_kit(tree.source(submodules={})), Silent())


def test_a_submodule_without_any_address_is_told(tree: Tree) -> None:
    (tree.outer.path / ".gitmodules").unlink()
    tree.outer_at = tree.outer.commit()
    with pytest.raises(ToolchainError, match="no address is known for the submodule 3rdparty/tvm"):
        kits.ready(source_kit(tree.source(submodules={})), Silent())


def test_a_commit_that_is_not_there_is_told_after_every_try(tree: Tree) -> None:
    told = Told()
    missing = tree.source(commit="f" * 40)
    with pytest.raises(FetchError, match="did not give commit ffffffffffff") as caught:
        kits.ready(source_kit(missing), told)
    assert "EDGEKILN_VENDOR" in caught.value.remedy
    assert any("trying again" in note for note in told.notes)


def test_no_network_is_told(tree: Tree) -> None:
    gone = tree.source(repository="http://127.0.0.1:9/outer.git")
    with pytest.raises(FetchError, match="outer"):
        kits.ready(source_kit(gone), Silent())


def vendored(tree: Tree, folder: Path) -> None:
    for repo in (tree.outer, tree.tvm, tree.dlpack):
        command = ["git", "clone", "--quiet", "--bare", str(repo.path)]
        subprocess.run([*command, str(folder / f"{repo.path.name}.git")], check=True)


def test_a_vendor_folders_bare_repositories_are_enough(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vendored(tree, tmp_path / "vendor")
    monkeypatch.setenv("EDGEKILN_VENDOR", str(tmp_path / "vendor"))
    shutil.rmtree(tmp_path / "upstream")
    kit = source_kit(tree.source())
    assert kits.missing([kit]) == []
    assert (kits.ready(kit, Silent()) / "a/b.txt").exists()
    assert not (home() / "downloads/git").exists()


def test_a_vendor_folder_without_one_of_them_names_it(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vendored(tree, tmp_path / "vendor")
    shutil.rmtree(tmp_path / "vendor/tvm.git")
    shutil.rmtree(tmp_path / "upstream")
    monkeypatch.setenv("EDGEKILN_VENDOR", str(tmp_path / "vendor"))
    kit = source_kit(tree.source())
    assert [part.file for part in kits.missing([kit])] == ["tvm.git"]
    with pytest.raises(FetchError, match="tvm"):
        kits.ready(kit, Silent())


def test_a_spoilt_object_is_found(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "vendor"
    vendored(tree, folder)
    monkeypatch.setenv("EDGEKILN_VENDOR", str(folder))
    bare = folder / "outer.git"
    for pack in bare.glob("objects/pack/*.pack"):  # loose objects are easier to spoil
        kept = pack.rename(tmp_path / pack.name)
        with kept.open("rb") as stream:
            subprocess.run(
                ["git", f"--git-dir={bare}", "unpack-objects", "-q"], stdin=stream, check=True
            )
    blob = tree.outer.git("rev-parse", f"{tree.outer_at}:run.sh")
    place = bare / "objects" / blob[:2] / blob[2:]
    place.chmod(0o644)
    place.write_bytes(zlib.compress(b"blob 10\0#!/bin/evl"))
    with pytest.raises(DigestError, match="does not hold commit") as caught:
        kits.ready(source_kit(tree.source()), Silent())
    assert "run.sh" in caught.value.why


def test_links_that_climb_out_are_refused(tree: Tree) -> None:
    (tree.outer.path / "evil").symlink_to("../../etc/passwd")
    tree.outer_at = tree.outer.commit()
    with pytest.raises(ToolchainError, match="outside of its folder"):
        kits.ready(source_kit(tree.source()), Silent())


def test_a_tree_with_a_git_folder_in_it_is_refused(tree: Tree) -> None:
    repo = tree.outer
    blob = repo.git("hash-object", "-w", "run.sh")
    inner = subprocess.run(
        ["git", "mktree"],
        cwd=repo.path,
        input=f"100644 blob {blob}\tconfig\n",
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    outer = subprocess.run(
        ["git", "hash-object", "-t", "tree", "-w", "--stdin", "--literally"],
        cwd=repo.path,
        input=b"40000 .GIT\0" + bytes.fromhex(inner),
        capture_output=True,
        check=True,
    ).stdout.decode()
    at = repo.git("commit-tree", outer.strip(), "-m", "evil")
    repo.git("update-ref", "refs/heads/evil", at)
    with pytest.raises(ToolchainError, match="outside of its folder"):
        kits.ready(source_kit(tree.source(commit=at, submodules={})), Silent())


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("https://github.com/mlc-ai/mlc-llm", "mlc-llm.git"),
        ("https://github.com/mlc-ai/relax.git", "relax.git"),
        ("https://github.com/x/y/", "y.git"),
        ("git@github.com:x/y.git", "y.git"),
        ("/srv/git/tvm", "tvm.git"),
    ],
)
def test_bare_repositories_are_named_by_their_address(address: str, name: str) -> None:
    assert bare_name(address) == name


def test_mlc_llms_pins_are_the_ones_of_its_release() -> None:
    source = kits.load_kit("mlc-llm-v0.20.0").source
    assert source and source.commit == "bb586e51eb20cba2e82216b75d22d8dd6657cce1"
    tvm = Submodule(
        repository="https://github.com/mlc-ai/relax",
        commit="b628d91fac716679db539884a55f8c6651f54dea",
    )
    assert source.submodules["3rdparty/tvm"] == tvm and len(source.submodules) == 6


def test_without_a_network_every_repository_that_is_known_is_named(tree: Tree) -> None:
    gone = "http://127.0.0.1:9"
    source = tree.source(
        repository=f"{gone}/outer.git",
        submodules={"3rdparty/tvm": Submodule(repository=f"{gone}/tvm", commit=tree.tvm_at)},
    )
    with pytest.raises(FetchError, match=r"2 files could not be fetched: outer.git, tvm.git"):
        kits.ready_all([source_kit(source)], Silent())
