"""Images built twice: the same files with any engine, the same manifest where the builder can."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from edgekiln import images
from edgekiln.engine import Engine, fixedtimes
from edgekiln.errors import DifferenceError
from edgekiln.images import content, repro
from edgekiln.progress import Silent
from edgekiln.toolchain import load_toolchain
from tests.images.content import changed, listing
from tests.images.newerengine import UnavailableError, running
from tests.unit.imagekit import Told

pytestmark = pytest.mark.engine


def _only_on_request() -> None:
    """Bases and images made twice take minutes, too many for every change."""
    if not os.environ.get("EDGEKILN_TEST_REBUILDS"):
        pytest.skip("EDGEKILN_TEST_REBUILDS is not set: the weekly workflow sets it")


@pytest.fixture
def told() -> Told:
    return Told()


def test_every_change_of_an_image_is_found_with_its_first_byte(engine: Engine, told: Told) -> None:
    tag = images.build(engine, load_toolchain("qnn"), Silent())
    before = listing(engine, tag)
    script = (
        "cd /opt/edgekiln; printf x | dd of=checks.py bs=1 seek=100 conv=notrunc;"
        " chmod 700 lock.json; chown 1 installed.json; ln -sf /nowhere toolchain.json;"
        " touch /srv/new; rm verify; touch -d 2001-01-01 /etc/passwd"
    )
    with changed(engine, tag, script) as other:
        changes = content.differences(before, listing(engine, other))
        repro._tell_bytes(engine, [tag, other], changes, told)
    names = {change.name.removeprefix("opt/edgekiln/") for change in changes}
    wanted = {"checks.py", "lock.json", "installed.json", "toolchain.json", "srv/new", "verify"}
    assert names == wanted
    assert told.lines[0].startswith("opt/edgekiln/checks.py from byte 100 (0x64): ")


def test_an_image_that_was_changed_is_not_the_recorded_one(engine: Engine, told: Told) -> None:
    qnn = load_toolchain("qnn")
    tag = images.build(engine, qnn, Silent())
    known = repro.look(engine, qnn, tag, images.origin(engine, tag))
    repro.keep(qnn, known)
    recorded = replace(qnn, lock=replace(qnn.lock, images=(known.digests,)))
    with changed(engine, tag, "echo >> /opt/edgekiln/verify") as other:
        found = repro.look(engine, qnn, other, images.origin(engine, tag))
        with pytest.raises(DifferenceError, match="is not the image that its lock tells of"):
            repro.hold(recorded, found, told)
    assert [line.split(":")[1] for line in told.lines] == [" opt/edgekiln/verify"]


@pytest.mark.slow
def test_two_builds_from_nothing_hold_the_same(engine: Engine, told: Told) -> None:
    _only_on_request()
    qnn = load_toolchain("qnn")
    done = repro.twice(engine, qnn, told, frozen=False)
    assert len(done.found.listing) > 1000
    mine = f":verify-{os.getpid()}-"
    assert not any(mine in image["tag"] for image in images.list_images(engine))
    if not done.drift:
        repro.hold(qnn, done.found, told)
    assert not any(line.startswith("differs") for line in told.lines)


@pytest.fixture
def newer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share_expensive: Callable[[Path], Path]
) -> Iterator[Engine]:
    """An engine whose builder fixes times, made beside this machine's: minutes, so on request."""
    _only_on_request()
    place = tmp_path / "engine"
    place.mkdir()
    (tmp_path / "kiln").mkdir()
    home = share_expensive(tmp_path / "kiln")
    # What this engine has of bases is not written down among what the user's has.
    (home / "bases").unlink()
    monkeypatch.setenv("EDGEKILN_HOME", str(home))
    try:
        with running(place) as found:
            yield found
    except UnavailableError as why:
        pytest.skip(str(why))


@pytest.mark.slow
def test_where_times_can_be_fixed_two_builds_have_one_manifest(
    newer: Engine, told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgekiln.kits import vendor

    assert fixedtimes.why_not(newer) == ""
    qnn = load_toolchain("qnn")
    # It has no network: all it builds from lies in a folder.
    vendor.fill(qnn, tmp_path / "vendor", Silent())
    monkeypatch.setenv("EDGEKILN_VENDOR", str(tmp_path / "vendor"))
    done = repro.twice(newer, qnn, told, frozen=True)
    assert done.found.digests.manifest.startswith("sha256:")
    assert done.drift == ()
    # On this engine, and on the one that recorded them.
    repro.hold(qnn, done.found, told)
    shutil.rmtree(tmp_path / "vendor")
