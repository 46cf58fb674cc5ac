"""Says what is really installed where it runs: Python packages, and the distribution's own.

Given to the toolchain's Python on standard input, without a network; it needs nothing but the
standard library and is in no image. One JSON object on standard output, the same on every run:

    python {name, version}, os {ID, VERSION_ID, …}, wheels [{name, version, licence, …}],
    debs [{name, version, architecture, source, licences or mentioned}]

Licences are what packages say of themselves: License-Expression, else classifiers, else the License
field; for packages of the distribution the short names in /usr/share/doc/NAME/copyright.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

_FIELDS = ("binary:Package", "Version", "Architecture", "source:Package", "source:Version",
           "db:Status-Status")  # fmt: skip
_LICENCE = re.compile(r"^License:[ \t]*(\S[^\n]*)$", re.MULTILINE)
_COMMON = re.compile(r"/usr/share/common-licenses/([A-Za-z][\w.+-]*\w)")
_LONGEST = 100
_CLASSIFIER = "License :: "


def wheels() -> list[dict[str, Any]]:
    """Every distribution of this environment, by its own metadata."""
    here = str(Path(sys.prefix))
    found = {}
    for each in importlib.metadata.distributions():
        place = str(each._path)  # type: ignore[attr-defined]
        if place.startswith(here):
            found[place] = _wheel(each)
    return sorted(found.values(), key=lambda wheel: (wheel["name"].lower(), wheel["version"]))


def _wheel(each: importlib.metadata.Distribution) -> dict[str, Any]:
    told = each.metadata
    named = [line for line in told.get_all("Classifier") or [] if line.startswith(_CLASSIFIER)]
    licences = [line.rpartition(" :: ")[2] for line in named if line.count(" :: ") > 1]
    if not licences and (first := _first_line(_one(told, "License"))):
        licences = [first]
    if not licences:
        licences = [line.removeprefix(_CLASSIFIER) for line in named]
    expression = _one(told, "License-Expression").strip()
    return {
        "name": told["Name"],
        "version": each.version,
        "summary": _first_line(_one(told, "Summary")),
        "expression": expression,
        "licences": [] if expression else sorted(set(licences)),
    }


def _one(told: importlib.metadata.PackageMetadata, field: str) -> str:
    return str((told.get_all(field) or [""])[0])


def _first_line(text: str) -> str:
    """The first line that says something; a whole licence's text is cut to its title."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0][:_LONGEST] if lines and lines[0] != "UNKNOWN" else ""


def debs() -> list[dict[str, Any]]:
    """Every package of the distribution that is installed; none where there is no dpkg."""
    if not shutil.which("dpkg-query"):
        return []
    form = "\t".join(f"${{{field}}}" for field in _FIELDS) + "\n"
    command = ["dpkg-query", "--show", f"--showformat={form}"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = (line.split("\t") for line in said.splitlines())
    return [_deb(row) for row in sorted(rows) if row[-1] == "installed"]


def _deb(row: list[str]) -> dict[str, Any]:
    name = row[0].partition(":")[0]
    return {
        "name": name,
        "version": row[1],
        "architecture": row[2],
        "source": row[3],
        "source_version": row[4],
        **deb_licences(Path("/usr/share/doc") / name / "copyright"),
    }


def deb_licences(copyright: Path) -> dict[str, list[str]]:
    """What a copyright file of Debian's names as `licences`, where it is machine-readable.

    Of another the common licences it points to are `mentioned`: which of them are the package's
    takes reading. Without a file there is neither.
    """
    try:
        text = copyright.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    found = {match.strip() for match in _LICENCE.findall(text)} if "Format:" in text else set()
    if found:
        return {"licences": sorted(name[:_LONGEST] for name in found)}
    return {"mentioned": sorted(set(_COMMON.findall(text)))}


def system() -> dict[str, str]:
    """What os-release says."""
    try:
        lines = Path("/etc/os-release").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    pairs = (line.partition("=") for line in lines if "=" in line)
    return {key: value.strip("\"'") for key, _, value in pairs}


def main() -> int:
    """Print what is here."""
    python = {"name": platform.python_implementation(), "version": platform.python_version()}
    image = sys.prefix == "/opt/edgekiln"
    report = {"python": python, "wheels": wheels(), "debs": debs() if image else []}
    print(json.dumps({**report, "os": system() if image else {}}, sort_keys=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
