#!/usr/bin/env python3
"""The one installer of edgekiln's toolchains: a lock in, a Python environment out.

Every image and the native prefix call it, so that both hold the same files. It needs Python's
standard library and the uv that the lock names, nothing else, and runs on Python 3.10 or newer.

The lock says which files: each wheel is asked for by version and sha256, nothing is resolved and
no dependency is looked up. Where the wheels come from is the user's business: `--settings` holds
uv's environment for the user's own indexes, proxies and certificates, `--wheels` a folder of
files that were at hand already. Neither is recorded anywhere in the result.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# One moment for every file: a Python that is older than its bytecode compiles it again, and two
# builds of one lock should give the same image. 2025-01-01.
EPOCH = 1735689600


def main() -> int:
    """Install and say what was installed; 0 when all of it went well."""
    args = _arguments()
    lock = json.loads(args.lock.read_text(encoding="utf-8"))
    settings = json.loads(args.settings.read_text(encoding="utf-8")) if args.settings else {}
    env = {**_clean(os.environ), **settings}
    # BuildKit leaves an empty secret out altogether.
    for variable, places in (("SSL_CERT_FILE", args.ca), ("NETRC", args.netrc)):
        for path in places:
            if path.is_file() and path.stat().st_size:
                env[variable] = str(path)
    _say(f"{len(lock['wheels'])} wheels")
    _install(lock, args, env)
    _forget_sources(args.into)
    _settle(args.into)  # before any bytecode: it holds the time of its source
    _say("bytecode")
    _warm(args.into, lock["definition"].get("imports", []))
    report = {"wheels": installed_wheels(args.into), "debs": installed_debs(lock)}
    (args.into / "installed.json").write_text(json.dumps(report, sort_keys=True), encoding="utf-8")
    _settle(args.into)
    wrong = list(differences(lock["wheels"], report["wheels"]))
    for line in wrong:
        _say(line)
    return 1 if wrong else 0


def _say(text: str) -> None:
    print(f"provision: {text}", file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--lock", type=Path, required=True, help="the toolchain's lock")
    parser.add_argument("--uv", type=Path, required=True, help="the uv that the lock names")
    parser.add_argument("--python", required=True, help="the Python the environment is made of")
    parser.add_argument("--into", type=Path, required=True, help="the environment to make")
    parser.add_argument("--cache", type=Path, help="uv's cache; left out, none is kept")
    parser.add_argument("--wheels", type=Path, help="folder of wheels that are at hand already")
    parser.add_argument("--settings", type=Path, help="JSON: uv's environment for the indexes")
    parser.add_argument("--ca", type=Path, default=[], nargs="*", help="certificates to trust")
    parser.add_argument("--netrc", type=Path, default=[], nargs="*", help="passwords of indexes")
    return parser.parse_args()


def _clean(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without any UV_ or PIP_ variable: the settings handed over replace them."""
    return {k: v for k, v in environ.items() if not k.startswith(("UV_", "PIP_", "PYTHON"))}


def _install(lock: Mapping[str, Any], args: argparse.Namespace, env: dict[str, str]) -> None:
    """Make the environment and put every wheel of the lock into it."""
    # Beside the environment: on one file system uv links out of its cache instead of copying,
    # and a gigabyte of wheels is not unpacked into a tmpfs.
    cache = args.cache or args.into.with_name(f"{args.into.name}.cache")
    uv = [str(args.uv), "--cache-dir", str(cache), "--no-python-downloads", "--color=never"]
    _call([*uv, "venv", "--quiet", "--python", args.python, str(args.into)], env)
    wanted = args.into / "wanted.txt"
    wanted.write_text("".join(_requirement(wheel) for wheel in lock["wheels"]), encoding="utf-8")
    links = ["--find-links", str(args.wheels)] if args.wheels else []
    options = ["--no-deps", "--require-hashes", "--only-binary=:all:", *links]
    target = ["--python", str(_python(args.into)), "--requirement", str(wanted)]
    _call([*uv, "pip", "install", *options, *target], env)
    wanted.unlink()
    if not args.cache:
        shutil.rmtree(cache)


def _requirement(wheel: Mapping[str, Any]) -> str:
    return f"{wheel['name']}=={wheel['version']} --hash=sha256:{wheel['sha256']}\n"


def _python(into: Path) -> Path:
    return into / "bin" / "python3"


def _call(command: list[str], env: Mapping[str, str]) -> None:
    done = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise SystemExit(f"provision: {Path(command[0]).name} ended with {done.returncode}")


def _forget_sources(into: Path) -> None:
    """Drop what uv notes of a wheel that lay in a folder: an index's wheel leaves no such note."""
    for note in into.glob("lib/python3.*/site-packages/*.dist-info/uv_cache.json"):
        record = note.with_name("RECORD")
        lines = record.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if f"{note.parent.name}/{note.name}," not in line]
        note.unlink()
        mode = record.stat().st_mode  # some wheels have it executable
        record.unlink()  # it may be a link into uv's cache: that copy stays as it is
        record.write_text("".join(kept), encoding="utf-8")
        record.chmod(mode & 0o7777)


def _settle(into: Path) -> None:
    """Give every file and folder the one moment."""
    for folder, folders, names in os.walk(into, topdown=False):
        for name in (*names, *folders):  # a link to a folder counts as a folder here
            os.utime(f"{folder}/{name}", (EPOCH, EPOCH), follow_symlinks=False)
        os.utime(folder, (EPOCH, EPOCH))


def _warm(into: Path, modules: list[str]) -> None:
    """Compile what stages import, by the environment's own Python; see bytecode.py."""
    if modules:
        program = Path(__file__).with_name("bytecode.py")
        # Python before 3.11 writes a set's constants in the order of their hashes.
        env = {**_clean(os.environ), "PYTHONHASHSEED": "0"}
        _call([str(_python(into)), "-s", "-B", str(program), *modules], env)


def installed_wheels(into: Path) -> list[dict[str, str]]:
    """Name and version of each distribution in the environment, by its own metadata."""
    found = []
    for info in sorted(into.glob("lib/python3.*/site-packages/*.dist-info")):
        lines = (info / "METADATA").read_text(encoding="utf-8", errors="replace").splitlines()
        found.append({"name": _field(lines, "Name"), "version": _field(lines, "Version")})
    return found


def _field(lines: list[str], name: str) -> str:
    return next(line.partition(":")[2].strip() for line in lines if line.startswith(f"{name}:"))


def differences(locked: list[dict[str, Any]], found: list[dict[str, str]]) -> Iterator[str]:
    """One line for each package that is missing, too many, or at another version."""
    wanted = {_plain(wheel["name"]): wheel["version"] for wheel in locked}
    there = {_plain(wheel["name"]): wheel["version"] for wheel in found}
    for name in sorted(wanted.keys() | there.keys()):
        if wanted.get(name) != there.get(name):
            yield f"{name}: locked {wanted.get(name)}, installed {there.get(name)}"


def _plain(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def installed_debs(lock: Mapping[str, Any]) -> list[dict[str, str]]:
    """Name and version of the lock's packages as they are here; empty without dpkg."""
    names = [deb["name"] for deb in lock.get("debs", [])]
    if not names:
        return []
    command = ["dpkg-query", "-W", "-f", "${binary:Package} ${Version} ${db:Status-Status}\n"]
    try:
        done = subprocess.run([*command, *names], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return []
    rows = [line.split() for line in done.stdout.splitlines()]
    return [
        {"name": row[0].partition(":")[0], "version": row[1]}
        for row in rows
        if len(row) == 3 and row[2] == "installed"
    ]


if __name__ == "__main__":
    sys.exit(main())
