"""A toolchain's software bill of materials: CycloneDX 1.6 in JSON, of what is really installed.

Format: cyclonedx.org/docs/1.6/json. Asked of the image, or of the native prefix, by
images/inventory.py; digests are added from the locks where the very versions they name are there.
Two runs give the same bytes: there is no time in it, and its serial number is made of its content.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekiln import __version__
from edgekiln.errors import EngineError, ImageError
from edgekiln.toolchain.lock import normal

if TYPE_CHECKING:
    from edgekiln.engine import Engine
    from edgekiln.kits import Kit
    from edgekiln.toolchain import Toolchain

Component = dict[str, Any]
_HASHES = {"sha256": "SHA-256", "sha1": "SHA-1"}
_PROPERTY = "edgekiln"


def of_toolchain(toolchain: Toolchain, *, executor: str = "auto") -> str:
    """The document, as text. `executor` says whose toolchain is looked into: docker's or native's.

    Raises EngineError without an engine where docker was asked for, and ImageError for a toolchain
    that is not installed there.
    """
    where, found = look(toolchain, executor)
    return text(document(toolchain, where, found))


def put_beside(toolchain: Toolchain, export: Path) -> Path:
    """Write the bill of an image beside its export in a vendor folder, and into SHA256SUMS."""
    from edgekiln.digest import digest_file
    from edgekiln.kits.firstuse import list_in
    from edgekiln.store import disk_error

    target = export.with_name(f"{export.name}.cdx.json")
    try:
        target.write_text(of_toolchain(toolchain, executor="docker"), "utf-8", newline="\n")
        list_in(target.parent, {target.name: digest_file(target)})
    except OSError as error:
        raise disk_error(error, target) from error
    return target


def look(toolchain: Toolchain, executor: str) -> tuple[str, dict[str, Any]]:
    """("image" or "prefix", what inventory.py found there)."""
    from edgekiln.executors.choose import check_executor

    check_executor(executor)
    if executor in ("auto", "docker"):
        from edgekiln import images
        from edgekiln.engine import find_engine, why_not

        engine = find_engine()
        if engine is not None and images.exists(engine, toolchain):
            return "image", _in_image(engine, toolchain)
        if engine is None and executor == "docker":
            why = "; ".join(why_not().splitlines())
            raise EngineError("no container engine answers", why=why, remedy="kiln engine up")
    if executor in ("auto", "native"):
        from edgekiln.prefix import prefix_ready

        if prefix_ready(toolchain):
            return "prefix", _in_prefix(toolchain)
    raise ImageError(
        f"the toolchain {toolchain.name} is not installed",
        why="a bill of materials tells what is there, not what a lock would bring",
        remedy=f"kiln images build {toolchain.name}, or a build with --executor native",
    )


def _in_image(engine: Engine, toolchain: Toolchain) -> dict[str, Any]:
    from edgekiln import images
    from edgekiln.calls import call
    from edgekiln.engine.buildcli import build_environment

    limits = ["--network", "none", "--cap-drop", "ALL", "--read-only"]
    words = ["run", "--rm", "--interactive", *limits, images.tag(toolchain), "python3", "-I", "-B"]
    done = call([*engine.cli, *words, "-"], env=build_environment(engine.url), input=_inventory())
    return _read(done.returncode, done.stdout, done.stderr, images.tag(toolchain))


def _in_prefix(toolchain: Toolchain) -> dict[str, Any]:
    from edgekiln.calls import call
    from edgekiln.prefix import prefix_path, prefix_python

    done = call([str(prefix_python(toolchain)), "-I", "-B", "-"], input=_inventory())
    return _read(done.returncode, done.stdout, done.stderr, prefix_path(toolchain).name)


def _inventory() -> str:
    from edgekiln.home import project

    return (project() / "images" / "inventory.py").read_text(encoding="utf-8")


def _read(code: int, said: str, errors: str, where: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(said.strip().splitlines()[-1])
    except (ValueError, IndexError):
        why = (errors.strip().splitlines() or [f"it ended with {code}"])[-1][:300]
        raise ImageError(f"{where} does not tell what is in it", why=why) from None
    return found


def text(body: Mapping[str, Any]) -> str:
    """The document as it is written to a file."""
    return json.dumps(body, indent=2, ensure_ascii=False) + "\n"


def document(toolchain: Toolchain, where: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """The bill of a toolchain out of what was found in its image or prefix, and of its kits."""
    import uuid

    from edgekiln.digest import digest_json

    parts = sorted(
        [*_wheels(toolchain, found), *_system(toolchain, found), *_kits(toolchain.kits)],
        key=lambda part: str(part["bom-ref"]),
    )
    root = _root(toolchain, where)
    body = {
        "metadata": {
            "tools": {
                "components": [{"type": "application", "name": "edgekiln", "version": __version__}]
            },
            "component": root,
        },
        "components": parts,
        "dependencies": [
            {"ref": root["bom-ref"], "dependsOn": [part["bom-ref"] for part in parts]},
            *({"ref": part["bom-ref"]} for part in parts),
        ],
    }
    number = uuid.uuid5(uuid.NAMESPACE_URL, f"urn:edgekiln:sbom:{digest_json(body)}")
    head = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{number}",
        "version": 1,
    }
    return {**head, **body}


def _root(toolchain: Toolchain, where: str) -> Component:
    from edgekiln import images

    name, _, version = images.tag(toolchain).partition(":")
    about = {
        "installed": where,
        "toolchain.digest": toolchain.digest,
        "toolchain.lock": toolchain.installed,
        "base": toolchain.base.name,
    }
    return {
        "type": "container" if where == "image" else "platform",
        "bom-ref": f"toolchain:{toolchain.asked}",
        "name": name if where == "image" else toolchain.asked,
        "version": version,
        "description": toolchain.summary,
        "properties": _properties(about),
    }


def _wheels(toolchain: Toolchain, found: Mapping[str, Any]) -> Iterator[Component]:
    locked = {(normal(w.name), w.version): w for w in toolchain.lock.wheels}
    for wheel in found["wheels"]:
        name, version = normal(wheel["name"]), wheel["version"]
        pin = locked.get((name, version))
        url = f"pkg:pypi/{name}@{_quoted(version)}"
        yield {
            "type": "library",
            "bom-ref": url,
            "name": wheel["name"],
            "version": version,
            **({"description": wheel["summary"]} if wheel["summary"] else {}),
            **({"hashes": _hashes({"sha256": pin.sha256})} if pin else {}),
            **_licences(wheel["licences"], wheel["expression"]),
            "purl": url,
            **({"properties": _properties({"file": pin.file})} if pin else {}),
        }
    python = found["python"]
    yield {
        "type": "platform",
        "bom-ref": f"python@{python['version']}",
        "name": python["name"],
        "version": python["version"],
    }


def _system(toolchain: Toolchain, found: Mapping[str, Any]) -> Iterator[Component]:
    """The distribution and its packages; none in a prefix, where they are the machine's own."""
    system = found["os"]
    if not system:
        return
    name, release = system.get("ID", "linux"), system.get("VERSION_ID", "")
    yield {
        "type": "operating-system",
        "bom-ref": f"os:{name}-{release}",
        "name": name,
        "version": release,
        "description": system.get("PRETTY_NAME", name),
    }
    base = toolchain.base.lock
    debs = (*toolchain.lock.debs, *(base.debs if base else ()))
    pins = {(deb.name, deb.version): deb.sha256 for deb in debs}
    for deb in found["debs"]:
        about = f"arch={deb['architecture']}&distro={name}-{release}"
        url = f"pkg:deb/{name}/{_quoted(deb['name'])}@{_quoted(deb['version'])}?{about}"
        pin = pins.get((deb["name"], deb["version"]))
        mentioned = deb.get("mentioned")
        told = [] if mentioned is None else [f"see /usr/share/doc/{deb['name']}/copyright"]
        source = {
            "source": f"{deb['source']} {deb['source_version']}",
            "licences.mentioned": ", ".join(mentioned or ()),
        }
        yield {
            "type": "library",
            "bom-ref": url,
            "name": deb["name"],
            "version": deb["version"],
            **({"hashes": _hashes({"sha256": pin})} if pin else {}),
            **_licences(deb.get("licences", told)),
            "purl": url,
            "properties": _properties(source),
        }


def _kits(kits: Iterable[Kit]) -> Iterator[Component]:
    """Kits are mounted, in no image and no prefix; the bill says so."""
    from edgekiln.kits import gitsource, licences, pin_of

    for kit in kits:
        parts = [_archive(kit, each.file, each.places[0], pin_of(each)) for each in kit.archives]
        for each in gitsource.listed(kit.source) if kit.source else ():
            parts.append(_repository(kit, each.path, each.repository, each.commit))
        named = kit.licence and licences.LICENCES[kit.licence].title
        about = {
            "kit.digest": kit.digest if kit.settled else "",
            "kit.mounted": "true",
        }
        yield {
            "type": "application",
            "bom-ref": f"kit:{kit.name}",
            "name": kit.name,
            **({"version": kit.version} if kit.version else {}),
            "description": kit.summary,
            **_licences([named] if named else [], kit.definition.spdx),
            "properties": _properties(about),
            "components": parts,
        }


def _archive(kit: Kit, file: str, place: str, pin: Any) -> Component:
    known = {name: getattr(pin, name) for name in _HASHES if getattr(pin, name)}
    return {
        "type": "file",
        "bom-ref": f"kit:{kit.name}/{file}",
        "name": file,
        **({"hashes": _hashes(known)} if known else {}),
        "externalReferences": [{"type": "distribution", "url": place}],
    }


def _repository(kit: Kit, path: str, repository: str, commit: str) -> Component:
    return {
        "type": "library",
        "bom-ref": f"kit:{kit.name}/{path}",
        "name": kit.name if path == "." else f"{kit.name}/{path}",
        **({"version": commit} if commit else {}),
        "externalReferences": [{"type": "vcs", "url": repository}],
    }


def _licences(names: Iterable[str], expression: str = "") -> Component:
    """An SPDX expression, or names as the package has them; nothing where it says nothing."""
    said = {"acknowledgement": "declared"}
    if expression:
        return {"licenses": [{"expression": expression, **said}]}
    found = [{"license": {"name": name, **said}} for name in names]
    return {"licenses": found} if found else {}


def _hashes(known: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"alg": _HASHES[name], "content": value} for name, value in known.items()]


def _properties(values: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"name": f"{_PROPERTY}:{k}", "value": v} for k, v in values.items() if v]


def _quoted(text: str) -> str:
    """A part of a package URL."""
    from urllib.parse import quote

    return quote(text, safe=".-~:")
