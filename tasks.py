"""The commands. Each is a few lines: what it does lives in src/edgekiln."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from invoke.collection import Collection
from invoke.context import Context
from invoke.tasks import Task, task

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from edgekiln import cli
from edgekiln.backends import option_specs, options_by_backend

_OPTIONS = option_specs()
_TRACE = {"debug": "show Python's traceback when something fails"}
_COMMON = {
    **_TRACE,
    "json": "print one JSON event a line on standard output, for CI (docs/ci.md)",
    "quiet": "print results and errors only",
}
_PICKLE = {"trust-pickle": "accept weights in pickle files: opening one can run code"}
_MODEL = "a directory, a Hub id org/name@revision, modelscope:org/name, or smollm2-135m-instruct"
_OFFLINE = {
    "vendor-dir": "a folder to look into first, as `kiln toolchains fetch` fills it "
    "(or EDGEKILN_VENDOR)",
    "accept-licence": "accept a licence without being asked, e.g. android-sdk; several with "
    "commas (or EDGEKILN_ACCEPT_LICENCES)",
}
_ALONE = {
    "offline": "ask nobody on a network: what is neither here nor in the vendor folder is named "
    "at once (or EDGEKILN_OFFLINE=1)",
}
_PROFILE = {
    "profile": "the place this machine is rented at: autodl, runpod, vastai, plain, machine, or a "
    "YAML file of your own (or EDGEKILN_PROFILE; docs/rentals.md)",
}
_TOOLCHAIN = {"name": "the toolchain, as `kiln toolchains list` names it"}
_REPRO = {"record": "write the image's digests into its lock, for other builds to be held against"}


@task(
    auto_shortflags=False,
    iterable=["on"],
    help={
        **_COMMON,
        **_PICKLE,
        **_PROFILE,
        "backend": "the runtime to build for: mnn, qnn, mlc. This or --recipe must be given",
        "model": f"{_MODEL} (the last is the default)",
        "recipe": "a ready build: a name from `kiln recipes list` or a YAML file of your own",
        "preset": "a set of options: default, precision; mnn: memory, extreme-speed; qnn: small; "
        "mlc: adreno",
        "executor": "auto (docker where an engine answers, else native), docker, native, rootfs",
        "memory-limit": "the most a stage may use, e.g. 12g (default: what is free, less 768 MB)",
        "out": "where the bundle goes (default: build/MODEL/BACKEND; qnn: build/MODEL/qnn-SOC; "
        "mlc: build/MODEL/mlc-TARGET, for android build/MODEL/mlc)",
        "base": "build the images on another base: debian-12, or any image the engine can have",
        "dry-run": "show the plan and what it needs; make nothing (a model is still fetched)",
        "force": "start although memory or disk look too small",
        "refresh": "ask the Hub again which commit the model's branch is at",
        "on": "STAGE=PLACE, several times: run a stage (or all that fit *) on another machine: a "
        "name of hosts.yaml, or ssh://USER@HOST:PORT; local is this one (docs/remote.md)",
        "detach": "build in a process of its own, which a closed terminal does not end "
        "(docs/jobs.md)",
        **_OFFLINE,
        **_ALONE,
        **cli.option_help(options_by_backend()),
    },
)
@cli.with_options(_OPTIONS)
def build(
    c: Context,
    options: dict[str, Any],
    backend: str = "",
    model: str | None = None,
    recipe: str | None = None,
    preset: str | None = None,
    executor: str = "auto",
    memory_limit: str | None = None,
    out: str | None = None,
    base: str = "",
    dry_run: bool = False,
    force: bool = False,
    refresh: bool = False,
    trust_pickle: bool = False,
    on: Sequence[str] | None = None,
    detach: bool = False,
    offline: bool = False,
    vendor_dir: str | None = None,
    accept_licence: str | None = None,
    profile: str | None = None,
    quiet: bool = False,
    json: bool = False,
    debug: bool = False,
) -> None:
    """Build a bundle for the phone out of a model.

    docs/mnn-options.md, docs/qnn-options.md and docs/mlc-options.md list each backend's options.

    Examples:
      kiln build --backend mnn
      kiln build --backend mnn --model ~/models/Qwen3-1.7B --preset memory
      kiln build --recipe qwen3-1.7b-mnn-extreme-speed --dry-run
      kiln build --backend mnn --quant-bit 8 --no-hqq --backend-type opencl
      kiln build --backend qnn --soc "8 Elite"
      kiln build --backend qnn --soc sm8650 --preset precision --context-length 2048
      kiln build --backend mlc --model Qwen/Qwen2.5-3B-Instruct --quantization q4f16_1 --apk debug
      kiln build --backend mlc --target webgpu --objects-only
      kiln build --backend qnn --detach
      kiln build --backend qnn --on quantize=autodl
    """
    from edgekiln.build import Settings
    from edgekiln.build import build as run
    from edgekiln.build import dry_run as show
    from edgekiln.recipe import make_recipe
    from edgekiln.units import parse_size

    with cli.reporting(quiet=quiet, as_json=json, debug=debug) as reporter:
        cli.profile(reporter, profile)
        cli.offline(vendor_dir, accept_licence, alone=offline)
        what = make_recipe(
            recipe=cli.given("recipe", recipe),
            backend=backend,
            model=cli.given("model", model),
            preset=cli.given("preset", preset),
            options=options,
        )
        memory, place = cli.given("memory-limit", memory_limit), cli.given("out", out)
        how = Settings(
            executor=executor,
            memory=parse_size(memory, where="--memory-limit") if memory else None,
            out=Path(place) if place else None,
            base=base or None,
            force=force,
            refresh=refresh,
            trust_pickle=trust_pickle,
            on=cli.several("on", on),
        )
        if detach:
            from edgekiln.commands.jobs import detach as start

            start(reporter, sys.argv[1:], what, how, dry_run=dry_run)
            return
        (show if dry_run else run)(what, how, reporter)


_JOB = {
    **_COMMON,
    "job": "the job, as `kiln status` names it, or how its name begins (default: the newest)",
}


@task(
    auto_shortflags=False,
    help={**_JOB, "job": "one job with all that is known of it (default: all jobs)"},
)
def status(
    c: Context, job: str = "", quiet: bool = False, json: bool = False, debug: bool = False
) -> None:
    """Say how the builds are that were started with --detach.

    Examples:
      kiln status
      kiln status 1121-093007
    """
    from edgekiln.commands.jobs import status as run

    with cli.reporting(quiet=quiet, as_json=json, debug=debug) as reporter:
        run(reporter, job)


@task(
    auto_shortflags=False,
    help={**_JOB, "follow": "go on until the job ends; Ctrl-C ends the looking, not the job"},
)
def logs(
    c: Context,
    job: str = "",
    follow: bool = False,
    quiet: bool = False,
    json: bool = False,
    debug: bool = False,
) -> None:
    """Show what a build in the background told so far, as it would have at this terminal.

    Examples:
      kiln logs
      kiln logs -f 1121-093007
    """
    from edgekiln.commands.jobs import logs as run

    with cli.reporting(quiet=quiet, as_json=json, debug=debug) as reporter:
        run(reporter, job, on=follow)


@task(auto_shortflags=False, help=_JOB)
def wait(
    c: Context, job: str = "", quiet: bool = False, json: bool = False, debug: bool = False
) -> None:
    """Wait until a build in the background ends; leaves with that build's own exit code.

    Leaves with 23 where it was killed outright, with 130 where it was stopped.

    Examples:
      kiln wait
      kiln wait 1121-093007 --json
    """
    from edgekiln.commands.jobs import wait as run

    with cli.reporting(quiet=quiet, as_json=json, debug=debug) as reporter:
        run(reporter, job)


@task(auto_shortflags=False, help={**_JOB, "job": "the job to stop (default: the one that runs)"})
def cancel(
    c: Context, job: str = "", quiet: bool = False, json: bool = False, debug: bool = False
) -> None:
    """Stop a build in the background, as Ctrl-C stops one at a terminal; waits until it has ended.

    Example: kiln cancel 1121-093007
    """
    from edgekiln.commands.jobs import cancel as run

    with cli.reporting(quiet=quiet, as_json=json, debug=debug) as reporter:
        run(reporter, job)


@task(
    help={
        **_COMMON,
        **_PROFILE,
        "backend": "the backend of the build to look at (default: mnn, or the recipe's)",
        "model": f"the model of the build: {_MODEL}",
        "recipe": "look at this recipe's build: a name from `kiln recipes list` or a YAML file",
        "preset": "the build's preset",
        "executor": "the executor of the build (default: the one it would take)",
        **cli.option_help(options_by_backend()),
    },
    auto_shortflags=False,
)
@cli.with_options(_OPTIONS)
def doctor(
    c: Context,
    options: dict[str, Any],
    backend: str = "",
    model: str | None = None,
    recipe: str | None = None,
    preset: str | None = None,
    executor: str = "auto",
    profile: str | None = None,
    quiet: bool = False,
    json: bool = False,
    debug: bool = False,
) -> None:
    """Say what this machine is, what a build needs of it, what is missing and what to do.

    It takes the build's options, fetches nothing, and leaves with what the build would be refused
    with.

    Examples:
      kiln doctor
      kiln doctor --recipe qwen3-1.7b-mnn
      kiln doctor --backend qnn --model ~/models/Qwen3-1.7B --quantizer aimet
      kiln doctor --backend qnn --executor native --profile autodl --json
    """
    from edgekiln.commands.boxes import doctor as run

    with cli.reporting(quiet=quiet, as_json=json, debug=debug) as reporter:
        cli.profile(reporter, profile)
        named = cli.given("recipe", recipe)
        run(
            reporter,
            backend=backend or ("" if named else "mnn"),
            model=cli.given("model", model),
            recipe=named,
            preset=cli.given("preset", preset),
            executor=executor,
            options=options,
        )


@task(name="list", help=_COMMON, auto_shortflags=False)
@cli.command
def images_list(c: Context) -> None:
    """List the toolchains' images and whether they are built."""
    from edgekiln.commands.images import images_list as run

    run()


@task(
    name="build",
    positional=["name"],
    help={
        **_COMMON,
        **_TOOLCHAIN,
        "base": "build on another base: debian-12, or any image the engine can have",
        "frozen": "refuse packages of the distribution that are not exactly the locked ones",
        "dry-run": "print every address, digest and size that would be fetched; fetch nothing",
        "repro": "tell the image's digests and hold them against those in its lock",
        **_REPRO,
        **_OFFLINE,
        **_ALONE,
    },
    auto_shortflags=False,
)
@cli.command
def images_build(
    c: Context,
    name: str,
    base: str = "",
    frozen: bool = False,
    dry_run: bool = False,
    repro: bool = False,
    record: bool = False,
    offline: bool = False,
    vendor_dir: str | None = None,
    accept_licence: str | None = None,
) -> None:
    """Build an image from its lock, run its verify, and tag it; nothing if it is there.

    `kiln build` does this by itself where an image is missing.

    Examples:
      kiln images build mnn
      kiln images build mnn --dry-run
      kiln images build mnn --repro
    """
    from edgekiln.commands.images import images_build as run
    from edgekiln.commands.images import images_dry_run as show

    cli.offline(vendor_dir, accept_licence, alone=offline)
    if dry_run:
        show(name, base=base or None)
    elif repro or record:
        from edgekiln.commands.repro import images_repro

        images_repro(name, base=base or None, frozen=frozen, record=record)
    else:
        run(name, base=base or None, frozen=frozen)


@task(
    name="verify",
    positional=["name"],
    help={**_COMMON, **_TOOLCHAIN},
    auto_shortflags=False,
)
@cli.command
def images_verify(c: Context, name: str) -> None:
    """Run the image's verify inside it: it proves that it is as locked and does what it is for.

    Example: kiln images verify mnn
    """
    from edgekiln.commands.images import images_verify as run

    run(name)


@task(
    name="gc",
    auto_shortflags=False,
    help={**_COMMON, "dry-run": "only say what would go"},
)
@cli.command
def images_gc(c: Context, dry_run: bool = False) -> None:
    """Remove images and kits that no toolchain of this checkout asks for any more.

    Example: kiln images gc --dry-run
    """
    from edgekiln.commands.images import images_gc as run

    run(dry_run=dry_run)


@task(
    name="export",
    positional=["name"],
    help={
        **_COMMON,
        **_TOOLCHAIN,
        "to": "the folder to write, or one file where it ends in .tar",
        "o": "the same as --to",
    },
    auto_shortflags=False,
)
@cli.command
def images_export(c: Context, name: str, to: str = "", o: str = "") -> None:
    """Write an image to files that travel: zstd layers by digest, and a list of what is in it.

    A copy that was broken off goes on with the files that are missing. `kiln images load` takes it
    on the other machine, with an engine or without.

    Examples:
      kiln images export mnn --to mnn.image
      kiln images export aimet-1.34-cu121 -o aimet.image.tar
    """
    from edgekiln.commands.images import images_export as run
    from edgekiln.errors import UsageError

    if to and o:
        raise UsageError("--to and -o are the same, and both are given", remedy="give one of them")
    if not (to or o):
        raise UsageError("kiln images export needs --to", remedy="name the folder or file to write")
    run(name, Path(to or o))


_ROOTFS = {"rootfs": "lay it out as a folder for --executor rootfs; no engine is needed"}


@task(
    name="load",
    positional=["path"],
    help={**_COMMON, **_ROOTFS, "path": "the folder or the .tar that `kiln images export` wrote"},
    auto_shortflags=False,
)
@cli.command
def images_load(c: Context, path: str, rootfs: bool = False) -> None:
    """Put an exported image into the engine, or lay it out as a folder; each file is checked.

    Examples:
      kiln images load mnn.image
      kiln images load aimet.image.tar --rootfs
    """
    from edgekiln.commands.images import images_load as run

    run(Path(path), rootfs=rootfs)


@task(
    name="pull",
    positional=["name"],
    help={
        **_COMMON,
        **_TOOLCHAIN,
        **_ROOTFS,
        "from": "HOST/REPOSITORY of a registry (or EDGEKILN_REGISTRY)",
    },
    auto_shortflags=False,
)
@cli.command
def images_pull(c: Context, name: str, from_: str = "", rootfs: bool = False) -> None:
    """Bring an image out of a registry, over plain HTTPS; goes on where it was cut off.

    Examples:
      kiln images pull mnn --from registry.example/me/edgekiln
      kiln images pull qnn --from registry.example/me/edgekiln --rootfs
    """
    from edgekiln.commands.images import images_pull as run

    run(name, place=from_, rootfs=rootfs)


@task(
    name="push",
    positional=["name"],
    help={**_COMMON, **_TOOLCHAIN, "to": "HOST/REPOSITORY of a registry (or EDGEKILN_REGISTRY)"},
    auto_shortflags=False,
)
@cli.command
def images_push(c: Context, name: str, to: str = "") -> None:
    """Send an image to a registry; what is there already is not sent again.

    Example: kiln images push mnn --to registry.example/me/edgekiln
    """
    from edgekiln.commands.images import images_push as run

    run(name, place=to)


@task(
    name="sbom",
    positional=["name"],
    help={
        **_COMMON,
        **_TOOLCHAIN,
        "to": "the file to write (default: standard output)",
        "executor": "look into the image (docker), the prefix (native), or what is there (auto)",
    },
    auto_shortflags=False,
)
@cli.command
def images_sbom(c: Context, name: str, to: str = "", executor: str = "auto") -> None:
    """Tell what is in a toolchain, with licences and digests: CycloneDX 1.6, in JSON.

    Examples:
      kiln images sbom mnn
      kiln images sbom mlc-android --to mlc-android.cdx.json
    """
    from edgekiln.commands.images import images_sbom as run

    run(name, to=Path(to).expanduser() if to else None, executor=executor)


@task(
    name="shell",
    positional=["name"],
    help={
        **_TRACE,
        **_TOOLCHAIN,
        "folder": "the folder of this machine to find at /work (default: scripts/)",
    },
    auto_shortflags=False,
)
@cli.at_terminal
def images_shell(c: Context, name: str, folder: str = "") -> None:
    """Open a shell in an image, with a folder (default: scripts/) at /work.

    Example: kiln images shell mnn --folder ~/models/Qwen3-1.7B
    """
    from edgekiln.commands.images import images_shell as run

    run(name, folder=folder)


@task(
    name="get",
    positional=["ref"],
    help={
        **_COMMON,
        **_PICKLE,
        "ref": _MODEL,
        "refresh": "ask the Hub again which commit the model's branch is at",
    },
    auto_shortflags=False,
)
@cli.command
def models_get(c: Context, ref: str, refresh: bool = False, trust_pickle: bool = False) -> None:
    """Fetch a model and check it.

    Examples:
      kiln models get smollm2-135m-instruct
      kiln models get Qwen/Qwen3-1.7B
      kiln models get modelscope:Qwen/Qwen3-1.7B
    """
    from edgekiln.commands.models import models_get as run

    run(ref, refresh=refresh, trust_pickle=trust_pickle)


@task(
    name="show",
    positional=["ref"],
    help={**_COMMON, **_PICKLE, "ref": f"{_MODEL}; fetched first if it is not here"},
    auto_shortflags=False,
)
@cli.command
def models_show(c: Context, ref: str, trust_pickle: bool = False) -> None:
    """Say what a model is: family, sizes, weights. Checks it as a build would.

    Example: kiln models show ~/models/Qwen3-1.7B
    """
    from edgekiln.commands.models import models_get as run

    run(ref, refresh=False, trust_pickle=trust_pickle)


@task(name="list", help=_COMMON, auto_shortflags=False)
@cli.command
def toolchains_list(c: Context) -> None:
    """List the toolchains and what they hold."""
    from edgekiln.commands.toolchains import toolchains_list as run

    run()


@task(
    name="show",
    positional=["name"],
    help={**_COMMON, **_TOOLCHAIN},
    auto_shortflags=False,
)
@cli.command
def toolchains_show(c: Context, name: str) -> None:
    """Show everything a toolchain pins: base, packages, wheels, digests.

    Example: kiln toolchains show mnn
    """
    from edgekiln.commands.toolchains import toolchains_show as run

    run(name)


@task(
    name="lock",
    help={
        **_COMMON,
        "name": "one toolchain or base, e.g. mnn or debian-12 (default: all of them)",
        "check": "change nothing; say what has drifted, and leave with 4 if anything has",
        "only": "refresh these, the rest stays as locked: packages by name, or wheels, debs, uv, "
        "base; several with commas",
        "to": "the version that the YAML is to pin the package of --only at",
    },
    auto_shortflags=False,
)
@cli.command
def toolchains_lock(
    c: Context, name: str = "", check: bool = False, only: str = "", to: str = ""
) -> None:
    """Make a toolchain's lock anew and say what changed; with --check only what has drifted.

    A lock is made after toolchains/NAME.yaml was changed. docs/images-and-locks.md says more.

    Examples:
      kiln toolchains lock mnn
      kiln toolchains lock mnn --only torch
      kiln toolchains lock mnn --only onnx --to 1.23.3
      kiln toolchains lock --check
    """
    from edgekiln.commands.toolchains import toolchains_lock as run

    run(name, check=check, only=only, to=to)


@task(
    name="health",
    help={
        **_COMMON,
        "name": "one toolchain or a variant of it, or several with commas (default: all)",
        "base": "ask for another base, e.g. nvidia/cuda@sha256:…",
        "vendor-dir": _OFFLINE["vendor-dir"],
    },
    auto_shortflags=False,
)
def toolchains_health(
    c: Context,
    name: str = "",
    base: str = "",
    vendor_dir: str | None = None,
    quiet: bool = False,
    json: bool = False,
    debug: bool = False,
) -> None:
    """Ask upstream whether it still has all that a toolchain pins, and has it unchanged.

    Nothing large is downloaded. Leaves with 20 where something is gone or changed, with 5 where
    something was merely not reached.

    Examples:
      kiln toolchains health mnn
      kiln toolchains health --json
    """
    from edgekiln.commands.toolchains import toolchains_health as run

    with cli.reporting(quiet=quiet, as_json=json, debug=debug) as reporter:
        cli.offline(vendor_dir, None)
        run(reporter, name=name, base=base)


@task(
    name="outdated",
    help={
        **_COMMON,
        "name": "one toolchain, or several with commas (default: all)",
        "every": "ask about every package that is locked, not only those that the YAMLs name",
    },
    auto_shortflags=False,
)
def toolchains_outdated(
    c: Context,
    name: str = "",
    every: bool = False,
    quiet: bool = False,
    json: bool = False,
    debug: bool = False,
) -> None:
    """List newer versions of what a toolchain pins; nothing is changed.

    Examples:
      kiln toolchains outdated
      kiln toolchains outdated mnn --every
    """
    from edgekiln.commands.toolchains import toolchains_outdated as run

    with cli.reporting(quiet=quiet, as_json=json, debug=debug) as reporter:
        run(reporter, name=name, every=every)


@task(
    name="fetch",
    positional=["name"],
    help={
        **_COMMON,
        "name": "the toolchain, as `kiln toolchains list` names it; several with commas",
        "to": "the folder to fill; what it has already stays",
        "image": "build the image too and put it there: then base and packages are in it",
        "model": f"put this model there too: {_MODEL}",
        "python": "the Pythons that edgekiln is to run on there, e.g. 3.10,3.12 on Linux x86-64 "
        "(default: this one, on this system)",
        **_OFFLINE,
    },
    auto_shortflags=False,
)
@cli.command
def toolchains_fetch(
    c: Context,
    name: str,
    to: str,
    image: bool = False,
    model: str = "",
    python: str = "",
    vendor_dir: str | None = None,
    accept_licence: str | None = None,
) -> None:
    """Fill a folder with what a toolchain is made of, for a machine that has no way out.

    Its wheels, kits, packages of the distribution with those of its base, and what edgekiln itself
    needs. docs/offline.md says what such a machine needs besides.

    Examples:
      kiln toolchains fetch mnn --to vendor
      kiln toolchains fetch mnn,qnn --to vendor --model smollm2-135m-instruct --python 3.10,3.11
      kiln toolchains fetch qnn --to vendor --image
    """
    from edgekiln.commands.vendoring import toolchains_fetch as run

    cli.offline(vendor_dir, accept_licence)
    run(name, to=Path(to), image=image, model=model, pythons=python)


@task(name="list", help=_COMMON, auto_shortflags=False)
@cli.command
def recipes_list(c: Context) -> None:
    """List the ready builds."""
    from edgekiln.commands.recipes import recipes_list as run

    run()


@task(
    name="show",
    positional=["name"],
    help={**_COMMON, "name": "a name from `kiln recipes list`, or a YAML file of your own"},
    auto_shortflags=False,
)
@cli.command
def recipes_show(c: Context, name: str) -> None:
    """Show a recipe with every option it comes to; a star marks what is not the default.

    Example: kiln recipes show qwen3-1.7b-mnn
    """
    from edgekiln.commands.recipes import recipes_show as run

    run(name)


@task(name="list", help=_COMMON, auto_shortflags=False)
@cli.command
def store_list(c: Context) -> None:
    """List finished stages: what, when, how large."""
    from edgekiln.commands.store import store_list as run

    run()


@task(
    name="gc",
    help={
        **_COMMON,
        "days": "remove what no build has used for this many days (default: 30)",
        "everything": "remove all finished stages, whenever they were used",
        "dry-run": "say what would go; remove nothing",
    },
    auto_shortflags=False,
)
@cli.command
def store_gc(c: Context, days: int = 30, everything: bool = False, dry_run: bool = False) -> None:
    """Remove finished stages that were not used for a while; bundles and models stay.

    Examples:
      kiln store gc --dry-run
      kiln store gc --days 7
      kiln store gc --everything
    """
    from edgekiln.commands.store import store_gc as run

    run(days=days, everything=everything, dry_run=dry_run)


@task(
    name="lint",
    positional=["folder"],
    help={
        **_COMMON,
        "folder": "the folder with Genie's configuration: a bundle of edgekiln's or anyone's",
        "model": "the model's folder or its config.json, to hold the configuration against",
    },
    auto_shortflags=False,
)
@cli.command
def bundle_lint(c: Context, folder: str, model: str = "") -> None:
    """Look a Genie bundle through: keys, files, lengths, rotary positions, libraries.

    Nothing is run. Leaves with 16 where something was found that a phone would refuse.

    Examples:
      kiln bundle lint build/smollm2-135m-instruct/qnn-sm8750
      kiln bundle lint ~/Downloads/llama-3.2-1b-genie --model ~/models/Llama-3.2-1B-Instruct
    """
    from edgekiln.commands.bundles import bundle_lint as run

    run(folder, model=model)


@task(
    name="bundle",
    positional=["folder"],
    help={
        **_COMMON,
        "folder": "the bundle's folder, as `kiln build` names it at its end",
        "against": "compare with this bundle, and build nothing",
        "model": "where the model lies that the bundle was made of, if not where it was then",
        "anyway": "build although this checkout's toolchains or programs are not the manifest's",
        "executor": "auto (docker where an engine answers, else native), docker, native, rootfs",
        "memory-limit": "the most a stage may use, e.g. 12g (default: what is free, less 768 MB)",
        "force": "start although memory or disk look too small",
        **_PICKLE,
        **_OFFLINE,
    },
    auto_shortflags=False,
)
def verify_bundle(
    c: Context,
    folder: str,
    against: str | None = None,
    model: str | None = None,
    anyway: bool = False,
    executor: str = "auto",
    memory_limit: str | None = None,
    force: bool = False,
    trust_pickle: bool = False,
    vendor_dir: str | None = None,
    accept_licence: str | None = None,
    quiet: bool = False,
    json: bool = False,
    debug: bool = False,
) -> None:
    """Build a bundle again from its manifest alone, and compare; or compare two bundles.

    Leaves with 18 where they differ, with 6 where a file is not what its manifest says, with 4
    where this checkout is not the one that made it. docs/verify.md says more.

    Examples:
      kiln verify bundle build/smollm2-135m-instruct/mnn
      kiln verify bundle build/smollm2-135m-instruct/mnn --against ~/Downloads/mnn
    """
    from edgekiln.build import Settings
    from edgekiln.units import parse_size
    from edgekiln.verify import told

    with cli.reporting(quiet=quiet, as_json=json, debug=debug) as reporter:
        other, where = cli.given("against", against), cli.given("model", model)
        told.refuse_both(other, where, anyway)
        place = Path(folder).expanduser()
        if other:
            told.against(place, Path(other).expanduser(), reporter)
            return
        cli.offline(vendor_dir, accept_licence)
        memory = cli.given("memory-limit", memory_limit)
        how = Settings(
            executor=executor,
            memory=parse_size(memory, where="--memory-limit") if memory else None,
            force=force,
            trust_pickle=trust_pickle,
        )
        told.again(place, how, reporter, model=where, anyway=anyway)


@task(
    name="check",
    positional=["file"],
    help={
        **_COMMON,
        "file": "an mlc-package-config.json, or the folder it is in: a bundle's or your own",
    },
    auto_shortflags=False,
)
@cli.command
def package_check(c: Context, file: str) -> None:
    """Look an mlc-package-config.json through, and into the libraries it names.

    Nothing is run. Leaves with 16 where mlc_llm package or the app would fail.

    Examples:
      kiln package check build/deepseek-r1-distill-qwen-1.5b/mlc
      kiln package check ~/mlc-llm/android/MLCChat/mlc-package-config.json
    """
    from edgekiln.commands.bundles import package_check as run

    run(file)


@task(name="up", help=_COMMON, auto_shortflags=False)
@cli.command
def engine_up(c: Context) -> None:
    """Install and start a container engine (root on Debian or Ubuntu: docker.io).

    It goes on running when the command has ended; `kiln engine down` stops it. Where an engine
    answers already, that one is named and nothing is done.
    """
    from edgekiln.commands.engines import engine_up as run

    run()


@task(name="show", help=_COMMON, auto_shortflags=False)
@cli.command
def engine_show(c: Context) -> None:
    """Say which container engine answers, or why none does."""
    from edgekiln.commands.engines import engine_show as run

    run()


@task(name="down", help=_COMMON, auto_shortflags=False)
@cli.command
def engine_down(c: Context) -> None:
    """Stop the engine that `kiln engine up` started, and no other."""
    from edgekiln.commands.engines import engine_down as run

    run()


_DEVICE = {
    **_COMMON,
    "bundle": "the bundle's folder, as `kiln build` names it at its end",
    "serial": "the phone, as `adb devices` names it; needed where several are connected",
    "to": "the folder on the phone (default: /data/local/tmp/edgekiln/MODEL-BACKEND)",
}
_ASKING = {
    "prompt": "a question; the model's own chat template is put around it",
    "prompt-file": "a file with the whole prompt, taken as it is",
    "timeout": "seconds after which the program is ended (default: 600)",
}


@task(name="list", help=_COMMON, auto_shortflags=False)
def device_list(c: Context, quiet: bool = False, json: bool = False, debug: bool = False) -> None:
    """List the phones that adb knows of, and their chips."""
    from edgekiln.commands.devices import device_list as run

    with cli.reporting(quiet=quiet, as_json=json, debug=debug) as reporter:
        run(reporter)


@task(
    name="push",
    help={
        **_DEVICE,
        "libraries": "a folder with the runtime's files for the phone: an unpacked QAIRT SDK, or "
        "an Android build of MNN",
    },
    auto_shortflags=False,
)
def device_push(
    c: Context,
    bundle: str,
    serial: str = "",
    to: str = "",
    libraries: str = "",
    quiet: bool = False,
    json: bool = False,
    debug: bool = False,
) -> None:
    """Bring a bundle onto a phone; only what changed is sent, and compared by its digest.

    Examples:
      kiln device push --bundle build/smollm2-135m-instruct/mnn
      kiln device push --bundle build/smollm2-135m-instruct/mnn --libraries ~/MNN/build_android
    """
    from edgekiln.commands.devices import device_push as run

    with cli.reporting(quiet=quiet, as_json=json, debug=debug) as reporter:
        run(
            reporter,
            bundle=Path(bundle),
            serial=serial,
            to=to,
            libraries=Path(libraries).expanduser() if libraries else None,
        )


@task(
    name="install",
    positional=["app"],
    help={
        **_COMMON,
        "app": "an .apk, or a bundle that holds one",
        "serial": _DEVICE["serial"],
        "start": "start the app when it is installed",
        "weights": "push the models' weights of the bundle too, where the app would download them",
    },
    auto_shortflags=False,
)
def device_install(
    c: Context,
    app: str,
    serial: str = "",
    start: bool = False,
    weights: bool = False,
    quiet: bool = False,
    json: bool = False,
    debug: bool = False,
) -> None:
    """Install an app on a phone, looked through first; the phone's refusals are explained.

    Weights that the bundle has beside the app go where the app looks for them.

    Examples:
      kiln device install MLCChat.apk --start
      kiln device install build/Qwen2.5-3B-Instruct/mlc
    """
    from edgekiln.commands.devices import device_install as run

    with cli.reporting(quiet=quiet, as_json=json, debug=debug) as reporter:
        run(reporter, what=Path(app), serial=serial, start=start, weights=weights)


@task(name="run", help={**_DEVICE, **_ASKING}, auto_shortflags=False)
def device_run(
    c: Context,
    bundle: str,
    prompt: str = "",
    prompt_file: str = "",
    serial: str = "",
    to: str = "",
    timeout: float = 600.0,
    quiet: bool = False,
    json: bool = False,
    debug: bool = False,
) -> None:
    """Ask a model on the phone: genie-t2t-run for a qnn bundle, llm_demo for an mnn one.

    Example:
      kiln device run --bundle build/smollm2-135m-instruct/mnn --prompt "What is a kiln?"
    """
    from edgekiln.commands.devices import device_run as run

    with cli.reporting(quiet=quiet, as_json=json, debug=debug) as reporter:
        run(
            reporter,
            bundle=Path(bundle),
            serial=serial,
            to=to,
            prompt=prompt,
            prompt_file=Path(prompt_file).expanduser() if prompt_file else None,
            timeout=timeout,
        )


@task(name="profile", help={**_DEVICE, **_ASKING}, auto_shortflags=False)
def device_profile(
    c: Context,
    bundle: str,
    prompt: str = "",
    prompt_file: str = "",
    serial: str = "",
    to: str = "",
    timeout: float = 600.0,
    quiet: bool = False,
    json: bool = False,
    debug: bool = False,
) -> None:
    """Measure a model on the phone: tokens a second, time to the first token.

    The figures go into profiles/ beside the bundle and are compared with published ones.

    Example:
      kiln device profile --bundle build/smollm2-135m-instruct/mnn --prompt "What is a kiln?"
    """
    from edgekiln.commands.devices import device_profile as run

    with cli.reporting(quiet=quiet, as_json=json, debug=debug) as reporter:
        run(
            reporter,
            bundle=Path(bundle),
            serial=serial,
            to=to,
            prompt=prompt,
            prompt_file=Path(prompt_file).expanduser() if prompt_file else None,
            timeout=timeout,
        )


@task(
    positional=["folder"],
    help={
        **_COMMON,
        "folder": "the bundle's folder, as `kiln build` names it at its end",
        "to": "add the page to this file, e.g. $GITHUB_STEP_SUMMARY (default: standard output)",
    },
    auto_shortflags=False,
)
@cli.command
def summary(c: Context, folder: str, to: str = "") -> None:
    """Tell a bundle in Markdown: model, figures, stages, options, files. For a CI job's page.

    Example: kiln summary build/smollm2-135m-instruct/mnn
    """
    from edgekiln.commands.jobs import summary as run

    run(Path(folder), to=to)


@task(
    positional=["log"],
    help={**_COMMON, "log": "a log: a stage's, or of a build made by other means"},
    auto_shortflags=False,
)
def explain(
    c: Context, log: str, quiet: bool = False, json: bool = False, debug: bool = False
) -> None:
    """Say which known faults of the tools a log tells of, and what to do about each.

    Example: kiln explain ~/mlc-llm/android/MLCChat/package.log
    """
    from edgekiln.commands.files import explain as run

    with cli.reporting(quiet=quiet, as_json=json, debug=debug) as reporter:
        run(reporter, Path(log))


@task(
    positional=["path"],
    help={
        **_COMMON,
        "path": "a file, a folder of MLC weights or MNN files, or a bundle",
        "executor": "where QNN binaries and ONNX models are looked into: auto, docker, native",
    },
    auto_shortflags=False,
)
def inspect(
    c: Context,
    path: str,
    executor: str = "auto",
    quiet: bool = False,
    json: bool = False,
    debug: bool = False,
) -> None:
    """Say what a file is, by its content: ELF, weights, model files, context binaries, bundles.

    Examples:
      kiln inspect libMNN.so
      kiln inspect build/smollm2-135m-instruct/mnn
    """
    from edgekiln.commands.files import inspect as run

    with cli.reporting(quiet=quiet, as_json=json, debug=debug) as reporter:
        run(reporter, Path(path), executor=executor)


@task(
    help={
        **_COMMON,
        "folder": "the bundle to sign",
        "key": "the private key, PEM (default: the one that --new-key made)",
        "new-key": "make a key for you, at --key or its default place; with a bundle, sign it then",
        "sigstore": "sign by Sigstore with your identity in the place of a key",
    },
    auto_shortflags=False,
)
@cli.command
def sign(
    c: Context, folder: str = "", key: str = "", new_key: bool = False, sigstore: bool = False
) -> None:
    """Sign a bundle's provenance, and with it every file of the bundle.

    A key that is encrypted is opened with EDGEKILN_KEY_PASSWORD. docs/provenance.md says more.

    Examples:
      kiln sign --new-key
      kiln sign build/smollm2-135m-instruct/mnn
      kiln sign build/smollm2-135m-instruct/mnn --key ~/keys/release.pem
    """
    from edgekiln.commands.bundles import sign as run

    run(folder, key=key, new_key=new_key, sigstore=sigstore)


@task(
    name="images",
    positional=["name"],
    help={
        **_COMMON,
        **_TOOLCHAIN,
        **_REPRO,
        "base": "build on another base: debian-12, or any image the engine can have",
        "frozen": "refuse packages of the distribution that are not exactly the locked ones",
        **_OFFLINE,
    },
    auto_shortflags=False,
)
def verify_images(
    c: Context,
    name: str,
    base: str = "",
    frozen: bool = False,
    record: bool = False,
    vendor_dir: str | None = None,
    accept_licence: str | None = None,
    quiet: bool = False,
    json: bool = False,
    debug: bool = False,
) -> None:
    """Build an image twice from nothing, its base too, and compare them file by file.

    Nothing comes out of the builder's cache. Leaves with 18 where the two differ, or where the lock
    has other digests. docs/images-and-locks.md says more.

    Examples:
      kiln verify images mnn
      kiln verify images qnn --record
    """
    from edgekiln.commands.repro import verify_images as run

    with cli.reporting(quiet=quiet, as_json=json, debug=debug) as reporter:
        cli.offline(vendor_dir, accept_licence)
        run(name, reporter, base=base or None, frozen=frozen, record=record)


@task(
    name="signature",
    positional=["folder"],
    help={
        **_COMMON,
        "folder": "the bundle to verify",
        "key": "the signer's public key, PEM (default: your own)",
        "identity": "Sigstore: who must have signed it, e.g. a mail address",
        "issuer": "Sigstore: who must have vouched for that identity, an address",
    },
    auto_shortflags=False,
)
@cli.command
def verify_signature(
    c: Context, folder: str, key: str = "", identity: str = "", issuer: str = ""
) -> None:
    """Check a bundle's signature, and every file of the bundle against what was signed.

    Leaves with 19 where either does not hold.

    Examples:
      kiln verify signature build/smollm2-135m-instruct/mnn --key release.pub
      kiln verify signature DIR --identity me@example.org --issuer https://accounts.google.com
    """
    from edgekiln.commands.bundles import verify_signature as run

    run(folder, key=key, identity=identity, issuer=issuer)


@task(
    help={
        **_TRACE,
        "path": "a folder or file under tests/, or FILE::TEST (default: all tests)",
        "unit": "only the tests that need no container engine and no toolchain",
        "args": "further arguments for pytest, in quotes",
    },
    auto_shortflags=False,
)
@cli.at_terminal
def test(c: Context, path: str = "", unit: bool = False, args: str = "") -> None:
    """Run the tests.

    As root on Debian or Ubuntu with no engine running it brings one up first. Without an engine
    the container tests are skipped, and the closing lines say why.

    Examples:
      kiln test
      kiln test --unit
      kiln test tests/unit/test_store.py --args "-k resume -x"
    """
    from edgekiln.commands.testing import run_tests

    run_tests(select=path, unit=unit, args=args)


@task(
    help={
        **_TRACE,
        "only": "one measurement by its name; a name there is not lists them all",
        "repeat": "how often each is taken; the median is shown (default: 5)",
        "json": "write the figures, with every sample, into this file",
    },
    auto_shortflags=False,
)
@cli.at_terminal
def bench(c: Context, only: str = "", repeat: int = 5, json: str = "") -> None:
    """Measure what edgekiln itself costs: each figure is a median, with its spread.

    Measurements: nothing-to-do, stat-index, side-by-side, overhead, image, qnn, qnn-1b. They take
    minutes, the last the better part of an hour, and want a machine that does nothing else.

    Examples:
      kiln bench
      kiln bench --only nothing-to-do --repeat 3
      kiln bench --json bench.json
    """
    from edgekiln.bench import run

    run(only=only, repeat=repeat, to=Path(json) if json else None)


@task(name="list", help=_COMMON, auto_shortflags=False)
def hosts_list(c: Context, quiet: bool = False, json: bool = False, debug: bool = False) -> None:
    """List the machines of hosts.yaml, where stages can be sent with --on."""
    from edgekiln.commands.hosts import hosts_list as run

    with cli.reporting(quiet=quiet, as_json=json, debug=debug) as reporter:
        run(reporter)


@task(
    name="check",
    positional=["name"],
    help={
        **_COMMON,
        "name": "the machine: its name in hosts.yaml, or ssh://USER@HOST:PORT",
        "accept-new": "take its key as right if none is known yet, and remember it",
    },
    auto_shortflags=False,
)
def hosts_check(
    c: Context,
    name: str,
    accept_new: bool = False,
    quiet: bool = False,
    json: bool = False,
    debug: bool = False,
) -> None:
    """Reach a machine, set edgekiln up there, and say what it has.

    Examples:
      kiln hosts check autodl
      kiln hosts check ssh://root@connect.example.com:12345 --accept-new
    """
    from edgekiln.commands.hosts import hosts_check as run

    with cli.reporting(quiet=quiet, as_json=json, debug=debug) as reporter:
        run(reporter, name, accept_new=accept_new)


def _group(name: str, *tasks: Task[Any]) -> Collection:
    group = Collection(name)
    for each in tasks:
        group.add_task(each)
    return group


namespace = Collection(
    build, status, logs, wait, cancel, summary, doctor, inspect, explain, sign, test, bench
)
namespace.add_collection(
    _group(
        "images",
        images_list,
        images_build,
        images_verify,
        images_gc,
        images_export,
        images_load,
        images_pull,
        images_push,
        images_sbom,
        images_shell,
    )
)
namespace.add_collection(_group("models", models_get, models_show))
namespace.add_collection(
    _group(
        "toolchains",
        toolchains_list,
        toolchains_show,
        toolchains_lock,
        toolchains_fetch,
        toolchains_health,
        toolchains_outdated,
    )
)
namespace.add_collection(_group("recipes", recipes_list, recipes_show))
namespace.add_collection(
    _group("device", device_list, device_push, device_install, device_run, device_profile)
)
namespace.add_collection(_group("store", store_list, store_gc))
namespace.add_collection(_group("bundle", bundle_lint))
namespace.add_collection(_group("verify", verify_bundle, verify_images, verify_signature))
namespace.add_collection(_group("package", package_check))
namespace.add_collection(_group("hosts", hosts_list, hosts_check))
namespace.add_collection(_group("engine", engine_up, engine_show, engine_down))

cli.register(namespace.task_names)
cli.name_the_nearest()
