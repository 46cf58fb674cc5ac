"""`kiln …`: Invoke with our name, and with a space where Invoke's task names have a dot."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence

from edgekiln import __version__
from edgekiln.errors import UsageError
from edgekiln.home import project

_GROUPS = (
    "bundle", "device", "engine", "hosts", "images", "models", "package", "recipes", "store",
    "toolchains", "verify",
)  # fmt: skip
_HELP = ("help", "--help", "-h")
# Invoke has no positional argument that may be left out: these are flags to it.
_OPTIONAL = {
    "toolchains.lock": "--name",
    "toolchains.health": "--name",
    "toolchains.outdated": "--name",
    "test": "--path",
    "bench": "--only",
    "sign": "--folder",
}
# They have flags without values only, so that a word by itself is the job wherever it stands.
_OF_JOBS = ("status", "logs", "wait", "cancel")


def main(arguments: Sequence[str]) -> None:
    """Run a command line and leave with its exit code."""
    from invoke.exceptions import ParseError
    from invoke.program import Program

    from edgekiln import cli
    from edgekiln.boxes.profiles import settle
    from edgekiln.helping import GROUPED, grouped, plain

    class Kiln(Program):
        """Invoke's own program leaves with 1 for a word it does not know."""

        def parse_tasks(self) -> None:
            try:
                super().parse_tasks()
            except ParseError as error:
                print(error, file=sys.stderr)
                raise SystemExit(UsageError.exit_code) from None
            if not self.args.help.value:
                self._refuse_lacking()

        def _refuse_lacking(self) -> None:
            """A flag without a default is a must; Invoke sees to positional arguments only."""
            for context in self.tasks:
                if found := cli.lacking(context, self.collection[context.name].body):
                    print("\n".join(found.lines()), file=sys.stderr)
                    raise SystemExit(found.exit_code)

        def print_task_help(self, name: str) -> None:
            """In kiln's words; a build's options are told a backend at a time."""
            context = self.parser.contexts[name]
            docstring = inspect.getdoc(self.collection[name]) or ""
            flags = context.help_tuples()
            if name not in GROUPED:
                needed = [argument.name for argument in context.positional_args]
                print(plain(name, docstring, flags, needed))
                return
            given = [asked.args["backend"].value for asked in self.tasks]
            try:
                print(grouped(name, docstring, flags, (given or [""])[0]))
            except UsageError as error:
                cli.show_error(error)
                raise SystemExit(error.exit_code) from None

    try:
        settle()
    except UsageError as error:
        cli.show_error(error)
        raise SystemExit(error.exit_code) from None
    program = Kiln(name="kiln", binary="kiln", version=__version__)
    try:
        program.run(["kiln", "--search-root", str(project()), *translate(arguments)])
    except BrokenPipeError:  # `kiln build --help | head`
        sys.stderr.close()


def translate(arguments: Sequence[str]) -> list[str]:
    """A command line as Invoke wants it.

    `images build mnn` is its task images.build; nothing, or `help`, lists the commands;
    `help build` and `images` alone show what they have; `help build --backend mlc` and
    `build --backend mlc --help` show the options of one backend.
    """
    words = list(arguments)
    if not words or (words[0] in _HELP and len(words) == 1):
        return ["--list"]
    if words[0] in _HELP:
        meant = translate(words[1:])
        return meant if meant[0] in ("--list", "--help") else _help(meant)
    if words[0] in _GROUPS:
        if len(words) == 1 or words[1] in _HELP:
            return ["--list", words[0]]
        if not words[1].startswith("-"):
            words = [f"{words[0]}.{words[1]}", *words[2:]]
    if words[0] in _OF_JOBS:
        words = [words[0], *_job(words[1:])]
    # After a command with a positional argument, Invoke takes --help for that argument.
    if len(words) > 1 and words[1] in _HELP[1:]:
        return ["--help", words[0]]
    if "--help" in words and words[words.index("--help") - 1] != "--args":
        return _help([word for word in words if word != "--help"])
    if words[0] in _OPTIONAL and len(words) > 1 and not words[1].startswith("-"):
        words.insert(1, _OPTIONAL[words[0]])
    return words


def _job(words: list[str]) -> list[str]:
    """The words after a command about jobs: `-f` for --follow, and a name for --job NAME."""
    meant = ["--follow" if word == "-f" else word for word in words]
    return [
        word if word.startswith("-") or before == "--job" else f"--job={word}"
        for before, word in zip(["", *meant], meant, strict=False)
    ]


def _help(words: list[str]) -> list[str]:
    """Ask for a command's help; what else was said of it is parsed, too."""
    return ["--help", words[0], *(words if len(words) > 1 else [])]


if __name__ == "__main__":
    main(sys.argv[1:])
