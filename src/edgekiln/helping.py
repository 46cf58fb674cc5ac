"""The help of the commands; of a build, what all builds share, then one backend's options.

There are some 150 options, of three backends. Shown together they help nobody.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Sequence

from edgekiln.errors import UsageError, nearest
from edgekiln.options import Spec

GROUPED = ("build", "doctor")
Row = tuple[str, str]


def plain(
    name: str,
    docstring: str,
    flags: Iterable[tuple[str, str | None]],
    needed: Sequence[str],
) -> str:
    """The help text of a command; `needed` are the arguments that stand by themselves."""
    words = [*name.split("."), *(word.upper() for word in needed), "[options]"]
    rows = [_needed((flag, text or ""), needed) for flag, text in flags]
    rows.sort(key=lambda row: row[0].startswith("--"))
    blocks = [
        f"Usage: kiln {' '.join(words)}",
        textwrap.indent(docstring, "  "),
        _block("Options:", rows),
    ]
    return "\n\n".join(blocks)


def _needed(row: Row, needed: Sequence[str]) -> Row:
    """An argument that stands by itself, as the usage line has it."""
    name = row[0].removeprefix("--").partition("=")[0]
    return (name.upper(), row[1]) if name in needed else row


def grouped(
    name: str, docstring: str, flags: Iterable[tuple[str, str | None]], backend: str
) -> str:
    """The whole help text of `name`; `flags` are those Invoke knows, with their help.

    Raises UsageError for a backend that there is not.
    """
    from edgekiln.backends import options_by_backend

    backends = {each: list(specs) for each, specs in options_by_backend().items()}
    if backend and backend not in backends:
        raise UsageError(f"there is no backend {backend}", remedy=nearest(backend, backends))
    special = {flag for specs in backends.values() for spec in specs for flag in _flags(spec)}
    shared = [(flag, text or "") for flag, text in flags if flag.partition("=")[0] not in special]
    blocks = [
        f"Usage: kiln {name} [options]",
        textwrap.indent(docstring, "  "),
        _block("Options:", shared),
    ]
    blocks += _own(backend, backends[backend]) if backend else [_overview(name, backends)]
    return "\n\n".join(blocks)


def _own(backend: str, specs: Sequence[Spec]) -> list[str]:
    """The backend's options, a block for each group, in the order in which they were written."""
    groups = dict.fromkeys(spec.group for spec in specs)
    return [
        _block(f"Options of {backend}, {group}:", [_row(s) for s in specs if s.group == group])
        for group in groups
    ]


def _overview(name: str, backends: dict[str, list[Spec]]) -> str:
    """How many options each backend has, what they are about, and how to see them."""
    rows = []
    for backend, specs in backends.items():
        groups = ", ".join(dict.fromkeys(spec.group for spec in specs))
        rows.append((f"kiln help {name} --backend {backend}", f"{len(specs)} options: {groups}"))
    return _block("Each backend has options of its own, shown by:", rows)


def _row(spec: Spec) -> Row:
    from edgekiln.cli import accepts

    flag = spec.name.replace("_", "-")
    shown = f"--[no-]{flag}" if spec.type is bool else f"--{flag}=VALUE"
    return shown, f"{spec.help} ({accepts(spec)})"


def _flags(spec: Spec) -> tuple[str, ...]:
    flag = spec.name.replace("_", "-")
    return (f"--{flag}", f"--no-{flag}") if spec.type is bool else (f"--{flag}",)


def _block(title: str, rows: Sequence[Row]) -> str:
    """A title and two columns, the second one folded to the terminal's width."""
    room = min(shutil.get_terminal_size().columns, 120)
    wide = max(len(flag) for flag, _ in rows)
    fold = textwrap.TextWrapper(width=max(room - wide - 5, 30), break_on_hyphens=False)
    lines = [title]
    for flag, text in rows:
        first, *rest = fold.wrap(text) or [""]
        lines += [f"  {flag:{wide}}  {first}".rstrip(), *(f"{'':{wide + 4}}{t}" for t in rest)]
    return "\n".join(lines)
