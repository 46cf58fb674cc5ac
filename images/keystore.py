#!/usr/bin/env python3
"""Takes the time of its making out of a Java key store of certificates.

ca-certificates-java notes for each certificate when it put it in, so that no two builds of an
image had the same file. Here every entry gets the one moment, entries are put in order, and the
store's own digest is made again. It holds certificates only, which are public; its password is
Java's usual one.

    keystore.py FILE
"""

from __future__ import annotations

import hashlib
import struct
import sys
from pathlib import Path

_HEAD = struct.pack(">II", 0xFEEDFEED, 2)
_CERTIFICATE = 2
_PASSWORD = "changeit"
# As Java salts it: sun.security.provider.JavaKeyStore.
_SALT = b"Mighty Aphrodite"
# provision.py has the same; a store counts in milliseconds.
EPOCH = 1735689600


def settled(store: bytes) -> bytes:
    """The store with every time fixed. Raises ValueError for anything but such a store."""
    body, digest = store[:-20], store[-20:]
    if not body.startswith(_HEAD) or _digest(body) != digest:
        raise ValueError("no Java key store of Java's usual password")
    (count,) = struct.unpack_from(">I", body, len(_HEAD))
    place, entries = len(_HEAD) + 4, []
    for _ in range(count):
        entry, place = _entry(body, place)
        entries.append(entry)
    if place != len(body):
        raise ValueError("there is more in it than its entries")
    fixed = _HEAD + struct.pack(">I", count) + b"".join(sorted(entries))
    return fixed + _digest(fixed)


def _entry(body: bytes, place: int) -> tuple[bytes, int]:
    """One certificate with its time fixed, and where the next one begins."""
    begin = place
    (tag,) = struct.unpack_from(">I", body, place)
    if tag != _CERTIFICATE:
        raise ValueError("it holds keys, not certificates alone")
    place = _after_text(body, place + 4)
    named = body[begin:place]
    place += 8
    rest = place
    place = _after_text(body, place)
    (size,) = struct.unpack_from(">I", body, place)
    place += 4 + size
    return named + struct.pack(">Q", EPOCH * 1000) + body[rest:place], place


def _after_text(body: bytes, place: int) -> int:
    (size,) = struct.unpack_from(">H", body, place)
    return int(place + 2 + size)


def _digest(body: bytes) -> bytes:
    # The format is as old as that; it guards nothing secret.
    return hashlib.sha1(_PASSWORD.encode("utf-16-be") + _SALT + body).digest()


def main() -> int:
    """Settle the file named on the command line, where it is such a store."""
    path = Path(sys.argv[1])
    try:
        path.write_bytes(settled(path.read_bytes()))
    except (ValueError, struct.error) as error:
        print(f"keystore: {path} stays as it is: {error}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
