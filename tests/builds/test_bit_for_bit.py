"""Bit for bit: one build under everything that must not matter, file by file the same.

Three ways to build the same tiny model, each with a checkout, a home and a working folder of its
own: natively as anybody would; natively from a deep path with a blank in it, on one core, in
another time zone and language, with another hash seed and a private umask; and in containers,
as another user where this machine lets us become one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from google.protobuf.json_format import ParseDict
from in_toto_attestation.predicates.provenance.v1.provenance_pb2 import (  # type: ignore[attr-defined]
    Provenance,
)
from in_toto_attestation.v1.statement import Statement
from in_toto_attestation.v1.statement_pb2 import (  # type: ignore[attr-defined]
    Statement as StatementPb,
)

from edgekiln import images
from edgekiln.bundle import MANIFEST, PROVENANCE
from edgekiln.home import project
from edgekiln.progress import Silent
from edgekiln.toolchain import load_toolchain
from edgekiln.verify.compare import compare
from edgekiln.verify.files import read_bundle
from tests.builds.kit import LENIENT, NOBODY, call, nobodys_python, open_folder, python
from tests.builds.test_qnn_build import WORDS

if TYPE_CHECKING:
    from edgekiln.engine import Engine

pytestmark = pytest.mark.slow

OPTIONS = {"mnn": LENIENT, "qnn": WORDS}
# What a stage leaves that is read by no other and is in no bundle: the figures of this machine.
REPORTS = {"mnn": {"prove/prove/prove.json"}, "qnn": {"proof/proof/proof.json"}}
_PARTS = ("src", "scripts", "toolchains", "images", "recipes")
# Run before the command line: a umask, and the cores that may be used.
_START = """
import os, runpy, sys
os.umask(int(sys.argv[1], 8))
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(sys.argv[2]) or None])
sys.argv[:] = ["edgekiln", *sys.argv[3:]]
runpy.run_module("edgekiln", run_name="__main__", alter_sys=True)
"""


@dataclass(frozen=True, kw_only=True)
class Way:
    """How a build is made; `cores` 0 is all of them. `place` is its checkout's, below a root."""

    executor: str
    place: str
    umask: str = "022"
    cores: int = 0
    env: Mapping[str, str] = field(default_factory=dict)
    stranger: bool = False


PLAIN = Way(executor="native", place="a", env={"TZ": "UTC", "LANG": "C.UTF-8"})
ODD = Way(
    executor="native",
    place="far down/in a/grüner Ordner/checkout",
    umask="077",
    cores=1,
    env={
        "TZ": "Asia/Kathmandu",
        "LANG": "tr_TR.UTF-8",
        "LC_ALL": "tr_TR.UTF-8",
        "PYTHONHASHSEED": "12345",
        "OMP_NUM_THREADS": "3",
    },
)
BOXED = Way(
    executor="docker",
    place="b/c",
    umask="027",
    env={"TZ": "America/St_Johns", "LANG": "ja_JP.eucJP", "PYTHONHASHSEED": "7"},
    stranger=True,
)


class Made(NamedTuple):
    """A finished build: its bundle, and the outputs of its stages."""

    bundle: Path
    home: Path
    manifest: dict[str, Any]

    def outputs(self) -> dict[str, str]:
        """Every file and folder that the stages left in the store, as STAGE/OUTPUT/PATH."""
        found: dict[str, str] = {}
        for name, told in self.manifest["stages"].items():
            key = told["key"]
            out = self.home / "store" / "v1" / "objects" / key[:2] / key / "out"
            found |= {f"{name}/{path}": what for path, what in listing(out).items()}
        return found


def listing(root: Path) -> dict[str, str]:
    """Everything below a folder: type, mode, and what a file holds."""
    found = {}
    for path in root.rglob("*"):
        mode = stat.filemode(path.lstat().st_mode)
        held = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[path.relative_to(root).as_posix()] = f"{mode} {held}"
    assert found, f"{root} is empty"
    return found


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    """A folder that other users can reach, for all that the ways have of their own."""
    with open_folder() as place:
        yield place


@dataclass(frozen=True, kw_only=True)
class Kilns:
    """Builds one model, each way with a checkout, a home and a working folder of its own."""

    root: Path
    model: Path
    share: Callable[[Path], Path]
    made: dict[tuple[str, str], Made] = field(default_factory=dict)

    def build(self, backend: str, way: Way, *, group: int = 0) -> Made:
        """Build, once each; a stranger's as a user who owns nothing but is of that group."""
        if (backend, way.place) not in self.made:
            self.made[backend, way.place] = self._build(backend, way, group)
        return self.made[backend, way.place]

    def _build(self, backend: str, way: Way, group: int) -> Made:
        checkout = self.root / "checkouts" / way.place
        home, here = (self.root / n / backend / way.place for n in ("homes", "work"))
        for folder in (home, here):
            folder.mkdir(parents=True)
        self._check_out(checkout)
        words = ["build", "--backend", backend, "--model", str(self.model), "--json"]
        words += ["--executor", way.executor, *OPTIONS[backend]]
        start = ["-c", _START, way.umask, str(way.cores), *words]
        if way.stranger and os.getuid() == 0:
            command, env = nobodys_python(*start)
            command = [f"--groups={group}" if w == "--clear-groups" else w for w in command]
            env["HOME"] = str(here)
            for folder in (home, here):
                os.chown(folder, NOBODY, NOBODY)
        else:
            command, env = python(*start)
            self.share(home)
        done = call(command, self._environment(env, checkout, home, way), here)
        assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
        events = [json.loads(line) for line in done.stdout.splitlines()]
        bundle = next(Path(e["value"]) for e in events if e.get("name") == "bundle")
        return Made(bundle, home, json.loads((bundle / MANIFEST).read_text()))

    def _check_out(self, place: Path) -> None:
        if not place.exists():
            leave = shutil.ignore_patterns("__pycache__")
            place.mkdir(parents=True)
            for name in _PARTS:
                shutil.copytree(project() / name, place / name, symlinks=True, ignore=leave)
            shutil.copyfile(project() / "tasks.py", place / "tasks.py")

    def _environment(
        self, env: Mapping[str, str], checkout: Path, home: Path, way: Way
    ) -> dict[str, str]:
        """The way's variables, and modules from its own checkout."""
        paths = env["PYTHONPATH"].split(os.pathsep)
        swapped = {str(project() / "src"): str(checkout / "src"), str(project()): ""}
        paths = [swapped.get(path, path) for path in paths]
        own = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "EDGEKILN_HOME": str(home)}
        return {**env, **way.env, **own}


@pytest.fixture(scope="module")
def kilns(root: Path, tiny: Path, share_expensive: Callable[[Path], Path]) -> Kilns:
    """The tiny model, where everybody can read it."""
    model = root / "tiny-llama"
    shutil.copytree(tiny, model, copy_function=shutil.copyfile)
    return Kilns(root=root, model=model, share=share_expensive)


def same(backend: str, one: Made, other: Made) -> None:
    """Both bundles, and all that lay between their stages, are the same."""
    a, b = (listing(made.bundle) for made in (one, other))
    # The manifest tells of times and figures; what it may say otherwise is the last word here.
    assert {n for n in a.keys() | b.keys() if a.get(n) != b.get(n)} <= {MANIFEST}
    assert a[MANIFEST].split()[0] == b[MANIFEST].split()[0]
    a, b = one.outputs(), other.outputs()
    assert {n for n in a.keys() | b.keys() if a.get(n) != b.get(n)} <= REPORTS[backend]
    assert REPORTS[backend] <= a.keys() & b.keys()
    keys = ({n: s["key"] for n, s in made.manifest["stages"].items()} for made in (one, other))
    assert next(keys) == next(keys)
    found = compare(read_bundle(one.bundle), read_bundle(other.bundle))
    assert found.same
    assert not [f.text for f in found.passing if not f.name.startswith(("stages.", "figures."))]


@pytest.mark.parametrize("backend", OPTIONS)
def test_nothing_of_the_user_or_the_machine_is_in_the_bytes(
    backend: str, kilns: Kilns, mnn_python: Path, qnn_python: Path
) -> None:
    plain, odd = (kilns.build(backend, way) for way in (PLAIN, ODD))
    same(backend, plain, odd)


@pytest.mark.parametrize("backend", OPTIONS)
def test_in_toto_takes_the_bundles_statement(
    backend: str, kilns: Kilns, mnn_python: Path, qnn_python: Path
) -> None:
    bundle = kilns.build(backend, PLAIN).bundle
    text = (bundle / PROVENANCE).read_text(encoding="utf-8")
    parsed = ParseDict(json.loads(text), StatementPb())
    Statement.copy_from_pb(parsed).validate()
    predicate = ParseDict(json.loads(text)["predicate"], Provenance())
    assert predicate.build_definition.build_type == "urn:edgekiln:build:v1"
    assert str(kilns.root) not in text and str(project()) not in text


@pytest.mark.engine
@pytest.mark.parametrize("backend", OPTIONS)
def test_containers_and_processes_make_the_same_bytes(
    backend: str, kilns: Kilns, engine: Engine, mnn_python: Path, qnn_python: Path
) -> None:
    images.build(engine, load_toolchain(backend), Silent())
    socket = Path(engine.url.removeprefix("unix://"))
    group = socket.stat().st_gid if socket.is_socket() else 0
    boxed = kilns.build(backend, BOXED, group=group)
    assert {s["executor"] for s in boxed.manifest["stages"].values()} == {"docker"}
    same(backend, kilns.build(backend, ODD), boxed)
