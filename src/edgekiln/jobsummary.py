"""A bundle's manifest as a page in Markdown: what a CI job shows of what it built.

What a model said, and names that others chose, stand in it as they are and mean nothing to
whoever renders it: no markup of theirs, no links, no pictures that would be fetched.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekiln import units
from edgekiln.bundle import finished_manifest
from edgekiln.store import disk_error

# GitHub drops a step's summary above 1 MiB, without a word on the page.
_FILES = 200
_SHOWN_CHARACTERS = 4000
_DIGITS = 16
_OFF: tuple[object, ...] = (None, False, "")


def page(place: Path) -> str:
    """The page of the bundle in a folder. Raises UsageError where no bundle is."""
    manifest = finished_manifest(place)
    blocks = [
        f"### {_plain(_of(manifest, 'model').get('name', place.name))}"
        f" for {_plain(manifest['backend'])}",
        _rows(("", ""), _facts(manifest)),
        _fenced("\n".join(_texts(manifest.get("shown")))),
        _rows(("stage", "toolchain", "where", "time", "peak memory", "made"), _stages(manifest)),
        *_drift(manifest),
        _options(manifest),
        _files(manifest),
    ]
    return "\n\n".join(filter(None, blocks)) + "\n"


def append(text: str, to: Path) -> None:
    """Add a page to a file, as GITHUB_STEP_SUMMARY wants it."""
    try:
        with to.open("a", encoding="utf-8", newline="\n") as file:
            file.write(text + "\n")
    except OSError as error:
        raise disk_error(error, to) from error


def _of(holder: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A part of a manifest; older ones lack some."""
    found = holder.get(name)
    return found if isinstance(found, dict) else {}


def _texts(found: object) -> list[str]:
    return [str(text) for text in found] if isinstance(found, list) else []


def _facts(manifest: Mapping[str, Any]) -> list[tuple[str, ...]]:
    model = _of(manifest, "model")
    total = sum(int(file["size"]) for file in _of(manifest, "files").values())
    count = len(_of(manifest, "files"))
    parameters = model.get("parameters")
    facts = {
        "model": model.get("source"),
        "family": model.get("family"),
        "parameters": f"{parameters / 1e6:,.1f} M" if isinstance(parameters, int) else None,
        "recipe": manifest.get("recipe"),
        "toolchains": ", ".join(_toolchains(manifest)),
        "bundle": f"{units.size(total)} in {count} files",
        "build": str(manifest.get("build_key", ""))[:_DIGITS],
        "edgekiln": " ".join(filter(None, (manifest.get("edgekiln"), _checkout(manifest)))),
    }
    return [(name, _plain(value)) for name, value in facts.items() if value]


def _checkout(manifest: Mapping[str, Any]) -> str:
    commit = str(manifest.get("checkout") or "")
    return f"({commit[:12]})" if commit else ""


def _toolchains(manifest: Mapping[str, Any]) -> Iterable[str]:
    digests, bases = _of(manifest, "toolchains"), _of(manifest, "bases")
    return (f"{n} {str(d)[:_DIGITS]} on {bases.get(n, '?')}" for n, d in digests.items())


def _stages(manifest: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, stage in _of(manifest, "stages").items():
        outputs = _of(stage, "outputs").values()
        made = sum(int(f["size"]) for out in outputs for f in _of(out, "files").values())
        took, peak = stage.get("seconds"), stage.get("peak_memory")
        rows.append(
            (
                _plain(name),
                _plain(stage.get("toolchain", "")),
                _plain(stage.get("executor", "")),
                units.seconds(took) if isinstance(took, (int, float)) else "",
                units.size(peak) if peak else "",
                units.size(made) if made else "",
            )
        )
    return rows


def _drift(manifest: Mapping[str, Any]) -> list[str]:
    lines = _texts(manifest.get("drift"))
    if not lines:
        return []
    told = "\n".join(f"- {_plain(line)}" for line in lines)
    return [f"**Not as locked** ({len(lines)} packages of the distribution):", told]


def _options(manifest: Mapping[str, Any]) -> str:
    """Every option of the build that is set; what is off says nothing."""
    given = _of(manifest, "options").items()
    rows = [(_code(name), _code(value)) for name, value in given if value not in _OFF]
    return _folded(f"{len(rows)} options", _rows(("option", "value"), rows)) if rows else ""


def _files(manifest: Mapping[str, Any]) -> str:
    files = list(_of(manifest, "files").items())
    rows = [(_code(n), units.size(int(f["size"])), _code(f["sha256"])) for n, f in files[:_FILES]]
    left = f"\n\nand {len(files) - _FILES} more" if len(files) > _FILES else ""
    table = _rows(("file", "size", "sha256"), rows)
    return _folded(f"{len(files)} files", table + left)


def _folded(head: str, body: str) -> str:
    return f"<details><summary>{head}</summary>\n\n{body}\n\n</details>"


def _rows(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table, none where it has no rows."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    above = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    return "\n".join([*above, *lines]) if lines else ""


def _plain(value: object) -> str:
    """Words of others in a line or a table's cell, with no markup of theirs."""
    text = " ".join(str(value).split())
    return re.sub(r"([\\`*_{}\[\]<>|#~!&@:])", _reference, text)


def _reference(found: re.Match[str]) -> str:
    return f"&#{ord(found[0])};"


def _code(value: object) -> str:
    """A name or digest as code; a bar would end the cell, a backtick the code."""
    text = str(value).replace("\n", " ").replace("|", "¦").replace("`", "'")
    return f"`{text}`"


def _fenced(text: str) -> str:
    """A block that nothing in it can end."""
    text = text.strip("\n")
    if not text:
        return ""
    if len(text) > _SHOWN_CHARACTERS:
        text = text[:_SHOWN_CHARACTERS] + " …"
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"
