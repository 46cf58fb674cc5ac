"""Java's store of certificates: the same certificates make the same file, whenever made."""

from __future__ import annotations

import importlib.util
import struct
from types import ModuleType

import pytest

from edgekiln.home import project


@pytest.fixture(scope="module")
def keystore() -> ModuleType:
    """images/keystore.py, which imports nothing of ours."""
    spec = importlib.util.spec_from_file_location("keystore", project() / "images" / "keystore.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def store(keystore: ModuleType, names: str, milliseconds: int, tag: int = 2) -> bytes:
    """A store as Java writes it: one certificate a letter."""

    def text(word: str) -> bytes:
        return struct.pack(">H", len(word)) + word.encode()

    body = struct.pack(">III", 0xFEEDFEED, 2, len(names))
    for name in names:
        certificate = f"certificate {name}".encode()
        body += struct.pack(">I", tag) + text(f"debian:{name}.pem")
        body += struct.pack(">Q", milliseconds) + text("X.509")
        body += struct.pack(">I", len(certificate)) + certificate
    return bytes(body + keystore._digest(body))


def test_times_and_order_do_not_matter(keystore: ModuleType) -> None:
    now = keystore.settled(store(keystore, "abc", 1_700_000_000_000))
    later = keystore.settled(store(keystore, "cab", 1_800_000_000_000))
    assert now == later == keystore.settled(now)
    assert now == store(keystore, "abc", keystore.EPOCH * 1000)


def test_other_certificates_do(keystore: ModuleType) -> None:
    one, two = (keystore.settled(store(keystore, names, 1)) for names in ("ab", "ac"))
    assert one != two


@pytest.mark.parametrize("harm", [0, 30, -1])
def test_what_is_no_whole_store_is_left_alone(keystore: ModuleType, harm: int) -> None:
    whole = bytearray(store(keystore, "ab", 1))
    whole[harm] ^= 1
    with pytest.raises(ValueError, match="usual password"):
        keystore.settled(bytes(whole))


def test_keys_are_not_touched(keystore: ModuleType) -> None:
    with pytest.raises(ValueError, match="keys"):
        keystore.settled(store(keystore, "a", 1, tag=1))
