"""A rented box: an unprivileged container without an engine, and edgekiln's checkout inside.

Plain `docker run`: the engine's default seccomp profile and capabilities, so no mounts, no
namespaces, as inside an instance of AutoDL, RunPod or vast.ai.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edgekiln.calls import call
from edgekiln.engine.buildcli import build_environment
from edgekiln.home import project

if TYPE_CHECKING:
    from edgekiln.engine import Engine
    from edgekiln.user.aptconf import AptSettings

# Where things lie in a box. The data disk has AutoDL's name.
CHECKOUT = "/srv/edgekiln"
DATA = "/root/autodl-tmp"
VENDOR = "/media/vendor"
HOME = f"{DATA}/edgekiln"
RENTER = "renter"
PACKAGES = (
    *("ca-certificates", "libatomic1", "openssh-server", "procps", "proot", "python3"),
    "python3-venv",
)
_RECIPE = Path(__file__).with_name("Dockerfile")
_REPOSITORY = "edgekiln-test/box"
# A first process that gathers up what others leave behind, as the rentals' own do.
_INIT = ["bash", "-c", "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done"]


def engine_call(
    engine: Engine, *words: str, input: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the engine's command to its end."""
    return subprocess.run(
        [*engine.cli, *words],
        env=build_environment(engine.url),
        input=input,
        capture_output=True,
        text=True,
        check=False,
    )


def gateway(engine: Engine) -> str:
    """This machine's address as boxes on the engine's own network see it."""
    form = "{{range .IPAM.Config}}{{.Gateway}} {{end}}"
    return _must(engine_call(engine, "network", "inspect", "--format", form, "bridge")).split()[0]


def _must(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, f"{done.args}\n{done.stdout}\n{done.stderr}"
    return done.stdout.strip()


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """How a box is to be: what `docker run` is told, and what of it is not as usual.

    `memory` and `disk` as the engine writes sizes (2g, 1g); without `disk` the data disk is as
    large as the machine's. `masked`: files of /proc that are empty. `volumes`: further words for
    --volume. `network`: the engine's name of one; "none" has no way out at all.
    """

    user: str = "root"
    memory: str = ""
    cpus: str = ""
    disk: str = ""
    read_only_home: bool = False
    masked: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    network: str = "bridge"
    vendor: Path | None = None

    def words(self, empty: Path) -> list[str]:
        """The options of `docker run`."""
        words = ["--network", self.network, "--hostname", "box"]
        words += ["--memory", self.memory, "--memory-swap", self.memory] if self.memory else []
        words += ["--cpus", self.cpus] if self.cpus else []
        words += (
            ["--tmpfs", f"{DATA}:rw,exec,mode=1777,size={self.disk}"]
            if self.disk
            else ["--volume", DATA]
        )
        home = "/root" if self.user == "root" else f"/home/{self.user}"
        words += ["--volume", f"{empty.parent}/home:{home}:ro"] if self.read_only_home else []
        for name in self.masked:
            words += ["--volume", f"{empty}:{name}:ro"]
        for volume in self.volumes:
            words += ["--volume", volume]
        words += ["--volume", f"{self.vendor}:{VENDOR}:ro"] if self.vendor else []
        return words


@dataclass(frozen=True, kw_only=True)
class Box:
    """A box that runs."""

    engine: Engine
    name: str
    wanted: Wanted

    def run(
        self,
        *words: str,
        user: str = "",
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
        input: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside to its end, as `user` (else the one the box was rented for)."""
        command = self.words(*words, user=user, env=env, cwd=cwd)
        return engine_call(self.engine, *command, input=input)

    def must(self, *words: str, user: str = "", env: Mapping[str, str] | None = None) -> str:
        """The same for a command that has to end well: what it says."""
        return _must(self.run(*words, user=user, env=env))

    def words(
        self, *words: str, user: str = "", env: Mapping[str, str] | None = None, cwd: str = "/"
    ) -> list[str]:
        """What the engine's command is given so that it runs `words` inside."""
        who = user or self.wanted.user
        home = "/root" if who == "root" else f"/home/{who}"
        full = {"HOME": home, "USER": who, **self.wanted.env, **(env or {})}
        told = [word for key, value in full.items() for word in ("--env", f"{key}={value}")]
        return ["exec", "--interactive", "--user", who, "--workdir", cwd, *told, self.name, *words]

    def kiln(
        self,
        *words: str,
        user: str = "",
        env: Mapping[str, str] | None = None,
        home: str = HOME,
    ) -> subprocess.CompletedProcess[str]:
        """Run `./kiln` of the checkout inside; `home` is its EDGEKILN_HOME ("": none is set)."""
        return self.run(*self.kiln_words(*words), user=user, env=self.kiln_env(home, env))

    def kiln_words(self, *words: str) -> list[str]:
        """The command line of the checkout's launcher."""
        return [f"{CHECKOUT}/kiln", *words]

    def kiln_env(self, home: str = HOME, env: Mapping[str, str] | None = None) -> dict[str, str]:
        """What the launcher needs to set itself up and build without a network."""
        own = {"EDGEKILN_HOME": home} if home else {}
        if self.wanted.vendor:
            own |= {"EDGEKILN_VENDOR": VENDOR, "PIP_NO_INDEX": "1"}
        return {**own, "TERM": "dumb", **(env or {})}

    def copy_in(self, source: Path, target: str, *, user: str = "") -> None:
        """Put a file or folder of this machine into the box, owned by `user`; all may read it."""
        _must(engine_call(self.engine, "cp", str(source), f"{self.name}:{target}"))
        who = user or self.wanted.user
        self.must("chown", "-R", f"{who}:{who}", target, user="root")
        self.must("chmod", "-R", "a+rX", target, user="root")

    def copy_out(self, source: str, target: Path) -> Path:
        """Bring a file or folder of the box here."""
        _must(engine_call(self.engine, "cp", f"{self.name}:{source}", str(target)))
        return target

    @property
    def address(self) -> str:
        """Its address in the engine's own network; this machine reaches it there."""
        form = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
        return _must(engine_call(self.engine, "inspect", "--format", form, self.name))

    def bring_checkout(self) -> None:
        """Put the files that git knows or would know of into the box; `.venv` there stays."""
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=project(),
            capture_output=True,
            check=True,
        ).stdout
        there = [
            name
            for name in listed.split(b"\0")
            if name and (project() / os.fsdecode(name)).exists()
        ]
        packing = ["tar", "--create", "--null", "--files-from=-", "--file=-"]
        packed = subprocess.run(
            packing, cwd=project(), input=b"\0".join(there), capture_output=True, check=True
        ).stdout
        # Unpacked by the renter himself, all of it is his; root may write there anyway.
        inside = ["exec", "--interactive", "--user", RENTER, self.name]
        inside += ["tar", "--extract", "--no-same-owner", "--directory", CHECKOUT]
        env = build_environment(self.engine.url)
        subprocess.run([*self.engine.cli, *inside], env=env, input=packed, check=True)

    def set_up(self) -> None:
        """Have `./kiln` make its environment once."""
        done = self.kiln("--version")
        assert done.returncode == 0, done.stderr + done.stdout


@contextmanager
def rented(engine: Engine, image: str, wanted: Wanted) -> Iterator[Box]:
    """A box that runs until the block ends; nothing of it stays."""
    name = f"edgekiln-box-{os.getpid()}-{secrets.token_hex(4)}"
    with tempfile.TemporaryDirectory(prefix="edgekiln-box-") as scratch:
        Path(scratch).chmod(0o755)
        empty = Path(scratch, "empty")
        empty.touch(mode=0o644)
        (empty.parent / "home" / Path(DATA).name).mkdir(mode=0o755, parents=True)
        started = ["run", "--detach", "--name", name, *wanted.words(empty), image, *_INIT]
        try:
            _must(engine_call(engine, *started))
            box = Box(engine=engine, name=name, wanted=wanted)
            box.must("chmod", "1777", DATA, user="root")
            box.must("chmod", "711", "/root", user="root") if not wanted.read_only_home else None
            box.bring_checkout()
            yield box
        finally:
            engine_call(engine, "rm", "--force", "--volumes", name)


def box_image(engine: Engine, packages: Iterable[str] = PACKAGES, base: str = "debian-12") -> str:
    """The tag of a box's image on one of our own bases, made if it is not there yet."""
    from edgekiln.images.base import apt_for, ensure_base
    from edgekiln.progress import Silent
    from edgekiln.toolchain import load_base

    ready = ensure_base(engine, load_base(base), Silent(), frozen=False)
    packages = sorted(packages)
    tag = _tag("plain", ready.reference, *packages, _RECIPE.read_text(encoding="utf-8"))
    if engine.image(tag) is None:
        _build(engine, tag, ready.reference, apt_for(load_base(base), ready), packages)
    return tag


def older_image(engine: Engine) -> str | None:
    """The tag of a box with Debian 11 (glibc 2.31), made with mmdebstrap if it is not there yet.

    None where this machine cannot make one.
    """
    from edgekiln.user.aptconf import apt_settings
    from edgekiln.user.pipconf import pip_settings

    tag, pip = f"{_REPOSITORY}:debian-11", pip_settings()
    if engine.image(tag) is None:
        apt = apt_settings("debian", "bullseye", pip.proxies, pip.cert)
        options = [f"--aptopt={line}" for line in apt.conf().splitlines()]
        with tempfile.TemporaryDirectory(prefix="edgekiln-box-") as scratch:
            tar = f"{scratch}/base.tar"
            words = ["--variant=minbase", "--mode=root", "--architectures=amd64", *options]
            mirror = ["-"] if apt.sources else []
            made = call(["mmdebstrap", *words, "bullseye", tar, *mirror], input=apt.sources)
            if made.returncode:
                return None
            _must(engine_call(engine, "import", tar, f"{tag}-bare"))
        users = f"useradd --create-home --uid 1000 {RENTER} && install -d -o {RENTER} {CHECKOUT}"
        recipe = f"FROM {tag}-bare\nRUN {users}\n"
        _must(engine_call(engine, "build", "--tag", tag, "-", input=recipe))
    return tag


def ready_image(engine: Engine, image: str, vendor: Path) -> str:
    """The tag of a box's image in which `./kiln` has set itself up, made if it is not there."""
    parts = [(project() / name).read_text("utf-8") for name in ("requirements.txt", "kiln")]
    tag = _tag("ready", image, *parts)
    if engine.image(tag) is None:
        with rented(engine, image, Wanted(vendor=vendor, user=RENTER, network="none")) as box:
            box.set_up()
            # Each box gets the checkout of its own day; only the environment is kept.
            kept = ("-mindepth", "1", "-maxdepth", "1", "!", "-name", ".venv")
            box.must("find", CHECKOUT, *kept, "-exec", "rm", "-rf", "{}", "+")
            _must(engine_call(engine, "commit", box.name, tag))
    return tag


def _tag(kind: str, *parts: str) -> str:
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    return f"{_REPOSITORY}:{kind}-{digest[:12]}"


def _build(engine: Engine, tag: str, base: str, apt: AptSettings, packages: list[str]) -> None:
    """One build with the user's settings of apt as secrets, as the images of toolchains have."""
    with tempfile.TemporaryDirectory(prefix="edgekiln-box-") as scratch:
        ca = apt.ca_file()
        texts = {
            "apt": apt.conf(ca="/run/secrets/ca").encode(),
            "sources": apt.sources.encode(),
            "aptauth": apt.auth.read_bytes() if apt.auth else b"",
            "ca": ca.read_bytes() if ca else b"",
        }
        words = ["build", "--tag", tag, "--file", str(_RECIPE), "--build-arg", f"BASE={base}"]
        words += ["--build-arg", f"PACKAGES={' '.join(packages)}"]
        for name, text in texts.items():
            path = Path(scratch, name)
            path.write_bytes(text)
            words += ["--secret", f"id={name},src={path}"]
        (Path(scratch) / "context").mkdir()
        _must(engine_call(engine, *words, f"{scratch}/context"))
