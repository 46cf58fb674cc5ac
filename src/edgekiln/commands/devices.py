"""`kiln device`: a bundle or an app on a phone."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from edgekiln import units
from edgekiln.errors import UsageError
from edgekiln.report import Reporter, Task, table

if TYPE_CHECKING:
    from edgekiln.device.adb import Phone
    from edgekiln.device.payload import Payload
    from edgekiln.device.run import Asked


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
