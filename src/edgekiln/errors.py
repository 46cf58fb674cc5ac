"""One class a kind of failure: an exit code, what happened, why, and what to do.

Every error a user can cause or meet is a `KilnError`. The commands print its three lines and
leave with its exit code; docs/errors.md lists them all. Anything else that escapes is a fault
of ours and leaves with 1.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class KilnError(Exception):
    """A failure with its reason and its remedy, each one line."""

    exit_code = 1
    kind = "fault"

    def __init__(self, what: str, *, why: str = "", remedy: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.remedy = remedy

    @property
    def short(self) -> str:
        """What happened and why, in one line of a list."""
        return f"{self.what}: {self.why}" if self.why else self.what

    def lines(self) -> list[str]:
        """The message as it is shown: what happened, why, what to do."""
        shown = [f"error: {self.what}"]
        if self.why:
            shown.append(f"why:   {self.why}")
        if self.remedy:
            shown.append(f"do:    {self.remedy}")
        return shown


class UsageError(KilnError):
    """A command line, option or recipe that does not say what can be done."""

    exit_code = 2
    kind = "usage"


class ModelError(KilnError):
    """A model directory that is missing, incomplete, damaged or of a family not supported."""

    exit_code = 3
    kind = "model"


class ToolchainError(KilnError):
    """A toolchain file or lock that is wrong or no longer matches what it pins."""

    exit_code = 4
    kind = "toolchain"


class FetchError(KilnError):
    """Something that could not be downloaded."""

    exit_code = 5
    kind = "fetch"


class DigestError(KilnError):
    """Bytes that are not the bytes that were pinned."""

    exit_code = 6
    kind = "digest"


class EngineError(KilnError):
    """No container engine, or one that went away."""

    exit_code = 7
    kind = "engine"


class ImageError(KilnError):
    """An image (or native prefix) that could not be built, or failed its verify."""

    exit_code = 8
    kind = "image"


class StageError(KilnError):
    """A stage's program ended badly, or its outputs failed their checks."""

    exit_code = 9
    kind = "stage"


class OutOfMemoryError(KilnError):
    """A stage was killed for memory, or would be."""

    exit_code = 10
    kind = "memory"


class DiskError(KilnError):
    """The disk is full, or would be."""

    exit_code = 11
    kind = "disk"


class AccessError(KilnError):
    """A file or folder that may not be read or written."""

    exit_code = 12
    kind = "access"


class QualityError(KilnError):
    """A model that was made, but answers worse than its preset allows."""

    exit_code = 13
    kind = "quality"


class DeviceError(KilnError):
    """No phone, one that may not be used, or one on which something went wrong."""

    exit_code = 14
    kind = "device"


class ArtifactError(KilnError):
    """A file that is of no known kind, or damaged."""

    exit_code = 15
    kind = "artifact"


class BundleError(KilnError):
    """A bundle in which the linter found what the phone would refuse."""

    exit_code = 16
    kind = "bundle"


class LicenceError(KilnError):
    """A licence that wants an acceptance and has none."""

    exit_code = 17
    kind = "licence"


class DifferenceError(KilnError):
    """Two bundles or images that should be the same and are not."""

    exit_code = 18
    kind = "difference"


class SignatureError(KilnError):
    """A signature that is missing, wrong, of another key, or about other files."""

    exit_code = 19
    kind = "signature"


class UpstreamError(KilnError):
    """Something that a lock pins is gone from where it came from, or is another thing now."""

    exit_code = 20
    kind = "upstream"


class JobError(KilnError):
    """A build in the background that was killed from outside."""

    exit_code = 23
    kind = "job"


class RemoteError(KilnError):
    """Another machine that cannot be reached, is not the one it should be, or was lost."""

    exit_code = 22
    kind = "remote"


class BoxError(KilnError):
    """A machine, mostly a rented one, on which what was asked for cannot run."""

    exit_code = 24
    kind = "box"


def nearest(wrong: str, right: Iterable[str]) -> str:
    """A remedy that names the closest of `right`, or lists them all when none is close."""
    known = sorted(right)
    close = difflib.get_close_matches(wrong, known, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]}?"
    return f"one of: {', '.join(known)}" if known else "nothing is accepted here"
