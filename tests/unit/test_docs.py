"""The documentation: its links lead somewhere, its commands exist, its lists are whole."""

from __future__ import annotations

import inspect
import io
import json
import re
import shlex
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from invoke.exceptions import ParseError
from invoke.parser import Parser
from invoke.parser.context import ParserContext
from invoke.program import Program
from tasks import namespace

from edgekiln.__main__ import translate
from edgekiln.backends import list_backends, load_backend, option_specs
from edgekiln.backends.qnn_socs import socs
from edgekiln.bench import MEASUREMENTS
from edgekiln.cli import _word, with_options
from edgekiln.errors import KilnError, UsageError
from edgekiln.home import project
from edgekiln.options import specs
from edgekiln.recipe import Recipe, list_recipes, make_recipe
from edgekiln.report import JsonReporter
from edgekiln.toolchain import list_bases, list_toolchains

PAGES = sorted([*project().glob("*.md"), *project().glob("docs/**/*.md")])
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`([^`\n]+)`")
# A command line of ours: variables, sudo, and kiln as it is called on any system, or invoke.
_COMMAND = re.compile(r"^(?:\w+=\S+ |sudo )*(?:(?:\./|\.\\)?kiln|invoke) (?P<words>.+)$")


def read(name: str) -> str:
    return (project() / name).read_text(encoding="utf-8")


def name_of(page: Path) -> str:
    return page.relative_to(project()).as_posix()


def fenced(text: str) -> list[str]:
    """The lines of code blocks that show a terminal."""
    blocks = [body for language, body in _FENCE.findall(text) if language in ("", "sh", "bash")]
    return [line.strip() for body in blocks for line in body.splitlines()]


def in_sentences(text: str) -> list[str]:
    """What stands between backticks outside of code blocks."""
    return _CODE.findall(_FENCE.sub("", text))


def commands(page: Path) -> list[list[str]]:
    """Every command line of ours on a page, as words; a word of dots stands for anything."""
    text = page.read_text(encoding="utf-8")
    found = [_COMMAND.match(code) for code in (*fenced(text), *in_sentences(text))]
    lines = [shlex.split(match["words"], comments=True) for match in found if match]
    return [[word for word in line if word != "…"] for line in lines]


ALL = sorted({(name_of(page), shlex.join(words)) for page in PAGES for words in commands(page)})


@lru_cache(maxsize=1)
def known() -> dict[str, ParserContext]:
    return {str(context.name): context for context in namespace.to_contexts()}


def parse(words: list[str]) -> dict[str, Any]:
    """The values of a command's flags; invoke's ParseError unless Invoke would run it."""
    initial = ParserContext(args=Program().core_args())
    parser = Parser(contexts=list(known().values()), initial=initial)
    found = parser.parse_argv(translate(words))
    given: dict[str, Any] = found[-1].as_kwargs
    return given


def test_there_is_a_page_for_each_subject() -> None:
    named = {name_of(page) for page in PAGES}
    assert {"README.md", "docs/errors.md", "docs/mnn.md", "docs/architecture.md"} <= named
    unreachable = {p for p in named if p.startswith("docs/") and p not in read("README.md")}
    assert not unreachable


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    links = _LINK.findall(_FENCE.sub("", page.read_text(encoding="utf-8")))
    for link in [link for link in links if not link.startswith(("http://", "https://"))]:
        place, _, anchor = link.partition("#")
        target = page.parent / place if place else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


def anchors(text: str) -> set[str]:
    """The anchors a page's headings get where it is shown."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", text), re.MULTILINE)
    plain = (re.sub(r"[^\w\s-]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize(("page", "line"), ALL)
def test_commands_are_ones_there_are(page: str, line: str) -> None:
    words = shlex.split(line)
    if words[0] == "help" and len(words) > 2 and words[2].startswith("-"):
        words = words[1:]  # the help of a command with an option
    task = translate(words)[-1]
    if translate(words) in ([task], ["--help", task]) and task in known():
        return  # only named in a sentence, without what it needs, or asked for its help
    parse(words)


@pytest.mark.parametrize(
    "line", ["build --quant-bitt 4", "images bild mnn", "store gc --hours 3", "images export"]
)
def test_a_wrong_command_would_be_found(line: str) -> None:
    with pytest.raises(ParseError):
        parse(shlex.split(line))


BUILDS = sorted({line for _, line in ALL if line.startswith("build ") and ".yaml" not in line})


@pytest.mark.parametrize("line", BUILDS)
def test_documented_builds_are_ones_that_can_be_planned(line: str) -> None:
    given = parse(shlex.split(line))
    if given["backend"] or given["recipe"]:  # else a sentence is about one flag
        recipe = recipe_of(given)
        assert recipe.parsed(load_backend(recipe.backend))


def recipe_of(given: dict[str, Any]) -> Recipe:
    """The recipe that a build's flags come to, options taken out as the command does it."""
    made = []

    @with_options(option_specs())
    def command(
        options: dict[str, Any], backend: str, model: str, recipe: str, preset: str
    ) -> None:
        made.append(
            make_recipe(recipe=recipe, backend=backend, model=model, preset=preset, options=options)
        )

    wanted = inspect.signature(command).parameters
    command(**{name: value for name, value in given.items() if name in wanted})
    return made[0]


def table(page: str, head: str) -> list[list[str]]:
    """The rows of the tables whose head begins so."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", read(page), re.MULTILINE):
        lines = [line.strip("|").split("|") for line in block.splitlines()]
        if lines[0][0].strip() == head:
            found += [[cell.strip() for cell in line] for line in lines[2:]]
    return found


@pytest.mark.parametrize("backend", list_backends())
def test_every_option_is_listed_with_its_default(backend: str) -> None:
    listed = {row[0].strip("`"): row[2] for row in table(f"docs/{backend}-options.md", "option")}
    wanted = {
        name: "" if spec.default is None else _word(spec.default)
        for name, spec in specs(load_backend(backend).options).items()
    }
    assert listed == wanted


@pytest.mark.parametrize("backend", list_backends())
def test_every_preset_is_listed_with_its_floors(backend: str) -> None:
    listed = [row[:3] for row in table(f"docs/{backend}.md", "preset")]
    for name, preset in load_backend(backend).presets().items():
        assert [
            f"`{name}`",
            f"{preset['min_cosine']}",
            f"{preset['max_perplexity_ratio']}",
        ] in listed


def test_every_chip_is_listed() -> None:
    listed = [[cell.strip("`") for cell in row[:4]] for row in table("docs/qnn.md", "`--soc`")]
    assert listed == [[s.soc, str(s.soc_model), s.names[0], s.arch] for s in socs()]


def test_every_exit_code_is_told_of() -> None:
    codes = {row[0]: row[1] for row in table("docs/errors.md", "code")}
    for error in KilnError.__subclasses__():
        assert codes.get(str(error.exit_code)) == error.kind


@pytest.mark.parametrize("recipe", list_recipes())
def test_every_recipe_is_told_of(recipe: str) -> None:
    assert f"`{recipe}`" in read("docs/recipes.md")


def test_every_command_has_a_line_about_its_trial() -> None:
    told = {translate(words)[0] for words in commands(project() / "docs" / "verified.md")}
    assert told == set(known())


def test_every_flag_has_a_help_text() -> None:
    for name, context in known().items():
        for argument in {id(a): a for a in context.args.values()}.values():
            assert argument.help, f"kiln {name}: {argument.name}"


def test_every_measurement_is_told_of() -> None:
    assert [row[0].strip("`") for row in table("docs/bench.md", "measurement")] == list(
        MEASUREMENTS
    )


def test_every_toolchain_and_base_has_its_licences_told() -> None:
    text = read("THIRD-PARTY.md")
    for name in (*list_toolchains(), *list_bases()):
        assert f"`{name}`" in text
    for name in list_toolchains():
        lock = json.loads(read(f"toolchains/{name}.lock.json"))
        missing = [w["name"] for w in lock["wheels"] if f"| {w['name']} |" not in text]
        assert not missing


def test_every_event_and_its_fields_are_told_of() -> None:
    listed = {row[0].strip("`"): row[1] for row in table("docs/ci.md", "event")}
    for event in events():
        kind = event.pop("event")
        event.pop("time")
        untold = [field for field in event if f"`{field}`" not in listed.get(kind, "")]
        assert not untold, f"{kind}: {untold}"


def events() -> list[dict[str, Any]]:
    """One of each event, as the reporter writes it."""
    out = io.StringIO()
    reporter = JsonReporter(out)
    reporter.say("text")
    reporter.started("task", "what")
    reporter.progressed("task", 1, 2, "B", "what")
    reporter.ended("task", "done", {"seconds": 1, "peak_memory": 1, "size": 1, "log": ""})
    reporter.result("name", 1, "text")
    reporter.failed(UsageError("what"))
    return [json.loads(line) for line in out.getvalue().splitlines()]
