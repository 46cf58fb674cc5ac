"""Digests that nobody publishes: written down at the first download, held from then on.

home()/first-use.json is the record. A vendor folder has its own: SHA256SUMS, which whoever filled
it wrote, so that the files another machine took are the ones taken here.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgekiln.digest import digest_file
from edgekiln.errors import DigestError, ToolchainError
from edgekiln.home import home
from edgekiln.locking import held

SUMS = "SHA256SUMS"


@dataclass(frozen=True, kw_only=True)
class Known:
    """What was found at the first download: digest, bytes, where from, when (UTC)."""

    sha256: str
    size: int
    place: str
    when: str


def record_file() -> Path:
    """Where the record lies."""
    return home() / "first-use.json"


def known(file: str) -> Known | None:
    """What is on record for a file of that name."""
    entry = _read().get(file)
    return Known(**entry) if entry else None


def remember(file: str, *, sha256: str, size: int, place: str) -> Known:
    """Write a first download down; what is on record already stays and is returned."""
    with held(home() / "locks" / "first-use.lock"):
        entries = _read()
        if file not in entries:
            when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            entries[file] = asdict(Known(sha256=sha256, size=size, place=place, when=when))
            write_json(record_file(), entries)
        return Known(**entries[file])


def listed(folder: Path, file: str) -> str:
    """The sha256 that a folder's SHA256SUMS has for a file; "" where it has none."""
    try:
        text = (folder / SUMS).read_text(encoding="utf-8")
    except OSError:
        return ""
    for line in text.splitlines():
        digest, _, name = line.partition(" ")
        if name.strip().lstrip("*") == file and len(digest) == 64:
            return digest.lower()
    return ""


def check_listed(path: Path) -> None:
    """Raise DigestError for a file that is not as its folder's SHA256SUMS has it."""
    wanted = listed(path.parent, path.name)
    if wanted and digest_file(path) != wanted:
        raise DigestError(
            f"{path} is damaged",
            why=f"its sha256 is not the one in {SUMS}",
            remedy="copy it again, or fill the folder again",
        )


def list_in(folder: Path, sums: dict[str, str]) -> None:
    """Put digests into a folder's SHA256SUMS, beside those that it has; `sha256sum -c` reads it."""
    path = folder / SUMS
    with held(folder / f".{SUMS}.lock"):
        kept = {}
        if path.is_file():
            lines = (line.split(None, 1) for line in path.read_text(encoding="utf-8").splitlines())
            kept = {words[1].lstrip("*"): words[0] for words in lines if len(words) == 2}
        text = "".join(f"{d}  {name}\n" for name, d in sorted({**kept, **sums}.items()))
        fresh = path.with_name(f"{SUMS}.part")
        fresh.write_text(text, encoding="utf-8", newline="\n")
        fresh.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write a record whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.part")
    fresh.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    fresh.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """A record of ours; empty where there is none. Raises ToolchainError for a damaged one."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ToolchainError(
            f"{path} is damaged", why=str(error), remedy="mend it or remove it"
        ) from None
    if not isinstance(value, dict):
        raise ToolchainError(f"{path} is no record of edgekiln's", remedy="remove it")
    return value


def _read() -> dict[str, Any]:
    return read_json(record_file())
