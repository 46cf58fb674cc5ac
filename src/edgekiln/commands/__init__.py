"""The commands other than build and bench: each looks something up and prints it."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekiln import units
from edgekiln.errors import AccessError, EngineError, KilnError, ToolchainError, UsageError
from edgekiln.home import project
from edgekiln.report import Reporter, Task, make_reporter, table

if TYPE_CHECKING:
    from edgekiln.device.adb import Phone
    from edgekiln.device.payload import Payload
    from edgekiln.device.run import Asked
    from edgekiln.engine import Engine
    from edgekiln.kits import Kit
    from edgekiln.problems import Problem
    from edgekiln.toolchain import Toolchain
    from edgekiln.toolchain.differences import Relocked

# Programs that tests call, and the packages of Debian and Ubuntu that hold them.
_TESTS_CALL = {
    "adb": "adb",
    "aarch64-linux-gnu-as": "binutils-aarch64-linux-gnu",
    "aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu libc6-dev-arm64-cross",
    "aapt": "aapt android-framework-res",
    "apksigner": "apksigner",
    "docker-registry": "docker-registry",
}


def images_list() -> None:
    """Print every toolchain's image."""
    from edgekiln import images
    from edgekiln.engine import find_engine
    from edgekiln.toolchain import list_toolchains, load_toolchain

    engine = find_engine()
    rows = []
    for name in list_toolchains():
        toolchain = load_toolchain(name)
        there = "no engine" if engine is None else _state(engine, toolchain)
        rows.append((name, images.tag(toolchain), there, toolchain.summary))
    print(table(rows, ("name", "image", "", "what")))


def _state(engine: Engine, toolchain: Any) -> str:
    from edgekiln import images

    found = engine.image(images.tag(toolchain))
    return units.size(found["Size"]) if found else "not built"


def images_build(name: str, *, base: str | None, frozen: bool) -> None:
    """Build one image."""
    from edgekiln import images
    from edgekiln.toolchain import load_toolchain

    toolchain = load_toolchain(name, base=base)
    with _task(f"image {name}", "steps") as task:
        images.build(_engine(), toolchain, task, frozen=frozen)
    print(images.tag(toolchain))
    if toolchain.kits:
        _tell_kits(toolchain)


def _tell_kits(toolchain: Toolchain) -> None:
    """Prove the image with its kits where they are here; else say what is missing."""
    from edgekiln import images
    from edgekiln.doctor import tell_kits

    if absent := tell_kits(toolchain.kits):
        print("proved without its kits, which are mounted and never part of it:")
        print("\n".join(f"  {check.name}: {check.found}" for check in absent))
        print(f"kiln toolchains fetch {toolchain.asked} gets them")
        return
    for line in images.prove(_engine(), toolchain)["proved"]:
        print(f"ok     {line}")


def images_dry_run(name: str, *, base: str | None) -> None:
    """Print every address, digest and size that building an image would fetch; fetch nothing."""
    from edgekiln.engine import find_engine
    from edgekiln.kits import shown
    from edgekiln.toolchain import load_toolchain

    toolchain = load_toolchain(name, base=base)
    print(shown.text(toolchain, shown.needed(toolchain, find_engine())))


def images_verify(name: str) -> None:
    """Run an image's verify."""
    from edgekiln import images
    from edgekiln.toolchain import load_toolchain

    report = images.prove(_engine(), load_toolchain(name))
    print("\n".join(f"ok     {line}" for line in report["proved"]))
    print("\n".join(f"newer  {line}" for line in report["drift"]), end="")


def images_gc(*, dry_run: bool) -> None:
    """Remove images and kits of ours that no toolchain of this checkout asks for any more."""
    from edgekiln import images
    from edgekiln.kits import making
    from edgekiln.toolchain import list_toolchains, load_toolchain

    for kit in making.unused():
        if not dry_run:
            making.remove(kit)
        print(kit)
    engine = _engine()
    wanted = {images.tag(load_toolchain(name)) for name in list_toolchains()}
    ours = [i for i in images.list_images(engine) if "edgekiln/" in i["tag"]]
    old = [i for i in ours if i["tag"].removeprefix("localhost/") not in wanted]
    for image in old:
        if not dry_run:
            images.remove(engine, image["tag"])
        print(f"{image['tag']}  {units.size(image['size'])}")
    print(f"{'would remove' if dry_run else 'removed'} {len(old)} images; layers are shared")


def images_sbom(name: str, *, to: Path | None, executor: str) -> None:
    """Write a toolchain's bill of materials to a file, or to standard output."""
    from edgekiln import sbom
    from edgekiln.store import disk_error
    from edgekiln.toolchain import load_toolchain

    text = sbom.of_toolchain(load_toolchain(name), executor=executor)
    if to is None:
        sys.stdout.write(text)
        return
    try:
        to.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise disk_error(error, to) from error
    print(f"{to} ({units.size(to.stat().st_size)})")


def images_shell(name: str, *, folder: str) -> None:
    """Hand the terminal to a shell in an image."""
    from edgekiln import images
    from edgekiln.toolchain import load_toolchain

    place = Path(folder).expanduser().resolve() if folder else project() / "scripts"
    command, env = images.shell_command(_engine(), load_toolchain(name), place)
    code = subprocess.run(command, env={**os.environ, **env}, check=False).returncode
    if code:
        from invoke.exceptions import Exit

        raise Exit(code=code)


def models_get(ref: str, *, refresh: bool, trust_pickle: bool) -> None:
    """Fetch a model where it must be fetched, and print what it is."""
    from edgekiln.models import resolve

    with _task("model") as task:
        model = resolve(ref, progress=task, refresh=refresh, trust_pickle=trust_pickle)
    rows = [
        ("name", model.name),
        ("source", model.source),
        ("path", str(model.path)),
        ("family", model.family),
        ("parameters", f"{model.parameters:,}"),
        ("weights", f"{units.size(model.weight_bytes)} {model.dtype}"),
        ("layers", str(model.layers)),
        ("hidden size", str(model.hidden_size)),
        ("heads", f"{model.heads} ({model.kv_heads} for keys and values, {model.head_dim} wide)"),
        ("vocabulary", str(model.vocab_size)),
        ("context", str(model.context_length) if model.context_length else "not said"),
        ("embedding", "shared with the head" if model.tied else "of its own"),
    ]
    for name, value in rows:
        print(f"{name:<12} {value}")


def toolchains_list() -> None:
    """Print every toolchain."""
    from edgekiln.toolchain import list_toolchains, load_toolchain

    rows = []
    for name in list_toolchains():
        t = load_toolchain(name)
        rows.append((name, t.base.name, t.python, str(len(t.lock.wheels)), t.summary))
    print(table(rows, ("name", "base", "python", "wheels", "what")))


def toolchains_show(name: str) -> None:
    """Print what a toolchain pins."""
    from edgekiln.toolchain import load_toolchain

    t = load_toolchain(name)
    print(f"{t.name}: {t.summary}\ndigest   {t.digest}\nbase     {t.base.name} {t.base.digest}")
    print(f"python   {t.python}\nuv       {t.lock.uv.version} sha256:{t.lock.uv.sha256}\n")
    wheels = [(w.name, w.version, f"sha256:{w.sha256}") for w in t.lock.wheels]
    debs = [(d.name, d.version, f"sha256:{d.sha256}") for d in t.lock.debs]
    print(table([*wheels, *debs], ("package", "version", "digest")))
    if t.kits:
        print("\n" + table([_kit_row(kit) for kit in t.kits], ("kit", "family", "", "what")))


def _kit_row(kit: Kit) -> tuple[str, ...]:
    from edgekiln.kits import is_ready, missing

    state = "ready" if is_ready(kit) else "to be fetched" if missing([kit]) else "at hand"
    return kit.name, kit.family, state, kit.summary


def toolchains_lock(name: str, *, check: bool, only: str, to: str) -> None:
    """Lock a toolchain, or all of them; with `check` say what has drifted and change nothing.

    `only` (names with commas) refreshes these and leaves the rest as it was locked; `to` moves
    the YAML's pin of the one package that `only` names.
    """
    from edgekiln.toolchain import list_bases, list_toolchains, relock

    chosen = _words(only)
    _check_chosen(name, check, chosen, to)
    drifted = False
    for each in [name] if name else [*list_bases(), *list_toolchains()]:
        with _task(each) as task:
            if not check:
                _tell_changes(_lock(each, task, chosen, to))
                continue
            found = relock.check(each, task)
        drifted |= bool(found)
        print("\n".join([f"{each}: {len(found)} drifted", *(f"  {line}" for line in found)]))
    if drifted:
        raise ToolchainError("not all is as it was locked", remedy="kiln toolchains lock NAME")


def _toolchains(text: str) -> list[str]:
    """Names of toolchains; the commas of a variant, NAME@KIT,KIT, are its own."""
    return [text] if "@" in text else _words(text)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _check_chosen(name: str, check: bool, chosen: list[str], to: str) -> None:
    if chosen and check:
        raise UsageError("--only and --check contradict each other", remedy="give one of them")
    if chosen and not name:
        raise UsageError("--only: of which toolchain?", remedy="kiln toolchains lock NAME --only …")
    if to and len(chosen) != 1:
        raise UsageError("--to: which package?", remedy="name one package with --only")


def _lock(name: str, task: Task, chosen: list[str], to: str) -> Relocked:
    from edgekiln.toolchain import folder, relock
    from edgekiln.toolchain.repin import repinned

    if not to:
        return relock.lock(name, task, only=chosen)
    path = folder() / f"{name}.yaml"
    if not path.is_file():
        raise UsageError(f"--to: {name} is no toolchain", remedy="kiln toolchains list")
    with repinned(path, chosen[0], to):
        return relock.lock(name, task, only=chosen)


def _tell_changes(made: Relocked) -> None:
    from edgekiln.toolchain.differences import HEAD

    print(made.path)
    rows = [change.row for change in made.changes]
    print(table(rows, HEAD) if rows else "nothing has changed")


def toolchains_health(reporter: Reporter, *, name: str, base: str) -> None:
    """Ask each upstream whether it still has what is pinned. Raises as `health.refuse` does."""
    from edgekiln.toolchain import list_toolchains, load_toolchain
    from edgekiln.upstream import health
    from edgekiln.user.pipconf import pip_settings

    names = _toolchains(name) or list_toolchains()
    toolchains = [load_toolchain(each, base=base or None) for each in names]
    with _asking(reporter, "health", name, "things") as task:
        found = health.health(toolchains, pip_settings(), task)
    text = f"{health.shown(found)}\n\n{health.counts(found)}"
    reporter.result("health", health.plain(found), text)
    health.refuse(found)


def toolchains_outdated(reporter: Reporter, *, name: str, every: bool) -> None:
    """Print what is newer than the pins; nothing is changed."""
    from edgekiln.toolchain import list_toolchains, load_toolchain
    from edgekiln.upstream import outdated
    from edgekiln.user.pipconf import pip_settings

    toolchains = [load_toolchain(each) for each in _toolchains(name) or list_toolchains()]
    with _asking(reporter, "outdated", name, "packages") as task:
        report = outdated.outdated(toolchains, pip_settings(), task, every=every)
    reporter.result("outdated", outdated.plain(report), outdated.shown(report))


@contextmanager
def _asking(reporter: Reporter, task: str, name: str, unit: str) -> Iterator[Task]:
    """A task that asks upstream about one toolchain, or all."""
    reporter.started(task, f"asking upstream about {name or 'all toolchains'}")
    started = time.monotonic()
    try:
        yield Task(reporter, task, unit)
    except BaseException:
        reporter.ended(task, "failed", {})
        raise
    reporter.ended(task, "done", {"seconds": round(time.monotonic() - started, 3)})


def recipes_list() -> None:
    """Print every ready build."""
    from edgekiln.recipe import list_recipes, load_recipe

    recipes = [load_recipe(name) for name in list_recipes()]
    rows = [(r.name, r.backend, r.model, r.summary) for r in recipes]
    print(table(rows, ("recipe", "backend", "model", "what")))


def recipes_show(name: str) -> None:
    """Print a recipe with every option; a star marks those that are not at their default."""
    import dataclasses

    from edgekiln.backends import load_backend
    from edgekiln.recipe import load_recipe

    recipe = load_recipe(name)
    backend = load_backend(recipe.backend)
    options = dataclasses.asdict(recipe.parsed(backend))
    plain = dataclasses.asdict(backend.options())
    print(f"{recipe.name}: {recipe.summary}")
    print(f"backend {recipe.backend}, model {recipe.model}, preset {recipe.preset}\n")
    for key, value in options.items():
        print(f"{'*' if value != plain[key] else ' '} {key}: {value}")


def store_list() -> None:
    """Print what the store holds."""
    from edgekiln.build import open_store

    with open_store() as store:
        entries = list(store.entries())
        rows = [
            (
                e.meta["stage"],
                e.meta["toolchain"],
                time.strftime("%Y-%m-%d %H:%M", time.localtime(e.meta["created"])),
                units.size(e.size),
                e.key[:16],
            )
            for e in sorted(entries, key=lambda e: int(e.meta["created"]))
        ]
        print(table(rows, ("stage", "toolchain", "made", "size", "key")))
        print(f"\n{len(rows)} stages, {units.size(sum(e.size for e in entries))}, {store.root}")


def store_gc(*, days: int, everything: bool, dry_run: bool) -> None:
    """Remove finished stages older than `days`."""
    from edgekiln.build import open_store

    before = time.time() - days * 86400
    freed = 0
    with open_store() as store:
        store.sweep()
        for entry in list(store.entries()):
            if everything or store.last_used(entry) < before:
                if not dry_run and not store.remove(entry):
                    print(f"in use, kept: {entry.meta['stage']} {entry.key[:16]}")
                    continue
                freed += entry.size
                print(f"{entry.meta['stage']:<12} {units.size(entry.size):>10}  {entry.key[:16]}")
    print(f"{'would free' if dry_run else 'freed'} {units.size(freed)}")


def bundle_lint(folder: str, *, model: str) -> None:
    """Print what is wrong with a Genie bundle. Raises BundleError where there are errors."""
    from edgekiln.genie import lint

    place = Path(folder).expanduser()
    problems = lint(place, Path(model).expanduser() if model else None)
    why = "Genie or the phone would refuse the bundle, or answer wrongly"
    _tell_problems(place, problems, "nothing found", why)


def sign(folder: str, *, key: str, new_key: bool, sigstore: bool) -> None:
    """Make a key, sign a bundle, or both."""
    from edgekiln import signing

    if not folder and not new_key:
        raise UsageError("which bundle?", remedy="kiln sign DIR, or kiln sign --new-key")
    if sigstore and (key or new_key):
        raise UsageError("--sigstore signs without a key", remedy="leave out --key and --new-key")
    place = Path(key).expanduser() if key else signing.own_key()
    if new_key:
        print(f"key: {place}; its public half, to give away: {signing.new_key(place)}")
    if not folder:
        return
    bundle = Path(folder).expanduser()
    if sigstore:
        from edgekiln import keyless

        print(f"{bundle}: signed by Sigstore for {keyless.sign(bundle)}")
    else:
        print(f"{bundle}: signed with the key {signing.sign(bundle, place)[:16]}…")


def verify_signature(folder: str, *, key: str, identity: str, issuer: str) -> None:
    """Print whose signature a bundle has. Raises SignatureError where it does not hold."""
    from edgekiln import signing

    bundle = Path(folder).expanduser()
    if identity or issuer:
        if key or not (identity and issuer):
            raise UsageError(
                "Sigstore needs who signed and who vouches for them, and no key",
                remedy="give --identity and --issuer, or --key alone",
            )
        from edgekiln import keyless

        found = keyless.verify(bundle, identity=identity, issuer=issuer)
        print(f"{bundle}: signed by {identity}; its {found.files} files are what was signed")
        return
    place = Path(key).expanduser() if key else signing.public_of(signing.own_key())
    found = signing.verify(bundle, place)
    print(f"{bundle}: signed with {place} ({found.keyid[:16]}…)")
    print(f"its {found.files} files are what was signed")


def package_check(file: str) -> None:
    """Print what is wrong with a package's configuration. Raises BundleError for errors."""
    from edgekiln.backends.mlc_package import check_file

    place = Path(file).expanduser()
    why = "mlc_llm package would end with them, after minutes; or the app, when it runs"
    _tell_problems(place, check_file(place), "every model has its library", why)


def _tell_problems(place: Path, problems: list[Problem], none: str, why: str) -> None:
    """Print problems, or that there are none. Raises BundleError where one is an error."""
    from edgekiln.errors import BundleError

    print("\n".join(p.text for p in problems) or f"{place}: {none}")
    if errors := sum(p.level == "error" for p in problems):
        raise BundleError(
            f"{place}: {errors} {'errors' if errors > 1 else 'error'}",
            why=why,
            remedy="each line above says what to do",
        )


def engine_up() -> None:
    """Bring an engine up."""
    from edgekiln import engine

    with _task("engine") as task:
        found = engine.up(task)
    print(f"{_name(found)} answers at {found.url}")


def engine_show() -> None:
    """Print which engine answers."""
    found = _engine()
    print(f"{_name(found)} answers at {found.url}")
    try:
        print(f"builds with: {shlex.join(found.cli)}")
    except KilnError as error:
        print(f"cannot build images: {error.what}; {error.remedy}")


def engine_down() -> None:
    """Stop the engine that was brought up."""
    from edgekiln import engine

    with _task("engine") as task:
        engine.down(task)


def device_list(reporter: Reporter) -> None:
    """Show every phone that adb knows of, with its chip where it can be asked."""
    from edgekiln.device.adb import Phone, find_adb, list_devices

    adb = find_adb()
    rows, values = [], []
    for device in list_devices(adb):
        soc = ""
        if device.state == "device":
            phone = Phone(adb=adb, serial=device.serial, model=device.model)
            soc = phone.properties("ro.soc.model").get("ro.soc.model", "")
        rows.append((device.serial, device.state, device.model, soc))
        values.append({"serial": device.serial, "state": device.state, "model": device.model})
        values[-1]["soc"] = soc
    text = table(rows, ("serial", "state", "model", "chip")) if rows else "no phone is connected"
    reporter.result("devices", values, text)


def device_push(
    reporter: Reporter, *, bundle: Path, serial: str, to: str, libraries: Path | None
) -> None:
    """Bring a bundle onto a phone."""
    from edgekiln.device import programs
    from edgekiln.device.push import push

    phone, payload, place = _phone_and_bundle(reporter, bundle, serial, to)
    extra = programs.libraries(payload, libraries) if libraries else ()
    reporter.started("push", f"{bundle} to {phone.serial}:{place}")
    done = push(phone, payload, Task(reporter, "push"), place=place, extra=extra)
    reporter.ended("push", "done", {"seconds": done.seconds})
    for name in done.kept:
        reporter.say(f"kept {place}/{name}: it was changed since edgekiln put it there")
    removed = f", {len(done.removed)} of an older version removed" if done.removed else ""
    text = (
        f"{len(done.new)} files pushed ({units.size(done.sent)}), "
        f"{len(done.same)} were there already{removed}: {place}"
    )
    value = {"place": place, "new": done.new, "same": done.same, "removed": done.removed}
    reporter.result("pushed", {**value, "kept": done.kept, "bytes": done.sent}, text)
    if lost := programs.missing(payload, [*done.new, *done.same, *_names(phone, place)]):
        reporter.result(
            "missing",
            [{"name": part.name, "source": part.source} for part in lost],
            "\n".join(
                [
                    "still needed on the phone (push again with --libraries FOLDER):",
                    *(f"  {part.name}  from {part.source}" for part in lost),
                ]
            ),
        )


def device_install(
    reporter: Reporter, *, what: Path, serial: str, start: bool, weights: bool
) -> None:
    """Install an app on a phone, with the weights that its bundle has beside it."""
    from edgekiln.build import open_store
    from edgekiln.device.adb import choose
    from edgekiln.device.install import install, read_source

    with open_store() as store:
        told = Task(reporter, "bundle").update
        source = read_source(what.expanduser().absolute(), store.index, every=weights, told=told)
    phone = choose(serial)
    reporter.started("install", f"{source.apk.path.name} on {phone.serial}")
    done = install(phone, source, Task(reporter, "install"), start=start)
    reporter.ended("install", "done", {"seconds": done.seconds})
    for note in done.notes:
        reporter.say(note)
    for pushed in done.weights:
        sent = f"{len(pushed.new)} files pushed ({units.size(pushed.sent)})"
        reporter.say(f"{sent}, {len(pushed.same)} were there already: {pushed.place}")
    over = f", over version code {done.before}" if done.before is not None else ""
    started = " and started" if done.started else ""
    value = {
        "package": done.package,
        "version": done.version,
        "before": done.before,
        "started": done.started,
        "weights": [pushed.place for pushed in done.weights],
    }
    text = f"installed{started}: {done.package} {done.version}{over}"
    reporter.result("installed", value, text)


def _refuse_no_log(log: Path) -> None:
    """Raise UsageError for what is no text, in which nothing would be found and all seem well."""
    remedy = "give a file; builds name theirs"
    if log.is_dir():
        raise UsageError(f"{log} is a folder", remedy=remedy)
    if not log.is_file():
        raise UsageError(f"there is no log {log}", remedy=remedy)
    try:
        with log.open("rb") as file:
            begins = file.read(4096)
    except OSError as error:
        why = error.strerror or str(error)
        raise AccessError(
            f"cannot read {log}", why=why, remedy="give a log you may read"
        ) from error
    if not begins:
        raise UsageError(f"{log} is empty", remedy="give the log of what went wrong")
    if b"\0" in begins and begins[:2] not in (b"\xff\xfe", b"\xfe\xff"):
        raise UsageError(f"{log} is no text", remedy="give a log as text, unpacked")


def explain(reporter: Reporter, log: Path) -> None:
    """Say which known faults a log tells of."""
    from edgekiln.faults import explain_all

    log = log.expanduser()
    _refuse_no_log(log)
    found = explain_all(log)
    lines = []
    for each in found:
        lines += [f"{each.what}", f"  why   {each.why}", f"  do    {each.do}"]
        lines += [f"  line  {each.line}", f"  seen  {each.threads}", ""]
    values = [
        {"name": f.fault.name, "what": f.what, "why": f.why, "do": f.do, "line": f.line}
        for f in found
    ]
    text = "\n".join(lines[:-1]) if found else "no fault that is known stands in it"
    reporter.result("faults", values, text)


def device_run(
    reporter: Reporter,
    *,
    bundle: Path,
    serial: str,
    to: str,
    prompt: str,
    prompt_file: Path | None,
    timeout: float,
) -> None:
    """Ask a model on a phone."""
    from edgekiln.device import run as runs

    on = phone, payload, place = _phone_and_bundle(reporter, bundle, serial, to)
    asked, task = _asked(reporter, "run", on, prompt=prompt, prompt_file=prompt_file)
    answer = runs.run(phone, payload, asked, task, place=place, timeout=timeout)
    reporter.ended("run", "done", {"seconds": answer.seconds})
    value = {"prompt": asked.said, "answer": answer.text, "how": answer.how}
    if answer.how == "abort":
        reporter.say("the answer was aborted on the phone")
    reporter.result("answer", value, answer.text.strip("\n"))


def device_profile(
    reporter: Reporter,
    *,
    bundle: Path,
    serial: str,
    to: str,
    prompt: str,
    prompt_file: Path | None,
    timeout: float,
) -> None:
    """Measure a model on a phone."""
    from edgekiln.device import profile

    on = phone, payload, place = _phone_and_bundle(reporter, bundle, serial, to)
    asked, task = _asked(reporter, "profile", on, prompt=prompt, prompt_file=prompt_file)
    found = profile.profile(phone, payload, asked, task, place=place, timeout=timeout)
    reporter.ended("profile", "done", {"seconds": found.answer.seconds})
    value = {"prompt": asked.said, "answer": found.answer.text, "how": found.answer.how}
    reporter.result("answer", value, found.answer.text.strip("\n"))
    reporter.result("figures", dict(found.figures), "\n" + "\n".join(found.lines))
    reporter.result("compared", found.compared, "")
    reporter.result("profile", str(found.path), f"\nprofile: {found.path}")


def _asked(
    reporter: Reporter,
    name: str,
    on: tuple[Phone, Payload, str],
    *,
    prompt: str,
    prompt_file: Path | None,
) -> tuple[Asked, Task]:
    """The question as it goes to a bundle that is on the phone, and the task that asks it."""
    from edgekiln.device import run

    phone, payload, place = on
    asked = run.ask(payload, prompt=prompt, prompt_file=prompt_file)
    run.check_pushed(phone, payload, place)
    reporter.started(name, f"on {phone.serial}")
    return asked, Task(reporter, name, "characters")


def _phone_and_bundle(
    reporter: Reporter, bundle: Path, serial: str, to: str
) -> tuple[Phone, Payload, str]:
    """The phone, the bundle found whole, and where it lies there."""
    from edgekiln.build import open_store
    from edgekiln.device.adb import check_place, choose
    from edgekiln.device.payload import read_payload

    with open_store() as store:
        task = Task(reporter, "bundle")
        payload = read_payload(bundle.expanduser().absolute(), store.index, task.update)
    phone = choose(serial)
    if payload.soc:
        _tell_other_chip(reporter, phone, payload)
    return phone, payload, check_place(to) if to else payload.place


def _tell_other_chip(reporter: Reporter, phone: Phone, payload: Payload) -> None:
    """A context binary loads only on the chip it was made for: say so where another is seen."""
    from edgekiln.backends.qnn_socs import find_soc

    said = phone.properties("ro.soc.model").get("ro.soc.model", "")
    try:
        meant = find_soc(payload.soc)
    except UsageError:
        return
    if said and not said.lower().startswith(meant.soc):
        reporter.say(f"the bundle is for {meant.title}, and the phone says it has {said}")


def _names(phone: Phone, place: str) -> list[str]:
    """The names of what lies directly in a folder on the phone."""
    done = phone.shell(f"ls -1 {shlex.quote(place)}")
    return done.stdout.split("\n")


def inspect(reporter: Reporter, path: Path, *, executor: str) -> None:
    """Say what a file or folder is."""
    from edgekiln.artifacts import look

    found = look(path.expanduser(), reporter, executor=executor)
    reporter.result("artifact", found.value(), found.text())


def run_tests(*, select: str, unit: bool, args: str) -> None:
    """Run pytest in this environment, with an engine brought up first where that can be done."""
    if select and not (project() / select.partition("::")[0]).exists():
        raise UsageError(f"no tests at {select}", remedy="a path such as tests/unit/test_store.py")
    where = select or ("tests/unit" if unit else "tests")
    if not unit and not where.startswith("tests/unit"):
        _try_engine()
        _try_packages()
    command = [sys.executable, "-m", "pytest", where, *shlex.split(args)]
    env = {**os.environ, "TESTCONTAINERS_RYUK_DISABLED": "true"}
    code = subprocess.run(command, cwd=project(), env=env, check=False).returncode
    if code:
        from invoke.exceptions import Exit

        raise Exit(code=code)


def _try_engine() -> None:
    """An engine for the container tests, where this user may bring one up."""
    from edgekiln import engine

    if engine.find_engine() is not None:
        return
    print("no container engine answers: trying to bring one up for the tests", flush=True)
    try:
        with _task("engine") as task:
            engine.up(task)
    except KilnError as error:
        print("\n".join(error.lines()), file=sys.stderr)


def _try_packages() -> None:
    """The programs of the distribution that some tests call, where they may be installed."""
    from edgekiln import aptrun

    missing = [packages for program, packages in _TESTS_CALL.items() if not shutil.which(program)]
    lacking = [package for packages in missing for package in packages.split()]
    if lacking and aptrun.can_install():
        print(f"installing for the tests: {' '.join(lacking)}", flush=True)
        try:
            aptrun.install(lacking)
        except KilnError as error:
            print("\n".join(error.lines()), file=sys.stderr)


class _task:  # noqa: N801 - used as a function: with _task("image mnn") as task
    """A task shown on the terminal for the length of a with block."""

    def __init__(self, name: str, unit: str = "B") -> None:
        self._name, self._unit = name, unit
        self._reporter: Reporter = make_reporter()

    def __enter__(self) -> Task:
        return Task(self._reporter, self._name, self._unit)

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            self._reporter.ended(self._name, "done", {})
        self._reporter.close()


def _engine() -> Engine:
    from edgekiln.engine import find_engine

    found = find_engine()
    if found is None:
        raise EngineError(
            "no container engine answers",
            why=_one_line_why_not(),
            remedy="start Docker or Podman, or run `kiln engine up`",
        )
    return found


def _name(engine: Engine) -> str:
    return f"{engine.kind} {engine.version}{' rootless' if engine.rootless else ''}"


def _one_line_why_not() -> str:
    from edgekiln.engine import why_not

    return why_not().replace("\n", "; ")
