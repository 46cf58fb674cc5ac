"""A real adb client with a server of its own, stand-ins for phones, and bundles to push."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from edgekiln.bundle import write_json
from edgekiln.device.adb import find_adb
from edgekiln.errors import DeviceError
from tests.device.standin import Phone

# As the documented program: answers between markers, repeats the prompt, and refuses to write
# over a profile. The profile is the one of the AIMET-to-QNN write-up.
GENIE = r"""#!/bin/sh
while [ $# -gt 0 ]; do
    case "$1" in
    -c) config=$2; shift 2;;
    --prompt_file) file=$2; shift 2;;
    --profile) profile=$2; shift 2;;
    *) echo "unknown option $1" >&2; exit 1;;
    esac
done
[ -f "$config" ] || { echo "ERROR: cannot open $config" >&2; exit 1; }
[ -n "$LD_LIBRARY_PATH" ] && [ -n "$ADSP_LIBRARY_PATH" ] || { echo "ERROR: no paths" >&2; exit 1; }
if [ -n "$profile" ] && [ -e "$profile" ]; then
    echo "ERROR: $profile already exists" >&2
    exit 1
fi
echo "Using libGenie.so version 1.21.0"
echo
printf '[PROMPT]: '; cat "$file"; printf '\n\n[BEGIN]: '
[ -f slow ] && { echo "thinking"; sleep 60; }
if [ -f answer.txt ]; then cat answer.txt; else printf 'Paris.'; fi
printf '[END]\n'
[ -n "$profile" ] && cat profile.json >"$profile"
exit 0
"""

PROFILE = {
    "header": {
        "header_version": {"major": 0, "minor": 1, "patch": 0},
        "version": {"major": 0, "minor": 1, "patch": 0},
        "artifact_type": "GENIE_PROFILE",
    },
    "metadata": {"timestamp": 391862341312},
    "components": [
        {
            "name": "dialog0",
            "type": "dialog",
            "events": [
                {
                    "type": "GenieDialog_create",
                    "duration": 1124864,
                    "start": 391862341614,
                    "stop": 391863466478,
                    "init-time": {"value": 1124713, "unit": "us"},
                },
                {
                    "type": "GenieDialog_query",
                    "duration": 5726945,
                    "start": 391863466531,
                    "stop": 391869193476,
                    "num-prompt-tokens": {"value": 823, "unit": ""},
                    "prompt-processing-rate": {"value": 1547.9876708984375, "unit": "toks/sec"},
                    "time-to-first-token": {"value": 531665, "unit": "us"},
                    "num-generated-tokens": {"value": 200, "unit": ""},
                    "token-generation-rate": {"value": 38.52525329589844, "unit": "toks/sec"},
                    "token-generation-time": {"value": 5191579, "unit": "us"},
                },
                {"type": "GenieDialog_free", "duration": 32347, "start": 1, "stop": 2},
            ],
        }
    ],
}

LIBRARIES = (
    "libGenie.so",
    "libQnnHtp.so",
    "libQnnHtpNetRunExtensions.so",
    "libQnnSystem.so",
    "libQnnHtpV79Stub.so",
    "libQnnHtpV79Skel.so",
)


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or writes the user's own cache."""
    monkeypatch.setenv("EDGEKILN_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ANDROID_SERIAL", raising=False)
    return tmp_path / "home"


@pytest.fixture(scope="session")
def adb_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    """A server of the tests' own on a port of its own: a user's phones are not touched."""
    try:
        adb = str(find_adb())
    except DeviceError as error:
        pytest.skip(f"{error.what}: {error.remedy}")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    folder = str(tmp_path_factory.mktemp("adb"))
    # The server's key is made in HOME; without mDNS it looks for no phones in the network.
    own = {"ANDROID_ADB_SERVER_PORT": port, "HOME": folder, "ADB_MDNS": "0"}
    own["PATH"] = f"{Path(adb).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, **own}
    subprocess.run([adb, "start-server"], env=env, check=True, capture_output=True, timeout=60)
    yield own
    subprocess.run([adb, "kill-server"], env=env, check=False, capture_output=True, timeout=60)


@pytest.fixture
def adb(adb_server: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Calls adb with the tests' server; what it printed."""
    for name, value in adb_server.items():
        monkeypatch.setenv(name, value)

    def call(*words: str) -> str:
        done = subprocess.run(
            ["adb", *words], capture_output=True, text=True, check=False, timeout=60
        )
        return done.stdout + done.stderr

    call("disconnect")
    return call


@pytest.fixture
def phones(adb: Callable[..., str], tmp_path: Path) -> Iterator[Callable[..., Phone]]:
    """Makes phones that are connected to the server."""
    made: list[Phone] = []

    def make(**how: bool) -> Phone:
        folder = tmp_path / f"phone{len(made)}"
        folder.mkdir()
        phone = Phone(folder, **how)
        made.append(phone)
        adb("connect", phone.serial)
        return phone

    yield make
    for phone in made:
        adb("disconnect", phone.serial)
        phone.close()


@pytest.fixture
def phone(phones: Callable[..., Phone], monkeypatch: pytest.MonkeyPatch) -> Phone:
    """One phone, connected, and the one that is used whatever else may be listed."""
    phone: Phone = phones()
    monkeypatch.setenv("ANDROID_SERIAL", phone.serial)
    return phone


def write_bundle(place: Path, files: Mapping[str, bytes], **about: object) -> Path:
    """A bundle with these files and a manifest that fits them."""
    listed = {}
    for name, data in files.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        listed[name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest = {"edgekiln": "0", "build_key": "k", "files": listed, **about}
    write_json(place / "manifest.json", manifest)
    return place


def qnn_files() -> dict[str, bytes]:
    """The files of a qnn bundle made with an SDK; its program is the stand-in."""
    config = {"dialog": {"engine": {"backend": {"extensions": "htp_backend_ext_config.json"}}}}
    template = {"format": 1, "prefix": "<|user|>\n", "suffix": "<|end|>\n<|assistant|>\n"}
    return {
        "README.md": b"words\n",
        "genie-t2t-run": GENIE.encode(),
        "genie_config.json": json.dumps(config).encode(),
        "htp_backend_ext_config.json": b'{"devices": [{"dsp_arch": "v79", "soc_model": 69}]}',
        "models/weight_sharing_model_1_of_1.serialized.bin": os.urandom(3 << 20),
        "profile.json": json.dumps(PROFILE).encode(),
        "prompts/template.json": json.dumps(template).encode(),
        "tokenizer.json": b"{}",
        **{name: name.encode() for name in LIBRARIES},
    }


@pytest.fixture
def qnn_bundle(tmp_path: Path) -> Path:
    """A qnn bundle, whole with libraries."""
    return make_qnn(tmp_path)


def make_qnn(tmp_path: Path, **changed: bytes | None) -> Path:
    """A qnn bundle with files changed, or left out where None is given for them."""
    files = {**qnn_files(), **changed}
    kept = {name: data for name, data in files.items() if data is not None}
    place = tmp_path / "build" / "tiny" / "qnn-sm8750"
    if place.exists():
        shutil.rmtree(place)
    about = {"backend": "qnn", "model": {"name": "tiny"}, "options": {"soc": "sm8750"}}
    return write_bundle(place, kept, **about)
