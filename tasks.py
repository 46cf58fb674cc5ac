"""The commands. Each is a few lines: what it does lives in src/edgekiln."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from invoke.collection import Collection
from invoke.context import Context
from invoke.tasks import Task, task

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from edgekiln import cli
from edgekiln.backends import option_specs

_OPTIONS = option_specs()
_COMMON = {
    "debug": "show the traceback of an error",
    "json": "one JSON event a line, for CI",
    "quiet": "results and errors only",
}


@task(
    auto_shortflags=False,
    help={
        **_COMMON,
        "backend": "mnn (see `kiln recipes list` for ready builds)",
        "model": "a directory, a Hub id org/name@revision, modelscope:org/name, or an example",
        "recipe": "a ready build: a name from `kiln recipes list` or a YAML file of your own",
        "preset": "a named set of options: default, precision, memory, extreme-speed",
        "executor": "auto (docker where an engine answers, else native), docker, native",
        "memory-limit": "the most a stage may use, e.g. 12g (default: what is free, less a reserve)",
        "out": "where the bundle goes (default: build/MODEL/BACKEND)",
        "base": "put the toolchains on another base: a name of ours or an image",
        "dry-run": "show the plan and what it needs; make nothing",
        "force": "go on although doctor would refuse",
        "refresh": "look up a Hub model's newest commit again",
        "trust-pickle": "accept weights in pickle files (they can run code)",
        **cli.option_help(_OPTIONS),
    },
)
@cli.with_options(_OPTIONS)
def build(
    c: Context,
    options: dict[str, Any],
    backend: str = "",
    model: str = "",
    recipe: str = "",
    preset: str = "",
    executor: str = "auto",
    memory_limit: str = "",
    out: str = "",
    base: str = "",
    dry_run: bool = False,
    force: bool = False,
    refresh: bool = False,
    trust_pickle: bool = False,
    quiet: bool = False,
    json: bool = False,
    debug: bool = False,
) -> None:
    """Build a bundle for the phone out of a model.

    Examples:
      kiln build --backend mnn
      kiln build --backend mnn --model ~/models/Qwen3-1.7B --preset memory
      kiln build --recipe qwen3-1.7b-mnn-extreme-speed --dry-run
      kiln build --backend mnn --quant-bit 8 --no-hqq --backend-type opencl
    """
    from edgekiln.recipe import make_recipe

    from edgekiln.build import Settings
    from edgekiln.build import build as run
    from edgekiln.build import dry_run as show
    from edgekiln.units import parse_size

    with cli.reporting(quiet=quiet, as_json=json, debug=debug) as reporter:
        what = make_recipe(
            recipe=recipe, backend=backend, model=model, preset=preset, options=options
        )
        how = Settings(
            executor=executor,
            memory=parse_size(memory_limit, where="--memory-limit") if memory_limit else None,
            out=Path(out) if out else None,
            base=base or None,
            force=force,
            refresh=refresh,
            trust_pickle=trust_pickle,
        )
        (show if dry_run else run)(what, how, reporter)


@task(help={"backend": "the build to look at, as for `kiln build`"}, auto_shortflags=False)
@cli.command
def doctor(c: Context, backend: str = "mnn", model: str = "", recipe: str = "") -> None:
    """Say what a build needs and whether this machine has it.

    Example: kiln doctor --recipe qwen3-1.7b-mnn
    """
    from edgekiln.commands import doctor as run

    run(backend=backend, model=model, recipe=recipe)


@task(name="list", auto_shortflags=False)
@cli.command
def images_list(c: Context) -> None:
    """List the toolchains' images and whether they are built."""
    from edgekiln.commands import images_list as run

    run()


@task(name="build", positional=["name"], auto_shortflags=False)
@cli.command
def images_build(c: Context, name: str, base: str = "", frozen: bool = False) -> None:
    """Build an image from its lock, e.g. kiln images build mnn."""
    from edgekiln.commands import images_build as run

    run(name, base=base or None, frozen=frozen)


@task(name="verify", positional=["name"], auto_shortflags=False)
@cli.command
def images_verify(c: Context, name: str) -> None:
    """Run images/NAME/verify inside the finished image: it proves what the image is for."""
    from edgekiln.commands import images_verify as run

    run(name)


@task(name="export", positional=["name"], auto_shortflags=False)
@cli.command
def images_export(c: Context, name: str, to: str) -> None:
    """Write an image to a tar file, e.g. kiln images export mnn --to mnn.tar."""
    from edgekiln.commands import images_export as run

    run(name, Path(to))


@task(name="shell", positional=["name"], auto_shortflags=False)
@cli.command
def images_shell(c: Context, name: str, folder: str = "") -> None:
    """Open a shell in an image, with a folder (default: scripts/) at /work.

    Example: kiln images shell mnn --folder ~/models/Qwen3-1.7B
    """
    from edgekiln.commands import images_shell as run

    run(name, folder=folder)


@task(name="get", positional=["ref"], auto_shortflags=False)
@cli.command
def models_get(c: Context, ref: str, refresh: bool = False, trust_pickle: bool = False) -> None:
    """Fetch a model and check it, e.g. kiln models get Qwen/Qwen3-1.7B."""
    from edgekiln.commands import models_get as run

    run(ref, refresh=refresh, trust_pickle=trust_pickle)


@task(name="show", positional=["ref"], auto_shortflags=False)
@cli.command
def models_show(c: Context, ref: str, trust_pickle: bool = False) -> None:
    """Say what a model is: family, sizes, weights, tokenizer."""
    from edgekiln.commands import models_get as run

    run(ref, refresh=False, trust_pickle=trust_pickle)


@task(name="list", auto_shortflags=False)
@cli.command
def toolchains_list(c: Context) -> None:
    """List the toolchains and what they hold."""
    from edgekiln.commands import toolchains_list as run

    run()


@task(name="show", positional=["name"], auto_shortflags=False)
@cli.command
def toolchains_show(c: Context, name: str) -> None:
    """Show everything a toolchain pins: base, packages, wheels, digests."""
    from edgekiln.commands import toolchains_show as run

    run(name)


@task(name="lock", auto_shortflags=False)
@cli.command
def toolchains_lock(c: Context, name: str = "", check: bool = False) -> None:
    """Make a toolchain's lock anew; with --check only say what has drifted.

    Examples:
      kiln toolchains lock mnn
      kiln toolchains lock --check
    """
    from edgekiln.commands import toolchains_lock as run

    run(name, check=check)


@task(name="list", auto_shortflags=False)
@cli.command
def recipes_list(c: Context) -> None:
    """List the ready builds."""
    from edgekiln.commands import recipes_list as run

    run()


@task(name="show", positional=["name"], auto_shortflags=False)
@cli.command
def recipes_show(c: Context, name: str) -> None:
    """Show a recipe with every option it comes to, e.g. kiln recipes show qwen3-1.7b-mnn."""
    from edgekiln.commands import recipes_show as run

    run(name)


@task(name="list", auto_shortflags=False)
@cli.command
def store_list(c: Context) -> None:
    """List finished stages: what, when, how large."""
    from edgekiln.commands import store_list as run

    run()


@task(name="gc", auto_shortflags=False)
@cli.command
def store_gc(c: Context, days: int = 30, everything: bool = False, dry_run: bool = False) -> None:
    """Remove finished stages that were not used for a while.

    Examples:
      kiln store gc --dry-run
      kiln store gc --days 7
      kiln store gc --everything
    """
    from edgekiln.commands import store_gc as run

    run(days=days, everything=everything, dry_run=dry_run)


@task(name="up", auto_shortflags=False)
@cli.command
def engine_up(c: Context) -> None:
    """Install and start a container engine (root on Debian or Ubuntu: docker.io)."""
    from edgekiln.commands import engine_up as run

    run()


@task(name="show", auto_shortflags=False)
@cli.command
def engine_show(c: Context) -> None:
    """Say which container engine answers, or why none does."""
    from edgekiln.commands import engine_show as run

    run()


@task(name="down", auto_shortflags=False)
@cli.command
def engine_down(c: Context) -> None:
    """Stop the engine that `kiln engine up` started."""
    from edgekiln.commands import engine_down as run

    run()


@task(auto_shortflags=False)
@cli.command
def test(c: Context, path: str = "", unit: bool = False, args: str = "") -> None:
    """Run the tests.

    As root on Debian or Ubuntu with no engine running it brings one up first. Without an engine
    the container tests are skipped, and the closing lines say why.

    Examples:
      kiln test
      kiln test --unit
      kiln test tests/unit/test_store.py --args "-k resume -x"
    """
    from edgekiln.commands import run_tests

    run_tests(select=path, unit=unit, args=args)


@task(auto_shortflags=False)
@cli.command
def bench(c: Context, only: str = "", repeat: int = 5, json: str = "") -> None:
    """Measure: medians of ratios in one run; --only NAME for one of them, --json FILE to keep.

    Example: kiln bench --only nothing-to-do
    """
    from edgekiln.bench import run

    run(only=only, repeat=repeat, to=Path(json) if json else None)


def _group(name: str, *tasks: Task[Any]) -> Collection:
    group = Collection(name)
    for each in tasks:
        group.add_task(each)
    return group


namespace = Collection(build, doctor, test, bench)
namespace.add_collection(
    _group("images", images_list, images_build, images_verify, images_export, images_shell)
)
namespace.add_collection(_group("models", models_get, models_show))
namespace.add_collection(_group("toolchains", toolchains_list, toolchains_show, toolchains_lock))
namespace.add_collection(_group("recipes", recipes_list, recipes_show))
namespace.add_collection(_group("store", store_list, store_gc))
namespace.add_collection(_group("engine", engine_up, engine_show, engine_down))

cli.register(namespace.task_names)
cli.name_the_nearest()
