"""Doctor on boxes that will not do: each refused with the right reason, and nobody was asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgekiln.engine import Engine
from edgekiln.errors import AccessError, BoxError, DiskError, OutOfMemoryError
from tests.boxes import kit
from tests.boxes.conftest import Rent
from tests.boxes.kit import Box
from tests.builds.kit import three_lines
from tests.unit.servers import Site, serving

pytestmark = [pytest.mark.engine, pytest.mark.slow]

BUILD = ("build", "--backend", "qnn", "--executor", "native")
DOCTOR = ("doctor", "--backend", "qnn", "--executor", "native")


@pytest.fixture
def hub(rent: Rent) -> Iterator[tuple[Site, dict[str, str]]]:
    """Whoever a box would ask: the Hub, an index and a proxy in one, that counts what it is asked.

    It listens on the engine's own network, where boxes reach this machine.
    """
    with serving(Site(), host="0.0.0.0") as site:
        gate = kit.gateway(rent().engine)
        address = f"http://{gate}:{site.url.rpartition(':')[2]}"
        env = {"HF_ENDPOINT": address, "PIP_INDEX_URL": f"{address}/simple", "PIP_NO_INDEX": ""}
        yield site, {**env, "EDGEKILN_VENDOR": "", "http_proxy": address, "https_proxy": address}


def refused(box: Box, site: Site, env: dict[str, str], *more: str, **options: str) -> list[str]:
    """What a build in a box ends with; doctor says the same, and nobody was asked anything."""
    built = box.kiln(*BUILD, *more, env=env, **options)
    lines = three_lines(built)
    looked = box.kiln(*DOCTOR, *more, env=env, **options)
    assert looked.returncode == built.returncode, looked.stdout + looked.stderr
    assert three_lines(looked) == lines
    assert site.asked == []
    return [str(built.returncode), *lines]


def test_somebody_would_be_asked_on_a_box_that_will_do(
    rent: Rent, hub: tuple[Site, dict[str, str]]
) -> None:
    site, env = hub
    rent().kiln(*BUILD, "--model", "some/model", env=env)
    assert site.asked


def test_two_gigabytes_of_memory(rent: Rent, hub: tuple[Site, dict[str, str]]) -> None:
    box = rent(memory="2g", env={"EDGEKILN_PROFILE": "plain"})
    code, what, why, remedy = refused(box, *hub)
    assert int(code) == OutOfMemoryError.exit_code
    assert "stage compile" in what and "2.5 GB of memory" in what
    assert "killed" in why and "larger machine" in remedy


def test_the_start_without_a_gpu(rent: Rent, hub: tuple[Site, dict[str, str]]) -> None:
    box = rent(memory="2g", cpus="0.5")
    code, what, why, remedy = refused(box, *hub)
    assert int(code) == BoxError.exit_code
    assert "AutoDL started without its GPU" in what
    assert "good for fetching" in why and "kiln models get" in remedy


def test_a_data_disk_of_one_gigabyte(rent: Rent, hub: tuple[Site, dict[str, str]]) -> None:
    code, what, why, _ = refused(rent(disk="1g"), *hub)
    assert int(code) == DiskError.exit_code
    assert kit.DATA in what and "1.1 GB are free" in what
    assert "the toolchain qnn" in why


@pytest.mark.parametrize("user", ["root", kit.RENTER])
def test_a_home_that_cannot_be_written(
    rent: Rent, hub: tuple[Site, dict[str, str]], user: str
) -> None:
    site, env = hub
    box = rent(user=user, read_only_home=True, env={"EDGEKILN_PROFILE": "plain"})
    code, what, why, remedy = refused(box, site, env, home="")
    assert int(code) == AccessError.exit_code
    assert ".cache/edgekiln" in what and "read-only" in why and "EDGEKILN_HOME" in remedy


def test_a_masked_proc(rent: Rent, hub: tuple[Site, dict[str, str]]) -> None:
    code, what, why, _ = refused(rent(masked=("/proc/meminfo",)), *hub)
    assert int(code) == BoxError.exit_code
    assert "cannot be watched" in what and "/proc/meminfo is empty" in why


def test_a_chroot_without_proc(rent: Rent, hub: tuple[Site, dict[str, str]]) -> None:
    """As root may make one inside a box, where nothing can be mounted."""
    site, env = hub
    box = rent()
    box.must("mkdir", "/jail", "/jail/proc", "/jail/tmp", "/jail/dev")
    box.must("cp", "-a", "/usr", "/etc", "/bin", "/lib", "/lib64", "/srv", "/jail")
    words = ["chroot", "/jail", *box.kiln_words(*BUILD)]
    done = box.run(*words, env={**box.kiln_env("/tmp/home", env)})
    _, why, remedy = three_lines(done)
    assert done.returncode == BoxError.exit_code
    assert "/proc/self/stat" in why and "chroot" in remedy
    assert site.asked == []


def test_an_older_release(engine: Engine, rent: Rent, hub: tuple[Site, dict[str, str]]) -> None:
    site, env = hub
    image = kit.older_image(engine)
    if image is None:
        pytest.skip("mmdebstrap cannot make a Debian 11 here")
    box = rent(image=image)
    done = box.kiln(*BUILD, env=env)
    assert done.returncode == BoxError.exit_code, done.stderr
    what, why, remedy = three_lines(done)
    assert "no Python 3.10 or newer" in what
    assert "Debian GNU/Linux 11" in why and "glibc 2.31" in why
    assert "Ubuntu 22.04" in remedy
    assert site.asked == []


def told(box: Box, *words: str, **env: str) -> dict[str, Any]:
    """What doctor says of the machine, for machines; of several disks the first."""
    done = box.kiln("doctor", *words, "--json", env=env)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    found = [event for event in events if event["event"] == "result"]
    return {event["name"]: event["value"] for event in reversed(found)}


def test_what_a_box_is(rent: Rent, tmp_path: Path) -> None:
    box = rent(memory="3g", cpus="0.5")
    found = told(box)
    assert found["profile"] == "autodl"
    assert found["machine"]["hints"] and not found["machine"]["mounts"]
    assert found["memory"]["limit"] == 3 << 30
    assert found["memory"]["usable"] < 3 << 30
    assert found["cores"] == {"usable": 1, "limit": 0.5}
    assert (found["disk"]["data"], found["disk"]["path"]) == (True, kit.DATA)
    assert found["GPU"] is None and found["engine"] is None
    assert found["distribution"] == {"id": "debian", "version": "12"}


def test_a_profile_moves_the_cache_unless_the_user_says_where(rent: Rent) -> None:
    box = rent(user=kit.RENTER)
    done = box.kiln("doctor", home="")
    assert f"EDGEKILN_HOME={kit.DATA}/edgekiln" in done.stderr
    assert f"cache        {kit.DATA}/edgekiln" in done.stdout
    assert "HF_ENDPOINT=" in done.stderr
    own = box.kiln("doctor", home="/tmp/mine", env={"HF_ENDPOINT": "http://127.0.0.1:9"})
    assert "cache        /tmp/mine" in own.stdout
    assert "EDGEKILN_HOME" not in own.stderr and "HF_ENDPOINT" not in own.stderr
