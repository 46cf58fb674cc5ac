"""Which phone is used: a real adb client, and stand-ins that answer its protocol."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from edgekiln.device.adb import check_place, choose, find_adb, list_devices
from edgekiln.errors import DeviceError, UsageError
from tests.device.standin import Phone


def test_the_only_phone_is_chosen(phones: Callable[..., Phone]) -> None:
    phone = phones()
    chosen = choose()
    assert chosen.serial == phone.serial
    assert chosen.model == "Stand in"
    assert chosen.properties("ro.soc.model", "ro.no.such") == {
        "ro.soc.model": "SM8750",
        "ro.no.such": "",
    }


def test_no_phone_is_said_with_what_to_do(adb: Callable[..., str]) -> None:
    with pytest.raises(DeviceError, match="no phone is connected") as caught:
        choose()
    assert "USB debugging" in caught.value.remedy


def test_of_two_phones_one_must_be_named(
    phones: Callable[..., Phone], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = phones(), phones()
    with pytest.raises(DeviceError, match="2 devices") as caught:
        choose()
    assert first.serial in caught.value.why and second.serial in caught.value.why
    assert "--serial" in caught.value.remedy
    assert choose(second.serial).serial == second.serial
    monkeypatch.setenv("ANDROID_SERIAL", first.serial)
    assert choose().serial == first.serial


def test_a_serial_that_is_not_there_gets_the_nearest(phone: Phone) -> None:
    with pytest.raises(DeviceError, match="no device has the serial") as caught:
        choose(phone.serial + "x")
    assert phone.serial in caught.value.remedy


def test_a_phone_that_has_not_allowed_this_computer(phones: Callable[..., Phone]) -> None:
    phone = phones(authorized=False)
    with pytest.raises(DeviceError, match="unauthorized") as caught:
        choose(phone.serial)
    assert "accept" in caught.value.remedy


def test_a_phone_that_does_not_answer(phones: Callable[..., Phone]) -> None:
    # adb itself gives up after ten seconds and goes on listing it as offline.
    phone = phones(answers=False)
    with pytest.raises(DeviceError, match="offline") as caught:
        choose(phone.serial)
    assert "adb reconnect" in caught.value.remedy


def test_without_adb_it_is_said_where_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("ANDROID_SDK_ROOT", raising=False)
    monkeypatch.delenv("ANDROID_HOME", raising=False)
    with pytest.raises(DeviceError, match="adb was not found") as caught:
        find_adb()
    assert "apt install adb" in caught.value.remedy
    program = tmp_path / "sdk" / "platform-tools" / "adb"
    program.parent.mkdir(parents=True)
    program.write_text("")
    monkeypatch.setenv("ANDROID_HOME", str(tmp_path / "sdk"))
    assert find_adb() == program


def test_exit_codes_and_both_outputs_are_the_phones(phone: Phone) -> None:
    done = choose().shell("echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")


def test_a_connection_that_breaks_is_named(phone: Phone, adb: Callable[..., str]) -> None:
    chosen = choose()
    adb("disconnect", phone.serial)
    with pytest.raises(DeviceError, match="lost"):
        chosen.shell("true")


def test_listing_names_states(phones: Callable[..., Phone]) -> None:
    phones()
    phones(authorized=False)
    assert {d.state for d in list_devices(find_adb())} == {"device", "unauthorized"}


@pytest.mark.parametrize("place", ["data/local", "/", "/data", "/data/../etc/x", ""])
def test_a_bundle_needs_a_folder_of_its_own(place: str) -> None:
    with pytest.raises(UsageError, match="--to"):
        check_place(place)


def test_a_folder_may_end_in_a_slash() -> None:
    assert check_place("/data/local/tmp/x/") == "/data/local/tmp/x"


def test_the_command_ends_with_a_code_of_its_own(adb: Callable[..., str]) -> None:
    done = subprocess.run(
        ["./kiln", "device", "push", "--bundle", "tests"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "no bundle of edgekiln's" in done.stderr
