"""The NDKs that are kits, and the toolchains that take one of them, for every backend."""

from __future__ import annotations

OWN = "r27c"
NDKS = (OWN, "r27-beta1", "r25c", "r26d", "r28c")


def with_ndk(toolchain: str, ndk: str) -> str:
    """The toolchain with the NDK that was asked for: its own kit, or a variant."""
    return toolchain if ndk == OWN else f"{toolchain}@ndk-{ndk}"
