"""The checkout and its Python environment on another machine: sent once, by its digest.

HOME/remote/checkouts/DIGEST/     the archive of pack.py, unpacked
HOME/remote/envs/DIGEST/.venv/    the environment that ./kiln makes of requirements.txt
"""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekiln.errors import RemoteError
from edgekiln.progress import Progress
from edgekiln.remote.hosts import Host
from edgekiln.remote.link import Link, Said
from edgekiln.remote.pack import Packed

if TYPE_CHECKING:
    from edgekiln.boxes.profiles import Recognised

# pip fetches and unpacks; it says nothing meanwhile.
_ENVIRONMENT_SECONDS = 1800.0
# --offline and --accept-licence hold there, too.
_PASSED_ON = ("EDGEKILN_OFFLINE", "EDGEKILN_ACCEPT_LICENCES")


@dataclass(frozen=True, kw_only=True)
class Far:
    """A machine that is ready to answer: `command` starts remote/far.py there."""

    home: str
    command: str


def set_up(link: Link, packed: Packed, progress: Progress) -> Far:
    """See that checkout and environment are there. Raises Cut; RemoteError where it cannot be."""
    home = _home(link)
    root = f"{home}/remote"
    checkout = f"{root}/checkouts/{packed.digest}"
    env = f"{root}/envs/{packed.environment}"
    # A time of last use, by which the far side knows what is not used any more.
    if link.run(f"touch -c {_q(checkout)}/.whole && test -f {_q(checkout)}/.whole").code:
        _send(link, packed, root, checkout, progress)
    python = f"{env}/.venv/bin/python"
    if link.run(f"touch -c {_q(env)}/.whole && test -f {_q(env)}/.whole -a -x {_q(python)}").code:
        _environment(link, env, checkout, home, progress)
    variables = {**_variables(link.host, home), "PYTHONPATH": f"{checkout}/src"}
    command = f"cd {_q(checkout)} && exec env {_words(variables)} {_q(python)} -m "
    return Far(home=home, command=f"{command}edgekiln.remote.far")


def _home(link: Link) -> str:
    """Where edgekiln keeps things over there: as told, else where its profile says."""
    given = link.host.home
    if given and not given.startswith("/"):
        raise RemoteError(
            f"hosts.yaml: home of {link.host.name} is {given!r}",
            remedy="give a path from the root, e.g. /root/autodl-tmp/edgekiln",
        )
    said = link.run(_probe(link.host))
    told = [line.partition(" ") for line in said.out.splitlines()]
    found = {first: rest for first, _, rest in reversed(told)}  # the first of each counts
    if said.code or found.get("kind") not in ("Linux x86_64", "Linux amd64"):
        raise RemoteError(
            f"stages cannot run on {link.host.name}",
            why=f"the toolchains are for Linux on x86-64; it says {said.out.strip()[:80]!r}",
            remedy="take a machine with Linux on x86-64",
        )
    return given.rstrip("/") or f"{found.get('data') or found['cache']}/edgekiln"


def _probe(host: Host) -> str:
    """Words for a shell that tell the system, the folder for caches, and a profile's data disk."""
    from edgekiln.boxes.profiles import chosen, profiles

    script = 'echo "kind $(uname -sm)"; echo "cache ${XDG_CACHE_HOME:-$HOME/.cache}"\n'
    # A login over SSH is not handed the variables of process 1; root may read them.
    script += "first=$({ tr '\\0' '\\n' </proc/1/environ; } 2>/dev/null)\n"
    named = [chosen(host.profile)] if host.profile else list(profiles().values())
    for profile in named:
        told = "true" if host.profile else _recognised(profile.recognised)
        for place in profile.data:
            script += (
                f"{told} && [ -d {_q(place)} -a -w {_q(place)} ] && echo {_q(f'data {place}')}\n"
            )
    return f"{script}true"


def _recognised(by: Recognised) -> str:
    """The same for a shell that profiles.recognise looks at: variables, or files."""
    words = [f"[ -e {_there(file)} ]" for file in by.files]
    for name in by.variables:
        words.append(f'[ -n "${{{name}:-}}" ]')
        words.append(f"printf '%s\\n' \"$first\" | grep -q '^{name}=.'")
    return f"{{ {' || '.join(words) or 'false'}; }}"


def _there(file: str) -> str:
    """A path as a shell there takes it: "~" is that user's home."""
    return f'"$HOME"{_q(file[1:])}' if file.startswith("~/") else _q(file)


def _variables(host: Host, home: str) -> dict[str, str]:
    """What runs there is told: its folder and profile, and what was said for the whole build."""
    profile = {"EDGEKILN_PROFILE": host.profile} if host.profile else {}
    passed_on = {name: os.environ[name] for name in _PASSED_ON if os.environ.get(name)}
    return {"EDGEKILN_HOME": home, **profile, **passed_on, **host.env}


def _send(link: Link, packed: Packed, root: str, checkout: str, progress: Progress) -> None:
    """Bring the archive over, from where an earlier try was cut, and unpack it."""
    part = f"{root}/{packed.sha256}.tar.gz.part"
    _good(link, link.run(f"mkdir -p {_q(root)}/checkouts {_q(root)}/envs"), "cannot be written to")
    said = link.run(f"wc -c <{_q(part)} 2>/dev/null || echo 0")
    there = int((said.out.split() or ["0"])[-1])
    if there > len(packed.data):
        there = 0
        link.run(f"rm -f {_q(part)}")
    total = len(packed.data)
    for start in range(there, total, 1 << 20):
        progress.update(start, total, "edgekiln's own files")
        said = link.run(f"cat >>{_q(part)}", packed.data[start : start + (1 << 20)])
        _good(link, said, "did not take edgekiln's own files")
    fresh = f"{_q(checkout)}.$$"
    script = (
        f"set -e; echo '{packed.sha256}  '{_q(part)} | sha256sum -c --quiet - || "
        f"{{ rm -f {_q(part)}; exit 3; }}; mkdir -p {fresh}; "
        f"tar -xzf {_q(part)} -C {fresh} --no-same-owner; touch {fresh}/.whole; "
        f"rm -f {_q(part)}; mv -T {fresh} {_q(checkout)} 2>/dev/null || rm -rf {fresh}"
    )
    _good(link, link.run(script), "could not unpack edgekiln's own files")


def _environment(link: Link, env: str, checkout: str, home: str, progress: Progress) -> None:
    """Have the launcher make the environment, in a folder that outlives the checkout."""
    progress.note("setting up edgekiln's Python environment there (once)")
    script = (
        f"set -e; mkdir -p {_q(env)}; cd {_q(env)}; "
        f"cp {_q(checkout)}/kiln {_q(checkout)}/requirements.txt .; "
        f"ln -sfn {_q(checkout)}/src src; "
        f"env {_words(_variables(link.host, home))} PYTHONPATH={_q(checkout)}/src "
        "./kiln --version; touch .whole"
    )
    said = link.run(script, timeout=_ENVIRONMENT_SECONDS)
    if said.code:
        lines = [line for line in said.err.splitlines() if line.strip()]
        told = {k: v for k, _, v in (line.partition(": ") for line in lines)}
        raise RemoteError(
            f"edgekiln could not set itself up on {link.host.name}",
            why="; ".join(filter(None, (told.get("error"), told.get("why")))) or lines[-1][:200]
            if lines
            else f"it left with {said.code}",
            remedy=told.get("do", "").strip() or "see that Python 3.10 or newer is there, and pip",
        )


def _good(link: Link, said: Said, what: str) -> None:
    if said.code:
        lines = [line for line in said.err.splitlines() if line.strip()]
        why = lines[-1][:200] if lines else f"it left with {said.code}"
        raise RemoteError(
            f"{link.host.name} {what}",
            why=why,
            remedy="look at its disk and at `home` in hosts.yaml",
        )


def _q(text: str) -> str:
    return shlex.quote(text)


def _words(variables: dict[str, str]) -> str:
    return " ".join(_q(f"{name}={value}") for name, value in variables.items())
