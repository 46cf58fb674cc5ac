"""Licences that want an acceptance: asked for once, recorded, or accepted by option.

Nothing is accepted on anybody's behalf. home()/licences.json is the record.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekiln.errors import LicenceError, UsageError, nearest
from edgekiln.home import home
from edgekiln.kits.firstuse import read_json, write_json
from edgekiln.locking import held
from edgekiln.report import may_ask

if TYPE_CHECKING:
    from edgekiln.kits import Kit

VARIABLE = "EDGEKILN_ACCEPT_LICENCES"


@dataclass(frozen=True, kw_only=True)
class Licence:
    """A licence by the name the option takes."""

    name: str
    title: str
    address: str


LICENCES = {
    licence.name: licence
    for licence in (
        Licence(
            name="android-sdk",
            title="Android Software Development Kit License Agreement",
            address="https://developer.android.com/studio/terms",
        ),
        Licence(
            name="android-sdk-preview",
            title="Android SDK Preview License Agreement",
            address="https://developer.android.com/studio/terms",
        ),
        Licence(
            name="qairt",
            title="licence of the Qualcomm AI Runtime SDK",
            address="the LICENSE file in the SDK's folder",
        ),
    )
}


def record_file() -> Path:
    """Where the record lies."""
    return home() / "licences.json"


def accepted(name: str) -> bool:
    """Whether a licence was accepted here, now by option or earlier."""
    return name in _by_option() or name in read_json(record_file())


def accept_by_option() -> None:
    """Record every licence that the option or the environment accepts."""
    for name in _by_option():
        _record(name, "option")


def require(names: Iterable[str], *, whose: str) -> None:
    """Raise LicenceError unless each licence is accepted; one accepted by option is recorded."""
    for name in sorted({name for name in names if name}):
        if name in _by_option():
            _record(name, "option")
        elif not accepted(name):
            raise _refused(LICENCES[name], whose)


def settle(names: Iterable[str], *, whose: str) -> None:
    """As `require`, but where a person is at the terminal they are asked, once for each.

    Raises LicenceError where one is refused or nobody can be asked.
    """
    for name in sorted({name for name in names if name}):
        if not accepted(name) and may_ask():
            if not _ask(LICENCES[name], whose):
                raise _refused(LICENCES[name], whose, why="you did not accept it")
            _record(name, "terminal")
        require([name], whose=whose)


def settle_for(kits: Iterable[Kit]) -> None:
    """As `settle` for all licences of the kits: each is asked for once, with all that it covers."""
    covered: dict[str, list[str]] = {}
    for kit in kits:
        covered.setdefault(kit.licence, []).append(kit.name)
    for name, names in covered.items():
        settle([name], whose=", ".join(names))


def _by_option() -> list[str]:
    """The names that --accept-licence or the environment gives. Raises UsageError for others."""
    given = os.environ.get(VARIABLE, "").replace(",", " ").split()
    for name in given:
        if name not in LICENCES:
            raise UsageError(f"no licence {name} is asked for", remedy=nearest(name, LICENCES))
    return given


def _ask(licence: Licence, whose: str) -> bool:
    print(f"Under the {licence.title}: {whose}\n  {licence.address}", file=sys.stderr)
    print("Do you accept it? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _record(name: str, how: str) -> None:
    with held(home() / "locks" / "licences.lock"):
        entries = read_json(record_file())
        if name not in entries:
            when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            entries[name] = {"accepted": when, "how": how, "address": LICENCES[name].address}
            write_json(record_file(), entries)


def _refused(licence: Licence, whose: str, *, why: str = "") -> LicenceError:
    return LicenceError(
        f"the {licence.title} has to be accepted, for {whose}",
        why=why or f"its terms: {licence.address}",
        remedy=f"read its terms, then say --accept-licence {licence.name} "
        f"(or {VARIABLE}={licence.name}); it is asked for once",
    )
