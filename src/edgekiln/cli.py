"""What the commands share: how errors leave, how flags are made from options, nearest names."""

from __future__ import annotations

import contextlib
import errno
import functools
import inspect
import io
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgekiln.backends import list_backends
from edgekiln.errors import KilnError, UsageError, nearest
from edgekiln.options import Spec, Value
from edgekiln.report import Reporter, make_reporter, paint, shown_as, unless_gone

_INTERRUPTED = 130
_STOPPED = "stopped; finished stages are kept"
_THE_USERS_TO_MEND = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def reporting(
    *, quiet: bool = False, as_json: bool = False, debug: bool = False
) -> Iterator[Reporter]:
    """A reporter for a command; a KilnError on the way is shown and ends it with its code."""
    from invoke.exceptions import Exit

    reporter = make_reporter(quiet=quiet, as_json=as_json)
    restore = _terminate_like_interrupt()
    try:
        with shown_as(quiet=quiet, as_json=as_json):
            yield reporter
    except KilnError as error:
        reporter.close()
        if debug:
            traceback.print_exc()
        reporter.failed(error) if as_json else show_error(error)
        raise Exit(code=error.exit_code) from None
    except KeyboardInterrupt:
        reporter.close()
        if as_json:
            reporter.say(_STOPPED)
        else:
            with unless_gone():
                print(f"\n{_STOPPED}", file=sys.stderr)
        raise Exit(code=_INTERRUPTED) from None
    except Exception as error:
        # A broken pipe is `| head` having seen enough; who started the command sees to it.
        if debug or isinstance(error, (Exit, BrokenPipeError)):
            raise
        reporter.close()
        told = _unexpected(error)
        reporter.failed(told) if as_json else show_error(told)
        raise Exit(code=told.exit_code) from None
    finally:
        reporter.close()
        restore()


def show_error(error: KilnError) -> None:
    """The error's lines on standard error, the first in red on a terminal."""
    first, *rest = error.lines()
    print("\n".join([paint(first, "31"), *rest]), file=sys.stderr)


def _unexpected(error: Exception) -> KilnError:
    if isinstance(error, OSError) and error.errno in _THE_USERS_TO_MEND:
        from edgekiln.store import disk_error

        return disk_error(error, Path(str(error.filename or "a file")))
    return KilnError(
        "edgekiln made a mistake",
        why=f"{type(error).__name__}: {error}".splitlines()[0],
        remedy="run it again with --debug and report what it prints",
    )


def _terminate_like_interrupt() -> Callable[[], None]:
    """SIGTERM, or a terminal that goes away, ends a build as Ctrl-C does: containers removed."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before: dict[int, Any] = {}
    for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        # What nohup has set to be ignored stays so.
        if signal.getsignal(number) is not signal.SIG_IGN:
            with contextlib.suppress(ValueError):  # not the main thread
                before.setdefault(number, signal.signal(number, stop))

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    return restore


def command(body: Callable[..., None]) -> Callable[..., None]:
    """Make a function that prints a command: it takes `debug`, `quiet` and `json` besides its own.

    With `json`, what it prints for people is one result, `printed`; it fails with words.
    """

    @functools.wraps(body)
    def run(*args: Any, **kwargs: Any) -> None:
        debug, quiet, as_json = (bool(kwargs.pop(name, False)) for name in _FLAGS)
        with (
            reporting(debug=debug, quiet=quiet, as_json=as_json) as reporter,
            _printed(reporter) if as_json else contextlib.nullcontext(),
        ):
            body(*args, **kwargs)

    run.__signature__ = _with_flags(inspect.signature(body), _FLAGS)  # type: ignore[attr-defined]
    return run


def at_terminal(body: Callable[..., None]) -> Callable[..., None]:
    """The same for a command whose programs write to the terminal themselves: `debug` only."""

    @functools.wraps(body)
    def run(*args: Any, **kwargs: Any) -> None:
        with reporting(debug=bool(kwargs.pop("debug", False))):
            body(*args, **kwargs)

    own = inspect.signature(body)
    run.__signature__ = _with_flags(own, _FLAGS[:1])  # type: ignore[attr-defined]
    return run


_FLAGS = ("debug", "quiet", "json")


@contextmanager
def _printed(reporter: Reporter) -> Iterator[None]:
    """Make one result of what is printed, also of what was before an error."""
    text = io.StringIO()
    try:
        with contextlib.redirect_stdout(text):
            yield
    finally:
        if said := text.getvalue().strip("\n"):
            reporter.result("printed", said.splitlines(), said)


def _with_flags(signature: inspect.Signature, names: Iterable[str]) -> inspect.Signature:
    own = signature.parameters
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    flags = [inspect.Parameter(name, kind, default=False) for name in names if name not in own]
    return signature.replace(parameters=[*own.values(), *flags])


def with_options(specs: Iterable[Spec]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command a flag for each option; it gets those that were given as `options`.

    A flag's default is nothing: what is not given is the recipe's or the preset's to say. An
    option that is true or false has two flags, --hqq and --no-hqq.
    """
    known = {spec.name: spec for spec in specs}

    def wrap(body: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(body)
        def run(*args: Any, **kwargs: Any) -> None:
            given = {name: kwargs.pop(name, None) for name in known}
            for name in [n for n, s in known.items() if s.type is bool]:
                refused = kwargs.pop(f"no_{name}")
                if given[name] and refused:
                    with reporting(as_json=bool(kwargs.get("json"))):
                        raise _both(name.replace("_", "-"))
                given[name] = True if given[name] else False if refused else None
            body(*args, options={k: v for k, v in given.items() if v is not None}, **kwargs)

        own = inspect.signature(body)
        kept = [p for p in own.parameters.values() if p.name != "options"]
        run.__signature__ = own.replace(  # type: ignore[attr-defined]
            parameters=[*kept, *(p for spec in known.values() for p in _flags(spec))]
        )
        return run

    return wrap


def _both(flag: str) -> UsageError:
    return UsageError(f"--{flag} and --no-{flag} contradict each other", remedy="give one of them")


def _flags(spec: Spec) -> list[inspect.Parameter]:
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    if spec.type is bool:
        names = (spec.name, f"no_{spec.name}")
        return [inspect.Parameter(name, kind, default=False) for name in names]
    return [inspect.Parameter(spec.name, kind, default=None)]


def lacking(context: Any, body: Callable[..., None]) -> UsageError | None:
    """What is wrong with a parsed command whose function has an argument that was not given."""
    needed = inspect.signature(body).parameters.values()
    for name in [p.name for p in needed if p.default is inspect.Parameter.empty]:
        argument = context.args.get(name)
        if argument is not None and not argument.positional and argument.value is None:
            where = f"kiln {context.name.replace('.', ' ')}"
            flag = f"--{name.replace('_', '-')}"
            return UsageError(f"{where} needs {flag}", remedy=f"`{where} --help` says what it is")
    return None


def option_help(backends: Mapping[str, Iterable[Spec]]) -> dict[str, str]:
    """The help of each option's flags: whose it is, what it does, what it accepts, its default.

    A flag that two backends have says what it is to each of them.
    """
    found: dict[str, list[str]] = {}
    for backend, specs in backends.items():
        for spec in specs:
            name, whose = spec.name.replace("_", "-"), f"[{backend} {spec.group}]"
            found.setdefault(name, []).append(f"{whose} {spec.help} ({accepts(spec)})")
            if spec.type is bool:
                found.setdefault(f"no-{name}", []).append(f"{whose} the opposite of --{name}")
    return {name: "; ".join(texts) for name, texts in found.items()}


def accepts(spec: Spec) -> str:
    """The values an option takes and its default, in a few words."""
    default = f"default {_word(spec.default)}"
    if spec.choices:
        return f"{' | '.join(_word(c) for c in spec.choices)}; {default}"
    if spec.low is not None or spec.high is not None:
        low = "" if spec.low is None else f"{spec.low}"
        high = "" if spec.high is None else f"{spec.high}"
        return f"{low}..{high}; {default}"
    return default


def _word(value: Value) -> str:
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def given(name: str, value: str | None) -> str:
    """A flag's text, nothing where the flag was left out. Raises UsageError for an empty one.

    `--model "$MODEL"` with a variable that is not set would build another model than was meant.
    """
    if value is not None and not value.strip():
        raise UsageError(
            f"--{name} is empty",
            why="a variable that is not set looks like this",
            remedy=f"give a value, or leave --{name} out",
        )
    return value or ""


def several(name: str, values: Iterable[str] | None) -> tuple[str, ...]:
    """A flag's texts, where it may be given several times. Raises UsageError for one without.

    Invoke takes such a flag at the end, or before another one, for one that was not given.
    """
    found = tuple(values or ())
    times = sum(word == f"--{name}" or word.startswith(f"--{name}=") for word in sys.argv[1:])
    if times > len(found) or not all(text.strip() for text in found):
        raise UsageError(f"--{name} needs a value", remedy="`kiln build --help` says which")
    return found


def offline(vendor_dir: str | None, accept_licence: str | None, *, alone: bool = False) -> None:
    """Let --vendor-dir, --accept-licence and --offline (`alone`) hold, as their variables do.

    Raises UsageError for a folder that is not there, or a licence that nothing asks for.
    """
    if alone:
        os.environ["EDGEKILN_OFFLINE"] = "1"
    option = given("vendor-dir", vendor_dir)
    if folder := option or os.environ.get("EDGEKILN_VENDOR", ""):
        place = Path(folder).expanduser().absolute()
        if not place.is_dir():
            raise UsageError(
                f"{'--vendor-dir' if option else 'EDGEKILN_VENDOR'} {folder} is no folder",
                remedy="fill one with `kiln toolchains fetch NAME --to DIR`",
            )
        os.environ["EDGEKILN_VENDOR"] = str(place)
    if names := given("accept-licence", accept_licence):
        from edgekiln.kits import licences

        before = os.environ.get(licences.VARIABLE, "")
        os.environ[licences.VARIABLE] = f"{before},{names}"
        licences.accept_by_option()


def profile(reporter: Reporter, name: str | None) -> None:
    """Let --profile hold for this command, and say what the profile in force has set.

    Raises UsageError for a profile that there is none of.
    """
    from edgekiln.boxes import profiles

    chosen = given("profile", name)
    in_force = profiles.settle(chosen) if chosen else profiles.settled()
    if told := in_force.told():
        reporter.say(told)


def name_the_nearest() -> None:
    """Teach Invoke's "No idea what '--quant-bits' is!" to say what was probably meant.

    Invoke raises ParseError with the context it was parsing; there is no hook before it is
    printed, so its text is made here.
    """
    from invoke.exceptions import ParseError

    def text(error: Any) -> str:
        said = str(error.args[0]) if error.args else ""
        lines = _parse_error(said, error.context)
        return "\n".join(UsageError(lines[0], remedy=lines[1]).lines()) if lines else said

    ParseError.__str__ = text  # type: ignore[method-assign]


def _parse_error(said: str, context: Any) -> tuple[str, str] | None:
    """What went wrong and what to do, out of Invoke's words; None for words that are not known."""
    where = f"kiln {context.name.replace('.', ' ')}" if context and context.name else "kiln"
    if lacking := re.search(r"required positional arguments: '(\w+)'", said):
        return f"{where}: which {lacking[1]}?", f"`{where} --help` shows what it takes"
    if lacking := re.search(r"Flag <Argument: ([\w-]+).* needed value", said):
        flag = f"--{lacking[1].replace('_', '-')}"
        return f"{flag} needs a value", f"`{where} --help` says which"
    unknown = re.search(r"No idea what (['\"])(.*)\1 is", said)
    return _unknown_word(unknown[2], where, context) if unknown else None


def _unknown_word(word: str, where: str, context: Any) -> tuple[str, str]:
    flags = context.flags if context is not None and context.name else {}
    if flags and word.startswith("-"):
        remedy = nearest(word, [f for f in flags if f.startswith("--")])
        if remedy.startswith("one of"):
            remedy = f"{where} --help lists them"
        return f"{where} has no option {word}", remedy
    flag = _before(word, sys.argv[1:])
    if flag in flags:
        if flags[flag].takes_value:
            return f"{flag} is given twice", "give it once"
        return f"{flag} takes no value", f"leave {word!r} out"
    if word in list_backends() and "--backend" in flags:
        return f"{where} takes no {word} by itself", f"say --backend {word}"
    remedy = nearest(word, _COMMANDS).replace(".", " ")
    if flags and remedy.startswith("one of"):
        return f"{where} does not take {word!r} too", f"`{where} --help` shows what it takes"
    return f"there is no command {word.replace('.', ' ')}", remedy


def _before(word: str, arguments: Sequence[str]) -> str:
    """The flag that `word` follows, or is joined to by `=`, where it comes last."""
    found = ""
    for flag, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, joined, value = flag.partition("=")
        if name.startswith("--") and word == (value if joined else following):
            found = name
    return found


_COMMANDS: list[str] = []


def register(names: Iterable[str]) -> None:
    """Tell the names of all commands, for the nearest one."""
    _COMMANDS.extend(names)
