"""libGenie, the vendor's language model runtime, through its C interface.

The same library, with the same configuration files, that runs on a phone: here it drives the
x86-64 emulation of the Hexagon processor. A fault in it takes the process along, so callers run
this in a child (childwork.py).
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from ctypes import POINTER, byref, c_char_p, c_int, c_int32, c_size_t, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LIBRARY = "libGenie.so"
# Genie_Status_t: below 0 errors, 0 success, above 0 a query's ways to end early.
ABORTED, CONTEXT_EXCEEDED = 1, 4
# GenieDialog_SentenceCode_t
COMPLETE, BEGIN, CONTINUE = range(3)
_ACTION_ABORT = 1
_LOG_WARN = 2
_ERRORS = {
    -1: "a general error",
    -2: "an invalid argument",
    -3: "no memory",
    -4: "an invalid configuration",
    -5: "an invalid handle",
    -6: "the query failed",
    -7: "the configuration is no JSON",
    -8: "the configuration does not fit Genie's schema",
    -9: "a value in the configuration does not hold",
    -10: "generating failed",
}
_KEPT = 20
# A sampler that takes the likeliest token. "greedy": true alone is accepted and does nothing.
GREEDY = {"version": 1, "seed": 0, "temp": 1.0, "top-k": 1, "top-p": 1.0}

_OnTokens = ctypes.CFUNCTYPE(None, POINTER(c_uint32), c_uint32, c_int, c_void_p)
_OnText = ctypes.CFUNCTYPE(None, c_char_p, c_int, c_void_p)
_OnLog = ctypes.CFUNCTYPE(None, c_void_p, c_char_p, c_int, c_uint64, c_void_p)
_OnAlloc = ctypes.CFUNCTYPE(None, c_size_t, POINTER(c_void_p))


class GenieError(Exception):
    """Genie refused; the text holds its own words."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came of a query. `ended` is "end", "aborted", "tokens", "seconds" or "context"."""

    text: str
    pieces: int
    seconds: float
    first_seconds: float | None
    ended: str


@dataclass(kw_only=True)
class _Hearing:
    """Gathers the pieces of an answer, and says when it is enough."""

    most: int
    until: float
    begun: float
    told: Callable[[str, int], None] | None
    pieces: list[bytes] = field(default_factory=list)
    first: float | None = None
    ended: str = "end"

    def hear(self, piece: bytes) -> bool:
        """Take a token's piece; whether the answer is to be stopped.

        A piece can be empty: part of a character of several bytes.
        """
        if self.first is None:
            self.first = time.monotonic() - self.begun
        self.pieces.append(piece)
        if self.told:
            self.told(self.text, len(self.pieces))
        if len(self.pieces) >= self.most:
            self.ended = "tokens"
        elif time.monotonic() > self.until:
            self.ended = "seconds"
        return self.ended != "end"

    @property
    def text(self) -> str:
        return b"".join(self.pieces).decode("utf-8", errors="replace")


class Genie:
    """The library, loaded once a process."""

    def __init__(self) -> None:
        self._c = ctypes.CDLL(str(wheel_libraries() / LIBRARY))
        self._words: list[str] = []
        # Kept here: the library calls it as long as it lives.
        self._on_log = _OnLog(self._log)
        self._libc = ctypes.CDLL(None)

    @property
    def version(self) -> str:
        """Of Genie's interface, e.g. "1.21.0"."""
        numbers = (getattr(self._c, f"Genie_getApi{part}Version")() for part in _VERSION_PARTS)
        return ".".join(str(n) for n in numbers)

    def dialog(self, config: Mapping[str, Any]) -> Dialog:
        """A dialog from a configuration (genie_config.json's content).

        Raises GenieError with Genie's words where it refuses the configuration or the binaries.
        """
        log, settings, handle = c_void_p(), c_void_p(), c_void_p()
        text = json.dumps(config).encode()
        self.call("GenieLog_create", None, self._on_log, c_int(_LOG_WARN), byref(log))
        self.call("GenieDialogConfig_createFromJson", c_char_p(text), byref(settings))
        self.call("GenieDialogConfig_bindLogger", settings, log)
        self.call("GenieDialog_create", settings, byref(handle))
        return Dialog(self, handle, settings, log)

    def call(self, function: str, *arguments: Any) -> int:
        """Call a function of the library; its code where that is no error."""
        self._words.clear()
        talkative = function in _TALKATIVE
        hearing: AbstractContextManager[list[str]] = _overheard() if talkative else nullcontext([])
        with hearing as printed:
            code = c_int32(getattr(self._c, function)(*arguments)).value
        if code < 0:
            said = [w for w in (*printed, *self._words) if w.strip()][-_KEPT:]
            reason = _ERRORS.get(code, f"error {code}")
            raise GenieError(
                ": ".join([f"{function}: {reason}", *([" / ".join(said)] * bool(said))])
            )
        return code

    def _log(self, _: Any, form: bytes, level: int, __: int, values: Any) -> None:
        """GenieLog_Callback_t: a printf form with a va_list, which libc can spell out."""
        buffer = ctypes.create_string_buffer(2048)
        self._libc.vsnprintf(buffer, c_size_t(len(buffer)), c_char_p(form), c_void_p(values))
        line = buffer.value.decode("utf-8", errors="replace").strip()
        print(f"genie: {line}", file=sys.stderr)
        self._words.append(line)


# These print why they refuse, instead of logging it.
_TALKATIVE = ("GenieDialogConfig_createFromJson", "GenieDialog_create")
_VERSION_PARTS = ("Major", "Minor", "Patch")


class Dialog:
    """A loaded model with its context."""

    def __init__(self, genie: Genie, handle: c_void_p, config: c_void_p, log: c_void_p) -> None:
        self._genie, self._handle, self._config, self._log = genie, handle, config, log

    def ask(
        self,
        prompt: str,
        *,
        tokens: int,
        seconds: float,
        told: Callable[[str, int], None] | None = None,
    ) -> Answer:
        """Query with a whole prompt and stream the answer, from the context as it is.

        The answer is cut after `tokens` pieces or `seconds`, whichever comes first (the pass
        through the prompt itself is not cut). `told` hears the text so far and the pieces.
        """
        begun = time.monotonic()
        hearing = _Hearing(most=tokens, until=begun + seconds, begun=begun, told=told)

        def on_text(piece: bytes | None, code: int, _: Any) -> None:
            if code in (BEGIN, CONTINUE) and hearing.hear(piece or b""):
                self._genie._c.GenieDialog_signal(self._handle, c_int(_ACTION_ABORT))

        self._genie.call("GenieDialog_setMaxNumTokens", self._handle, c_uint32(tokens))
        code = self._genie.call(
            "GenieDialog_query",
            self._handle,
            c_char_p(prompt.encode()),
            c_int(COMPLETE),
            _OnText(on_text),
            None,
        )
        ended = "context" if code == CONTEXT_EXCEEDED else hearing.ended
        if code == ABORTED and ended == "end":
            ended = "aborted"
        return Answer(
            text=hearing.text,
            pieces=len(hearing.pieces),
            seconds=time.monotonic() - begun,
            first_seconds=hearing.first,
            ended=ended,
        )

    def continue_tokens(self, prompt: Sequence[int], count: int) -> list[int]:
        """At most `count` tokens that follow a prompt given as tokens."""
        given = (c_uint32 * len(prompt))(*prompt)
        made: list[int] = []

        def on_tokens(tokens: Any, number: int, code: int, _: Any) -> None:
            if code in (BEGIN, CONTINUE):
                made.extend(tokens[:number])

        self._genie.call("GenieDialog_setMaxNumTokens", self._handle, c_uint32(count))
        self._genie.call(
            "GenieDialog_tokenQuery",
            self._handle,
            given,
            c_uint32(len(prompt)),
            c_int(COMPLETE),
            _OnTokens(on_tokens),
            None,
        )
        return made

    def encode(self, text: str) -> list[int]:
        """The tokens that Genie itself makes of a text."""
        tokenizer, ids, count = c_void_p(), POINTER(c_int32)(), c_uint32()
        kept: list[Any] = []

        def allocate(size: int, place: Any) -> None:
            kept.append(ctypes.create_string_buffer(size))
            place[0] = ctypes.addressof(kept[-1])

        self._genie.call("GenieDialog_getTokenizer", self._handle, byref(tokenizer))
        self._genie.call(
            "GenieTokenizer_encode",
            tokenizer,
            c_char_p(text.encode()),
            _OnAlloc(allocate),
            byref(ids),
            byref(count),
        )
        return list(ids[: count.value])

    def reset(self) -> None:
        """Forget what was said."""
        self._genie.call("GenieDialog_reset", self._handle)

    def free(self) -> None:
        """Let go of the model's memory."""
        self._genie.call("GenieDialog_free", self._handle)
        self._genie.call("GenieDialogConfig_free", self._config)
        self._genie.call("GenieLog_free", self._log)


def wheel_libraries() -> Path:
    """The folder of the vendor's libraries for this machine."""
    import onnxruntime_qnn

    return Path(onnxruntime_qnn.get_qnn_htp_path()).parent


def with_paths(
    config: Mapping[str, Any], folders: Mapping[str, Path], binaries: Sequence[Path]
) -> dict[str, Any]:
    """A bundle's configuration with other binaries, a greedy sampler, and absolute paths.

    `folders` says where the files named by "tokenizer" and "extensions" lie.
    """
    copy: dict[str, Any] = json.loads(json.dumps(config))
    dialog = copy["dialog"]
    dialog["sampler"] = dict(GREEDY)
    dialog["tokenizer"]["path"] = str(folders["tokenizer"] / dialog["tokenizer"]["path"])
    engine = dialog["engine"]
    engine["model"]["binary"]["ctx-bins"] = [str(binary) for binary in binaries]
    backend = engine["backend"]
    if "extensions" in backend:
        backend["extensions"] = str(folders["extensions"] / backend["extensions"])
    return copy


@contextmanager
def _overheard() -> Iterator[list[str]]:
    """What the library prints meanwhile, line by line, once it is over.

    It goes to standard error at once, by a process of its own: a crash would take it along.
    """
    lines: list[str] = []
    sys.stdout.flush()
    sys.stderr.flush()
    before = os.dup(1), os.dup(2)
    with tempfile.NamedTemporaryFile() as held:
        tee = subprocess.Popen(["tee", held.name], stdin=subprocess.PIPE, stdout=before[1])
        assert tee.stdin
        os.dup2(tee.stdin.fileno(), 1)
        os.dup2(tee.stdin.fileno(), 2)
        try:
            yield lines
        finally:
            ctypes.CDLL(None).fflush(None)
            sys.stderr.flush()
            for number, old in enumerate(before, 1):
                os.dup2(old, number)
                os.close(old)
            tee.stdin.close()
            tee.wait()
            lines += held.read().decode("utf-8", errors="replace").splitlines()
